//! Servers that stop, crash and return: the daemon waits, reports it, and continues by itself.
//! Tests that stop a server have servers of their own.

use crate::support::proxy::Proxy;
use crate::support::servers::{RUNTIME, Sandbox};
use crate::support::wait::until;
use crate::support::{Database, Gapless, Ledger, Topic};

#[test]
fn the_daemon_resumes_after_postgresql_is_stopped_crashed_or_killed() {
    let sandbox = Sandbox::postgres();
    let (topic, database) = (Topic::new(1), Database::on(&sandbox.database_url));
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 100);
    database.wait_for_outcomes(100);
    for how in ["stop", "immediate", "kill"] {
        sandbox.control_postgres(how);
        ledger.send_events(0, 100);
        daemon.wait_until_ready_is(503);
        assert_eq!(daemon.get("/livez").status, 200);
        daemon.wait_for_metric("gapless_database_up", &[], 0.0);
        sandbox.control_postgres("start");
        database.wait_for_outcomes(ledger.len());
        daemon.wait_until_ready();
        daemon.wait_for_metric("gapless_database_up", &[], 1.0);
        ledger.assert_complete(&database);
    }
    daemon.terminate().expect_code(0);
}

#[test]
fn the_daemon_waits_for_a_postgresql_that_is_down_at_the_start() {
    let sandbox = Sandbox::postgres();
    let (topic, database) = (Topic::new(1), Database::on(&sandbox.database_url));
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    sandbox.control_postgres("stop");
    let daemon = Gapless::daemon(&topic, &database).until_end().start();
    daemon.wait_until_ready_is(503);
    assert_eq!(daemon.get("/livez").status, 200);
    sandbox.control_postgres("start");
    daemon.wait().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn the_daemon_resumes_after_kafka_is_stopped_or_killed() {
    let sandbox = Sandbox::kafka();
    let (topic, database) = (Topic::on(&sandbox.brokers, 2, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 100);
    ledger.send_events(1, 100);
    database.wait_for_outcomes(200);
    for how in ["stop", "kill"] {
        sandbox.control_kafka(how);
        daemon.wait_until_ready_is(503);
        assert_eq!(daemon.get("/livez").status, 200);
        daemon.wait_for_metric("gapless_kafka_up", &[], 0.0);
        sandbox.control_kafka("start");
        ledger.send_events(0, 100);
        ledger.send_events(1, 100);
        database.wait_for_outcomes(ledger.len());
        daemon.wait_until_ready();
        ledger.assert_complete(&database);
    }
    daemon.terminate().expect_code(0);
}

#[test]
fn a_session_that_the_server_ends_is_replaced() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    for _ in 0..5 {
        ledger.send_events(0, 50);
        database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        );
        ledger.send_events(0, 50);
        database.wait_for_outcomes(ledger.len());
    }
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_migration_whose_session_the_server_ends_is_tried_again() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    // The migration waits for an uncommitted table of the same name.
    database.execute("create schema gapless");
    let other = database.client();
    RUNTIME.block_on(other.batch_execute("begin; create table gapless.positions ()")).unwrap();
    let daemon = Gapless::daemon(&topic, &database).start();
    let waiting = "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query ilike '%create table%'";
    database.wait_for(&format!("select count(*) from {waiting}"), 1);
    database.execute(&format!("select pg_terminate_backend(pid) from {waiting} and pid <> pg_backend_pid()"));
    daemon.wait_for("the migration was cut short");
    RUNTIME.block_on(other.batch_execute("rollback")).unwrap();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_database_that_lost_its_last_commits_is_filled_again_from_its_stored_positions() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 10);
    database.wait_for_position(0, 10);
    database.execute("create table public.copy as select * from gapless.positions");
    ledger.send_events(0, 10);
    database.wait_for_position(0, 20);
    // As in a restored backup, or on a promoted standby that lagged behind: older rows, and no open connection.
    database.execute(
        r#"select pg_terminate_backend(pid) from pg_stat_activity
           where datname = current_database() and pid <> pg_backend_pid();
           delete from gapless.outcomes where "offset" >= 10;
           delete from gapless.stored_events where "offset" >= 10;
           update gapless.positions p set next_offset = c.next_offset, anchor_offset = c.anchor_offset,
               anchor_digest = c.anchor_digest, leader_epoch = c.leader_epoch from public.copy c where c.id = p.id"#,
    );
    ledger.send_events(0, 10);
    database.wait_for_position(0, 30);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn positions_set_back_by_a_failover_under_several_in_flight_batches_halt_no_partition() {
    let (topic, database) = (Topic::new(6), Database::new());
    let mut ledger = Ledger::of(&topic);
    // Enough for a COPY: until one has succeeded, a batch waits until its predecessor has returned its connection.
    (0..6).for_each(|partition| drop(ledger.send_events(partition, 100)));
    let daemon =
        Gapless::daemon(&topic, &database).batches_of(100).env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "60000").start();
    database.wait_for_outcomes(600);
    database.before_each_event("perform pg_catalog.pg_advisory_xact_lock_shared(42);");
    let holder = database.client();
    RUNTIME.block_on(holder.execute("select pg_advisory_lock(42)", &[])).unwrap();
    (0..6).for_each(|partition| drop(ledger.send_events(partition, 100)));
    database.wait_for(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'",
        4,
    );
    database.execute(
        r#"delete from gapless.outcomes;
           delete from gapless.stored_events;
           update gapless.positions set next_offset = 0, anchor_offset = null, anchor_digest = null, leader_epoch = null"#,
    );
    drop(holder);
    database.wait_for_outcomes(ledger.len());
    assert!(!daemon.has_event("partition_halted"), "{}", daemon.tail());
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn connections_that_end_while_idle_do_not_count_as_unknown_commits() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    for _ in 0..3 {
        ledger.send_events(0, 5);
        database.wait_for_outcomes(ledger.len());
        database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and state = 'idle'",
        );
    }
    ledger.send_events(0, 5);
    database.wait_for_outcomes(ledger.len());
    assert_eq!(daemon.metric("gapless_commit_unknown_total", &[]), 0.0);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn no_session_state_outlives_a_transaction_so_that_a_pooler_can_be_used() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let proxy = Proxy::before(database.address());
    let event = ledger.event();
    let transactions = topic.transactions();
    let offsets = transactions.commit([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(event.conflicting(), "processed");
    ledger.send("poison", "rejected");
    let daemon = || Gapless::daemon(&topic, &database).database_url(&database.url_through(proxy.address)).until_end();
    daemon().run().expect_code(0);
    daemon().offset("earliest").run().expect_code(0);
    ledger.assert_complete(&database);
    let statements = proxy.statements();
    assert!(statements.len() > 10, "the statements passed the proxy");
    for (at, prepared) in statements.iter().enumerate().filter(|(_, one)| !one.name.is_empty() && one.text != "close") {
        let later = statements[at..].iter().filter(|one| one.connection == prepared.connection);
        let end = later.skip(1).find(|one| one.name == prepared.name || one.text.to_lowercase() == "commit");
        assert!(end.is_some_and(|end| end.text == "close"), "it outlives its transaction: {prepared:?}, {end:?}");
    }
    let outlives_transaction = |text: &str| {
        let text = text.to_lowercase();
        let mut words = text.split_whitespace();
        match words.next() {
            Some("set") => !matches!(words.next(), Some("local" | "transaction")),
            Some("listen" | "prepare" | "declare") => true,
            _ => text.contains("pg_advisory_lock"),
        }
    };
    let outliving: Vec<_> = statements
        .iter()
        .filter(|statement| statement.text.split(';').any(|text| outlives_transaction(text.trim())))
        .collect();
    assert!(outliving.is_empty(), "outlives its transaction: {outliving:?}");
}

#[test]
fn a_schema_recreated_under_a_running_daemon_is_filled_from_the_beginning() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 3);
    database.wait_for_outcomes(3);
    // As a restore does it; the types then have other OIDs.
    database.execute("begin; drop schema gapless cascade; commit");
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    ledger.send_events(0, 3);
    database.wait_for_outcomes(6);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_statement_timeout_shorter_than_a_small_batch_causes_no_unknown_commits() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.execute(
        "do $$ begin
             execute format('alter database %I set statement_timeout = ''300ms''', current_database());
         end $$",
    );
    database.before_each_event("perform pg_catalog.pg_sleep(0.5);");
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 1);
    let daemon = Gapless::daemon(&topic, &database).start();
    database.wait_for_outcomes(1);
    daemon.wait_for_metric("gapless_batches_total", &["path=\"merge\""], 1.0);
    assert_eq!(daemon.metric("gapless_commit_unknown_total", &[]), 0.0);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn settings_of_the_role_do_not_weaken_a_transaction() {
    // A statement that is a transaction by itself begins with the role's settings.
    for (isolation, path) in [("read committed", "single_statement"), ("serializable", "merge")] {
        settings_of_the_role_do_not_weaken(isolation, path);
    }
}

