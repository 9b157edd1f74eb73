//! The daemon names a missing right on the topic, waits for it, and never treats the topic as a damaged log.

use std::time::Duration;

use crate::support::servers::Sandbox;
use crate::support::wait::stays;
use crate::support::{Database, Gapless, Ledger, Running, Topic};

/// Reduces the stall timeout of 30 s to 2 s.
const DIVISOR: &str = "15";
/// Longer than the time after which a stalled partition halts.
const STALL_HALT_TIME: Duration = Duration::from_secs(8);

fn daemon(topic: &Topic, database: &Database) -> Running {
    Gapless::daemon(topic, database).env("GAPLESS_TIMEOUT_DIVISOR", DIVISOR).start()
}

#[track_caller]
fn waits_for_the_right(daemon: &Running, topic: &Topic) {
    let named = format!("READ on topic {} to User:ANONYMOUS", topic.name);
    daemon.wait_for(&named);
    daemon.wait_until_ready_is(503);
    stays("waiting for the right", STALL_HALT_TIME, || {
        let ready = daemon.get("/readyz");
        match ready.status == 503 && ready.body.contains("READ on topic") && !ready.body.contains("halted") {
            true => Ok(()),
            false => Err(ready.body),
        }
    });
}

#[test]
fn reading_waits_for_a_missing_right_and_resumes_by_itself() {
    let sandbox = Sandbox::kafka_with_rules();
    let (topic, database) = (Topic::on(&sandbox.brokers, 1, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);

    // At the first start the role has only DESCRIBE.
    sandbox.deny(&topic.name, "Read");
    let running = daemon(&topic, &database);
    waits_for_the_right(&running, &topic);
    sandbox.allow_again(&topic.name, "Read");
    database.wait_for_outcomes(5);
    running.wait_until_ready();

    // READ is revoked while the daemon runs, and granted again.
    sandbox.deny(&topic.name, "Read");
    ledger.send_events(0, 10);
    running.wait_until_ready_is(503);
    waits_for_the_right(&running, &topic);
    sandbox.allow_again(&topic.name, "Read");
    database.wait_for_outcomes(15);
    running.wait_until_ready();
    let ended = running.terminate().expect_code(0);
    assert!(!ended.has_event("partition_halted"), "{ended}");
    assert_eq!(
        (ended.count_of_event("partition_suspended"), ended.count_of_event("partition_resumed")),
        (2, 2),
        "{ended}"
    );
    ledger.assert_complete(&database);
}
