//! The operator's verbs: `plan`, `verify`, `replay`, and those that read only the ledger.

use std::time::Duration;

use serde_json::Value;

use crate::support::wait::stays;
use crate::support::{Database, Event, Gapless, Ledger, Topic};

fn json(gapless: Gapless, code: i32) -> Value {
    let ended = gapless.args(["--format", "json"]).run().expect_code(code);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

/// Deletes all rows of one offset, as an incomplete restore or a wrong statement does.
fn lose(database: &Database, offset: i64) {
    database.execute(&format!(
        r#"do $$
           declare relation regclass;
           begin
               for relation in select c.oid from pg_class c
                   where c.relnamespace = 'gapless'::regnamespace and c.relkind in ('r', 'p')
                     and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'offset')
               loop
                   execute format('delete from %s where "offset" = {offset}', relation);
               end loop;
           end $$"#
    ));
}

#[test]
fn a_plan_has_the_exit_code_of_the_start_and_changes_nothing() {
    let (topic, database) = (Topic::new(2), Database::new());
    topic.send((0..10).map(|number| Event::numbered(5, number)));
    Gapless::daemon(&topic, &database).offset("0:4").until_end().run().expect_code(0);
    topic.send((10..20).map(|number| Event::numbered(5, number)));
    let everything = || {
        let sql = "select to_jsonb(p)::text from gapless.consumer_positions p order by partition_id";
        database.rows(sql, &[]).iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let before = everything();
    for (order, code) in [("0:4", 0), ("earliest", 0), ("0:10", 0), ("latest", 3), ("0:99", 3), ("5", 2), ("9:1", 2)] {
        let ended = Gapless::verb("plan", &topic, &database).args(["--offset", order]).run().expect_code(code);
        assert_eq!(everything(), before, "{order}: {ended}");
    }
    let allowed = ["--offset", "latest", "--allow-skip"];
    let ended = Gapless::verb("plan", &topic, &database).args(allowed).run().expect_code(0);
    assert!(ended.says("10") && ended.says("20"), "the range it would skip: {ended}");
    json(Gapless::verb("plan", &topic, &database).args(["--from-db"]), 0);
    assert_eq!(everything(), before);
}

#[test]
fn verify_finds_missing_rows_and_replay_restores_them() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    ledger.send("poison", "rejected");
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(json(Gapless::verb("verify", &topic, &database), 0)["verified"], true);
    lose(&database, 3);
    lose(&database, 5);
    let sql = r#"select "offset"::bigint from gapless.unhandled_offsets order by 1"#;
    let missing: Vec<i64> = database.rows(sql, &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(missing, [3, 5]);
    let verdict = json(Gapless::verb("verify", &topic, &database), 3);
    let found: Vec<(i64, i64)> = verdict["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|finding| Some((finding["from"].as_i64()?, finding["to"].as_i64()?)))
        .collect();
    assert!(found.contains(&(3, 4)) && found.contains(&(5, 6)), "{verdict}");
    // The daemon runs meanwhile: a verb takes no fence.
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    let range = format!("{}:0:3-6", topic.name);
    Gapless::verb("replay", &topic, &database).args(["--offsets", &range]).run().expect_code(0);
    assert_eq!(json(Gapless::verb("verify", &topic, &database), 0)["verified"], true);
    ledger.send_events(0, 5);
    database.wait_for_outcomes(ledger.len());
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn verify_compares_with_the_log_and_finds_a_message_that_differs_from_the_stored_one() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    assert_eq!(json(Gapless::verb("verify", &topic, &database).args(["--deep"]), 0)["verified"], true);
    topic.recreate(1);
    topic.send((0..10).map(|number| Event::numbered(6, number)));
    assert_eq!(json(Gapless::verb("verify", &topic, &database).args(["--deep"]), 3)["verified"], false);
    ledger.assert_matches(&database);
}

#[test]
fn daemons_of_two_topics_share_a_ledger_without_interference() {
    let (one, other, database) = (Topic::new(1), Topic::new(1), Database::new());
    let first = Gapless::daemon(&one, &database).start();
    first.wait_until_ready();
    let second = Gapless::daemon(&other, &database).start();
    second.wait_until_ready();
    one.send((0..10).map(|number| Event::numbered(5, number)));
    other.send((5..15).map(|number| Event::numbered(5, number)));
    database.wait_for_outcomes(20);
    // Longer than the time after which an idle daemon notices that it is fenced.
    stays("both to be ready", Duration::from_secs(11), || match (first.get("/readyz"), second.get("/readyz")) {
        (first, second) if (first.status, second.status) == (200, 200) => Ok(()),
        (first, second) => Err(first.body + &second.body),
    });
    first.terminate().expect_code(0);
    second.terminate().expect_code(0);
    database.assert_accounting();
}

#[test]
fn verbs_that_read_only_the_ledger_work_without_brokers() {
    let (topic, database) = (Topic::new(1), Database::new());
    let event = Event::numbered(5, 1);
    topic.send([event.json(), event.conflicting().json(), "poison".to_owned()]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let ask = |arguments: &[&str]| {
        let verb = Gapless::bare().args(arguments.iter().copied()).database_url(&database.url);
        verb.args(["--topic", &topic.name]).run().expect_code(0)
    };
    ask(&["receipt", &topic.name, "0", "0"]).expect_says(&["stored"]);
    ask(&["conflicts", "list"]).expect_says(&["conflict"]);
    ask(&["dead-letters", "list"]).expect_says(&["not_json"]);
    ask(&["dead-letters", "show", "0:2"]).expect_says(&["poison"]);
    ask(&["dead-letters", "discard", "--id", "0:2", "--reason", "a test"]).expect_says(&["1 dead letters discarded"]);
    // A lookup by transaction needs no topic.
    let of_transaction = Gapless::bare().args(["receipt", event.txn()]).database_url(&database.url);
    of_transaction.run().expect_code(0).expect_says(&["conflict"]);
}

#[test]
fn dead_letters_are_selected_by_reason_and_an_unknown_reason_is_refused_with_the_list() {
    let (topic, database) = (Topic::new(1), Database::new());
    topic.send([r#"{"transactionHash":1}"#, "no json"]);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let list = |why| Gapless::verb("dead-letters", &topic, &database).args(["list", "--rejected-for", why]);
    let found = json(list("not_json"), 0);
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    let discard = ["discard", "--rejected-for", "no_such", "--reason", "a test"];
    let unknown = [
        list("no_such"),
        Gapless::verb("replay", &topic, &database).args(["--rejected-for", "no_such"]),
        Gapless::verb("dead-letters", &topic, &database).args(discard),
    ];
    for verb in unknown {
        verb.run().expect_code(2).expect_says(&["no_such", "not_json", "bad_field"]);
    }
    // The operator decides about messages that are still rejected.
    let replay = Gapless::verb("replay", &topic, &database).args(["--rejected-for", "not_json"]);
    replay.run().expect_code(3).expect_says(&["0 dead letters accepted, 1 still rejected", "dead-letters discard"]);
}
