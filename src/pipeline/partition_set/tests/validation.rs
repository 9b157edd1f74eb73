//! The validation of logs.

use super::*;

#[test]
fn a_partition_without_a_stored_message_is_assigned_at_once() {
    let (_, actions) = World::begin(Until::Stopped, &[position(0, 0)], &snapshot(&[(0, marks(0, 20, 20))]));
    assert_eq!(assignment(&actions).expect("assigned").from, at(0));
}

#[test]
fn a_partition_is_assigned_only_after_its_last_stored_message_was_found() {
    let (mut world, actions) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 20, 20))]));
    assert!(assignment(&actions).is_none() && world.set.is_asking() && world.is_suspended(0));
    assert_eq!(world.confirm_anchor(&actions).from, at(5));
    assert!(!world.set.is_asking() && *world.state(0) == PartitionState::Reading);
}

#[test]
fn a_last_stored_message_below_the_log_start_is_not_checked() {
    let (_, actions) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(5, 20, 20))]));
    assert!(anchor_check(&actions).is_none());
    assert_eq!(assignment(&actions).expect("assigned").from, at(5));
}

/// The world after this result of the anchor check, and the actions that follow.
fn answered(result: AnchorCheck) -> (World, Vec<Action>) {
    let (mut world, actions) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 20, 20))]));
    let (partition, epoch, anchor) = anchor_check(&actions).expect("an anchor check");
    let actions = world.give(Event::AnchorCheck { partition, epoch, anchor, result });
    (world, actions)
}

#[test]
fn another_message_at_the_offset_of_the_last_stored_one_halts() {
    let other = Record { value: Some(vec![1]), ..Record::tombstone(4) }.anchor_digest();
    let (world, _) = answered(AnchorCheck::Found(Found::Message(other), Compaction::No));
    assert_eq!(world.halt_reason(0), Some(HaltReason::Replaced));
}

#[test]
fn a_missing_last_stored_message_halts_unless_the_topic_may_compact() {
    let (world, _) = answered(AnchorCheck::Found(Found::NoMessage, Compaction::No));
    assert_eq!(world.halt_reason(0), Some(HaltReason::Replaced));
    for compaction in [Compaction::Yes, Compaction::Unknown] {
        let (_, actions) = answered(AnchorCheck::Found(Found::NoMessage, compaction));
        assert!(assignment(&actions).is_some());
    }
}

#[test]
fn a_failed_check_of_the_last_stored_message_is_repeated_with_the_next_snapshot() {
    let (mut world, actions) = answered(AnchorCheck::Failed("no answer".into()));
    assert!(world.is_suspended(0) && asks_for_snapshot(&actions));
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert_eq!(world.confirm_anchor(&actions).from, at(5));
}

#[test]
fn an_anchor_check_of_an_earlier_assignment_has_no_effect() {
    let (mut world, actions) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 20, 20))]));
    let (partition, epoch, anchor) = anchor_check(&actions).expect("an anchor check");
    world.give(Event::ReaderReplaced("made anew".into()));
    let result = AnchorCheck::Found(Found::Message(Digest::of(b"another")), Compaction::No);
    assert!(world.give(Event::AnchorCheck { partition, epoch, anchor, result }).is_empty());
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    world.confirm_anchor(&actions);
}

#[test]
fn a_log_that_ends_before_the_last_stored_message_halts_only_if_that_lasts() {
    let out_of_range = || AnchorCheck::Found(Found::OutOfRange, Compaction::No);
    for (log_end, reason) in [(4, HaltReason::BeyondLogEnd), (20, HaltReason::Unreadable)] {
        let (mut world, mut actions) =
            World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 20, 20))]));
        for _ in 0..2 {
            assert_eq!(world.halt_reason(0), None);
            let (partition, epoch, anchor) = anchor_check(&actions).expect("an anchor check");
            if let Some(p) = world.set.partitions.get_mut(&tp(0)) {
                p.set_watermarks(marks(0, log_end, log_end), world.now.instant);
            }
            world.give(Event::AnchorCheck { partition, epoch, anchor, result: out_of_range() });
            actions = world.later(BELIEVE_AFTER).see(&[(0, marks(0, 20, 20))]);
        }
        assert_eq!(world.halt_reason(0), Some(reason));
    }
}

