//! A message may hold several events: each is stored once, the outcome says which of them the message inserted, and
//! `gapless verify` finds and names each one that is lost or too many.

use serde_json::Value;

use crate::support::ledger::list;
use crate::support::remedy::call;
use crate::support::{Database, Ended, Event, Gapless, Ledger, Record, Topic};

fn daemon(topic: &Topic, database: &Database) -> Gapless {
    Gapless::daemon(topic, database).lists().until_end()
}

fn read(topic: &Topic, database: &Database) -> Ended {
    daemon(topic, database).run().expect_code(0)
}

fn new_events<const N: usize>(ledger: &mut Ledger<'_>) -> [Event; N] {
    std::array::from_fn(|_| ledger.event())
}

fn removed(event: &Event) -> Event {
    Event { removed: true, ..event.clone() }
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, arguments: &[&str], code: i32) -> Value {
    let verb = Gapless::verb("verify", topic, database).lists().args(["--format", "json"]);
    let ended = verb.args(arguments.iter().copied()).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// Kind, first offset and detail of each finding.
fn found(verdict: &Value) -> Vec<(String, i64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = verdict["findings"].as_array().expect("findings").iter();
    findings.map(|f| (text(&f["kind"]), f["from"].as_i64().unwrap_or(-1), text(&f["detail"]))).collect()
}

#[track_caller]
fn verified(topic: &Topic, database: &Database) {
    for arguments in [[].as_slice(), &["--deep"]] {
        assert_eq!(verify(topic, database, arguments, 0)["verified"], true);
    }
    database.assert_accounting();
}

/// Carries out the remedies of all findings: statements in psql, then the commands of gapless.
fn follow_remedies(verdict: &Value, topic: &Topic, database: &Database) {
    for finding in verdict["findings"].as_array().expect("findings") {
        let remedy = finding["remedy"].as_str().expect("a remedy");
        for part in remedy.split("; ") {
            let part = part.strip_prefix("then ").unwrap_or(part);
            let sql = part.strip_prefix("in psql: ").unwrap_or(part);
            if sql.starts_with("delete from ") {
                database.execute(sql);
            } else if part.starts_with("gapless ") {
                call(part, topic, database).lists().run().expect_code(0);
            }
        }
    }
}

/// The column `inserted` of the outcomes, by offset; empty where it is null.
fn inserted(database: &Database) -> Vec<String> {
    let rows = database.rows(r#"select coalesce(inserted::text, '') from gapless.outcomes order by "offset""#, &[]);
    rows.iter().map(|row| row.get(0)).collect()
}

/// Message and number of each event, in the order of the log.
fn places(database: &Database) -> Vec<(i64, i32)> {
    let rows = database.rows(r#"select "offset", event_no from gapless.events order by 1, 2"#, &[]);
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Messages of every kind, with several events each. Returns the values that the column `inserted` must have.
fn send_every_kind(ledger: &mut Ledger<'_>) -> Vec<&'static str> {
    let all: [Event; 8] = new_events(ledger);
    ledger.expect_events(&all);
    let [a, b, c, d, e, f, g, h] = all;
    let of = |events: &[&Event]| Record::from(list(&events.iter().map(|event| (*event).clone()).collect::<Vec<_>>()));
    ledger.send_all(&[
        (of(&[&a, &b, &c]), "stored"),
        (of(&[&a, &d]), "stored"),
        (of(&[&e, &b]), "stored"),
        (of(&[&a, &b]), "processed"),
        (of(&[&removed(&c), &f]), "stored"),
        (of(&[&removed(&g), &removed(&d)]), "removed"),
        (of(&[&removed(&d), &removed(&e)]), "removed"),
        ("[]".into(), "ignored"),
        ((&h).into(), "stored"),
    ]);
    vec!["{[0,3)}", "{[1,2)}", "", "", "{[1,2)}", "{[0,1)}", "{}", "", ""]
}

#[test]
fn an_outcome_says_which_events_its_message_inserted_with_every_write_strategy() {
    for messages_a_batch in [1, 4, 500] {
        let (topic, database) = (Topic::new(1), Database::new());
        let mut ledger = Ledger::of(&topic);
        let expected = send_every_kind(&mut ledger);
        // A large batch is copied.
        let lists: Vec<[Event; 3]> = (0..100).map(|_| new_events(&mut ledger)).collect();
        ledger.send_lists(&lists);
        daemon(&topic, &database).batches_of(messages_a_batch).run().expect_code(0);
        ledger.assert_complete(&database);
        let inserted = inserted(&database);
        assert_eq!(inserted[..expected.len()], expected, "{messages_a_batch} messages a batch");
        assert!(inserted[expected.len()..].iter().all(|events| events == "{[0,3)}"));
        let statuses = "select count(*) from gapless.events where status = 'removed'";
        assert_eq!(database.value::<i64>(statuses), 4, "c, d, e and g were removed");
        verified(&topic, &database);
        // The same messages again, from the start: no event is inserted twice.
        daemon(&topic, &database).offset("earliest").run().expect_code(0);
        ledger.assert_complete(&database);
        verified(&topic, &database);
    }
}

#[test]
fn the_outcome_of_a_message_with_one_event_needs_no_list_of_events() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 300);
    let again = ledger.event();
    ledger.send_new(0, std::slice::from_ref(&again));
    ledger.send(&again, "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.value::<i64>("select count(*) from gapless.outcomes where inserted is not null"), 0);
}

#[test]
fn every_lost_event_of_a_message_is_found_named_and_brought_back() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    send_every_kind(&mut ledger);
    let events: [Event; 6] = new_events(&mut ledger);
    let offset = ledger.send_lists(&[events])[0];
    read(&topic, &database);
    let before = places(&database);
    for (condition, expected) in [
        ("event_no = 1", "event 1"),
        ("event_no = 0", "event 0"),
        ("event_no in (1, 3, 4)", "events 1, 3 to 4"),
        ("true", "events 0 to 5"),
    ] {
        for arguments in [[].as_slice(), &["--deep"]] {
            database
                .execute(&format!(r#"delete from gapless.stored_events where "offset" = {offset} and {condition}"#));
            let verdict = verify(&topic, &database, arguments, 3);
            let missing: Vec<_> = found(&verdict).into_iter().filter(|(kind, ..)| kind == "event_missing").collect();
            assert_eq!(missing, [("event_missing".to_owned(), offset, expected.to_owned())], "{verdict}");
            follow_remedies(&verdict, &topic, &database);
            assert_eq!(places(&database), before, "{condition}: each event at its place");
            verified(&topic, &database);
        }
    }
    ledger.assert_complete(&database);
}

#[test]
fn an_event_that_other_messages_repeat_is_missed_at_the_message_that_had_inserted_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let [a, b] = new_events(&mut ledger);
    let again = (Record::from(list(&[a.clone(), b.clone()])), "processed");
    ledger.send_lists(&[[a, b]]);
    ledger.send_all(&[again.clone(), again]);
    read(&topic, &database);
    database.execute("delete from gapless.stored_events where event_no = 1");
    let verdict = verify(&topic, &database, &["--deep"], 3);
    assert_eq!(found(&verdict), [("event_missing".to_owned(), 0, "event 1".to_owned())]);
    follow_remedies(&verdict, &topic, &database);
    assert_eq!(places(&database), [(0, 0), (0, 1)]);
    verified(&topic, &database);
}

#[test]
fn a_lost_event_that_was_inserted_as_a_removal_is_found_and_brought_back() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    send_every_kind(&mut ledger);
    read(&topic, &database);
    database.execute(r#"delete from gapless.stored_events where "offset" = 5"#);
    let verdict = verify(&topic, &database, &[], 3);
    assert!(found(&verdict).contains(&("event_missing".to_owned(), 5, "event 0".to_owned())), "{verdict}");
    follow_remedies(&verdict, &topic, &database);
    verified(&topic, &database);
    ledger.assert_complete(&database);
}

#[test]
fn a_surplus_and_a_doubled_event_of_a_message_are_found_and_named() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: [Event; 3] = new_events(&mut ledger);
    ledger.send_lists(&[events]);
    let events: [Event; 3] = new_events(&mut ledger);
    ledger.send_lists(&[events]);
    read(&topic, &database);
    let columns = database.value::<String>(
        "select string_agg(quote_ident(attname), ', ') from pg_attribute
         where attrelid = 'gapless.stored_events'::regclass and attnum > 0 and attname not in ('id', 'identity', 'event_no')",
    );
    for (number, name) in [(7, "event 7"), (1, "event 1")] {
        database.execute(&format!(
            "insert into gapless.stored_events (id, identity, event_no, {columns})
             select -id, gen_random_uuid(), {number}, {columns} from gapless.stored_events
             where \"offset\" = 1 and event_no = 2"
        ));
        let verdict = verify(&topic, &database, &[], 3);
        assert!(found(&verdict).contains(&("outcome_differs".to_owned(), 1, name.to_owned())), "{verdict}");
        let verdict = verify(&topic, &database, &["--deep"], 3);
        let surplus = verdict["findings"].as_array().unwrap().iter().find(|f| f["kind"] == "outcome_differs").unwrap();
        follow_remedies(&serde_json::json!({ "findings": [surplus] }), &topic, &database);
        verified(&topic, &database);
        ledger.assert_complete(&database);
    }
}

#[test]
fn an_event_under_another_number_and_an_altered_list_of_events_are_found_by_comparing_contents() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: [Event; 3] = new_events(&mut ledger);
    ledger.send_lists(&[events]);
    read(&topic, &database);
    database.execute("update gapless.stored_events set event_no = 5 where event_no = 1");
    let verdict = verify(&topic, &database, &["--deep"], 3);
    assert_eq!(found(&verdict), [("altered".to_owned(), 0, "events.event_no".to_owned())]);
    database.execute("update gapless.stored_events set event_no = 1 where event_no = 5");
    verified(&topic, &database);
    // An event is lost, and its outcome does not say any more that there was one.
    database.execute(
        "delete from gapless.stored_events where event_no = 1;
         update gapless.outcomes set inserted = '{[0,1), [2,3)}'",
    );
    let verdict = verify(&topic, &database, &["--deep"], 3);
    assert_eq!(found(&verdict), [("altered".to_owned(), 0, "outcomes.inserted".to_owned())]);
    follow_remedies(&verdict, &topic, &database);
    verified(&topic, &database);
    ledger.assert_complete(&database);
    assert_eq!(inserted(&database), ["{[0,3)}"]);
}

#[test]
fn a_lost_outcome_comes_back_with_the_events_that_its_message_inserted() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    send_every_kind(&mut ledger);
    read(&topic, &database);
    let (before, places_before) = (inserted(&database), places(&database));
    database.execute(
        r#"delete from gapless.outcomes where "offset" <= 5;
           delete from gapless.stored_events where "offset" = 0 and event_no = 1"#,
    );
    let verdict = verify(&topic, &database, &[], 3);
    follow_remedies(&verdict, &topic, &database);
    assert_eq!((inserted(&database), places(&database)), (before, places_before));
    ledger.assert_complete(&database);
    verified(&topic, &database);
}

#[test]
fn one_bad_event_rejects_its_whole_message_and_the_detail_names_the_event() {
    let (topic, database) = (Topic::new(1), Database::new());
    daemon(&topic, &database).run().expect_code(0);
    database.refuse_events("txn like '%-bad'");
    let mut ledger = Ledger::of(&topic);
    let [a, b, c] = new_events(&mut ledger);
    let bad = Event { txn: Some(format!("{}-bad", b.txn())), ..b.clone() };
    let nameless = Event { txn: None, ..b };
    ledger.send(list(&[a.clone(), nameless]), "rejected");
    ledger.send(list(&[a.clone(), c.clone(), bad.clone()]), "rejected");
    ledger.send(&bad, "rejected");
    ledger.send(format!("[{},17]", a.json()), "rejected");
    ledger.send_lists(&[[c]]);
    read(&topic, &database);
    ledger.assert_complete(&database);
    let letters = database.rows(r#"select reason, detail from gapless.dead_letters order by "offset""#, &[]);
    let letters: Vec<(String, String)> = letters.iter().map(|row| (row.get(0), row.get(1))).collect();
    for ((reason, detail), (wanted, place)) in letters.iter().zip([
        ("missing_transaction", "event 1: "),
        ("refused_by_postgres", "event 2: "),
        ("refused_by_postgres", ""),
        ("not_an_event", "event 1: "),
    ]) {
        assert_eq!(reason, wanted, "{detail}");
        assert!(detail.starts_with(place) && (!place.is_empty() || !detail.starts_with("event ")), "{detail}");
    }
    // PostgreSQL takes the event now: a replay stores the whole message.
    database.execute("alter table gapless.stored_events drop constraint refused_by_a_test");
    Gapless::verb("replay", &topic, &database)
        .lists()
        .args(["--rejected-for", "refused_by_postgres"])
        .run()
        .expect_code(0);
    assert_eq!(inserted(&database), ["", "{[0,1),[2,3)}", "", "", ""]);
    assert_eq!(verify(&topic, &database, &["--deep"], 0)["verified"], true);
}

#[test]
fn a_conflict_and_a_repetition_within_one_message_are_handled_as_between_messages() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let [a, b] = new_events(&mut ledger);
    ledger.send(list(&[a.clone(), a.conflicting(), a.clone(), b.clone()]), "stored");
    ledger.send(list(&[b.conflicting(), a.conflicting()]), "processed");
    ledger.expect_events(&[a.clone(), b]);
    read(&topic, &database);
    ledger.assert_complete(&database);
    assert_eq!(inserted(&database), ["{[0,1),[3,4)}", ""]);
    let conflicts = database.rows(r#"select "offset", event_no from gapless.event_conflicts order by 1, 2"#, &[]);
    let conflicts: Vec<(i64, i32)> = conflicts.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(conflicts, [(0, 1), (1, 0)], "each content of an identity once");
    verified(&topic, &database);
    // A lost conflict of a message with several events is found and comes back.
    database.execute(r#"delete from gapless.conflicting_events where "offset" = 0"#);
    let verdict = verify(&topic, &database, &["--deep"], 3);
    follow_remedies(&verdict, &topic, &database);
    assert_eq!(database.count("event_conflicts"), 2);
    verified(&topic, &database);
}

#[test]
fn a_removal_beside_a_new_event_in_one_message_takes_effect() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let [a, b, c] = new_events(&mut ledger);
    ledger.send_lists(&[[a.clone(), b.clone()]]);
    // A reorganisation in one message: the old block's event goes, the new block's comes.
    ledger.send(list(&[removed(&a), c.clone()]), "stored");
    ledger.send(list(&[removed(&b), b.clone()]), "removed");
    ledger.send(list(&[removed(&c), a.clone()]), "removed");
    ledger.expect_events(&[c]);
    read(&topic, &database);
    ledger.assert_complete(&database);
    let statuses = database.rows(r#"select status from gapless.events order by "offset", event_no"#, &[]);
    let statuses: Vec<String> = statuses.iter().map(|row| row.get(0)).collect();
    assert_eq!(statuses, ["confirmed", "confirmed", "removed"]);
    verified(&topic, &database);
}

/// Stores lists in batches of up to `rows` rows, with a fault at the failpoint, and then the rest.
fn survives(rows: u32, failpoint: &str) {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let mut messages = Vec::new();
    for _ in 0..40 {
        let events: [Event; 7] = new_events(&mut ledger);
        messages.push((list(&events).into(), "stored"));
        messages.push((list(&[events[3].clone(), events[6].clone()]).into(), "processed"));
        messages.push((list(&[events[0].conflicting(), removed(&events[1])]).into(), "removed"));
        ledger.expect_events(&events);
    }
    ledger.send_all(&messages);
    let ended = daemon(&topic, &database).batches_of(rows).failpoint(failpoint).run();
    if failpoint.contains("kill") {
        ended.expect_killed();
        database.assert_accounting();
        read(&topic, &database);
    } else {
        ended.expect_code(0);
    }
    ledger.assert_complete(&database);
    verified(&topic, &database);
}

#[test]
fn a_kill_in_the_middle_of_a_batch_in_parts_loses_and_doubles_no_event() {
    for failpoint in ["tx_open=kill@2", "events_written=kill@2", "before_commit=kill@2", "after_commit=kill@2"] {
        survives(5, failpoint);
    }
}

#[test]
fn a_kill_in_the_middle_of_a_batch_with_several_events_a_message_loses_and_doubles_no_event() {
    for failpoint in ["source_record=kill@15", "events_written=kill@2", "before_cas=kill@2", "after_commit=kill@2"] {
        survives(100, failpoint);
    }
}

#[test]
fn a_lost_connection_in_the_middle_of_a_batch_loses_and_doubles_no_event() {
    for failpoint in ["events_written=error@2", "before_commit=error@2", "after_commit=error@2"] {
        survives(5, failpoint);
        survives(100, failpoint);
    }
}

#[test]
fn a_message_that_kafka_no_longer_has_is_compared_with_the_texts_of_its_events() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    send_every_kind(&mut ledger);
    read(&topic, &database);
    topic.delete_before(0, 7);
    verified(&topic, &database);
    database.execute("update gapless.stored_events set block_number = 1 where \"offset\" = 0 and event_no = 2");
    let verdict = verify(&topic, &database, &["--deep"], 3);
    assert_eq!(found(&verdict), [("altered".to_owned(), 0, "events.block_number".to_owned())]);
}

#[test]
fn few_messages_of_many_events_are_copied_and_no_transaction_exceeds_the_limit() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let small = |ledger: &mut Ledger<'_>| Event { data: "0x".into(), ..ledger.event() };
    let lists: Vec<Vec<Event>> = (0..10).map(|_| (0..500).map(|_| small(&mut ledger)).collect()).collect();
    ledger.send_lists(&lists);
    let running = Gapless::daemon(&topic, &database).lists().batches_of(1200).start();
    database.wait_for_outcomes(ledger.len());
    running.wait_for_metric("gapless_lag", &[], 0.0);
    let metric = |path: &str| running.metric("gapless_batches_total", &[&format!("path=\"{path}\"")]);
    assert!(metric("copy") >= 1.0 && metric("single_statement") == 0.0 && metric("merge") == 0.0);
    assert_eq!(running.metric("gapless_events_stored_total", &[]), 5000.0);
    running.terminate().expect_code(0);
    ledger.assert_complete(&database);
    verified(&topic, &database);
    // `xmin` is the transaction that wrote a row.
    let largest = "select max(n) from (select count(*) as n from gapless.stored_events group by xmin) x";
    assert_eq!(database.value::<i64>(largest), 1000, "two messages of 500 events fit into a batch of 1200 rows");
}

#[test]
fn a_message_with_more_events_than_a_batch_may_have_is_a_batch_of_its_own() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let lists: Vec<Vec<Event>> =
        [1, 120, 3, 250, 1].iter().map(|count| (0..*count).map(|_| ledger.event()).collect()).collect();
    ledger.send_lists(&lists);
    let transactions = topic.transactions();
    transactions.abort([Record::from("aborted")]);
    let other: Vec<Event> = (0..30).map(|_| ledger.event()).collect();
    let offsets = topic.send_to(1, [Record::from(list(&other)).to(1)]);
    ledger.expect(1, offsets, "stored");
    ledger.expect_events(&other);
    daemon(&topic, &database).batches_of(100).run().expect_code(0);
    ledger.assert_complete(&database);
    verified(&topic, &database);
}
