//! A recently loaded ledger: `verify` reads it in key order with any statistics, an interrupted verb leaves no
//! statement running in the server, and the daemon updates the statistics of its tables.

use std::time::Duration;

use crate::support::servers::RUNTIME;
use crate::support::wait::until;
use crate::support::{Database, Ended, Event, Gapless, Topic};

const TABLES: [&str; 4] = ["outcomes", "stored_events", "conflicting_events", "gaps"];
/// No broker listens at this address, so `verify` checks only the ledger itself.
const NO_BROKER: &str = "127.0.0.1:1";

/// A ledger of one message.
fn ledger() -> (Topic, Database) {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send([Event::numbered(41, 0)]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    for table in TABLES {
        database.execute(&format!("alter table gapless.{table} set (autovacuum_enabled = false)"));
    }
    (topic, database)
}

/// Inserts rows as the daemon writes them for the offsets from `from` to `to`, exclusive: 1 of 16 messages is a
/// conflict, 1 of 16 offsets a gap.
fn load(database: &Database, from: i64, to: i64) {
    database.execute(&format!(
        r#"insert into gapless.stored_events (id, "offset", position_id, event_no, status, identity, content_digest, txn,
               event_type, event_info)
           select 1000000 + n, n, p.id, 0, 'confirmed', md5(n::text)::uuid, md5('c' || n)::uuid, '0x' || n, 'Won', '{{}}'
           from gapless.positions p, generate_series({from}, {to} - 1) n where n % 16 < 14;
           insert into gapless.conflicting_events (event_id, "offset", position_id, event_no, status, identity,
               content_digest, txn, event_type, event_info)
           select 1000000 + n - 1, n, p.id, 0, 'confirmed', md5((n - 1)::text)::uuid, md5('d' || n)::uuid, '0x' || n - 1,
                  'Won', '{{}}'
           from gapless.positions p, generate_series({from}, {to} - 1) n where n % 16 = 14;
           insert into gapless.outcomes ("offset", event_id, position_id, state)
           select n, 1000000 + n - (n % 16 / 14), p.id, (case when n % 16 < 14 then 'stored' else 'processed' end)::gapless.handling_state
           from gapless.positions p, generate_series({from}, {to} - 1) n where n % 16 < 15;
           insert into gapless.gaps (position_id, from_offset, to_offset, kind, ranges, proof)
           select p.id, n, n + 1, 'transaction', int8multirange(int8range(n, n + 1)), 'a test'
           from gapless.positions p, generate_series({from}, {to} - 1) n where n % 16 = 15;
           update gapless.positions set next_offset = {to};
           select setval('gapless.event_ids', 1000000 + {to})"#
    ));
}

fn analyze(database: &Database) {
    TABLES.iter().for_each(|table| database.execute(&format!("analyze gapless.{table}")));
}

/// Asserts that `verify` finds nothing wrong without Kafka.
fn verify(topic: &Topic, database: &Database) -> Ended {
    Gapless::verb("verify", topic, database)
        .brokers(NO_BROKER)
        .run()
        .expect_code(1)
        .expect_says(&["the ledger itself has no findings"])
}

/// The number of rows read by sequential scans, and of index entries read.
fn read_so_far(database: &Database) -> (i64, i64) {
    let sum = |sql: &str| database.value::<i64>(sql);
    (
        sum(
            "select sum(seq_tup_read)::bigint from pg_stat_user_tables where schemaname = 'gapless' and relname in ('outcomes', 'stored_events', 'conflicting_events', 'gaps')",
        ),
        sum("select sum(idx_tup_read)::bigint from pg_stat_user_indexes where schemaname = 'gapless'"),
    )
}

