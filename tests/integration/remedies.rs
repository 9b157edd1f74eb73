//! Every printed remedy works: the tests carry out the printed commands of each halt and refusal until reading
//! continues. The remedies of `rebase`, `roles`, `status` and of broken logs are tested in their own files and in the
//! campaign.

use std::path::Path;
use std::process::Command;

use crate::support::remedy::{carry_out, command};
use crate::support::servers::Sandbox;
use crate::support::{Database, Ended, Event, Gapless, Ledger, Record, Topic};

fn events(from: u64, to: u64) -> impl Iterator<Item = Event> {
    (from..to).map(|number| Event::numbered(29, number))
}

fn read(topic: &Topic, database: &Database, code: i32) -> Ended {
    Gapless::daemon(topic, database).until_end().run().expect_code(code)
}

/// Asserts that everything is read and that `verify`, `check` and `status` find nothing wrong.
#[track_caller]
fn expect_complete(topic: &Topic, database: &Database) {
    read(topic, database, 0);
    database.assert_accounting();
    Gapless::verb("verify", topic, database).args(["--deep"]).run().expect_code(0);
    Gapless::verb("check", topic, database).run().expect_code(0);
    Gapless::verb("status", topic, database).run().expect_code(0);
}

#[test]
fn the_commands_printed_by_refused_start_orders_work_unchanged() {
    let (topic, database) = (Topic::new(2), Database::new());
    topic.send(events(0, 10));
    topic.send_to(1, events(10, 15));
    topic.delete_before(0, 4);
    let order = |order: &str| Gapless::daemon(&topic, &database).offset(order).until_end().run().expect_code(3);
    let below = command(&order("0:2"), "--offset");
    let beyond = command(&order("0:99"), "--offset");
    assert_eq!((below.as_str(), beyond.as_str()), ("gapless --offset 0:4", "gapless --offset 0:10"));
    carry_out(&below, &topic, &database);
    topic.send(events(20, 30));
    let refused = order("latest");
    let (resume, skip) = (command(&refused, "--from-db"), command(&refused, "--allow-skip"));
    carry_out(&resume, &topic, &database);
    assert_eq!(database.positions()[&0], (4, 20));
    // The second command is for messages sent since.
    topic.send(events(30, 35));
    assert_eq!(skip, "gapless --offset 0:20 --allow-skip");
    let skip = command(&order("latest"), "--allow-skip");
    carry_out(&skip, &topic, &database);
    assert_eq!(database.gaps(0), [(20, 25, "skipped".to_owned())]);
    expect_complete(&topic, &database);
}

#[test]
fn a_start_with_another_group_or_recipe_names_the_one_to_use() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 5));
    let started = Gapless::daemon(&topic, &database).group("the-first");
    started.env("GAPLESS__IDENTITY__FIELDS", "txn,log_index").until_end().run().expect_code(0);
    let group = command(&read(&topic, &database, 3), "--group");
    assert_eq!(group, "gapless --group the-first");
    let refused = Gapless::daemon(&topic, &database).group("the-first").until_end().run().expect_code(3);
    let printed = refused.to_string();
    let fields = printed.split("GAPLESS__IDENTITY__FIELDS=").nth(1).unwrap().split(')').next().unwrap().to_owned();
    topic.send(events(5, 8));
    let daemon = Gapless::daemon(&topic, &database).group("the-first").env("GAPLESS__IDENTITY__FIELDS", &fields);
    daemon.until_end().run().expect_code(0);
    assert_eq!(database.count("events"), 8);
}

#[test]
fn both_remedies_for_another_cluster_work() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    // As if the topic had been read from another cluster. The first remedy is to connect to that cluster again.
    let at = |cluster: &str| database.execute(&format!("update gapless.sources set cluster_id = {cluster}"));
    database.execute("create table public.known as select cluster_id from gapless.sources");
    at("'elsewhere'");
    let refused =
        read(&topic, &database, 3).expect_says(&["positions belong to cluster elsewhere", "correct kafka.brokers"]);
    at("(select cluster_id from public.known)");
    topic.send(events(10, 15));
    read(&topic, &database, 0);
    assert_eq!(database.count("events"), 15);
    // The second remedy: the topic is on this cluster now.
    at("'elsewhere'");
    let arguments = [topic.name.as_str(), "--reason", "moved"];
    let wrong = Gapless::verb("rebase", &topic, &database).args(arguments).run().expect_code(3);
    let rebase = command(&refused, "rebase");
    assert_eq!(rebase, command(&wrong, "--cluster-changed"));
    carry_out(&rebase, &topic, &database);
    expect_complete(&topic, &database);
    assert_eq!(database.value::<i64>("select max(generation)::bigint from gapless.consumer_positions"), 2);
}

