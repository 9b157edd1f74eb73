//! Configuration: reads four layers and returns one checked [`Config`].
//!
//! Built-in defaults (`config/default.toml`) < file < environment < flags. The raw sections have the values as they are
//! written; [`Config`] has only checked values. Every error names the key, the value and what to write instead. Secrets
//! have their own type, which cannot be printed.

mod database;
mod environment;
mod kafka;
mod layers;
mod secret;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{Config as Layers, Environment, File, FileFormat};
use serde::Deserialize;

pub use self::database::DatabaseConfig;
use self::environment::{Variables, variable};
pub use self::kafka::KafkaConfig;
pub use self::secret::Secret;
use crate::formats::{Format, Preset};
use crate::model::breaker::Limits;
use crate::model::event::{IdentityField, IdentityRecipe};
use crate::observe::telemetry::LogFormat;

/// The documented defaults; docs/configuration.md is generated from them.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// An error in the configuration: the key, its value, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer cannot be read. This is a bug, because a test reads the defaults.
    #[error("configuration: {0}; this is a bug in gapless")]
    Layers(#[from] ::config::ConfigError),
    #[error("configuration: {} {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// Unknown keys, with the known ones.
    #[error("configuration: {}", .0.join("; "))]
    Keys(Vec<String>),
    /// The value does not have the type of its key.
    #[error("configuration: {key} {problem}")]
    Value { key: String, problem: String },
    #[error("configuration: {key} {problem}")]
    Key { key: &'static str, problem: String },
    /// All required keys that are missing, each with the ways to set it.
    #[error("configuration: not set: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Missing(Vec<MissingKey>),
    /// Environment variables that look like settings and are not.
    #[error("configuration: environment: {0}")]
    Environment(String),
    #[error("{source} (set by the environment variable {variable})")]
    SetBy { variable: String, source: Box<Self> },
    #[error("configuration: {key}: cannot read {}: {source}", path.display())]
    Secret { key: &'static str, path: PathBuf, source: std::io::Error },
}

impl ConfigError {
    /// Adds the environment variable that set the key of this error, unless a flag overrides it.
    fn named_by(self, variables: &Variables, overrides: &Overrides) -> Self {
        let key = match &self {
            Self::Key { key, .. } | Self::Secret { key, .. } => Some(*key),
            Self::Value { key, .. } => Some(key.as_str()),
            _ => None,
        };
        let of_flag = |key: &str| overrides.iter().any(|(flag, _)| *flag == key);
        let variable = key.filter(|key| !of_flag(key)).and_then(|key| variables.of_key(key)).map(str::to_owned);
        match variable {
            Some(variable) => Self::SetBy { variable, source: Box::new(self) },
            None => self,
        }
    }

    fn key(key: &'static str, problem: impl Into<String>) -> Self {
        Self::Key { key, problem: problem.into() }
    }
}

/// A key that must be set and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingKey {
    key: &'static str,
    flag: &'static str,
}

impl fmt::Display for MissingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (give {}, {} or the key in the file of --config)", self.key, self.flag, variable(self.key))
    }
}

