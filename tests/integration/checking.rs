//! `gapless check` reports every problem that a start would have, with a working remedy; the start reports the same.

use serde_json::Value;

use crate::support::servers::Sandbox;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn findings(gapless: Gapless, code: i32) -> Vec<Value> {
    let ended = gapless.args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

fn check(topic: &Topic, database: &Database, code: i32) -> Vec<Value> {
    findings(Gapless::verb("check", topic, database), code)
}

/// The findings whose verdict is not `ok`.
fn troubles(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| finding["verdict"] != "ok").collect()
}

#[track_caller]
fn expect_one<'a>(findings: &'a [Value], verdict: &str, words: &[&str]) -> &'a str {
    let troubles = troubles(findings);
    let [one] = troubles.as_slice() else { panic!("not one finding: {troubles:#?}") };
    assert_eq!(one["verdict"], verdict, "{one}");
    for word in words {
        assert!(one.to_string().contains(word), "{word:?} is not in {one}");
    }
    one["remedy"].as_str().unwrap()
}

/// Creates a role that may only log in. Returns its name and its URL.
fn role(database: &Database) -> (String, String) {
    let name = database.value::<String>("select current_database()::text");
    database.execute(&format!("create role {name} login password 'limited'"));
    let url = format!("postgres://{name}:limited@{}/{name}", database.address());
    (name, url)
}

#[test]
fn a_start_that_waits_for_a_right_logs_it_once_and_reports_no_server_as_lost() {
    let (topic, database) = (Topic::new(1), Database::new());
    let (name, url) = role(&database);
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.execute(&format!("grant usage on schema gapless to {name}"));
    database.execute(&format!("grant select on all tables in schema gapless to {name}"));
    let daemon = Gapless::daemon(&topic, &database).database_url(&url).env("GAPLESS__LOG__LEVEL", "debug").start();
    let line = daemon.wait_for_event("waiting_to_start").to_string();
    assert!(line.contains("waiting to start: role "), "{line}");
    daemon.wait_for("still waiting for the same reason");
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of_event("waiting_to_start"), 1, "{ended}");
    assert_eq!((ended.count_of_event("postgres_lost"), ended.count_of_event("postgres_returned")), (0, 0), "{ended}");
    database.drop_role(&name);
}

#[test]
fn a_missing_right_is_named_with_its_grant_by_check_and_by_the_waiting_start() {
    let (topic, database) = (Topic::new(1), Database::new());
    let (name, url) = role(&database);
    let verb = || Gapless::verb("check", &topic, &database).database_url(&url);
    expect_none_or_migrate(&findings(verb(), 3));
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    database.grant_rights(&name);
    findings(verb(), 0);
    let lacking = ["insert on gapless.outcomes", "usage on sequence gapless.event_ids", "usage on schema gapless"];
    for right in lacking {
        database.execute(&format!("revoke {right} from {name}"));
        let found = findings(verb(), 1);
        let remedy = expect_one(&found, "error", &[&name]);
        let daemon = Gapless::daemon(&topic, &database).database_url(&url).start();
        daemon.wait_for_event("waiting_to_start");
        daemon.wait_for(remedy);
        database.execute(remedy.strip_prefix("run: ").unwrap());
        database.wait_for_outcomes(ledger.len());
        daemon.terminate().expect_code(0);
        findings(verb(), 0);
    }
    // The role may only read.
    let all = "insert, update, delete on all tables in schema gapless";
    database.execute(&format!("revoke {all} from {name}"));
    let found = findings(verb(), 1);
    let needed = found.iter().find(|finding| finding["effect"] == "waits").expect("a start would wait");
    let (detail, remedy) = (needed["detail"].as_str().unwrap(), needed["remedy"].as_str().unwrap());
    assert!(detail.contains("INSERT, UPDATE on gapless.") && detail.contains("gapless.positions"), "{needed}");
    assert_eq!(detail.matches("gapless.positions").count(), 1, "{needed}");
    database.execute(remedy.strip_prefix("run: ").unwrap());
    expect_one(&findings(verb(), 0), "warning", &["gapless.decisions"]);
    database.grant_rights(&name);
    database.execute(&format!("revoke execute on function gapless.enter from public, {name}"));
    expect_one(&findings(verb(), 1), "error", &["gapless.enter", "grant EXECUTE"]);
    ledger.assert_complete(&database);
    database.drop_role(&name);
}

#[track_caller]
fn expect_none_or_migrate(found: &[Value]) {
    let refused = found.iter().find(|finding| finding["effect"] == "refuses").expect("a refused start");
    assert!(refused["detail"].as_str().unwrap().contains("gapless migrate"), "{refused}");
}

#[test]
fn a_table_owner_without_usage_on_the_schema_is_named() {
    let (topic, database) = (Topic::new(1), Database::new());
    let (owner, url) = role(&database);
    database.execute(&format!("grant create on database {owner} to {owner}"));
    Gapless::verb("migrate", &topic, &database).database_url(&url).run().expect_code(0);
    database.execute(&format!("revoke usage on schema gapless from {owner}"));
    let found = check(&topic, &database, 1);
    let remedy = expect_one(&found, "error", &["owns gapless's tables", "foreign keys", &owner]);
    database.execute(remedy.strip_prefix("run: ").unwrap());
    check(&topic, &database, 0);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    database.drop_role(&owner);
}

