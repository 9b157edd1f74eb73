//! Write strategies: the ledger has the same rows with every strategy and with any number of in-flight batches.

use std::time::Duration;

use crate::support::servers::RUNTIME;
use crate::support::wait::{stays, until};
use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

const BATCHES: &str = "gapless_batches_total";

/// Runs a daemon until there are `outcomes` outcomes. Returns the number of batches by COPY and by lookup.
fn batches(gapless: Gapless, database: &Database, outcomes: i64) -> [f64; 2] {
    let daemon = gapless.start();
    database.wait_for_outcomes(outcomes);
    daemon.wait_for_metric("gapless_lag", &[], 0.0);
    let paths = ["copy", "lookup"].map(|path| daemon.metric(BATCHES, &[&format!("path=\"{path}\"")]));
    daemon.terminate().expect_code(0);
    paths
}

#[test]
fn new_events_are_copied_and_an_old_one_among_them_is_looked_up() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let old = ledger.event();
    ledger.send_new(0, std::slice::from_ref(&old));
    ledger.send_events(0, 2000);
    let [copy, lookup] = batches(Gapless::daemon(&topic, &database), &database, ledger.len());
    assert!(copy > 0.0 && lookup == 0.0, "{copy} copied, {lookup} looked up");
    // After a start no identity is in memory: the unique key finds the existing one.
    let mut events: Vec<Event> = (0..1000).map(|_| ledger.event()).collect();
    events.insert(500, old);
    let offsets = ledger.send_new(0, &events);
    ledger.expect(0, [offsets[500]], "processed");
    let [_, lookup] = batches(Gapless::daemon(&topic, &database), &database, ledger.len());
    ledger.assert_complete(&database);
    assert!(lookup > 0.0, "the batch with the old event was looked up");
}

#[test]
fn a_topic_with_only_duplicates_is_looked_up_after_one_failed_copy() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: Vec<Event> = (0..2000).map(|_| ledger.event()).collect();
    ledger.send_new(0, &events);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.expect(0, topic.send_to(0, &events), "processed");
    let [copy, lookup] = batches(Gapless::daemon(&topic, &database).batches_of(200), &database, ledger.len());
    assert!(copy == 0.0 && lookup > 0.0, "{copy} copied, {lookup} looked up");
    ledger.assert_complete(&database);
}

#[test]
fn in_flight_batches_with_the_same_events_do_not_wait_for_each_other_in_postgresql() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: Vec<Event> = (0..50).map(|_| ledger.event()).collect();
    ledger.send_new(0, &events);
    for _ in 1..40 {
        ledger.expect(0, topic.send_to(0, &events), "processed");
    }
    let daemon = Gapless::daemon(&topic, &database).batches_of(50).start();
    database.wait_for_outcomes(ledger.len());
    for class in ["contention", "environment", "moved"] {
        assert_eq!(daemon.metric("gapless_retries_total", &[&format!("class=\"{class}\"")]), 0.0, "{class}");
    }
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_later_batch_is_written_in_parallel_with_its_predecessor_and_committed_after_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let mut ledger = Ledger::of(&topic);
    let first = ledger.event();
    database
        .before_each_event(&format!("if new.txn = '{}' then perform pg_advisory_xact_lock(42); end if;", first.txn()));
    ledger.send_new(0, &[first]);
    ledger.send_events(0, 399);
    let holder = database.client();
    RUNTIME.block_on(holder.execute("select pg_advisory_lock(42)", &[])).unwrap();
    let daemon =
        Gapless::daemon(&topic, &database).batches_of(100).env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "60000").start();
    // The first batch waits for the lock; a batch that waits for its predecessor is idle in its transaction.
    until("a second batch to be written", || {
        let waiting: i64 = database.value(
            "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'gapless' and state = 'idle in transaction'",
        );
        if waiting > 0 { Ok(()) } else { Err("no other transaction".to_owned()) }
    });
    stays("nothing is committed", Duration::from_secs(1), || match database.count("kafka_events_received") {
        0 => Ok(()),
        rows => Err(format!("{rows} outcomes")),
    });
    drop(holder);
    database.wait_for_outcomes(ledger.len());
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_batch_that_waits_long_for_its_predecessor_is_not_ended_as_idle() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let mut ledger = Ledger::of(&topic);
    let first = ledger.event();
    database
        .before_each_event(&format!("if new.txn = '{}' then perform pg_catalog.pg_sleep(13); end if;", first.txn()));
    ledger.send_new(0, &[first]);
    ledger.send_events(0, 399);
    let daemon = Gapless::daemon(&topic, &database).batches_of(100).start();
    database.wait_for_outcomes(ledger.len());
    assert_eq!(daemon.metric("gapless_retries_total", &["class=\"environment\""]), 0.0);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_failed_batch_and_its_successors_are_all_written_again() {
    for failpoint in ["events_written=error@2", "before_cas=error@3", "before_commit=error@2", "after_commit=error@2"] {
        let (topic, database) = (Topic::new(3), Database::new());
        let mut ledger = Ledger::of(&topic);
        for partition in 0..3 {
            ledger.send_events(partition, 300);
        }
        let gapless = Gapless::daemon(&topic, &database).batches_of(60).failpoint(failpoint);
        gapless.until_end().run().expect_code(0);
        ledger.assert_complete(&database);
    }
}

