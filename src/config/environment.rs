//! Decides by its name whether an environment variable is a setting. A misspelt variable is an error that names it; it
//! is never silently ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use ::config::{Config as Layers, File, FileFormat};

use super::{ConfigError, DEFAULTS};

const PREFIX: &str = "GAPLESS";
/// This table accepts every key, because librdkafka defines the names.
const OPEN_TABLE: &str = "kafka.options.";

/// The environment variable of a key, e.g. `GAPLESS__KAFKA__TOPIC`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}__{}", key.replace('.', "__").to_uppercase())
}

/// The keys that the environment sets, each with the name of its variable as the environment spells it.
#[derive(Debug)]
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Checks all names and reports all errors. Of a value it checks only that it is UTF-8.
    pub(super) fn of(environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let known = known_keys()?;
        let (mut set, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, value) in environment {
            let Ok(name) = name.into_string() else { continue };
            match classify(&name, &known) {
                // The message does not show the value, because it may be a password.
                Name::Key(_) if value.to_str().is_none() => {
                    problems.push(format!("{name} holds bytes that are no UTF-8"))
                }
                Name::Key(key) => drop(set.insert(key, name)),
                Name::Wrong(problem) => problems.push(problem),
                Name::NotOurs => {}
            }
        }
        problems.sort();
        match problems.is_empty() {
            true => Ok(Self(set)),
            false => Err(ConfigError::Environment(problems.join("; "))),
        }
    }

    /// The name of the variable that sets this key or a key below it.
    pub(super) fn of_key(&self, key: &str) -> Option<&str> {
        let below = |found: &str| found.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.0.iter().find(|(found, _)| below(found)).map(|(_, variable)| variable.as_str())
    }
}

/// The kind of a variable, by its name.
enum Name {
    Key(String),
    Wrong(String),
    /// No setting, e.g. `PATH`, a variable of tests or failpoints, or one that Kubernetes sets for a service named
    /// gapless.
    NotOurs,
}

fn classify(name: &str, known: &BTreeSet<String>) -> Name {
    let upper = name.to_uppercase();
    let Some(rest) = upper.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('_')) else { return Name::NotOurs };
    if let Some(path) = rest.strip_prefix('_') {
        let key = path.to_lowercase().replace("__", ".");
        if known.contains(&key) || key.starts_with(OPEN_TABLE) {
            return Name::Key(key);
        }
    }
    // The most common mistake is a wrong number of underscores.
    if let Some(meant) = known.iter().find(|key| words(&variable(key)).eq(words(&upper))) {
        return Name::Wrong(format!("{name} is no setting; write {}", variable(meant)));
    }
    let in_section = |section: &str| {
        let path = rest.trim_start_matches('_');
        path.to_lowercase().strip_prefix(section).is_some_and(|key| key.starts_with("__"))
    };
    if let Some(section) = sections(known).find(|section| in_section(section)) {
        let keys: Vec<&str> = known.iter().filter_map(|key| key.strip_prefix(section)?.strip_prefix('.')).collect();
        let key = rest.trim_start_matches('_').to_lowercase().replace("__", ".");
        return Name::Wrong(format!("{name}: there is no key {key}; section {section} has {}", keys.join(", ")));
    }
    match rest.starts_with('_') {
        true => {
            let sections: Vec<&str> = sections(known).collect();
            let form = format!("{PREFIX}__SECTION__KEY");
            Name::Wrong(format!("{name} is no setting; write {form} with a section of {}", sections.join(", ")))
        }
        false => Name::NotOurs,
    }
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').filter(|word| !word.is_empty())
}

pub(super) fn sections(known: &BTreeSet<String>) -> impl Iterator<Item = &str> {
    let mut sections: Vec<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    sections.dedup();
    sections.into_iter()
}

