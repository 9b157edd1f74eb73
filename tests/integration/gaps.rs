//! Offsets without a message are passed only with a proof; offsets that Kafka no longer has halt their partition.

use std::time::{Duration, Instant};

use crate::support::servers::Sandbox;
use crate::support::wait::until;
use crate::support::wire::{Condition, Wire};
use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn aborted(number: u64) -> Event {
    Event::numbered(99, number).named("Aborted")
}

#[test]
fn aborted_batches_are_recorded_only_as_a_proven_gap() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    for round in 0..5 {
        let events: Vec<Event> = (0..7).map(|_| ledger.event()).collect();
        let offsets = transactions.commit(&events);
        ledger.expect_stored(0, &offsets, &events);
        transactions.abort((0..5).map(|n| aborted(round * 10 + n)));
    }
    Gapless::daemon(&topic, &database).batches_of(10).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(database.positions()[&0], (0, 5 * (7 + 1 + 5 + 1)));
    let gaps = database.gaps(0);
    assert!(gaps.iter().all(|(_, _, kind)| kind == "transaction"), "{gaps:?}");
    assert_eq!(gaps.iter().map(|(from, to, _)| to - from).sum::<i64>(), 5 * 7);
}

#[test]
fn a_topic_of_one_message_per_transaction_is_read_to_the_log_end() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    for number in 0..150 {
        ledger.commit_event(&transactions);
        if number % 10 == 0 {
            transactions.abort([aborted(number)]);
        }
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_topic_with_only_aborted_transactions_is_read_to_the_log_end() {
    let (topic, database) = (Topic::new(1), Database::new());
    let transactions = topic.transactions();
    for number in 0..5 {
        transactions.abort([aborted(number)]);
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    Ledger::of(&topic).assert_complete(&database);
    assert_eq!(database.positions()[&0], (0, 10));
}

#[test]
fn trailing_markers_are_proven_while_the_daemon_is_idle() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    let transactions = topic.transactions();
    for _ in 0..2 {
        ledger.commit_event(&transactions);
        transactions.abort([aborted(1)]);
        database.wait_for_position(0, topic.log_end(0));
    }
    daemon.wait_for_metric("gapless_lag", &["partition=\"0\""], 0.0);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_proof_that_does_not_end_blocks_only_its_own_partition() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    for _ in 0..2 {
        ledger.commit_event(&transactions);
    }
    let daemon = Gapless::daemon(&topic, &database).failpoint("gap_proof=hang").start();
    daemon.wait_for("failpoint GapProof");
    ledger.send_events(1, 10);
    database.wait_for_position(1, 10);
    assert_eq!(database.positions()[&0], (0, 0), "the proof hangs, and nothing after the gap is stored");
    daemon.terminate().expect_code(0);
    database.assert_accounting();
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn an_open_transaction_holds_the_position_and_its_end_releases_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    let (first, second) = (topic.transactions(), topic.transactions());
    let event = ledger.event();
    let open = first.begin([&event]);
    // Committed while the other transaction is open: no consumer may read it before that one has ended.
    let later = ledger.event();
    let unseen = second.begin([&later]);
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(3);
    daemon.wait_for_metric("gapless_open_transaction_offsets", &["partition=\"0\""], 2.0);
    let offsets = unseen.commit();
    ledger.expect_stored(0, &offsets, &[later]);
    assert_eq!(database.positions()[&0].1, 3);
    let offsets = open.commit();
    ledger.expect_stored(0, &offsets, &[event]);
    database.wait_for_position(0, topic.log_end(0));
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn until_end_reads_to_the_last_stable_offset_seen_at_the_start() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 4);
    let transactions = topic.transactions();
    let open = transactions.begin([aborted(1)]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_matches(&database);
    assert_eq!(database.positions()[&0], (0, 4));
    open.abort();
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn records_deleted_past_the_position_halt_only_that_partition() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    ledger.send_events(1, 10);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.send((0..20).map(|number| Event::numbered(77, number)));
    topic.delete_before(0, 25);
    ledger.send_events(1, 10);

    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    assert!(ended.has_event("partition_halted") && ended.says("10") && ended.says("25"), "{ended}");
    assert_eq!(database.positions()[&0], (0, 10), "the position does not jump");
    ledger.assert_matches(&database);

    let daemon = Gapless::daemon(&topic, &database).start();
    let reasons = daemon.wait_until_ready_is(503);
    until("the halt to be reported", || {
        let reasons = daemon.get("/readyz").body;
        if reasons.contains("halted") && reasons.contains("10") && reasons.contains("25") {
            Ok(())
        } else {
            Err(reasons)
        }
    });
    assert_eq!(daemon.get("/livez").status, 200, "{reasons}");
    daemon.wait_for_metric("gapless_partition_state", &["partition=\"0\"", "state=\"halted\""], 1.0);
    daemon.wait_for_metric("gapless_partition_state", &["partition=\"1\"", "state=\"halted\""], 0.0);
    ledger.send_events(1, 10);
    database.wait_for_position(1, 30);
    daemon.terminate().expect_code(0);
    ledger.assert_matches(&database);

    // The operator may decide to begin at the log start; the loss is recorded.
    let order = Gapless::daemon(&topic, &database).offset("0:earliest").until_end().run().expect_code(3);
    assert!(order.says("10") && order.says("25"), "{order}");
    Gapless::daemon(&topic, &database).offset("0:earliest").args(["--allow-skip"]).until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(database.positions()[&0], (0, 30));
    assert_eq!(database.gaps(0), [(10, 25, "skipped".to_owned())]);
}

#[test]
fn records_deleted_past_the_position_of_a_running_daemon_halt_the_partition() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(10);
    // The stopped daemon stands for a slow one that retention overtakes.
    daemon.signal("STOP");
    topic.send((0..5000).map(|number| Event::numbered(77, number)));
    topic.delete_before(0, 4000);
    daemon.signal("CONT");
    // Kafka's error arrives once and immediately; without it, the stall is detected after 30 s.
    let begun = Instant::now();
    daemon.wait_for_event("partition_halted");
    assert!(begun.elapsed() < Duration::from_secs(20), "the error was not handled: halted after {:?}", begun.elapsed());
    until("the halt to be reported", || {
        let reasons = daemon.get("/readyz").body;
        if reasons.contains("halted") && reasons.contains("4000") { Ok(()) } else { Err(reasons) }
    });
    daemon.terminate().expect_code(0);
    database.assert_accounting();
    let next = database.positions()[&0].1;
    assert!(next < 4000, "the position does not jump: {next}");
}

