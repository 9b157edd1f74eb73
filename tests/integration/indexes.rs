//! The documented indexes: none of them refuses an event.

use crate::support::{Database, Event, Gapless, Ledger, Random, Topic};

/// Length of an event name in characters that exceeds the limit of a b-tree entry even when compressed.
const LONG: usize = 6000;

/// Every statement of the documents that creates an index on stored events.
fn documented() -> Vec<String> {
    const BEGIN: &str = "create index on gapless.";
    let documents = [
        include_str!("../../README.md"),
        include_str!("../../docs/data-model.md"),
        include_str!("../../docs/operations.md"),
        include_str!("../../docs/deployment.md"),
    ];
    let mut found = Vec::new();
    for text in documents {
        for (at, _) in text.match_indices(BEGIN) {
            let end = text[at..].find([';', '`']).expect("a statement ends");
            found.push(text[at..at + end].replace('\n', " "));
        }
    }
    found
}

#[test]
fn no_documented_index_refuses_an_event_whatever_its_length() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    let indexes = documented();
    assert!(indexes.len() > 3, "{indexes:?}");
    for index in &indexes {
        database.execute(index);
    }
    let mut random = Random::new(54_000);
    let wide: String = (0..LONG).map(|_| char::from_u32(0x1_0400 + random.below(0x50) as u32).unwrap()).collect();
    let long_name = ledger.event().named(&random.hex(LONG));
    let wide_name = ledger.event().named(&wide);
    let long_txn = Event { txn: Some(format!("0x{}", random.hex(LONG))), ..ledger.event() };
    for event in [long_name, wide_name, long_txn] {
        let offsets = topic.send([&event]);
        ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    }
    ledger.send_events(0, 20);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(database.count("dead_letters"), 0);
    // The indexes serve the documented queries.
    database.execute(&format!("alter database {} set enable_seqscan = off", database.name()));
    for condition in [
        "txn = 'x'",
        "event_type = 'x'",
        "(event_info::jsonb) ->> 'event' = 'x'",
        "left(event_type, 100) = left('x', 100) and event_type = 'x'",
    ] {
        let plan = database.rows(&format!("explain select * from gapless.events where {condition}"), &[]);
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        assert!(plan.iter().any(|line| line.contains("Index Scan") && line.contains("stored_events")), "{plan:#?}");
    }
}