#[test]
fn check_reports_each_refusal_of_a_start_with_the_exit_code_of_the_start() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    check(&topic, &database, 0);
    let verb = || Gapless::verb("check", &topic, &database);
    expect_one(&findings(verb().group("another"), 3), "error", &["consumer group", "another"]);
    let fields = "txn,event_type,log_index";
    let other = verb().env("GAPLESS__IDENTITY__FIELDS", fields);
    expect_one(&findings(other, 3), "error", &["identity.fields", fields]);
}

#[test]
fn a_partition_that_would_halt_is_a_finding_with_the_remedy_of_its_halt() {
    let (topic, database) = (Topic::new(2), Database::new());
    for partition in 0..2 {
        topic.send_to(partition, (0..5).map(|number| Event::numbered(5, number)));
    }
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    topic.send((5..10).map(|number| Event::numbered(5, number)));
    topic.delete_before(0, 8);
    expect_one(&check(&topic, &database, 3), "error", &["partition 0", "[5, 8)", "expired", "gapless accept-loss"]);
    database.execute("update gapless.positions set next_offset = 99 where partition_id = 1");
    let found = check(&topic, &database, 3);
    let reported: Vec<&str> = troubles(&found).iter().map(|f| f["what"].as_str().unwrap()).collect();
    assert_eq!(reported, ["partition 0", "partition 1"], "{found:#?}");
    assert!(found.last().unwrap()["detail"].as_str().unwrap().contains("beyond_log_end"), "{found:#?}");
    // The daemon has halted the partition for a reason that the log does not show: check reports it with the others.
    database.execute(
        "insert into gapless.recorded_states (position_id, fence, state, reason, detail, remedy)
         select id, fence, 'halted', 'differs', 'another message', 'look' from gapless.positions where partition_id = 1;
         update gapless.positions set next_offset = 5 where partition_id = 1",
    );
    let found = check(&topic, &database, 3);
    let reported: Vec<&str> = troubles(&found).iter().map(|f| f["what"].as_str().unwrap()).collect();
    assert_eq!(reported, ["partition 0", "partition 1"], "{found:#?}");
    assert!(found.last().unwrap()["detail"].as_str().unwrap().contains("differs"), "{found:#?}");
    topic.recreate(2);
    let found = check(&topic, &database, 3);
    for trouble in troubles(&found) {
        assert!(trouble["remedy"].as_str().unwrap().contains("gapless rebase"), "{trouble}");
    }
}

#[test]
fn a_partition_that_its_daemon_halted_is_a_finding() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // The state after a log was truncated and has grown again.
    database.execute("update gapless.positions set anchor_digest = gen_random_uuid()");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    expect_one(&check(&topic, &database, 3), "error", &["halted since", "replaced", "--log-replaced"]);
}

#[test]
fn check_of_an_older_ledger_says_that_the_start_migrates_and_which_group_owns_it() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send((0..5).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    // The state that an earlier version leaves: the newer objects are missing.
    database.execute(
        "delete from gapless.refinery_schema_history where version > 6;
         drop view gapless.partition_states;
         drop table gapless.recorded_states, gapless.audits",
    );
    let found = check(&topic, &database, 0);
    expect_one(&found, "warning", &["version 6", "gapless migrate"]);
    let verb = Gapless::verb("check", &topic, &database).group("another");
    assert!(findings(verb, 3).last().unwrap()["detail"].as_str().unwrap().contains("consumer group"));
}

#[test]
fn missing_kafka_rights_are_named_and_a_missing_right_for_lag_tools_stops_nothing() {
    let sandbox = Sandbox::kafka_with_rules();
    let (topic, database) = (Topic::on(&sandbox.brokers, 1, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    check(&topic, &database, 0);
    sandbox.deny_group("gapless", "Read");
    expect_one(&check(&topic, &database, 0), "warning", &["Read", "group gapless", "kafka-acls.sh"]);
    let daemon = Gapless::daemon(&topic, &database).start();
    let line = daemon.wait_for_event("offset_commit_refused").to_string();
    assert!(line.contains("grant Read on the consumer group"), "{line}");
    database.wait_for_outcomes(ledger.len());
    assert!(daemon.metric("gapless_offset_commit_failures_total", &[]) >= 1.0);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
    sandbox.deny(&topic.name, "Read");
    let found = check(&topic, &database, 1);
    let topic_finding = found.iter().find(|f| f["effect"] == "waits").expect("a start would wait");
    assert!(topic_finding["detail"].as_str().unwrap().contains("Read on topic"), "{topic_finding}");
}

#[test]
fn a_topic_that_does_not_exist_has_its_remedy_in_the_log_and_in_every_verb() {
    let database = Database::new();
    let topic = Topic::new(1);
    let absent = |gapless: Gapless| gapless.args(["--topic", "no_such_topic"]).brokers(&topic.brokers);
    let remedy = "create the topic";
    let daemon = absent(Gapless::bare()).database_url(&database.url).start();
    let line = daemon.wait_for_event("waiting_to_start").to_string();
    assert!(line.contains("no_such_topic") && line.contains(remedy), "{line}");
    assert!(daemon.wait_until_ready_is(503).contains(remedy));
    daemon.terminate().expect_code(0);
    for verb in [&["plan"][..], &["status"], &["replay", "--offsets", "no_such_topic:0:0-1"]] {
        let ended = absent(Gapless::bare().args(verb.iter().copied())).database_url(&database.url).run();
        // The ledger does not have the topic either; a verb reports the first problem with its remedy.
        assert!(ended.says(remedy) || ended.says("the ledger has no partition"), "{verb:?}: {ended}");
    }
    let check = absent(Gapless::bare().args(["check"])).database_url(&database.url).run().expect_code(1);
    check.expect_says(&["no_such_topic", remedy]);
}