#[test]
fn offsets_that_kafka_no_longer_has_halt_at_once_with_their_range() {
    let (world, _) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(9, 20, 20))]));
    let PartitionState::Halted(halt) = world.state(0) else { panic!("halted") };
    assert_eq!((halt.reason, halt.range.expect("a range").to_string()), (HaltReason::Expired, "[5, 9)".to_owned()));
}

#[test]
fn a_position_beyond_the_log_end_halts_only_if_that_lasts() {
    let (mut world, actions) = World::begin(Until::Stopped, &[position(0, 5)], &snapshot(&[(0, marks(0, 3, 3))]));
    assert!(world.is_suspended(0) && asks_for_snapshot(&actions));
    world.later(BELIEVE_AFTER / 2).see(&[(0, marks(0, 3, 3))]);
    assert!(world.is_suspended(0));
    world.later(BELIEVE_AFTER / 2).see(&[(0, marks(0, 3, 3))]);
    assert_eq!(world.halt_reason(0), Some(HaltReason::BeyondLogEnd));
}

#[test]
fn another_topic_of_the_same_name_halts_every_partition_with_its_unread_offsets() {
    let (mut world, _) = World::reading();
    world.see(&[(0, marks(0, 20, 20))]);
    let snapshot = TopicSnapshot { identity: identity("another"), ..snapshot(&[(0, marks(0, 2, 2))]) };
    world.give(Event::Snapshot { snapshot, delivered: NOTHING_DELIVERED, reader_is_blocked: false });
    let PartitionState::Halted(halt) = world.state(0) else { panic!("halted") };
    assert_eq!(halt.reason, HaltReason::Recreated);
    assert_eq!(halt.unread.iter().map(|u| u.range.to_string()).collect::<Vec<_>>(), ["[5, 20)"]);
}

#[test]
fn a_partition_without_a_leader_is_suspended_and_validated_when_it_has_one() {
    let (mut world, epoch) = World::reading();
    let actions = world.see(&[]);
    assert!(unassigns(&actions, 0) && world.is_suspended(0));
    assert!(submitted(&world.deliver(epoch, &[5])).is_empty(), "the assignment has ended");
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert_eq!(world.confirm_anchor(&actions).from, at(5));
}

#[test]
fn a_start_reads_the_partitions_that_have_a_leader() {
    let positions = [position(0, 0), position(1, 0)];
    let (world, actions) = World::begin(Until::Stopped, &positions, &snapshot(&[(1, marks(0, 9, 9))]));
    assert_eq!(assignment(&actions).expect("an assignment").partition, tp(1));
    assert!(world.is_suspended(0));
}

#[test]
fn watermarks_without_a_current_snapshot_are_unknown() {
    let (mut world, _) = World::reading();
    assert_eq!(world.set.lag(), Some(15));
    let actions = world.give(Event::NoSnapshot);
    assert!(has(&actions, |action| matches!(action, Action::Publish { marks: None, .. })));
    assert_eq!(world.set.lag(), None);
}

#[test]
fn a_partition_that_appears_begins_at_zero_or_halts_if_kafka_no_longer_has_offset_zero() {
    let (mut world, _) = World::reading();
    for (partition, log_start) in [(1, 0), (2, 4)] {
        let seen = marks(log_start, 9, 9);
        let actions = world.see(&[(0, marks(0, 20, 20)), (partition, seen)]);
        assert!(has(&actions, |action| matches!(action, Action::AddPartition(added, _) if *added == tp(partition))));
        let actions = world.give(Event::PartitionAdded(position(partition, 0), seen));
        assert_eq!(assignment(&actions).is_some(), log_start == 0);
    }
    assert_eq!(world.halt_reason(2), Some(HaltReason::Expired));
}
