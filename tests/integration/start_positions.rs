//! Start positions: where a start begins, which orders it refuses, and that an order is carried out once.

use std::time::Instant;

use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

/// Partition, start offset and next offset of each position.
fn positions(database: &Database) -> Vec<(i32, i64, i64)> {
    database.positions().into_iter().map(|(partition, (start, next))| (partition, start, next)).collect()
}

fn run(topic: &Topic, database: &Database, order: &str) {
    Gapless::daemon(topic, database).offset(order).until_end().run().expect_code(0);
    database.assert_accounting();
}

fn events(count: u64) -> impl Iterator<Item = Event> {
    (0..count).map(|number| Event::numbered(5, number))
}

#[test]
fn without_an_order_a_partition_starts_at_its_beginning_and_resumes() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.send_events(0, 5);
    ledger.send_events(1, 5);
    Gapless::daemon(&topic, &database).args(["--from-db"]).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(positions(&database), [(0, 0, 10), (1, 0, 5)]);
}

#[test]
fn the_beginning_is_the_log_start_when_the_log_does_not_start_at_zero() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    topic.delete_before(0, 4);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 4, 10)]);
}

#[test]
fn a_bare_offset_is_the_start_of_a_topic_of_one_partition() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    run(&topic, &database, "7");
    assert_eq!(positions(&database), [(0, 7, 10)]);
    assert_eq!(database.outcomes().len(), 3);
}

#[test]
fn a_bare_offset_for_three_partitions_is_bad_usage_and_the_error_shows_the_form_to_use() {
    let (topic, database) = (Topic::new(3), Database::new());
    topic.send(events(10));
    let ended = Gapless::daemon(&topic, &database).offset("7").until_end().run().expect_code(2);
    assert!(ended.says("0:7"), "{ended}");
    assert!(!database.has_ledger() || positions(&database).is_empty(), "the refused start changes nothing");
}

#[test]
fn an_order_for_some_partitions_leaves_the_others_to_resume() {
    let (topic, database) = (Topic::new(4), Database::new());
    for partition in 0..4 {
        topic.send_to(partition, events(10).map(|event| event.named(&format!("P{partition}"))));
    }
    run(&topic, &database, "0:6,3:latest");
    assert_eq!(positions(&database), [(0, 6, 10), (1, 0, 10), (2, 0, 10), (3, 10, 10)]);
    run(&topic, &database, "3:earliest,0:8");
    assert_eq!(positions(&database), [(0, 6, 10), (1, 0, 10), (2, 0, 10), (3, 0, 10)]);
    assert_eq!(database.outcomes().len(), 34);
}

#[test]
fn earliest_is_the_log_start_and_latest_the_last_stable_offset() {
    let topic = Topic::new(1);
    topic.send(events(6));
    topic.delete_before(0, 2);
    let transactions = topic.transactions();
    let open = transactions.begin([Event::numbered(6, 0)]);
    let database = Database::new();
    run(&topic, &database, "latest");
    assert_eq!(positions(&database), [(0, 6, 6)], "the end is before the open transaction, not after it");
    run(&topic, &database, "earliest");
    assert_eq!(positions(&database), [(0, 2, 6)]);
    open.commit();
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 2, 8)]);
    assert_eq!(database.count("events"), 5);
}

#[test]
fn a_start_time_begins_at_the_first_message_of_that_time_or_later() {
    let topic = Topic::new(2);
    let at = |hour: i64| 1_541_594_096_780 + hour * 3_600_000;
    for (hour, event) in (0..5).zip(events(5)) {
        topic.send_records([Record::from(&event).at(at(hour))]);
    }
    let asked = |millis: i64| {
        let time = jiff::Timestamp::from_millisecond(millis).unwrap();
        format!("time:{time}")
    };
    for (millis, start) in [(at(2), 2), (at(2) + 1000, 3), (at(0) - 1000, 0), (at(9), 5)] {
        let database = Database::new();
        run(&topic, &database, &asked(millis));
        assert_eq!(positions(&database), [(0, start, 5), (1, 0, 0)], "{}", asked(millis));
    }
}

