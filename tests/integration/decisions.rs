//! Decisions of an operator: accepting a loss, a new generation of a topic, replaying or discarding a dead letter.

use serde_json::json;

use crate::support::{Database, Event, Gapless, Ledger, Topic};

#[test]
fn an_accepted_loss_is_recorded_and_a_running_daemon_continues() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(7, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.send((10..30).map(|number| Event::numbered(7, number)));
    topic.delete_before(0, 20);
    let daemon = Gapless::daemon(&topic, &database).start();
    let reasons = daemon.wait_until_ready_is(503);
    let line = daemon.wait_for_event("partition_halted").to_string();
    assert!(line.contains("[10, 20)"), "{line}");
    assert!(!reasons.is_empty());
    let decide = |from: &str, to: &str| {
        let arguments = [topic.name.as_str(), "0", from, to, "--reason", "retention was too short"];
        Gapless::verb("accept-loss", &topic, &database).args(arguments).run()
    };
    decide("5", "20").expect_code(3).expect_says(&["stands at 10"]);
    decide("10", "25").expect_code(3).expect_says(&["begins at 20", "ends at 30"]);
    // Offsets that are not written yet are not lost.
    decide("10", "1500").expect_code(3).expect_says(&["ends at 30"]);
    assert_eq!(database.gaps(0), []);
    decide("10", "20").expect_code(0);
    database.wait_for_position(0, 30);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    assert_eq!(database.gaps(0), [(10, 20, "lost".to_owned())]);
    assert_eq!(database.count("decisions"), 1);
    assert_eq!(database.count("events"), 20);
    database.assert_accounting();
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn every_verb_that_changes_data_leaves_a_permanent_row_with_its_author_and_arguments() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(7, number)));
    topic.send(["no event", "no event either"]);
    let daemon = || Gapless::daemon(&topic, &database).until_end();
    daemon().run().expect_code(0);
    topic.send((20..30).map(|number| Event::numbered(7, number)));
    daemon().offset("15").args(["--allow-skip"]).run().expect_code(0);
    topic.send((30..40).map(|number| Event::numbered(7, number)));
    topic.delete_before(0, 25);
    let verb = |name: &str, arguments: &[&str]| {
        Gapless::verb(name, &topic, &database).args(arguments.iter().copied()).run();
    };
    verb("accept-loss", &[&topic.name, "0", "22", "25", "--reason", "too late"]);
    daemon().run().expect_code(0);
    verb("dead-letters", &["discard", "--id", "0:11", "--reason", "a test"]);
    verb("replay", &["--all", "--reason", "a new decoder"]);
    database.execute(r#"delete from gapless.outcomes where "offset" in (28, 30)"#);
    let range = format!("{}:0:26-31", topic.name);
    verb("replay", &["--offsets", &range]);
    // Nothing is missing any more, so this replay changes nothing.
    verb("replay", &["--offsets", &range, "--reason", "once more"]);
    topic.recreate(1);
    verb("rebase", &[&topic.name, "--reason", "re-created"]);
    let sql = "select verb || ': ' || coalesce(reason, '-') || ', ' || rows_changed || ' rows' from gapless.decisions
               order by decided_at";
    let rows: Vec<String> = database.rows(sql, &[]).iter().map(|row| row.get(0)).collect();
    let expected = [
        "allow-skip: -, 2 rows",
        "accept-loss: too late, 2 rows",
        "dead-letters discard: a test, 1 rows",
        "replay: a new decoder, 1 rows",
        "replay: -, 2 rows",
        "rebase: re-created, 1 rows",
    ];
    assert_eq!(rows, expected);
    let arguments: serde_json::Value =
        database.value("select jsonb_agg(arguments order by decided_at) from gapless.decisions where verb <> 'rebase'");
    assert_eq!(arguments[0]["offset"], json!("15"));
    assert_eq!((&arguments[1]["from"], &arguments[1]["to"]), (&json!(22), &json!(25)));
    assert_eq!((&arguments[2]["id"], &arguments[4]["offsets"]), (&json!("0:11"), &json!(range)));
    let unsigned = "select count(*) from gapless.decisions where db_role is distinct from session_user::text
                    or coalesce(os_user, '') = '' or coalesce(program_version, '') = '' or coalesce(subject, '') = ''";
    assert_eq!(database.value::<i64>(unsigned), 0);
    for change in
        ["update gapless.decisions set reason = 'x'", "delete from gapless.decisions", "truncate gapless.decisions"]
    {
        let refused = database.try_execute(change).expect_err(change);
        assert!(refused.contains("append-only"), "{refused}");
    }
}