#[test]
fn a_halt_for_the_database_names_the_change_to_undo() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    read(&topic, &database, 0);
    ledger.send_events(0, 5);
    let (add, drop) = ("add constraint below_7 check (\"offset\" < 7)", "drop constraint below_7");
    database.execute(&format!("alter table gapless.outcomes {add}"));
    let halted = read(&topic, &database, 3);
    halted.expect_event("partition_halted").expect_says(&[
        "constraint below_7",
        "table gapless.outcomes",
        "undo the change that the message names",
    ]);
    database.execute(&format!("alter table gapless.outcomes {drop}"));
    expect_complete(&topic, &database);
    ledger.assert_complete(&database);
}

#[test]
fn a_ledger_that_needs_migration_names_the_verb_and_a_privileged_role_can_run_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    let name = database.value::<String>("select current_database()::text");
    database.execute(&format!("create role {name} login password 'limited'"));
    let limited = format!("postgres://{name}:limited@{}/{name}", database.address());
    let start = || Gapless::daemon(&topic, &database).database_url(&limited).until_end().run();
    let migrate = command(&start().expect_code(3), "migrate");
    assert_eq!(migrate, "gapless migrate");
    carry_out(&migrate, &topic, &database);
    database.grant_rights(&name);
    start().expect_code(0);
    expect_complete(&topic, &database);
    ledger.assert_complete(&database);
    database.drop_role(&name);
}

#[test]
fn a_lost_migration_history_is_restored_from_a_dump_and_reading_continues() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    let dump = Command::new("pg_dump").args(["--table=gapless.refinery_schema_history", &database.url]).output();
    let dump = dump.expect("pg_dump");
    database.execute("drop table gapless.refinery_schema_history");
    let refused = read(&topic, &database, 3);
    refused.expect_says(&["refinery_schema_history is missing or empty", "from the dump"]);
    database.psql(&String::from_utf8_lossy(&dump.stdout));
    topic.send(events(10, 20));
    read(&topic, &database, 0);
    expect_complete(&topic, &database);
}

#[test]
fn a_database_of_another_encoding_is_refused_and_one_of_utf8_is_accepted() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    let latin = format!("{}_latin", database.name());
    database.execute(&format!("create database {latin} template template0 encoding 'LATIN1' locale 'C'"));
    let url = database.url.replace(database.name(), &latin);
    let refused = Gapless::daemon(&topic, &database).database_url(&url).until_end().run().expect_code(3);
    refused.expect_says(&["encoding", "LATIN1", "UTF8"]);
    database.execute(&format!("drop database {latin}"));
    read(&topic, &database, 0);
    expect_complete(&topic, &database);
}

#[test]
fn a_fenced_daemon_names_the_command_to_resume_with() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let older = Gapless::daemon(&topic, &database).start();
    older.wait_until_ready();
    let newer = Gapless::daemon(&topic, &database).start();
    newer.wait_until_ready();
    let remedy = command(&older.wait().expect_code(3), "--from-db");
    ledger.send_events(0, 5);
    database.wait_for_outcomes(5);
    newer.terminate().expect_code(0);
    ledger.send_events(0, 5);
    carry_out(&remedy, &topic, &database);
    expect_complete(&topic, &database);
    ledger.assert_complete(&database);
}

#[test]
fn too_many_rejected_messages_become_dead_letters_with_the_settings_that_the_halt_names() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..20).map(|n| format!("not an event {n}")));
    let daemon = || Gapless::daemon(&topic, &database).batches_of(1).until_end();
    let halted = daemon().env("GAPLESS__FORMAT__MAX_REJECTED_RUN", "5").run().expect_code(3);
    let replay = command(&halted, "replay");
    halted.expect_says(&["format.max_rejected_run"]);
    // With a higher limit reading continues, and the messages that cannot be decoded are kept.
    daemon().env("GAPLESS__FORMAT__MAX_REJECTED_RUN", "20").run().expect_code(0);
    assert_eq!(database.count("dead_letters"), 20);
    // As a corrected decoder would read them.
    database.execute(
        r#"update gapless.rejected_messages set payload =
               convert_to('{"transactionHash":"0x' || lpad("offset"::text, 64, '0') || '","event":"Won"}', 'UTF8')"#,
    );
    carry_out(&replay, &topic, &database).expect_says(&["20 dead letters accepted"]);
    // `verify` is not run here: it would find that the test changed the rows.
    Gapless::verb("status", &topic, &database).run().expect_code(0);
}