#[test]
fn an_order_below_the_log_start_or_beyond_the_log_end_is_refused_with_the_range() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    topic.delete_before(0, 4);
    let refused = |order: &str| Gapless::daemon(&topic, &database).offset(order).until_end().run().expect_code(3);
    let below = refused("2");
    assert!(below.says("2") && below.says("4"), "{below}");
    below.expect_says(&["no longer"]);
    let beyond = refused("17");
    assert!(beyond.says("10") && beyond.says("17"), "{beyond}");
    assert!(positions(&database).is_empty(), "a refused start stores no position");
    run(&topic, &database, "10");
    assert_eq!(positions(&database), [(0, 10, 10)], "the log end itself is allowed");
}

#[test]
fn an_order_later_than_stored_is_refused_with_the_range_unless_the_skip_is_allowed() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.send((10..20).map(|number| Event::numbered(5, number)));
    let refused = Gapless::daemon(&topic, &database).offset("15").until_end().run().expect_code(3);
    assert!(refused.says("10") && refused.says("15") && refused.says("--allow-skip"), "{refused}");
    assert_eq!(positions(&database), [(0, 0, 10)]);
    assert_eq!(database.count("offset_gaps"), 0);
    Gapless::daemon(&topic, &database).offset("15").args(["--allow-skip"]).until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 0, 20)]);
    assert_eq!(database.gaps(0), [(10, 15, "skipped".to_owned())]);
    assert_eq!(database.count("events"), 15);
    // A second reading fills the gap offset by offset and keeps the stored rows.
    run(&topic, &database, "12");
    assert_eq!(database.gaps(0), [(10, 12, "skipped".to_owned())]);
    assert_eq!(database.count("events"), 18);
}

#[test]
fn a_refused_order_changes_nothing_even_if_it_is_fine_for_other_partitions() {
    let (topic, database) = (Topic::new(2), Database::new());
    topic.send_to(0, events(10));
    topic.send_to(1, (10..20).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).offset("0:5,1:5").until_end().run().expect_code(0);
    let fence = "select max(fence)::bigint from gapless.consumer_positions";
    let before = (positions(&database), database.value::<i64>(fence));
    Gapless::daemon(&topic, &database).offset("0:2,1:99").until_end().run().expect_code(3);
    assert_eq!((positions(&database), database.value::<i64>(fence)), before);
    // A refused order does not count as carried out: it is refused again.
    Gapless::daemon(&topic, &database).offset("0:2,1:99").until_end().run().expect_code(3);
    // The order before it is still recorded as carried out.
    Gapless::daemon(&topic, &database)
        .offset("0:5,1:5")
        .until_end()
        .run()
        .expect_code(0)
        .expect_event("start_order_already_carried_out");
    assert_eq!(positions(&database), before.0);
}

#[test]
fn an_earlier_order_reads_again_and_stores_missing_messages() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 20);
    run(&topic, &database, "15");
    assert_eq!(database.outcomes().len(), 5);
    run(&topic, &database, "10");
    assert_eq!(positions(&database), [(0, 10, 20)]);
    run(&topic, &database, "earliest");
    assert_eq!(positions(&database), [(0, 0, 20)]);
    ledger.assert_complete(&database);
}

#[test]
fn a_repeated_order_resumes_and_logs_it_and_the_flag_again_carries_it_out_again() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    let first = Gapless::daemon(&topic, &database).offset("4").until_end().run().expect_code(0);
    assert!(!first.has_event("start_order_already_carried_out"), "{first}");
    topic.send((10..15).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database)
        .offset("4")
        .until_end()
        .run()
        .expect_code(0)
        .expect_event("start_order_already_carried_out");
    assert_eq!(positions(&database), [(0, 4, 15)]);
    assert_eq!(database.value::<String>("select start_order from gapless.consumer_positions"), "4");
    // With --again the order is carried out again: the daemon is killed after it has set the position back.
    Gapless::daemon(&topic, &database)
        .offset("4")
        .args(["--again"])
        .failpoint("start_stored=kill")
        .until_end()
        .run()
        .expect_killed();
    assert_eq!(positions(&database), [(0, 4, 4)]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 4, 15)]);
    // Neither a start without an order nor a refused order deletes the recorded order.
    Gapless::daemon(&topic, &database).offset("99").until_end().run().expect_code(3);
    Gapless::daemon(&topic, &database)
        .offset("4")
        .until_end()
        .run()
        .expect_code(0)
        .expect_event("start_order_already_carried_out");
}

