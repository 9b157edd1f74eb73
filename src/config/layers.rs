//! Errors in a file or in the type of a value: each names the key, the value and what to write instead. The error
//! messages of the libraries that read the layers use their own terms.

use std::collections::BTreeSet;
use std::path::Path;

use ::config::{Config as Layers, ConfigError as LayerError, File, FileFormat, Source, ValueKind};

use super::environment::{known_keys, sections};
use super::{ConfigError, DEFAULTS};

/// This table accepts every key, because librdkafka defines the names.
const OPEN_TABLE: &str = "kafka.options";

/// Reads a configuration file and checks that it is valid TOML.
pub(super) fn read_file(path: &Path) -> Result<String, ConfigError> {
    let wrong = |problem: String| ConfigError::File { path: path.to_owned(), problem };
    let bytes = std::fs::read(path).map_err(|error| {
        wrong(format!("cannot be read: {error}; correct the path of --config, or make the file readable"))
    })?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is no UTF-8 text; write it in UTF-8".to_owned()))?;
    match Layers::builder().add_source(File::from_str(&text, FileFormat::Toml)).build() {
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(format!("is no valid TOML: {}; correct it there", in_one_line(&error.to_string())))),
    }
}

/// Keeps the position and the reason of a TOML error. The library also prints the line itself, which may contain a
/// secret.
fn in_one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    match (first.strip_prefix("TOML parse error at "), lines.next_back()) {
        (Some(place), Some(reason)) => format!("{place}: {reason}"),
        _ => first.to_owned(),
    }
}

/// Checks that every key is known; the error lists all unknown keys.
pub(super) fn check_keys(layers: &Layers) -> Result<(), ConfigError> {
    let known = known_keys()?;
    let mut problems = Vec::new();
    for (section, value) in layers.collect()? {
        let is_known = sections(&known).any(|name| name == section);
        match value.kind {
            _ if !is_known => {
                let all: Vec<&str> = sections(&known).collect();
                problems.push(format!("there is no section [{section}]; the sections are {}", all.join(", ")));
            }
            ValueKind::Table(keys) => {
                let unknown = keys.into_keys().filter(|key| !known.contains(&format!("{section}.{key}")));
                problems.extend(unknown.map(|key| {
                    let keys = keys_of(&known, &section);
                    format!("there is no key {section}.{key}; section [{section}] has {}", keys.join(", "))
                }));
            }
            _ => problems.push(format!("{section} is no section; write [{section}], and its keys below it")),
        }
    }
    problems.sort();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::Keys(problems)) }
}

fn keys_of<'a>(known: &'a BTreeSet<String>, section: &str) -> Vec<&'a str> {
    known.iter().filter_map(|key| key.strip_prefix(section)?.strip_prefix('.')).collect()
}

/// Explains a value that does not have the type of its key: names the key and what to write.
pub(super) fn explain(error: LayerError) -> ConfigError {
    let (key, problem) = match &error {
        LayerError::Type { key: Some(key), unexpected, .. } => (key, format!("is {unexpected}; write {}", wanted(key))),
        LayerError::At { key: Some(key), .. } => (key, format!("has no allowed value; write {}", wanted(key))),
        _ => return ConfigError::Layers(error),
    };
    ConfigError::Value { key: key.clone(), problem }
}

/// Describes the values of a key, by the type of its documented default.
fn wanted(key: &str) -> String {
    if key == OPEN_TABLE {
        return "a section [kafka.options] with librdkafka's settings below it".to_owned();
    }
    if key.starts_with(OPEN_TABLE) {
        return "text or a number".to_owned();
    }
    let defaults = Layers::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml)).build();
    match defaults.and_then(|defaults| defaults.get::<::config::Value>(key)).map(|value| value.kind) {
        Ok(ValueKind::I64(number)) => format!("a whole number from 0 on, as the default {number}"),
        Ok(ValueKind::Float(number)) => format!("a number, as the default {number:?}"),
        Ok(ValueKind::Boolean(_)) => "true or false".to_owned(),
        Ok(ValueKind::Array(_)) => r#"a list as ["txn", "event_type"]"#.to_owned(),
        Ok(ValueKind::String(text)) if !text.is_empty() => format!("text, as the default {text:?}"),
        _ => "text".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_a_file_is_one_line_without_the_text_of_the_file() {
        let text = "TOML parse error at line 1, column 7\n  |\n1 | password = geheim\n  |       ^\nunclosed table\n";
        assert_eq!(in_one_line(text), "line 1, column 7: unclosed table");
        assert_eq!(in_one_line("number too large"), "number too large");
    }

    #[test]
    fn each_kind_of_key_is_described_by_its_default() {
        assert_eq!(wanted("batch.max_messages"), "a whole number from 0 on, as the default 5000");
        assert!(wanted("identity.fields").contains(r#"["txn", "event_type"]"#));
        assert!(wanted("format.max_rejected_share").starts_with("a number, as"));
        assert!(wanted("kafka.options.client.rack").contains("text or a number"));
    }
}
