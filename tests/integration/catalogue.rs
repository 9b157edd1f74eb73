//! The catalogue check: gapless writes nothing into a ledger whose tables, keys, indexes, views or functions differ
//! from those that this version needs, and names each difference with SQL that repairs it.

use std::collections::BTreeMap;
use std::process::Command;

use gapless::config::{Config, Needs};
use gapless::ledger::catalogue::Findings as CatalogueFindings;
use gapless::ledger::connect::LedgerStore;
use serde_json::Value;

use crate::support::servers::RUNTIME;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ledger/catalogue/expected.jsonl");

#[test]
fn the_expected_catalogue_is_the_result_of_the_migrations() {
    let database = Database::new();
    let store = store(&database);
    let made = RUNTIME.block_on(async {
        store.migrate(gapless::ledger::start::schema::MigrationRequest::ByStart).await.expect("migrated");
        store.catalogue_file().await.expect("read")
    });
    if std::env::var_os("GAPLESS_WRITE_CATALOGUE").is_some() {
        std::fs::write(EXPECTED, &made).expect("written");
    }
    let expected = std::fs::read_to_string(EXPECTED).expect("the expected catalogue");
    let only = |of: &str, other: &str| of.lines().find(|line| !other.lines().any(|o| o == *line)).map(str::to_owned);
    assert!(
        made == expected,
        "src/ledger/catalogue/expected.jsonl differs from the result of the migrations: run `make catalogue` and commit the file.\n\
         made and not expected: {:?}\nexpected and not made: {:?}",
        only(&made, &expected),
        only(&expected, &made)
    );
}

/// A migrated ledger and the program's own access to it.
struct CheckedLedger {
    database: Database,
    store: LedgerStore,
}

impl CheckedLedger {
    fn new() -> Self {
        let database = Database::new();
        let store = store(&database);
        RUNTIME.block_on(store.migrate(gapless::ledger::start::schema::MigrationRequest::ByStart)).expect("migrated");
        Self { database, store }
    }

    fn check(&self) -> CatalogueFindings {
        RUNTIME.block_on(self.store.check_catalogue()).expect("the catalogue")
    }

    /// Asserts that the check finds a difference of each of these objects after this damage, and that the SQL of the
    /// findings repairs them. Returns the texts of the differences.
    #[track_caller]
    fn is_repaired_after(&self, damage: &str, objects: &[impl AsRef<str>]) -> Vec<String> {
        self.database.execute(damage);
        let found = self.check().differences;
        for object in objects.iter().map(AsRef::as_ref) {
            assert!(found.iter().any(|d| d.object == object), "{object} after {damage}: {found:?}");
        }
        self.database.execute(&found.iter().map(|d| d.remedy.as_str()).collect::<Vec<_>>().join("\n;\n"));
        assert_eq!(self.check().differences, [], "after the remedies of {found:?}");
        found.into_iter().map(|difference| difference.difference).collect()
    }
}

/// Kind, table and name of each object that the migrations create.
fn expected_objects() -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(EXPECTED).expect("the expected catalogue");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let field = |line: &Value, name: &str| line[name].as_str().expect("a text").to_owned();
    lines.map(|line| (field(&line, "kind"), field(&line, "table"), field(&line, "name"))).collect()
}

#[test]
fn each_dropped_object_is_named_with_the_sql_that_restores_it() {
    let ledger = CheckedLedger::new();
    assert_eq!(ledger.check().differences, []);
    // The objects of one kind and table are dropped together.
    let mut together: BTreeMap<(String, String), Vec<(String, String)>> = BTreeMap::new();
    for (kind, table, name) in expected_objects() {
        let (damage, object) = match kind.as_str() {
            // The rows of the migration history cannot be restored by SQL of gapless.
            "column" if table == "gapless.refinery_schema_history" => continue,
            "column" => (format!("alter table {table} drop column {name} cascade"), format!("column {table}.{name}")),
            "constraint" => {
                let damage = format!("alter table {table} drop constraint if exists {name} cascade");
                (damage, format!("constraint {name} on {table}"))
            }
            "trigger" => (format!("drop trigger {name} on {table}"), format!("trigger {name} on {table}")),
            "index" => (format!("drop index {name}"), format!("index {name} on {table}")),
            // The sequence is dropped with its column.
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
        ledger.is_repaired_after(&damage.join("; "), &objects);
    }
}

/// Damage, the object that it changes, and the difference that the check reports.
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
            r"do $do$ begin execute regexp_replace(
                 pg_get_functiondef('gapless.write_few(gapless.new_event[],gapless.new_outcome[],gapless.position_move[],bigint,integer,integer)'::regprocedure),
                 $$if (current_setting\('transaction_isolation'\).* = 'on') and$$, $$if (\1) and$$); end $do$",
            "function gapless.write_few(gapless.new_event[],gapless.new_outcome[],gapless.position_move[],bigint,integer,integer)",
            "is not the one that this version made",
        ),
        (
            "alter table gapless.decisions disable trigger decisions_append_only",
            "trigger decisions_append_only on gapless.decisions",
            "is disabled",
        ),
];

#[test]
fn each_changed_object_is_named_with_its_change_and_the_sql_that_repairs_it() {
    let ledger = CheckedLedger::new();
    for (damage, object, difference) in CHANGES {
        let found = ledger.is_repaired_after(damage, &[object]);
        assert!(found.iter().any(|d| d.starts_with(difference)), "{difference} of {damage}: {found:?}");
    }
}

