//! `gapless replay`: what was lost comes back as it was, and nothing else changes.

use crate::support::{Database, Gapless, Ledger, Topic};

const FIELDS: &str = "GAPLESS__IDENTITY__FIELDS";

/// `gapless replay --offsets` of partition 0.
fn replay(topic: &Topic, database: &Database, range: &str) -> Gapless {
    Gapless::verb("replay", topic, database).args(["--offsets", &format!("{}:0:{range}", topic.name)])
}

#[test]
fn a_replay_under_another_identity_or_group_doubled_events() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    ledger.send("no event", "rejected");
    let fields = "txn,event_type,log_index";
    Gapless::daemon(&topic, &database).env(FIELDS, fields).until_end().run().expect_code(0);
    let event = ledger.event().json();
    database.execute(&format!(
        "update gapless.rejected_messages set payload = convert_to('{event}', 'UTF8');
         delete from gapless.outcomes where \"offset\" = 1"
    ));
    let letters = || Gapless::verb("replay", &topic, &database).args(["--all"]);
    let offsets = || replay(&topic, &database, "0-4");
    for verb in [&letters as &dyn Fn() -> Gapless, &offsets] {
        verb().run().expect_code(3).expect_says(&["identity.fields", fields]);
        verb().env(FIELDS, fields).group("other").run().expect_code(3).expect_says(&["consumer group"]);
    }
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (3, 3));
    letters().env(FIELDS, fields).run().expect_code(0);
    offsets().env(FIELDS, fields).run().expect_code(0);
    assert_eq!((database.count("events"), database.count("kafka_events_received")), (4, 4));
}
