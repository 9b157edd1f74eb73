//! A batch that is small packed and large unpacked takes no more memory than is allowed, and halts with the value to set.

use crate::support::{Database, Gapless, Ledger, Record, Topic};

#[test]
fn a_batch_that_unpacks_to_too_much_halts_with_the_setting_and_the_value_that_lets_it_pass() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let events: Vec<_> = (0..60)
        .map(|_| {
            let mut event = ledger.event();
            event.memo = format!("\"{}\"", "x".repeat(1_000_000));
            event
        })
        .collect();
    let offsets = topic.send_packed(events.iter().map(Record::from));
    ledger.expect_stored(0, &offsets, &events);
    ledger.send_events(1, 5);
    let daemon = |bytes: &str| {
        Gapless::daemon(&topic, &database)
            .env("GAPLESS__KAFKA__MAX_MESSAGE_BYTES", "2000000")
            .env("GAPLESS__KAFKA__MAX_UNPACKED_BYTES", bytes)
            .until_end()
    };
    let mut bytes = "33554432".to_owned();
    // Where the batch does not say how large it is, it grows threefold from try to try.
    for _ in 0..3 {
        let ended = daemon(&bytes).run();
        if ended.status().success() {
            assert_ne!(bytes, "33554432", "60 MB were unpacked although 33 MB are allowed");
            ledger.assert_complete(&database);
            return;
        }
        let ended = ended.expect_code(3).expect_says(&["unpacked_too_large", "is sound and has "]);
        assert!(!ended.says("restore the broker's segment"), "{ended}");
        let line = ended.to_string();
        let (_, value) = line.split_once("set kafka.max_unpacked_bytes = ").expect("the remedy is in the log");
        let value: String = value.chars().take_while(char::is_ascii_digit).collect();
        assert_ne!(value, bytes);
        bytes = value;
    }
    panic!("the values that were named did not let the batch pass: {bytes}");
}