#[test]
fn a_recreated_topic_is_read_into_the_next_generation_only_after_a_rebase() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(8, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let rebase = || {
        let arguments = [topic.name.as_str(), "--reason", "operations re-created it"];
        Gapless::verb("rebase", &topic, &database).args(arguments).run()
    };
    rebase().expect_code(3);
    topic.recreate(1);
    // The new log is longer than the old one and begins with the same events.
    topic.send((0..30).map(|number| Event::numbered(8, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["re-created"]);
    Gapless::daemon(&topic, &database).offset("latest").until_end().run().expect_code(3);
    assert_eq!(database.count("kafka_events_received"), 10);
    rebase().expect_code(0);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let by_generation = |generation: i32, state: &str| {
        database.value::<i64>(&format!(
            "select count(*) from gapless.kafka_events_received where generation = {generation} and handling_state = '{state}'"
        ))
    };
    assert_eq!((by_generation(1, "stored"), by_generation(2, "processed"), by_generation(2, "stored")), (10, 10, 20));
    database.assert_accounting();
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn a_recreated_topic_is_detected_even_if_no_message_of_the_old_one_is_stored() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(8, number)));
    // The position has no stored message below it, so there is no message to compare.
    Gapless::daemon(&topic, &database).offset("latest").until_end().run().expect_code(0);
    topic.recreate(1);
    topic.send((0..30).map(|number| Event::numbered(9, number)));
    let ended = Gapless::daemon(&topic, &database).until_end().run();
    let read = database.count("kafka_events_received");
    assert_eq!(read, 0, "messages of the new topic, read from the old one's position on");
    ended.expect_code(3).expect_says(&["re-created"]);
    assert_eq!(database.positions()[&0], (10, 10));
}

#[test]
fn a_dead_letter_that_can_be_decoded_now_is_replayed_and_the_others_stay() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    ledger.send("no event", "rejected");
    ledger.send("{\"transactionHash\":\"0xfeed\"}", "rejected");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let listed =
        Gapless::verb("dead-letters", &topic, &database).args(["list", "--format", "json"]).run().expect_code(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.output).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(listed[1]["reason"], json!("missing_event_type"));
    Gapless::verb("dead-letters", &topic, &database)
        .args(["show", "0:3"])
        .run()
        .expect_code(0)
        .expect_says(&["no event"]);
    Gapless::verb("replay", &topic, &database).run().expect_code(2);
    // The payload gets its missing field, as if a later decoder could read it.
    database.execute(
        r#"update gapless.rejected_messages set payload = convert_to('{"transactionHash":"0xfeed","event":"Won"}', 'UTF8')
           where "offset" = 4"#,
    );
    Gapless::verb("replay", &topic, &database)
        .args(["--all"])
        .run()
        .expect_code(3)
        .expect_says(&["1 dead letters accepted, 1 still"]);
    let state = |offset: i64| {
        let sql = format!(r#"select state || ' ' || attempts from gapless.dead_letters where "offset" = {offset}"#);
        database.value::<String>(&sql)
    };
    assert_eq!((state(3).as_str(), state(4).as_str()), ("open 2", "replayed 2"));
    assert_eq!(database.outcomes()[&(0, 4)], "stored");
    assert_eq!(database.count("events"), 4);
    let discard = ["discard", "--id", "0:3", "--reason", "a test of the monitor"];
    Gapless::verb("dead-letters", &topic, &database).args(discard).run().expect_code(0);
    assert_eq!(state(3), "discarded 2");
    let verbs = database.value::<String>("select string_agg(verb, ', ' order by decided_at) from gapless.decisions");
    assert_eq!(verbs, "replay, dead-letters discard");
    // The only finding is that the dead letter was changed by hand.
    let ended = Gapless::verb("verify", &topic, &database).args(["--format", "json"]).run().expect_code(3);
    let verdict: serde_json::Value = serde_json::from_str(&ended.output).unwrap();
    let found: Vec<_> = verdict["findings"].as_array().unwrap().iter().map(|f| (&f["kind"], &f["from"])).collect();
    assert_eq!(found, [(&json!("altered"), &json!(4))], "{verdict}");
}

#[test]
fn accept_loss_does_not_rely_on_the_log_of_a_recreated_topic() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..10).map(|number| Event::numbered(11, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.recreate(1);
    topic.send((0..30).map(|number| Event::numbered(12, number)));
    topic.delete_before(0, 20);
    let arguments = [topic.name.as_str(), "0", "10", "20", "--reason", "it looks like retention"];
    let ended = Gapless::verb("accept-loss", &topic, &database).args(arguments).run().expect_code(3);
    assert!(ended.says("not the log whose offsets"), "{ended}");
    assert_eq!((database.positions()[&0], database.count("decisions")), ((0, 10), 0));
}
