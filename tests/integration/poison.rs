//! Messages that cannot be decoded or stored are kept with their bytes and never stop or change other messages.

use crate::support::raw_produce::send_with_headers;
use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

/// Sends a batch of nine messages with poison at these indexes.
fn poison_at(indexes: &[usize]) {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    for index in 0..9 {
        if indexes.contains(&index) {
            ledger.send("{\"transactionHash\": ", "rejected");
        } else {
            ledger.send_events(0, 1);
        }
    }
    Gapless::daemon(&topic, &database).batches_of(9).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(database.count("dead_letters"), indexes.len() as i64);
}

#[test]
fn poison_at_the_head_of_a_batch_is_isolated() {
    poison_at(&[0]);
}

#[test]
fn poison_in_the_middle_of_a_batch_is_isolated() {
    poison_at(&[4, 5]);
}

#[test]
fn poison_at_the_end_of_a_batch_is_isolated() {
    poison_at(&[8]);
}

#[test]
fn a_batch_of_only_poison_is_rejected() {
    poison_at(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn each_kind_of_message_without_an_event_has_its_outcome_and_poison_keeps_its_bytes() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let mut without_hash = Event::numbered(1, 1);
    without_hash.txn = None;
    let mut nameless = Event::numbered(1, 2);
    nameless.name = None;
    let nameless = nameless.json().replace("\"signature\":", "\"sig\":").replace("\"topics\":", "\"tops\":");
    let mut with_nul = Event::numbered(1, 3).json().into_bytes();
    with_nul[40] = 0;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_inside = Event { memo: deep.clone(), ..Event::numbered(1, 4) }.json();
    let rejected: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\0\x01\x02\xfe binary".to_vec(),
        b"plain text".to_vec(),
        b"17".to_vec(),
        b"{}".to_vec(),
        b"[1]".to_vec(),
        b"null".to_vec(),
        b"{\"transactionHash\":\"0x1\",\"event\":\"A\"".to_vec(),
        b"{\"transactionHash\":\"0x1\",\"event\":\"\xc3\x28\"}".to_vec(),
        b"{\"transactionHash\":17,\"event\":\"A\"}".to_vec(),
        without_hash.json().into_bytes(),
        nameless.into_bytes(),
        with_nul,
        deep.into_bytes(),
        deep_inside.into_bytes(),
    ];
    let mut kept = Vec::new();
    for bytes in rejected {
        ledger.send_events(0, 1);
        let headers = vec![("trace".to_owned(), Some(vec![0xff, 0])), ("none".to_owned(), None)];
        let record = Record { key: Some(b"k\xff".to_vec()), headers, ..Record::from(bytes.clone()) };
        kept.push((ledger.send(record, "rejected"), bytes));
    }
    ledger.send(Record::tombstone(), "ignored");
    ledger.send("[]", "ignored");
    ledger.send(" [ ] ", "ignored");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let dead_letters = database.rows(
        r#"select "offset", payload, message_key, reason, detail, headers::text, attempts::bigint, state::text,
                  message_time is not null and first_seen <= last_seen
           from gapless.dead_letters order by 1"#,
        &[],
    );
    assert_eq!(dead_letters.len(), kept.len());
    for (dead_letter, (offset, bytes)) in dead_letters.iter().zip(&kept) {
        assert_eq!(dead_letter.get::<_, i64>(0), *offset);
        assert_eq!(dead_letter.get::<_, &[u8]>(1), bytes, "the original bytes");
        assert_eq!(dead_letter.get::<_, &[u8]>(2), b"k\xff");
        assert!(!dead_letter.get::<_, &str>(3).is_empty() && !dead_letter.get::<_, &str>(4).is_empty());
        assert!(dead_letter.get::<_, &str>(5).contains("trace"), "{:?}", dead_letter.get::<_, &str>(5));
        assert_eq!((dead_letter.get::<_, i64>(6), dead_letter.get::<_, &str>(7)), (1, "open"));
        assert!(dead_letter.get::<_, bool>(8));
    }
}

