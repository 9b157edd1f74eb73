//! Every message has one outcome and every event is stored once, however often it is published or read.

use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

#[test]
fn messages_of_the_real_monitor_are_stored_unchanged() {
    let (topic, database) = (Topic::new(1), Database::new());
    let lines: Vec<&str> = include_str!("../data/web3-lottery-events.ndjson").lines().collect();
    topic.send(lines.iter().copied());
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let rows = database.rows(
        r#"select event_info::text, txn, event_type, block_number, block_hash, log_index, address, status,
                  event_capture_time is null, event_info::jsonb ->> 'id', "offset", event_no::bigint
           from gapless.events order by "offset""#,
        &[],
    );
    assert_eq!(rows.len(), 2);
    for (row, line) in rows.iter().zip(lines) {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(row.get::<_, &str>(0), line, "the original text");
        assert_eq!(row.get::<_, &str>(1), event["transactionHash"]);
        assert_eq!(row.get::<_, &str>(2), event["event"]);
        assert_eq!(row.get::<_, i64>(3), event["blockNumber"]);
        assert_eq!(row.get::<_, &str>(4), event["blockHash"]);
        assert_eq!(row.get::<_, i32>(5), event["logIndex"]);
        assert_eq!(row.get::<_, &str>(6), event["address"]);
        assert_eq!(row.get::<_, &str>(7), "confirmed", "plain web3 events are confirmed");
        assert!(row.get::<_, bool>(8), "these two have no capture time");
        assert_eq!(row.get::<_, &str>(9), event["id"]);
    }
    database.assert_accounting();
}

