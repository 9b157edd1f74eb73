//! Fetched records, their gaps, and failed fetches.

use super::*;
use crate::kafka::unpacked::Size;

#[test]
fn records_become_a_batch_and_the_position_moves_only_with_its_commit() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5, 6]);
    assert_eq!(submitted(&world.tick()), ["0[5, 7)"]);
    assert_eq!(world.position(0), Some(at(5)));
    world.commit(0, 7);
    assert_eq!(world.position(0), Some(at(7)));
}

#[test]
fn a_record_of_an_earlier_assignment_has_no_effect() {
    let (mut world, epoch) = World::reading();
    world.deliver(AssignmentEpoch(epoch.0 - 1), &[5]);
    assert!(submitted(&world.tick()).is_empty());
}

#[test]
fn a_record_delivered_twice_is_taken_once() {
    let (mut world, epoch) = World::reading();
    let actions = world.deliver(epoch, &[5, 5, 4]);
    let twice = actions.iter().filter(|action| matches!(action, Action::Log(LogLine::DeliveredTwice { .. })));
    assert_eq!(twice.count(), 2);
    assert_eq!(submitted(&world.tick()), ["0[5, 6)"]);
}

#[test]
fn a_delivery_larger_than_the_next_batch_is_taken_in_parts() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5, 6, 7, 8, 9]);
    assert!(world.set.has_partial_chunk() && !world.set.can_go_on() && !world.set.wants_more());
    assert_eq!(submitted(&world.tick()), ["0[5, 9)"]);
    assert!(world.set.can_go_on());
    world.tick();
    assert!(world.set.wants_more());
}

#[test]
fn messages_with_several_events_make_batches_of_fewer_messages() {
    let (mut world, epoch) = World::reading();
    world.give(Event::Written { messages: 3, rows: 6 });
    world.deliver(epoch, &[5, 6, 7, 8, 9]);
    assert_eq!(submitted(&world.tick()), ["0[5, 7)"], "two messages have four events");
    let busy = || Event::Tick { in_flight: 1, has_capacity: true, out_of_memory: false };
    assert_eq!(submitted(&world.give(busy())), ["0[7, 9)"], "they are a full batch");
}

#[test]
fn a_few_messages_wait_for_the_batch_that_is_in_flight() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5]);
    let busy = || Event::Tick { in_flight: 1, has_capacity: true, out_of_memory: false };
    assert!(submitted(&world.give(busy())).is_empty());
    world.deliver(epoch, &[6, 7, 8]);
    assert_eq!(submitted(&world.give(busy())), ["0[5, 9)"], "a full batch is submitted beside it");
}

#[test]
fn a_fetch_that_kafka_refuses_is_tried_again_and_is_no_stall() {
    let (mut world, epoch) = World::reading();
    let denied = FetchFailure::Unavailable("READ is not allowed".into());
    let actions = world.give(Event::FetchFailed(tp(0), epoch, denied));
    assert!(asks_for_snapshot(&actions) && world.is_suspended(0));
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    let tried = world.confirm_anchor(&actions).epoch;
    for _ in 0..3 {
        let actions = world.later(BELIEVE_AFTER / 4).see(&[(0, marks(0, 20, 20))]);
        assert!(anchor_check(&actions).is_none() && world.is_suspended(0), "it is on trial");
    }
    let actions = world.deliver(tried, &[5]);
    assert!(has(&actions, |action| matches!(action, Action::Log(LogLine::Resumed { .. }))));
    assert_eq!(*world.state(0), PartitionState::Reading);
}

#[test]
fn a_suspension_is_logged_once_however_many_failures_follow() {
    let (mut world, mut epoch) = World::reading();
    let mut new = 0;
    for _ in 0..3 {
        let actions = world.give(Event::FetchFailed(tp(0), epoch, FetchFailure::Unavailable("no route".into())));
        new += actions.iter().filter(|a| matches!(a, Action::Log(LogLine::Suspended { is_new: true, .. }))).count();
        let actions = world.see(&[(0, marks(0, 20, 20))]);
        epoch = world.confirm_anchor(&actions).epoch;
    }
    assert_eq!(new, 1);
}

#[test]
fn a_log_that_cannot_be_read_halts_only_if_that_lasts() {
    let (mut world, mut epoch) = World::reading();
    for _ in 0..2 {
        assert_eq!(world.halt_reason(0), None);
        world.give(Event::FetchFailed(tp(0), epoch, FetchFailure::Damaged("bad checksum".into())));
        let actions = world.later(BELIEVE_AFTER).see(&[(0, marks(0, 20, 20))]);
        if world.halt_reason(0).is_none() {
            epoch = world.confirm_anchor(&actions).epoch;
        }
    }
    assert_eq!(world.halt_reason(0), Some(HaltReason::Unreadable));
}

