//! Changes of the ledger's tables while the daemon runs: it halts before it writes a row that the proof cannot rely on.

use serde_json::Value;

use crate::support::{Database, Event, Gapless, Ledger, Topic};

#[test]
fn a_key_dropped_while_the_daemon_runs_halts_it_and_verify_names_the_doubled_events() {
    let (topic, database) = (Topic::new(2), Database::new());
    let events: Vec<Event> = (0..5000).map(|number| Event::numbered(91, number)).collect();
    topic.send_to(0, &events);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // A role with one connection: the batch with the doubled events uses the connection that has checked the tables before.
    let role = database.name();
    database.execute(&format!("create role {role} login password 'limited' connection limit 1"));
    database.grant_rights(role);
    // The check by time must not run before the doubled events are stored.
    let running = Gapless::daemon(&topic, &database)
        .database_url(&database.url_as(role, "limited"))
        .env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "3600000")
        .start();
    // The connection is open, and has checked the tables, before the key is dropped.
    topic.send_to(1, [Event::numbered(92, 0)]);
    database.wait_for_outcomes(5001);
    database.execute("alter table gapless.stored_events drop constraint stored_events_identity_key");
    topic.send_to(0, &events);
    database.wait_for_outcomes(10_001);
    // The next write uses a new connection, which checks the tables first.
    database.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()");
    topic.send_to(1, [Event::numbered(92, 1)]);
    let line = running.wait_for_event("partition_halted");
    assert_eq!(line["fields"]["halt.reason"], "schema_changed", "{line}");
    let reasons = running.wait_until_ready_is(503);
    assert!(reasons.contains("alter table gapless.stored_events add constraint"), "{reasons}");
    running.terminate().expect_code(0).expect_event("schema_differs").expect_says(&["stored_events_identity_key"]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["stored_events_identity_key"]);

    let doubled = database.count("events") - 5001;
    assert!(doubled > 0, "without its key the table accepts duplicates");
    let verdict = verify(&topic, &database, 3);
    let findings = verdict["findings"].as_array().expect("findings").clone();
    let of = |kind: &'static str| findings.iter().filter(move |finding| finding["kind"] == kind);
    let schema: Vec<&Value> = of("schema_differs").map(|finding| &finding["detail"]).collect();
    assert_eq!(schema, ["constraint stored_events_identity_key on gapless.stored_events is missing"]);
    let offsets = |finding: &Value| finding["to"].as_i64().unwrap_or(0) - finding["from"].as_i64().unwrap_or(0);
    assert_eq!(of("doubled").map(offsets).sum::<i64>(), doubled, "{verdict}");
    assert!(
        of("doubled").all(|f| f["partition"] == 0 && f["from"].as_i64() >= Some(5000)),
        "the later duplicates: {verdict}"
    );

    database.drop_role(role);

    // The documented remedy.
    database.execute(&documented_sql("Doubled rows"));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.count("events"), 5002);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.assert_accounting();
}

#[test]
fn a_running_daemon_checks_its_tables_periodically() {
    let (topic, database) = (Topic::new(1), Database::new());
    let running = Gapless::daemon(&topic, &database).env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "300").start();
    running.wait_until_ready();
    database.execute("alter table gapless.outcomes drop constraint outcomes_pkey");
    let line = running.wait_for_event("partition_halted");
    assert_eq!(line["fields"]["halt.reason"], "schema_changed", "{line}");
    database.execute("alter table gapless.outcomes add constraint outcomes_pkey primary key (position_id, \"offset\")");
    running.wait_for_event("schema_mended");
    running.terminate().expect_code(0).expect_says(&["constraint outcomes_pkey on gapless.outcomes is missing"]);
}

#[test]
fn a_daemon_continues_after_a_newer_version_has_migrated_the_ledger() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let gapless = Gapless::daemon(&topic, &database).env("GAPLESS__LOG__LEVEL", "info,gapless::ledger=debug");
    let running = gapless.env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "100").start();
    ledger.send_events(0, 5);
    database.wait_for_outcomes(5);
    // In one transaction, as in a migration.
    database.execute(
        "insert into gapless.refinery_schema_history (version, name, applied_on, checksum) values (99, 'later', '', '0');
         do $$ begin execute 'create or replace view gapless.event_conflicts as ' || replace(
             rtrim(pg_get_viewdef('gapless.event_conflicts'::regclass), ';'), 'c.event_no', 'c.event_no, 0 as later'); end $$",
    );
    running.wait_for("a newer version has migrated the ledger");
    ledger.send_events(0, 5);
    database.wait_for_outcomes(10);
    let ended = running.terminate().expect_code(0);
    assert!(!ended.has_event("partition_halted"), "{ended}");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["start a newer gapless"]);
    ledger.assert_complete(&database);
}

#[test]
fn a_table_that_is_missing_halts_a_running_daemon_at_once() {
    let (topic, database) = (Topic::new(1), Database::new());
    let running = Gapless::daemon(&topic, &database).start();
    running.wait_until_ready();
    database.execute("drop function gapless.enter; drop function gapless.advance");
    topic.send((0..3).map(|number| Event::numbered(93, number)));
    let line = running.wait_for_event("partition_halted");
    assert_eq!(line["fields"]["halt.reason"], "schema_changed", "{line}");
    let ended = running.terminate().expect_code(0);
    ended.expect_says(&["function gapless.enter(integer,integer,integer) is missing"]);
    assert_eq!(database.count("events"), 0);
}

#[test]
fn a_duplicate_event_number_is_not_mistaken_for_another_writer_and_reading_continues() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let running = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 300);
    database.wait_for_outcomes(300);
    database.execute("select setval('gapless.event_ids', 1, false)");
    for round in 1..4 {
        ledger.send_events(0, 200);
        database.wait_for_outcomes(300 + 200 * round);
    }
    running.wait_for_event("sequence_moved");
    running.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, code: i32) -> Value {
    let ended = Gapless::verb("verify", topic, database).args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// The SQL under a heading of docs/operations.md.
fn documented_sql(heading: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(path).expect("the documents");
    let section = text.split(&format!("# {heading}\n")).nth(1).expect("the heading");
    section.split("```sql\n").nth(1).and_then(|sql| sql.split("```").next()).expect("SQL under it").to_owned()
}
