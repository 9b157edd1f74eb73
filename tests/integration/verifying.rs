//! `gapless verify` says what is wrong, all of it and nothing else: exact ranges, each with a remedy that works.

use serde_json::Value;

use crate::support::{Database, Event, Gapless, Ledger, Topic};

#[track_caller]
fn verdict(gapless: Gapless, code: i32) -> Value {
    let ended = gapless.args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, code: i32) -> Value {
    verdict(Gapless::verb("verify", topic, database), code)
}

/// Kind and range of each finding.
fn found(verdict: &Value) -> Vec<(&str, i64, i64)> {
    let findings = verdict["findings"].as_array().expect("findings");
    let offset = |finding: &Value, name| finding[name].as_i64().unwrap_or(-1);
    findings.iter().map(|f| (f["kind"].as_str().unwrap_or(""), offset(f, "from"), offset(f, "to"))).collect()
}

/// A verify that pauses at its first message, longer than a daemon's transaction may be idle; what is done
/// meanwhile, then its exit code and output.
#[track_caller]
fn verify_paused(topic: &Topic, database: &Database, meanwhile: impl FnOnce(), code: i32) -> Value {
    let verb = Gapless::verb("verify", topic, database).args(["--format", "json"]).failpoint("source_record=pause");
    let running = verb.start();
    running.wait_for("pause");
    meanwhile();
    let ended = running.wait().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

#[test]
fn the_snapshot_was_ended_by_the_server_while_the_log_was_read() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(11, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let verdict = verify_paused(&topic, &database, || {}, 0);
    assert_eq!(verdict["partitions"][0]["compared"], 10);
}

#[test]
fn retention_that_went_on_while_the_log_was_read_made_verify_fail_without_a_word() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..4000).map(|number| Event::numbered(12, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let verdict = verify_paused(&topic, &database, || topic.delete_before(0, 3000), 0);
    let compared = verdict["partitions"][0]["compared"].as_i64().unwrap_or(0);
    assert!((500..2000).contains(&compared), "the spots that are left: {verdict}");
    database.execute(r#"delete from gapless.outcomes where "offset" in (7, 3500)"#);
    let verdict = verify_paused(&topic, &database, || topic.delete_before(0, 3900), 3);
    assert!(found(&verdict).contains(&("unaccounted", 7, 8)), "{verdict}");
    assert_eq!(verdict["unfinished"], Value::Null, "{verdict}");
}

#[test]
fn without_kafka_the_ledgers_own_findings_were_not_shown() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(13, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let nobody = "127.0.0.1:1";
    let whole = verdict(Gapless::verb("verify", &topic, &database).brokers(nobody), 1);
    assert_eq!((&whole["verified"], found(&whole)), (&Value::Bool(false), vec![]));
    database.execute(r#"delete from gapless.outcomes where "offset" = 4"#);
    let broken = verdict(Gapless::verb("verify", &topic, &database).brokers(nobody), 3);
    assert!(found(&broken).contains(&("unaccounted", 4, 5)) && broken["unfinished"].is_string(), "{broken}");
}

#[test]
fn a_topic_that_was_never_read_into_the_ledger_passed_as_verified() {
    let (read, never, database) = (Topic::new(1), Topic::new(2), Database::new());
    read.send((0..10).map(|number| Event::numbered(14, number)));
    Gapless::daemon(&read, &database).until_end().run().expect_code(0);
    let verdict = verify(&never, &database, 3);
    assert_eq!(found(&verdict), [("not_read", -1, -1), ("not_read", -1, -1)], "{verdict}");
    assert_eq!(verdict["findings"][0]["generation"], Value::Null);
    assert_eq!(verify(&read, &database, 0)["verified"], true);
    read.grow_to(2);
    let verdict = verify(&read, &database, 3);
    assert_eq!((found(&verdict), &verdict["findings"][0]["partition"]), (vec![("not_read", -1, -1)], &Value::from(1)));
    Gapless::daemon(&read, &database).until_end().run().expect_code(0);
    assert_eq!(verify(&read, &database, 0)["verified"], true);
}

#[test]
fn between_rebase_and_restart_the_life_before_was_reported_as_another_one() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.recreate(1);
    assert_eq!(found(&verify(&topic, &database, 3)), [("another_life", -1, -1)]);
    let arguments = [topic.name.as_str(), "--reason", "operations re-created it"];
    Gapless::verb("rebase", &topic, &database).args(arguments).run().expect_code(0);
    let verdict = verify(&topic, &database, 3);
    assert_eq!((found(&verdict), &verdict["findings"][0]["generation"]), (vec![("not_read", -1, -1)], &Value::from(2)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
}