#[test]
fn verify_reads_each_row_a_bounded_number_of_times_with_any_statistics() {
    let (topic, database) = ledger();
    load(&database, 1, 1000);
    analyze(&database);
    load(&database, 1000, 150_000);
    let (scanned, _) = read_so_far(&database);
    let reads = database
        .value::<i64>("select sum(idx_tup_read)::bigint from pg_stat_user_indexes where schemaname = 'gapless'");
    verify(&topic, &database);
    until("the server's counters to be updated", || match read_so_far(&database) {
        (_, read) if read - reads >= 150_000 => Ok(()),
        (_, read) => Err((read - reads).to_string()),
    });
    let (scanned_now, read) = read_so_far(&database);
    // One sequential scan of each table counts the identities.
    assert!(scanned_now - scanned < 2 * 150_000, "{} rows were read by scans of tables", scanned_now - scanned);
    // The outcome, its event, the event that the outcome names, and the gaps twice: 3 entries for each offset.
    assert!(read - reads < 4 * 150_000, "{} entries of indexes were read for 150,000 offsets", read - reads);
    database.execute(
        r#"delete from gapless.outcomes where "offset" between 20000 and 99999;
           delete from gapless.gaps where from_offset between 20000 and 99999"#,
    );
    let verb = Gapless::verb("verify", &topic, &database).brokers(NO_BROKER).args(["--format", "json"]);
    let ended = verb.run().expect_code(3);
    let verdict: serde_json::Value = serde_json::from_str(&ended.output).unwrap();
    let missing: Vec<_> =
        verdict["findings"].as_array().unwrap().iter().filter(|f| f["kind"] == "unaccounted").collect();
    assert_eq!(missing.len(), 1, "one range, however many pages it covers");
    assert_eq!((&missing[0]["from"], &missing[0]["to"]), (&20_000.into(), &100_000.into()));
}

/// Run by hand with a release build: `cargo test --release --test integration -- --ignored two_million`.
#[test]
#[ignore = "a measurement of minutes"]
fn verify_of_two_million_rows_loaded_a_moment_ago_takes_at_most_twice_its_time_after_analyze() {
    let (topic, database) = ledger();
    load(&database, 1, 1000);
    analyze(&database);
    load(&database, 1000, 2_000_000);
    let loaded = verify(&topic, &database).took;
    analyze(&database);
    let analyzed = verify(&topic, &database).took;
    eprintln!("verify of 2,000,000 offsets: {loaded:.1?} right after the load, {analyzed:.1?} after ANALYZE");
    assert!(loaded < analyzed * 2, "{loaded:?} right after the load, {analyzed:?} after ANALYZE");
}

#[test]
fn an_interrupted_verb_leaves_no_statement_running_in_the_server() {
    let (topic, database) = ledger();
    let blocked =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    for (verb, arguments, signal, code) in [
        ("verify", vec![], "TERM", 143),
        ("verify", vec![], "INT", 130),
        ("conflicts", vec!["list"], "TERM", 143),
        ("dead-letters", vec!["list"], "INT", 130),
    ] {
        let other = database.client();
        let lock = "begin; lock gapless.outcomes, gapless.conflicting_events, gapless.rejected_messages";
        RUNTIME.block_on(other.batch_execute(lock)).unwrap();
        let waiting = Gapless::verb(verb, &topic, &database)
            .args(arguments)
            .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "600000")
            .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "600000")
            .start();
        database.wait_for(blocked, 1);
        waiting.signal(signal);
        waiting.wait_within(Duration::from_secs(20)).expect_code(code).expect_says(&["interrupted by SIG"]);
        // The server has ended the statement, although it has sent nothing to the client.
        database.wait_for(blocked, 0);
        RUNTIME.block_on(other.batch_execute("rollback")).unwrap();
    }
}

#[test]
fn the_daemon_analyzes_its_tables_when_they_have_grown_by_an_order_of_magnitude() {
    let (topic, database) = ledger();
    analyze(&database);
    let daemon = Gapless::daemon(&topic, &database).start();
    topic.send((1..2000).map(|number| Event::numbered(41, number)));
    database.wait_for_outcomes(2000);
    for table in ["stored_events", "outcomes"] {
        database.wait_for(
            &format!("select (reltuples >= 1000)::int::bigint from pg_class where oid = 'gapless.{table}'::regclass"),
            1,
        );
    }
    daemon.terminate().expect_code(0);
}
