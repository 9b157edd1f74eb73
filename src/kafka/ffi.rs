//! `unsafe` calls of librdkafka, for data that rust-rdkafka's safe interface drops. The other files with `unsafe`
//! unpack batches: `unpacking` and `codecs`.
//!
//! - rust-rdkafka's consumer errors lose topic, partition and offset (`KafkaError::MessageConsumption(code)`): an error
//!   could not be assigned to a partition, and the end of a partition has no offset.
//! - Its header iterator panics on a header name that is not UTF-8.
//! - It exposes neither a record's leader epoch, nor the epoch of an assignment, nor a topic's id.
//!
//! So this file polls the consumer's queue by librdkafka's own event interface and copies each event into owned values
//! at once: no pointer leaves this file. It keeps three rules: an event is destroyed exactly once ([`Event`]'s `Drop`),
//! messages of an event are not used after that, and the queue handle does not outlive its consumer ([`ConsumerQueue`]
//! holds an `Arc` of it).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka_sys as sys;

use super::client::Context;
use super::statistics::Statistics;
use super::unpacked::{NotUnpacked, Refusal};
use crate::model::offset::Offset;
use crate::model::record::{AssignmentEpoch, Header, Record};
use crate::model::topic::TopicPartition;

/// An event of the consumer's queue. A consumer reads one topic: its partitions are named by their numbers.
#[derive(Debug)]
pub(crate) enum KafkaEvent {
    Record(Record),
    /// The partition was read up to `offset`: its last stable offset (read_committed) or its high watermark
    /// (read_uncommitted) at that moment.
    End {
        partition: i32,
        offset: i64,
    },
    /// Fetching of one partition failed, and stopped.
    PartitionError {
        partition: i32,
        code: RDKafkaErrorCode,
        message: String,
        /// Why a batch that is not damaged was not unpacked.
        not_unpacked: Option<NotUnpacked>,
    },
    /// The client's periodic statistics.
    Statistics(Statistics),
    /// The result of an offset commit; `None`: the broker accepted it.
    CommitAnswered(Option<RDKafkaErrorCode>),
    /// An error that is not about one partition: brokers down, authentication failed, …
    ClientError {
        code: RDKafkaErrorCode,
        message: String,
    },
}

impl KafkaEvent {
    pub(crate) fn partition(&self) -> Option<i32> {
        match self {
            Self::Record(record) => Some(record.partition),
            Self::End { partition, .. } | Self::PartitionError { partition, .. } => Some(*partition),
            Self::Statistics(_) | Self::CommitAnswered(_) | Self::ClientError { .. } => None,
        }
    }
}

/// The queues of a consumer, polled without rust-rdkafka's conversion of events.
pub(crate) struct ConsumerQueue {
    /// Records, ends of partitions and errors of partitions.
    queue: *mut sys::rd_kafka_queue_t,
    /// Statistics, log lines and errors of the client. A separate queue, so that these can be polled while records must
    /// wait; in one queue they would accumulate behind the records.
    main: *mut sys::rd_kafka_queue_t,
    /// Keeps the client alive as long as the queue; its context receives the log lines.
    consumer: Arc<BaseConsumer<Context>>,
}

// SAFETY: librdkafka's queues are thread-safe, and one thread at a time uses the handles.
unsafe impl Send for ConsumerQueue {}

impl ConsumerQueue {
    pub(crate) fn new(consumer: &Arc<BaseConsumer<Context>>) -> Self {
        // SAFETY: the client pointer is valid while `consumer` lives; a consumer with a group id
        // always has a consumer queue.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        assert!(!queue.is_null(), "a consumer with a group id has a queue");
        // SAFETY: as above; every client has a main queue. rust-rdkafka had forwarded it to the consumer's queue.
        let main = unsafe {
            let main = sys::rd_kafka_queue_get_main(consumer.client().native_ptr());
            sys::rd_kafka_queue_forward(main, ptr::null_mut());
            main
        };
        Self { queue, main, consumer: Arc::clone(consumer) }
    }

