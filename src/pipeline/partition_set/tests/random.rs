//! Random sequences of events against a small model of Kafka and the ledger.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const PARTITIONS: i32 = 2;
/// The log end of the model. Each offset below holds a message, except every fifth.
const LOG_END: i64 = 40;

fn is_gap(offset: i64) -> bool {
    offset % 5 == 3
}

/// One step of the outside; partitions by number.
#[derive(Debug, Clone)]
enum Step {
    /// The reader delivers this many records of its assignment.
    Deliver(i32, u8),
    /// The reader delivers a record of an assignment that has ended.
    DeliverLate(i32),
    ReachEnd(i32),
    FailFetch(i32, bool),
    /// The oldest gap proof or anchor check is answered; false: it fails.
    AnswerGap(bool),
    AnswerAnchor(bool),
    See(bool),
    SeeNothing,
    CommitFirst,
    GiveUpInFlight,
    /// A verb or a failover moves a position back by this many offsets.
    MoveBack(i32, u8),
    ReplaceReader,
    Tick,
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let partition = 0..PARTITIONS;
    prop_oneof![
        6 => (partition.clone(), 1..6u8).prop_map(|(p, n)| Step::Deliver(p, n)),
        1 => partition.clone().prop_map(Step::DeliverLate),
        1 => partition.clone().prop_map(Step::ReachEnd),
        2 => (partition.clone(), any::<bool>()).prop_map(|(p, damaged)| Step::FailFetch(p, damaged)),
        3 => prop::bool::weighted(0.8).prop_map(Step::AnswerGap),
        4 => prop::bool::weighted(0.8).prop_map(Step::AnswerAnchor),
        3 => prop::bool::weighted(0.9).prop_map(Step::See),
        1 => Just(Step::SeeNothing),
        4 => Just(Step::CommitFirst),
        1 => Just(Step::GiveUpInFlight),
        1 => (partition, 1..4u8).prop_map(|(p, n)| Step::MoveBack(p, n)),
        1 => Just(Step::ReplaceReader),
        5 => Just(Step::Tick),
        2 => (1..5u8).prop_map(Step::Wait),
    ]
}

/// Kafka and the ledger, as far as they matter to the set.
struct Model {
    world: World,
    /// The assignment of the reader by partition, and its next offset.
    assigned: BTreeMap<TopicPartition, (AssignmentEpoch, i64)>,
    last_epoch: BTreeMap<TopicPartition, AssignmentEpoch>,
    anchors: VecDeque<(TopicPartition, AssignmentEpoch, Anchor)>,
    gaps: VecDeque<(TopicPartition, u64, Coverage)>,
    in_flight: VecDeque<Vec<CommittedSlice>>,
    /// The stored position by partition.
    stored: BTreeMap<TopicPartition, i64>,
    /// The offset at which the next slice of each partition must begin.
    submitted: BTreeMap<TopicPartition, i64>,
}

impl Model {
    fn new() -> Self {
        let positions: Vec<Position> = (0..PARTITIONS).map(|p| position(p, 5)).collect();
        let (world, actions) = World::begin(Until::Stopped, &positions, &Self::snapshot());
        let begin: BTreeMap<TopicPartition, i64> = (0..PARTITIONS).map(|p| (tp(p), 5)).collect();
        let mut model = Self {
            world,
            assigned: BTreeMap::new(),
            last_epoch: BTreeMap::new(),
            anchors: VecDeque::new(),
            gaps: VecDeque::new(),
            in_flight: VecDeque::new(),
            stored: begin.clone(),
            submitted: begin,
        };
        model.carry_out(actions);
        model
    }

    fn snapshot() -> TopicSnapshot {
        snapshot(&(0..PARTITIONS).map(|p| (p, marks(0, LOG_END, LOG_END))).collect::<Vec<_>>())
    }

