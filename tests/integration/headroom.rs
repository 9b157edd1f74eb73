//! Retention risk and a transaction that stays open are reported before messages are lost or reading stops.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::proxy::Proxy;
use crate::support::servers::Sandbox;
use crate::support::wait::until;
use crate::support::{Database, Gapless, Ledger, Record, Running, Topic};

const PARTITION: [&str; 1] = ["partition=\"0\""];
const HOUR_MS: i64 = 3_600_000;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Waits until a metric of partition 0 satisfies `wanted` and returns its value.
#[track_caller]
fn wait_for(daemon: &Running, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    until(&format!("{name}\n{}", daemon.tail()), || match daemon.get("/metrics").metric(name, &PARTITION) {
        Some(found) if wanted(found) => Ok(found),
        found => Err(format!("{found:?}")),
    })
}

const OFFSETS: &str = "gapless_log_start_headroom_offsets";
const SECONDS: &str = "gapless_log_start_headroom_seconds";
const STALLED: &str = "gapless_last_stable_offset_stalled_seconds";

/// Runs `test` with a daemon whose database is unreachable and that has one unstored message of this age in
/// milliseconds.
fn with_unstored_message(topic: &Topic, database: &Database, age_ms: i64, test: impl FnOnce(&Running)) {
    let proxy = Proxy::before(database.address());
    let mut ledger = Ledger::of(topic);
    ledger.send_events(0, 3);
    let daemon = Gapless::daemon(topic, database)
        .database_url(&database.url_through(proxy.address))
        .env("GAPLESS__DATABASE__CONNECT_TIMEOUT_MS", "500")
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "500")
        .start();
    database.wait_for_outcomes(3);
    wait_for(&daemon, SECONDS, f64::is_infinite);
    proxy.black_hole();
    let event = ledger.event();
    let offsets = topic.send_records([Record::from(&event).at(now_ms() - age_ms)]);
    ledger.expect_stored(0, &offsets, &[event]);
    test(&daemon);
    proxy.heal();
    wait_for(&daemon, SECONDS, f64::is_infinite);
    assert_eq!(daemon.get("/health").json()["partitions"][0]["warnings"], serde_json::json!([]));
    let ended = daemon.terminate().expect_code(0);
    ledger.assert_complete(database);
    assert!(ended.count_of_event("retention_risk") <= 1, "one line for each crossing of the limit: {ended}");
}

#[test]
fn a_retention_risk_is_logged_once_with_numbers_and_remedy() {
    let (topic, database) = (Topic::configured(1, &[("retention.ms", "7200000")]), Database::new());
    // Retention is two hours, and the message is ten minutes younger than that. The limit of the warning is one hour.
    with_unstored_message(&topic, &database, 2 * HOUR_MS - 600_000, |daemon| {
        let left = wait_for(daemon, SECONDS, |seconds| seconds < 600.0);
        assert!(left > 300.0, "{left}");
        // PostgreSQL is unreachable all the time; the daemon observes Kafka nevertheless.
        wait_for(daemon, SECONDS, |seconds| seconds < left - 3.0);
        assert_eq!(daemon.metric(OFFSETS, &PARTITION), 3.0);
        assert_eq!(daemon.metric("gapless_lag", &PARTITION), 1.0);
        let line = daemon.wait_for_event("retention_risk").to_string();
        for text in ["position 3", "log start 0", "1 offsets unread", "retention.ms is 7200000", "kafka-configs.sh"] {
            assert!(line.contains(text), "{text}: {line}");
        }
        let health = daemon.get("/health").json();
        let partition = &health["partitions"][0];
        assert!(partition["warnings"][0].as_str().unwrap().contains("retention may delete"), "{health}");
        assert_eq!(partition["log_start_headroom"]["offsets"], 3, "{health}");
    });
}

