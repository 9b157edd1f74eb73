//! Reading downstream by position: the rows below next_offset in one snapshot are complete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::IsolationLevel;

use crate::support::servers::RUNTIME;
use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

/// Reads as the contract prescribes: in one snapshot, per partition, `offset >= cursor and offset < next_offset`.
fn read_once(database: &Database, cursors: &mut BTreeMap<i32, i64>, seen: &mut BTreeSet<(i32, i64)>) {
    let mut client = database.client();
    RUNTIME.block_on(async {
        let snapshot = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .unwrap();
        let positions = snapshot
            .query("select partition_id::int, next_offset::bigint from gapless.consumer_positions", &[])
            .await
            .unwrap();
        for position in positions {
            let (partition, next): (i32, i64) = (position.get(0), position.get(1));
            let cursor = cursors.entry(partition).or_default();
            let sql = r#"select "offset"::bigint from gapless.events
                         where partition_id = $1::int and "offset" >= $2::bigint and "offset" < $3::bigint"#;
            for row in snapshot.query(sql, &[&partition, &*cursor, &next]).await.unwrap() {
                assert!(seen.insert((partition, row.get(0))), "an event was read twice");
            }
            *cursor = next;
        }
    });
}

#[test]
fn a_concurrent_reader_by_position_never_misses_a_row() {
    let (topic, database) = (Topic::new(3), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).batches_of(40).start();
    daemon.wait_until_ready();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut cursors, mut seen, mut reads) = (BTreeMap::new(), BTreeSet::new(), 0);
            loop {
                let last = done.load(Ordering::Acquire);
                read_once(&database, &mut cursors, &mut seen);
                reads += 1;
                if last {
                    return (seen, reads);
                }
            }
        });
        let transactions = topic.transactions();
        for round in 0..25 {
            for partition in 0..3 {
                ledger.send_events(partition, 30);
            }
            transactions.abort([Record::from(Event::numbered(99, round).named("Aborted")).to(round as i32 % 3)]);
        }
        database.wait_for_outcomes(ledger.len());
        done.store(true, Ordering::Release);
        let (seen, reads) = reader.join().unwrap();
        let rows = database.rows(r#"select partition_id::int, "offset"::bigint from gapless.events"#, &[]);
        let all: BTreeSet<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(seen, all);
        assert!(reads > 3, "the reader read only {reads} times: it was not concurrent");
    });
    daemon.terminate().expect_code(0);
    ledger.assert_matches(&database);
}
