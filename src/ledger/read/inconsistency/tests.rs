//! Tests of the comparison of rows with each other.

use super::*;

fn offset(n: i64) -> Offset {
    Offset::new(n).expect("not negative")
}

fn range(from: i64, to: i64) -> OffsetRange {
    OffsetRange::new(offset(from).at(), offset(to).at()).expect("not empty")
}

fn one_event() -> FoundEvents {
    FoundEvents { count: 1, numbers: None }
}

fn stored() -> AtOffset {
    let outcome = OutcomeRow { state: Some(Outcome::Stored), event_id: Some(1), inserted: None };
    AtOffset { outcome: Some(outcome), events: one_event(), ..AtOffset::default() }
}

/// Kind and range of each inconsistency.
fn ranges(inconsistencies: &Inconsistencies) -> Vec<(Inconsistency, OffsetRange)> {
    inconsistencies.ranges.iter().map(|found| (found.inconsistency, found.range)).collect()
}

fn scan(max_ranges: usize) -> PartitionScan {
    PartitionScan::new(offset(0).at(), offset(10).at(), max_ranges)
}

#[test]
fn offsets_without_outcome_or_gap_are_unaccounted_up_to_the_position() {
    let mut scan = scan(10);
    scan.at(offset(1), stored());
    scan.gap(range(2, 4));
    scan.at(offset(7), stored());
    let inconsistencies = scan.finish();
    let unaccounted = [range(0, 1), range(4, 7), range(8, 10)].map(|r| (Inconsistency::Unaccounted, r));
    assert_eq!((ranges(&inconsistencies).as_slice(), inconsistencies.more), (unaccounted.as_slice(), 0));
    assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (2, 2));
}

#[test]
fn an_outcome_within_a_gap_is_an_overlap_and_leaves_no_unaccounted_range_after_it() {
    let mut scan = scan(10);
    scan.gap(range(0, 8));
    [3, 4, 6].into_iter().for_each(|n| scan.at(offset(n), stored()));
    scan.gap(range(7, 10));
    let inconsistencies = scan.finish();
    assert_eq!(ranges(&inconsistencies), [range(3, 5), range(6, 8)].map(|r| (Inconsistency::Overlap, r)));
}

#[test]
fn outcomes_and_gaps_below_the_start_are_reported_as_one_range() {
    let mut scan = PartitionScan::new(offset(5).at(), offset(7).at(), 10);
    [0, 1].into_iter().for_each(|n| scan.at(offset(n), stored()));
    scan.gap(range(2, 6));
    scan.at(offset(6), stored());
    let inconsistencies = scan.finish();
    assert_eq!(ranges(&inconsistencies), [(Inconsistency::BelowStart, range(0, 5))]);
    assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (1, 1));
}

#[test]
fn adjacent_offsets_are_one_range_wherever_pages_and_lookups_end() {
    let mut scan = scan(10);
    for n in 0..10 {
        scan.at(offset(n), AtOffset { events: FoundEvents { count: usize::from(n == 5), numbers: None }, ..stored() });
        // `verify` looks references up after every page.
        scan.references(1).into_iter().for_each(|r| scan.dangling(r));
    }
    let inconsistencies = scan.finish();
    let missing = [range(0, 5), range(6, 10)].map(|r| (Inconsistency::EventMissing, r));
    let expected: Vec<_> = missing.into_iter().chain([(Inconsistency::DanglingEvent, range(0, 10))]).collect();
    assert_eq!(ranges(&inconsistencies), expected);
}

#[test]
fn ranges_beyond_the_limit_are_counted_and_do_not_extend_the_last_kept_range() {
    let mut scan = scan(1);
    [1, 3, 4].into_iter().for_each(|n| scan.at(offset(n), stored()));
    let inconsistencies = scan.finish();
    assert_eq!(
        (ranges(&inconsistencies).as_slice(), inconsistencies.more),
        ([(Inconsistency::Unaccounted, range(0, 1))].as_slice(), 2)
    );
}

#[test]
fn each_row_requires_the_rows_that_belong_to_it() {
    let row = |state, event_id| Some(OutcomeRow { state: Some(state), event_id, inserted: None });
    let dead_letter = |state| AtOffset { dead_letter: Some(state), ..AtOffset::default() };
    let cases = [
        (
            AtOffset { outcome: row(Outcome::Rejected, None), ..AtOffset::default() },
            vec![Inconsistency::DeadLetterMissing],
        ),
        (AtOffset { outcome: row(Outcome::Rejected, None), ..dead_letter(DeadLetterState::Kept) }, vec![]),
        (
            AtOffset { outcome: row(Outcome::Rejected, None), ..dead_letter(DeadLetterState::Replayed) },
            vec![Inconsistency::OutcomeDiffers],
        ),
        (
            AtOffset { outcome: row(Outcome::Ignored, None), ..dead_letter(DeadLetterState::Kept) },
            vec![Inconsistency::OutcomeDiffers],
        ),
        (dead_letter(DeadLetterState::Kept), vec![Inconsistency::OutcomeMissing]),
        (AtOffset { events: one_event(), ..AtOffset::default() }, vec![Inconsistency::OutcomeMissing]),
        (AtOffset { outcome: row(Outcome::Removed, Some(1)), events: one_event(), ..AtOffset::default() }, vec![]),
        (
            AtOffset { outcome: row(Outcome::Processed, Some(1)), events: one_event(), ..AtOffset::default() },
            vec![Inconsistency::OutcomeDiffers],
        ),
    ];
    for (found, expected) in cases {
        let shown = format!("{found:?}");
        let mut scan = PartitionScan::new(offset(4).at(), offset(4).at(), 10);
        scan.at(offset(4), found);
        let inconsistencies: Vec<Inconsistency> =
            ranges(&scan.finish()).into_iter().map(|(inconsistency, _)| inconsistency).collect();
        assert_eq!(inconsistencies, expected, "{shown}");
    }
}

