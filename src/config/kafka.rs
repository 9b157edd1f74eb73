//! Section `[kafka]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, MissingKey, Needs, Secret};
use crate::model::partition_state::MAX_UNPACKED_BYTES;
use crate::model::topic::Topic;

/// Options that only gapless sets. A user's `[kafka.options]` must not contain them.
const OWNED_OPTIONS: [&str; 27] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.commit.enable",
    "auto.offset.reset",
    "isolation.level",
    "check.crcs",
    "enable.partition.eof",
    "allow.auto.create.topics",
    "enable.metrics.push",
    "receive.message.max.bytes",
    "fetch.max.bytes",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "fetch.wait.max.ms",
    "fetch.queue.backoff.ms",
    "topic.metadata.refresh.interval.ms",
    "client.id",
    "socket.keepalive.enable",
    "statistics.interval.ms",
    "debug",
];

/// The SASL mechanisms of librdkafka that use a user name and a password.
const SASL_MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKafka {
    brokers: String,
    topic: String,
    group: String,
    security_protocol: String,
    ssl_ca_location: String,
    ssl_certificate_location: String,
    ssl_key_location: String,
    sasl_mechanism: String,
    sasl_username: String,
    sasl_password: String,
    sasl_password_file: String,
    max_message_bytes: usize,
    max_unpacked_bytes: usize,
    buffer_bytes: usize,
    headroom_warning_ms: u64,
    options: BTreeMap<String, String>,
}

/// How to connect to Kafka, and which topic to read.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub topic: Topic,
    pub group: String,
    /// Further librdkafka settings: first the security settings, then the user's `[kafka.options]`.
    pub options: Vec<(String, Secret)>,
    /// The file with the SASL password; read again for each new client.
    pub password_file: Option<PathBuf>,
    pub max_message_bytes: usize,
    /// The largest packed size of a batch, and the memory for all unpacked batches of one client, in bytes. A batch
    /// that needs more halts its partition.
    pub max_unpacked_bytes: usize,
    pub buffer_bytes: usize,
    /// Warn when retention may delete the next unread message within this time; zero: never.
    pub headroom_warning: Duration,
}

impl KafkaConfig {
    /// Reads the password from its file; `None` if no file is configured.
    pub fn read_password(&self) -> std::io::Result<Option<Secret>> {
        self.password_file.as_deref().map(Secret::read).transpose()
    }

    /// The part of the byte budget for Kafka's client: a quarter.
    pub fn client_bytes(&self) -> usize {
        self.buffer_bytes / 4
    }

    /// The part of the byte budget for batches that are being filled or are in flight: the rest.
    pub fn drafted_bytes(&self) -> usize {
        self.buffer_bytes - self.client_bytes()
    }
}

impl RawKafka {
    /// The required keys that are not set.
    pub(super) fn missing(&self, needs: Needs) -> impl Iterator<Item = MissingKey> {
        let everything = needs == Needs::Everything;
        let required = [
            ("kafka.brokers", "--brokers HOST:PORT", &self.brokers, everything),
            ("kafka.topic", "--topic NAME", &self.topic, needs != Needs::Database),
            ("kafka.group", "--group NAME", &self.group, everything),
        ];
        let missing = required.into_iter().filter(|(.., value, is_needed)| *is_needed && value.trim().is_empty());
        missing.map(|(key, flag, ..)| MissingKey { key, flag })
    }

    pub(super) fn check(self) -> Result<KafkaConfig, ConfigError> {
        if self.max_message_bytes == 0 || self.max_message_bytes > 512 * 1024 * 1024 {
            let problem =
                format!("is {}; write 1 to 536870912 (PostgreSQL holds 1 GB a field)", self.max_message_bytes);
            return Err(ConfigError::key("kafka.max_message_bytes", problem));
        }
        let unpacked = self.max_message_bytes.max(32 * 1024 * 1024)..=MAX_UNPACKED_BYTES as usize;
        if !unpacked.contains(&self.max_unpacked_bytes) {
            let problem = format!(
                "is {}; write {} (33554432, or kafka.max_message_bytes where that is more) to {}",
                self.max_unpacked_bytes,
                unpacked.start(),
                unpacked.end()
            );
            return Err(ConfigError::key("kafka.max_unpacked_bytes", problem));
        }
        if self.buffer_bytes < 1024 * 1024 {
            return Err(ConfigError::key(
                "kafka.buffer_bytes",
                format!("is {}; write 1048576 or more", self.buffer_bytes),
            ));
        }
        if let Some(owned) = self.options.keys().find(|key| OWNED_OPTIONS.contains(&key.as_str())) {
            return Err(ConfigError::key(
                "kafka.options",
                format!("sets {owned}, which the guarantee rests on; remove it"),
            ));
        }
        let options = self.security()?;
        let reads_password =
            options.iter().any(|(key, _)| key == "sasl.mechanism") && !self.sasl_password_file.is_empty();
        Ok(KafkaConfig {
            password_file: reads_password.then(|| PathBuf::from(&self.sasl_password_file)),
            brokers: self.brokers,
            topic: self.topic.into(),
            group: self.group,
            options: options.into_iter().chain(self.options.into_iter().map(|(k, v)| (k, Secret::new(v)))).collect(),
            max_message_bytes: self.max_message_bytes,
            max_unpacked_bytes: self.max_unpacked_bytes,
            buffer_bytes: self.buffer_bytes,
            headroom_warning: Duration::from_millis(self.headroom_warning_ms),
        })
    }

