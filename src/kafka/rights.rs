//! What the user that gapless signs in as may do at Kafka, for `gapless check`. Asked; nothing is changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::SourceError;
use super::client::{self, Fetch, Isolation};
use super::ffi::{ConsumerQueue, KafkaEvent};
use crate::config::KafkaConfig;

/// How long an answer is waited for.
const RIGHTS_TIMEOUT: Duration = Duration::from_secs(6);

/// Whether offsets may be committed for the group; `None` where no answer came.
///
/// Asked by a commit for a partition that no topic has: the broker looks at the right to the group first, and has
/// nothing to write then.
pub async fn may_commit(kafka: &KafkaConfig) -> Result<Option<bool>, SourceError> {
    let kafka = kafka.clone();
    let asked = tokio::task::spawn_blocking(move || may_commit_now(&kafka));
    asked.await.expect("the blocking task neither panics nor is cancelled")
}

fn may_commit_now(kafka: &KafkaConfig) -> Result<Option<bool>, SourceError> {
    let consumer =
        Arc::new(client::consumer(kafka, &kafka.group, Isolation::ReadCommitted, Fetch::ahead(kafka.client_bytes()))?);
    let queue = ConsumerQueue::new(&consumer);
    let call = |source| SourceError::Call { operation: "ask whether offsets may be committed", source };
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