#[test]
fn every_loss_of_a_brokers_log_is_resolved_by_the_commands_that_its_halt_prints() {
    let sandbox = Sandbox::kafka();
    let topics: Vec<Topic> = (0..4).map(|_| Topic::on(&sandbox.brokers, 1, &[])).collect();
    let databases: Vec<Database> = (0..4).map(|_| Database::new()).collect();
    let [truncated, replaced, differs, damaged] = &topics[..] else { unreachable!("four") };
    // Each send makes one batch of the log. All messages have the same timestamp, so that equal events are equal
    // messages.
    let send = |topic: &Topic, first: u64| {
        topic.send_records(events(first, first + 10).map(|event| Record::from(event).at(1_541_594_096_780)));
    };
    for (number, topic) in (0..).zip(&topics) {
        (0..5).for_each(|batch| send(topic, number * 1000 + batch * 10));
    }
    let other = Topic::on(&sandbox.brokers, 1, &[]);
    (0..4).for_each(|batch| send(&other, 7000 + batch * 10));
    // The last messages are the same, so that only a second reading shows the difference.
    send(&other, 2040);
    for (topic, database) in topics.iter().zip(&databases) {
        read(topic, database, 0);
    }
    let new = damaged.send(events(3050, 3060));
    assert_eq!(new[0], 50);
    let folder = |topic: &Topic| sandbox.data().join("kafka/log").join(format!("{}-0", topic.name));
    sandbox.control_kafka("stop");
    let segment = |topic: &Topic| folder(topic).join("00000000000000000000.log");
    let intact = std::fs::read(segment(damaged)).unwrap();
    let mut broken = intact.clone();
    let last = broken.len() - 20;
    broken[last] ^= 0xff;
    std::fs::write(segment(damaged), &broken).unwrap();
    let log = std::fs::read(segment(truncated)).unwrap();
    std::fs::write(segment(truncated), &log[..log.len() / 5 * 2]).unwrap();
    let log = std::fs::read(segment(&other)).unwrap();
    std::fs::write(segment(differs), &log).unwrap();
    let log = std::fs::read(segment(truncated)).unwrap();
    std::fs::write(segment(replaced), &log).unwrap();
    [truncated, replaced, differs].iter().for_each(|topic| remove_indexes(&folder(topic)));
    sandbox.control_kafka("start");
    replaced.send(events(8000, 8060));
    rewind_without_reading(differs, &databases[2]);
    let start = |(topic, database): (&Topic, &Database)| {
        Gapless::daemon(topic, database).env("GAPLESS_TIMEOUT_DIVISOR", "5").start()
    };
    let daemons: Vec<_> = topics.iter().zip(&databases).map(start).collect();
    for ((daemon, reason), at) in daemons.iter().zip(["beyond_log_end", "replaced", "differs", "unreadable"]).zip(0..) {
        let line = daemon.wait_for_event("partition_halted");
        assert_eq!(line["fields"]["halt.reason"], reason, "{line}");
        let message = line["fields"]["message"].as_str().unwrap();
        if reason != "unreadable" {
            carry_out(&command(&message, "--log-replaced"), &topics[at], &databases[at]);
            daemon.wait_until_ready();
        }
    }
    daemons.into_iter().for_each(|daemon| drop(daemon.terminate().expect_code(0)));
    sandbox.control_kafka("stop");
    std::fs::write(segment(damaged), &intact).unwrap();
    sandbox.control_kafka("start");
    for (topic, database) in topics.iter().zip(&databases) {
        expect_complete(topic, database);
    }
    assert_eq!(databases[3].positions()[&0], (0, 60));
}

/// Sets the position back to the beginning and kills the daemon before it reads.
fn rewind_without_reading(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).offset("0:0").failpoint("start_stored=kill").run().expect_killed();
}

/// Removes the indexes of a stopped broker, which rebuilds them from the log as after a crash.
fn remove_indexes(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the partition's files").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if [".index", ".timeindex", ".txnindex", ".snapshot"].iter().any(|end| name.ends_with(end)) {
            std::fs::remove_file(entry.path()).expect("removing an index");
        }
    }
    let _ = std::fs::remove_file(folder.with_file_name(".kafka_cleanshutdown"));
}
