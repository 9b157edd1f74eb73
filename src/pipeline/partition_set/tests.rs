//! Every transition of the set, event by event: without a server, without waiting, with times as values.

mod fetching;
mod ledger_answers;
mod random;
mod validation;

use super::*;
use crate::kafka::anchors::Found;
use crate::kafka::gap_prover::Finding;
use crate::kafka::reader::Assignment;
use crate::model::offset::{Coverage, Offset, Watermarks};
use crate::model::partition_state::PartitionState;
use crate::model::record::{Anchor, Digest};
use crate::model::topic::Compaction;
use crate::pipeline::event::{AnchorCheck, GapProof};
use crate::pipeline::stall_detector::DeliveryCount;

const BELIEVE_AFTER: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const NOTHING_DELIVERED: DeliveryCount = DeliveryCount { read: 0, delivered: 0 };

fn at(n: i64) -> NextOffset {
    NextOffset::new(n).expect("not negative")
}

fn marks(log_start: i64, last_stable: i64, log_end: i64) -> Watermarks {
    Watermarks { log_start: at(log_start), last_stable: at(last_stable), log_end: at(log_end) }
}

fn identity(topic_id: &str) -> TopicIdentity {
    TopicIdentity { cluster_id: Some("cluster".into()), topic_id: Some(topic_id.into()) }
}

fn topic() -> Topic {
    Topic::from("events")
}

/// The partition of the topic that has this number.
fn tp(number: i32) -> TopicPartition {
    topic().partition(number)
}

fn snapshot(partitions: &[(i32, Watermarks)]) -> TopicSnapshot {
    let partitions = partitions.iter().map(|(number, marks)| (tp(*number), *marks)).collect();
    TopicSnapshot { identity: identity("topic"), partitions, leaderless: vec![] }
}

/// A position at `next`. Behind the beginning, its anchor is the message just before.
fn position(number: i32, next: i64) -> Position {
    let anchor = (next > 0).then(|| Record::tombstone(next - 1).anchor());
    let (id, partition) = (70 + number, tp(number));
    let (start, next) = (at(0), at(next));
    Position { id, partition, start, next, fence: 1, recorded_to: next, anchor, log_end: None }
}

fn settings() -> Settings {
    Settings {
        limits: BatchLimits { max_messages: 4, max_bytes: 1 << 20 },
        believe_after: BELIEVE_AFTER,
        headroom_warning: SECOND * 3600,
    }
}

/// A set and its clock.
struct World {
    set: PartitionSet,
    now: Now,
}

impl World {
    fn begin(until: Until, positions: &[Position], seen: &TopicSnapshot) -> (Self, Vec<Action>) {
        let now = Now { instant: Instant::now(), unix_ms: 1_000_000_000 };
        let basis = (identity("topic"), Retention::Unlimited, until);
        let (set, actions) = PartitionSet::new(settings(), basis, positions.iter().cloned(), seen, now);
        (Self { set, now }, actions)
    }

    /// One partition that is read from offset 5 on. Its log ends at 20.
    fn reading() -> (Self, AssignmentEpoch) {
        let (mut world, actions) = Self::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 20, 20))]));
        let assigned = world.confirm_anchor(&actions);
        (world, assigned.epoch)
    }

    fn give(&mut self, event: Event) -> Vec<Action> {
        self.set.on_event(event, self.now)
    }

    fn later(&mut self, time: Duration) -> &mut Self {
        self.now.instant += time;
        self.now.unix_ms += time.as_millis() as i64;
        self
    }

    /// Answers the anchor check among the actions: the log still has the message.
    fn confirm_anchor(&mut self, actions: &[Action]) -> Assignment {
        let (partition, epoch, anchor) = anchor_check(actions).expect("an anchor check");
        let result = AnchorCheck::Found(Found::Message(anchor.digest), Compaction::No);
        let actions = self.give(Event::AnchorCheck { partition, epoch, anchor, result });
        assignment(&actions).expect("an assignment")
    }

    fn see(&mut self, partitions: &[(i32, Watermarks)]) -> Vec<Action> {
        let event =
            Event::Snapshot { snapshot: snapshot(partitions), delivered: NOTHING_DELIVERED, reader_is_blocked: false };
        self.give(event)
    }

    fn deliver(&mut self, epoch: AssignmentEpoch, offsets: &[i64]) -> Vec<Action> {
        let records = offsets.iter().map(|offset| Record { epoch, ..Record::tombstone(*offset) }).collect();
        self.give(Event::Fetched(topic(), records, MemoryPermit::default()))
    }

    fn tick(&mut self) -> Vec<Action> {
        self.give(Event::Tick { in_flight: 0, has_capacity: true, out_of_memory: false })
    }

    fn commit(&mut self, number: i32, to: i64) -> Vec<Action> {
        let slice = CommittedSlice { partition: tp(number), to: at(to), anchor: None, timestamp_ms: None };
        self.give(Event::Committed(vec![slice]))
    }

    fn position(&self, number: i32) -> Option<NextOffset> {
        self.set.position(&tp(number))
    }

    fn state(&self, number: i32) -> &PartitionState {
        self.set.partitions[&tp(number)].state()
    }

    fn halt_reason(&self, number: i32) -> Option<HaltReason> {
        match self.state(number) {
            PartitionState::Halted(halt) => Some(halt.reason),
            _ => None,
        }
    }

    fn is_suspended(&self, number: i32) -> bool {
        matches!(self.state(number), PartitionState::Troubled(_))
    }
}

fn anchor_check(actions: &[Action]) -> Option<(TopicPartition, AssignmentEpoch, Anchor)> {
    actions.iter().find_map(|action| match action {
        Action::CheckAnchor { partition, epoch, anchor } => Some((partition.clone(), *epoch, *anchor)),
        _ => None,
    })
}

fn assignment(actions: &[Action]) -> Option<Assignment> {
    actions
        .iter()
        .find_map(|action| if let Action::Assign(assignment) = action { Some(assignment.clone()) } else { None })
}

/// The partitions and ranges of the submitted batch.
fn submitted(actions: &[Action]) -> Vec<String> {
    let batch =
        actions.iter().find_map(|action| if let Action::SubmitBatch(batch, _) = action { Some(batch) } else { None });
    batch.map_or(vec![], |batch| {
        batch.slices().iter().map(|s| format!("{}{}", s.partition.partition, s.range)).collect()
    })
}

fn gap_question(actions: &[Action]) -> Option<(u64, String)> {
    actions.iter().find_map(|action| match action {
        Action::ProveGap { proof_id, gaps, .. } => Some((*proof_id, gaps.to_multirange())),
        _ => None,
    })
}

fn has(actions: &[Action], is: impl Fn(&Action) -> bool) -> bool {
    actions.iter().any(is)
}

fn asks_for_snapshot(actions: &[Action]) -> bool {
    has(actions, |action| matches!(action, Action::TakeSnapshot))
}

fn unassigns(actions: &[Action], number: i32) -> bool {
    has(actions, |action| matches!(action, Action::Unassign(partition) if *partition == tp(number)))
}

fn empty() -> GapProof {
    GapProof::Found(Finding::Empty { aborted: Coverage::default() }, Compaction::No)
}
