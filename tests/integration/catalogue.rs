//! The proof checks its own ground: into a ledger whose tables, keys, indexes, views or functions are not what this
//! version needs nothing is written, each difference is named with SQL that mends it, and what users added is listed.

use std::collections::BTreeMap;
use std::process::Command;

use gapless::config::{Config, Needs};
use gapless::store::{CatalogueFindings, Sequences, Store};
use serde_json::Value;

use crate::support::servers::RUNTIME;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/catalogue/expected.jsonl");

#[test]
fn the_expected_catalogue_is_the_one_that_the_migrations_make() {
    let database = Database::new();
    let store = store(&database);
    let made = RUNTIME.block_on(async {
        store.migrate(gapless::store::Asked::ByStart).await.expect("migrated");
        store.catalogue_file().await.expect("read")
    });
    if std::env::var_os("GAPLESS_WRITE_CATALOGUE").is_some() {
        std::fs::write(EXPECTED, &made).expect("written");
    }
    let expected = std::fs::read_to_string(EXPECTED).expect("the expected catalogue");
    let only = |of: &str, other: &str| of.lines().find(|line| !other.lines().any(|o| o == *line)).map(str::to_owned);
    assert!(
        made == expected,
        "src/store/catalogue/expected.jsonl is not what the migrations make: run `make catalogue` and commit the file.\n\
         made and not expected: {:?}\nexpected and not made: {:?}",
        only(&made, &expected),
        only(&expected, &made)
    );
}

/// A ledger that is there, and the way the program itself looks at it.
struct Looked {
    database: Database,
    store: Store,
}

impl Looked {
    fn new() -> Self {
        let database = Database::new();
        let store = store(&database);
        RUNTIME.block_on(store.migrate(gapless::store::Asked::ByStart)).expect("migrated");
        Self { database, store }
    }

    fn look(&self) -> CatalogueFindings {
        RUNTIME.block_on(self.store.look_at_catalogue(Sequences::Name)).expect("the catalogue")
    }

    /// After this damage a difference of each of these objects is found; the SQL of all that are found mends them.
    #[track_caller]
    fn is_mended_after(&self, damage: &str, objects: &[impl AsRef<str>]) -> Vec<String> {
        self.database.execute(damage);
        let found = self.look().differences;
        for object in objects.iter().map(AsRef::as_ref) {
            assert!(found.iter().any(|d| d.object == object), "{object} after {damage}: {found:?}");
        }
        self.database.execute(&found.iter().map(|d| d.remedy.as_str()).collect::<Vec<_>>().join("\n;\n"));
        assert_eq!(self.look().differences, [], "after the remedies of {found:?}");
        found.into_iter().map(|difference| difference.difference).collect()
    }
}

/// Kind, table and name of each object that the migrations make.
fn expected_objects() -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(EXPECTED).expect("the expected catalogue");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let field = |line: &Value, name: &str| line[name].as_str().expect("a text").to_owned();
    lines.map(|line| (field(&line, "kind"), field(&line, "table"), field(&line, "name"))).collect()
}

#[test]
fn each_object_that_is_dropped_is_named_and_its_sql_brings_it_back() {
    let looked = Looked::new();
    assert_eq!(looked.look().differences, []);
    // Those of one kind that belong to one table are dropped together.
    let mut together: BTreeMap<(String, String), Vec<(String, String)>> = BTreeMap::new();
    for (kind, table, name) in expected_objects() {
        let (damage, object) = match kind.as_str() {
            // Its rows, which say what was migrated, cannot be mended.
            "column" if table == "gapless.refinery_schema_history" => continue,
            "column" => (format!("alter table {table} drop column {name} cascade"), format!("column {table}.{name}")),
            "constraint" => {
                let damage = format!("alter table {table} drop constraint if exists {name} cascade");
                (damage, format!("constraint {name} on {table}"))
            }
            "trigger" => (format!("drop trigger {name} on {table}"), format!("trigger {name} on {table}")),
            "index" => (format!("drop index {name}"), format!("index {name} on {table}")),
            // It goes with the column that it numbers.
            "sequence" if name != "gapless.event_ids" => continue,
            "type" | "sequence" | "table" | "function" | "view" => {
                (format!("drop {kind} {name} cascade"), format!("{kind} {name}"))
            }
            kind => panic!("how is a {kind} dropped?"),
        };
        let group = if table.is_empty() { name } else { table };
        together.entry((kind, group)).or_default().push((damage, object));
    }
    assert!(together.len() > 50, "{} kinds and tables", together.len());
    for dropped in together.into_values() {
        let (damage, objects): (Vec<String>, Vec<String>) = dropped.into_iter().unzip();
        looked.is_mended_after(&damage.join("; "), &objects);
    }
}