    /// Commits offsets. The result arrives as an event of this queue; rust-rdkafka's own call would drop the result.
    pub(crate) fn commit(&self, offsets: &TopicPartitionList) -> RDKafkaErrorCode {
        // SAFETY: client, list and queue are valid while borrowed; librdkafka copies the list and has no callback here.
        let raw = unsafe {
            let client = self.consumer.client().native_ptr();
            sys::rd_kafka_commit_queue(client, offsets.ptr(), self.main, None, ptr::null_mut())
        };
        RDKafkaErrorCode::from(raw)
    }

    /// The next event, or `None` if there was none within `timeout`.
    pub(crate) fn poll(&self, timeout: Duration) -> Option<KafkaEvent> {
        self.poll_aside().or_else(|| {
            let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the queue is valid; this code owns the returned event, and `Event::drop` frees it.
            let event = Event(unsafe { sys::rd_kafka_queue_poll(self.queue, timeout_ms) });
            if event.0.is_null() { None } else { event.read(self.consumer.context()) }
        })
    }

    /// The next statistics or error of the client, if there is one; never a record.
    pub(crate) fn poll_aside(&self) -> Option<KafkaEvent> {
        loop {
            // SAFETY: as in `poll`.
            let event = Event(unsafe { sys::rd_kafka_queue_poll(self.main, 0) });
            if event.0.is_null() {
                return None;
            }
            if let Some(event) = event.read(self.consumer.context()) {
                return Some(event);
            }
        }
    }
}

impl Drop for ConsumerQueue {
    fn drop(&mut self) {
        // SAFETY: `new` took these references; each is released once.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue);
            sys::rd_kafka_queue_destroy(self.main);
        }
    }
}

struct Event(*mut sys::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: this value owns the event and destroys it once; librdkafka accepts NULL.
        unsafe { sys::rd_kafka_event_destroy(self.0) }
    }
}

impl Event {
    fn read(&self, context: &Context) -> Option<KafkaEvent> {
        // SAFETY (all calls): `self.0` is a valid event until `self` is dropped.
        match unsafe { sys::rd_kafka_event_type(self.0) } {
            sys::RD_KAFKA_EVENT_FETCH => {
                let message = unsafe { sys::rd_kafka_event_message_next(self.0) };
                // SAFETY: the message belongs to the event, which lives during the copy.
                unsafe { message.as_ref() }.and_then(|message| read_message(context, message))
            }
            sys::RD_KAFKA_EVENT_ERROR => self.read_error(context),
            sys::RD_KAFKA_EVENT_STATS => {
                // SAFETY: the event owns the text, which is copied at once.
                let json = unsafe { text(sys::rd_kafka_event_stats(self.0)) };
                Statistics::parse(&json).map(KafkaEvent::Statistics)
            }
            sys::RD_KAFKA_EVENT_OFFSET_COMMIT => {
                let raw = unsafe { sys::rd_kafka_event_error(self.0) };
                let is_taken = raw == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
                Some(KafkaEvent::CommitAnswered((!is_taken).then(|| RDKafkaErrorCode::from(raw))))
            }
            sys::RD_KAFKA_EVENT_LOG => {
                self.read_log(context);
                None
            }
            _ => None,
        }
    }

    /// Passes a log line to the context. Log lines say, among other things, why a connection failed.
    fn read_log(&self, context: &Context) {
        let (mut facility, mut message, mut level) = (ptr::null(), ptr::null(), 0);
        // SAFETY: valid event and out pointers; the texts belong to the event and are copied at once.
        let (facility, message) = unsafe {
            if sys::rd_kafka_event_log(self.0, &mut facility, &mut message, &mut level) != 0 {
                return;
            }
            (text(facility), text(message))
        };
        context.log(log_level(level), facility.trim(), message.trim());
    }