#[test]
fn a_table_replaced_by_a_partitioned_one_is_named_with_all_its_dependents_in_one_check() {
    let ledger = CheckedLedger::new();
    let replace = |table: &str, key: &str| {
        format!(
            "alter table gapless.{table} rename to {table}_was;
             create table gapless.{table} (like gapless.{table}_was including defaults) partition by range ({key});
             create table gapless.{table}_all partition of gapless.{table} default;"
        )
    };
    let views = [
        "drop view gapless.events; create view gapless.events as select * from gapless.stored_events",
        // Views follow a renamed table, so they are created again with the new one.
        "do $$ declare v regclass; begin
             for v in select c.oid::regclass from pg_class c where c.relkind = 'v' and c.relnamespace = 'gapless'::regnamespace loop
                 execute format('create or replace view %s as %s', v, replace(pg_get_viewdef(v), 'positions_was', 'positions'));
             end loop;
         end $$",
        "alter table gapless.positions add primary key (id);
         alter table gapless.format_history drop constraint format_history_position_id_fkey,
             add constraint format_history_position_id_fkey foreign key (position_id) references gapless.positions (id)",
    ];
    let damage = [replace("stored_events", r#""offset""#), replace("positions", "id"), views.join(";")].concat();
    let objects = [
        "table gapless.stored_events",
        "constraint stored_events_identity_key on gapless.stored_events",
        "view gapless.events",
        "table gapless.positions",
        "constraint positions_pkey on gapless.positions",
        "constraint format_history_position_id_fkey on gapless.format_history",
        "view gapless.consumer_positions",
    ];
    let found = ledger.is_repaired_after(&damage, &objects);
    assert!(found.iter().any(|difference| difference == "is partitioned, needed is a table"), "{found:?}");
}

#[test]
fn a_setting_that_turns_triggers_and_foreign_keys_off_is_named_with_the_sql_that_resets_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..3).map(|number| Event::numbered(97, number)));
    let name = database.name();
    let in_database = format!("alter role gapless in database {name} reset session_replication_role");
    for (set, reset) in [
        (
            format!("alter database {name} set session_replication_role = replica"),
            format!("alter database {name} reset session_replication_role"),
        ),
        (
            in_database.replace("reset session_replication_role", "set session_replication_role = 'replica'"),
            in_database,
        ),
    ] {
        database.execute(&set);
        let says = ["setting session_replication_role is replica", &reset];
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&says);
        Gapless::verb("check", &topic, &database).run().expect_code(3).expect_says(&says);
        database.execute(&reset);
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(database.count("events"), 3);
}

#[test]
fn each_key_missing_after_a_restore_without_post_data_is_named_and_repaired() {
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
    let checked = CheckedLedger { store: store(&restored), database: restored };
    let found = checked.is_repaired_after("", &["constraint outcomes_pkey on gapless.outcomes"]);
    assert!(found.len() >= 20 && found.iter().all(|difference| difference == "is missing"), "{found:?}");
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &checked.database).until_end().run().expect_code(0);
    ledger.assert_complete(&checked.database);
}

#[test]
fn a_ledger_without_a_key_is_not_written_to_and_no_verb_reports_it_as_sound() {
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
        // Some verbs are refused earlier, because of the state of the log.
        let ended = Gapless::verb(verb[0], &topic, &database).args(verb[1..].iter().copied()).run().expect_code(3);
        assert!(ended.says(name) && ended.says(sql) || ["accept-loss", "rebase"].contains(&verb[0]), "{ended}");
    }
    database.execute(sql);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (5000, 10_000));
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn a_ledger_without_its_migration_history_is_refused_and_the_refusal_names_the_table_to_restore() {
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
fn an_object_whose_name_is_taken_by_another_is_named_with_the_sql_that_restores_it() {
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
        CheckedLedger::new().is_repaired_after(&damage, &[object]);
    }
}

#[test]
fn a_sequence_ahead_of_its_table_is_no_difference() {
    let ledger = CheckedLedger::new();
    ledger.database.execute(
        "insert into gapless.sources (topic) select n::text from generate_series(1, 9) n;
         alter table gapless.sources alter id restart with 10",
    );
    assert_eq!(ledger.check().differences, []);
    ledger.database.execute("alter table gapless.sources alter id restart with 9");
    let found = ledger.check().differences;
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
    // The documented rights on sequences are USAGE, not UPDATE.
    let role = database.name();
    database.execute(&format!("create role {role} login password 'limited'"));
    database.grant_rights(role);
    let url = database.url_as(role, "limited");
    Gapless::daemon(&topic, &database).database_url(&url).until_end().run().expect_code(3).expect_says(&[setval]);
    ledger.send_events(0, 300);
    topic.grow_to(2);
    ledger.send_events(1, 300);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0).expect_event("sequence_moved");
    ledger.assert_complete(&database);
    assert_eq!(verify(&topic, &database, 0)["verified"], true);
    database.drop_role(role);
}

#[test]
fn an_older_schema_is_reported_with_both_versions_and_the_remedy() {
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

fn store(database: &Database) -> LedgerStore {
    let url = ("database.url", database.url.clone());
    let config = Config::load(None, &vec![url], Needs::Database).expect("a configuration");
    LedgerStore::new(&config.database).expect("a store")
}

#[track_caller]
fn verify(topic: &Topic, database: &Database, code: i32) -> Value {
    let ended = Gapless::verb("verify", topic, database).args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}