    fn security(&self) -> Result<Vec<(String, Secret)>, ConfigError> {
        const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
        // Kafka's documentation writes the names in capitals: SASL_SSL.
        let protocol = self.security_protocol.to_lowercase();
        if !PROTOCOLS.contains(&protocol.as_str()) {
            let problem = format!("is {:?}; write one of {}", self.security_protocol, PROTOCOLS.join(", "));
            return Err(ConfigError::key("kafka.security_protocol", problem));
        }
        self.certificate_has_key()?;
        let uses_sasl = protocol.starts_with("sasl");
        let mut options = vec![("security.protocol", Secret::new(protocol))];
        for (key, value) in [
            ("ssl.ca.location", &self.ssl_ca_location),
            ("ssl.certificate.location", &self.ssl_certificate_location),
            ("ssl.key.location", &self.ssl_key_location),
        ] {
            if !value.is_empty() {
                options.push((key, Secret::new(value)));
            }
        }
        if uses_sasl {
            let mechanism = self.sasl_mechanism.to_uppercase();
            if !SASL_MECHANISMS.contains(&mechanism.as_str()) {
                let problem = format!("is {:?}; write one of {}", self.sasl_mechanism, SASL_MECHANISMS.join(", "));
                return Err(ConfigError::key("kafka.sasl_mechanism", problem));
            }
            let password =
                Secret::inline_or_file("kafka.sasl_password", self.sasl_password.clone(), &self.sasl_password_file)?;
            options.push(("sasl.mechanism", Secret::new(mechanism)));
            options.push(("sasl.username", Secret::new(&self.sasl_username)));
            options.push(("sasl.password", password));
        }
        Ok(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// Refuses a certificate without a key and a key without a certificate: librdkafka accepts one alone, but then
    /// sends no certificate.
    fn certificate_has_key(&self) -> Result<(), ConfigError> {
        let (certificate, key) = ("kafka.ssl_certificate_location", "kafka.ssl_key_location");
        let (given, missing) = match (self.ssl_certificate_location.is_empty(), self.ssl_key_location.is_empty()) {
            (true, true) | (false, false) => return Ok(()),
            (false, true) => (certificate, key),
            (true, false) => (key, certificate),
        };
        // The missing one may also be given as PEM text in `[kafka.options]`.
        let text = if missing == key { "ssl.key.pem" } else { "ssl.certificate.pem" };
        match self.options.contains_key(text) {
            true => Ok(()),
            false => {
                Err(ConfigError::key(missing, format!("is not set, but {given} is; a client certificate needs both")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(settings: &[(&'static str, &str)]) -> Result<KafkaConfig, ConfigError> {
        let required = [("kafka.brokers", "localhost:9093"), ("kafka.topic", "t"), ("database.url", "postgres://h/d")];
        let all = required.iter().chain(settings).map(|(key, value)| (*key, (*value).to_owned())).collect();
        Config::load(None, &all, Needs::Everything).map(|config| config.kafka)
    }

    #[test]
    fn a_security_protocol_may_be_written_in_capitals() {
        let kafka = load(&[("kafka.security_protocol", "SASL_SSL"), ("kafka.sasl_username", "alice")]).expect("valid");
        let option = |name: &str| kafka.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.reveal());
        assert_eq!(option("security.protocol"), Some("sasl_ssl"));
        assert_eq!(option("sasl.username"), Some("alice"));
        let error = load(&[("kafka.security_protocol", "TLS")]).expect_err("refused").to_string();
        assert!(error.contains("\"TLS\"") && error.contains("sasl_ssl"), "{error}");
    }

    #[test]
    fn an_unknown_mechanism_is_refused_with_the_list_of_known_ones() {
        let protocol = ("kafka.security_protocol", "sasl_plaintext");
        let error = load(&[protocol, ("kafka.sasl_mechanism", "FOO")]).expect_err("refused").to_string();
        for part in ["kafka.sasl_mechanism is \"FOO\"", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(load(&[protocol, ("kafka.sasl_mechanism", "scram-sha-512")]).is_ok());
    }

    #[test]
    fn a_client_certificate_and_its_key_are_accepted_only_together() {
        let (certificate, key) = ("kafka.ssl_certificate_location", "kafka.ssl_key_location");
        let ssl = ("kafka.security_protocol", "ssl");
        let error = load(&[ssl, (certificate, "/c.pem")]).expect_err("refused").to_string();
        assert!(error.contains("kafka.ssl_key_location is not set"), "{error}");
        let error = load(&[ssl, (key, "/k.pem")]).expect_err("refused").to_string();
        assert!(error.contains("kafka.ssl_certificate_location is not set"), "{error}");
        assert!(load(&[ssl, (certificate, "/c.pem"), (key, "/k.pem")]).is_ok());
    }
}
