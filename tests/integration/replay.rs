//! `gapless replay` restores lost rows as they were and changes nothing else.

use crate::support::servers::RUNTIME;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

const FIELDS: &str = "GAPLESS__IDENTITY__FIELDS";

fn run(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

/// `gapless replay --offsets` of partition 0.
fn replay(topic: &Topic, database: &Database, range: &str) -> Gapless {
    Gapless::verb("replay", topic, database).args(["--offsets", &format!("{}:0:{range}", topic.name)])
}

#[test]
fn a_replay_under_another_identity_or_group_is_refused_and_doubles_nothing() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    ledger.send("no event", "rejected");
    let fields = "txn,event_type,log_index";
    Gapless::daemon(&topic, &database).env(FIELDS, fields).until_end().run().expect_code(0);
    let event = ledger.event().json();
    database.execute(&format!(
        "update gapless.rejected_messages set payload = convert_to('{event}', 'UTF8');
         delete from gapless.outcomes where \"offset\" = 1"
    ));
    let dead_letters = || Gapless::verb("replay", &topic, &database).args(["--all"]);
    let offsets = || replay(&topic, &database, "0-4");
    for verb in [&dead_letters as &dyn Fn() -> Gapless, &offsets] {
        verb().run().expect_code(3).expect_says(&["identity.fields", fields]);
        verb().env(FIELDS, fields).group("other").run().expect_code(3).expect_says(&["consumer group"]);
    }
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (3, 3));
    dead_letters().env(FIELDS, fields).run().expect_code(0);
    offsets().env(FIELDS, fields).run().expect_code(0);
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (4, 4));
}

#[test]
fn a_replayed_processed_message_does_not_take_the_identity_of_a_lost_event() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(event.conflicting(), "processed");
    ledger.send(&event, "processed");
    run(&topic, &database);
    database.execute("delete from gapless.stored_events");
    let dangling = ["0 events stored", "2 messages still refer to an event that is not there"];
    replay(&topic, &database, "1-3").run().expect_code(0).expect_says(&dangling);
    assert_eq!(database.count("events"), 0);
    replay(&topic, &database, "0-3").run().expect_code(0).expect_says(&["1 events stored, 3 references repaired"]);
    ledger.assert_complete(&database);
    assert_eq!(database.value::<String>("select block_hash from gapless.events"), event.block_hash);
    let named = "select count(*) from gapless.event_conflicts c join gapless.events e on e.id = c.event_id";
    assert_eq!((database.value::<i64>(named), database.count("event_conflicts")), (1, 1));
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn a_lost_outcome_whose_event_exists_is_restored_as_stored() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(Event { removed: true, ..event.clone() }, "removed");
    run(&topic, &database);
    let lose_outcome = || database.execute("delete from gapless.outcomes where \"offset\" = 0");
    let status = || database.value::<String>("select status from gapless.events");
    lose_outcome();
    replay(&topic, &database, "0-1").run().expect_code(0).expect_says(&["1 outcomes written, 0 events stored"]);
    ledger.assert_complete(&database);
    assert_eq!(status(), "removed", "the effect of the later message stays");
    lose_outcome();
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(status(), "removed", "the effect of the later message stays");
}

#[test]
fn a_lost_conflict_is_restored_once() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    let conflict = event.conflicting();
    ledger.send(&conflict, "processed");
    ledger.send(&conflict, "processed");
    ledger.send(Event { removed: true, ..conflict.clone() }, "removed");
    run(&topic, &database);
    let kept = r#"select string_agg(block_hash || ' ' || "offset" || ' ' || status, ',') from gapless.event_conflicts"#;
    let before = database.value::<String>(kept);
    assert_eq!(before, format!("{} 1 removed", conflict.block_hash));
    database.execute("delete from gapless.conflicting_events");
    let again = || replay(&topic, &database, "0-4").run().expect_code(0);
    again().expect_says(&["0 outcomes written", "1 conflicts"]);
    again().expect_says(&["0 outcomes written", "0 conflicts"]);
    assert_eq!(database.value::<String>(kept), before);
    ledger.assert_complete(&database);
}

#[test]
fn a_lost_event_that_was_removed_is_restored_as_removed() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send_events(0, 5);
    ledger.send(Event { removed: true, ..event.clone() }, "removed");
    run(&topic, &database);
    // Also where the removal belongs to a later transaction of the replay, split by messages or by bytes.
    let (messages, bytes) = ("GAPLESS__BATCH__MAX_MESSAGES", "GAPLESS__BATCH__MAX_BYTES");
    for (key, value) in [(messages, "5000"), (messages, "2"), (bytes, "2500")] {
        database.execute("delete from gapless.stored_events");
        let says = ["6 events stored, 7 references repaired"];
        replay(&topic, &database, "0-7").env(key, value).run().expect_code(0).expect_says(&says);
        let sql = format!("select status from gapless.events where txn = '{}'", event.txn());
        assert_eq!(database.value::<String>(&sql), "removed", "{key} = {value}");
        ledger.assert_complete(&database);
    }
}

