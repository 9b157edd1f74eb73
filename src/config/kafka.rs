//! Section `[kafka]`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, Needs, Secret};
use crate::source::OWNED_OPTIONS;

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
    buffer_bytes: usize,
    headroom_warning_ms: u64,
    options: BTreeMap<String, String>,
}

/// How to reach Kafka and what to read there.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub topic: String,
    pub group: String,
    /// Further librdkafka settings: security first, then what the user added.
    pub options: Vec<(String, Secret)>,
    pub max_message_bytes: usize,
    pub buffer_bytes: usize,
    /// Warn when retention may delete the next unread message sooner; zero: never.
    pub headroom_warning: Duration,
}

impl KafkaConfig {
    /// Of the byte budget, what Kafka's client may hold.
    pub fn client_bytes(&self) -> usize {
        self.buffer_bytes / 4
    }

    /// The rest, for what is drafted or in flight.
    pub fn drafted_bytes(&self) -> usize {
        self.buffer_bytes - self.client_bytes()
    }
}

impl RawKafka {
    pub(super) fn check(self, needs: Needs) -> Result<KafkaConfig, ConfigError> {
        let required = |key, flag: &str, value: &str, is_needed: bool| match value.trim() {
            "" if is_needed => Err(ConfigError::key(
                key,
                format!("is not set; give {flag}, the environment variable or the file's key"),
            )),
            _ => Ok(()),
        };
        required("kafka.brokers", "--brokers HOST:PORT", &self.brokers, needs == Needs::Everything)?;
        required("kafka.topic", "--topic NAME", &self.topic, needs != Needs::Database)?;
        required("kafka.group", "--group NAME", &self.group, needs == Needs::Everything)?;
        if self.max_message_bytes == 0 || self.max_message_bytes > 512 * 1024 * 1024 {
            let problem =
                format!("is {}; write 1 to 536870912 (PostgreSQL holds 1 GB a field)", self.max_message_bytes);
            return Err(ConfigError::key("kafka.max_message_bytes", problem));
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
        Ok(KafkaConfig {
            brokers: self.brokers,
            topic: self.topic,
            group: self.group,
            options: options.into_iter().chain(self.options.into_iter().map(|(k, v)| (k, Secret::new(v)))).collect(),
            max_message_bytes: self.max_message_bytes,
            buffer_bytes: self.buffer_bytes,
            headroom_warning: Duration::from_millis(self.headroom_warning_ms),
        })
    }

    fn security(&self) -> Result<Vec<(String, Secret)>, ConfigError> {
        const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
        if !PROTOCOLS.contains(&self.security_protocol.as_str()) {
            let problem = format!("is {:?}; write one of {}", self.security_protocol, PROTOCOLS.join(", "));
            return Err(ConfigError::key("kafka.security_protocol", problem));
        }
        let mut options = vec![("security.protocol", Secret::new(&self.security_protocol))];
        for (key, value) in [
            ("ssl.ca.location", &self.ssl_ca_location),
            ("ssl.certificate.location", &self.ssl_certificate_location),
            ("ssl.key.location", &self.ssl_key_location),
        ] {
            if !value.is_empty() {
                options.push((key, Secret::new(value)));
            }
        }
        if self.security_protocol.starts_with("sasl") {
            let password =
                Secret::inline_or_file("kafka.sasl_password", self.sasl_password.clone(), &self.sasl_password_file)?;
            options.push(("sasl.mechanism", Secret::new(&self.sasl_mechanism)));
            options.push(("sasl.username", Secret::new(&self.sasl_username)));
            options.push(("sasl.password", password));
        }
        Ok(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}
