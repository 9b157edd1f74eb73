//! Late changes: offsets that are filled in or changed below the position are numbered in the order of the commits.

use std::process::{Command, Stdio};

use crate::support::wait::until;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

/// A reader of the late changes of partition 0, as in docs/data-model.md.
#[derive(Default)]
struct Reader {
    cursor: i64,
    seen: Vec<i64>,
}

impl Reader {
    /// Returns the new late changes.
    fn poll(&mut self, database: &Database) -> Vec<i64> {
        let sql = r#"select "offset"::bigint, revision::bigint from gapless.late_changes
                     where partition_id = 0 and revision > $1::bigint order by revision"#;
        let rows = database.rows(sql, &[&self.cursor]);
        let offsets: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        self.cursor = rows.last().map_or(self.cursor, |row| row.get(1));
        self.seen.extend(&offsets);
        offsets
    }
}

fn run(topic: &Topic, database: &Database) {
    Gapless::daemon(topic, database).until_end().run().expect_code(0);
}

/// Changes a dead letter into a message that can be decoded, as a later decoder might.
fn make_decodable(database: &Database, offset: i64) {
    database.execute(&format!(
        r#"update gapless.rejected_messages
           set payload = convert_to('{{"transactionHash":"0x{offset:064x}","event":"Won"}}', 'UTF8')
           where "offset" = {offset}"#
    ));
}

fn replay(topic: &Topic, database: &Database, offset: i64) -> Gapless {
    let id = format!("0:{offset}");
    Gapless::verb("replay", topic, database).args(["--id", &id])
}

#[test]
fn every_kind_of_change_below_the_position_is_a_late_change_and_ordinary_reading_is_not() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let event = ledger.event();
    ledger.send_events(0, 5);
    let at = ledger.send_new(0, std::slice::from_ref(&event))[0];
    ledger.send("no event", "rejected");
    let mut reader = Reader::default();
    Gapless::daemon(&topic, &database).offset("3").until_end().run().expect_code(0);
    assert_eq!(reader.poll(&database), [] as [i64; 0], "messages read for the first time are not late changes");
    // An earlier start fills in the offsets below.
    Gapless::daemon(&topic, &database).offset("earliest").until_end().run().expect_code(0);
    assert_eq!(reader.poll(&database), [0, 1, 2]);
    // A removal changes the event of an earlier message, and so does the addition after it.
    ledger.send(Event { removed: true, ..event.clone() }, "removed");
    run(&topic, &database);
    assert_eq!(reader.poll(&database), [at]);
    ledger.send(&event, "processed");
    run(&topic, &database);
    assert_eq!(reader.poll(&database), [at]);
    // A removal in the same batch as its event is no late change: no reader can have read the event before.
    let taken_back = ledger.event();
    ledger.send_new(0, std::slice::from_ref(&taken_back));
    ledger.send(Event { removed: true, ..taken_back }, "removed");
    run(&topic, &database);
    assert_eq!(reader.poll(&database), [] as [i64; 0]);
    // A lost outcome and a lost event with an outcome are filled in.
    database.execute(r#"delete from gapless.outcomes where "offset" = 1"#);
    database.execute(r#"delete from gapless.stored_events where "offset" = 2"#);
    let range = format!("{}:0:0-5", topic.name);
    Gapless::verb("replay", &topic, &database).args(["--offsets", &range]).run().expect_code(0);
    assert_eq!(reader.poll(&database), [1, 2]);
    database.assert_accounting();
    // A dead letter is replayed.
    make_decodable(&database, 6);
    replay(&topic, &database, 6).run().expect_code(0);
    assert_eq!(reader.poll(&database), [6]);
}

#[test]
fn offsets_published_before_a_rewind_are_late_changes_even_if_the_rewind_is_interrupted() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &database).offset("10").until_end().run().expect_code(0);
    // The position is set back twice before anything is read; the reader's cursor is still 20.
    for order in ["5", "0"] {
        Gapless::daemon(&topic, &database).offset(order).failpoint("start_stored=kill").run().expect_killed();
    }
    // Published outcomes are lost meanwhile, so that only the position itself records that they were published.
    database.execute(r#"delete from gapless.outcomes where "offset" >= 18"#);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).batches_of(4).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    let mut reader = Reader::default();
    let expected: Vec<i64> = (0..10).chain(18..20).collect();
    assert_eq!(reader.poll(&database), expected);
}

#[test]
fn a_reader_that_polls_during_a_slow_commit_misses_no_late_change() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    for _ in 0..3 {
        ledger.send("no event", "rejected");
    }
    run(&topic, &database);
    (0..3).for_each(|offset| make_decodable(&database, offset));
    // The COMMIT waits until the test releases the lock.
    database.execute(
        r#"create function public.slow() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(19); return null; end $$;
           create constraint trigger slow after update on gapless.outcomes deferrable initially deferred
           for each row when (new."offset" = 0) execute function public.slow()"#,
    );
    let holder = database.client();
    let hold = |sql: &str| crate::support::servers::RUNTIME.block_on(holder.batch_execute(sql)).unwrap();
    hold("select pg_advisory_lock(19)");
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let slow = replay(&topic, &database, 0).start();
    database.wait_for(waiting, 1);
    let mut reader = Reader::default();
    reader.poll(&database);
    // The second replay begins later and could commit long before the slow one.
    let fast = replay(&topic, &database, 1).start();
    until("the second replay to wait or to be committed", || {
        let is_done = database.outcomes()[&(0, 1)] == "stored";
        if is_done || database.value::<i64>(waiting) == 2 { Ok(()) } else { Err("neither".to_owned()) }
    });
    reader.poll(&database);
    hold("select pg_advisory_unlock(19)");
    slow.wait().expect_code(0);
    reader.poll(&database);
    fast.wait().expect_code(0);
    reader.poll(&database);
    replay(&topic, &database, 2).run().expect_code(0);
    reader.poll(&database);
    assert_eq!(reader.seen, [0, 1, 2]);
}

#[test]
fn a_reader_resumes_at_its_cursor_after_a_dump_and_a_restore() {
    let (topic, database, restored) = (Topic::new(1), Database::new(), Database::new());
    let mut ledger = Ledger::of(&topic);
    for _ in 0..3 {
        ledger.send("no event", "rejected");
    }
    run(&topic, &database);
    (0..3).for_each(|offset| make_decodable(&database, offset));
    let mut reader = Reader::default();
    replay(&topic, &database, 0).run().expect_code(0);
    assert_eq!(reader.poll(&database), [0]);
    replay(&topic, &database, 1).run().expect_code(0);
    let mut dump = Command::new("pg_dump").arg(&database.url).stdout(Stdio::piped()).spawn().expect("pg_dump");
    let dumped = dump.stdout.take().expect("standard output was piped");
    let psql = Command::new("psql")
        .args(["--quiet", "--set", "ON_ERROR_STOP=1", &restored.url])
        .stdin(dumped)
        .stdout(Stdio::null())
        .status()
        .expect("psql");
    assert!(psql.success() && dump.wait().expect("pg_dump").success());
    replay(&topic, &restored, 2).run().expect_code(0);
    assert_eq!(reader.poll(&restored), [1, 2]);
}
