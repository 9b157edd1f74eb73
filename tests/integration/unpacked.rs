//! A batch that is small compressed and large decompressed takes no more memory than allowed: its partition halts and
//! the message names the value to set.
//!
//! Each codec has a test of its own, which fails if librdkafka does not use the function that `build.rs` wraps.

use crate::support::{Database, Ended, Gapless, Ledger, Record, Topic};

/// Limit of the daemon's data segment in bytes, without decompressed batches. Most of it is reserved and never used, by
/// the threads and the arenas of the allocator.
const DAEMON: u64 = 600_000_000;

fn topic() -> Topic {
    Topic::configured(1, &[("max.message.bytes", "40000000")])
}

/// Sends one batch of the same event `count` times, so that PostgreSQL has little work.
fn send(codec: &str, topic: &Topic, ledger: &mut Ledger, count: usize, bytes: usize) {
    let mut event = ledger.event();
    event.memo = format!("\"{}\"", "x".repeat(bytes));
    let offsets = topic.send_packed(codec, std::iter::repeat_n(&event, count).map(Record::from));
    ledger.expect_stored(0, &offsets[..1], std::slice::from_ref(&event));
    ledger.expect(0, offsets[1..].iter().copied(), "processed");
}

fn limited(data: u64, topic: &Topic, database: &Database) -> Gapless {
    Gapless::daemon_through(&["prlimit", &format!("--data={data}")], topic, database)
        .env("GAPLESS__KAFKA__MAX_MESSAGE_BYTES", "2000000")
        .until_end()
}

/// The value of `kafka.max_unpacked_bytes` that a halt names.
fn named_limit(ended: &Ended) -> u64 {
    let text = ended.to_string();
    let (_, value) = text.split_once("set kafka.max_unpacked_bytes = ").expect("the remedy is in the log");
    let value: String = value.chars().take_while(char::is_ascii_digit).collect();
    value.parse().expect("a number")
}

#[track_caller]
fn halts_then_reads(codec: &str, count: usize, bytes: usize) {
    let (topic, database) = (topic(), Database::new());
    let mut ledger = Ledger::of(&topic);
    send(codec, &topic, &mut ledger, count, bytes);
    let total = (count * bytes) as u64;
    let ended = limited(DAEMON, &topic, &database).run();
    let ended = ended.expect_code(3).expect_says(&["unpacked_too_large", "is sound and has "]);
    assert!(!ended.says("restore the"), "{ended}");
    let value = named_limit(&ended);
    assert!(value > total && value < total + total / 10, "{value}: {ended}");
    // The value counts twice, since a client of its own reads the last stored message again.
    let again =
        limited(DAEMON + 2 * value, &topic, &database).env("GAPLESS__KAFKA__MAX_UNPACKED_BYTES", &value.to_string());
    again.run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_gzip_batch_above_the_unpacking_limit_halts_and_is_read_with_the_limit_that_the_halt_names() {
    halts_then_reads("gzip", 300, 1_000_000);
}

#[test]
fn an_lz4_batch_above_the_unpacking_limit_halts_and_is_read_with_the_limit_that_the_halt_names() {
    halts_then_reads("lz4", 300, 1_000_000);
}

#[test]
fn a_zstd_batch_above_the_unpacking_limit_halts_and_is_read_with_the_limit_that_the_halt_names() {
    halts_then_reads("zstd", 900, 400_000);
}

#[test]
fn a_snappy_batch_above_the_unpacking_limit_halts_and_is_read_with_the_limit_that_the_halt_names() {
    halts_then_reads("snappy", 300, 500_000);
}

#[test]
fn the_batches_of_one_response_are_unpacked_up_to_their_common_limit() {
    // Memory is reserved in two ways: for our own decompression, and for that of librdkafka.
    for codec in ["gzip", "snappy"] {
        let (topic, database) = (topic(), Database::new());
        let mut ledger = Ledger::of(&topic);
        for _ in 0..10 {
            send(codec, &topic, &mut ledger, 60, 1_000_000);
        }
        // The messages of one response have 600 MB.
        let daemon = limited(DAEMON, &topic, &database).env("GAPLESS__KAFKA__MAX_UNPACKED_BYTES", "67108864");
        let ended = daemon.run().expect_code(0);
        assert!(!ended.has_event("partition_halted"), "{ended}");
        ledger.assert_complete(&database);
    }
}

#[test]
fn a_lack_of_memory_is_not_reported_as_damage_and_the_size_is_named() {
    for codec in ["gzip", "lz4", "snappy", "zstd"] {
        let (topic, database) = (topic(), Database::new());
        let mut ledger = Ledger::of(&topic);
        send(codec, &topic, &mut ledger, 400, 1_000_000);
        let daemon =
            |data: u64| limited(data, &topic, &database).env("GAPLESS__KAFKA__MAX_UNPACKED_BYTES", "1000000000");
        let ended = daemon(DAEMON).env("GAPLESS_TIMEOUT_DIVISOR", "10").run().expect_code(3);
        let ended = ended.expect_says(&["out_of_memory", "is sound and has ", "gets no more memory"]);
        assert!(!ended.says("restore the"), "{ended}");
        daemon(DAEMON + 1_000_000_000).run().expect_code(0);
        ledger.assert_complete(&database);
    }
}
