//! The roles of docs/deployment.md, created by the SQL of that document.

use crate::support::wait::unique;
use crate::support::{Database, Gapless, Ledger, Topic};

/// The blocks of SQL under a heading of the document.
fn documented(heading: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deployment.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).expect("the section");
    let blocks: Vec<String> =
        section.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect();
    assert!(!blocks.is_empty(), "no SQL under {heading}");
    blocks
}

/// The documented roles under unique names, since roles belong to the server, which the tests share.
struct Roles {
    database: Database,
    suffix: String,
}

impl Roles {
    fn new() -> Self {
        Self { database: Database::new(), suffix: unique("").to_lowercase() }
    }

    fn run(&self, sql: &str) {
        self.database.execute(
            &sql.replace("gapless_owner", &self.name("owner"))
                .replace("gapless_writer", &self.name("writer"))
                .replace("gapless_reader", &self.name("reader")),
        );
    }

    fn name(&self, which: &str) -> String {
        format!("gapless_{which}{}", self.suffix)
    }

    fn url(&self, which: &str) -> String {
        let password = match which {
            "owner" => "change%20me",
            "writer" => "change%20me%20too",
            _ => "and%20change%20me",
        };
        self.database.url_as(&self.name(which), password)
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for which in ["owner", "writer", "reader"] {
                self.database.drop_role(&self.name(which));
            }
        }
    }
}

const RELATIONS: [&str; 9] = [
    "events",
    "kafka_events_received",
    "event_conflicts",
    "dead_letters",
    "consumer_positions",
    "offset_gaps",
    "unhandled_offsets",
    "late_changes",
    "partition_states",
];

/// Asserts that the writer reads the topic to its end and cannot change the schema, and that the reader can read every
/// relation and write none.
fn assert_roles_are_enough(roles: &Roles, topic: &Topic, ledger: &Ledger<'_>) {
    let database = &roles.database;
    let as_writer = |gapless: Gapless| gapless.database_url(&roles.url("writer"));
    as_writer(Gapless::verb("check", topic, database)).run().expect_code(0);
    as_writer(Gapless::daemon(topic, database)).until_end().run().expect_code(0);
    ledger.assert_complete(database);
    as_writer(Gapless::verb("verify", topic, database)).args(["--deep"]).run().expect_code(0);
    as_writer(Gapless::verb("status", topic, database)).run().expect_code(0);
    as_writer(Gapless::verb("dead-letters", topic, database))
        .args(["discard", "--id", "0:3", "--reason", "a test"])
        .run()
        .expect_code(0);
    let writer = database.signed_in_as(&roles.url("writer"));
    for forbidden in ["drop table gapless.outcomes", "drop schema gapless cascade", "truncate gapless.stored_events"] {
        let error = writer.try_execute(forbidden).expect_err("refused");
        assert!(error.contains("must be owner") || error.contains("permission denied"), "{forbidden}: {error}");
    }
    let reader = database.signed_in_as(&roles.url("reader"));
    for relation in RELATIONS {
        reader.count(relation);
    }
    assert_eq!(reader.count("events"), 3);
    let error = reader.try_execute("delete from gapless.stored_events").expect_err("refused");
    assert!(error.contains("permission denied"), "{error}");
}

#[test]
fn the_documented_roles_migrate_write_and_read_and_no_more() {
    let (topic, roles) = (Topic::new(1), Roles::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    ledger.send("poison", "rejected");
    roles.run(&documented("PostgreSQL: roles")[0]);
    // Before the migration the writer's start names the verb to run.
    let daemon = || Gapless::daemon(&topic, &roles.database).database_url(&roles.url("writer")).until_end();
    daemon().run().expect_code(3).expect_says(&["gapless migrate"]);
    Gapless::verb("migrate", &topic, &roles.database).database_url(&roles.url("owner")).run().expect_code(0);
    assert_roles_are_enough(&roles, &topic, &ledger);
}

#[test]
fn an_existing_ledger_can_be_granted_to_the_documented_roles() {
    let (topic, roles) = (Topic::new(1), Roles::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    ledger.send("poison", "rejected");
    Gapless::verb("migrate", &topic, &roles.database).run().expect_code(0);
    let documented = documented("PostgreSQL: roles");
    let create: String = documented[0].lines().filter(|line| line.starts_with("create role")).collect();
    roles.run(&create);
    roles.run(&documented[1]);
    assert_roles_are_enough(&roles, &topic, &ledger);
}
