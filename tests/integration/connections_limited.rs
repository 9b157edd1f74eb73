//! Fewer connections than writers, and default settings of a role that restrict sessions: gapless works with both.

use std::time::{Duration, Instant};

use crate::support::bouncer::Bouncer;
use crate::support::{Database, Gapless, Ledger, Topic};

/// Batches that wait for each other stall until the statement timeout of 32 s.
const WITHOUT_A_STALL: Duration = Duration::from_secs(30);

/// Reads a backlog from its beginning through this URL without a stall.
fn read_backlog(topic: &Topic, database: &Database, url: &str) -> crate::support::Ended {
    let begun = Instant::now();
    let ended = Gapless::daemon(topic, database).database_url(url).batches_of(200).until_end().run().expect_code(0);
    assert!(begun.elapsed() < WITHOUT_A_STALL, "it stalled: {ended}");
    assert!(!ended.says("no answer within"), "{ended}");
    ended
}

fn backlog(topic: &Topic) -> Ledger<'_> {
    let mut ledger = Ledger::of(topic);
    let mut events: Vec<_> = (0..2_500).map(|_| ledger.event()).collect();
    ledger.send_new(0, &events);
    // Duplicates make batches start again with a lookup.
    events.truncate(50);
    let offsets = topic.send_to(0, &events);
    ledger.expect(0, offsets, "processed");
    ledger.send("no JSON", "rejected");
    ledger.send_events(0, 1_000);
    ledger
}

#[test]
fn a_role_with_one_connection_migrates_reads_and_verifies() {
    for limit in [1, 2] {
        let (topic, database) = (Topic::new(1), Database::new());
        let role = database.name();
        database.execute(&format!("create role {role} login password 'limited' connection limit {limit}"));
        database.execute(&format!("grant create on database {role} to {role}"));
        let url = database.url_as(role, "limited");
        let ledger = backlog(&topic);
        Gapless::verb("migrate", &topic, &database).database_url(&url).run().expect_code(0);
        let ended = read_backlog(&topic, &database, &url);
        let limited = ended.line_of_event("connections_limited");
        assert_eq!(ended.count_of_event("connections_limited"), 1, "one log line: {ended}");
        assert_eq!(limited["fields"]["connections"], limit, "the number of connections is logged: {limited}");
        assert!(!ended.says("use a pooler"), "no other cause is reported: {ended}");
        for verb in ["status", "verify", "plan"] {
            Gapless::verb(verb, &topic, &database).database_url(&url).run().expect_code(0);
        }
        ledger.assert_complete(&database);
        database.drop_role(role);
    }
}

#[test]
fn a_pooler_with_fewer_connections_than_writers_causes_no_deadlock() {
    for pool_size in [1, 2] {
        let (topic, database) = (Topic::new(1), Database::new());
        let bouncer = Bouncer::before(&database.url, pool_size);
        let url = database.url_through(bouncer.address());
        let mut ledger = backlog(&topic);
        Gapless::verb("migrate", &topic, &database).database_url(&url).run().expect_code(0);
        read_backlog(&topic, &database, &url);
        // While the daemon runs, its checks of the ledger and small batches share the connections too.
        let daemon = Gapless::daemon(&topic, &database).database_url(&url).start();
        daemon.wait_until_ready();
        for _ in 0..2 {
            ledger.send_events(0, 20);
            ledger.send_events(0, 1_200);
            database.wait_for_outcomes(ledger.len());
        }
        let ended = daemon.terminate().expect_code(0);
        assert!(!ended.says("no answer within"), "{ended}");
        ledger.assert_complete(&database);
    }
}

#[test]
fn sessions_that_are_read_only_by_default_can_still_write() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 2_000);
    database.execute(&format!("alter database {} set default_transaction_read_only = on", database.name()));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.send_events(0, 10);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_transaction_timeout_of_the_database_ends_neither_a_batch_nor_verify() {
    let (topic, database) = (Topic::new(1), Database::new());
    // The setting exists since PostgreSQL 17.
    if database.value::<i32>("select current_setting('server_version_num')::int") < 170_000 {
        return;
    }
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 400);
    database.execute(&format!("alter database {} set transaction_timeout = '700ms'", database.name()));
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.before_each_event("perform pg_catalog.pg_sleep(0.003);");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    Gapless::verb("verify", &topic, &database).args(["--deep"]).run().expect_code(0);
    ledger.assert_complete(&database);
}