    fn give(&mut self, event: Event) {
        let before: Vec<Option<NextOffset>> = (0..PARTITIONS).map(|p| self.world.position(p)).collect();
        let moves = matches!(event, Event::Committed(_) | Event::LedgerPositions { .. });
        let actions = self.world.give(event);
        let after: Vec<Option<NextOffset>> = (0..PARTITIONS).map(|p| self.world.position(p)).collect();
        assert!(moves || before == after, "a position moved without a commit");
        self.carry_out(actions);
        for (partition, stored) in &self.stored {
            assert_eq!(self.world.set.position(partition), Some(at(*stored)), "memory has the stored position");
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Assign(Assignment { partition, from, epoch, .. }) => {
                    let before = self.last_epoch.insert(partition.clone(), epoch);
                    assert!(before.is_none_or(|before| before < epoch), "two assignments of one epoch");
                    self.assigned.insert(partition, (epoch, from.get()));
                }
                Action::Unassign(partition) => drop(self.assigned.remove(&partition)),
                Action::CheckAnchor { partition, epoch, anchor } => self.anchors.push_back((partition, epoch, anchor)),
                Action::ProveGap { partition, proof_id, gaps } => self.gaps.push_back((partition, proof_id, gaps)),
                Action::SubmitBatch(batch, _) => self.submit(&batch),
                _ => {}
            }
        }
    }

    fn submit(&mut self, batch: &Batch) {
        let mut slices = Vec::new();
        for slice in batch.slices() {
            slice.assert_tiled();
            let from = self.submitted.insert(slice.partition.clone(), slice.range.to().get());
            assert_eq!(from, Some(slice.range.from().get()), "slices follow each other");
            let last = slice.records.last();
            slices.push(CommittedSlice {
                partition: slice.partition.clone(),
                to: slice.range.to(),
                anchor: last.map(Record::anchor),
                timestamp_ms: None,
            });
        }
        self.in_flight.push_back(slices);
    }

    fn deliver(&mut self, partition: i32, count: i64) {
        let Some((epoch, from)) = self.assigned.get(&tp(partition)).copied() else { return };
        if !self.world.set.wants_more() {
            return;
        }
        let to = (from + count).min(LOG_END);
        self.assigned.insert(tp(partition), (epoch, to));
        let offsets = (from..to).filter(|offset| !is_gap(*offset));
        let records = offsets.map(|offset| Record { epoch, partition, ..Record::tombstone(offset) }).collect();
        self.give(Event::Fetched(topic(), records, MemoryPermit::default()));
    }

    fn see(&mut self, snapshot: TopicSnapshot) {
        self.give(Event::Snapshot { snapshot, delivered: NOTHING_DELIVERED, reader_is_blocked: false });
    }

    fn answer_gap(&mut self, is_proven: bool) {
        let Some((partition, proof_id, gaps)) = self.gaps.pop_front() else { return };
        let message = gaps.ranges().iter().find_map(|r| (r.from().get()..r.to().get()).find(|o| !is_gap(*o)));
        let result = match (is_proven, message) {
            (true, None) => empty(),
            (true, Some(offset)) => {
                GapProof::Found(Finding::Record(Offset::new(offset).expect("an offset")), Compaction::No)
            }
            (false, _) => GapProof::Failed("no answer".into()),
        };
        self.give(Event::GapProof { partition, proof_id, result });
    }

    fn answer_anchor(&mut self, is_found: bool) {
        let Some((partition, epoch, anchor)) = self.anchors.pop_front() else { return };
        let result = match is_found {
            true => AnchorCheck::Found(Found::Message(anchor.digest), Compaction::No),
            false => AnchorCheck::Failed("no answer".into()),
        };
        self.give(Event::AnchorCheck { partition, epoch, anchor, result });
    }

    fn commit_first(&mut self) {
        let Some(slices) = self.in_flight.pop_front() else { return };
        self.stored.extend(slices.iter().map(|slice| (slice.partition.clone(), slice.to.get())));
        self.give(Event::Committed(slices));
    }

    fn give_up_in_flight(&mut self) {
        self.in_flight.clear();
        self.submitted = self.stored.clone();
        self.give(Event::NothingInFlight);
    }

    fn move_back(&mut self, partition: i32, by: i64) {
        if !self.in_flight.is_empty() {
            return;
        }
        let partition = tp(partition);
        let to = (self.stored[&partition] - by).max(1);
        self.stored.insert(partition.clone(), to);
        self.submitted.insert(partition.clone(), to);
        self.world.later(SECOND);
        let positions = self.stored.iter().map(|(p, next)| (p.clone(), position(p.partition, *next))).collect();
        let asked_at = self.world.now.instant;
        self.give(Event::LedgerPositions { positions, void: vec![partition], asked_at });
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Deliver(partition, count) => self.deliver(partition, i64::from(count)),
            Step::DeliverLate(partition) => {
                let epoch = self.last_epoch.get(&tp(partition)).map_or(0, |epoch| epoch.0);
                let records =
                    vec![Record { epoch: AssignmentEpoch(epoch.wrapping_sub(1)), partition, ..Record::tombstone(39) }];
                if self.world.set.wants_more() {
                    self.give(Event::Fetched(topic(), records, MemoryPermit::default()));
                }
            }
            Step::ReachEnd(partition) => {
                if let Some((epoch, LOG_END)) = self.assigned.get(&tp(partition)).copied() {
                    self.give(Event::ReachedEnd(tp(partition), epoch, at(LOG_END)));
                }
            }
            Step::FailFetch(partition, is_damaged) => {
                let Some((epoch, _)) = self.assigned.get(&tp(partition)).copied() else { return };
                let failure = match is_damaged {
                    true => FetchFailure::Damaged("checksum".into()),
                    false => FetchFailure::Unavailable("no route".into()),
                };
                self.give(Event::FetchFailed(tp(partition), epoch, failure));
            }
            Step::AnswerGap(is_proven) => self.answer_gap(is_proven),
            Step::AnswerAnchor(is_found) => self.answer_anchor(is_found),
            Step::See(true) => self.see(Self::snapshot()),
            Step::See(false) => self.see(snapshot(&[(0, marks(0, LOG_END, LOG_END))])),
            Step::SeeNothing => self.give(Event::NoSnapshot),
            Step::CommitFirst => self.commit_first(),
            Step::GiveUpInFlight => self.give_up_in_flight(),
            Step::MoveBack(partition, by) => self.move_back(partition, i64::from(by)),
            Step::ReplaceReader => {
                self.assigned.clear();
                self.give(Event::ReaderReplaced("made anew".into()));
            }
            Step::Tick => self.tick(),
            Step::Wait(seconds) => drop(self.world.later(SECOND * u32::from(seconds))),
        }
    }

    fn tick(&mut self) {
        let (in_flight, has_capacity) = (self.in_flight.len(), self.in_flight.len() < 2);
        self.give(Event::Tick { in_flight, has_capacity, out_of_memory: false });
    }

    /// Kafka and the ledger work again: each partition is read to the end of its log, or halted.
    fn settle(&mut self) {
        for _ in 0..200 {
            if self.world.set.partitions.values().all(|p| p.has_read_to(at(LOG_END)) || p.state().is_halted()) {
                return;
            }
            self.world.later(SECOND);
            self.see(Self::snapshot());
            while !self.anchors.is_empty() {
                self.answer_anchor(true);
            }
            for partition in 0..PARTITIONS {
                self.deliver(partition, 3);
                self.take(&Step::ReachEnd(partition));
            }
            self.tick();
            while !self.gaps.is_empty() {
                self.answer_gap(true);
            }
            self.tick();
            while !self.in_flight.is_empty() {
                self.commit_first();
            }
        }
        panic!("a partition is left behind: {:?}", self.world.set.partitions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// No epoch has two assignments. A position moves only with a commit or a stored position. Slices follow each other
    /// and are tiled. After any sequence of steps, each partition is read to its end when Kafka and the ledger work
    /// again.
    #[test]
    fn after_any_sequence_of_events_each_partition_is_read_to_its_end_in_order(steps in prop::collection::vec(step(), 0..40)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
        }
        model.settle();
    }
}