#[test]
fn a_unit_with_latest_that_is_killed_stores_the_hundred_messages_sent_while_it_was_down() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(50));
    let unit = || Gapless::daemon(&topic, &database).offset("latest");
    let daemon = unit().start();
    daemon.wait_until_ready();
    daemon.kill().expect_killed();
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 100);
    let daemon = unit().start();
    database.wait_for_outcomes(100);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(positions(&database), [(0, 50, 150)]);
}

#[test]
fn a_unit_with_latest_that_is_killed_before_its_first_fetch_misses_nothing_either() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(50));
    let unit = || Gapless::daemon(&topic, &database).offset("latest");
    unit().failpoint("start_stored=kill").run().expect_killed();
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 100);
    unit().until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_partition_that_appears_while_running_starts_at_its_beginning() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).offset("latest").start();
    daemon.wait_until_ready();
    // The daemon is stopped, so that the new partitions already have messages when it first sees them.
    daemon.signal("STOP");
    topic.grow_to(3);
    for partition in [2, 0, 1] {
        ledger.send_events(partition, 10);
    }
    daemon.signal("CONT");
    for partition in 0..3 {
        database.wait_for_position(partition, 10);
    }
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(positions(&database), [(0, 0, 10), (1, 0, 10), (2, 0, 10)]);
}

#[test]
fn a_partition_that_appeared_while_it_was_down_starts_at_its_beginning() {
    let (topic, database) = (Topic::new(1), Database::new());
    let unit = || Gapless::daemon(&topic, &database).offset("latest").until_end();
    unit().run().expect_code(0);
    topic.grow_to(2);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    ledger.send_events(1, 10);
    unit().run().expect_code(0);
    ledger.assert_complete(&database);
}

/// Accepts the loss of the deleted beginning of partition 1. The daemon must not have passed it without this decision.
fn accept_deleted_beginning(topic: &Topic, database: &Database) {
    assert_eq!(database.gaps(1), [], "nothing is passed without the operator's decision");
    let loss = [topic.name.as_str(), "1", "0", "4", "--reason", "retention was faster"];
    Gapless::verb("accept-loss", topic, database).args(loss).run().expect_code(0);
}

#[test]
fn a_partition_that_appears_while_running_halts_where_kafka_no_longer_has_its_beginning() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    daemon.signal("STOP");
    topic.grow_to(2);
    topic.send_to(1, events(10));
    topic.delete_before(1, 4);
    daemon.signal("CONT");
    let line = daemon.wait_for_event("partition_halted").to_string();
    assert!(line.contains("[0, 4)"), "{line}");
    accept_deleted_beginning(&topic, &database);
    database.wait_for_position(1, 10);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 0, 0), (1, 0, 10)]);
    assert_eq!(database.gaps(1), [(0, 4, "lost".to_owned())]);
}

#[test]
fn a_partition_that_appeared_while_it_was_down_halts_where_kafka_no_longer_has_its_beginning() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(5));
    topic.delete_before(0, 3);
    let daemon = || Gapless::daemon(&topic, &database).until_end();
    daemon().run().expect_code(0);
    topic.grow_to(2);
    topic.send_to(1, (10..20).map(|number| Event::numbered(5, number)));
    topic.delete_before(1, 4);
    Gapless::verb("plan", &topic, &database).run().expect_code(3).expect_says(&["[0, 4)"]);
    // An order that begins after the deleted range would skip unread offsets.
    let order = |order| Gapless::daemon(&topic, &database).offset(order).until_end();
    order("1:earliest").run().expect_code(3).expect_says(&["would skip [0, 4)"]);
    daemon().run().expect_code(3).expect_says(&["expired", "[0, 4)"]);
    accept_deleted_beginning(&topic, &database);
    daemon().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 3, 5), (1, 0, 10)], "only the first start begins at the log start");
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
}