#[test]
fn with_retention_by_size_only_the_risk_is_estimated_from_the_speed_of_the_log_start() {
    let config = [("retention.ms", "-1"), ("retention.bytes", "1000000000")];
    let (topic, database) = (Topic::configured(1, &config), Database::new());
    with_unstored_message(&topic, &database, 0, |daemon| {
        assert_eq!(daemon.metric(SECONDS, &PARTITION), f64::INFINITY, "the speed of the log start is not known yet");
        // Retention deletes two of three offsets within a minute, so half a minute is left.
        topic.delete_before(0, 2);
        let left = wait_for(daemon, SECONDS, f64::is_finite);
        assert!((25.0..60.0).contains(&left), "{left}");
        assert_eq!(daemon.metric(OFFSETS, &PARTITION), 1.0);
        let line = daemon.wait_for_event("retention_risk").to_string();
        assert!(line.contains("retention.bytes deletes") && line.contains("log start 2"), "{line}");
    });
}

#[test]
fn an_unread_message_with_time_left_causes_no_warning() {
    let (topic, database) = (Topic::configured(1, &[("retention.ms", "36000000")]), Database::new());
    with_unstored_message(&topic, &database, HOUR_MS, |daemon| {
        let left = wait_for(daemon, SECONDS, f64::is_finite);
        assert!((8.9 * 3600.0..9.0 * 3600.0).contains(&left), "{left}");
        assert!(!daemon.has_event("retention_risk"), "{}", daemon.tail());
    });
}

#[test]
fn without_the_right_to_read_the_topics_settings_one_line_is_logged_and_reading_continues() {
    let sandbox = Sandbox::kafka_with_rules();
    let (topic, database) = (Topic::on(&sandbox.brokers, 1, &[("retention.ms", "7200000")]), Database::new());
    sandbox.deny(&topic.name, "DescribeConfigs");
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(10);
    wait_for(&daemon, OFFSETS, |offsets| offsets == 10.0);
    assert_eq!(daemon.metric(SECONDS, &PARTITION), f64::INFINITY);
    assert_eq!(daemon.get("/readyz").status, 200);
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of_event("topic_settings_unreadable"), 1, "{ended}");
    assert!(ended.says("grant DescribeConfigs"), "{ended}");
    ledger.assert_complete(&database);
}

#[test]
fn without_unread_messages_or_retention_the_time_is_infinite() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(&topic, &database).start();
    wait_for(&daemon, OFFSETS, |offsets| offsets == 10.0);
    topic.delete_before(0, 4);
    wait_for(&daemon, OFFSETS, |offsets| offsets == 6.0);
    assert_eq!(daemon.metric(SECONDS, &PARTITION), f64::INFINITY);
    let text = daemon.get("/metrics").body;
    assert!(text.lines().any(|line| line.starts_with(SECONDS) && line.ends_with(" +Inf")), "{text}");
    assert_eq!(daemon.metric(STALLED, &PARTITION), 0.0);
    let health = daemon.get("/health").json();
    assert!(health["partitions"][0]["log_start_headroom"]["seconds"].is_null(), "{health}");
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_transaction_that_stays_open_is_measured_and_logged_with_the_remedy() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let transactions = topic.transactions();
    let event = ledger.event();
    let open = transactions.begin([&event]);
    ledger.send_events(0, 4);
    let daemon = Gapless::daemon(&topic, &database).start();
    let before = wait_for(&daemon, STALLED, |seconds| seconds > 1.0);
    wait_for(&daemon, STALLED, |seconds| seconds > before);
    let line = daemon.wait_for_event("last_stable_offset_stalled").to_string();
    assert!(
        line.contains("find-hanging") && line.contains("last stable offset 0 ") && line.contains("5 offsets wait"),
        "{line}"
    );
    let health = daemon.get("/health").json();
    assert!(health["partitions"][0]["warnings"][0].as_str().unwrap().contains("find-hanging"), "{health}");
    assert_eq!(daemon.get("/readyz").status, 200, "nothing is wrong with the daemon");
    let offsets = open.commit();
    ledger.expect_stored(0, &offsets, &[event]);
    wait_for(&daemon, STALLED, |seconds| seconds == 0.0);
    database.wait_for_position(0, topic.log_end(0));
    let ended = daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(ended.count_of_event("last_stable_offset_stalled"), 1, "{ended}");
}
