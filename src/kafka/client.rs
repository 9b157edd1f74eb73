//! Makes the librdkafka clients: each option is set explicitly, with the failure it prevents.

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

/// How often a client tells how far it has fetched.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(2);

/// How much a consumer fetches ahead.
#[derive(Debug, Clone, Copy)]
pub struct Fetch {
    /// Across all partitions.
    pub buffer_bytes: usize,
    /// What an answer holds of one partition, at most.
    pub partition_bytes: usize,
}

impl Fetch {
    /// The more an answer brings, the less a message costs the broker.
    pub fn ahead(buffer_bytes: usize) -> Self {
        Self { buffer_bytes, partition_bytes: 4 * 1024 * 1024 }
    }
}

/// Which of a topic's records a client is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Up to the last stable offset, without aborted transactions.
    ReadCommitted,
    /// Everything up to the high watermark: shows what a hole holds.
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

/// What belongs to a client: why its connections failed last, and which files it read.
#[derive(Clone)]
pub struct Context {
    pub(crate) failures: ConnectFailures,
    secrets: SecretFiles,
    pub(crate) unpacked: Arc<Budget>,
}

impl Context {
    /// Before a client is made, which then reads the files that are noted here, or newer ones.
    fn new(kafka: &KafkaConfig) -> Self {
        Self {
            failures: ConnectFailures::new(kafka),
            secrets: SecretFiles::of(kafka),
            unpacked: Budget::new(kafka.max_unpacked_bytes),
        }
    }

    /// Whether Kafka refuses what this client once read from files that have changed since. Says so once a rotation.
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
            // Broker connection errors come once per attempt: the pipeline reports Kafka's absence.
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

/// What the clients have in common.
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
        // A connection through a firewall that forgot it must not look idle for ever.
        .set("socket.keepalive.enable", "true")
        // Asserted in 2.5.x when a broker asked for metrics; nobody reads them.
        .set("enable.metrics.push", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

/// librdkafka says of a file that is not there only that OpenSSL failed.
fn check_files(kafka: &KafkaConfig) -> Result<(), SourceError> {
    let files = [
        ("ssl.ca.location", "kafka.ssl_ca_location"),
        ("ssl.certificate.location", "kafka.ssl_certificate_location"),
        ("ssl.key.location", "kafka.ssl_key_location"),
    ];
    for (option, key) in files {
        let value = kafka.options.iter().find(|(name, _)| name == option).map(|(_, value)| value.reveal());
        let path = value.map(PathBuf::from);
        // `probe` is librdkafka's word for the system's.
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
/// `group` only satisfies librdkafka, which refuses to assign without one, and names the offsets
/// that are committed as a courtesy.
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
        // Any other policy jumps over lost messages without a word.
        .set("auto.offset.reset", "error")
        // Off by default in librdkafka: a damaged segment would arrive as another message.
        .set("check.crcs", "true")
        // The end is an event: the tail behind the last record is proven then.
        .set("enable.partition.eof", "true")
        // A reader that creates the topic it waits for hides a typing error.
        .set("allow.auto.create.topics", "false")
        // New partitions are looked for by the observer; this bounds stale leaders.
        .set("topic.metadata.refresh.interval.ms", "30000")
        // One byte budget: what librdkafka holds ahead of us, across all partitions.
        .set("queued.max.messages.kbytes", (fetch_bytes / 1024).to_string())
        .set("queued.min.messages", "100000")
        // librdkafka takes no less than its message.max.bytes.
        .set("fetch.max.bytes", fetch_bytes.max(1_000_000).to_string())
        .set("fetch.message.max.bytes", fetch_bytes.min(fetch.partition_bytes).to_string())
        // A broker always sends at least one batch, however large; this bounds it, packed.
        .set("receive.message.max.bytes", kafka.max_unpacked_bytes.to_string())
        // How far it has fetched, also where it delivers nothing: aborted batches are skipped without a word.
        .set("statistics.interval.ms", failpoints::scaled(STATISTICS_INTERVAL).as_millis().to_string())
        // An empty fetch returns soon enough for the end of a partition to be noticed.
        .set("fetch.wait.max.ms", "250")
        .set("fetch.queue.backoff.ms", "20")
        .create_with_context(context)
        .map_err(SourceError::Client)?;
    #[cfg(target_os = "linux")]
    unpacking::bound(&consumer);
    Ok(consumer)
}

/// Asks who leads the partitions of a topic, for a second at most. librdkafka looks once a second whether a partition
/// that was assigned has a leader; one that it knows beforehand is fetched from at once. Where no answer comes, it looks.
pub fn learn_leaders(consumer: &BaseConsumer<Context>, topic: &str) {
    let _ = consumer.fetch_metadata(Some(topic), Duration::from_secs(1));
}

/// A client that only asks: watermarks under the given isolation, metadata, times.
pub fn asker(kafka: &KafkaConfig, isolation: Isolation) -> Result<BaseConsumer<Context>, SourceError> {
    let context = Context::new(kafka);
    common(kafka)?
        .set("isolation.level", isolation.option())
        .set("allow.auto.create.topics", "false")
        // The observer asks for it before each use.
        .set("topic.metadata.refresh.interval.ms", "-1")
        .create_with_context(context)
        .map_err(SourceError::Client)
}

/// A client for questions about configuration.
pub fn admin(kafka: &KafkaConfig) -> Result<AdminClient<DefaultClientContext>, SourceError> {
    common(kafka)?.create().map_err(SourceError::Client)
}
