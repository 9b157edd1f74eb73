//! An outage of a server is logged once with its reason, and its end once. Unknown values are absent meanwhile, not 0.

use crate::support::proxy::Proxy;
use crate::support::servers::Sandbox;
use crate::support::wait::until;
use crate::support::{Database, Gapless, Ledger, Running, Topic};

/// Waits until a metric is present (`known`) or absent.
#[track_caller]
fn wait_until_known(daemon: &Running, name: &str, known: bool) {
    until(&format!("{name} to be known: {known}"), || match daemon.get("/metrics").metric(name, &[]) {
        value if value.is_some() == known => Ok(()),
        value => Err(format!("{value:?}")),
    });
}

#[test]
fn an_outage_of_kafka_and_its_end_are_logged_once_each_and_the_lag_is_unknown_meanwhile() {
    let sandbox = Sandbox::kafka();
    let (topic, database) = (Topic::on(&sandbox.brokers, 1, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(10);
    wait_until_known(&daemon, "gapless_lag", true);
    sandbox.control_kafka("kill");
    let lost = daemon.wait_for_event("kafka_lost").to_string();
    assert!(lost.contains("WARN") && lost.contains("cannot reach Kafka: ") && lost.contains(&topic.brokers), "{lost}");
    for name in ["gapless_lag", "gapless_last_stable_offset", "gapless_log_end_offset"] {
        wait_until_known(&daemon, name, false);
    }
    let health = daemon.get("/health").json();
    assert!(health["partitions"][0]["lag"].is_null(), "{health}");
    assert_eq!(health["partitions"][0]["position"], 10, "{health}");
    let reasons = daemon.wait_until_ready_is(503);
    assert!(reasons.contains("kafka: cannot reach Kafka"), "{reasons}");
    sandbox.control_kafka("start");
    let returned = daemon.wait_for_event("kafka_returned");
    assert!(returned["fields"]["duration_ms"].as_u64().is_some_and(|ms| ms > 0), "{returned}");
    wait_until_known(&daemon, "gapless_lag", true);
    ledger.send_events(0, 10);
    database.wait_for_outcomes(20);
    let ended = daemon.terminate().expect_code(0);
    assert_eq!((ended.count_of_event("kafka_lost"), ended.count_of_event("kafka_returned")), (1, 1), "{ended}");
    assert!(!ended.has_event("offset_commit_refused"), "no right is missing: {ended}");
    ledger.assert_complete(&database);
}

#[test]
fn an_outage_of_postgresql_and_its_end_are_logged_once_each_although_batches_are_retried() {
    let (topic, database) = (Topic::new(1), Database::new());
    let proxy = Proxy::before(database.address());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(&topic, &database)
        .database_url(&database.url_through(proxy.address))
        .env("GAPLESS__DATABASE__CONNECT_TIMEOUT_MS", "300")
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "300")
        .start();
    database.wait_for_outcomes(10);
    daemon.wait_until_ready();
    proxy.black_hole();
    ledger.send_events(0, 10);
    let lost = daemon.wait_for_event("postgres_lost").to_string();
    assert!(lost.contains("WARN"), "{lost}");
    until("several attempts", || match daemon.get("/metrics").metric("gapless_retries_total", &[]) {
        Some(attempts) if attempts >= 3.0 => Ok(()),
        attempts => Err(format!("{attempts:?}")),
    });
    proxy.heal();
    let returned = daemon.wait_for_event("postgres_returned");
    assert!(returned["fields"]["duration_ms"].as_u64().is_some_and(|ms| ms > 0), "{returned}");
    database.wait_for_outcomes(20);
    let ended = daemon.terminate().expect_code(0);
    assert_eq!((ended.count_of_event("postgres_lost"), ended.count_of_event("postgres_returned")), (1, 1), "{ended}");
    ledger.assert_complete(&database);
}