/// Damage, the object that it changes, and what the look says of it.
const CHANGES: &[(&str, &str, &str)] = &[
        (
            "alter table gapless.log_ends alter column log_end type integer",
            "column gapless.log_ends.log_end",
            "has type integer, needed is bigint",
        ),
        (
            "drop view gapless.event_conflicts; alter table gapless.conflicting_events alter column log_index type bigint;
             create view gapless.event_conflicts as select id, log_index from gapless.conflicting_events",
            "column gapless.conflicting_events.log_index",
            "has type bigint, needed is integer",
        ),
        (
            "alter table gapless.outcomes drop column payload_digest cascade, add column payload_digest text",
            "column gapless.outcomes.payload_digest",
            "has type text, needed is uuid",
        ),
        (
            "alter table gapless.outcomes alter column state drop not null",
            "column gapless.outcomes.state",
            "may be null",
        ),
        (
            "alter table gapless.outcomes alter column update_time drop default",
            "column gapless.outcomes.update_time",
            "has no default, needed is now()",
        ),
        (
            "alter table gapless.gaps alter column id drop identity",
            "column gapless.gaps.id",
            "has no identity, needed is always",
        ),
        ("alter table gapless.outcomes set unlogged", "table gapless.outcomes", "is unlogged, needed is permanent"),
        (
            "alter type gapless.handling_state rename value 'stored' to 'kept'",
            "type gapless.handling_state",
            "has labels kept, processed, rejected, ignored, removed, needed is stored, processed, rejected, ignored, removed",
        ),
        (
            "alter table gapless.stored_events drop constraint stored_events_identity_key,
                 add constraint stored_events_identity_key unique (identity) deferrable",
            "constraint stored_events_identity_key on gapless.stored_events",
            "has definition UNIQUE (identity) DEFERRABLE, needed is UNIQUE (identity)",
        ),
        (
            "alter table gapless.stored_events drop constraint stored_events_check,
                 add constraint stored_events_check check ((event_info is null) <> (event_raw is null)) not valid",
            "constraint stored_events_check on gapless.stored_events",
            "is not validated",
        ),
        (
            "alter table gapless.sources disable trigger all",
            "constraint positions_source_id_fkey on gapless.positions",
            "is not enforced: its triggers are disabled",
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'gapless.outcomes_pkey'::regclass",
            "constraint outcomes_pkey on gapless.outcomes",
            "is invalid",
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'gapless.gaps_position'::regclass",
            "index gapless.gaps_position on gapless.gaps",
            "is invalid",
        ),
        (
            "drop index gapless.gaps_position; create index gaps_position on gapless.gaps (position_id)",
            "index gapless.gaps_position on gapless.gaps",
            "has definition CREATE INDEX gaps_position ON gapless.gaps USING btree (position_id), needed is \
             CREATE INDEX gaps_position ON gapless.gaps USING btree (position_id, to_offset)",
        ),
        ("alter sequence gapless.event_ids increment by 1", "sequence gapless.event_ids", "has definition as bigint increment by 1"),
        (
            "create or replace view gapless.unhandled_offsets as select s.topic, s.generation, p.partition_id, o.\"offset\",
                 'rejected' as why from gapless.outcomes o join gapless.positions p on p.id = o.position_id
                 join gapless.sources s on s.id = p.source_id where o.state = 'ignored'",
            "view gapless.unhandled_offsets",
            "is not the one that this version made",
        ),
        (
            "drop view gapless.events; create view gapless.events as select id, txn from gapless.stored_events",
            "view gapless.events",
            "is not the one that this version made",
        ),
        (
            "create or replace function gapless.advance(moves gapless.position_move[], tenure int8, out moved int8)
                 language plpgsql as $$ begin moved := cardinality(moves); end $$",
            "function gapless.advance(gapless.position_move[],bigint)",
            "is not the one that this version made",
        ),
        (
            "alter table gapless.decisions disable trigger decisions_append_only",
            "trigger decisions_append_only on gapless.decisions",
            "is disabled",
        ),
];

