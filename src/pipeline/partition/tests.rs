//! What is known of one partition in memory, event by event.

use super::*;

fn at(n: i64) -> NextOffset {
    NextOffset::new(n).expect("not negative")
}

fn partition(next: i64) -> Partition {
    let next = at(next);
    let position =
        Position { id: 7, partition: 0, start: at(0), next, fence: 1, recorded_to: next, anchor: None, log_end: None };
    Partition::new(position, None)
}

fn take(p: &mut Partition, offset: i64, epoch: u64) -> Taken {
    p.take(Record { epoch: Epoch(epoch), ..Record::tombstone(offset) }, Share::default())
}

#[test]
fn what_came_after_an_error_was_taken_before_the_log_was_looked_at() {
    let mut p = partition(5);
    p.assign_anew();
    let before = p.epoch();
    p.failed(before, "the client will try again").expect("of this epoch");
    assert_eq!(take(&mut p, 6, before.0), Taken::Stale);
    assert!(p.asks() && !p.asks());
    let asked = p.epoch();
    assert!(p.answered(asked) && !p.answered(asked));
    assert_eq!(p.assign_anew().from, at(5));
    assert!(p.is_written());
}

#[test]
fn a_partition_that_is_revived_has_not_failed_yet() {
    let mut p = partition(5);
    p.not_admitted("its log ends before the position");
    p.failing_since = Instant::now().checked_sub(Duration::from_secs(3600));
    p.halt(Halt::new(crate::model::partition_state::HaltReason::BeyondLogEnd, None, ""));
    p.reset(*partition(3).position());
    assert_eq!((p.failing_for(), p.failures), (Duration::ZERO, 0));
}

#[test]
fn what_kafka_refuses_is_tried_again_and_never_taken_for_silence() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let marks = Watermarks { log_start: at(0), last_stable: at(9), log_end: at(9) };
    let heard = Heard { read: 1, delivered: 1 };
    let mut p = partition(5);
    p.assign_anew();
    p.failed(p.epoch(), "READ is not allowed").expect("of this epoch");
    assert!(!p.is_tried(PATIENCE));
    p.assign_anew();
    assert!(p.is_tried(PATIENCE) && !p.is_tried(Duration::ZERO));
    assert_eq!(*p.state(), PartitionState::Troubled("READ is not allowed".into()));
    p.silent_for(marks, heard);
    assert_eq!(p.silent_for(marks, heard), Duration::ZERO);
    assert!(!p.has_read_to(at(5)), "it is at the end of nothing");
    let epoch = p.epoch().0;
    assert_eq!(take(&mut p, 5, epoch), Taken::Yes);
    assert_eq!(*p.state(), PartitionState::Reading);
    p.assign_anew();
    assert_eq!(*p.state(), PartitionState::Reading, "the refusal is over");
}

#[test]
fn a_suspension_lasts_over_further_failures_until_something_is_delivered() {
    let mut p = partition(5);
    p.assign_anew();
    assert_eq!(p.suspension.since(), None, "every partition begins by being looked at");
    p.failed(p.epoch(), "no route").expect("of this epoch");
    let since = p.suspension.since().expect("suspended");
    p.assign_anew();
    p.failed(p.epoch(), "still no route").expect("of this epoch");
    assert_eq!(p.suspension.since(), Some(since), "told once");
    p.assign_anew();
    let epoch = p.epoch().0;
    assert_eq!(take(&mut p, 5, epoch), Taken::Yes);
    assert_eq!(p.suspension.since(), None);
}

#[test]
fn a_lag_from_watermarks_that_were_not_seen_again_is_unknown() {
    let mut p = partition(5);
    p.seen(Watermarks { log_start: at(0), last_stable: at(9), log_end: at(9) });
    assert_eq!(p.lag(), Some(4));
    p.unseen();
    assert_eq!((p.lag(), p.current_marks()), (None, None));
    assert!(p.marks.is_some(), "messages grow old there meanwhile");
}

#[test]
fn a_record_of_an_earlier_assignment_has_no_effect() {
    let mut p = partition(5);
    p.assign_anew();
    p.assign_anew();
    assert_eq!(take(&mut p, 5, 2), Taken::Stale);
    assert_eq!(p.expected(), at(5));
    assert_eq!(take(&mut p, 5, 3), Taken::Yes);
}

#[test]
fn a_record_delivered_twice_is_taken_once() {
    let mut p = partition(5);
    assert_eq!(take(&mut p, 5, 1), Taken::Yes);
    assert_eq!(take(&mut p, 5, 1), Taken::Twice);
    assert_eq!(take(&mut p, 4, 1), Taken::Twice);
    assert_eq!(p.unwritten.waiting().0, 1);
}

#[test]
fn what_is_in_flight_is_neither_drafted_nor_read_again() {
    let mut p = partition(5);
    take(&mut p, 5, 1);
    let one = p.unwritten.ready(Duration::ZERO).expect("one record");
    p.launch(one);
    assert!(p.unwritten.ready(Duration::ZERO).is_none());
    p.not_admitted("a look at the log");
    assert_eq!((p.expected(), p.position().next), (at(6), at(5)));
    assert!(p.is_in_flight());
    p.committed(at(6), None);
    assert!(p.is_written());
}