#[test]
fn valid_json_that_jsonb_refuses_is_stored_with_its_bytes() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let memos =
        [r#""a \u0000 b""#, r#""\ud800""#, r#""\udc00 x""#, "1e131072", "1e-16384", "0e-16384", "{\"\\u0000\":1}"];
    let castable = [r#""\\u0000 \ud83d\ude00 \n""#, "[1e131071, 0e131072]", "[1e-16383, -0.0, 17173049.0, 1e309]"];
    for memo in castable {
        let event = Event { memo: memo.to_owned(), ..ledger.event() };
        let offsets = topic.send([&event]);
        ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    }
    let mut events = Vec::new();
    for memo in memos {
        ledger.send_events(0, 1);
        let mut event = ledger.event();
        event.memo = memo.to_owned();
        let offsets = topic.send([&event]);
        ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
        events.push(event);
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let raw = database.rows("select event_raw, txn from gapless.events where event_raw is not null order by id", &[]);
    assert_eq!(raw.len(), memos.len());
    for (row, event) in raw.iter().zip(&events) {
        assert_eq!(row.get::<_, &[u8]>(0), event.json().as_bytes());
        assert_eq!(row.get::<_, &str>(1), event.txn());
    }
    // Every other text can be cast to jsonb, so a reader of event_info gets no error.
    let others = (memos.len() + castable.len()) as i64;
    assert_eq!(database.value::<i64>("select count(event_info::jsonb) from gapless.events"), others);
}

fn refused_at(indexes: &[usize]) {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.refuse_events("txn like '%bad'");
    let mut ledger = Ledger::of(&topic);
    let mut bad = Vec::new();
    for index in 0..9 {
        if indexes.contains(&index) {
            let mut event = ledger.event();
            event.txn = Some(event.txn().to_owned() + "bad");
            bad.push((ledger.send(&event, "rejected"), event.json()));
        } else {
            ledger.send_events(0, 1);
        }
    }
    Gapless::daemon(&topic, &database).batches_of(9).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let dead_letters = database.rows(r#"select "offset", payload, detail from gapless.dead_letters order by 1"#, &[]);
    assert_eq!(dead_letters.len(), bad.len());
    for (dead_letter, (offset, text)) in dead_letters.iter().zip(bad) {
        assert_eq!((dead_letter.get::<_, i64>(0), dead_letter.get::<_, &[u8]>(1)), (offset, text.as_bytes()));
        assert!(dead_letter.get::<_, &str>(2).contains("22P02"), "{}", dead_letter.get::<_, &str>(2));
    }
}

#[test]
fn a_row_that_postgresql_refuses_at_the_head_of_a_batch_is_isolated() {
    refused_at(&[0]);
}

#[test]
fn rows_that_postgresql_refuses_in_the_middle_of_a_batch_are_isolated() {
    refused_at(&[3, 4, 6]);
}

#[test]
fn a_row_that_postgresql_refuses_at_the_end_of_a_batch_is_isolated() {
    refused_at(&[8]);
}

#[test]
fn a_batch_of_only_rows_that_postgresql_refuses_is_rejected_row_by_row() {
    refused_at(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_conflicting_event_that_postgresql_refuses_is_isolated() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.refuse_events("block_hash like '%bad'");
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let mut other = event.conflicting();
    other.block_hash.replace_range(63.., "bad");
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(&other, "rejected");
    ledger.send(event.conflicting(), "processed");
    ledger.send_events(0, 3);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!((database.count("dead_letters"), database.count("event_conflicts")), (1, 1));
}

#[test]
fn a_header_key_that_is_not_utf_8_is_accepted() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    send_with_headers(&topic, event.json().as_bytes(), &[(b"\xff\xfe", b"\xff"), (b"", b"")]);
    ledger.expect_stored(0, &[0], &[event]);
    send_with_headers(&topic, b"poison", &[(b"\xc3\x28", b"value"), (b"plain", b"\x00")]);
    ledger.expect(0, [1], "rejected");
    ledger.send_events(0, 1);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert!(database.value::<String>("select headers::text from gapless.dead_letters").contains("plain"));
}

#[test]
fn a_message_above_the_one_size_limit_is_rejected_and_one_of_a_megabyte_is_stored() {
    let topic = Topic::configured(1, &[("max.message.bytes", "12000000")]);
    let database = Database::new();
    let mut ledger = Ledger::of(&topic);
    for size in [900_000, 1_900_000] {
        let event = ledger.event().sized(size);
        let offsets = topic.send([&event]);
        ledger.expect_stored(0, &offsets, &[event]);
    }
    let large = ledger.event().sized(5_000_000);
    ledger.send(&large, "rejected");
    ledger.send_events(0, 3);
    Gapless::daemon(&topic, &database)
        .env("GAPLESS__KAFKA__MAX_MESSAGE_BYTES", "2000000")
        .until_end()
        .run()
        .expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(database.value::<Vec<u8>>("select payload from gapless.dead_letters"), large.json().into_bytes());
}

#[test]
fn a_partition_whose_rows_collide_repeatedly_halts_alone() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // As a unique index of a user would do.
    database.before_each_event(
        "if new.position_id = (select id from gapless.positions where partition_id = 1) then
             raise unique_violation;
         end if;",
    );
    ledger.send_events(0, 10);
    topic.send_to(1, (0..10).map(|number| Event::numbered(78, number)));
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    assert_eq!(ended.line_of_event("partition_halted")["fields"]["halt.reason"], "database", "{ended}");
    let positions = database.positions();
    assert_eq!((positions[&0].1, positions[&1].1), (10, 0), "the other partition continues: {ended}");
    ledger.assert_matches(&database);
}
