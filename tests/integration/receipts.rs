//! `gapless receipt` for one message and for a transaction.

use serde_json::Value;

use crate::support::{Database, Ended, Event, Gapless, Ledger, Topic};

fn receipt(topic: &Topic, database: &Database, of: &[&str], code: i32) -> Ended {
    Gapless::verb("receipt", topic, database).args(of.iter().copied()).run().expect_code(code)
}

fn json(topic: &Topic, database: &Database, of: &[&str], code: i32) -> Value {
    let ended = receipt(topic, database, &[of, &["--format", "json"]].concat(), code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

#[test]
fn a_receipt_shows_the_outcome_of_each_offset() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let first = topic.send([&event])[0];
    ledger.expect_stored(0, &[first], std::slice::from_ref(&event));
    let again = ledger.send(event.clone(), "processed");
    let other = ledger.send(event.conflicting(), "processed");
    let poison = ledger.send("poison", "rejected");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let at = |offset: i64| {
        let found = json(&topic, &database, &[&topic.name, "0", &offset.to_string()], 0);
        assert_eq!(found.as_array().unwrap().len(), 1, "one generation");
        found[0].clone()
    };
    let found = at(first);
    assert_eq!((&found["fate"], &found["handling_state"]), (&"message".into(), &"stored".into()));
    let id = found["event_id"].clone();
    assert_eq!(found["occurrences"].as_array().unwrap().len(), 1);
    assert_eq!(found["occurrences"][0]["kind"], "event");
    assert_eq!(found["occurrences"][0]["txn"], event.txn());
    let found = at(again);
    assert_eq!((&found["handling_state"], &found["event_id"]), (&"processed".into(), &id));
    assert_eq!(found["occurrences"][0]["offset"], first, "the existing event and the message that inserted it");
    let found = at(other);
    let kinds: Vec<_> = found["occurrences"].as_array().unwrap().iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["conflict", "event"]);
    let found = at(poison);
    assert_eq!((&found["handling_state"], &found["dead_letter"]["state"]), (&"rejected".into(), &"open".into()));
    assert_eq!(at(poison + 1)["fate"], "not_written");
    receipt(&topic, &database, &[&topic.name, "0", &again.to_string()], 0).expect_says(&["processed", event.txn()]);
    receipt(&topic, &database, &[&topic.name, "7", "0"], 3).expect_says(&["partition 7", "never read"]);
    receipt(&topic, &database, &[&topic.name, "0"], 2);
}

#[test]
fn a_receipt_shows_the_proof_of_a_gap_and_reports_an_unaccounted_offset_as_missing() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..4).map(|number| Event::numbered(3, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.send((4..8).map(|number| Event::numbered(3, number)));
    Gapless::daemon(&topic, &database).offset("0:6").args(["--allow-skip"]).until_end().run().expect_code(0);
    let found = json(&topic, &database, &[&topic.name, "0", "5"], 0);
    assert_eq!((&found[0]["fate"], &found[0]["kind"]), (&"gap".into(), &"skipped".into()));
    assert!(!found[0]["proof"].as_str().unwrap().is_empty());
    database.execute(r#"delete from gapless.outcomes where "offset" = 7"#);
    let found = json(&topic, &database, &[&topic.name, "0", "7"], 3);
    assert_eq!(found[0]["fate"], "missing");
}

#[test]
fn a_receipt_of_a_transaction_names_its_events_and_their_messages() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(event.conflicting(), "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let found = json(&topic, &database, &[event.txn()], 0);
    let kinds: Vec<_> = found.as_array().unwrap().iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["event", "conflict"]);
    assert_eq!(found[0]["offset"], offsets[0]);
    receipt(&topic, &database, &["0xnever"], 3).expect_says(&["0xnever", "dead-letters"]);
    let listed = Gapless::verb("conflicts", &topic, &database).args(["list", "--format", "json"]).run().expect_code(0);
    let listed: Value = serde_json::from_str(&listed.output).unwrap();
    assert_eq!(listed[0], found[1], "the same conflict, from the list");
}
