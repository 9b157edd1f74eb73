//! Changes by hand that are consistent within one row: `gapless verify` finds them by comparing related rows, and its
//! remedies repair them.

use serde_json::Value;

use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn run(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, code: i32) -> Value {
    let ended = Gapless::verb("verify", topic, database).args(["--deep", "--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// The only finding: its kind and range.
#[track_caller]
fn only_finding(verdict: &Value) -> (&str, i64, i64) {
    let findings = verdict["findings"].as_array().expect("findings");
    assert_eq!(findings.len(), 1, "{verdict}");
    let number = |name: &str| findings[0][name].as_i64().unwrap_or(-1);
    (findings[0]["kind"].as_str().expect("a kind"), number("from"), number("to"))
}

/// Carries out the remedy of the only finding and asserts that nothing is found afterwards.
#[track_caller]
fn is_repaired_by_its_remedy(topic: &Topic, database: &Database, verdict: &Value) {
    let remedy = verdict["findings"][0]["remedy"].as_str().expect("a remedy");
    let verb = match remedy.split_once("in psql: ") {
        Some((_, rest)) => {
            let (sql, verb) = rest.split_once("; then gapless ").expect("SQL, then a verb");
            database.execute(sql);
            verb
        }
        None => remedy.strip_prefix("gapless ").expect("a verb"),
    };
    let mut words = verb.split(' ');
    Gapless::verb(words.next().expect("a verb"), topic, database).args(words).run().expect_code(0);
    assert_eq!(verify(topic, database, 0)["verified"], true);
}

fn some_events() -> (Topic, Database) {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: Vec<Event> = (0..6).map(|_| ledger.event()).collect();
    ledger.send_new(0, &events);
    ledger.send(events[0].conflicting(), "processed");
    ledger.send("no event", "rejected");
    run(&topic, &database);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    (topic, database)
}

/// A removal of other content is read before the event itself. The order of the effects differs from that of the
/// offsets, so that only the messages show which occurrence each of them refers to.
#[test]
fn a_forged_status_that_no_other_message_explains_is_found() {
    let (topic, database) = (Topic::new(1), Database::new());
    let event = Event::numbered(61, 0);
    topic.send([event.clone(), Event { removed: true, ..event.conflicting() }]);
    Gapless::daemon(&topic, &database).offset("1").until_end().run().expect_code(0);
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(0);
    let statuses = "select string_agg(concat_ws(' ', \"offset\", status), ', ') from ";
    assert_eq!(database.value::<String>(&format!("{statuses} gapless.events")), "1 removed");
    assert_eq!(database.value::<String>(&format!("{statuses} gapless.event_conflicts")), "0 confirmed");
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    for (table, status, original, offset) in
        [("stored_events", "confirmed", "removed", 1), ("conflicting_events", "removed", "confirmed", 0)]
    {
        database.execute(&format!("update gapless.{table} set status = '{status}'"));
        assert_eq!(only_finding(&verify(&topic, &database, 3)), ("altered", offset, offset + 1), "{table}");
        database.execute(&format!("update gapless.{table} set status = '{original}'"));
    }
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
}

#[test]
fn rows_below_a_start_offset_that_was_raised_are_found() {
    let (topic, database) = some_events();
    database.execute("update gapless.positions set start_offset = 3");
    let verdict = verify(&topic, &database, 3);
    assert_eq!(only_finding(&verdict), ("below_start", 0, 3));
    is_repaired_by_its_remedy(&topic, &database, &verdict);
    assert_eq!(database.value::<i64>("select start_offset from gapless.consumer_positions"), 0);
}

#[test]
fn a_forged_loss_of_messages_that_kafka_has_is_found_and_the_messages_are_restored() {
    let (topic, database) = some_events();
    database.execute(
        r#"delete from gapless.stored_events where "offset" in (3, 4);
           delete from gapless.outcomes where "offset" in (3, 4);
           insert into gapless.gaps (position_id, from_offset, to_offset, kind, ranges, proof)
           values (1, 3, 5, 'lost', '{[3,5)}', 'forged')"#,
    );
    let verdict = verify(&topic, &database, 3);
    assert_eq!(only_finding(&verdict), ("not_recorded", 3, 5));
    is_repaired_by_its_remedy(&topic, &database, &verdict);
    assert_eq!((database.count("events"), database.count("offset_gaps")), (6, 0));
}

#[test]
fn forged_identity_fields_are_refused_and_reset() {
    let (topic, database) = some_events();
    database.execute("update gapless.ledger set identity_fields = 'txn,event_type,log_index'");
    let sql = "update gapless.ledger set identity_fields = 'txn,event_type'";
    for fields in ["txn,event_type", "txn,event_type,log_index"] {
        let daemon = Gapless::daemon(&topic, &database).env("GAPLESS__IDENTITY__FIELDS", fields);
        daemon.until_end().run().expect_code(3).expect_says(&[sql]);
    }
    let verdict = verify(&topic, &database, 3);
    assert_eq!(only_finding(&verdict), ("ledger_row", -1, -1));
    is_repaired_by_its_remedy(&topic, &database, &verdict);
    run(&topic, &database);
}

#[test]
fn messages_written_under_other_identity_fields_than_the_ledgers_are_found_and_restored() {
    let (topic, database) = some_events();
    let fields = "txn,event_type,log_index";
    database.execute(&format!(
        "update gapless.ledger set identity_fields = '{fields}'; update gapless.format_history set identity_fields = '{fields}'"
    ));
    let more: Vec<Event> = (10..13).map(|number| Event::numbered(62, number)).collect();
    topic.send(&more);
    Gapless::daemon(&topic, &database).env("GAPLESS__IDENTITY__FIELDS", fields).until_end().run().expect_code(0);
    database.execute(
        "update gapless.ledger set identity_fields = 'txn,event_type';
         update gapless.format_history set from_offset = 8;
         insert into gapless.format_history (position_id, from_offset, to_offset, format, identity_fields, program_version)
         select position_id, 0, 8, format, 'txn,event_type', program_version from gapless.format_history",
    );
    let verdict = verify(&topic, &database, 3);
    assert_eq!(only_finding(&verdict), ("other_identity", 8, 11));
    is_repaired_by_its_remedy(&topic, &database, &verdict);
    assert_eq!(database.count("events"), 9);
}

#[test]
fn every_verb_reports_a_missing_ledger_row_with_the_sql_that_restores_it() {
    let (topic, database) = some_events();
    database.execute("delete from gapless.ledger");
    let says = ["gapless.ledger has lost its only row", "insert into gapless.ledger (consumer_group, identity_fields)"];
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&says);
    for verb in [&["check"][..], &["plan"], &["replay", "--all"], &["verify"]] {
        let ended = Gapless::verb(verb[0], &topic, &database).args(verb[1..].iter().copied()).run();
        ended.expect_code(3).expect_says(&says);
    }
    let verdict = verify(&topic, &database, 3);
    assert_eq!(only_finding(&verdict), ("ledger_row", -1, -1));
    is_repaired_by_its_remedy(&topic, &database, &verdict);
    run(&topic, &database);
}