#[test]
fn a_skip_of_the_beginning_of_a_partition_that_appeared_later_is_recorded() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.grow_to(2);
    topic.send_to(1, events(10));
    let order = Gapless::daemon(&topic, &database).offset("1:6").args(["--allow-skip"]);
    order.until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 0, 0), (1, 0, 10)]);
    assert_eq!(database.gaps(1), [(0, 6, "skipped".to_owned())]);
}

#[test]
fn a_unit_with_a_bare_offset_still_resumes_after_its_topic_grew() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send(events(10));
    let unit = || Gapless::daemon(&topic, &database).offset("4").until_end();
    unit().run().expect_code(0);
    topic.grow_to(2);
    topic.send_to(1, (10..15).map(|number| Event::numbered(5, number)));
    unit().run().expect_code(0).expect_event("start_order_already_carried_out");
    database.assert_accounting();
    assert_eq!(positions(&database), [(0, 4, 10), (1, 0, 5)]);
}

#[test]
fn messages_that_differ_from_the_recorded_ones_change_nothing_and_exit_with_3() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.recreate(1);
    topic.send((0..10).map(|number| Event::numbered(6, number)));
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(3);
    // No row of the new log was written to the old generation.
    ledger.assert_matches(&database);
    assert!(database.positions()[&0].1 <= 10);
}

#[test]
fn a_ledger_can_read_one_topic_after_another_and_stores_an_event_of_both_once() {
    let (first, second, database) = (Topic::new(1), Topic::new(1), Database::new());
    first.send(events(10));
    second.send((5..15).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&first, &database).until_end().run().expect_code(0);
    Gapless::daemon(&second, &database).offset("2").until_end().run().expect_code(0);
    database.assert_accounting();
    assert_eq!(database.identities().len(), 15);
    let rows = database.rows(
        "select topic, start_offset::bigint, next_offset::bigint from gapless.consumer_positions order by start_offset",
        &[],
    );
    let found: Vec<(String, i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found, [(first.name.clone(), 0, 10), (second.name.clone(), 2, 10)]);
}

#[test]
fn offsets_committed_to_kafka_are_written_for_lag_tools_and_never_read_back() {
    let (topic, database) = (Topic::new(1), Database::new());
    let group = topic.name.clone();
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    topic.commit_for(&group, 0, 7);
    let daemon = || Gapless::daemon(&topic, &database).group(&group);
    daemon().until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    topic.commit_for(&group, 0, 3);
    ledger.send_events(0, 10);
    let daemon = daemon().start();
    database.wait_for_outcomes(20);
    crate::support::wait::until("the committed offset for lag tools", || match topic.committed_for(&group, 0) {
        Some(20) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn an_order_that_cannot_be_parsed_is_bad_usage() {
    let (topic, database) = (Topic::new(1), Database::new());
    for order in ["newest", "-5", "0:", "time:yesterday", "0:1,0:2", "1:5"] {
        Gapless::daemon(&topic, &database).offset(order).until_end().run().expect_code(2);
    }
    Gapless::daemon(&topic, &database).offset("1").args(["--from-db"]).until_end().run().expect_code(2);
}

#[test]
fn a_restart_on_a_hundred_partitions_takes_at_most_five_times_one_on_a_single_partition() {
    let restart = |topic: &Topic, database: &Database| {
        let begun = Instant::now();
        let daemon = Gapless::daemon(topic, database).start();
        daemon.wait_until_ready();
        let took = begun.elapsed();
        let ended = daemon.terminate().expect_code(0);
        assert_eq!(ended.count_of_event("run_started"), 1, "{ended}");
        assert_eq!(ended.count_of("reading from"), 0, "the level info has no line for each partition: {ended}");
        took
    };
    let [one, hundred] = [1, 100].map(|partitions| {
        let (topic, database) = (Topic::new(partitions), Database::new());
        topic.send((0..partitions).map(|p| Record::from(Event::numbered(5, p as u64)).to(p)));
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        // The machine is shared, so the shorter of two times counts.
        restart(&topic, &database).min(restart(&topic, &database))
    });
    println!("a restart took {one:?} on one partition, {hundred:?} on a hundred");
    assert!(hundred <= one * 5, "{hundred:?} on a hundred partitions, {one:?} on one");
}
