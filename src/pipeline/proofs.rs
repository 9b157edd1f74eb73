//! What other clients are asked to read again, and what follows from their answers: whether holes are empty, and
//! whether the log still holds a partition's last stored message. A partition waits for its own answers, the others
//! are written meanwhile. Questions of the two kinds do not wait for each other.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, JoinSet};

use super::settings::Settings;
use super::{Compaction, Pipeline};
use crate::failpoints::{self, Failpoint};
use crate::kafka::SourceError;
use crate::kafka::anchors::{Anchors, Found};
use crate::kafka::gap_prover::{Finding, Prover};
use crate::model::batch::{Gap, GapKind};
use crate::model::offset::Coverage;
use crate::model::record::{Anchor, Epoch};

/// What came of a question.
pub(super) struct Answer {
    partition: i32,
    proof: Proof,
    /// Known after the question was answered, so that what was compacted away is not taken for a loss.
    compaction: Compaction,
}

enum Proof {
    /// With the ticket of the draft that has the holes.
    Holes(u64, Result<Finding, SourceError>),
    /// For an assignment that is to come after this epoch.
    Anchor(Epoch, Anchor, Result<Found, SourceError>),
}

/// What is asked. A partition may wait for one answer of each kind at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Holes,
    Anchor,
}

/// Questions under way.
struct Questions<A> {
    asked: JoinSet<A>,
    /// The last question of each partition and kind: those of the kind before it are of no use any more.
    last: BTreeMap<(i32, Kind), AbortHandle>,
}

