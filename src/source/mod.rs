//! Everything that touches Kafka; rdkafka has no other home.
//!
//! - [`client`]: every librdkafka option with its reason; makes the clients.
//! - [`ffi`]: the one file with `unsafe`: events with partition and offset, headers, topic id.
//! - [`reader`]: the poll thread that hands records to the pipeline.
//! - [`holes`]: a second client that proves what an offset without a record is.
//! - [`observer`]: a third client for what is asked, not read: partitions and watermarks.

pub mod client;
mod ffi;
pub mod holes;
pub mod observer;
pub mod reader;

pub use self::client::OWNED_OPTIONS;

/// What went wrong at Kafka, with the operation that met it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("cannot create a Kafka client: {0}")]
    Client(rdkafka::error::KafkaError),
    #[error("{operation}: {source}")]
    Call { operation: &'static str, source: rdkafka::error::KafkaError },
    #[error("{operation}: no answer within {seconds} s")]
    Timeout { operation: &'static str, seconds: u64 },
    #[error("partition {partition} cannot be read: {message}")]
    Log { partition: i32, message: String },
    #[error("{0} partitions have no leader that answers")]
    NoLeader(usize),
    /// Kafka shows no setting of the topic: the right to describe them is missing.
    #[error("read the topic's configuration: the broker shows nothing of it, DescribeConfigs is not allowed")]
    NoSettings,
    /// Not there now; it may appear.
    #[error("topic {0} does not exist")]
    NoTopic(String),
}

/// The version of the librdkafka this program is linked with.
pub fn librdkafka_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}
