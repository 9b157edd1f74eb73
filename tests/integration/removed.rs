//! `removed: true` sets an event's status to `removed` and deletes nothing.

use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn removed(event: &Event) -> Event {
    Event { removed: true, ..event.clone() }
}

fn run(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

fn status(database: &Database, relation: &str) -> String {
    database.value(&format!("select status::text from gapless.{relation}"))
}

#[test]
fn a_removal_sets_the_status_and_a_later_addition_sets_it_back() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    run(&topic, &database);
    assert_eq!(status(&database, "events"), "confirmed");
    ledger.send(removed(&event), "removed");
    run(&topic, &database);
    assert_eq!(status(&database, "events"), "removed");
    assert_eq!(
        database.value::<String>("select event_info::text from gapless.events"),
        event.json(),
        "nothing is deleted"
    );
    ledger.send(&event, "processed");
    run(&topic, &database);
    assert_eq!(status(&database, "events"), "confirmed");
    ledger.assert_complete(&database);
}

#[test]
fn within_one_batch_the_order_of_the_log_decides() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let (stays, goes) = (ledger.event(), ledger.event());
    let offsets = topic.send([stays.clone(), removed(&stays), stays.clone(), goes.clone(), removed(&goes)]);
    ledger.expect_stored(0, &[offsets[0], offsets[3]], &[stays.clone(), goes.clone()]);
    ledger.expect(0, [offsets[1], offsets[4]], "removed");
    ledger.expect(0, [offsets[2]], "processed");
    run(&topic, &database);
    ledger.assert_complete(&database);
    let sql = |event: &Event| format!("select status::text from gapless.events where txn = '{}'", event.txn());
    assert_eq!(database.value::<String>(&sql(&stays)), "confirmed");
    assert_eq!(database.value::<String>(&sql(&goes)), "removed");
}

#[test]
fn a_removal_before_its_event_is_kept_and_the_addition_sets_it_back() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    ledger.send(removed(&event), "removed");
    run(&topic, &database);
    database.assert_accounting();
    assert_eq!(status(&database, "events"), "removed", "kept as a removed occurrence");
    topic.send([&event]);
    run(&topic, &database);
    database.assert_accounting();
    assert_eq!(status(&database, "events"), "confirmed");
    assert_eq!(database.count("events"), 1);
}

#[test]
fn a_removal_changes_only_the_occurrence_with_its_content() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let other = event.conflicting();
    let offsets = topic.send([&event, &other]);
    ledger.expect_stored(0, &offsets[..1], std::slice::from_ref(&event));
    ledger.expect(0, [offsets[1]], "processed");
    run(&topic, &database);
    // The usual reorganisation: the event of the orphaned block is removed, that of the new block stays.
    ledger.send(removed(&event), "removed");
    run(&topic, &database);
    assert_eq!(
        (status(&database, "events"), status(&database, "event_conflicts")),
        ("removed".into(), "confirmed".into())
    );
    ledger.send(removed(&other), "removed");
    ledger.send(&event, "processed");
    run(&topic, &database);
    assert_eq!(
        (status(&database, "events"), status(&database, "event_conflicts")),
        ("confirmed".into(), "removed".into())
    );
    ledger.assert_complete(&database);
}

#[test]
fn a_removal_of_unknown_content_is_kept_beside_the_event_of_that_identity() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(removed(&event.conflicting()), "removed");
    run(&topic, &database);
    ledger.assert_complete(&database);
    assert_eq!(
        (status(&database, "events"), status(&database, "event_conflicts")),
        ("confirmed".into(), "removed".into())
    );
}

/// Offset and fields of each finding of `verify`, all of which must be of kind `altered`.
#[track_caller]
fn altered(topic: &Topic, database: &Database, arguments: &[&str], code: i32) -> Vec<(i64, String)> {
    let verb = Gapless::verb("verify", topic, database).args(["--format", "json"]).args(arguments.iter().copied());
    let ended = verb.run().expect_code(code);
    let verdict: serde_json::Value = serde_json::from_str(&ended.output).unwrap();
    let one = |f: &serde_json::Value| {
        assert_eq!(f["kind"], "altered", "{verdict}");
        (f["from"].as_i64().unwrap(), f["detail"].as_str().unwrap().to_owned())
    };
    verdict["findings"].as_array().unwrap().iter().map(one).collect()
}

