//! Creates the librdkafka clients. Each option is set explicitly, with the failure that it prevents.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use super::SourceError;
use super::failures::ConnectFailures;
use super::secrets::SecretFiles;
use super::unpacked::Budget;
#[cfg(target_os = "linux")]
use super::unpacking;
use crate::config::KafkaConfig;
use crate::failpoints;

/// How often a client reports how far it has fetched.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(2);

/// How many bytes a consumer fetches ahead.
#[derive(Debug, Clone, Copy)]
pub struct Fetch {
    /// Across all partitions.
    pub buffer_bytes: usize,
    /// The maximum number of bytes of one partition in one fetch response.
    pub partition_bytes: usize,
}

impl Fetch {
    /// For clients that read whole partitions. A large response reduces the broker's cost for each message.
    pub fn ahead(buffer_bytes: usize) -> Self {
        Self { buffer_bytes, partition_bytes: 4 * 1024 * 1024 }
    }
}

/// Which of a topic's records a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Up to the last stable offset, without aborted transactions.
    ReadCommitted,
    /// Everything up to the high watermark, including records of aborted transactions: shows what a gap contains.
    ReadUncommitted,
}

impl Isolation {
    fn option(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// A client's last connection failures, the files that it read, and its memory budget for unpacked batches.
#[derive(Clone)]
pub struct Context {
    pub(crate) failures: ConnectFailures,
    secrets: SecretFiles,
    pub(crate) unpacked: Arc<Budget>,
}

impl Context {
    /// Must be called before the client is created: the client then reads the files recorded here, or newer ones.
    fn new(kafka: &KafkaConfig) -> Self {
        Self {
            failures: ConnectFailures::new(kafka),
            secrets: SecretFiles::of(kafka),
            unpacked: Budget::new(kafka.max_unpacked_bytes),
        }
    }

    /// Returns true if Kafka refuses this client's secrets and their files have changed since. Logs once per rotation.
    pub(crate) fn is_outdated(&self) -> bool {
        let is_refused = self.failures.last().is_some_and(|failure| failure.kind.is_refusal());
        let is_outdated = is_refused && self.secrets.have_changed();
        if is_outdated {
            self.secrets.log_reload();
        }
        is_outdated
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(event = "librdkafka_critical", kafka.facility = facility, "librdkafka: {message}");
            }
            // A broker's connection error comes at each attempt; the pipeline reports that Kafka is unreachable.
            _ => tracing::debug!(kafka.facility = facility, "librdkafka: {message}"),
        }
        self.failures.note(message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::debug!(error = %error, "librdkafka: {reason}");
        self.failures.note(reason);
    }
}

impl ConsumerContext for Context {}

/// The options of every client.
fn common(kafka: &KafkaConfig) -> Result<ClientConfig, SourceError> {
    check_files(kafka)?;
    let mut config = ClientConfig::new();
    for (key, value) in &kafka.options {
        config.set(key, value.reveal());
    }
    if let Some(password) = kafka.read_password().map_err(unreadable(kafka))? {
        config.set("sasl.password", password.reveal());
    }
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "gapless")
        // Without it, a connection whose firewall state was lost would stay idle without an error.
        .set("socket.keepalive.enable", "true")
        // librdkafka 2.5.x failed an assertion when a broker requested metrics. The metrics are not used.
        .set("enable.metrics.push", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

/// Checks that the files exist: for a missing file librdkafka reports only that OpenSSL failed.
fn check_files(kafka: &KafkaConfig) -> Result<(), SourceError> {
    let files = [
        ("ssl.ca.location", "kafka.ssl_ca_location"),
        ("ssl.certificate.location", "kafka.ssl_certificate_location"),
        ("ssl.key.location", "kafka.ssl_key_location"),
    ];
    for (option, key) in files {
        let value = kafka.options.iter().find(|(name, _)| name == option).map(|(_, value)| value.reveal());
        let path = value.map(PathBuf::from);
        // `probe` is librdkafka's name for the system's CAs.
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty() && path.as_os_str() != "probe") else {
            continue;
        };
        std::fs::File::open(&path).map_err(|error| SourceError::Secret { key, path, source: Arc::new(error) })?;
    }
    Ok(())
}

fn unreadable(kafka: &KafkaConfig) -> impl Fn(std::io::Error) -> SourceError {
    let path = kafka.password_file.clone().unwrap_or_default();
    move |error| SourceError::Secret { key: "kafka.sasl_password_file", path: path.clone(), source: Arc::new(error) }
}

/// A consumer for explicit assignments: no subscription, no group protocol.
///
/// librdkafka requires a `group` for an assignment. Offsets are committed under it for lag tools only.
pub fn consumer(
    kafka: &KafkaConfig,
    group: &str,
    isolation: Isolation,
    fetch: Fetch,
) -> Result<BaseConsumer<Context>, SourceError> {
    let fetch_bytes = fetch.buffer_bytes.clamp(64 * 1024, 16 * 1024 * 1024);
    let context = Context::new(kafka);
    let mut config = common(kafka)?;
    let consumer: BaseConsumer<Context> = config
        .set("group.id", group)
        .set("isolation.level", isolation.option())
        // PostgreSQL alone says where to resume; a stored or committed offset is never used.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Any other policy silently skips lost messages.
        .set("auto.offset.reset", "error")
        // Off by default in librdkafka: a damaged segment would be delivered as a different message.
        .set("check.crcs", "true")
        // Reports the end of a partition as an event, which proves that no record lies between the last one and the
        // end.
        .set("enable.partition.eof", "true")
        // Creating the topic would hide a misspelt topic name.
        .set("allow.auto.create.topics", "false")
        // The observer finds new partitions; this setting bounds how long a leader is outdated.
        .set("topic.metadata.refresh.interval.ms", "30000")
        // One byte budget for the records that librdkafka fetched ahead, across all partitions.
        .set("queued.max.messages.kbytes", (fetch_bytes / 1024).to_string())
        .set("queued.min.messages", "100000")
        // librdkafka accepts no value below its message.max.bytes.
        .set("fetch.max.bytes", fetch_bytes.max(1_000_000).to_string())
        .set("fetch.message.max.bytes", fetch_bytes.min(fetch.partition_bytes).to_string())
        // A broker always sends at least one batch of any size; this bounds its packed size.
        .set("receive.message.max.bytes", kafka.max_unpacked_bytes.to_string())
        // Reports how far the client has fetched, also where it skips aborted batches without an event.
        .set("statistics.interval.ms", failpoints::scaled(STATISTICS_INTERVAL).as_millis().to_string())
        // An empty fetch returns soon, so that the end of a partition is reported soon.
        .set("fetch.wait.max.ms", "250")
        .set("fetch.queue.backoff.ms", "20")
        .create_with_context(context)
        .map_err(SourceError::Client)?;
    #[cfg(target_os = "linux")]
    unpacking::bound(&consumer);
    Ok(consumer)
}

/// Queries the leaders of a topic's partitions, for a second at most. librdkafka checks only once a second for the
/// leader of an assigned partition; it fetches at once if it knows the leader before the assignment. Without an answer,
/// librdkafka's own check remains.
pub fn learn_leaders(consumer: &BaseConsumer<Context>, topic: &str) {
    let _ = consumer.fetch_metadata(Some(topic), Duration::from_secs(1));
}

/// A client for queries only: watermarks under the given isolation, metadata, offsets for a time.
pub fn asker(kafka: &KafkaConfig, isolation: Isolation) -> Result<BaseConsumer<Context>, SourceError> {
    let context = Context::new(kafka);
    common(kafka)?
        .set("isolation.level", isolation.option())
        .set("allow.auto.create.topics", "false")
        // The observer queries the metadata before each use.
        .set("topic.metadata.refresh.interval.ms", "-1")
        .create_with_context(context)
        .map_err(SourceError::Client)
}

/// A client for queries of the topic's configuration.
pub fn admin(kafka: &KafkaConfig) -> Result<AdminClient<DefaultClientContext>, SourceError> {
    common(kafka)?.create().map_err(SourceError::Client)
}