#[test]
fn each_object_that_was_changed_is_named_with_what_changed_and_its_sql_mends_it() {
    let looked = Looked::new();
    for (damage, object, difference) in CHANGES {
        let found = looked.is_mended_after(damage, &[object]);
        assert!(found.iter().any(|d| d.starts_with(difference)), "{difference} of {damage}: {found:?}");
    }
}

#[test]
fn a_restore_without_its_post_data_section_is_named_key_by_key_and_mended() {
    let (topic, restored) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let database = Database::new();
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let dump = Command::new("pg_dump")
        .args(["--section=pre-data", "--section=data", &database.url])
        .output()
        .expect("pg_dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    restored.psql(&String::from_utf8_lossy(&dump.stdout));
    let ended = Gapless::daemon(&topic, &restored).until_end().run().expect_code(3);
    ended.expect_says(&["outcomes_pkey", "stored_events_identity_key", "gaps_position", "positions_source_id_fkey"]);
    let looked = Looked { store: store(&restored), database: restored };
    let found = looked.is_mended_after("", &["constraint outcomes_pkey on gapless.outcomes"]);
    assert!(found.len() >= 20 && found.iter().all(|difference| difference == "is missing"), "{found:?}");
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &looked.database).until_end().run().expect_code(0);
    ledger.assert_complete(&looked.database);
}

#[test]
fn into_a_ledger_without_a_key_nothing_is_written_and_no_verb_calls_it_sound() {
    let (topic, database) = (Topic::new(1), Database::new());
    let events: Vec<Event> = (0..5000).map(|number| Event::numbered(90, number)).collect();
    topic.send(&events);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.execute("alter table gapless.stored_events drop constraint stored_events_identity_key");
    topic.send(&events);
    let name = "constraint stored_events_identity_key on gapless.stored_events is missing";
    let sql = "alter table gapless.stored_events add constraint stored_events_identity_key UNIQUE (identity)";
    for _ in 0..2 {
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&[name, sql]);
    }
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (5000, 5000));
    for verb in [
        &["migrate"][..],
        &["check"],
        &["verify"],
        &["replay", "--all"],
        &["accept-loss", &topic.name, "0", "0", "1", "--reason", "a test"],
        &["rebase", &topic.name, "--reason", "a test"],
        &["dead-letters", "discard", "--id", "0:1", "--reason", "a test"],
    ] {
        // (What Kafka shows refuses some of them before anything else.)
        let ended = Gapless::verb(verb[0], &topic, &database).args(verb[1..].iter().copied()).run().expect_code(3);
        assert!(ended.says(name) && ended.says(sql) || ["accept-loss", "rebase"].contains(&verb[0]), "{ended}");
    }
    database.execute(sql);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (5000, 10_000));
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn a_key_that_is_dropped_while_the_daemon_runs_halts_it_and_verify_names_the_doubles() {
    let (topic, database) = (Topic::new(2), Database::new());
    let events: Vec<Event> = (0..5000).map(|number| Event::numbered(91, number)).collect();
    topic.send_to(0, &events);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // Not before the doubles are there.
    let running = Gapless::daemon(&topic, &database)
        .env("GAPLESS__DATABASE__WRITERS", "1")
        .env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "3600000")
        .start();
    // Its one connection is there, and has looked, before the key is dropped.
    topic.send_to(1, [Event::numbered(92, 0)]);
    database.wait_for_outcomes(5001);
    database.execute("alter table gapless.stored_events drop constraint stored_events_identity_key");
    topic.send_to(0, &events);
    database.wait_for_outcomes(10_001);
    // What is written next goes by new connections, each of which looks first.
    database.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()");
    topic.send_to(1, [Event::numbered(92, 1)]);
    let line = running.wait_for("partition halted");
    assert_eq!(line["fields"]["halt.reason"], "schema_changed", "{line}");
    let reasons = running.wait_until_ready_is(503);
    assert!(reasons.contains("alter table gapless.stored_events add constraint"), "{reasons}");
    running.terminate().expect_code(0).expect_says(&["schema_differs", "stored_events_identity_key"]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["stored_events_identity_key"]);

    let doubled = database.count("events") - 5001;
    assert!(doubled > 0, "without its key the table takes them twice");
    let verdict = verify(&topic, &database, 3);
    let findings = verdict["findings"].as_array().expect("findings").clone();
    let of = |kind: &'static str| findings.iter().filter(move |finding| finding["kind"] == kind);
    let schema: Vec<&Value> = of("schema_differs").map(|finding| &finding["detail"]).collect();
    assert_eq!(schema, ["constraint stored_events_identity_key on gapless.stored_events is missing"]);
    let offsets = |finding: &Value| finding["to"].as_i64().unwrap_or(0) - finding["from"].as_i64().unwrap_or(0);
    assert_eq!(of("doubled").map(offsets).sum::<i64>(), doubled, "{verdict}");
    assert!(
        of("doubled").all(|f| f["partition"] == 0 && f["from"].as_i64() >= Some(5000)),
        "the later copies: {verdict}"
    );

    // The remedy that the documents give.
    database.execute(&documented_sql("Doubled rows"));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.count("events"), 5002);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.assert_accounting();
}

