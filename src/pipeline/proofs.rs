//! What a second client is asked to read again, and what follows from its answers: whether holes are empty, and
//! whether the log still holds a partition's last stored message. A partition waits for its own answers, the others
//! are written meanwhile. The client takes one question after the other.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, JoinSet};

use super::{Compaction, Pipeline};
use crate::batch::{Gap, GapKind};
use crate::failpoints::{self, Failpoint};
use crate::position::Coverage;
use crate::record::{Anchor, Epoch};
use crate::source::SourceError;
use crate::source::holes::{Finding, Found, Prover};

/// What came of a question.
pub(super) struct Answer {
    partition: i32,
    proof: Proof,
}

enum Proof {
    /// With the ticket of the draft that has the holes.
    Holes(u64, Result<Finding, SourceError>),
    /// For an assignment that is to come after this epoch.
    Anchor(Epoch, Anchor, Result<Found, SourceError>),
}

pub(super) struct Proofs {
    prover: Prover,
    asked: JoinSet<Answer>,
    /// The last question of each partition: those before it are of no use any more.
    last: BTreeMap<i32, AbortHandle>,
}

impl Proofs {
    pub(super) fn new(prover: Prover) -> Self {
        Self { prover, asked: JoinSet::new(), last: BTreeMap::new() }
    }

    pub(super) fn ask_about_holes(&mut self, partition: i32, ticket: u64, holes: Coverage) {
        let prover = self.prover.clone();
        self.ask(partition, async move {
            failpoints::hit(Failpoint::HoleProof).await.ok();
            let finding = prover.prove(partition, holes).await;
            Answer { partition, proof: Proof::Holes(ticket, finding) }
        });
    }

    pub(super) fn ask_for_anchor(&mut self, partition: i32, epoch: Epoch, anchor: Anchor) {
        let prover = self.prover.clone();
        self.ask(partition, async move {
            let found = prover.message(partition, anchor.offset).await;
            Answer { partition, proof: Proof::Anchor(epoch, anchor, found) }
        });
    }

    fn ask(&mut self, partition: i32, question: impl Future<Output = Answer> + Send + 'static) {
        let handle = self.asked.spawn(question);
        if let Some(before) = self.last.insert(partition, handle) {
            before.abort();
        }
    }

    /// The next answer; for ever where nothing was asked. May be given up and asked for again.
    pub(super) async fn next(&mut self) -> Answer {
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

impl Pipeline {
    pub(super) fn answered(&mut self, answer: Answer) {
        let Answer { partition, proof } = answer;
        match proof {
            Proof::Holes(ticket, finding) => self.proven(partition, ticket, finding),
            Proof::Anchor(epoch, anchor, found) => {
                self.anchor_found(partition, epoch, anchor, found);
                self.started();
            }
        }
    }

    /// What was held may be written, as far as its holes were shown to be empty. What lies behind one that
    /// can't be proven is dropped and read again, unless the next look finds that it is lost.
    fn proven(&mut self, partition: i32, ticket: u64, finding: Result<Finding, SourceError>) {
        let compaction = self.compaction;
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        let Some(draft) = p.unwritten.release(ticket) else { return };
        let hole = draft.first_hole().map_or(String::new(), |hole| hole.to_string());
        match finding {
            Ok(Finding::Empty { aborted }) => {
                p.unwritten.hold(draft.proven(|holes| gap(compaction, holes, aborted)));
                return;
            }
            Ok(Finding::Record(offset)) => {
                tracing::error!(
                    kafka.partition = partition,
                    kafka.offset = offset.get(),
                    "the client passed over a committed message; reading again from before it"
                );
                self.not_yet(partition, "a committed message was passed over");
            }
            Ok(Finding::OutOfRange) => self.not_yet(partition, &format!("{hole} cannot be read for a proof")),
            Err(error) => {
                self.health.kafka(Some(error.to_string()));
                self.not_yet(partition, &format!("cannot prove {hole} empty now: {error}"));
            }
        }
        if let (Some(p), Some(before)) = (self.partitions.get_mut(&partition), draft.before_first_hole()) {
            p.unwritten.hold(before);
        }
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
