//! `removed: true` takes an event back and deletes nothing.

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
        "nothing deleted"
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
fn a_removal_that_comes_first_is_kept_and_the_addition_sets_it_back() {
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
fn a_removal_takes_back_the_occurrence_of_its_content_and_no_other() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let other = event.conflicting();
    let offsets = topic.send([&event, &other]);
    ledger.expect_stored(0, &offsets[..1], std::slice::from_ref(&event));
    ledger.expect(0, [offsets[1]], "processed");
    run(&topic, &database);
    // The usual reorganisation: the event of the orphaned block is taken back, that of the new block stays.
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
fn a_removal_of_content_never_seen_is_kept_beside_the_event_of_that_identity() {
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
