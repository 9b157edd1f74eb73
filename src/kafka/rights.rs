//! What gapless's user may do at Kafka, for `gapless check`. It only sends queries and changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::SourceError;
use super::client::{self, Fetch, Isolation};
use super::ffi::{ConsumerQueue, KafkaEvent};
use crate::config::KafkaConfig;

/// How long to wait for the broker's answer.
const RIGHTS_TIMEOUT: Duration = Duration::from_secs(6);

/// Returns true if gapless may commit offsets for its group; `None` if no answer came.
///
/// It commits an offset for a partition that does not exist: the broker checks the right to the group first, and then
/// has nothing to write.
pub async fn may_commit(kafka: &KafkaConfig) -> Result<Option<bool>, SourceError> {
    let kafka = kafka.clone();
    let answer = tokio::task::spawn_blocking(move || may_commit_now(&kafka));
    answer.await.expect("the blocking task neither panics nor is cancelled")
}

fn may_commit_now(kafka: &KafkaConfig) -> Result<Option<bool>, SourceError> {
    let consumer =
        Arc::new(client::consumer(kafka, &kafka.group, Isolation::ReadCommitted, Fetch::ahead(kafka.client_bytes()))?);
    let queue = ConsumerQueue::new(&consumer);
    let call = |source| SourceError::Call { operation: "check the right to commit offsets", source };
    let mut nowhere = TopicPartitionList::new();
    nowhere.add_partition_offset(&kafka.topic, i32::MAX, Offset::Offset(0)).map_err(call)?;
    match queue.commit(&nowhere) {
        RDKafkaErrorCode::NoError => {}
        code => return Err(call(KafkaError::ConsumerCommit(code))),
    }
    let deadline = Instant::now() + RIGHTS_TIMEOUT;
    while Instant::now() < deadline {
        match queue.poll(Duration::from_millis(100)) {
            Some(KafkaEvent::CommitAnswered(refused)) => {
                return Ok(Some(refused != Some(RDKafkaErrorCode::GroupAuthorizationFailed)));
            }
            Some(KafkaEvent::ClientError { code: RDKafkaErrorCode::GroupAuthorizationFailed, .. }) => {
                return Ok(Some(false));
            }
            _ => {}
        }
    }
    Ok(None)
}