#[test]
fn a_rejected_message_without_its_outcome_or_dead_letter_is_restored() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 2);
    ledger.send("no event", "rejected");
    ledger.send_events(0, 1);
    run(&topic, &database);
    let dead_letter =
        || database.value::<String>("select reason || ' ' || state || ' ' || attempts from gapless.dead_letters");
    let verified = || Gapless::verb("verify", &topic, &database).run().expect_code(0);
    database.execute(r#"delete from gapless.outcomes where "offset" = 2"#);
    replay(&topic, &database, "2-3").run().expect_code(0);
    assert_eq!(dead_letter(), "not_json open 2");
    ledger.assert_complete(&database);
    database.execute(r#"delete from gapless.outcomes where "offset" = 2"#);
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(0);
    assert_eq!(dead_letter(), "not_json open 3");
    database.execute("delete from gapless.rejected_messages");
    replay(&topic, &database, "0-4").run().expect_code(0).expect_says(&["0 outcomes written", "1 dead letters kept"]);
    assert_eq!(dead_letter(), "not_json open 1");
    verified();

    // The decoder accepts the message now; only the replay of its dead letter may change the outcome.
    database.execute(
        r#"delete from gapless.stored_events where "offset" = 1;
           update gapless.outcomes set state = 'rejected', event_id = null where "offset" = 1"#,
    );
    replay(&topic, &database, "0-4").run().expect_code(0).expect_says(&["0 events stored", "1 dead letters kept"]);
    let says = ["1 dead letters accepted, 1 still"];
    Gapless::verb("replay", &topic, &database).args(["--all"]).run().expect_code(3).expect_says(&says);
    assert_eq!((database.outcomes()[&(0, 1)].as_str(), database.count("events")), ("stored", 3));
    verified();
}

/// Makes dead letters that the decoder accepts now, at offsets 0 to `count`, exclusive.
fn decodable_dead_letters(topic: &Topic, database: &Database, count: u64) {
    topic.send((0..count).map(|n| format!("no event {n}")));
    run(topic, database);
    for number in 0..count {
        let payload = Event::numbered(3, number).json();
        database.execute(&format!(
            r#"update gapless.rejected_messages set payload = convert_to('{payload}', 'UTF8') where "offset" = {number}"#
        ));
    }
}

fn dead_letters(topic: &Topic, database: &Database, arguments: &[&str]) -> Gapless {
    Gapless::verb("dead-letters", topic, database).args(arguments.iter().copied())
}

#[test]
fn a_dead_letter_without_a_rejected_outcome_is_skipped_and_the_others_are_replayed() {
    let (topic, database) = (Topic::new(1), Database::new());
    decodable_dead_letters(&topic, &database, 4);
    database.execute(
        r#"delete from gapless.outcomes where "offset" = 1;
           update gapless.outcomes set state = 'ignored' where "offset" = 2"#,
    );
    let all = || Gapless::verb("replay", &topic, &database).args(["--all"]).run().expect_code(0);
    let skipped = |offset| format!("partition 0 offset {offset}: skipped");
    all().expect_says(&["2 dead letters accepted, 0 still", &skipped(1), &skipped(2)]);
    assert_eq!(database.count("events"), 2);
    replay(&topic, &database, "1-2").run().expect_code(0).expect_says(&["1 outcomes written"]);
    all().expect_says(&["1 dead letters accepted, 0 still", &skipped(2)]);
    assert_eq!(database.outcomes()[&(0, 1)], "stored");
}

#[test]
fn a_replay_of_dead_letters_uses_transactions_of_bounded_size() {
    let (messages, bytes) = ("GAPLESS__BATCH__MAX_MESSAGES", "GAPLESS__BATCH__MAX_BYTES");
    for (key, value, transactions) in [(messages, "5000", 1), (messages, "2", 3), (bytes, "2500", 3), (bytes, "1", 5)] {
        let (topic, database) = (Topic::new(1), Database::new());
        decodable_dead_letters(&topic, &database, 5);
        let says = ["5 dead letters accepted, 0 still"];
        let verb = Gapless::verb("replay", &topic, &database).args(["--all"]).env(key, value);
        verb.run().expect_code(0).expect_says(&says);
        let sql = "select count(distinct xmin::text) from gapless.rejected_messages";
        assert_eq!(database.value::<i64>(sql), transactions, "{key} = {value}");
        assert_eq!(database.count("events"), 5);
    }
}

#[test]
fn an_offset_selects_only_the_dead_letter_of_the_latest_generation() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(["no event"]);
    run(&topic, &database);
    topic.recreate(1);
    topic.send(["none either"]);
    let rebase = [topic.name.as_str(), "--reason", "operations re-created it"];
    Gapless::verb("rebase", &topic, &database).args(rebase).run().expect_code(0);
    run(&topic, &database);
    let shown = dead_letters(&topic, &database, &["show", "0:0"]).run().expect_code(0);
    assert!(shown.says("none either") && !shown.says("no event"), "{shown}");
    let discard = ["discard", "--id", "0:0", "--reason", "a test"];
    dead_letters(&topic, &database, &discard).run().expect_code(0).expect_says(&["1 dead letters discarded"]);
    let states = "select string_agg(state, ' ' order by generation) from gapless.dead_letters";
    assert_eq!(database.value::<String>(states), "open discarded");
}

#[test]
fn a_dead_letter_that_is_replayed_concurrently_is_not_discarded() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(["no event"]);
    run(&topic, &database);
    let other = database.client();
    let hold = "begin; update gapless.rejected_messages set state = 'replayed'";
    RUNTIME.block_on(other.batch_execute(hold)).unwrap();
    let discard = dead_letters(&topic, &database, &["discard", "--id", "0:0", "--reason", "a test"]).start();
    database.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        1,
    );
    RUNTIME.block_on(other.batch_execute("commit")).unwrap();
    discard.wait().expect_code(0).expect_says(&["0 dead letters discarded"]);
    assert_eq!(database.value::<String>("select state from gapless.dead_letters"), "replayed");
}
