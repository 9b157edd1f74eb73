//! A commit whose reply is lost is looked up, not guessed.

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Database, Gapless, Ledger, Running, Topic};

/// A daemon behind a proxy that has stored messages already, so that the next COMMIT is that of a batch.
fn daemon_behind<'topic>(topic: &'topic Topic, database: &Database, proxy: &Proxy) -> (Running, Ledger<'topic>) {
    let mut ledger = Ledger::of(topic);
    let url = database.url_through(proxy.address);
    let daemon = Gapless::daemon(topic, database)
        .database_url(&url)
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "4000")
        .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "2000")
        .start();
    ledger.send_events(0, 5);
    database.wait_for_outcomes(5);
    daemon.wait_until_ready();
    (daemon, ledger)
}

fn unknown_commits(daemon: &Running) -> f64 {
    daemon.metric("gapless_commit_unknown_total", &[])
}

#[track_caller]
fn counts_each_message_once(daemon: &Running, ledger: &Ledger<'_>) {
    daemon.wait_for_metric("gapless_messages_total", &["outcome=\"stored\""], ledger.len() as f64);
}

#[test]
fn a_commit_whose_reply_is_lost_is_recognised_as_applied() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    assert_eq!(unknown_commits(&daemon), 0.0);
    for round in 1..=5 {
        proxy.arm(Fault::ReplyLost);
        ledger.send_events(0, 20);
        proxy.wait_for_faults(round);
        database.wait_for_outcomes(ledger.len());
    }
    ledger.send_events(0, 20);
    database.wait_for_outcomes(ledger.len());
    assert_eq!(unknown_commits(&daemon), 5.0);
    counts_each_message_once(&daemon, &ledger);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_commit_lost_on_its_way_to_the_server_is_repeated() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    for round in 1..=3 {
        proxy.arm(Fault::RequestLost);
        ledger.send_events(0, 20);
        proxy.wait_for_faults(round);
        database.wait_for_outcomes(ledger.len());
    }
    assert_eq!(unknown_commits(&daemon), 3.0);
    counts_each_message_once(&daemon, &ledger);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_commit_that_is_applied_late_is_not_applied_twice() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    proxy.arm(Fault::AppliedLate);
    ledger.send_events(0, 20);
    proxy.wait_for_held();
    // Meanwhile the daemon looks up the commit on a new connection, which waits for the open transaction or finds
    // nothing.
    daemon.wait_for_event("commit_unknown");
    ledger.send_events(0, 20);
    proxy.release();
    database.wait_for_outcomes(ledger.len());
    counts_each_message_once(&daemon, &ledger);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_commit_that_is_applied_after_its_lookup_is_counted() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let mut ledger = Ledger::of(&topic);
    let url = database.url_through(proxy.address);
    // Three attempts to write a batch of one message: the first batch, the held one, and the second attempt at it.
    let daemon = Gapless::daemon(&topic, &database).database_url(&url).failpoint("tx_open=pause@3").start();
    ledger.send_events(0, 1);
    database.wait_for_outcomes(1);
    proxy.arm(Fault::StartedLate);
    ledger.send_events(0, 1);
    proxy.wait_for_held();
    daemon.wait_for_event("commit_not_found");
    daemon.wait_for("failpoint TxOpen: pause");
    proxy.release();
    counts_each_message_once(&daemon, &ledger);
    daemon.wait_for_event("commit_applied_late");
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_commit_held_beyond_every_deadline_is_not_applied_twice() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    proxy.arm(Fault::AppliedLate);
    ledger.send_events(0, 20);
    proxy.wait_for_held();
    // The rows of the open transaction block the daemon until it is committed.
    daemon.wait_until_ready_is(503);
    assert_eq!(daemon.get("/livez").status, 200);
    proxy.release();
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_commit_whose_reply_is_lost_inside_the_daemon_is_recognised_as_applied() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 50);
    let ended = Gapless::daemon(&topic, &database)
        .batches_of(10)
        .failpoint("after_commit=error@3")
        .until_end()
        .run()
        .expect_code(0);
    ledger.assert_complete(&database);
    assert!(ended.has_event("commit_found"), "{ended}");
}

#[test]
fn a_connection_that_drops_everything_is_closed_and_the_batch_is_repeated() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    proxy.black_hole();
    ledger.send_events(0, 20);
    daemon.wait_until_ready_is(503);
    assert_eq!(daemon.get("/livez").status, 200, "every wait is finite");
    assert_eq!(daemon.get("/metrics").status, 200, "the endpoint uses no server");
    proxy.heal();
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn connections_cut_at_any_moment_are_replaced() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let (daemon, mut ledger) = daemon_behind(&topic, &database, &proxy);
    for _ in 0..10 {
        ledger.send_events(0, 50);
        proxy.cut_all();
        ledger.send_events(0, 50);
        database.wait_for_outcomes(ledger.len());
    }
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}
