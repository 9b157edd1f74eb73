//! Everything that touches Kafka; rdkafka has no other home.
//!
//! - [`client`]: every librdkafka option with its reason; makes the clients.
//! - [`ffi`]: the one file with `unsafe` but those of unpacking: events with partition and offset, headers, topic id.
//! - [`statistics`]: how far a client has fetched, also where it delivers nothing.
//! - [`reader`]: the poll thread that hands records to the pipeline.
//! - [`gap_prover`]: clients that prove what an offset without a record is.
//! - `access`: which right is missing, and how it is granted.
//! - [`anchors`]: a client that reads single messages back.
//! - [`metadata`]: another client for what is asked, not read: partitions and watermarks.
//! - [`rights`]: what this user may do there.
//! - [`connect_failure`], `failures`: why a connection failed, from librdkafka's own words; the last ones of a client.
//! - `certificate`: how a broker's certificate is at fault.
//! - [`unpacked`]: how much memory unpacked batches may take, and why one was not unpacked; `unpacking` stands between
//!   librdkafka and its own unpacking, `codecs` does it within bounds, `memory` asks whether there is room.
//! - `renewable`: a client that is made anew when its secrets were rotated.
//! - `secrets`: files with secrets, read again when a broker refuses what was read before.

pub mod gap_prover;
pub mod metadata;

pub mod access;
pub mod anchors;
pub mod certificate;
pub mod client;
#[cfg(target_os = "linux")]
pub mod codecs;
pub mod connect_failure;
pub mod failures;
pub mod ffi;
#[cfg(target_os = "linux")]
pub mod memory;
pub mod reader;
pub mod renewable;
pub mod rights;
pub mod secrets;
pub mod statistics;
pub mod unpacked;
#[cfg(target_os = "linux")]
pub mod unpacking;

use std::path::PathBuf;
use std::sync::Arc;

use rdkafka::error::RDKafkaErrorCode as Code;

use self::connect_failure::ConnectFailure;
use self::unpacked::{NotUnpacked, Refusal};

/// What went wrong at Kafka, with the operation that met it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("cannot create a Kafka client: {}", why_not_created(.0))]
    Client(rdkafka::error::KafkaError),
    /// The operating system gives no thread for a client.
    #[error("cannot start a thread: {0}")]
    Thread(String),
    #[error("{operation}: {source}")]
    Call { operation: &'static str, source: rdkafka::error::KafkaError },
    #[error("{operation}: no answer within {seconds} s")]
    Timeout { operation: &'static str, seconds: u64 },
    #[error("partition {partition} cannot be read: {message}")]
    Log { partition: i32, message: String },
    /// Of a sound batch.
    #[error("partition {partition} cannot be read: {batch}")]
    NotUnpacked { partition: i32, batch: NotUnpacked },
    /// No broker answers, and why.
    #[error("cannot reach Kafka: {0}")]
    Unreachable(Box<ConnectFailure>),
    #[error("{partitions} partitions have no leader that answers{}", because(.failure.as_deref()))]
    NoLeader { partitions: usize, failure: Option<Box<ConnectFailure>> },
    #[error("{key}: cannot read {}: {source}", path.display())]
    Secret { key: &'static str, path: PathBuf, source: Arc<std::io::Error> },
    /// Kafka shows no setting of the topic: the right to describe them is missing.
    #[error("read the topic's configuration: the broker shows nothing of it, DescribeConfigs is not allowed")]
    NoSettings,
    /// Not there now; it may appear.
    #[error("topic {0} does not exist")]
    NoTopic(String),
}

fn why_not_created(error: &rdkafka::error::KafkaError) -> String {
    match error {
        rdkafka::error::KafkaError::ClientCreation(why) => why.clone(),
        // Without the value, which may be a secret under a misspelt name.
        rdkafka::error::KafkaError::ClientConfig(_, why, key, _) => format!("{key}: {why}"),
        error => error.to_string(),
    }
}

fn because(failure: Option<&ConnectFailure>) -> String {
    failure.map_or(String::new(), |failure| format!(": {failure}"))
}

impl SourceError {
    fn thread(error: &std::io::Error) -> Self {
        Self::Thread(error.to_string())
    }

    /// What an operator does about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Client(error) if why_not_created(error).contains("SASL mechanism") => {
                "set kafka.sasl_mechanism to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, and not by kafka.options"
            }
            Self::Client(rdkafka::error::KafkaError::ClientConfig(..)) => {
                "correct or remove it in [kafka.options], whose keys are librdkafka's settings"
            }
            Self::Client(_) => "correct section [kafka] or [kafka.options]",
            Self::Unreachable(failure) | Self::NoLeader { failure: Some(failure), .. } => failure.kind.remedy(),
            Self::NoLeader { failure: None, .. } => {
                "start the brokers that lead them, or elect leaders (kafka-leader-election.sh)"
            }
            Self::Secret { .. } => "make the file readable for gapless, or correct its path",
            Self::NoSettings => "grant DescribeConfigs on the topic",
            Self::NoTopic(_) => "create the topic, or correct kafka.topic; gapless never creates one",
            Self::Thread(_) => "raise the limit on tasks or memory (ulimit -u, TasksMax, pids.max, memory.max)",
            Self::NotUnpacked { batch, .. } => match batch.why {
                Refusal::TooLarge => "set kafka.max_unpacked_bytes to the bytes that it takes",
                Refusal::NoMemory | Refusal::Later => {
                    "give the process more memory (MemoryMax, the container's limit, ulimit -d)"
                }
            },
            Self::Log { .. } => "look at the broker's log and segment",
            Self::Timeout { .. } => "check that the brokers answer, and the network to them",
            Self::Call { source, .. } => match source.rdkafka_error_code() {
                Some(Code::TopicAuthorizationFailed) => "grant Describe and Read on the topic to gapless's user",
                Some(Code::ClusterAuthorizationFailed) => "grant Describe on the cluster to gapless's user",
                Some(Code::GroupAuthorizationFailed) => "grant Read on the consumer group to gapless's user",
                _ => "check kafka.brokers, security settings and that a broker is up",
            },
        }
    }

    /// Whether no answer came, so that the last connection failure is the reason.
    fn is_unanswered(&self) -> bool {
        const UNANSWERED: [Code; 8] = [
            Code::BrokerTransportFailure,
            Code::AllBrokersDown,
            Code::OperationTimedOut,
            Code::TimedOutQueue,
            Code::RequestTimedOut,
            Code::Resolve,
            Code::SSL,
            Code::Authentication,
        ];
        match self {
            Self::Timeout { .. } => true,
            Self::Call { source, .. } => source.rdkafka_error_code().is_some_and(|code| UNANSWERED.contains(&code)),
            _ => false,
        }
    }
}

/// The version of the librdkafka this program is linked with.
pub fn librdkafka_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}
