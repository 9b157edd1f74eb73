//! An event with a known identity and other content is kept whole for every outcome of its message, and logged once.

use crate::support::{Database, Gapless, Ledger, Topic};

const WINNER: &str = "select block_hash from gapless.events";
const LOSERS: &str = "select block_hash from gapless.event_conflicts order by id";

fn texts(database: &Database, sql: &str) -> Vec<String> {
    database.rows(sql, &[]).iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_conflict_with_an_earlier_batch_is_kept_whole() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let other = event.conflicting();
    let offset = ledger.send(&other, "processed");
    // The same conflict again is the same occurrence, not a second one.
    ledger.send(&other, "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(texts(&database, WINNER), [event.block_hash.as_str()]);
    let kept = database.rows(
        r#"select c.event_info::text, c.txn, c.event_type, c.log_index::bigint, c.address, c.status, c."offset", c.partition_id::int,
                  c.event_id = e.id
           from gapless.event_conflicts c, gapless.events e"#,
        &[],
    );
    assert_eq!(kept.len(), 1, "once per identity and content");
    assert_eq!(kept[0].get::<_, String>(0), other.json());
    assert_eq!(kept[0].get::<_, &str>(1), event.txn());
    assert_eq!(kept[0].get::<_, &str>(2), event.name.as_deref().unwrap());
    assert_eq!(kept[0].get::<_, i64>(3), other.log_index as i64);
    assert_eq!(kept[0].get::<_, &str>(4), other.address);
    assert_eq!(kept[0].get::<_, &str>(5), "confirmed");
    assert_eq!(kept[0].get::<_, i64>(6), offset);
    assert_eq!(kept[0].get::<_, i32>(7), 0);
    assert!(kept[0].get::<_, bool>(8), "the conflict names its winner");
}

#[test]
fn a_conflict_within_one_batch_is_kept() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let offsets = topic.send([event.clone(), event.conflicting(), event.clone(), event.conflicting()]);
    ledger.expect_stored(0, &offsets[..1], std::slice::from_ref(&event));
    ledger.expect(0, offsets[1..].iter().copied(), "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(texts(&database, WINNER), [event.block_hash.as_str()]);
    assert_eq!(texts(&database, LOSERS), [event.conflicting().block_hash]);
}

#[test]
fn the_first_in_the_log_wins_even_if_it_is_the_conflicting_one() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let first = event.conflicting();
    let offsets = topic.send([&first, &event]);
    ledger.expect_stored(0, &offsets[..1], std::slice::from_ref(&first));
    ledger.expect(0, offsets[1..].iter().copied(), "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(texts(&database, WINNER), [first.block_hash]);
    assert_eq!(texts(&database, LOSERS), [event.block_hash]);
}

#[test]
fn only_another_block_log_index_address_topics_or_data_makes_a_conflict() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let mut others = vec![event.clone(); 8];
    others[1].block_hash.replace_range(2..3, "0");
    others[1].block_hash.replace_range(3..4, "f");
    others[2].log_index += 1;
    others[3].address = format!("0x{}", "1".repeat(40));
    others[4].topics.push(format!("0x{}", "2".repeat(64)));
    others[5].data.push_str("00");
    // These fields are not part of the content.
    others[6].capture_time = None;
    others[7].memo = "\"another\"".to_owned();
    let offsets = topic.send(&others);
    ledger.expect_stored(0, &offsets[..1], &others[..1]);
    ledger.expect(0, offsets[1..].iter().copied(), "processed");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let kept: Vec<i64> = database
        .rows(r#"select "offset" from gapless.event_conflicts order by 1"#, &[])
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(kept, offsets[1..6]);
}

#[test]
fn conflicts_are_counted_and_the_remedy_is_logged_once() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).batches_of(2).start();
    daemon.wait_until_ready();
    for _ in 0..5 {
        let event = ledger.event();
        topic.send([event.clone(), event.conflicting()]);
    }
    database.wait_for_outcomes(10);
    daemon.wait_for_metric("gapless_event_conflicts_total", &[], 5.0);
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of_event("event_conflicts_found"), 1, "{ended}");
    ended.expect_says(&["identity.fields"]);
    database.assert_accounting();
}

#[test]
fn a_fuller_identity_keeps_both_as_events() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    let mut second = event.clone();
    second.log_index += 1;
    topic.send([event.clone(), second, event]);
    let daemon = || {
        let fields = r#"["txn", "event_type", "log_index"]"#;
        let file = std::env::temp_dir().join(crate::support::wait::unique("gapless-config"));
        std::fs::write(&file, format!("[identity]\nfields = {fields}\n")).unwrap();
        let path = file.to_str().unwrap().to_owned();
        Gapless::daemon(&topic, &database).args(["--config", &path]).until_end()
    };
    daemon().run().expect_code(0);
    assert_eq!((database.count("events"), database.count("event_conflicts")), (2, 0));
    // A ledger has one identity recipe; another one is refused.
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&["identity"]);
}