#[test]
fn a_running_daemon_looks_at_its_tables_now_and_then() {
    let (topic, database) = (Topic::new(1), Database::new());
    let running = Gapless::daemon(&topic, &database).env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "300").start();
    running.wait_until_ready();
    database.execute("alter table gapless.outcomes drop constraint outcomes_pkey");
    running.wait_for("schema_changed");
    database.execute("alter table gapless.outcomes add constraint outcomes_pkey primary key (position_id, \"offset\")");
    running.wait_for("schema_mended");
    running.terminate().expect_code(0).expect_says(&["constraint outcomes_pkey on gapless.outcomes is missing"]);
}

#[test]
fn a_daemon_goes_on_beside_a_newer_version_that_has_migrated_the_ledger() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let gapless = Gapless::daemon(&topic, &database).env("GAPLESS__LOG__LEVEL", "info,gapless::store=debug");
    let running = gapless.env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "100").start();
    ledger.send_events(0, 5);
    database.wait_for_outcomes(5);
    // In one step, as a migration is.
    database.execute(
        "insert into gapless.refinery_schema_history (version, name, applied_on, checksum) values (99, 'later', '', '0');
         do $$ begin execute 'create or replace view gapless.event_conflicts as ' || replace(
             rtrim(pg_get_viewdef('gapless.event_conflicts'::regclass), ';'), 'c.event_no', 'c.event_no, 0 as later'); end $$",
    );
    running.wait_for("a newer version has migrated the ledger");
    ledger.send_events(0, 5);
    database.wait_for_outcomes(10);
    let ended = running.terminate().expect_code(0);
    assert!(!ended.says("schema_changed"), "{ended}");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["start a newer gapless"]);
    ledger.assert_complete(&database);
}

#[test]
fn a_ledger_without_its_migration_history_is_refused_and_says_what_to_restore() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    for damage in ["delete from gapless.refinery_schema_history", "drop table gapless.refinery_schema_history"] {
        database.execute(damage);
        for verb in ["migrate", "status"] {
            let ended = Gapless::verb(verb, &topic, &database).run().expect_code(3);
            assert!(ended.says("refinery_schema_history is missing or empty"), "{ended}");
        }
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    }
}

#[test]
fn a_table_that_is_missing_halts_a_running_daemon_at_once() {
    let (topic, database) = (Topic::new(1), Database::new());
    let running = Gapless::daemon(&topic, &database).start();
    running.wait_until_ready();
    database.execute("drop function gapless.enter; drop function gapless.advance");
    topic.send((0..3).map(|number| Event::numbered(93, number)));
    running.wait_for("schema_changed");
    let ended = running.terminate().expect_code(0);
    ended.expect_says(&["function gapless.enter(integer,integer,integer) is missing"]);
    assert_eq!(database.count("events"), 0);
}

