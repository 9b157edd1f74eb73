//! Questions that other clients answer by reading the log again: whether a gap is empty, and whether the log still
//! holds the last stored message of a partition. A partition waits for its own answers; the other partitions are
//! written meanwhile. Questions of the two kinds do not wait for each other.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, JoinSet};

use super::event::{AnchorCheck, Event, GapProof};
use super::topic_settings::TopicSettingsCache;
use crate::config::KafkaConfig;
use crate::failpoints::{self, Failpoint};
use crate::kafka::SourceError;
use crate::kafka::anchors::{Anchors, Found};
use crate::kafka::gap_prover::{Finding, Prover};
use crate::model::offset::Coverage;
use crate::model::record::{Anchor, AssignmentEpoch};
use crate::model::topic::TopicPartition;

/// The kind of a question. A partition may wait for one answer of each kind at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Gap,
    Anchor,
}

/// Questions without an answer yet.
struct Questions<A> {
    asked: JoinSet<A>,
    /// The last question of each partition and kind. Earlier questions of that kind are aborted.
    last: BTreeMap<(TopicPartition, Kind), AbortHandle>,
}

impl<A: Send + 'static> Questions<A> {
    fn new() -> Self {
        Self { asked: JoinSet::new(), last: BTreeMap::new() }
    }

    /// Asks, and aborts the previous question of the same partition and kind, but no other question.
    fn ask(&mut self, partition: TopicPartition, kind: Kind, question: impl Future<Output = A> + Send + 'static) {
        let handle = self.asked.spawn(question);
        if let Some(previous) = self.last.insert((partition, kind), handle) {
            previous.abort();
        }
    }

    /// The next answer. Never returns while no question is open. Cancel safe.
    async fn next(&mut self) -> A {
        loop {
            match self.asked.join_next().await {
                Some(Ok(answer)) => return answer,
                // The question was aborted. (A panic ends the process.)
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

pub(super) struct GapProofs {
    prover: Prover,
    anchors: Anchors,
    settings: TopicSettingsCache,
    questions: Questions<Event>,
}

impl GapProofs {
    pub(super) fn new(prover: Prover, anchors: Anchors, settings: TopicSettingsCache) -> Self {
        Self { prover, anchors, settings, questions: Questions::new() }
    }

    /// Asks whether the gaps hold no message.
    pub(super) fn prove_gap(&mut self, partition: TopicPartition, proof_id: u64, gaps: Coverage) {
        let (prover, settings) = (self.prover.clone(), self.settings.clone());
        self.questions.ask(partition.clone(), Kind::Gap, async move {
            failpoints::hit(Failpoint::GapProof).await.ok();
            let result = match prover.prove(partition.clone(), gaps).await {
                // The setting is read after the answer: compaction may have removed a message before it.
                Ok(finding @ Finding::Empty { .. }) => GapProof::Found(finding, settings.compaction().await),
                Ok(finding) => GapProof::Found(finding, settings.known_compaction()),
                Err(error) => GapProof::Failed(reason(&error, settings.kafka())),
            };
            Event::GapProof { partition, proof_id, result }
        });
    }

    /// Reads the last stored message of a partition back.
    pub(super) fn check_anchor(&mut self, partition: TopicPartition, epoch: AssignmentEpoch, anchor: Anchor) {
        let (anchors, settings) = (self.anchors.clone(), self.settings.clone());
        self.questions.ask(partition.clone(), Kind::Anchor, async move {
            let result = match anchors.message(partition.clone(), anchor.offset).await {
                Ok(Found::NoMessage) => AnchorCheck::Found(Found::NoMessage, settings.compaction().await),
                Ok(found) => AnchorCheck::Found(found, settings.known_compaction()),
                Err(SourceError::NotUnpacked { batch, .. }) => AnchorCheck::NotUnpacked(batch),
                Err(error) => AnchorCheck::Failed(reason(&error, settings.kafka())),
            };
            Event::AnchorCheck { partition, epoch, anchor, result }
        });
    }

    /// The next answer. Never returns while no question is open. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        self.questions.next().await
    }
}

fn reason(error: &SourceError, kafka: &KafkaConfig) -> String {
    error.missing_right(kafka).unwrap_or_else(|| format!("{error}; {}", error.remedy()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic::Topic;

    fn tp(number: i32) -> TopicPartition {
        Topic::from("events").partition(number)
    }

    #[tokio::test]
    async fn a_proof_leaves_the_check_of_the_last_stored_message_of_its_partition_alone() {
        let mut questions = Questions::new();
        let (answer, found) = tokio::sync::oneshot::channel::<&str>();
        questions.ask(tp(3), Kind::Anchor, async { found.await.unwrap_or("never") });
        questions.ask(tp(3), Kind::Gap, async { "empty" });
        assert_eq!(questions.next().await, "empty");
        answer.send("found").expect("it is waited for");
        assert_eq!(questions.next().await, "found");
    }

    #[tokio::test]
    async fn only_the_last_question_of_a_kind_is_answered() {
        let mut questions = Questions::new();
        questions.ask(tp(3), Kind::Gap, std::future::pending());
        questions.ask(tp(3), Kind::Gap, async { "the later" });
        questions.ask(tp(4), Kind::Gap, async { "of another partition" });
        let mut answers = [questions.next().await, questions.next().await];
        answers.sort_unstable();
        assert_eq!(answers, ["of another partition", "the later"]);
    }
}