#[test]
fn a_too_large_batch_halts_at_once_and_missing_memory_halts_only_if_that_lasts() {
    let size = Size { offset: Some(5), packed: 100, unpacked: 5000, messages: 1 };
    let failure = |why| FetchFailure::NotUnpacked(NotUnpacked { size, why, limit: 1000 }, "a large batch".into());
    let (mut world, epoch) = World::reading();
    world.give(Event::FetchFailed(tp(0), epoch, failure(Refusal::TooLarge)));
    assert!(matches!(world.halt_reason(0), Some(HaltReason::UnpackedTooLarge { .. })));
    let (mut world, mut epoch) = World::reading();
    for _ in 0..2 {
        assert_eq!(world.halt_reason(0), None);
        world.give(Event::FetchFailed(tp(0), epoch, failure(Refusal::NoMemory)));
        let actions = world.later(BELIEVE_AFTER).see(&[(0, marks(0, 20, 20))]);
        if world.halt_reason(0).is_none() {
            epoch = world.confirm_anchor(&actions).epoch;
        }
    }
    assert!(matches!(world.halt_reason(0), Some(HaltReason::OutOfMemory { .. })));
}

#[test]
fn a_stall_replaces_the_client_twice_and_then_halts() {
    let (mut world, _) = World::reading();
    let seen = [(0, marks(0, 20, 20))];
    let mut replaced = 0;
    for _ in 0..40 {
        let actions = world.later(SECOND * 5).see(&seen);
        if has(&actions, |action| matches!(action, Action::ReplaceReader(_))) {
            replaced += 1;
            let reason = "made anew".to_owned();
            world.give(Event::ReaderReplaced(reason));
        }
        if anchor_check(&actions).is_some() {
            world.confirm_anchor(&actions);
        }
    }
    assert_eq!((replaced, world.halt_reason(0)), (2, Some(HaltReason::Unreadable)));
}

#[test]
fn a_reader_from_which_nothing_is_taken_has_not_stalled() {
    let (mut world, _) = World::reading();
    for _ in 0..6 {
        let blocked = Event::Snapshot {
            snapshot: snapshot(&[(0, marks(0, 20, 20))]),
            delivered: NOTHING_DELIVERED,
            reader_is_blocked: true,
        };
        let actions = world.later(BELIEVE_AFTER).give(blocked);
        assert!(!has(&actions, |action| matches!(action, Action::ReplaceReader(_))));
    }
    assert_eq!(*world.state(0), PartitionState::Reading);
}

#[test]
fn a_new_reader_validates_every_partition_again() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5]);
    let actions = world.give(Event::ReaderReplaced("secrets were rotated".into()));
    assert!(asks_for_snapshot(&actions) && world.is_suspended(0));
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert_eq!(world.confirm_anchor(&actions).from, at(5), "records that were not submitted are read again");
}

/// Records around a gap at offset 6, whose proof is open.
fn proving() -> (World, AssignmentEpoch, u64) {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5, 7]);
    let actions = world.tick();
    assert!(submitted(&actions).is_empty());
    let (proof_id, gaps) = gap_question(&actions).expect("a question");
    assert_eq!(gaps, "{[6,7)}");
    (world, epoch, proof_id)
}

#[test]
fn a_batch_with_a_gap_is_submitted_once_the_gap_is_proven() {
    let (mut world, _, proof_id) = proving();
    world.give(Event::GapProof { partition: tp(0), proof_id, result: empty() });
    assert_eq!(submitted(&world.tick()), ["0[5, 8)"]);
}

#[test]
fn records_before_an_unproven_gap_are_written_and_records_behind_it_are_read_again() {
    let results = [
        GapProof::Found(Finding::Record(Offset::new(6).expect("an offset")), Compaction::No),
        GapProof::Found(Finding::OutOfRange, Compaction::No),
        GapProof::Failed("no answer".into()),
    ];
    for result in results {
        let (mut world, _, proof_id) = proving();
        let actions = world.give(Event::GapProof { partition: tp(0), proof_id, result });
        assert!(unassigns(&actions, 0) && asks_for_snapshot(&actions));
        assert_eq!(submitted(&world.tick()), ["0[5, 6)"]);
        world.see(&[(0, marks(0, 20, 20))]);
        assert!(world.is_suspended(0), "records that were read before are written first");
        world.commit(0, 6);
        let actions = world.see(&[(0, marks(0, 20, 20))]);
        assert_eq!(world.confirm_anchor(&actions).from, at(6));
    }
}

#[test]
fn a_proof_of_a_dropped_draft_has_no_effect() {
    let (mut world, _, proof_id) = proving();
    world.give(Event::ReaderReplaced("made anew".into()));
    world.give(Event::GapProof { partition: tp(0), proof_id, result: empty() });
    assert!(submitted(&world.tick()).is_empty());
}

#[test]
fn a_gap_proof_does_not_end_the_check_of_the_last_stored_message() {
    let (mut world, epoch, proof_id) = proving();
    world.give(Event::FetchFailed(tp(0), epoch, FetchFailure::Unavailable("no route".into())));
    world.give(Event::GapProof { partition: tp(0), proof_id, result: empty() });
    assert_eq!(submitted(&world.tick()), ["0[5, 8)"], "records that were read before the failure are kept");
    world.commit(0, 8);
    let actions = world.see(&[(0, marks(0, 20, 20))]);
    assert!(anchor_check(&actions).is_some() && world.set.is_asking());
}

