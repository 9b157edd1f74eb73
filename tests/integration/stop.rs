//! A stop completes or drops the in-flight batches and exits with 0 within ten seconds, whatever the daemon waits for.

use std::time::Duration;

use crate::support::proxy::Proxy;
use crate::support::wait::until;
use crate::support::{Database, Ended, Gapless, Ledger, Running, Topic};

fn stops_in_time(daemon: Running) -> Ended {
    let ended = daemon.terminate().expect_code(0);
    assert!(ended.took < Duration::from_secs(10), "it took {:?}", ended.took);
    ended
}

#[test]
fn an_idle_daemon_stops_within_its_limit() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    let ended = stops_in_time(daemon);
    assert!(ended.output.is_empty(), "standard output is for data: {ended}");
}

#[test]
fn an_interrupt_from_the_keyboard_stops_the_daemon() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    daemon.signal("INT");
    daemon.wait().expect_code(0);
}

#[test]
fn a_hangup_does_not_stop_the_daemon_and_is_logged_once() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    daemon.signal("HUP");
    daemon.wait_for_event("hangup_ignored");
    daemon.signal("HUP");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(10);
    let ended = stops_in_time(daemon);
    assert_eq!(ended.count_of_event("hangup_ignored"), 1, "{ended}");
    ledger.assert_complete(&database);
}

#[test]
fn a_daemon_whose_log_output_is_closed_continues() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    // `head` ends after the first line and closes the pipe of standard error.
    let mut command = std::process::Command::new("bash");
    command.args(["-c", r#""$@" 2> >(head -n 1 >&1)"#, "bash", env!("CARGO_BIN_EXE_gapless"), "--until-end"]);
    command.args(["--brokers", &topic.brokers, "--topic", &topic.name, "--database-url", &database.url]);
    command.env("GAPLESS__SERVER__BIND", "127.0.0.1:0");
    ledger.send_events(0, 10);
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    ledger.assert_complete(&database);
}

#[test]
fn a_daemon_under_load_stops_and_the_next_start_stores_the_rest() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3000);
    let daemon = Gapless::daemon(&topic, &database).batches_of(20).start();
    database.wait_until_something_is_stored();
    stops_in_time(daemon);
    database.assert_accounting();
    assert!(database.outcomes().len() < 3000, "it was not under load");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

/// Stops a daemon that hangs at a failpoint, after the query `sign` has returned `wanted`.
fn stops_while_it_hangs_at(failpoint: &str, topic: &Topic, mut ledger: Ledger<'_>, sign: &str, wanted: i64) {
    let database = Database::new();
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(topic, &database).failpoint(failpoint).start();
    daemon.wait_for(": hang");
    database.wait_for(sign, wanted);
    stops_in_time(daemon);
    database.assert_accounting();
    Gapless::daemon(topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

const OPEN_TRANSACTIONS: &str =
    "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";

#[test]
fn the_daemon_stops_while_a_transaction_hangs_after_its_begin() {
    let topic = Topic::new(1);
    stops_while_it_hangs_at("tx_open=hang", &topic, larger_than_a_statement(&topic), OPEN_TRANSACTIONS, 1);
}

#[test]
fn the_daemon_stops_while_a_transaction_hangs_before_its_commit() {
    let topic = Topic::new(1);
    stops_while_it_hangs_at("before_commit=hang", &topic, larger_than_a_statement(&topic), OPEN_TRANSACTIONS, 1);
}

/// A first batch that one statement cannot write: it contains a message that is rejected.
fn larger_than_a_statement(topic: &Topic) -> Ledger<'_> {
    let mut ledger = Ledger::of(topic);
    ledger.send("not JSON", "rejected");
    ledger
}

#[test]
fn the_daemon_stops_while_a_small_batch_hangs_before_its_statement() {
    let topic = Topic::new(1);
    stops_while_it_hangs_at("before_commit=hang", &topic, Ledger::of(&topic), OPEN_TRANSACTIONS, 0);
}

#[test]
fn the_daemon_stops_while_it_hangs_after_a_commit() {
    let topic = Topic::new(1);
    let sign = "select count(*) from gapless.dead_letters";
    stops_while_it_hangs_at("after_commit=hang", &topic, larger_than_a_statement(&topic), sign, 1);
}

#[test]
fn the_daemon_stops_while_the_fetching_thread_hangs() {
    let topic = Topic::new(1);
    let sign = "select count(*) from gapless.kafka_events_received";
    stops_while_it_hangs_at("source_record=hang", &topic, Ledger::of(&topic), sign, 0);
}

#[test]
fn the_daemon_stops_while_a_gap_proof_hangs() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    for _ in 0..3 {
        ledger.commit_event(&transactions);
    }
    let daemon = Gapless::daemon(&topic, &database).failpoint("gap_proof=hang").start();
    daemon.wait_until_ready();
    stops_in_time(daemon);
    database.assert_accounting();
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn the_daemon_stops_while_it_waits_for_servers_that_are_down() {
    let (topic, database) = (Topic::new(1), Database::new());
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Gapless::daemon(&topic, &database).database_url(&database.url_through(free)).start();
    daemon.wait_for_event("waiting_to_start");
    stops_in_time(daemon);
    let daemon =
        Gapless::bare().args(["--brokers", &free.to_string(), "--topic", "any"]).database_url(&database.url).start();
    daemon.wait_for_event("waiting_to_start");
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.get("/readyz").status, 503);
    stops_in_time(daemon);
}