#[test]
fn an_object_whose_name_is_taken_by_another_is_named_and_its_sql_brings_it_back() {
    let key = "alter table gapless.stored_events drop constraint stored_events_identity_key;";
    let events = "drop view gapless.events;";
    let of_key = "constraint stored_events_identity_key on gapless.stored_events";
    for (damage, object) in [
        (format!("{key} create unique index stored_events_identity_key on gapless.stored_events (identity)"), of_key),
        (format!("{key} create index stored_events_identity_key on gapless.stored_events (identity)"), of_key),
        (format!("{key} create unique index stored_events_identity_key on gapless.outcomes (event_id)"), of_key),
        (
            "drop index gapless.stored_events_position; create index stored_events_position on gapless.outcomes (state)"
                .to_owned(),
            "index gapless.stored_events_position on gapless.stored_events",
        ),
        (format!("{events} create materialized view gapless.events as select 1 as id"), "view gapless.events"),
        (format!("{events} create table gapless.events (id bigint)"), "view gapless.events"),
        (
            "alter table gapless.log_ends rename to mine; create view gapless.log_ends as select * from gapless.mine"
                .to_owned(),
            "table gapless.log_ends",
        ),
        (
            "drop function gapless.advance;
             create function gapless.advance(gapless.position_move[], bigint) returns void language sql as ''"
                .to_owned(),
            "function gapless.advance(gapless.position_move[],bigint)",
        ),
    ] {
        Looked::new().is_mended_after(&damage, &[object]);
    }
}

#[test]
fn a_sequence_that_was_set_to_begin_ahead_of_its_table_is_no_difference() {
    let looked = Looked::new();
    looked.database.execute(
        "insert into gapless.sources (topic) select n::text from generate_series(1, 9) n;
         alter table gapless.sources alter id restart with 10",
    );
    assert_eq!(looked.look().differences, []);
    looked.database.execute("alter table gapless.sources alter id restart with 9");
    let found = looked.look().differences;
    assert_eq!(
        found[0].to_string(),
        "sequence gapless.sources_id_seq gives 9 next, and gapless.sources.id goes up to 9"
    );
}

#[test]
fn a_sequence_that_is_behind_is_moved_forward_or_named_with_its_setval() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 300);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let behind = "select setval('gapless.event_ids', 1, false), setval('gapless.positions_id_seq', 1, false)";
    database.execute(behind);
    let setval = "select setval('gapless.positions_id_seq', 1)";
    Gapless::verb("check", &topic, &database).run().expect_code(3).expect_says(&[setval]);
    verify(&topic, &database, 3);
    // As the documents grant: USAGE, not UPDATE.
    let role = database.name();
    database.execute(&format!("create role {role} login password 'limited'"));
    database.grant_rights(role);
    let url = database.url_as(role, "limited");
    Gapless::daemon(&topic, &database).database_url(&url).until_end().run().expect_code(3).expect_says(&[setval]);
    ledger.send_events(0, 300);
    topic.grow_to(2);
    ledger.send_events(1, 300);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0).expect_says(&["sequence_moved"]);
    ledger.assert_complete(&database);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.drop_role(role);
}

#[test]
fn a_number_that_is_taken_is_told_apart_from_another_writer_and_the_stream_goes_on() {
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
    running.wait_for("sequence_moved");
    running.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn what_users_added_is_listed_and_no_difference() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let role = database.name();
    database.execute(&format!(
        "create role {role};
         create index by_block on gapless.stored_events (block_number);
         create function public.note() returns trigger language plpgsql as $$ begin return new; end $$;
         create trigger noted before insert on gapless.outcomes for each row execute function public.note();
         create rule quiet as on delete to gapless.gaps do instead nothing;
         alter table gapless.gaps enable row level security;
         create policy everything on gapless.gaps using (true);
         alter table gapless.stored_events add column note text;
         alter type gapless.gap_kind add value 'mine';
         create view gapless.mine as select 1 as one;
         alter table gapless.outcomes set (fillfactor = 90);
         grant select on gapless.events to {role}"
    ));
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let grant = format!("grant to {role}: select on 1 relations");
    Gapless::verb("check", &topic, &database).run().expect_code(0).expect_says(&[
        "index gapless.by_block on gapless.stored_events",
        "trigger noted on gapless.outcomes executes public.note()",
        "rule quiet on gapless.gaps",
        "policy everything on gapless.gaps",
        "column gapless.stored_events.note",
        "label mine of type gapless.gap_kind",
        "view gapless.mine",
        &grant,
    ]);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    ledger.assert_complete(&database);
    database.execute("drop policy everything on gapless.gaps");
    database.drop_role(role);
}

