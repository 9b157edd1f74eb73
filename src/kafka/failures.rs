//! The last connection failures of a client. They explain why Kafka cannot be reached.
//!
//! librdkafka's callbacks write them; [`crate::kafka::metadata`] and the log read them. Their number is bounded: one
//! failure per broker, and at most `MAX_BROKERS` brokers. The configuration refines the reason: whether a CA, a client
//! certificate and a login are configured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::certificate;
use super::connect_failure::{ConnectFailure, ConnectFailureKind as Kind};
use crate::config::KafkaConfig;

/// librdkafka repeats an unchanged failure after 30 s, and tries again after 10 s at most.
const MAX_AGE: Duration = Duration::from_secs(90);
/// Two texts about a broker within this time are most likely about the same connection.
const SAME_FAILURE_WINDOW: Duration = Duration::from_secs(2);
/// The maximum number of brokers whose failures are kept.
const MAX_BROKERS: usize = 16;

/// Shared between a client's callbacks and the readers; cheap to clone.
#[derive(Clone)]
pub(crate) struct ConnectFailures {
    by_address: Arc<Mutex<BTreeMap<String, (Instant, ConnectFailure)>>>,
    kafka: Arc<KafkaConfig>,
}

impl ConnectFailures {
    pub(crate) fn new(kafka: &KafkaConfig) -> Self {
        Self { by_address: Arc::default(), kafka: Arc::new(kafka.clone()) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, ConnectFailure)>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a text of one of librdkafka's callbacks, if it is about a failed connection.
    pub(crate) fn note(&self, text: &str) {
        let Some(failure) = ConnectFailure::read(text) else { return };
        let failure = refine(failure, &self.kafka);
        let mut by_address = self.lock();
        by_address.retain(|_, (at, _)| at.elapsed() < MAX_AGE);
        let kept = by_address.get(&failure.address);
        // After a failure librdkafka may also report that the connection was closed, which is less specific.
        let is_less_specific = kept.is_some_and(|(at, kept)| {
            at.elapsed() < SAME_FAILURE_WINDOW && kept.kind.specificity() > failure.kind.specificity()
        });
        if !is_less_specific && (kept.is_some() || by_address.len() < MAX_BROKERS) {
            by_address.insert(failure.address.clone(), (Instant::now(), failure));
        }
    }

    /// Forgets all failures, because Kafka answered.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// The most specific of the recent failures.
    pub(crate) fn last(&self) -> Option<ConnectFailure> {
        let by_address = self.lock();
        let recent = by_address.values().filter(|(at, _)| at.elapsed() < MAX_AGE);
        recent.max_by_key(|(at, failure)| (failure.kind.specificity(), *at)).map(|(_, failure)| failure.clone())
    }

    /// As [`Self::last`], but for a certificate's failure it makes its own handshake to find the reason, which
    /// librdkafka does not report. This may take some seconds.
    pub(crate) fn explain(&self) -> Option<ConnectFailure> {
        let failure = self.last()?;
        let is_certificate = matches!(failure.kind, Kind::BadCertificate | Kind::UntrustedCertificate | Kind::NoCa);
        match is_certificate.then(|| certificate::examine(&failure.address, &self.kafka)).flatten() {
            Some((kind, detail)) => Some(refine(ConnectFailure { kind, detail, ..failure }, &self.kafka)),
            None => Some(failure),
        }
    }
}

/// Refines a failure by the configuration.
fn refine(failure: ConnectFailure, kafka: &KafkaConfig) -> ConnectFailure {
    let has = |option: &str| kafka.options.iter().any(|(key, _)| key == option);
    let is_advertised = failure.broker_id.is_some() && !kafka.brokers.split(',').any(|b| b.trim() == failure.address);
    let kind = match failure.kind {
        Kind::Refused | Kind::NoAnswer | Kind::UnknownHost if is_advertised => Kind::AdvertisedAddress,
        Kind::UntrustedCertificate if !has("ssl.ca.location") && !has("ssl.ca.pem") => Kind::NoCa,
        Kind::NoClientCertificate if has("ssl.certificate.location") || has("ssl.certificate.pem") => {
            Kind::RefusedClientCertificate
        }
        Kind::SaslPort if has("sasl.mechanism") => Kind::Disconnected,
        kind => kind,
    };
    // The broker's answer is the same for an unknown user and a wrong password.
    let user = kafka.options.iter().find(|(key, _)| kind == Kind::Credentials && key == "sasl.username");
    let detail = match user {
        Some((_, user)) if !failure.detail.starts_with("user ") => {
            format!("user {}: {}", user.reveal(), failure.detail)
        }
        _ => failure.detail,
    };
    ConnectFailure { kind, detail, ..failure }
}