/// Every `section.key` in the documented defaults.
pub(super) fn known_keys() -> Result<BTreeSet<String>, ConfigError> {
    type Sections = BTreeMap<String, BTreeMap<String, serde::de::IgnoredAny>>;
    let defaults = Layers::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml)).build()?;
    let sections: Sections = defaults.try_deserialize()?;
    let keys = |(section, keys): (String, BTreeMap<String, _>)| {
        keys.into_keys().map(move |key| format!("{section}.{key}")).collect::<Vec<_>>()
    };
    Ok(sections.into_iter().flat_map(keys).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str]) -> Result<Variables, ConfigError> {
        Variables::of(names.iter().map(|name| (OsString::from(name), OsString::from("x"))))
    }

    fn problem(names: &[&str]) -> String {
        check(names).expect_err("refused").to_string()
    }

    #[test]
    fn each_variable_sets_its_key() {
        let set =
            check(&["GAPLESS__KAFKA__TOPIC", "gapless__batch__max_messages", "GAPLESS__KAFKA__OPTIONS__CLIENT.RACK"])
                .expect("settings");
        assert_eq!(set.of_key("kafka.topic"), Some("GAPLESS__KAFKA__TOPIC"));
        assert_eq!(set.of_key("batch.max_messages"), Some("gapless__batch__max_messages"));
        assert_eq!(set.of_key("kafka.options"), Some("GAPLESS__KAFKA__OPTIONS__CLIENT.RACK"));
        assert_eq!(set.of_key("kafka.top"), None);
    }

    #[test]
    fn every_documented_key_has_a_variable() {
        for key in known_keys().expect("the defaults are valid") {
            assert!(check(&[&variable(&key)]).is_ok(), "{key}");
        }
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_correct_one() {
        for wrong in ["GAPLESS_KAFKA__TOPIC", "GAPLESS_KAFKA_TOPIC", "GAPLESS__KAFKA_TOPIC", "GAPLESS___KAFKA__TOPIC"] {
            let text = problem(&[wrong]);
            assert!(text.contains(&format!("{wrong} ")) && text.contains(" GAPLESS__KAFKA__TOPIC"), "{text}");
        }
        let text = problem(&["GAPLESS__KAFKA__TOPICS"]);
        assert!(text.contains("GAPLESS__KAFKA__TOPICS") && text.contains("brokers, buffer_bytes"), "{text}");
        assert!(problem(&["GAPLESS_DATABASE__URI"]).contains("password_file"));
        assert!(problem(&["GAPLESS__KAFKAS__TOPIC"]).contains("batch, database"));
        assert!(problem(&["GAPLESS__KAFKA"]).contains("GAPLESS__SECTION__KEY"));
        let all = problem(&["GAPLESS__BATCH__A", "GAPLESS__BATCH__B"]);
        assert!(all.contains("GAPLESS__BATCH__A") && all.contains("GAPLESS__BATCH__B"), "all at once: {all}");
    }

    #[test]
    fn variables_that_are_no_settings_are_ignored() {
        let others =
            ["PATH", "GAPLESS", "GAPLESSLY", "GAPLESS_FAILPOINTS", "GAPLESS_TEST_KAFKA", "GAPLESS_TEST_DATABASE_URL"];
        assert!(check(&others).is_ok());
        // Kubernetes sets these for services named gapless, gapless-kafka and gapless-server.
        let links =
            ["GAPLESS_PORT", "GAPLESS_SERVICE_HOST", "GAPLESS_KAFKA_PORT_9092_TCP_ADDR", "GAPLESS_SERVER_SERVICE_PORT"];
        assert!(check(&links).is_ok());
        assert!(check(&["GAPLESS_CHAOS_SECONDS"]).is_ok());
    }

    #[test]
    fn a_value_that_is_not_utf8_is_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let password = OsString::from_vec(b"geheim\xfc".to_vec());
        let error =
            Variables::of([("GAPLESS__KAFKA__SASL_PASSWORD".into(), password)].into_iter()).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains("GAPLESS__KAFKA__SASL_PASSWORD") && !text.contains("geheim"), "{text}");
    }
}
