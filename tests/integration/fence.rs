//! One writer: the newest start wins; an older writer leaves nothing and exits as fenced.

use std::time::{Duration, Instant};

use crate::support::servers::Sandbox;
use crate::support::wait::{stays, until};
use crate::support::{Database, Event, Gapless, Ledger, Topic};

#[test]
fn the_older_of_two_daemons_is_fenced_and_nothing_is_doubled() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let older = Gapless::daemon(&topic, &database).batches_of(20).start();
    ledger.send_events(0, 100);
    database.wait_for_outcomes(100);
    ledger.send_events(0, 500);
    let newer = Gapless::daemon(&topic, &database).batches_of(20).start();
    ledger.send_events(1, 500);
    older.wait().expect_code(3).expect_says(&["position taken over by"]);
    ledger.send_events(0, 100);
    database.wait_for_outcomes(ledger.len());
    newer.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn an_idle_daemon_notices_within_ten_seconds_that_it_is_fenced() {
    let (topic, database) = (Topic::new(1), Database::new());
    let older = Gapless::daemon(&topic, &database).start();
    older.wait_until_ready();
    let newer = Gapless::daemon(&topic, &database).start();
    newer.wait_until_ready();
    let begun = Instant::now();
    older.wait().expect_code(3).expect_says(&["position taken over by"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    newer.terminate().expect_code(0);
}

#[test]
fn a_daemon_that_sleeps_during_the_takeover_writes_nothing_when_it_wakes() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    // The daemon sleeps with an open transaction: its rows are written, its position is not moved yet.
    ledger.send_events(0, 500);
    let older = Gapless::daemon(&topic, &database).failpoint("before_cas=hang").start();
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction' and query like '-- copy_outcomes%'";
    // The query excludes the transaction of the start, which is also idle for a moment.
    database.wait_for(open, 1);
    older.signal("STOP");
    // The server releases the locks when it ends the idle transaction; until then the newer daemon may have to wait.
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'",
    );
    let newer = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(500);
    older.signal("CONT");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(510);
    newer.terminate().expect_code(0);
    drop(older);
    ledger.assert_complete(&database);
}

#[test]
fn a_writer_that_is_fenced_in_the_middle_of_its_transaction_leaves_nothing() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // Only the older daemon is slow, so that another one starts while its rows are written and not committed.
    database.execute("create sequence public.slow; create table public.written (backend int)");
    database.before_each_event(
        "if new.event_type = 'Slow' and nextval('public.slow') = 1 then perform pg_catalog.pg_sleep(6); end if;
         insert into public.written values (pg_catalog.pg_backend_pid());",
    );
    let older = Gapless::daemon(&topic, &database).start();
    older.wait_until_ready();
    let events = [ledger.event(), ledger.event().named("Slow"), ledger.event()];
    let offsets = topic.send(&events);
    ledger.expect_stored(0, &offsets, &events);
    database.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'",
        1,
    );
    let slow = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
    let backend = database.value::<i32>(slow);
    let fence = "select max(fence)::bigint from gapless.consumer_positions";
    let before = database.value::<i64>(fence);
    let newer = Gapless::daemon(&topic, &database).start();
    until("the newer daemon's start", || match database.value::<i64>(fence) {
        taken if taken > before => Ok(()),
        taken => Err(taken.to_string()),
    });
    assert_eq!(database.count("events"), 0, "the older one has not committed yet");
    older.wait().expect_code(3).expect_says(&["position taken over by"]);
    // The server may continue the older daemon's statement for some time.
    database.wait_for(&format!("select count(*) from pg_stat_activity where pid = {backend}"), 0);
    let left = format!("select count(*) from public.written where backend = {backend}");
    assert_eq!(database.value::<i64>(&left), 0, "rows that the fenced writer left behind");
    database.wait_for_outcomes(3);
    newer.wait_for_metric("gapless_messages_total", &["outcome=\"stored\""], 3.0);
    newer.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_daemon_that_wakes_before_its_commit_is_fenced() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let older = Gapless::daemon(&topic, &database).start();
    older.wait_until_ready();
    older.signal("STOP");
    ledger.send_events(0, 50);
    let newer = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(50);
    older.signal("CONT");
    older.wait().expect_code(3).expect_says(&["position taken over by"]);
    newer.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn the_key_locks_of_a_daemon_stopped_in_the_middle_of_a_copy_are_released() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    // Slow enough to be stopped during a COPY, which is larger than the buffers of the connection.
    database.execute("create sequence public.rows");
    database.before_each_event("if nextval('public.rows') < 1500 then perform pg_catalog.pg_sleep(0.001); end if;");
    let mut ledger = Ledger::of(&topic);
    let events: Vec<Event> = (0..2000).map(|_| ledger.event().sized(10_000)).collect();
    ledger.send_new(0, &events);
    // The application name is the user's. Each daemon has limits of its own; those of the older one apply to its
    // session.
    let named = format!("{}{}application_name=etl", database.url, if database.url.contains('?') { '&' } else { '?' });
    let daemon =
        || Gapless::daemon(&topic, &database).database_url(&named).env("GAPLESS__BATCH__MAX_BYTES", "64000000");
    let begun = Instant::now();
    let older =
        daemon().env("GAPLESS__DATABASE__WRITERS", "1").env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "8000").start();
    let copying = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
                   and query like '-- copy_events%'";
    database.wait_until_something_is_stored();
    database.wait_for(copying, 1);
    older.signal("STOP");
    let waiting = format!("{copying} and wait_event = 'ClientRead'");
    database.wait_for(&waiting, 1);
    stays("the server waits for the rest", Duration::from_secs(1), || match database.value::<i64>(&waiting) {
        1 => Ok(()),
        found => Err(found.to_string()),
    });
    let newer = daemon()
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "3000")
        .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "1000")
        .start();
    newer.wait_for_event("stale_sessions_terminated");
    assert!(begun.elapsed() > Duration::from_secs(10), "the session was ended before the older daemon's own timeout");
    database.wait_for_outcomes(ledger.len());
    newer.terminate().expect_code(0);
    drop(older);
    ledger.assert_complete(&database);
}

