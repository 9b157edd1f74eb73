//! What a second client is asked to read again, and what follows from its answers: whether holes are empty, and
//! whether the log still holds a partition's last stored message. A partition waits for its own answers; the
//! others go on meanwhile, also where a broker says nothing for a long time.

use tokio::task::JoinSet;

use super::{Compaction, Pipeline, Stop, beating};
use crate::batch::{Gap, GapKind};
use crate::failpoints::{self, Failpoint};
use crate::position::{Coverage, OffsetRange};
use crate::record::{Anchor, Epoch};
use crate::source::SourceError;
use crate::source::holes::{Finding, Found, Prover};
use crate::state::{Halt, HaltReason};

/// What came of a question.
pub(super) struct Answer {
    partition: i32,
    /// Of the assignment for which it was asked.
    epoch: Epoch,
    proof: Proof,
}

enum Proof {
    Holes(Result<Finding, SourceError>),
    Anchor(Anchor, Result<Found, SourceError>),
}

pub(super) struct Proofs {
    prover: Prover,
    asked: JoinSet<Answer>,
}

impl Proofs {
    pub(super) fn new(prover: Prover) -> Self {
        Self { prover, asked: JoinSet::new() }
    }

    pub(super) fn ask_about_holes(&mut self, partition: i32, epoch: Epoch, holes: Coverage) {
        let prover = self.prover.clone();
        self.asked.spawn(async move {
            failpoints::hit(Failpoint::HoleProof).await.ok();
            Answer { partition, epoch, proof: Proof::Holes(prover.prove(partition, holes).await) }
        });
    }

    pub(super) fn ask_for_anchor(&mut self, partition: i32, epoch: Epoch, anchor: Anchor) {
        let prover = self.prover.clone();
        self.asked.spawn(async move {
            let found = prover.message(partition, anchor.offset).await;
            Answer { partition, epoch, proof: Proof::Anchor(anchor, found) }
        });
    }

    /// The next answer; for ever where nothing was asked. May be given up and asked for again.
    pub(super) async fn next(&mut self) -> Answer {
        match self.asked.join_next().await {
            Some(answer) => answer.expect("a panic ends the process, and no question is aborted"),
            None => std::future::pending().await,
        }
    }
}

impl Pipeline {
    pub(super) async fn answered(&mut self, answer: Answer) -> Result<(), Stop> {
        let Answer { partition, epoch, proof } = answer;
        match proof {
            Proof::Holes(finding) => self.proven(partition, epoch, finding).await?,
            Proof::Anchor(anchor, found) => self.anchor_found(partition, epoch, anchor, found),
        }
        Ok(())
    }

    /// What was held may be written, as far as its holes were shown to be empty. What lies behind one that
    /// can't be proven is dropped and read again.
    async fn proven(
        &mut self,
        partition: i32,
        epoch: Epoch,
        finding: Result<Finding, SourceError>,
    ) -> Result<(), Stop> {
        let compaction = self.compaction;
        let Some(p) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let Some(draft) = p.release(epoch) else { return Ok(()) };
        let Some(first_hole) = draft.unproven().and_then(|holes| holes.ranges().first().copied()) else {
            return Ok(());
        };
        match finding {
            Ok(Finding::Empty { aborted }) => {
                p.unwritten.hold(draft.proven(|holes| gap(compaction, holes, aborted)));
                return Ok(());
            }
            Ok(Finding::Record(offset)) => {
                tracing::error!(
                    kafka.partition = partition,
                    kafka.offset = offset.get(),
                    "the client passed over a committed message; reading again from before it"
                );
                self.not_yet(partition, "a committed message was passed over");
            }
            Ok(Finding::OutOfRange) => self.hole_out_of_range(partition, first_hole).await?,
            Err(error) => {
                self.health.kafka(Some(error.to_string()));
                self.not_yet(partition, &format!("cannot prove {first_hole} empty now: {error}"));
            }
        }
        if let (Some(p), Some(before)) = (self.partitions.get_mut(&partition), draft.before(first_hole)) {
            p.unwritten.hold(before);
        }
        Ok(())
    }

    /// A log that begins behind a hole keeps its secret for ever; anything else passes.
    async fn hole_out_of_range(&mut self, partition: i32, hole: OffsetRange) -> Result<(), Stop> {
        let survey = beating(&self.health, &self.stop, self.observer.survey()).await?;
        let log_start = survey.ok().and_then(|s| s.partitions.get(&partition).map(|marks| marks.log_start));
        match log_start.and_then(|log_start| OffsetRange::new(hole.from(), log_start)) {
            Some(range) => {
                let detail = format!(
                    "Kafka no longer has offsets {range}; the reader was shown no message in {hole}, but that nothing is lost there can't be proven any more; see the README, \"A partition halts\""
                );
                self.halt(partition, Halt { reason: HaltReason::Expired, range: Some(range), detail });
            }
            None => self.not_yet(partition, &format!("{hole} cannot be read for a proof")),
        }
        Ok(())
    }
}

fn gap(compaction: Compaction, offsets: Coverage, aborted: u64) -> Gap {
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