#[test]
fn an_idle_tail_is_proven_after_its_interval() {
    let (mut world, epoch) = World::reading();
    world.deliver(epoch, &[5]);
    world.tick();
    world.commit(0, 6);
    world.give(Event::ReachedEnd(tp(0), epoch, at(8)));
    assert!(gap_question(&world.tick()).is_none(), "the next record may cover it");
    assert_eq!(gap_question(&world.later(TAIL_COMMIT_INTERVAL).tick()).expect("a question").1, "{[6,8)}");
}

#[test]
fn a_partition_whose_proof_takes_long_leaves_its_memory_to_the_others() {
    let positions = [position(0, 0), position(1, 0)];
    let seen = snapshot(&[(0, marks(0, 90, 90)), (1, marks(0, 90, 90))]);
    let (mut world, actions) = World::begin(Until::Stopped, &positions, &seen);
    let epoch = assignment(&actions).expect("assigned").epoch;
    let size = Record::tombstone(0).footprint();
    world.set.settings.limits.max_bytes = 4 * size;
    world.deliver(epoch, &[0, 2, 3, 4]);
    let (proof_id, _) = gap_question(&world.tick()).expect("a question");
    world.deliver(epoch, &[5, 6, 7, 8]);
    assert!(!unassigns(&world.tick(), 0), "not at once");
    let actions = world.later(PAUSE_AFTER).tick();
    assert!(unassigns(&actions, 0) && world.set.has_room());
    world.give(Event::GapProof { partition: tp(0), proof_id, result: empty() });
    let actions = world.tick();
    assert_eq!(assignment(&actions).expect("an assignment").from, at(3), "records that were given up are read again");
    assert_eq!(submitted(&actions), ["0[0, 3)"]);
}

#[test]
fn one_new_client_serves_all_stalled_partitions() {
    let seen = [(0, marks(0, 20, 20)), (1, marks(0, 20, 20))];
    let (mut world, _) = World::begin(Until::Stopped, &[position(0, 0), position(1, 0)], &snapshot(&seen));
    world.see(&seen);
    let actions = world.later(BELIEVE_AFTER).see(&seen);
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::ReplaceReader(_))).count(), 1);
    assert!(world.is_suspended(0) && world.is_suspended(1));
}

#[test]
fn partitions_of_two_topics_with_the_same_number_are_kept_apart() {
    let (a, b) = (Topic::from("a"), Topic::from("b"));
    let (a0, b0) = (a.partition(0), b.partition(0));
    let of = |partition: &TopicPartition| Position { partition: partition.clone(), ..position(0, 0) };
    let partitions = BTreeMap::from([(a0.clone(), marks(0, 20, 20)), (b0.clone(), marks(0, 20, 20))]);
    let seen = TopicSnapshot { partitions, ..snapshot(&[]) };
    let (mut world, actions) = World::begin(Until::Stopped, &[of(&a0), of(&b0)], &seen);
    let epoch = assignment(&actions).expect("assigned").epoch;
    let positions = |world: &World| [&a0, &b0].map(|partition| world.set.position(partition));

    let records = [0, 1].map(|offset| Record { epoch, ..Record::tombstone(offset) });
    world.give(Event::Fetched(a.clone(), records.to_vec(), MemoryPermit::default()));
    let actions = world.tick();
    let partitions = |batch: &Batch| batch.slices().iter().map(|slice| slice.partition.clone()).collect::<Vec<_>>();
    let is_of_a =
        |action: &Action| matches!(action, Action::SubmitBatch(batch, _) if partitions(batch) == [a0.clone()]);
    assert!(has(&actions, is_of_a));
    let slice = CommittedSlice { partition: a0.clone(), to: at(2), anchor: None, timestamp_ms: None };
    world.give(Event::Committed(vec![slice]));
    assert_eq!(positions(&world), [Some(at(2)), Some(at(0))]);

    let actions = world.give(Event::FetchFailed(b0.clone(), epoch, FetchFailure::Unavailable("no route".into())));
    assert!(has(&actions, |action| matches!(action, Action::Publish { partition, .. } if *partition == b0)));
    assert_eq!(*world.set.partitions[&a0].state(), PartitionState::Reading);
    world.give(Event::Refused(b0.clone(), Halt::new(HaltReason::Replaced, None, "another log")));
    assert!(world.set.partitions[&b0].state().is_halted() && !world.set.partitions[&a0].state().is_halted());

    let asked_at = world.later(SECOND).now.instant;
    let stored = BTreeMap::from([(b0.clone(), Position { next: at(7), ..of(&b0) })]);
    world.give(Event::LedgerPositions { positions: stored, void: vec![b0.clone()], asked_at });
    assert_eq!(positions(&world), [Some(at(2)), Some(at(7))]);
}
