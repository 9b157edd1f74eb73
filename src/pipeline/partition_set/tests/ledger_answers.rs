//! Answers of the ledger, the end of a run, and warnings.

use super::*;

#[test]
fn a_batch_in_flight_that_is_given_up_is_read_again() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5, 6]);
    world.tick();
    let actions = world.give(Event::NothingInFlight);
    assert!(asks_for_snapshot(&actions) && world.is_suspended(0));
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert_eq!(world.confirm_anchor(&actions).from, at(5));
}

#[test]
fn a_refused_slice_halts_its_partition_only() {
    let positions = [position(0, 0), position(1, 0)];
    let seen = snapshot(&[(0, marks(0, 9, 9)), (1, marks(0, 9, 9))]);
    let (mut world, _) = World::begin(Until::Stopped, &positions, &seen);
    let actions = world.give(Event::Refused(tp(1), Halt::new(HaltReason::Database, None, "a key of a user's")));
    assert!(
        unassigns(&actions, 1)
            && has(&actions, |action| matches!(action, Action::Halt { partition, .. } if *partition == tp(1)))
    );
    assert_eq!((world.halt_reason(0), world.halt_reason(1)), (None, Some(HaltReason::Database)));
}

#[test]
fn a_stored_position_that_moved_is_reloaded_and_reading_continues_there() {
    let (mut world, epoch) = World::reading();
    let asked_at = world.later(SECOND).now.instant;
    let seen = |next| Event::PositionsSeen { positions: BTreeMap::from([(tp(0), at(next))]), asked_at };
    assert!(world.give(seen(5)).is_empty());
    let actions = world.give(seen(3));
    assert!(has(&actions, |action| matches!(action, Action::ReloadPositions)));
    let positions = BTreeMap::from([(tp(0), position(0, 3))]);
    let actions = world.give(Event::LedgerPositions { positions, void: vec![], asked_at });
    assert_eq!(world.confirm_anchor(&actions).from, at(3));
    assert!(submitted(&world.deliver(epoch, &[5])).is_empty());
}

#[test]
fn an_answer_from_before_a_commit_moves_no_position_back() {
    let (mut world, epoch) = World::reading();
    let asked_at = world.now.instant;
    world.later(SECOND).deliver(epoch, &[5]);
    world.tick();
    world.commit(0, 6);
    assert!(world.give(Event::PositionsSeen { positions: BTreeMap::from([(tp(0), at(5))]), asked_at }).is_empty());
    let positions = BTreeMap::from([(tp(0), position(0, 5))]);
    world.give(Event::LedgerPositions { positions, void: vec![], asked_at });
    assert_eq!(world.position(0), Some(at(6)));
}

#[test]
fn a_moved_position_ends_a_halt_and_clears_its_failures() {
    let (mut world, _) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 3, 3))]));
    world.later(BELIEVE_AFTER).see(&[(0, marks(0, 3, 3))]);
    assert_eq!(world.halt_reason(0), Some(HaltReason::BeyondLogEnd));
    let asked_at = world.later(SECOND).now.instant;
    let positions = BTreeMap::from([(tp(0), position(0, 4))]);
    world.give(Event::LedgerPositions { positions, void: vec![], asked_at });
    assert!(world.is_suspended(0), "its clock starts again");
    assert_eq!(world.set.partitions[&tp(0)].failing_for(world.now.instant), Duration::ZERO);
}

#[test]
fn an_unusable_ledger_halts_every_partition_for_good() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5]);
    world.give(Event::LedgerUnusable(Halt::new(HaltReason::SchemaChanged, None, "a key is missing")));
    assert_eq!(world.halt_reason(0), Some(HaltReason::SchemaChanged));
    assert!(submitted(&world.tick()).is_empty());
    let asked_at = world.later(SECOND).now.instant;
    let positions = BTreeMap::from([(tp(0), position(0, 3))]);
    world.give(Event::LedgerPositions { positions, void: vec![], asked_at });
    assert_eq!(world.halt_reason(0), Some(HaltReason::SchemaChanged));
    let actions = world.see(&[(0, marks(0, 20, 20)), (1, marks(0, 9, 9))]);
    assert!(!has(&actions, |action| matches!(action, Action::AddPartition(..))));
    world.give(Event::PartitionAdded(position(1, 0), marks(0, 9, 9)));
    assert_eq!(world.halt_reason(1), Some(HaltReason::SchemaChanged));
}

