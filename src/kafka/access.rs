//! After Kafka refused an operation: which right is missing, for which user, and how to grant it. Pure.

use rdkafka::error::RDKafkaErrorCode;

use super::SourceError;
use super::reader::FetchError;
use crate::config::KafkaConfig;

impl FetchError {
    /// The right that is needed to read the partition, and how to grant it; `None` for any other error.
    pub fn missing_right(&self, kafka: &KafkaConfig) -> Option<String> {
        missing_right(self.code, kafka)
    }
}

impl SourceError {
    /// The right that is needed to read a message, and how to grant it; `None` for any other error.
    pub fn missing_right(&self, kafka: &KafkaConfig) -> Option<String> {
        match self {
            Self::Call { source, .. } => missing_right(source.rdkafka_error_code()?, kafka),
            _ => None,
        }
    }
}

/// Returns true if the error is a missing right, and not a missing broker or topic.
pub fn is_denied(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, GroupAuthorizationFailed, TopicAuthorizationFailed};
    matches!(code, ClusterAuthorizationFailed | GroupAuthorizationFailed | TopicAuthorizationFailed)
}

fn missing_right(code: RDKafkaErrorCode, kafka: &KafkaConfig) -> Option<String> {
    let (resource, name) = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => ("topic", kafka.topic.as_str()),
        RDKafkaErrorCode::GroupAuthorizationFailed => ("group", kafka.group.as_str()),
        _ => return None,
    };
    let principal = principal(kafka);
    Some(format!(
        "Kafka does not allow READ on {resource} {name} to {principal}; grant it (kafka-acls.sh --add --allow-principal {principal} --operation Read --{resource} {name}), or remove the rule that denies it; gapless then continues by itself"
    ))
}

/// Kafka's name for this client's user, as far as the configuration shows it.
fn principal(kafka: &KafkaConfig) -> String {
    let option = |name: &str| kafka.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.reveal());
    match option("sasl.username").filter(|user| !user.is_empty()) {
        Some(user) => format!("User:{user}"),
        None if option("ssl.certificate.location").is_some() => "User:SUBJECT-OF-THE-CLIENT-CERTIFICATE".to_owned(),
        None => "User:ANONYMOUS".to_owned(),
    }
}