#[test]
fn the_key_locks_of_an_abandoned_small_batch_are_released() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    // The first row is inserted, the second one waits.
    database.execute("create sequence public.rows");
    database.before_each_event("if nextval('public.rows') = 2 then perform pg_catalog.pg_sleep(600); end if;");
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let daemon = Gapless::daemon(&topic, &database)
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "3000")
        .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "1000")
        .start();
    let line = daemon.wait_for_event("commit_unknown").to_string();
    assert!(line.contains("gave no answer within"), "{line}");
    daemon.wait_for_event("stale_sessions_terminated");
    database.wait_for_outcomes(ledger.len());
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_session_that_waits_for_its_synchronous_standby_is_not_terminated() {
    let server = Sandbox::postgres();
    let database = Database::on(&server.database_url);
    let (topic, other) = (Topic::new(1), Topic::new(1));
    let mut ledger = Ledger::of(&topic);
    let waiting = Gapless::daemon(&topic, &database).start();
    waiting.wait_until_ready();
    // The daemon allocates its block of event ids now: its COMMIT would also wait for the standby.
    ledger.send_events(0, 1);
    database.wait_for_outcomes(1);
    // Timeouts so short that this daemon assumes that the other one has stopped.
    let hasty = Gapless::daemon(&other, &database)
        .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "1000")
        .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "500")
        .start();
    hasty.wait_until_ready();
    other.send([Event::numbered(1, 1)]);
    database.wait_for_outcomes(2);
    database.execute("alter system set synchronous_standby_names = 'nobody'");
    database.execute("select pg_reload_conf()");
    let event = ledger.event();
    ledger.send_new(0, std::slice::from_ref(&event));
    let committing =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'SyncRep'";
    database.wait_for(committing, 1);
    other.send([&event]);
    let blocked =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    database.wait_for(blocked, 1);
    stays("the rows stay invisible until the standby is no longer required", Duration::from_secs(6), || {
        match (database.value::<i64>(committing), database.count("kafka_events_received")) {
            (1.., 2) => Ok(()),
            (sessions, rows) => Err(format!("{sessions} sessions wait, {rows} outcomes are seen")),
        }
    });
    database.execute("alter system reset synchronous_standby_names");
    database.execute("select pg_reload_conf()");
    database.wait_for_outcomes(4);
    assert_eq!(database.count("events"), 3);
    waiting.terminate().expect_code(0);
    hasty.terminate().expect_code(0);
}

#[test]
fn a_refused_start_does_not_fence_the_running_daemon() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let mut running = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(10);
    let fence = "select max(fence)::bigint from gapless.consumer_positions";
    let before = database.value::<i64>(fence);
    Gapless::daemon(&topic, &database).offset("99").run().expect_code(3);
    Gapless::daemon(&topic, &database).group("another").run().expect_code(3).expect_says(&["another"]);
    assert_eq!(database.value::<i64>(fence), before);
    assert!(running.is_running());
    ledger.send_events(0, 10);
    database.wait_for_outcomes(20);
    running.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn verbs_take_no_fence() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let running = Gapless::daemon(&topic, &database).start();
    running.wait_until_ready();
    for verb in ["status", "check", "migrate"] {
        Gapless::verb(verb, &topic, &database).run().expect_code(0);
    }
    ledger.send_events(0, 10);
    database.wait_for_outcomes(10);
    running.terminate().expect_code(0);
    ledger.assert_complete(&database);
}