#[test]
fn a_run_to_the_end_ends_when_each_partition_is_at_its_end_or_halted() {
    let seen = snapshot(&[(0, marks(0, 6, 6)), (1, marks(0, 9, 9))]);
    let positions = [position(0, 5), position(1, 9)];
    let (mut world, actions) = World::begin(Until::end(&seen), &positions, &seen);
    let questions: Vec<_> = actions.iter().filter(|a| matches!(a, Action::CheckAnchor { .. })).collect();
    assert_eq!(questions.len(), 2);
    let mut epochs = BTreeMap::new();
    for action in actions {
        if let Action::CheckAnchor { .. } = &action {
            let assigned = world.confirm_anchor(&[action]);
            epochs.insert(assigned.partition, assigned.epoch);
        }
    }
    assert_eq!(world.set.end(), None);
    world.deliver(epochs[&tp(0)], &[5]);
    world.tick();
    world.commit(0, 6);
    assert_eq!(world.set.end(), Some(Ended::AllRead));
    world.give(Event::Refused(tp(1), Halt::new(HaltReason::Database, None, "")));
    assert_eq!(world.set.end(), Some(Ended::SomeHalted));
}

#[test]
fn a_run_to_the_end_waits_for_the_end_of_a_partition_without_a_leader() {
    let mut seen = snapshot(&[(0, marks(0, 0, 0))]);
    seen.leaderless = vec![tp(1)];
    let (mut world, _) = World::begin(Until::end(&seen), &[position(0, 0), position(1, 0)], &seen);
    assert_eq!(world.set.end(), None);
    world.see(&[(0, marks(0, 0, 0)), (1, marks(0, 0, 0))]);
    assert_eq!(world.set.end(), Some(Ended::AllRead));
}

#[test]
fn a_retention_risk_is_logged_once() {
    let (mut world, _) = World::reading();
    let limited = Retention::Limited { age: Some(SECOND * 60) };
    world.give(Event::RetentionChanged(limited));
    if let Some(p) = world.set.partitions.get_mut(&tp(0)) {
        let slice = CommittedSlice { partition: tp(0), to: at(5), anchor: None, timestamp_ms: Some(world.now.unix_ms) };
        p.committed(&slice, world.now.instant);
    }
    let mut logged = 0;
    for _ in 0..5 {
        let actions = world.later(SECOND * 10).see(&[(0, marks(0, 20, 20))]);
        logged += actions.iter().filter(|a| matches!(a, Action::Log(LogLine::RetentionNear { .. }))).count();
    }
    assert_eq!(logged, 1);
}

#[test]
fn a_run_to_the_end_waits_for_a_partition_whose_position_is_not_stored_yet() {
    let mut seen = snapshot(&[(0, marks(0, 0, 0))]);
    seen.leaderless = vec![tp(1)];
    let (mut world, _) = World::begin(Until::end(&seen), &[position(0, 0)], &seen);
    let with_leader = marks(0, 3, 3);
    let actions = world.see(&[(0, marks(0, 0, 0)), (1, with_leader)]);
    assert!(has(&actions, |action| matches!(action, Action::AddPartition(added, _) if *added == tp(1))));
    assert_eq!(world.set.end(), None);
    let actions = world.give(Event::PartitionAdded(position(1, 0), with_leader));
    assert_eq!((assignment(&actions).expect("an assignment").partition, world.set.end()), (tp(1), None));
}

#[test]
fn a_commit_of_a_slice_that_was_given_up_moves_the_position_and_later_offsets_are_read_again() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5, 6, 7]);
    let actions = world.commit(0, 7);
    assert!(unassigns(&actions, 0) && asks_for_snapshot(&actions) && world.is_suspended(0));
    assert_eq!(world.position(0), Some(at(7)));
    assert!(submitted(&world.tick()).is_empty());
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert_eq!(world.confirm_anchor(&actions).from, at(7));
}

#[test]
fn a_partition_of_another_topic_stays_halted_with_any_stored_position() {
    let (mut world, _) = World::reading();
    let another = TopicSnapshot { identity: identity("another"), ..snapshot(&[(0, marks(0, 20, 20))]) };
    world.give(Event::Snapshot { snapshot: another, delivered: NOTHING_DELIVERED, reader_is_blocked: false });
    let asked_at = world.later(SECOND).now.instant;
    let positions = BTreeMap::from([(tp(0), position(0, 3))]);
    world.give(Event::LedgerPositions { positions, void: vec![tp(0)], asked_at });
    assert_eq!(world.halt_reason(0), Some(HaltReason::Recreated));
}
