//! A daemon killed at any failpoint of the write path resumes at the stored positions: nothing is lost or doubled.

use std::time::Duration;

use crate::support::{Database, Event, Gapless, Ledger, Topic};

/// Sends committed and aborted transactions with duplicates, a conflict and poison, so that every failpoint is reached.
fn fill<'topic>(topic: &'topic Topic) -> Ledger<'topic> {
    let mut ledger = Ledger::of(topic);
    let transactions = topic.transactions();
    for round in 0..4 {
        let events: Vec<Event> = (0..12).map(|_| ledger.event()).collect();
        let offsets = transactions.commit(&events);
        ledger.expect_stored(0, &offsets, &events);
        transactions.abort([Event::numbered(99, round).named("Aborted")]);
        let offsets = transactions.commit([events[0].json(), events[1].conflicting().json(), "no event".to_owned()]);
        ledger.expect(0, offsets[..2].iter().copied(), "processed");
        ledger.expect(0, offsets[2..].iter().copied(), "rejected");
    }
    ledger
}

fn survives_a_kill_at(failpoint: &str) {
    let (topic, database) = (Topic::new(1), Database::new());
    let ledger = fill(&topic);
    let daemon = || Gapless::daemon(&topic, &database).batches_of(10).until_end();
    daemon().failpoint(failpoint).run().expect_killed();
    if database.has_ledger() {
        database.assert_accounting();
        // An uncommitted transaction leaves nothing: no outcome is at or above the position.
        let above = r#"select count(*) from gapless.kafka_events_received r join gapless.consumer_positions p
                       using (topic, generation, partition_id) where r."offset" >= p.next_offset"#;
        assert_eq!(database.value::<i64>(above), 0);
    }
    daemon().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_kill_during_the_migration_loses_and_doubles_nothing() {
    survives_a_kill_at("migration=kill");
}

#[test]
fn a_kill_when_start_positions_are_stored_loses_and_doubles_nothing() {
    survives_a_kill_at("start_stored=kill");
}

#[test]
fn a_kill_after_a_record_is_fetched_loses_and_doubles_nothing() {
    survives_a_kill_at("source_record=kill@15");
}

#[test]
fn a_kill_in_an_open_transaction_loses_and_doubles_nothing() {
    survives_a_kill_at("tx_open=kill@2");
}

#[test]
fn a_kill_when_events_are_written_loses_and_doubles_nothing() {
    survives_a_kill_at("events_written=kill@2");
}

#[test]
fn a_kill_before_the_compare_and_set_loses_and_doubles_nothing() {
    survives_a_kill_at("before_cas=kill@3");
}

#[test]
fn a_kill_before_the_commit_loses_and_doubles_nothing() {
    survives_a_kill_at("before_commit=kill@2");
}

#[test]
fn a_kill_after_the_commit_loses_and_doubles_nothing() {
    survives_a_kill_at("after_commit=kill@2");
}

#[test]
fn a_kill_while_a_gap_is_proven_loses_and_doubles_nothing() {
    survives_a_kill_at("gap_proof=kill@2");
}

#[test]
fn repeated_kills_lose_and_double_nothing() {
    let (topic, database) = (Topic::new(1), Database::new());
    let ledger = fill(&topic);
    for _ in 0..3 {
        Gapless::daemon(&topic, &database)
            .batches_of(5)
            .failpoint("after_commit=kill@2")
            .until_end()
            .run()
            .expect_killed();
        database.assert_accounting();
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_connection_lost_at_any_failpoint_does_not_end_the_daemon() {
    let (topic, database) = (Topic::new(1), Database::new());
    let ledger = fill(&topic);
    let daemon = Gapless::daemon(&topic, &database).batches_of(10).until_end();
    ["tx_open=error@2", "events_written=error@3", "before_cas=error@4", "before_commit=error@5"]
        .into_iter()
        .fold(daemon, Gapless::failpoint)
        .run()
        .expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_panic_ends_the_process() {
    for failpoint in ["source_record=panic", "before_commit=panic"] {
        let (topic, database) = (Topic::new(1), Database::new());
        let mut ledger = Ledger::of(&topic);
        ledger.send_events(0, 20);
        let daemon = Gapless::daemon(&topic, &database).env("RUST_BACKTRACE", "0").failpoint(failpoint).start();
        daemon.wait_for("panicked at");
        let ended = daemon.wait_within(Duration::from_secs(10));
        assert!(!ended.status().success(), "{failpoint}: {ended}");
        // The last line is gapless's own: it names the bug, its place and the remedy. The trace precedes it.
        let last = ended.last_line();
        for part in ["gapless: internal error: a bug in gapless", "src/failpoints.rs", "restart it", "report the bug"] {
            assert!(last.contains(part), "{failpoint}: {part}: {ended}");
        }
        assert!(ended.count_of("failpoints.rs:") > 2, "a trace, although the environment disables it: {ended}");
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        ledger.assert_complete(&database);
    }
}

#[test]
fn messages_sent_while_the_daemon_is_down_are_stored_at_the_restart() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 30);
    database.wait_for_outcomes(30);
    daemon.kill().expect_killed();
    ledger.send_events(0, 30);
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(60);
    daemon.terminate().expect_code(0);
    ledger.send_events(0, 30);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}