#[test]
fn rows_that_postgresql_refuses_in_a_copied_batch_are_isolated() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.refuse_events("txn like '%-bad'");
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 500);
    for _ in 0..3 {
        let mut bad = ledger.event();
        bad.txn = Some(format!("{}-bad", bad.txn()));
        ledger.send(bad, "rejected");
        ledger.send_events(0, 300);
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.count("dead_letters"), 3);
    ledger.assert_complete(&database);
}

#[test]
fn where_copy_is_not_allowed_batches_are_inserted_and_a_log_line_says_so() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let role = database.name();
    // A role to which a policy of a table applies cannot COPY into that table.
    database.execute(&format!(
        "create role {role} login password 'limited';
         alter table gapless.stored_events enable row level security;
         create policy everything on gapless.stored_events using (true) with check (true)"
    ));
    database.grant_rights(role);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 2000);
    let url = database.url_as(role, "limited");
    let ended = Gapless::daemon(&topic, &database).database_url(&url).until_end().run().expect_code(0);
    assert_eq!(ended.count_of_event("copy_unavailable"), 1, "{ended}");
    ledger.assert_complete(&database);
    database.drop_role(role);
}

#[test]
fn an_error_in_a_small_batch_does_not_disable_copy() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.execute("create sequence public.refusals");
    // PostgreSQL also uses this code for a cached plan whose table was altered; that error is temporary.
    database.before_each_event(
        "if nextval('public.refusals') = 1 then raise exception 'altered' using errcode = '0A000'; end if;",
    );
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert!(!ended.has_event("copy_unavailable"), "{ended}");
    ledger.assert_complete(&database);
}

#[test]
fn a_copied_batch_may_contain_every_kind_of_message() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let mut records: Vec<(Record, &'static str)> = Vec::new();
    let mut stored = Vec::new();
    for _ in 0..30 {
        let plain: Vec<Event> = (0..20).map(|_| ledger.event()).collect();
        let event = ledger.event();
        let mut removed = event.clone();
        removed.removed = true;
        let mut nul = ledger.event();
        nul.memo = r#""\u0000""#.to_owned();
        stored.extend(plain.iter().chain([&event, &nul]).cloned());
        records.extend(plain.iter().map(|e| (e.into(), "stored")));
        records.extend([
            ((&event).into(), "stored"),
            (event.conflicting().into(), "processed"),
            (removed.into(), "removed"),
            ((&event).into(), "processed"),
            (Record::tombstone(), "ignored"),
            ("{".into(), "rejected"),
            (nul.into(), "stored"),
        ]);
    }
    let offsets = topic.send_records(records.iter().map(|(record, _)| record.clone()));
    let of = |wanted: &str| -> Vec<i64> {
        offsets.iter().zip(&records).filter(|(_, (_, outcome))| *outcome == wanted).map(|(o, _)| *o).collect()
    };
    ledger.expect_stored(0, &of("stored"), &stored);
    for outcome in ["processed", "removed", "ignored", "rejected"] {
        ledger.expect(0, of(outcome), outcome);
    }
    let [copy, _] = batches(Gapless::daemon(&topic, &database), &database, ledger.len());
    assert!(copy > 0.0);
    assert_eq!(database.count("event_conflicts"), 30);
    assert_eq!(database.value::<i64>("select count(*) from gapless.events where status = 'confirmed'"), 30 * 22);
    assert_eq!(database.value::<i64>("select count(*) from gapless.events where event_raw is not null"), 30);
    ledger.assert_complete(&database);
}
