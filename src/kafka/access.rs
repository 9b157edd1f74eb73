//! Which right is missing where Kafka refuses something, for whom, and how it is granted. Pure.

use rdkafka::error::RDKafkaErrorCode;

use super::SourceError;
use super::reader::FetchError;
use crate::config::KafkaConfig;

impl FetchError {
    /// The right that would let the partition be read; `None` if it was another error.
    pub fn missing_right(&self, kafka: &KafkaConfig) -> Option<String> {
        missing_right(self.code, kafka)
    }
}

impl SourceError {
    /// The right that would let a message be read; `None` if it was another error.
    pub fn missing_right(&self, kafka: &KafkaConfig) -> Option<String> {
        match self {
            Self::Call { source, .. } => missing_right(source.rdkafka_error_code()?, kafka),
            _ => None,
        }
    }
}

/// Whether a right is missing, not a broker or a topic.
pub fn is_denied(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, GroupAuthorizationFailed, TopicAuthorizationFailed};
    matches!(code, ClusterAuthorizationFailed | GroupAuthorizationFailed | TopicAuthorizationFailed)
}

fn missing_right(code: RDKafkaErrorCode, kafka: &KafkaConfig) -> Option<String> {
    let (resource, name) = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => ("topic", &kafka.topic),
        RDKafkaErrorCode::GroupAuthorizationFailed => ("group", &kafka.group),
        _ => return None,
    };
    let principal = principal(kafka);
    Some(format!(
        "Kafka does not allow READ on {resource} {name} to {principal}; grant it (kafka-acls.sh --add --allow-principal {principal} --operation Read --{resource} {name}), or remove the rule that denies it; reading goes on by itself then"
    ))
}

/// Whom Kafka takes this client for, as far as its configuration tells.
fn principal(kafka: &KafkaConfig) -> String {
    let option = |name: &str| kafka.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.reveal());
    match option("sasl.username").filter(|user| !user.is_empty()) {
        Some(user) => format!("User:{user}"),
        None if option("ssl.certificate.location").is_some() => "User:SUBJECT-OF-THE-CLIENT-CERTIFICATE".to_owned(),
        None => "User:ANONYMOUS".to_owned(),
    }
}