/// Carries out the remedies of the findings.
fn carry_out_remedies(topic: &Topic, database: &Database) {
    let verb = Gapless::verb("verify", topic, database).args(["--format", "json"]).run().expect_code(3);
    let verdict: serde_json::Value = serde_json::from_str(&verb.output).unwrap();
    for finding in verdict["findings"].as_array().unwrap() {
        let remedy = finding["remedy"].as_str().unwrap();
        let (sql, verb) = remedy.split_once("in psql: ").unwrap().1.split_once("; then gapless ").unwrap();
        database.execute(sql);
        let mut words = verb.split(' ');
        Gapless::verb(words.next().unwrap(), topic, database).args(words).run().expect_code(0);
    }
}

#[test]
fn a_status_set_by_hand_against_the_last_effect_is_reported_as_altered() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let [gone, back, reorganised, plain] = std::array::from_fn(|_| ledger.event());
    let other = reorganised.conflicting();
    // Offsets 0..4 are additions, 4..7 removals, 7 is an addition after its removal, 8 an event of the new block, 9 a
    // removal before its addition, 10 that addition.
    ledger.send_new(0, &[gone.clone(), back.clone(), reorganised.clone(), plain]);
    for event in [&gone, &back, &reorganised] {
        ledger.send(removed(event), "removed");
    }
    ledger.send(&back, "processed");
    ledger.send(&other, "processed");
    let early = ledger.event();
    ledger.send(removed(&early), "removed");
    ledger.send(&early, "processed");
    run(&topic, &database);
    let set = |table: &str, status: &str, offset: i64| {
        database.execute(&format!(r#"update gapless.{table} set status = '{status}' where "offset" = {offset}"#));
    };
    for arguments in [["--deep"].as_slice(), &[]] {
        assert_eq!(altered(&topic, &database, arguments, 0), []);
        for (table, relation, as_it_is, by_hand, offset) in [
            ("stored_events", "events", "removed", "confirmed", 0),
            ("stored_events", "events", "confirmed", "removed", 1),
            ("stored_events", "events", "removed", "confirmed", 2),
            ("stored_events", "events", "confirmed", "removed", 3),
            ("conflicting_events", "event_conflicts", "confirmed", "removed", 8),
            ("stored_events", "events", "confirmed", "removed", 9),
        ] {
            set(table, by_hand, offset);
            assert_eq!(altered(&topic, &database, arguments, 3), [(offset, format!("{relation}.status"))]);
            set(table, as_it_is, offset);
        }
    }
    // Also for messages that Kafka no longer has.
    topic.delete_before(0, 11);
    set("stored_events", "confirmed", 0);
    assert_eq!(altered(&topic, &database, &["--deep"], 3), [(0, "events.status".to_owned())]);
}

#[test]
fn the_remedy_for_an_undone_removal_sets_the_event_to_removed_again() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    ledger.send_new(0, std::slice::from_ref(&event));
    ledger.send(removed(&event), "removed");
    run(&topic, &database);
    database.execute("update gapless.stored_events set status = 'confirmed'");
    carry_out_remedies(&topic, &database);
    assert_eq!(status(&database, "events"), "removed");
    assert_eq!(altered(&topic, &database, &["--deep"], 0), []);
    ledger.assert_complete(&database);
}

#[test]
fn a_status_that_the_order_of_processing_explains_is_not_reported_as_altered() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let [late, across] = std::array::from_fn(|_| ledger.event());
    // An addition below a removal, processed after it by an earlier start.
    topic.send([&late]);
    topic.send([removed(&late)]);
    // Messages of different partitions have no order.
    topic.send([&across]);
    topic.send_to(1, [removed(&across)]);
    let from = |order: &str| Gapless::daemon(&topic, &database).offset(order).until_end().run().expect_code(0);
    from("0:1,1:0");
    assert_eq!(altered(&topic, &database, &["--deep"], 0), []);
    from("0:0");
    assert_eq!(altered(&topic, &database, &["--deep"], 0), []);
    let of_late = format!("select status::text from gapless.events where txn = '{}'", late.txn());
    assert_eq!(database.value::<String>(&of_late), "confirmed", "the order of processing");
    for status in ["confirmed", "removed"] {
        let set = format!("update gapless.stored_events set status = '{status}' where txn = '{}'", across.txn());
        database.execute(&set);
        assert_eq!(altered(&topic, &database, &["--deep"], 0), [], "{status}");
    }
    // After a part of the range is read again, only the message processed last decides.
    database.execute(r#"delete from gapless.outcomes where position_id = 1 and "offset" = 0"#);
    let range = format!("{}:0:0-1", topic.name);
    Gapless::verb("replay", &topic, &database).args(["--offsets", &range]).run().expect_code(0);
    assert_eq!(altered(&topic, &database, &["--deep"], 0), []);
}