#[test]
fn a_message_that_the_client_skipped_is_read_again_and_not_recorded_as_a_gap() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let ended = Gapless::daemon(&topic, &database).failpoint("source_record=error@4").until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert!(ended.has_event("committed_message_skipped"), "{ended}");
    assert_eq!(database.gaps(0), []);
}

#[test]
fn a_log_that_starts_exactly_at_the_position_is_read_on_without_a_halt() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    ledger.commit_event(&transactions);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.delete_before(0, 2);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.send_events(0, 3);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

/// A compacted topic from which the cleaner has removed messages. `before` runs before the cleaner does.
fn compacted(before: impl FnOnce(&Topic)) -> Topic {
    let topic = Topic::configured(1, &COMPACTS);
    lose_messages(&topic, before);
    topic
}

/// Topic settings that make the cleaner run soon.
const COMPACTS: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("max.compaction.lag.ms", "1"),
    ("delete.retention.ms", "0"),
];

/// Sends messages until the cleaner has removed some of them. `before` runs after the first messages.
fn lose_messages(topic: &Topic, before: impl FnOnce(&Topic)) {
    let keyed = |key: &str, event: &Event| crate::support::Record {
        key: Some(key.as_bytes().to_vec()),
        ..crate::support::Record::from(event)
    };
    let events: Vec<Event> = (0..40).map(|number| Event::numbered(3, number)).collect();
    topic.send_records(events.iter().map(|event| keyed("same", event)));
    before(topic);
    // The cleaner runs by itself; it cleans a segment only while a later one is written.
    let mut number = 1000;
    until("the cleaner to have removed something", || {
        number += 1;
        topic.send_records([keyed(&format!("key {number}"), &Event::numbered(3, number))]);
        let seen = topic.visible(0).len() as i64;
        if seen < topic.log_end(0) { Ok(()) } else { Err(format!("{seen} messages")) }
    });
}

#[test]
fn gaps_of_a_topic_whose_compaction_starts_while_the_daemon_runs_are_proven_without_a_restart() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    // The daemon is stopped, so that messages are removed before it reads them.
    daemon.signal("STOP");
    let held = Instant::now();
    topic.configure(&COMPACTS);
    lose_messages(&topic, |_| ());
    until("the daemon's copy of the topic settings to be outdated", || match held.elapsed() {
        old if old > Duration::from_secs(10) => Ok(()),
        young => Err(format!("{young:?}")),
    });
    daemon.signal("CONT");
    database.wait_for_position(0, topic.log_end(0));
    let gaps = database.gaps(0);
    assert!(!gaps.is_empty() && gaps.iter().all(|(_, _, kind)| kind == "compacted"), "{gaps:?}");
    daemon.terminate().expect_code(0).expect_event("topic_compacted");
    database.assert_accounting();
}

#[test]
fn a_compacted_topic_is_warned_about_and_its_gaps_are_proven() {
    let (topic, database) = (compacted(|_| ()), Database::new());
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert!(ended.has_event("topic_compacted"), "{ended}");
    database.assert_accounting();
    let gaps = database.gaps(0);
    assert!(!gaps.is_empty() && gaps.iter().all(|(_, _, kind)| kind == "compacted"), "{gaps:?}");
    assert_eq!(database.positions()[&0].1, topic.log_end(0));
}

