//! `gapless verify --deep` compares contents: each field of each row must equal that of its message.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

fn run(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, arguments: &[&str], code: i32) -> Value {
    let verb = Gapless::verb("verify", topic, database).args(["--format", "json"]).args(arguments.iter().copied());
    let ended = verb.run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

#[track_caller]
fn verified(topic: &Topic, database: &Database) {
    assert_eq!(verify(topic, database, &["--deep"], 0)["verified"], true);
    assert_eq!(verify(topic, database, &[], 0)["verified"], true);
}

/// Range and fields of each finding, all of which must be of kind `altered`.
#[track_caller]
fn altered(verdict: &Value) -> Vec<(i64, i64, String)> {
    let findings = verdict["findings"].as_array().expect("findings");
    let one = |f: &Value| {
        assert_eq!(f["kind"], "altered", "{verdict}");
        (f["from"].as_i64().unwrap(), f["to"].as_i64().unwrap(), f["detail"].as_str().unwrap().to_owned())
    };
    findings.iter().map(one).collect()
}

/// A ledger with every kind of row: events, a conflict, removals, dead letters, messages without an event, events that
/// PostgreSQL's jsonb refuses, messages with a time that PostgreSQL cannot store.
fn everything() -> (Topic, Database) {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: Vec<Event> = (0..4).map(|_| ledger.event()).collect();
    ledger.send_new(0, &events);
    ledger.send(events[0].conflicting(), "processed");
    ledger.send(&events[1], "processed");
    ledger.send(Event { removed: true, ..events[2].clone() }, "removed");
    ledger.send(
        Record { key: Some(b"k".to_vec()), headers: vec![("h".into(), Some(vec![0xff]))], .."poison".into() },
        "rejected",
    );
    ledger.send(Record::tombstone(), "ignored");
    let raw = Event { memo: "\"\\u0000\"".to_owned(), ..ledger.event() };
    ledger.send_new(0, &[raw]);
    let back = ledger.event();
    ledger.send(Event { removed: true, ..back.clone() }, "removed");
    ledger.send(&back, "processed");
    let timed = ledger.event();
    let offsets = topic.send_records([Record::from(&timed).at(0)]);
    ledger.expect_stored(0, &offsets, &[timed]);
    run(&topic, &database);
    database.assert_accounting();
    (topic, database)
}

#[test]
fn an_untouched_ledger_with_every_kind_of_row_is_verified() {
    let (topic, database) = everything();
    verified(&topic, &database);
    // Ordinary operations keep the ledger consistent.
    let discard = ["discard", "--id", "0:7", "--reason", "a test"];
    Gapless::verb("dead-letters", &topic, &database).args(discard).run().expect_code(0);
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(0);
    verified(&topic, &database);
    topic.delete_before(0, 8);
    verified(&topic, &database);
    topic.recreate(1);
    let verdict = verify(&topic, &database, &["--deep"], 3);
    let kinds: Vec<&Value> = verdict["findings"].as_array().unwrap().iter().map(|f| &f["kind"]).collect();
    assert_eq!(kinds, ["other_topic_identity"], "{verdict}");
}

#[test]
fn real_blocks_are_verified() {
    let (topic, database) = (Topic::new(1), Database::new());
    for data in [
        include_str!("../data/ethereum-etl-logs-17173049-17173050.ndjson"),
        include_str!("../data/eventeum-examples.ndjson"),
        include_str!("../data/rindexer-examples.ndjson"),
        include_str!("../data/web3-lottery-events.ndjson"),
    ] {
        topic.send(data.lines());
    }
    Gapless::daemon(&topic, &database)
        .env("GAPLESS__FORMAT__MAX_REJECTED_SHARE", "0")
        .env("GAPLESS__FORMAT__MAX_REJECTED_RUN", "0")
        .until_end()
        .run()
        .expect_code(0);
    verified(&topic, &database);
}

/// Changes by hand, each applied alone: the change, the offset of its finding, and the field that the finding names.
const FORGERIES: &[(&str, i64, &str)] = &[
    (r#"stored_events set event_info = '{}' where "offset" = 1"#, 1, "events.event_info"),
    (r#"stored_events set event_info = (event_info::text || ' ')::json where "offset" = 1"#, 1, "events.event_info"),
    (r#"stored_events set event_raw = '\x7b7d' where "offset" = 9"#, 9, "events.event_raw"),
    (r#"stored_events set txn = '0xfake' where "offset" = 1"#, 1, "events.txn"),
    (r#"stored_events set event_type = 'Fake' where "offset" = 1"#, 1, "events.event_type"),
    (r#"stored_events set block_number = block_number + 1 where "offset" = 1"#, 1, "events.block_number"),
    (r#"stored_events set block_hash = null where "offset" = 1"#, 1, "events.block_hash"),
    (r#"stored_events set log_index = 99 where "offset" = 1"#, 1, "events.log_index"),
    (r#"stored_events set address = upper(address) where "offset" = 1"#, 1, "events.address"),
    (
        r#"stored_events set event_capture_time = event_capture_time + '1 us' where "offset" = 1"#,
        1,
        "events.event_capture_time",
    ),
    (r#"stored_events set status = 'removed' where "offset" = 1"#, 1, "events.status"),
    (r#"stored_events set status = 'unconfirmed' where "offset" = 1"#, 1, "events.status"),
    (r#"stored_events set content_digest = gen_random_uuid() where "offset" = 3"#, 3, "events.content_digest"),
    (r#"stored_events set identity = gen_random_uuid() where "offset" = 3"#, 3, "events.identity"),
    (r#"conflicting_events set event_info = '{}'"#, 4, "event_conflicts.event_info"),
    (r#"conflicting_events set status = 'removed'"#, 4, "event_conflicts.status"),
    (
        r#"conflicting_events set event_id = (select id from gapless.stored_events where "offset" = 3)"#,
        4,
        "event_conflicts.event_id",
    ),
    (
        r#"outcomes set message_time = message_time + '1 hour' where "offset" = 1"#,
        1,
        "kafka_events_received.message_time",
    ),
    (
        r#"outcomes set event_id = (select id from gapless.stored_events where "offset" = 3) where "offset" = 1"#,
        1,
        "kafka_events_received.event_id",
    ),
    (
        r#"outcomes set event_id = (select id from gapless.stored_events where "offset" = 3) where "offset" = 5"#,
        5,
        "kafka_events_received.event_id",
    ),
    (r#"outcomes set state = 'processed' where "offset" = 6"#, 6, "kafka_events_received.handling_state"),
    (
        r#"outcomes set state = 'ignored', event_id = null where "offset" = 5"#,
        5,
        "kafka_events_received.handling_state",
    ),
    (r#"rejected_messages set payload = '\x00'"#, 7, "dead_letters.payload"),
    (r#"rejected_messages set message_key = null"#, 7, "dead_letters.message_key"),
    (r#"rejected_messages set headers = '[]'"#, 7, "dead_letters.headers"),
    (r#"rejected_messages set message_time = now()"#, 7, "dead_letters.message_time"),
    (r#"rejected_messages set reason = 'truncated'"#, 7, "dead_letters.reason"),
    (r#"rejected_messages set detail = 'forged'"#, 7, "dead_letters.detail"),
];

const TABLES: [&str; 4] = ["stored_events", "conflicting_events", "outcomes", "rejected_messages"];

#[test]
fn each_field_that_was_changed_by_hand_is_named() {
    let (topic, database) = everything();
    for table in TABLES {
        database.execute(&format!("create table public.kept_{table} as table gapless.{table}"));
    }
    for (number, (change, offset, field)) in FORGERIES.iter().enumerate() {
        database.execute(&format!("update gapless.{change}"));
        // The sample contains the whole of such a small log.
        let arguments: &[&str] = if number % 2 == 0 { &["--deep"] } else { &[] };
        let verdict = verify(&topic, &database, arguments, 3);
        let findings = verdict["findings"].as_array().unwrap();
        let found = findings.iter().find(|f| f["kind"] == "altered" && f["from"] == *offset && f["to"] == offset + 1);
        let detail = found.and_then(|f| f["detail"].as_str()).unwrap_or_default();
        assert!(detail.split(", ").any(|named| named == *field), "{change}: {verdict}");
        let table = change.split(' ').next().unwrap();
        let overriding = if table == "conflicting_events" { "overriding system value" } else { "" };
        database.execute(&format!(
            "truncate gapless.{table}; insert into gapless.{table} {overriding} table public.kept_{table}"
        ));
    }
    verified(&topic, &database);
}

#[test]
fn a_deleted_conflict_is_found_and_restored() {
    let (topic, database) = everything();
    database.execute("delete from gapless.conflicting_events");
    let verdict = verify(&topic, &database, &["--deep"], 3);
    assert_eq!(
        (&verdict["findings"][0]["kind"], &verdict["findings"][0]["from"]),
        (&"conflict_missing".into(), &4.into())
    );
    replay(&topic, &database, "4-5");
    verified(&topic, &database);
}

fn replay(topic: &Topic, database: &Database, range: &str) {
    let range = format!("{}:0:{range}", topic.name);
    Gapless::verb("replay", topic, database).args(["--offsets", &range]).run().expect_code(0);
}

#[test]
fn swapped_rows_and_a_recreated_column_are_found() {
    let (topic, database) = (Topic::new(2), Database::new());
    topic.send_to(0, (0..300).map(|number| Event::numbered(51, number)));
    topic.send_to(1, (300..600).map(|number| Event::numbered(51, number)));
    run(&topic, &database);
    database.execute(
        r#"update gapless.stored_events set "offset" = 17 - "offset" where "offset" in (8, 9) and position_id = 1"#,
    );
    let verdict = verify(&topic, &database, &["--deep"], 3);
    let found = altered(&verdict);
    assert_eq!(found.iter().map(|(from, to, _)| (*from, *to)).collect::<Vec<_>>(), [(8, 10)], "{verdict}");
    for field in ["events.txn", "events.identity", "events.event_info", "kafka_events_received.event_id"] {
        assert!(found[0].2.contains(field), "{field}: {verdict}");
    }
    database.execute(
        r#"update gapless.stored_events set "offset" = 17 - "offset" where "offset" in (8, 9) and position_id = 1;
           alter table gapless.stored_events drop column address cascade;
           alter table gapless.stored_events add column address text"#,
    );
    let verb = Gapless::verb("verify", &topic, &database).args(["--deep", "--format", "json"]).run();
    assert!(verb.output.contains("events.address") || !verb.status().success(), "{verb}");
}

#[test]
fn rows_whose_messages_retention_deleted_are_compared_with_their_own_text() {
    let (topic, database) = everything();
    topic.delete_before(0, 13);
    for (change, offset, field) in [
        (r#"stored_events set event_info = '{}' where "offset" = 1"#, 1, "events.event_info"),
        (
            r#"stored_events set event_info = replace(event_info::text, '"none"', '"some"')::json where "offset" = 1"#,
            1,
            "events.event_info",
        ),
        (r#"stored_events set txn = '0xfake' where "offset" = 1"#, 1, "events.txn"),
        (r#"stored_events set address = null where "offset" = 9"#, 9, "events.address"),
        (r#"stored_events set status = 'removed' where "offset" = 1"#, 1, "events.status"),
        (r#"conflicting_events set block_number = 1"#, 4, "event_conflicts.block_number"),
        (r#"rejected_messages set payload = '\x00'"#, 7, "dead_letters.payload"),
        (r#"outcomes set payload_digest = null where "offset" = 1"#, 1, "events.event_info"),
    ] {
        let table = change.split(' ').next().unwrap();
        database.execute(&format!("create table public.kept as table gapless.{table}; update gapless.{change}"));
        let verdict = verify(&topic, &database, &["--deep"], 3);
        let found = altered(&verdict);
        assert_eq!((found[0].0, found.len()), (offset, 1), "{change}: {verdict}");
        assert!(found[0].2.contains(field), "{change}: {verdict}");
        assert!(verdict["findings"][0]["remedy"].as_str().unwrap().contains("backup"), "{verdict}");
        let overriding = if table == "conflicting_events" { "overriding system value" } else { "" };
        database.execute(&format!(
            "truncate gapless.{table}; insert into gapless.{table} {overriding} table public.kept; drop table public.kept"
        ));
    }
    verified(&topic, &database);
}

#[test]
fn the_remedy_for_altered_rows_restores_them() {
    let (topic, database) = everything();
    let contents = r#"select string_agg(md5(concat_ws('|', txn, event_type, block_number, block_hash, log_index, address,
        event_capture_time, status, event_info::text, event_raw, "offset", event_no)), ',' order by "offset", event_no) from gapless."#;
    let outcomes = r#"select string_agg(concat_ws('|', "offset", handling_state, message_time), ',' order by "offset")
                  from gapless.kafka_events_received"#;
    let all = || {
        let of = |relation: &str| database.value::<Option<String>>(&format!("{contents}{relation}"));
        (of("events"), of("event_conflicts"), database.value::<String>(outcomes))
    };
    let before = all();
    database.execute(
        r#"update gapless.stored_events set address = 'forged' where "offset" in (1, 2);
           update gapless.conflicting_events set event_info = '{}';
           update gapless.outcomes set message_time = now() where "offset" = 8;
           update gapless.rejected_messages set message_key = 'forged'"#,
    );
    let verdict = verify(&topic, &database, &["--deep"], 3);
    for finding in verdict["findings"].as_array().unwrap() {
        let remedy = finding["remedy"].as_str().unwrap();
        let (sql, verb) = remedy.split_once("in psql: ").unwrap().1.split_once("; then gapless ").unwrap();
        database.execute(sql);
        let mut words = verb.split(' ');
        Gapless::verb(words.next().unwrap(), &topic, &database).args(words).run().expect_code(0);
    }
    verified(&topic, &database);
    assert_eq!(all(), before);
}

#[test]
fn rows_written_by_an_unknown_format_are_never_reported_as_verified() {
    let (topic, database) = everything();
    database.execute(
        "update gapless.format_history set format = 'of_another_program'; update gapless.stored_events set address = 'x'",
    );
    topic.delete_before(0, 3);
    let verdict = verify(&topic, &database, &["--deep"], 3);
    let kinds: Vec<&Value> = verdict["findings"].as_array().unwrap().iter().map(|f| &f["kind"]).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == "format_unknown"), "{verdict}");
}

#[test]
fn rows_without_their_position_are_named_even_if_all_others_are_sound() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(57, number)));
    run(&topic, &database);
    database.execute("delete from gapless.format_history; delete from gapless.positions");
    // Each event exists, so each message is `processed`; no view shows an event.
    run(&topic, &database);
    assert_eq!(database.value::<i64>("select count(*) from gapless.events"), 0);
    let verdict = verify(&topic, &database, &["--deep"], 3);
    let details: Vec<&str> =
        verdict["findings"].as_array().unwrap().iter().map(|f| f["detail"].as_str().unwrap()).collect();
    assert!(details.iter().any(|d| d.starts_with("gapless.stored_events has rows of position 1")), "{verdict}");
}

#[test]
fn rows_hidden_by_row_security_are_not_reported_as_missing() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(58, number)));
    run(&topic, &database);
    let role = database.name();
    database.execute(&format!("create role {role} login password 'limited'"));
    database.grant_rights(role);
    database.execute("alter table gapless.stored_events enable row level security");
    let url = database.url_as(role, "limited");
    let verb = Gapless::verb("verify", &topic, &database).database_url(&url);
    verb.run().expect_code(1).expect_says(&["row-level security policy for table \"stored_events\""]);
    database.drop_role(role);
}

#[test]
fn each_start_records_which_format_writes_from_which_offset() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(52, number)));
    run(&topic, &database);
    run(&topic, &database);
    let history = r#"select string_agg(concat_ws(' ', position_id, from_offset, coalesce(to_offset::text, '-'), format, identity_fields,
                  program_version), ', ' order by id) from gapless.format_history"#;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        database.value::<String>(history),
        format!("1 0 - web3 txn,event_type {version}"),
        "one row, not one for each start"
    );
    // Another version wrote the rows so far.
    database.execute("update gapless.format_history set program_version = '0.0.1'");
    run(&topic, &database);
    let both = format!("1 0 - web3 txn,event_type 0.0.1, 1 5 - web3 txn,event_type {version}");
    assert_eq!(database.value::<String>(history), both);
    verified(&topic, &database);
    // The format of a new partition is recorded as well.
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    topic.grow_to(2);
    topic.send_to(1, (5..8).map(|number| Event::numbered(52, number)));
    database.wait_for_outcomes(8);
    daemon.terminate().expect_code(0);
    assert_eq!(database.value::<String>(history), format!("{both}, 2 0 - web3 txn,event_type {version}"));
    // A replay decodes again and records its version for a range that another version wrote.
    database.execute(r#"delete from gapless.outcomes where "offset" = 2 and position_id = 1"#);
    replay(&topic, &database, "2-3");
    assert!(database.value::<String>(history).ends_with(&format!(", 1 2 3 web3 txn,event_type {version}")));
    // A ledger from before the format history existed.
    database.execute("delete from gapless.format_history");
    verified(&topic, &database);
}

#[test]
fn a_deep_verify_keeps_a_bounded_part_of_the_log_in_memory() {
    let (topic, database) = (Topic::new(4), Database::new());
    for partition in 0..4 {
        topic.send_to(partition, (0..60).map(|n| Event::numbered(53, n + 60 * partition as u64).sized(700_000)));
    }
    run(&topic, &database);
    // 168 MB of messages and 168 MB of rows.
    let limit = ["prlimit", "--data=400000000"];
    let verb = Gapless::verb_through(&limit, "verify", &topic, &database).args(["--deep"]).start();
    verb.wait_within(Duration::from_secs(120)).expect_code(0);
}