/// A server that accepts connections and never answers.
fn silent_server() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn a_stop_during_the_wait_for_a_silent_server_is_immediate_and_reports_no_server_error() {
    let (topic, database, server) = (Topic::new(1), Database::new(), silent_server());
    let silent = server.local_addr().unwrap();
    let kafka =
        Gapless::bare().args(["--brokers", &silent.to_string(), "--topic", "any"]).database_url(&database.url).start();
    let postgresql = Gapless::daemon(&topic, &database).database_url(&database.url_through(silent)).start();
    for daemon in [kafka, postgresql] {
        daemon.wait_for_event("waiting_to_start");
        let ended = daemon.terminate().expect_code(0);
        assert!(ended.took < Duration::from_secs(3), "it took {:?}", ended.took);
        assert!(!ended.has_event("stop_forced"), "{ended}");
    }
}

#[test]
fn a_stop_while_postgresql_refuses_connections_is_immediate_and_reports_no_server_error() {
    let (topic, database, other) = (Topic::new(1), Database::new(), Database::new());
    let mut ledger = Ledger::of(&topic);
    let open = |open: bool| other.execute(&format!("alter database {} allow_connections {open}", database.name()));
    let of_the_database = format!("from pg_stat_activity where datname = '{}'", database.name());
    // A daemon that waited for its last batch would take five seconds each time. One that stops at once takes as long
    // only where the stop meets an attempt that a busy server is slow to refuse.
    let is_immediate = (0..3).any(|_| {
        let daemon = Gapless::daemon(&topic, &database).start();
        daemon.wait_until_ready();
        open(false);
        other.execute(&format!("select pg_terminate_backend(pid) {of_the_database}"));
        ledger.send_events(0, 10);
        // By then the daemon pauses for seconds between two attempts.
        until("some attempts", || match daemon.metric("gapless_retries_total", &["class=\"environment\""]) {
            retries if retries >= 7.0 => Ok(()),
            retries => Err(retries.to_string()),
        });
        let ended = daemon.terminate().expect_code(0);
        assert!(!ended.has_event("stop_forced"), "{ended}");
        open(true);
        ended.took < Duration::from_secs(4)
    });
    assert!(is_immediate, "three stops took four seconds and more");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn the_daemon_stops_while_postgresql_does_not_answer() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let daemon = Gapless::daemon(&topic, &database).database_url(&database.url_through(proxy.address)).start();
    daemon.wait_until_ready();
    proxy.black_hole();
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    stops_in_time(daemon);
    proxy.heal();
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn the_daemon_waits_for_a_missing_topic_and_never_creates_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    let absent = format!("{}_absent", topic.name);
    let daemon =
        Gapless::bare().args(["--brokers", &topic.brokers, "--topic", &absent]).database_url(&database.url).start();
    daemon.wait_for_event("waiting_to_start");
    assert!(daemon.wait_until_ready_is(503).contains(&absent));
    stops_in_time(daemon);
    assert!(!topic.exists(&absent));
}

#[test]
fn a_thread_that_cannot_be_started_is_reported_as_the_error() {
    let (topic, database) = (Topic::new(1), Database::new());
    // No machine has memory for a stack of this size.
    let huge = (1_u64 << 46).to_string();
    let ended = Gapless::daemon(&topic, &database).env("RUST_MIN_STACK", &huge).run().expect_code(1);
    ended.expect_says(&["cannot start a thread", "raise the limit"]);
}
