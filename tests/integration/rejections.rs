//! Too many rejected messages halt their partition instead of becoming dead letters: the cause is then most likely a
//! changed producer, not the single messages.

use crate::support::{Database, Ended, Event, Gapless, Ledger, Record, Topic};

const RUN: &str = "GAPLESS__FORMAT__MAX_REJECTED_RUN";
const SHARE: &str = "GAPLESS__FORMAT__MAX_REJECTED_SHARE";

fn poison(count: usize) -> impl Iterator<Item = Record> {
    (0..count).map(|n| format!("not an event {n}").into())
}

/// Asserts a halt for rejected messages that reports everything an operator needs to decide.
#[track_caller]
fn expect_halted(ended: Ended, key: &str, range: &str) {
    ended.expect_code(3).expect_says(&[
        "too_many_rejected",
        key,
        &format!("offsets {range}"),
        "not_json",
        "format.preset",
        "gapless replay",
        "restart",
    ]);
}

#[test]
fn a_changed_producer_halts_its_partition_and_the_others_go_on() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let changed = topic.send(poison(20));
    // One message per batch, so that the messages written before the halt are known.
    let daemon = Gapless::daemon(&topic, &database).batches_of(1).env(RUN, "5").start();
    daemon.wait_for_event("partition_halted");
    let reasons = daemon.wait_until_ready_is(503);
    assert!(reasons.contains("6 messages in a row, offsets [10, 16)"), "{reasons}");
    // Messages sent after the halt are read: the other partition continues.
    ledger.send_events(1, 30);
    database.wait_for_position(1, 30);
    assert_eq!(daemon.metric("gapless_partition_state", &["partition=\"0\"", "state=\"halted\""]), 1.0);
    assert_eq!(daemon.metric("gapless_dead_letters_total", &[]), 5.0);
    let health = daemon.get("/health").json();
    assert_eq!(health["partitions"][0]["range"], serde_json::json!([10, 16]), "{health}");
    daemon.terminate().expect_code(0).expect_says(&["[15, 16) is not written"]);
    ledger.expect(0, changed[..5].iter().copied(), "rejected");
    ledger.assert_matches(&database);
    assert_eq!(database.positions()[&0].1, 15, "the position is before the batch that exceeds the limit");

    // The counts begin at 0 with each start.
    let ended = Gapless::daemon(&topic, &database).env(RUN, "5").batches_of(1).until_end().run();
    expect_halted(ended, "format.max_rejected_run", "[15, 21)");
    let ended = Gapless::daemon(&topic, &database).env(RUN, "9").batches_of(1).until_end().run();
    expect_halted(ended, "format.max_rejected_run", "[20, 30)");
    ledger.expect(0, changed[5..19].iter().copied(), "rejected");
    ledger.assert_matches(&database);

    // With a higher limit the partition continues.
    Gapless::daemon(&topic, &database).env(RUN, "10").until_end().run().expect_code(0);
    ledger.expect(0, changed[19..].iter().copied(), "rejected");
    ledger.assert_complete(&database);
}

#[test]
fn a_high_share_of_rejected_messages_halts_even_without_a_long_run() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let mut records: Vec<Record> = Vec::new();
    let mut events = Vec::new();
    for n in 0..1000 {
        if n % 3 == 0 {
            let event = ledger.event();
            records.push((&event).into());
            events.push((n, event));
        } else {
            records.extend(poison(1));
        }
    }
    let offsets = topic.send_records(records);
    let ended = Gapless::daemon(&topic, &database).env(RUN, "2").until_end().run();
    // 666 of 1000 messages are rejected: the last of them fills the window.
    expect_halted(ended, "format.max_rejected_share", "[1, 999)");
    assert!(database.count("dead_letters") < 666, "the batch with the last message is not written");
    database.assert_accounting();

    Gapless::daemon(&topic, &database).env(SHARE, "0").env(RUN, "2").until_end().run().expect_code(0);
    ledger.expect(0, offsets.iter().copied(), "rejected");
    for (n, event) in events {
        ledger.expect_stored(0, &[offsets[n]], &[event]);
    }
    ledger.assert_complete(&database);
}

#[test]
fn rejected_messages_that_are_read_again_do_not_count() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let rejected = topic.send(poison(20));
    ledger.expect(0, rejected, "rejected");
    Gapless::daemon(&topic, &database).env(RUN, "0").until_end().run().expect_code(0);
    let rejected = topic.send(poison(5));
    ledger.expect(0, rejected, "rejected");
    Gapless::daemon(&topic, &database).env(RUN, "5").offset("earliest").until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn messages_that_postgresql_refuses_count_too() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.refuse_events("txn like '%bad'");
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 2);
    let bad: Vec<Event> = (0..4)
        .map(|_| {
            let event = ledger.event();
            Event { txn: Some(event.txn().to_owned() + "bad"), ..event }
        })
        .collect();
    let offsets = topic.send(&bad);
    Gapless::daemon(&topic, &database)
        .batches_of(1)
        .env(RUN, "3")
        .until_end()
        .run()
        .expect_code(3)
        .expect_says(&["offsets [2, 6)", "refused_by_postgres"]);
    ledger.expect(0, offsets[..3].iter().copied(), "rejected");
    ledger.assert_matches(&database);
}
