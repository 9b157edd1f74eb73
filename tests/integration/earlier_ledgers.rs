//! A ledger that an earlier version wrote, from a dump in `tests/data`: this version opens it, verifies it and reads
//! on.

use std::process::Command;

use crate::support::daemon::Gapless;
use crate::support::database::Database;
use crate::support::events::Event;
use crate::support::topic::{Record, Topic};

/// A dump of schema version 8. `GAPLESS_WRITE_LEDGER=DUMP GAPLESS_EARLIER=PROGRAM cargo test … earlier_ledgers` writes
/// it again with the program of that version.
const DUMP_OF_SCHEMA_8: &str = include_str!("../data/ledger-schema-8.sql");

/// Timestamp of the first message, in milliseconds since 1970.
const WRITTEN: i64 = 1_790_000_000_000;

/// Writes the log of the dump: the same messages at the same offsets each time.
fn publish(topic: &Topic) {
    let events = |numbers: std::ops::Range<u64>| {
        numbers.map(|n| Record::from(Event::numbered(8, n)).at(WRITTEN + n as i64)).collect::<Vec<_>>()
    };
    topic.send_records(events(0..20));
    // Duplicates in another order, messages without an event, a removal, and the same identity with another memo.
    topic.send_records(events(5..9).into_iter().rev());
    topic.send_records([Record::from("no event").at(WRITTEN), Record::tombstone().at(WRITTEN)]);
    let removed = Event { removed: true, ..Event::numbered(8, 3) };
    let other = Event { memo: "\"another\"".to_owned(), ..Event::numbered(8, 4) };
    topic.send_records([Record::from(removed).at(WRITTEN), Record::from(other).at(WRITTEN)]);
    // Offsets without a message: transaction markers and an aborted transaction.
    let transactions = topic.transactions();
    transactions.commit(events(20..24));
    transactions.abort(events(24..26));
    transactions.commit(events(26..30));
}

fn read(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

#[test]
fn a_ledger_of_schema_8_is_opened_verified_and_continued() {
    let (topic, database, beside) = (Topic::new(1), Database::new(), Database::new());
    publish(&topic);
    database.psql(DUMP_OF_SCHEMA_8);
    // The dump was made with another topic; this topic has the same messages at the same offsets.
    read(&topic, &beside);
    let (cluster, id): (String, String) =
        (beside.value("select cluster_id from gapless.sources"), beside.value("select topic_id from gapless.sources"));
    database.execute(&format!(
        "update gapless.sources set topic = '{}', cluster_id = '{cluster}', topic_id = '{id}';
         update gapless.ledger set consumer_group = '{}'",
        topic.name,
        beside.value::<String>("select consumer_group from gapless.ledger"),
    ));
    let verify = || Gapless::verb("verify", &topic, &database).args(["--deep"]).run();
    verify().expect_code(3).expect_says(&["run `gapless migrate`"]);
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    verify().expect_code(0);
    let stored = database.count("events");
    topic.send_records((30..40).map(|n| Record::from(Event::numbered(8, n)).at(WRITTEN + n as i64)));
    read(&topic, &database);
    assert_eq!(database.count("events"), stored + 10);
    assert_eq!(database.outcomes().len(), beside.outcomes().len() + 10);
    verify().expect_code(0);
}

/// Does nothing unless both variables are set.
#[test]
fn the_dump_is_made_by_the_program_that_the_environment_names() {
    let (Some(dump), Some(program)) = (std::env::var_os("GAPLESS_WRITE_LEDGER"), std::env::var_os("GAPLESS_EARLIER"))
    else {
        return;
    };
    let (topic, database) = (Topic::new(1), Database::new());
    publish(&topic);
    let read = Command::new(program)
        .args(["--until-end", "--group", "earlier", "--topic", &topic.name, "--database-url", &database.url])
        .args(["--brokers", &crate::support::servers::brokers()])
        .status();
    assert!(read.expect("the program").success());
    let dumped = Command::new("pg_dump")
        .args(["--schema=gapless", "--no-owner", "--no-privileges", "--no-comments", &database.url])
        .output()
        .expect("pg_dump");
    assert!(dumped.status.success());
    std::fs::write(dump, dumped.stdout).expect("the dump is written");
}

/// A daemon of the program that the environment names goes on while this version migrates its ledger.
#[test]
#[ignore = "needs a program of an earlier version: GAPLESS_EARLIER=PROGRAM"]
fn a_running_daemon_of_an_earlier_program_goes_on_beside_the_newer_schema() {
    let program = std::env::var_os("GAPLESS_EARLIER").expect("GAPLESS_EARLIER names the program");
    let (topic, database) = (Topic::new(1), Database::new());
    publish(&topic);
    let before = topic.visible(0).len() as i64;
    let mut earlier = Command::new(program)
        .args(["--group", "gapless", "--topic", &topic.name, "--database-url", &database.url])
        .args(["--brokers", &crate::support::servers::brokers()])
        .env("GAPLESS__SERVER__BIND", "127.0.0.1:0")
        .env("GAPLESS__DATABASE__CATALOGUE_CHECK_MS", "200")
        .spawn()
        .expect("the program");
    database.wait_for_outcomes(before);
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    // Every write strategy: small batches, a large one, a duplicate, a rejected and a removed event.
    for numbers in [40..41, 41..600, 50..51] {
        topic.send_records(numbers.clone().map(|n| Record::from(Event::numbered(8, n)).at(WRITTEN + n as i64)));
        topic.send(["no event"]);
        topic.send([Event { removed: true, ..Event::numbered(8, numbers.start) }]);
    }
    database.wait_for_outcomes(topic.visible(0).len() as i64);
    // It checks the catalogue some times, which nothing shows where it finds no difference.
    std::thread::sleep(std::time::Duration::from_secs(1));
    topic.send([Event::numbered(8, 700)]);
    database.wait_for_outcomes(topic.visible(0).len() as i64);
    earlier.kill().expect("it runs");
    earlier.wait().expect("it ended");
    read(&topic, &database);
    Gapless::verb("verify", &topic, &database).args(["--deep"]).run().expect_code(0);
    database.assert_accounting();
}