fn settings_of_the_role_do_not_weaken(isolation: &str, path: &str) {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    database.execute(&format!(
        "create schema evil; create table evil.events (id int);
         do $$ begin
             execute format('alter database %I set default_transaction_isolation = ''{isolation}''', current_database());
             execute format('alter database %I set synchronous_commit = off', current_database());
             execute format('alter database %I set search_path = evil', current_database());
         end $$",
    ));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database
        .execute("create table public.seen (isolation text, synchronous text, path text, lock text, statement text)");
    let settings = ["transaction_isolation", "synchronous_commit", "search_path", "lock_timeout", "statement_timeout"];
    let settings = settings.map(|name| format!("pg_catalog.current_setting('{name}')")).join(", ");
    database.before_each_event(&format!("insert into public.seen values ({settings});"));
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(10);
    let batches = |path| daemon.metric("gapless_batches_total", &[&format!("path=\"{path}\"")]);
    let expected = (path == "single_statement", path == "merge");
    until("its batches to be counted", || match (batches("single_statement") > 0.0, batches("merge") > 0.0) {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?}")),
    });
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
    // A new statement_timeout applies from the next statement on; a batch of one statement has no next one.
    let finite = if path == "single_statement" { "lock <> '0'" } else { "lock <> '0' and statement <> '0'" };
    let seen = database.rows(&format!("select distinct isolation, synchronous, path, {finite} from public.seen"), &[]);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].get::<_, &str>(0), "read committed");
    assert_eq!(seen[0].get::<_, &str>(1), "on");
    assert!(!seen[0].get::<_, &str>(2).contains("evil"), "{}", seen[0].get::<_, &str>(2));
    assert!(seen[0].get::<_, bool>(3), "every wait of a transaction is finite");
}