/// Settings from the command line that override file and environment: (key, value).
pub type Overrides = Vec<(&'static str, String)>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    kafka: kafka::RawKafka,
    database: database::RawDatabase,
    batch: RawBatch,
    server: RawServer,
    log: RawLog,
    format: RawFormat,
    identity: RawIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatch {
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    bind: String,
    max_connections: usize,
    header_read_timeout_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: String,
    level: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFormat {
    preset: String,
    max_rejected_run: u64,
    max_rejected_share: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    fields: Names,
}

/// A list. The environment and flags give it as text: comma-separated or JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Text(String),
}

impl Names {
    fn into_list(self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        match self {
            Self::List(names) => Ok(names),
            Self::Text(text) if text.trim_start().starts_with('[') => serde_json::from_str(&text).map_err(|_| {
                ConfigError::key(key, format!(r#"is {text:?}; write a list as txn,event_type or ["txn","event_type"]"#))
            }),
            Self::Text(text) => Ok(text.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

/// The servers that a run uses. They decide which keys are required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Everything,
    /// The ledger of a topic in PostgreSQL, without Kafka.
    Ledger,
    /// PostgreSQL only: a migration job may have no settings of Kafka.
    Database,
}

/// The size limits of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    pub max_messages: usize,
    pub max_bytes: usize,
}

impl BatchLimits {
    /// Limits `max_bytes` so that the byte budget has room for one full batch per connection and the batch that is
    /// being filled. If batches had very different sizes, the small ones would be written but wait for the commit of a
    /// large predecessor, and their connections would be idle.
    pub fn within(self, budget_bytes: usize, connections: usize) -> Self {
        Self { max_bytes: self.max_bytes.min(budget_bytes / (connections + 1)), ..self }
    }
}

#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub bind: SocketAddr,
    pub max_connections: usize,
    pub header_read_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaConfig,
    pub database: DatabaseConfig,
    pub batch: BatchLimits,
    pub server: ServerConfig,
    pub log: LogConfig,
    pub format: Format,
    /// How many messages may be rejected before their partition halts.
    pub rejections: Limits,
}

impl Config {
    /// Reads and checks all layers.
    pub fn load(file: Option<&Path>, overrides: &Overrides, needs: Needs) -> Result<Self, ConfigError> {
        let mut layers = Layers::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(path) = file {
            layers = layers.add_source(File::from_str(&layers::read_file(path)?, FileFormat::Toml));
        }
        // A value from the environment stays text until the type of its key is known: a password
        // "007" must not become 7.
        let variables = Variables::of(std::env::vars_os())?;
        layers = layers.add_source(Environment::with_prefix("GAPLESS").prefix_separator("__").separator("__"));
        for (key, value) in overrides {
            layers = layers.set_override(key, value.as_str())?;
        }
        let layers = layers.build()?;
        layers::check_keys(&layers)?;
        let raw: Result<Raw, _> = layers.try_deserialize();
        let checked = raw.map_err(layers::explain).and_then(|raw| raw.check(needs));
        checked.map_err(|error| error.named_by(&variables, overrides))
    }
}

impl Raw {
    fn check(self, needs: Needs) -> Result<Config, ConfigError> {
        let missing: Vec<MissingKey> = self.kafka.missing(needs).chain(self.database.missing()).collect();
        if !missing.is_empty() {
            return Err(ConfigError::Missing(missing));
        }
        let bind = self.server.bind.parse().map_err(|_| {
            ConfigError::key(
                "server.bind",
                format!("is {:?}; write ADDRESS:PORT, e.g. 127.0.0.1:9464", self.server.bind),
            )
        })?;
        at_least_one("batch.max_messages", self.batch.max_messages)?;
        at_least_one("batch.max_bytes", self.batch.max_bytes)?;
        at_least_one("server.max_connections", self.server.max_connections)?;
        let kafka = self.kafka.check()?;
        let rejections = self.format.rejections()?;
        let preset =
            Preset::try_from(self.format.preset).map_err(|problem| ConfigError::key("format.preset", problem))?;
        let log_format = log_format(&self.log.format)?;
        Ok(Config {
            format: Format {
                preset,
                identity: recipe(&self.identity.fields.into_list("identity.fields")?)?,
                max_message_bytes: kafka.max_message_bytes,
            },
            rejections,
            kafka,
            database: self.database.check()?,
            batch: BatchLimits { max_messages: self.batch.max_messages, max_bytes: self.batch.max_bytes },
            server: ServerConfig {
                bind,
                max_connections: self.server.max_connections,
                header_read_timeout: Duration::from_millis(self.server.header_read_timeout_ms),
            },
            log: LogConfig { format: log_format, level: self.log.level },
        })
    }
}

impl RawFormat {
    fn rejections(&self) -> Result<Limits, ConfigError> {
        if !(0.0..=1.0).contains(&self.max_rejected_share) {
            let problem = format!("is {}; write 0 (no limit) to 1", self.max_rejected_share);
            return Err(ConfigError::key("format.max_rejected_share", problem));
        }
        Ok(Limits::new(self.max_rejected_run, self.max_rejected_share))
    }
}

fn log_format(name: &str) -> Result<LogFormat, ConfigError> {
    LogFormat::from_name(name).ok_or_else(|| ConfigError::key("log.format", format!("is {name:?}; write text or json")))
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::key(key, "is 0; write 1 or more")) } else { Ok(()) }
}

fn recipe(names: &[String]) -> Result<IdentityRecipe, ConfigError> {
    let known = || IdentityField::ALL.map(IdentityField::name).join(", ");
    let fields = names
        .iter()
        .map(|name| {
            IdentityField::ALL.into_iter().find(|field| field.name() == name).ok_or_else(|| {
                ConfigError::key("identity.fields", format!("names {name:?}; the fields are {}", known()))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    IdentityRecipe::new(fields)
        .ok_or_else(|| ConfigError::key("identity.fields", format!("is {names:?}; name txn, and each field once")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required() -> Overrides {
        vec![
            ("kafka.brokers", "127.0.0.1:9092".into()),
            ("kafka.topic", "events".into()),
            ("database.url", "postgres://me:secret@localhost/db".into()),
        ]
    }

    fn load(file: &str) -> Result<Config, ConfigError> {
        let path = std::env::temp_dir().join(format!("gapless-config-{:?}.toml", std::thread::current().id()));
        std::fs::write(&path, file).expect("a file in the temporary directory");
        let loaded = Config::load(Some(&path), &required(), Needs::Everything);
        std::fs::remove_file(&path).expect("the file is there");
        loaded
    }

    #[test]
    fn a_batch_leaves_room_for_those_of_the_other_connections_and_the_next_one() {
        let limits = BatchLimits { max_messages: 5000, max_bytes: 8 << 20 };
        assert_eq!(limits.within(20 << 20, 4).max_bytes, 4 << 20);
        assert_eq!(limits.within(1 << 30, 4).max_bytes, 8 << 20, "never more than was asked for");
    }

    #[test]
    fn the_documented_defaults_are_complete_and_valid() {
        let config = Config::load(None, &required(), Needs::Everything).expect("defaults are valid");
        assert_eq!(config.server.bind, "127.0.0.1:9464".parse().expect("an address"));
        assert_eq!(config.format.identity.text(), "txn,event_type");
        assert_eq!(config.kafka.group, "gapless");
    }

    /// Loads every TOML block of the documents. The files that a block names are created in a temporary folder.
    #[test]
    fn every_documented_sample_is_valid() {
        let folder = std::env::temp_dir().join(format!("gapless-samples-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder in the temporary directory");
        let documents = [
            include_str!("../../README.md"),
            include_str!("../../docs/configuration.md"),
            include_str!("../../docs/deployment.md"),
            include_str!("../../docs/operations.md"),
            include_str!("../../docs/data-model.md"),
        ];
        let blocks = documents.iter().flat_map(|text| text.split("```toml\n").skip(1));
        let samples: Vec<&str> = blocks.filter_map(|rest| rest.split("```").next()).collect();
        assert!(!samples.is_empty(), "there is one");
        for sample in samples.into_iter().chain([include_str!("../../deploy/systemd/gapless.toml")]) {
            for named in sample.split('"').filter_map(|text| text.strip_prefix("/etc/gapless/")) {
                std::fs::write(folder.join(named), "postgres://gapless@db/ledger\n").expect("a file");
            }
            let file = folder.join("sample.toml");
            let text = sample.replace("/etc/gapless", folder.to_str().expect("a path of text"));
            std::fs::write(&file, text).expect("a file");
            let loaded = Config::load(Some(&file), &Vec::new(), Needs::Database)
                .or_else(|_| Config::load(Some(&file), &vec![required().swap_remove(2)], Needs::Everything));
            assert!(loaded.is_ok(), "{sample}\n{loaded:?}");
        }
        std::fs::remove_dir_all(&folder).expect("the folder is there");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = load("[batch]\nmax_mesages = 5\n").expect_err("refused").to_string();
        assert!(error.contains("max_mesages"), "{error}");
    }

    #[test]
    fn each_error_in_a_file_names_the_key_and_what_to_write() {
        let cases = [
            ("[batch]\nmax_messages = \"many\"", "batch.max_messages is string \"many\"; write a whole number"),
            ("[batch]\nmax_messages = -5", "batch.max_messages is 64-bit integer `-5`; write a whole number"),
            (
                "[batch]\nmax_mesages = 5",
                "there is no key batch.max_mesages; section [batch] has max_bytes, max_messages",
            ),
            ("[bach]\nmax_messages = 5", "there is no section [bach]; the sections are batch, database"),
            ("batch = 5", "batch is no section; write [batch]"),
            ("[format]\npreset = \"foo\"", "format.preset \"foo\" is no preset; write one of web3"),
            ("[log]\nformat = \"xml\"", "log.format is \"xml\"; write text or json"),
            ("[identity]\nfields = [5]", "identity.fields"),
            ("[kafka]\noptions = 5", "write a section [kafka.options]"),
            ("[kafka.options]\na = [1]", "write text or a number"),
            ("[batch\nmax", "is no valid TOML: line 1, column 7: "),
        ];
        for (file, part) in cases {
            let error = load(file).expect_err(file).to_string();
            assert!(error.contains(part) && error.lines().count() == 1, "{file}: {error}");
        }
        let missing = Config::load(Some(Path::new("/nowhere/gapless.toml")), &required(), Needs::Everything);
        let missing = missing.expect_err("refused").to_string();
        assert!(missing.contains("/nowhere/gapless.toml cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn a_flag_overrides_the_file() {
        let config = load("[kafka]\ntopic = \"other\"\ngroup = \"mine\"\n").expect("valid");
        assert_eq!((config.kafka.topic.as_str(), config.kafka.group.as_str()), ("events", "mine"));
    }

    #[test]
    fn settings_that_the_guarantee_rests_on_cannot_be_overridden() {
        let error = load("[kafka.options]\n\"auto.offset.reset\" = \"latest\"\n").expect_err("refused").to_string();
        assert!(error.contains("auto.offset.reset"), "{error}");
    }

    #[test]
    fn the_error_for_a_missing_topic_says_how_to_set_it() {
        let error = Config::load(None, &required()[..1].to_vec(), Needs::Everything).expect_err("refused").to_string();
        assert!(error.contains("--topic"), "{error}");
    }

    #[test]
    fn all_missing_keys_are_reported_at_once_each_with_its_variable() {
        let missing = |needs| Config::load(None, &Vec::new(), needs).expect_err("refused").to_string();
        let error = missing(Needs::Everything);
        for part in [
            "kafka.brokers (give --brokers HOST:PORT, GAPLESS__KAFKA__BROKERS or",
            "kafka.topic (give --topic NAME, GAPLESS__KAFKA__TOPIC or",
            "database.url (give --database-url URL, GAPLESS__DATABASE__URL or",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!missing(Needs::Ledger).contains("kafka.brokers") && missing(Needs::Ledger).contains("kafka.topic"));
        assert!(!missing(Needs::Database).contains("kafka") && missing(Needs::Database).contains("database.url"));
    }

    #[test]
    fn a_list_may_be_text_with_commas_or_json() {
        let fields = |text: &str| {
            let mut settings = required();
            settings.push(("identity.fields", text.to_owned()));
            Config::load(None, &settings, Needs::Everything).map(|config| config.format.identity.text())
        };
        for text in ["txn,event_type,log_index", "txn, event_type , log_index", r#"["txn", "event_type", "log_index"]"#]
        {
            assert_eq!(fields(text).expect("valid"), "txn,event_type,log_index");
        }
        for text in [r#"["txn""#, r#"["txn", 5]"#, "[txn]"] {
            let error = fields(text).expect_err("refused").to_string();
            assert!(error.contains("identity.fields") && error.contains(r#"["txn","event_type"]"#), "{error}");
        }
    }

    #[test]
    fn a_share_above_one_is_refused() {
        let error = load("[format]\nmax_rejected_share = 50\n").expect_err("refused").to_string();
        assert!(error.contains("format.max_rejected_share is 50"), "{error}");
    }

    #[test]
    fn a_migration_needs_no_kafka() {
        assert!(Config::load(None, &required()[2..].to_vec(), Needs::Database).is_ok());
    }

    #[test]
    fn reading_the_ledger_needs_a_topic_and_no_brokers() {
        assert!(Config::load(None, &required()[1..].to_vec(), Needs::Ledger).is_ok());
        let error = Config::load(None, &required()[2..].to_vec(), Needs::Ledger).expect_err("refused").to_string();
        assert!(error.contains("--topic"), "{error}");
    }

    #[test]
    fn passwords_are_not_printed() {
        let config = Config::load(None, &required(), Needs::Everything).expect("valid");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
