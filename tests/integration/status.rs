//! `gapless status` reports which partitions are not being read, the reason and the remedy.

use serde_json::Value;

use crate::support::wait::{DEADLINE, until};
use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn status(topic: &Topic, database: &Database, code: i32) -> Value {
    let ended = Gapless::verb("status", topic, database).args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// Carries out the command between backticks of a remedy.
fn carry_out(remedy: &str, topic: &Topic, database: &Database) {
    let command = remedy.split('`').nth(1).unwrap_or_else(|| panic!("no command in {remedy}"));
    let words: Vec<&str> = command.strip_prefix("gapless ").unwrap().split(' ').map(|w| w.trim_matches('"')).collect();
    Gapless::verb(words[0], topic, database).args(words[1..].iter().copied()).run().expect_code(0);
}

#[test]
fn status_reports_a_halted_partition_without_its_daemon_until_the_remedy_is_carried_out() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    ledger.send_events(1, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(status(&topic, &database, 0)["partitions"][0]["state"], "ok");
    topic.send((900..910).map(|number| Event::numbered(7, number)));
    topic.delete_before(0, 12);

    // The log shows it before any daemon has halted.
    let report = status(&topic, &database, 3);
    let partition = &report["partitions"][0];
    assert_eq!((&partition["state"], &partition["reason"]), (&"halted".into(), &"expired".into()), "{report}");
    assert_eq!((&partition["known_from"], &partition["range"]), (&"kafka".into(), &serde_json::json!([5, 12])));
    assert_eq!(report["partitions"][1]["state"], "ok", "{report}");

    Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    let report = status(&topic, &database, 3);
    let partition = &report["partitions"][0];
    assert_eq!((&partition["state"], &partition["reason"]), (&"halted".into(), &"expired".into()), "{report}");
    assert_eq!((&partition["known_from"], &partition["range"]), (&"daemon".into(), &serde_json::json!([5, 12])));
    assert!(partition["since"].is_string() && partition["written_by"].as_str().unwrap().contains("pid"), "{report}");
    let table = Gapless::verb("status", &topic, &database).run().expect_code(3);
    table.expect_says(&["halted (expired)", "[5, 12)", "gapless accept-loss", "1 partitions are halted"]);
    // Also while Kafka is not reachable.
    let away = Gapless::verb("status", &topic, &database).brokers("127.0.0.1:1").run().expect_code(3);
    away.expect_says(&["halted (expired)", "no watermarks: cannot reach Kafka", "start the broker"]);

    carry_out(partition["remedy"].as_str().unwrap(), &topic, &database);
    assert_eq!(status(&topic, &database, 0)["partitions"][0]["state"], "ok");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.count("partition_states"), 0);
    status(&topic, &database, 0);
}

#[test]
fn a_recreated_topic_has_no_lag_and_is_reported_as_halted() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.recreate(1);
    topic.send((0..3).map(|number| Event::numbered(6, number)));
    for known_from in ["kafka", "daemon"] {
        let report = status(&topic, &database, 3);
        let partition = &report["partitions"][0];
        assert_eq!((&partition["state"], &partition["reason"]), (&"halted".into(), &"recreated".into()), "{report}");
        assert_eq!((&partition["known_from"], &partition["next_offset"]), (&known_from.into(), &10.into()), "{report}");
        for unknown in ["lag", "log_start_offset", "last_stable_offset", "log_end_offset"] {
            assert_eq!(partition[unknown], Value::Null, "{unknown} is of another generation: {report}");
        }
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    }
    let report = status(&topic, &database, 3);
    carry_out(report["partitions"][0]["remedy"].as_str().unwrap(), &topic, &database);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let report = status(&topic, &database, 0);
    assert_eq!(
        (&report["partitions"][1]["generation"], &report["partitions"][1]["lag"]),
        (&2.into(), &0.into()),
        "{report}"
    );
}

#[test]
fn a_suspension_is_reported_while_it_lasts_and_a_recorded_one_ends_when_the_partition_is_read() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // The state that a killed daemon leaves.
    database.execute(
        "insert into gapless.recorded_states (position_id, fence, state, reason, detail, remedy)
         select id, fence, 'suspended', 'suspended', 'no leader answers for it', 'wait' from gapless.positions",
    );
    assert_eq!(status(&topic, &database, 3)["partitions"][0]["state"], "suspended");
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    database.wait_for("select count(*) from gapless.partition_states", 0);
    status(&topic, &database, 0);
    topic.delete();
    database.wait_for("select count(*) from gapless.partition_states where state = 'suspended'", 1);
    let report = status(&topic, &database, 3);
    assert!(report["kafka"].as_str().unwrap().contains("create the topic"), "{report}");
    assert!(!report["partitions"][0]["detail"].as_str().unwrap().is_empty(), "{report}");
    topic.create_again(1);
    database.wait_for("select count(*) from gapless.partition_states where reason = 'recreated'", 1);
    let ended = daemon.terminate().expect_code(0);
    assert!(ended.took < DEADLINE);
}

#[test]
fn a_server_that_cannot_be_reached_is_exit_code_1_with_its_remedy() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..3).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let verb = || Gapless::verb("status", &topic, &database);
    let ended = verb().brokers("127.0.0.1:1").args(["--format", "json"]).run().expect_code(1);
    let report: Value = serde_json::from_str(&ended.output).unwrap();
    assert_eq!((&report["partitions"][0]["next_offset"], &report["partitions"][0]["lag"]), (&3.into(), &Value::Null));
    ended.expect_says(&["kafka.brokers"]);
    verb().database_url("postgres://nobody@127.0.0.1:1/nowhere").run().expect_code(1).expect_says(&["database.url"]);
    topic.delete();
    until("the topic to be gone", || if topic.exists(&topic.name) { Err(topic.name.clone()) } else { Ok(()) });
    verb().run().expect_code(1).expect_says(&["does not exist", "create the topic"]);
}

#[test]
fn a_large_ledger_is_not_counted_and_unknown_numbers_are_not_shown_as_0() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..3).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let report = status(&topic, &database, 0);
    assert_eq!(
        (&report["partitions"][0]["outcomes"], &report["partitions"][0]["unaccounted_offsets"]),
        (&3.into(), &0.into())
    );
    // The state after months of reading.
    database.execute("update gapless.positions set next_offset = 20000000");
    let report = status(&topic, &database, 3);
    for unknown in ["outcomes", "gap_offsets", "unaccounted_offsets", "unaccounted_as_of"] {
        assert_eq!(report["partitions"][0][unknown], Value::Null, "{unknown}: {report}");
    }
    database.execute(
        "insert into gapless.audits (position_id, counted_from, counted_to, missing)
         select id, 0, 19000000, 2 from gapless.positions",
    );
    let report = status(&topic, &database, 3);
    assert_eq!(report["partitions"][0]["unaccounted_offsets"], 2, "{report}");
    assert_eq!(report["partitions"][0]["unaccounted_as_of"]["to"], 19_000_000, "{report}");
    Gapless::verb("status", &topic, &database).run().expect_says(&["gapless verify", "?"]);
}
