//! `gapless verify` reports all inconsistencies and nothing else, with exact ranges and remedies that work.

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

/// Runs a verify that pauses at its first message, longer than a daemon's transaction may be idle, and `meanwhile`
/// during the pause. Asserts the exit code and returns the output.
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
fn the_snapshot_is_kept_while_the_log_is_read() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(11, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let verdict = verify_paused(&topic, &database, || {}, 0);
    assert_eq!(verdict["partitions"][0]["compared"], 10);
}

#[test]
fn verify_finishes_although_retention_deletes_records_while_the_log_is_read() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..4000).map(|number| Event::numbered(12, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let verdict = verify_paused(&topic, &database, || topic.delete_before(0, 3000), 0);
    let compared = verdict["partitions"][0]["compared"].as_i64().unwrap_or(0);
    assert!((500..2000).contains(&compared), "the samples that the log still has: {verdict}");
    database.execute(r#"delete from gapless.outcomes where "offset" in (7, 3500)"#);
    let verdict = verify_paused(&topic, &database, || topic.delete_before(0, 3900), 3);
    assert!(found(&verdict).contains(&("unaccounted", 7, 8)), "{verdict}");
    assert_eq!(verdict["unfinished"], Value::Null, "{verdict}");
}

#[test]
fn without_kafka_the_ledgers_own_findings_are_reported() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(13, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let nowhere = "127.0.0.1:1";
    let sound = verdict(Gapless::verb("verify", &topic, &database).brokers(nowhere), 1);
    assert_eq!((&sound["verified"], found(&sound)), (&Value::Bool(false), vec![]));
    database.execute(r#"delete from gapless.outcomes where "offset" = 4"#);
    let broken = verdict(Gapless::verb("verify", &topic, &database).brokers(nowhere), 3);
    assert!(found(&broken).contains(&("unaccounted", 4, 5)) && broken["unfinished"].is_string(), "{broken}");
}

#[test]
fn a_topic_that_was_never_read_into_the_ledger_is_reported_as_not_read() {
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
fn between_rebase_and_restart_only_the_new_generation_is_reported_as_not_read() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.recreate(1);
    assert_eq!(found(&verify(&topic, &database, 3)), [("other_topic_identity", -1, -1)]);
    let arguments = [topic.name.as_str(), "--reason", "operations re-created it"];
    Gapless::verb("rebase", &topic, &database).args(arguments).run().expect_code(0);
    let verdict = verify(&topic, &database, 3);
    assert_eq!((found(&verdict), &verdict["findings"][0]["generation"]), (vec![("not_read", -1, -1)], &Value::from(2)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
}

#[test]
fn an_outcome_within_a_gap_does_not_make_later_offsets_look_missing() {
    let (topic, database) = (Topic::new(1), Database::new());
    let transactions = topic.transactions();
    transactions.abort((0..9).map(|number| Event::numbered(15, number)));
    topic.send((10..20).map(|number| Event::numbered(15, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.gaps(0), [(0, 10, "transaction".to_owned())]);
    database.execute(
        r#"insert into gapless.outcomes (position_id, "offset", state)
           select position_id, n, 'ignored' from gapless.gaps, unnest(array[3, 4, 7]) n;
           delete from gapless.outcomes where "offset" in (12, 13, 19)"#,
    );
    let verdict = verify(&topic, &database, 3);
    let relevant: Vec<_> = found(&verdict).into_iter().filter(|f| ["overlap", "unaccounted"].contains(&f.0)).collect();
    let expected = [("overlap", 3, 5), ("overlap", 7, 8), ("unaccounted", 12, 14), ("unaccounted", 19, 20)];
    assert_eq!(relevant, expected, "{verdict}");
    let sql = r#"select "offset"::bigint from gapless.unhandled_offsets order by 1"#;
    assert_eq!(database.rows(sql, &[]).iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [12, 13, 19]);
}

#[test]
fn the_remedy_for_a_lost_gap_row_restores_it() {
    let (topic, database) = (Topic::new(2), Database::new());
    let transactions = topic.transactions();
    for number in 0..3 {
        transactions.commit([Event::numbered(16, number)]);
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.execute("delete from gapless.gaps");
    let broken = verify(&topic, &database, 3);
    assert_eq!(found(&broken), [("unaccounted", 1, 2), ("unaccounted", 3, 4), ("unaccounted", 5, 6)]);
    let remedy = broken["findings"][0]["remedy"].as_str().unwrap_or_default();
    let (replay, start) = (format!("{}:0:1-2", topic.name), "0:1");
    assert!(remedy.contains(&replay) && remedy.contains(&format!("--offset {start} --again")), "{remedy}");
    Gapless::verb("replay", &topic, &database).args(["--offsets", &replay]).run().expect_code(0);
    verify(&topic, &database, 3);
    Gapless::daemon(&topic, &database).offset(start).args(["--again"]).until_end().run().expect_code(0);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.assert_accounting();
}

#[test]
fn replay_is_recommended_only_for_messages_that_kafka_still_has() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.execute(r#"delete from gapless.outcomes where "offset" between 5 and 14"#);
    topic.delete_before(0, 10);
    let remedy = |verdict: &Value| {
        let list = verdict["findings"].as_array().expect("findings");
        let finding = list.iter().find(|f| f["kind"] == "unaccounted").expect("an unaccounted range");
        finding["remedy"].as_str().expect("a remedy").to_owned()
    };
    let partly = remedy(&verify(&topic, &database, 3));
    assert!(partly.contains("no longer has [5, 10)") && partly.contains(":0:10-15"), "{partly}");
    topic.recreate(1);
    let ended = remedy(&verify(&topic, &database, 3));
    assert!(ended.contains("has ended") && !ended.contains("--offset"), "{ended}");
    let arguments = [topic.name.as_str(), "--reason", "operations re-created it"];
    Gapless::verb("rebase", &topic, &database).args(arguments).run().expect_code(0);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(remedy(&verify(&topic, &database, 3)), ended);
}

#[test]
fn the_number_of_kept_findings_is_limited_and_the_rest_is_counted() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send([Event::numbered(17, 0)]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.execute(
        r#"insert into gapless.outcomes (position_id, "offset", state)
           select p.id, n, 'ignored' from gapless.positions p, generate_series(2, 40000, 2) n;
           update gapless.positions set next_offset = 40001"#,
    );
    let verdict = verify(&topic, &database, 3);
    let kept = verdict["findings"].as_array().expect("findings").len() as u64;
    assert_eq!(kept, 5000);
    // Every second offset is unaccounted, and the position is beyond the log end.
    assert_eq!(kept + verdict["more_findings"].as_u64().expect("a number"), 20_000 + 1, "{}", verdict["more_findings"]);
}

#[test]
fn conflicts_and_dead_letters_without_their_outcome_are_found() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    ledger.send(&event, "stored");
    ledger.send(event.conflicting(), "processed");
    for text in ["poison", "venom", "arsenic"] {
        ledger.send(text, "rejected");
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    let without = |change: &str, expected: &[(&str, i64, i64)]| {
        database.execute("create table public.kept as table gapless.outcomes");
        database.execute(change);
        let verdict = verify(&topic, &database, 3);
        expected.iter().for_each(|finding| assert!(found(&verdict).contains(finding), "{finding:?}: {verdict}"));
        database.execute(
            "truncate gapless.outcomes; insert into gapless.outcomes table public.kept; drop table public.kept",
        );
    };
    without(r#"delete from gapless.outcomes where "offset" in (1, 2)"#, &[("outcome_missing", 1, 3)]);
    without(r#"update gapless.outcomes set state = 'ignored' where "offset" = 3"#, &[("outcome_differs", 3, 4)]);
    without(r#"update gapless.outcomes set state = 'processed' where "offset" = 0"#, &[("outcome_differs", 0, 1)]);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.execute(r#"update gapless.rejected_messages set state = 'discarded' where "offset" = 3"#);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.execute(r#"update gapless.rejected_messages set state = 'replayed' where "offset" = 4"#);
    assert_eq!(found(&verify(&topic, &database, 3)), [("outcome_differs", 4, 5)]);
    database.execute("delete from gapless.stored_events");
    assert!(found(&verify(&topic, &database, 3)).contains(&("dangling_conflict", 1, 2)));
}
