//! A new generation of a topic begins only by the operator's decision, which names the unread ranges of the old one.

use serde_json::{Value, json};

use crate::support::remedy::{carry_out, command};
use crate::support::{Database, Ended, Event, Gapless, Topic};

fn events(from: u64, to: u64) -> impl Iterator<Item = Event> {
    (from..to).map(|number| Event::numbered(23, number))
}

fn read(topic: &Topic, database: &Database, code: i32) -> Ended {
    Gapless::daemon(topic, database).until_end().run().expect_code(code)
}

fn rebase(topic: &Topic, database: &Database, more: &[&str]) -> Ended {
    let arguments = [topic.name.as_str(), "--reason", "the test re-created it"];
    Gapless::verb("rebase", topic, database).args(arguments).args(more.iter().copied()).run()
}

fn accepted(topic: &Topic, database: &Database) -> Value {
    let ended = Gapless::verb("verify", topic, database).args(["--deep", "--format", "json"]).run().expect_code(0);
    serde_json::from_str::<Value>(&ended.output).unwrap()["accepted"].clone()
}

/// Generation, partition, start offset and next offset of each position.
fn positions(database: &Database) -> Vec<(i32, i32, i64, i64)> {
    let sql = "select generation::int, partition_id::int, start_offset::bigint, next_offset::bigint
               from gapless.consumer_positions order by 1, 2";
    database.rows(sql, &[]).iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

/// Partition 0 was read to offset 10 and halts there, although its log ended at 30; partition 1 was read to its end.
fn halted_at_10_of_30(topic: &Topic, database: &Database) {
    topic.send(events(0, 10));
    topic.send_to(1, events(100, 105));
    read(topic, database, 0);
    topic.send(events(10, 30));
    topic.delete_before(0, 15);
    read(topic, database, 3);
}

#[test]
fn unread_ranges_of_the_old_generation_are_given_up_only_if_named_exactly() {
    let (topic, database) = (Topic::new(2), Database::new());
    halted_at_10_of_30(&topic, &database);
    topic.recreate(2);
    topic.send(events(10, 20));
    let refused = rebase(&topic, &database, &[]).expect_code(3);
    let printed = command(&refused, "rebase");
    assert!(printed.contains("--accept-unread 0:10-30"), "{printed}");
    refused.expect_says(&["partition 0 was read to 10", "ended at 30", "[10, 30) was never read"]);
    for wrong in ["0:10-29", "0:9-30", "0:11-30", "1:10-30", "0:10-1000"] {
        rebase(&topic, &database, &["--accept-unread", wrong]).expect_code(3).expect_says(&["0:10-30"]);
    }
    let too_much = ["--accept-unread", "0:10-30", "--accept-unread", "1:0-5"];
    rebase(&topic, &database, &too_much).expect_code(3);
    assert_eq!(positions(&database), [(1, 0, 0, 10), (1, 1, 0, 5)], "a refused rebase changes nothing");
    assert_eq!(database.count("decisions"), 0);

    carry_out(&printed, &topic, &database).expect_says(&[
        "read to 10",
        "[10, 30) is recorded as lost",
        "partition 1 was read to 5, its log ended at 5",
    ]);
    read(&topic, &database, 0);
    assert_eq!(positions(&database), [(1, 0, 0, 30), (1, 1, 0, 5), (2, 0, 0, 10), (2, 1, 0, 0)]);
    database.assert_accounting();
    let accepted = accepted(&topic, &database);
    let loss = &accepted[0];
    assert_eq!(accepted.as_array().unwrap().len(), 1, "{accepted}");
    assert_eq!((&loss["kind"], &loss["generation"], &loss["partition"]), (&json!("lost"), &json!(1), &json!(0)));
    assert_eq!((&loss["from"], &loss["to"]), (&json!(10), &json!(30)));
    Gapless::verb("verify", &topic, &database).run().expect_code(0).expect_says(&["but what was accepted"]);
}

#[test]
fn a_running_daemon_begins_the_new_generation_by_itself() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(10);
    topic.recreate(1);
    topic.send(events(5, 25));
    let halted = daemon.wait_for_event("partition_halted");
    carry_out(&command(&halted["fields"]["message"].as_str().unwrap(), "rebase"), &topic, &database);
    daemon.wait_for_event("generation_began");
    database.wait_for("select max(next_offset) from gapless.consumer_positions where generation = 2", 20);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    database.assert_accounting();
    assert_eq!(accepted(&topic, &database), json!([]));
}

#[test]
fn after_a_rewind_only_offsets_without_an_outcome_count_as_unread() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 20));
    Gapless::daemon(&topic, &database).offset("8").until_end().run().expect_code(0);
    // The position is set back, and the daemon is killed before it reads anything.
    Gapless::daemon(&topic, &database).offset("2").failpoint("start_stored=kill").run().expect_killed();
    topic.recreate(1);
    let refused = rebase(&topic, &database, &[]).expect_code(3);
    carry_out(&command(&refused, "--accept-unread 0:2-8"), &topic, &database);
    read(&topic, &database, 0);
    assert_eq!(positions(&database), [(1, 0, 2, 20), (2, 0, 0, 0)]);
    database.assert_accounting();
    assert_eq!(accepted(&topic, &database)[0]["to"], 8);
}