    fn read_error(&self, context: &Context) -> Option<KafkaEvent> {
        let raw = unsafe { sys::rd_kafka_event_error(self.0) };
        if raw == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let code = RDKafkaErrorCode::from(raw);
        // SAFETY: the text is static or owned by the event, and is copied at once.
        let message = unsafe { text(sys::rd_kafka_event_error_string(self.0)) };
        let place = unsafe { sys::rd_kafka_event_topic_partition(self.0) };
        // SAFETY: NULL or a new value, which is freed below.
        let Some((partition, offset)) = (unsafe { place.as_ref() }).map(|p| (p.partition, p.offset)) else {
            context.error(KafkaError::Global(code), message.trim());
            return Some(KafkaEvent::ClientError { code, message });
        };
        unsafe { sys::rd_kafka_topic_partition_destroy(place) };
        Some(match code {
            RDKafkaErrorCode::PartitionEOF => KafkaEvent::End { partition, offset },
            _ => return partition_error(context, partition, code, message),
        })
    }
}

/// Ends the process without C's exit handlers. OpenSSL's handler frees memory that the threads of librdkafka still use;
/// with it, a process that should end with 0 ended with SIGSEGV.
pub fn end_process(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: i32) -> !;
    }
    // SAFETY: the function has no preconditions; it is in the C library that the standard library is linked with.
    unsafe { _exit(i32::from(code)) }
}

/// Converts a syslog level, which librdkafka uses.
fn log_level(level: i32) -> RDKafkaLogLevel {
    match level {
        i32::MIN..=2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        7.. => RDKafkaLogLevel::Debug,
    }
}

/// # Safety
/// `message` is NULL, or a NUL-terminated text that is valid during the call.
unsafe fn text(message: *const std::ffi::c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// The error of a partition; `None` if the client will fetch the batch again by itself once there is memory for it.
fn partition_error(context: &Context, partition: i32, code: RDKafkaErrorCode, message: String) -> Option<KafkaEvent> {
    let is_packed = code == RDKafkaErrorCode::BadCompression;
    let not_unpacked = is_packed.then(|| context.unpacked.explain(&message)).flatten();
    if let Some(batch) = not_unpacked.filter(|batch| batch.why == Refusal::Later) {
        tracing::debug!(kafka.partition = partition, "{batch}");
        return None;
    }
    Some(KafkaEvent::PartitionError { partition, code, message, not_unpacked })
}

fn read_message(context: &Context, message: &sys::rd_kafka_message_t) -> Option<KafkaEvent> {
    let code = RDKafkaErrorCode::from(message.err);
    if message.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: the text is valid as long as the message.
        let text = unsafe { text(sys::rd_kafka_message_errstr(message)) };
        return partition_error(context, message.partition, code, text);
    }
    let mut timestamp_type = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: valid message, valid out pointer.
    let timestamp = unsafe { sys::rd_kafka_message_timestamp(message, &mut timestamp_type) };
    let has_time = timestamp_type != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: valid message.
    let leader_epoch = unsafe { sys::rd_kafka_message_leader_epoch(message) };
    Some(KafkaEvent::Record(Record {
        partition: message.partition,
        offset: Offset::new(message.offset)?,
        // The reader sets the epoch of the assignment.
        epoch: AssignmentEpoch::default(),
        timestamp_ms: has_time.then_some(timestamp),
        leader_epoch: (leader_epoch >= 0).then_some(leader_epoch),
        // SAFETY: pointer and length are librdkafka's; NULL is an absent key or value.
        key: unsafe { bytes(message.key, message.key_len) },
        value: unsafe { bytes(message.payload, message.len) },
        headers: headers(message),
    }))
}

/// # Safety
/// `pointer` is NULL or points to `length` readable bytes.
unsafe fn bytes(pointer: *const c_void, length: usize) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) }.to_vec())
}

fn headers(message: &sys::rd_kafka_message_t) -> Vec<Header> {
    let mut list = ptr::null_mut();
    // SAFETY: valid message and out pointer; the list belongs to the message.
    let found = unsafe { sys::rd_kafka_message_headers(message, &mut list) };
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Vec::new();
    }
    let mut headers = Vec::new();
    loop {
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: valid list and out pointers; librdkafka returns an error for an index past the end.
        let found = unsafe { sys::rd_kafka_header_get_all(list, headers.len(), &mut name, &mut value, &mut length) };
        if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return headers;
        }
        headers.push(Header {
            // SAFETY: librdkafka terminates header names with NUL. The name is copied as bytes, not as UTF-8.
            name: unsafe { CStr::from_ptr(name) }.to_bytes().to_vec(),
            // SAFETY: NULL or `length` bytes.
            value: unsafe { bytes(value, length) },
        });
    }
}