#[test]
fn a_trigger_that_fails_halts_with_its_name_whatever_its_error_would_mean_of_a_row() {
    for (body, error) in [
        // Not qualified: gapless runs with an empty search_path.
        ("insert into audit values (new.txn);", "42P01"),
        ("insert into public.audit values (new.txn);", "22001"),
        ("raise unique_violation;", "23505"),
        ("insert into public.denied values (new.txn);", "23514"),
    ] {
        let (topic, database) = (Topic::new(1), Database::new());
        let mut ledger = Ledger::of(&topic);
        ledger.send_events(0, 5);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        database.execute(
            "create table public.audit (txn varchar(3)); create table public.denied (txn text check (txn is null))",
        );
        database.before_each_event(body);
        for count in [60, 300] {
            let events: Vec<Event> = (0..count).map(|_| ledger.event()).collect();
            topic.send(&events);
            let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
            let says = [error, "trigger before_each_event on gapless.stored_events", "public.before_each_event"];
            ended.expect_says(&says).expect_says(&["search_path"]);
        }
        assert_eq!((database.count("dead_letters"), database.count("events")), (0, 5), "{body}");
        database.execute("drop function public.before_each_event cascade");
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        assert_eq!(database.count("events"), 365, "{body}");
        database.assert_accounting();
    }
}

#[test]
fn what_swallows_rows_is_named() {
    for (added, name) in [
        (
            "create function public.swallow() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger swallowed before insert on gapless.outcomes for each row execute function public.swallow()",
            "trigger swallowed on gapless.outcomes",
        ),
        (
            "create rule nothing as on update to gapless.positions do instead nothing",
            "rule nothing on gapless.positions",
        ),
    ] {
        let (topic, database) = (Topic::new(1), Database::new());
        Gapless::verb("migrate", &topic, &database).run().expect_code(0);
        topic.send((0..3).map(|number| Event::numbered(94, number)));
        database.execute(added);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&[name]);
        assert_eq!(database.count("events"), 0);
    }
}

#[test]
fn a_users_own_unique_key_is_named_and_no_event_is_taken_for_another_writers() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.execute("create unique index one_a_block on gapless.stored_events (block_number)");
    let event = |number| Event { block_number: 7, ..Event::numbered(95, number) };
    topic.send((0..100).map(event));
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    ended.expect_says(&["one_a_block", "gapless did not make"]);
    assert_eq!((database.count("events"), database.count("dead_letters")), (0, 0));
}

#[test]
fn an_older_schema_is_called_one_with_both_versions_and_the_way_on() {
    let (topic, database) = (Topic::new(1), Database::new());
    let absent = Gapless::verb("status", &topic, &database).run().expect_code(1);
    assert!(absent.says("there is no ledger in this database yet"), "{absent}");
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let history = "gapless.refinery_schema_history";
    database.execute(&format!("delete from {history} where version > 2"));
    for verb in ["status", "verify"] {
        let ended = Gapless::verb(verb, &topic, &database).run().expect_code(3);
        assert!(ended.says("schema is at version 2") && ended.says("gapless migrate"), "{ended}");
        assert!(!ended.says("no ledger"), "{ended}");
    }
}

fn store(database: &Database) -> Store {
    let url = ("database.url", database.url.clone());
    let config = Config::load(None, &vec![url], Needs::Database).expect("a configuration");
    Store::new(&config.database).expect("a store")
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, code: i32) -> Value {
    let ended = Gapless::verb("verify", topic, database).args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// The SQL under a heading of docs/operations.md, as an operator would run it.
fn documented_sql(heading: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(path).expect("the documents");
    let section = text.split(&format!("# {heading}\n")).nth(1).expect("the heading");
    section.split("```sql\n").nth(1).and_then(|sql| sql.split("```").next()).expect("SQL under it").to_owned()
}