/// A message with these events according to its outcome, and those that were found.
fn events(scan: &mut PartitionScan, at: i64, state: Outcome, inserted: Option<&[i32]>, found: &[i32]) {
    let inserted = inserted.map(|numbers| numbers.iter().copied().collect());
    let outcome = OutcomeRow { state: Some(state), event_id: Some(1), inserted };
    let numbers = scan.must_number(&outcome, found.len()).then(|| found.to_vec());
    let events = FoundEvents { count: found.len(), numbers };
    scan.at(offset(at), AtOffset { outcome: Some(outcome), events, ..AtOffset::default() });
}

#[test]
fn a_lost_a_surplus_and_a_doubled_event_of_a_message_are_named() {
    use Inconsistency::{EventMissing, OutcomeDiffers};
    use Outcome::{Processed, Removed, Stored};
    type Case<'a> = (Outcome, Option<&'a [i32]>, &'a [i32], &'a [(Inconsistency, Option<&'a str>)]);
    let cases: [Case<'_>; 14] = [
        (Stored, Some(&[0, 1, 2]), &[0, 1, 2], &[]),
        (Stored, Some(&[0, 1, 2]), &[0, 2], &[(EventMissing, Some("event 1"))]),
        (Stored, Some(&[0, 1, 2]), &[], &[(EventMissing, Some("events 0 to 2"))]),
        (Stored, Some(&[1]), &[], &[(EventMissing, Some("event 1"))]),
        (Stored, Some(&[0, 1]), &[0, 1, 4], &[(OutcomeDiffers, Some("event 4"))]),
        (Stored, Some(&[0, 1]), &[0, 1, 1], &[(OutcomeDiffers, Some("event 1"))]),
        (
            Stored,
            Some(&[0, 1, 2]),
            &[0, 5, 6, 7],
            &[(EventMissing, Some("events 1 to 2")), (OutcomeDiffers, Some("events 5 to 7"))],
        ),
        (Stored, None, &[0, 1], &[(OutcomeDiffers, Some("event 1"))]),
        (Processed, Some(&[0]), &[0], &[(OutcomeDiffers, None)]),
        (Processed, None, &[0, 1], &[(OutcomeDiffers, Some("events 0 to 1"))]),
        (Removed, Some(&[1]), &[], &[(EventMissing, Some("event 1"))]),
        (Removed, Some(&[]), &[0], &[(OutcomeDiffers, Some("event 0"))]),
        (Removed, None, &[0], &[]),
        (Removed, None, &[], &[]),
    ];
    for (state, inserted, found, expected) in cases {
        let mut scan = PartitionScan::new(offset(4).at(), offset(4).at(), 10);
        events(&mut scan, 4, state, inserted, found);
        let found_ranges = scan.finish().ranges;
        let shown: Vec<(Inconsistency, Option<String>)> =
            found_ranges.into_iter().map(|f| (f.inconsistency, f.events.map(|e| e.to_string()))).collect();
        let expected: Vec<_> = expected.iter().map(|(kind, of)| (*kind, of.map(str::to_owned))).collect();
        assert_eq!(shown, expected, "{state:?} {inserted:?} {found:?}");
    }
}

#[test]
fn adjacent_messages_that_lost_the_same_events_are_one_range() {
    let mut scan = scan(10);
    for (at, found) in [(0, [0, 2]), (1, [0, 2]), (2, [0, 1]), (3, [0, 2])] {
        events(&mut scan, at, Outcome::Stored, Some(&[0, 1, 2]), &found);
    }
    let missing = scan.finish().ranges.into_iter().filter(|f| f.inconsistency == Inconsistency::EventMissing);
    let shown: Vec<_> = missing.map(|f| (f.range, f.events.map(|e| e.to_string()).unwrap_or_default())).collect();
    let expected = [(range(0, 2), "event 1"), (range(2, 3), "event 2"), (range(3, 4), "event 1")];
    assert_eq!(shown, expected.map(|(range, events)| (range, events.to_owned())));
}

#[test]
fn the_numbers_of_events_are_read_only_while_there_is_room_for_findings() {
    let mut scan = scan(1);
    for at in 0..4 {
        events(&mut scan, 2 * at, Outcome::Stored, Some(&[0, 1]), &[0]);
    }
    let outcome = OutcomeRow { state: Some(Outcome::Stored), event_id: Some(1), inserted: Some(EventNumbers::first()) };
    assert!(scan.must_number(&outcome, 2), "there is room for a surplus event");
    events(&mut scan, 8, Outcome::Stored, Some(&[0]), &[0, 1]);
    assert!(!scan.must_number(&outcome, 2));
    let inconsistencies = scan.finish();
    let missing = |f: &&InconsistentRange| f.inconsistency == Inconsistency::EventMissing;
    assert_eq!(inconsistencies.ranges.iter().filter(missing).count(), 1);
}