impl<A: Send + 'static> Questions<A> {
    fn new() -> Self {
        Self { asked: JoinSet::new(), last: BTreeMap::new() }
    }

    /// Ends the question of the same kind before it, and no other: a partition that waits for an answer gets it.
    fn ask(&mut self, partition: i32, kind: Kind, question: impl Future<Output = A> + Send + 'static) {
        let handle = self.asked.spawn(question);
        if let Some(before) = self.last.insert((partition, kind), handle) {
            before.abort();
        }
    }

    /// The next answer; for ever where nothing was asked. May be given up and asked for again.
    async fn next(&mut self) -> A {
        loop {
            match self.asked.join_next().await {
                Some(Ok(answer)) => return answer,
                // Nobody wants to know any more; a panic ends the process.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

pub(super) struct Proofs {
    prover: Prover,
    anchors: Anchors,
    settings: Settings,
    questions: Questions<Answer>,
}

impl Proofs {
    pub(super) fn new(prover: Prover, anchors: Anchors, settings: Settings) -> Self {
        Self { prover, anchors, settings, questions: Questions::new() }
    }

    pub(super) fn ask_about_holes(&mut self, partition: i32, ticket: u64, holes: Coverage) {
        let (prover, settings) = (self.prover.clone(), self.settings.clone());
        self.questions.ask(partition, Kind::Holes, async move {
            failpoints::hit(Failpoint::HoleProof).await.ok();
            let finding = prover.prove(partition, holes).await;
            let compaction = match finding {
                Ok(Finding::Empty { .. }) => settings.compaction().await,
                _ => settings.known_compaction(),
            };
            Answer { partition, proof: Proof::Holes(ticket, finding), compaction }
        });
    }

    pub(super) fn ask_for_anchor(&mut self, partition: i32, epoch: Epoch, anchor: Anchor) {
        let (anchors, settings) = (self.anchors.clone(), self.settings.clone());
        self.questions.ask(partition, Kind::Anchor, async move {
            let found = anchors.message(partition, anchor.offset).await;
            let compaction = match found {
                Ok(Found::NoMessage) => settings.compaction().await,
                _ => settings.known_compaction(),
            };
            Answer { partition, proof: Proof::Anchor(epoch, anchor, found), compaction }
        });
    }

    /// The next answer; for ever where nothing was asked. May be given up and asked for again.
    pub(super) async fn next(&mut self) -> Answer {
        self.questions.next().await
    }
}

impl Pipeline {
    pub(super) fn answered(&mut self, answer: Answer) {
        let Answer { partition, proof, compaction } = answer;
        match proof {
            Proof::Holes(ticket, finding) => self.proven(partition, ticket, finding, compaction),
            Proof::Anchor(epoch, anchor, found) => {
                self.anchor_found(partition, epoch, anchor, found, compaction);
                self.started();
            }
        }
    }

    /// What was held may be written, as far as its holes were shown to be empty. What lies behind one that
    /// can't be proven is dropped and read again, unless the next look finds that it is lost.
    fn proven(&mut self, partition: i32, ticket: u64, finding: Result<Finding, SourceError>, compaction: Compaction) {
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        let Some(draft) = p.unwritten.release(ticket) else { return };
        let hole = draft.first_hole().map_or(String::new(), |hole| hole.to_string());
        match finding {
            Ok(Finding::Empty { aborted }) => {
                p.unwritten.hold(draft.proven(|holes| gap(compaction, holes, &aborted)));
                return;
            }
            Ok(Finding::Record(offset)) => {
                tracing::error!(
                    event = "committed_message_skipped",
                    kafka.partition = partition,
                    kafka.offset = offset.get(),
                    "the Kafka client skipped a committed message; reading again from the offset before it"
                );
                self.not_yet(partition, "a committed message was passed over");
            }
            Ok(Finding::OutOfRange) => self.not_yet(partition, &format!("{hole} cannot be read for a proof")),
            // Whether Kafka is away is for the looks at it to say.
            Err(error) => {
                let why = error.missing_right(&self.kafka).unwrap_or_else(|| error.to_string());
                self.not_yet(partition, &format!("cannot prove {hole} empty now: {why}"));
            }
        }
        if let (Some(p), Some(before)) = (self.partitions.get_mut(&partition), draft.before_first_hole()) {
            p.unwritten.hold(before);
        }
    }
}

/// `aborted` may be of more holes than are left of the draft.
fn gap(compaction: Compaction, offsets: Coverage, aborted: &Coverage) -> Gap {
    let aborted = offsets.count_of(aborted);
    let unseen = offsets.count() - aborted;
    let kind = match compaction {
        Compaction::Yes => GapKind::Compacted,
        Compaction::No | Compaction::Unknown => GapKind::Transaction,
    };
    let policy = compaction.policy();
    let proof = format!(
        "read again by a second client: {aborted} records of aborted transactions, {unseen} offsets without any record (cleanup.policy {policy})"
    );
    Gap { kind, offsets, proof }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::{NextOffset, OffsetRange};

    #[tokio::test]
    async fn a_proof_leaves_the_check_of_the_last_stored_message_of_its_partition_alone() {
        let mut questions = Questions::new();
        let (answer, found) = tokio::sync::oneshot::channel::<&str>();
        questions.ask(3, Kind::Anchor, async { found.await.unwrap_or("never") });
        questions.ask(3, Kind::Holes, async { "empty" });
        assert_eq!(questions.next().await, "empty");
        answer.send("found").expect("it is waited for");
        assert_eq!(questions.next().await, "found");
    }

    #[test]
    fn a_proof_counts_the_aborted_records_of_the_holes_that_are_left() {
        let at = |n| NextOffset::new(n).expect("not negative");
        let set = |ranges: &[(i64, i64)]| -> Coverage {
            ranges.iter().filter_map(|(from, to)| OffsetRange::new(at(*from), at(*to))).collect()
        };
        let gap = gap(Compaction::No, set(&[(3, 6), (8, 9)]), &set(&[(1, 2), (4, 6), (20, 30)]));
        assert!(gap.proof.contains("2 records of aborted transactions, 2 offsets without any record"), "{}", gap.proof);
    }

    #[tokio::test]
    async fn only_the_last_question_of_a_kind_is_answered() {
        let mut questions = Questions::new();
        questions.ask(3, Kind::Holes, std::future::pending());
        questions.ask(3, Kind::Holes, async { "the later" });
        questions.ask(4, Kind::Holes, async { "of another partition" });
        let mut answers = [questions.next().await, questions.next().await];
        answers.sort_unstable();
        assert_eq!(answers, ["of another partition", "the later"]);
    }
}