#[test]
fn rereading_a_compacted_topic_keeps_the_outcomes_of_messages_that_compaction_removed() {
    let database = Database::new();
    let read = |topic: &Topic, order: &str| {
        Gapless::daemon(topic, &database).offset(order).until_end().run().expect_code(0);
        database.assert_accounting();
        assert_eq!(database.positions()[&0], (0, topic.log_end(0)));
    };
    // Some messages are read while the log has them, the others after compaction has removed them.
    let topic = compacted(|topic| {
        read(topic, "0:0");
        database.execute("delete from gapless.stored_events where \"offset\" between 5 and 9");
        database.execute("delete from gapless.outcomes where \"offset\" between 5 and 9");
        database.execute("update gapless.positions set next_offset = 5, start_offset = 0");
        database.execute("delete from gapless.outcomes where \"offset\" between 12 and 14");
        database.execute("delete from gapless.stored_events where \"offset\" between 12 and 14");
    });
    read(&topic, "0:0");
    let outcomes = database.rows("select \"offset\" from gapless.outcomes", &[]);
    let outcomes: Vec<i64> = outcomes.iter().map(|row| row.get(0)).collect();
    let covered = |offset: &i64| database.gaps(0).iter().any(|(from, to, _)| (from..to).contains(&offset));
    assert!(outcomes.contains(&0) && !outcomes.contains(&7), "{outcomes:?}");
    assert!(!outcomes.iter().any(covered), "{outcomes:?}, {:?}", database.gaps(0));
    assert_eq!(database.gaps(0)[..2], [(5, 10, "compacted".to_owned()), (12, 15, "compacted".to_owned())]);
}

#[test]
fn a_position_beyond_the_log_end_does_not_count_as_finished() {
    let (topic, database) = (Topic::new(1), Database::new());
    Ledger::of(&topic).send_events(0, 10);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // As if the broker had lost the end of its log.
    database.execute("update gapless.positions set next_offset = 25");
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    assert!(ended.says("beyond_log_end") && ended.says("25") && ended.says("10"), "{ended}");
    assert_eq!(database.positions()[&0], (0, 25), "the position does not move");
}

#[test]
fn a_kafka_client_that_stops_delivering_is_replaced() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).failpoint("source_record=hang@15").start();
    ledger.send_events(0, 10);
    ledger.send_events(1, 10);
    // The fetching thread hangs; only the watermarks show that the log has more messages.
    let line = daemon.wait_for("the Kafka client was replaced");
    assert_eq!(line["fields"]["event"], "partition_suspended", "{line}");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(30);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

/// More messages than the smallest `kafka.buffer_bytes` can hold, in each of two partitions; one begins with a gap.
fn backlog_behind_a_gap(topic: &Topic) -> Ledger<'_> {
    let mut ledger = Ledger::of(topic);
    let transactions = topic.transactions();
    ledger.commit_event(&transactions);
    for partition in [0, 1] {
        ledger.send_events(partition, 4000);
    }
    ledger
}

fn with_a_small_buffer(topic: &Topic, database: &Database) -> Gapless {
    Gapless::daemon(topic, database).env("GAPLESS__KAFKA__BUFFER_BYTES", "1048576")
}

#[test]
fn a_partition_that_waits_for_a_proof_does_not_delay_the_backlog_of_the_others() {
    let (topic, database) = (Topic::new(2), Database::new());
    let ledger = backlog_behind_a_gap(&topic);
    let daemon = with_a_small_buffer(&topic, &database).failpoint("gap_proof=hang").start();
    daemon.wait_for("failpoint GapProof");
    database.wait_for_position(1, 4000);
    assert!(database.positions()[&0].1 <= 1, "the proof hangs, and nothing after the gap is stored");
    daemon.terminate().expect_code(0);
    with_a_small_buffer(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn messages_that_a_waiting_partition_discarded_are_read_again_after_its_proof() {
    let (topic, database) = (Topic::new(2), Database::new());
    let ledger = backlog_behind_a_gap(&topic);
    let daemon = with_a_small_buffer(&topic, &database).failpoint("gap_proof=pause").until_end().start();
    database.wait_for_position(1, 4000);
    daemon.wait().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn an_aborted_region_whose_scan_exceeds_every_timeout_is_passed() {
    let (wire, database) = (Wire::new(), Database::new());
    let sandbox = Sandbox::kafka_behind(wire.address.port());
    wire.forward_to(sandbox.proxied_brokers());
    let topic = Topic::on(&sandbox.brokers, 1, &[]);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    topic.transactions().abort((0..8000).map(aborted));
    ledger.send_events(0, 3);
    // Each piece has 16 kB: a scan of the region takes seconds and delivers no message of it.
    wire.set_condition(Condition::Latency(Duration::from_millis(25)));
    let daemon = Gapless::daemon(&topic, &database).brokers(&wire.address.to_string()).until_end();
    // The stall timeout of 30 s becomes 3 s, and the 10 s for a proof without progress become one.
    let ended = daemon.env("GAPLESS_TIMEOUT_DIVISOR", "10").run().expect_code(0);
    println!("passed in {:?}", ended.took);
    assert!(!ended.says("the Kafka client was replaced"), "{ended}");
    ledger.assert_complete(&database);
}