/// The topic id (KIP-516), in Kafka's base64 form; `None` if the topic does not exist, the answer is late or the broker
/// has no topic ids.
pub(crate) fn topic_id(client: &BaseConsumer<Context>, topic: &str, timeout: Duration) -> Option<String> {
    // A broker without topic ids answers with zeros.
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let read = |description| {
        // SAFETY: the description is valid during this call; the text is copied at once.
        let id = unsafe { text(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(description))) };
        (!id.is_empty() && id.trim_end_matches('=') != NO_ID).then_some(id)
    };
    described(client, topic, timeout, Describe::Topic, read)
}

/// Returns true if this client's user may read the topic; `None` if the broker does not say.
pub(crate) fn may_read(client: &BaseConsumer<Context>, topic: &str, timeout: Duration) -> Option<bool> {
    let read = |description| {
        let mut count = 0;
        // SAFETY: the description and its list are valid during this call; the list is NULL if the broker sent none.
        let operations = unsafe {
            let list = sys::rd_kafka_TopicDescription_authorized_operations(description, &mut count);
            (!list.is_null()).then(|| std::slice::from_raw_parts(list, count))
        };
        operations.map(|all| all.contains(&sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ))
    };
    described(client, topic, timeout, Describe::WithRights, read)
}

/// Which description of a topic to request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Describe {
    Topic,
    WithRights,
}

/// Requests a topic's description and applies `read` to it before the description is freed.
fn described<T>(
    client: &BaseConsumer<Context>,
    topic: &str,
    timeout: Duration,
    requested: Describe,
    read: impl FnOnce(*const sys::rd_kafka_TopicDescription_t) -> Option<T>,
) -> Option<T> {
    let name = CString::new(topic).ok()?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let rk = client.client().native_ptr();
    // SAFETY: `rk` is valid while `client` is borrowed; each object created here is destroyed once, and the answer is
    // copied before its event is destroyed.
    unsafe {
        let queue = sys::rd_kafka_queue_new(rk);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(&mut name.as_ptr(), 1);
        let options = sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
        if requested == Describe::WithRights {
            sys::rd_kafka_error_destroy(sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1));
        }
        sys::rd_kafka_DescribeTopics(rk, topics, options, queue);
        let event = Event(sys::rd_kafka_queue_poll(queue, timeout_ms));
        let answer = description(&event).and_then(read);
        drop(event);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_queue_destroy(queue);
        answer
    }
}

/// # Safety
/// The event is NULL or valid; the description belongs to it.
unsafe fn description(event: &Event) -> Option<*const sys::rd_kafka_TopicDescription_t> {
    // SAFETY: results and descriptions belong to the event; for an event of another kind librdkafka returns NULL.
    unsafe {
        if event.0.is_null() {
            return None;
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let list = sys::rd_kafka_DescribeTopics_result_topics(result.as_ref()?, &mut count);
        let description = *list.as_ref().filter(|_| count == 1)?;
        let failed = sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(description));
        (failed == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(description)
    }
}

/// Sets the leader epoch of the record before an assignment's offset, so that librdkafka validates the offset with the
/// leader (KIP-320) before it fetches.
pub(crate) fn set_leader_epoch(list: &TopicPartitionList, partition: &TopicPartition, epoch: i32) {
    let TopicPartition { topic, partition } = partition;
    let Ok(name) = CString::new(topic.as_str()) else { return };
    // SAFETY: the list is valid while borrowed; for a partition that is not in it librdkafka returns NULL.
    unsafe {
        let element = sys::rd_kafka_topic_partition_list_find(list.ptr(), name.as_ptr(), *partition);
        if !element.is_null() {
            sys::rd_kafka_topic_partition_set_leader_epoch(element, epoch);
        }
    }
}