#[test]
fn a_time_or_number_in_any_valid_spelling_is_stored_by_value_and_its_text_is_kept() {
    let (topic, database) = (Topic::new(1), Database::new());
    let event = |number: u64, block: &str, time: &str| {
        Event { capture_time: Some(time.to_owned()), ..Event::numbered(99, number) }
            .json()
            .replace("\"blockNumber\":4171", &format!("\"blockNumber\":{block}"))
    };
    let sent = [
        ("17173049.0", "9999-12-31T23:59:59Z", Some((17_173_049_i64, "9999-12-31 23:59:59+00"))),
        ("1.7173049e7", "2018-11-07T12:34:56.123456789012Z", Some((17_173_049, "2018-11-07 12:34:56.123456+00"))),
        ("9007199254740993.0", "0000-01-01T00:00:00Z", Some((9_007_199_254_740_993, "0001-01-01 00:00:00+00 BC"))),
        ("\"0x10\"", "2018-11-07T12:34:56+01:00", Some((16, "2018-11-07 11:34:56+00"))),
        ("16.5", "2018-11-07T12:34:56Z", None),
        ("16", "2018-11-07T12:34:56+01:00[Europe/Berlin]", None),
    ];
    let texts: Vec<String> = (0..).zip(&sent).map(|(number, (block, time, _))| event(number, block, time)).collect();
    topic.send(texts.clone());
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    for ((offset, text), (block, time, stored)) in (0_i64..).zip(&texts).zip(&sent) {
        let rows = database.rows(
            r#"select block_number, event_capture_time = $2::text::timestamptz, event_info::text
               from gapless.events where "offset" = $1"#,
            &[&offset, &stored.map_or("epoch", |(_, time)| time)],
        );
        match stored {
            Some((number, _)) => {
                let found = (rows[0].get(0), rows[0].get(1), rows[0].get(2));
                assert_eq!(found, (Some(*number), Some(true), Some(text.clone())), "{block}, {time}");
            }
            None => {
                assert!(rows.is_empty(), "{block}, {time}");
                let why = format!(r#"select reason from gapless.dead_letters where "offset" = {offset}"#);
                assert_eq!(database.value::<String>(&why), "bad_field", "{block}, {time}");
            }
        }
    }
}

#[test]
fn a_capture_time_without_a_zone_is_utc() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut event = Event::numbered(1, 1);
    event.capture_time = Some("2018-11-07T12:34:56.78".to_owned());
    topic.send([event]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert!(database.value::<bool>("select event_capture_time = '2018-11-07 12:34:56.78+00' from gapless.events"));
}

#[test]
fn an_outcome_has_the_time_and_the_digest_of_its_message() {
    let (topic, database) = (Topic::new(1), Database::new());
    let event = Event::numbered(1, 1);
    topic.send_records([
        Record::from(&event).at(1_541_594_096_780),
        Record::from(&event).at(1_541_594_096_781),
        Record::from("poison").at(1_541_594_096_782),
    ]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let rows = database.rows(
        r#"select (extract(epoch from message_time) * 1000)::bigint, payload_digest, update_time is not null, consumer_group
           from gapless.kafka_events_received order by "offset""#,
        &[],
    );
    let times: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(times, [1_541_594_096_780, 1_541_594_096_781, 1_541_594_096_782]);
    assert!(rows.iter().all(|row| row.get::<_, bool>(2) && row.get::<_, &str>(3) == "gapless"));
    let digests: Vec<Vec<u8>> = rows.iter().map(|row| row.get(1)).collect();
    assert!(digests.iter().all(|digest| digest.len() >= 16) && digests[0] != digests[2]);
    database.assert_accounting();
}

#[test]
fn block_numbers_and_log_indexes_may_be_numbers_decimal_text_or_hex_text() {
    let (topic, database) = (Topic::new(1), Database::new());
    let base = Event::numbered(1, 1).named("Number").json();
    let event = |number: u64, block: &str, log: &str| {
        let text = Event::numbered(2, number).json();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["blockNumber"] = serde_json::from_str(block).unwrap();
        json["logIndex"] = serde_json::from_str(log).unwrap();
        json.to_string()
    };
    topic.send([base, event(1, "4660", "18"), event(2, "\"4660\"", "\"18\""), event(3, "\"0x1234\"", "\"0x12\"")]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(
        database.value::<i64>("select count(*) from gapless.events where (block_number, log_index) = (4660, 18)"),
        3
    );
    database.assert_accounting();
}

#[test]
fn events_of_three_partitions_are_stored_with_an_outcome_each() {
    let (topic, database) = (Topic::new(3), Database::new());
    let mut ledger = Ledger::of(&topic);
    for (partition, count) in [(0, 700), (1, 40), (2, 1)] {
        ledger.send_events(partition, count);
    }
    Gapless::daemon(&topic, &database).batches_of(100).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_duplicate_sent_by_the_producer_is_processed_and_names_the_stored_event() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let first = topic.send([&event]);
    ledger.expect_stored(0, &first, std::slice::from_ref(&event));
    ledger.send(&event, "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // In another batch, in another partition, and with another spelling of the hash.
    ledger.send(&event, "processed");
    ledger.send(Record::from(&event).to(1), "processed");
    ledger.send(event.json().replace(event.txn(), &event.txn().to_uppercase().replace("0X", "0x")), "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let named = "select count(distinct event_id) from gapless.kafka_events_received where event_id is not null";
    assert_eq!(database.value::<i64>(named), 1);
    assert_eq!(database.count("event_conflicts"), 0, "a duplicate with the same content is no conflict");
}

#[test]
fn the_same_transaction_may_emit_events_of_different_names() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let mut unnamed = event.clone();
    unnamed.name = None;
    let events = [event.clone().named("Issued"), event.named("Redeemed"), unnamed];
    let offsets = topic.send(&events);
    ledger.expect_stored(0, &offsets[..2], &events[..2]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let names: Vec<String> =
        database.rows("select event_type from gapless.events order by id", &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["Issued", "Redeemed", events[2].topics[0].as_str()], "without a name: the signature");
    database.assert_accounting();
}

#[test]
fn reading_everything_again_changes_nothing() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 50);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(&event, "processed");
    ledger.send(event.conflicting(), "processed");
    ledger.send("no event", "rejected");
    ledger.send(Record::tombstone(), "ignored");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let everything = || {
        ["events", "kafka_events_received", "event_conflicts", "dead_letters", "offset_gaps"].map(|relation| {
            let rows = format!("select to_jsonb(r)::text from gapless.{relation} r order by 1");
            database.rows(&rows, &[]).iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
        })
    };
    let before = everything();
    for _ in 0..2 {
        Gapless::daemon(&topic, &database)
            .offset("earliest")
            .args(["--again"])
            .batches_of(7)
            .until_end()
            .run()
            .expect_code(0);
        assert_eq!(everything(), before);
        ledger.assert_complete(&database);
    }
}

#[test]
fn a_single_event_does_not_wait_for_a_batch_to_fill() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    let mut ledger = Ledger::of(&topic);
    for count in 1..=5 {
        let begun = std::time::Instant::now();
        ledger.send_events(0, 1);
        database.wait_for_outcomes(count);
        // It takes milliseconds; the limit allows for a machine on which all other tests run.
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}
