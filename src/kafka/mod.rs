//! Everything that touches Kafka. No other folder uses rdkafka.
//!
//! - [`client`]: creates the clients; every librdkafka option with its reason.
//! - [`ffi`]: unsafe code for events with partition and offset, headers and the topic id. Only `unpacking` and `codecs`
//!   contain `unsafe` too.
//! - [`statistics`]: how far a client has fetched, also where it delivers no records.
//! - [`reader`]: the poll thread that sends records to the pipeline.
//! - [`gap_prover`]: clients that prove why an offset has no record.
//! - `access`: which right is missing, and how to grant it.
//! - [`anchors`]: a client that reads single messages back.
//! - [`metadata`]: clients that query partitions, watermarks and topic settings, and read no messages.
//! - [`rights`]: what gapless's user may do at Kafka.
//! - [`connect_failure`], `failures`: why a connection failed, read from librdkafka's texts; a client's last failures.
//! - `certificate`: why the verification of a broker's certificate failed.
//! - [`unpacked`]: how much memory unpacked batches may take, and why a batch was not unpacked. `unpacking` replaces
//!   librdkafka's unpacking functions, `codecs` unpacks within bounds, `memory` checks whether memory is available.
//! - `renewable`: a client that is created again after its secrets were rotated.
//! - `secrets`: files with secrets, which are read again when a broker refuses their earlier content.

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
use crate::model::topic::TopicPartition;

/// An error of Kafka or of its client, with the operation that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("cannot create a Kafka client: {}", why_not_created(.0))]
    Client(rdkafka::error::KafkaError),
    /// The operating system refused to start a thread for a client.
    #[error("cannot start a thread: {0}")]
    Thread(String),
    #[error("{operation}: {source}")]
    Call { operation: &'static str, source: rdkafka::error::KafkaError },
    #[error("{operation}: no answer within {seconds} s")]
    Timeout { operation: &'static str, seconds: u64 },
    #[error("partition {} cannot be read: {message}", .partition.partition)]
    Log { partition: TopicPartition, message: String },
    /// The batch is not damaged, but it was not unpacked.
    #[error("partition {} cannot be read: {batch}", .partition.partition)]
    NotUnpacked { partition: TopicPartition, batch: NotUnpacked },
    /// No broker answers. The failure says why.
    #[error("cannot reach Kafka: {0}")]
    Unreachable(Box<ConnectFailure>),
    #[error("{partitions} partitions have no leader that answers{}", because(.failure.as_deref()))]
    NoLeader { partitions: usize, failure: Option<Box<ConnectFailure>> },
    #[error("{key}: cannot read {}: {source}", path.display())]
    Secret { key: &'static str, path: PathBuf, source: Arc<std::io::Error> },
    /// Kafka returned no setting of the topic: the right to describe them is missing.
    #[error("read the topic's configuration: the broker returned no setting, DescribeConfigs is not allowed")]
    NoSettings,
    /// The topic does not exist now. It may be created later.
    #[error("topic {0} does not exist")]
    NoTopic(String),
}

fn why_not_created(error: &rdkafka::error::KafkaError) -> String {
    match error {
        rdkafka::error::KafkaError::ClientCreation(why) => why.clone(),
        // The value is left out: it may be a secret under a misspelt name.
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

    /// What the operator can do.
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
                Refusal::TooLarge => "set kafka.max_unpacked_bytes to the bytes that the batch takes",
                Refusal::NoMemory | Refusal::Later => {
                    "give the process more memory (MemoryMax, the container's limit, ulimit -d)"
                }
            },
            Self::Log { .. } => "check the broker's log file and the partition's segments",
            Self::Timeout { .. } => "check that the brokers answer, and the network to them",
            Self::Call { source, .. } => match source.rdkafka_error_code() {
                Some(Code::TopicAuthorizationFailed) => "grant Describe and Read on the topic to gapless's user",
                Some(Code::ClusterAuthorizationFailed) => "grant Describe on the cluster to gapless's user",
                Some(Code::GroupAuthorizationFailed) => "grant Read on the consumer group to gapless's user",
                _ => "check kafka.brokers, security settings and that a broker is up",
            },
        }
    }

    /// Returns true if no answer came; the last connection failure is then the reason.
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

/// The version of librdkafka that this program is linked with.
pub fn librdkafka_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}