#[test]
fn a_replaced_log_begins_a_generation_of_the_same_topic_and_other_partitions_lose_nothing() {
    let (topic, database) = (Topic::new(2), Database::new());
    halted_at_10_of_30(&topic, &database);
    let loss = [topic.name.as_str(), "0", "10", "15", "--reason", "retention"];
    Gapless::verb("accept-loss", &topic, &database).args(loss).run().expect_code(0);
    read(&topic, &database, 0);
    rebase(&topic, &database, &[]).expect_code(3).expect_says(&["--log-replaced"]);
    rebase(&topic, &database, &["--cluster-changed"]).expect_code(3).expect_says(&["--log-replaced"]);
    // As if partition 0 had been read from another log. The unread messages of partition 1 are not lost.
    database.execute("update gapless.positions set anchor_digest = gen_random_uuid() where partition_id = 0");
    topic.send_to(1, events(105, 110));
    let halted = Gapless::daemon(&topic, &database).failpoint("tx_open=hang").start();
    let line = halted.wait_for_event("partition_halted");
    halted.kill();
    assert!(line.to_string().contains("replaced"), "{line}");
    carry_out(&command(&line["fields"]["message"].as_str().unwrap(), "--log-replaced"), &topic, &database);
    read(&topic, &database, 0);
    assert_eq!(positions(&database), [(1, 0, 0, 30), (1, 1, 0, 5), (2, 0, 15, 30), (2, 1, 0, 10)]);
    database.assert_accounting();
    let events: i64 = database.value("select count(*) from gapless.events");
    assert_eq!(events, 10 + 15 + 10);
}

#[test]
fn a_log_that_is_not_replaced_begins_no_generation_and_the_refusal_gives_the_evidence() {
    let (topic, database) = (Topic::new(2), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    topic.send(events(10, 30));
    let refused = rebase(&topic, &database, &["--log-replaced"]).expect_code(3);
    refused.expect_says(&[
        "nothing shows that the log",
        "partition 0 was read to 10, its log [0, 30) reaches as far, the last stored message is still at offset 9",
        "partition 1 was read to 0",
        "no message was stored of it",
        "`gapless status`",
    ]);
    assert_eq!((positions(&database).len(), database.count("decisions")), (2, 0), "nothing is changed");
    read(&topic, &database, 0);
    assert_eq!(positions(&database), [(1, 0, 0, 30), (1, 1, 0, 0)]);
}

#[test]
fn a_verb_for_a_topic_that_was_never_read_lists_the_topics_of_the_ledger() {
    let (topic, other, database) = (Topic::new(2), Topic::new(1), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    other.send(events(0, 5));
    let has = format!("it has {} (partitions 0-1)", topic.name);
    rebase(&other, &database, &[]).expect_code(2).expect_says(&["has not read topic", &has]);
    let range = format!("{}:0:0-5", other.name);
    let replay = Gapless::verb("replay", &other, &database).args(["--offsets", &range]).run();
    replay.expect_code(2).expect_says(&["has no partition 0", &has]);
    let loss = [other.name.as_str(), "0", "0", "5", "--reason", "why"];
    Gapless::verb("accept-loss", &other, &database).args(loss).run().expect_code(2).expect_says(&[&has]);
    let loss = [topic.name.as_str(), "7", "0", "5", "--reason", "why"];
    let loss = Gapless::verb("accept-loss", &topic, &database).args(loss).run().expect_code(2);
    loss.expect_says(&["Kafka has no partition 7", "has 2 partitions"]);
}

#[test]
fn every_verb_that_finds_a_recreated_topic_prints_the_complete_rebase_command() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    topic.recreate(1);
    topic.send(events(10, 20));
    let verb = |name: &str, arguments: &[&str]| {
        let ended = Gapless::verb(name, &topic, &database).args(arguments.iter().copied()).run().expect_code(3);
        command(&ended, "rebase")
    };
    let range = format!("{}:0:0-5", topic.name);
    let printed = verb("replay", &["--offsets", &range]);
    assert_eq!(printed, verb("verify", &[]));
    assert_eq!(printed, verb("accept-loss", &[topic.name.as_str(), "0", "10", "12", "--reason", "why"]));
    carry_out(&printed, &topic, &database);
    read(&topic, &database, 0);
    database.assert_accounting();
}

#[test]
fn accept_loss_of_a_wrong_range_prints_the_command_that_is_accepted() {
    let (topic, database) = (Topic::new(2), Database::new());
    halted_at_10_of_30(&topic, &database);
    let accept = |from: &str, to: &str| {
        let arguments = [topic.name.as_str(), "0", from, to, "--reason", "retention"];
        Gapless::verb("accept-loss", &topic, &database).args(arguments).run().expect_code(3)
    };
    let printed = command(&accept("9", "15"), "accept-loss");
    for (from, to) in [("0", "15"), ("11", "15"), ("10", "16"), ("12", "40")] {
        assert_eq!(command(&accept(from, to), "accept-loss"), printed, "{from} {to}");
    }
    carry_out(&printed, &topic, &database);
    read(&topic, &database, 0);
    database.assert_accounting();
    // A range that Kafka has is not a loss.
    topic.send(events(30, 40));
    let skip = command(&accept("30", "35"), "--allow-skip");
    assert_eq!(skip, "gapless --offset 0:35 --allow-skip");
    carry_out(&skip, &topic, &database);
    database.assert_accounting();
    accept("20", "30").expect_says(&["nothing that is to be read is lost", "`gapless --from-db`"]);
}

#[test]
fn replay_of_a_wrong_range_prints_the_range_that_can_be_replayed() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(0, 10));
    read(&topic, &database, 0);
    topic.send(events(10, 12));
    topic.delete_before(0, 4);
    let replay = |range: &str, code| {
        let range = format!("{}:0:{range}", topic.name);
        Gapless::verb("replay", &topic, &database).args(["--offsets", &range]).run().expect_code(code)
    };
    let inside = command(&replay("2-12", 2), "replay");
    assert!(inside.ends_with(":0:2-10"), "{inside}");
    let left = command(&replay("2-10", 3), "replay");
    assert!(left.ends_with(":0:4-10"), "{left}");
    carry_out(&left, &topic, &database);
}
