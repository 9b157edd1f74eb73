//! Faults of the broker and its log: crashes that need no operator, and losses that must halt a partition.

use std::collections::BTreeSet;
use std::path::Path;

use super::check::Lost;
use super::world::{Episode, Outcome, PARTITIONS, World};
use crate::support::remedy::{carry_out, command};
use crate::support::wait::until;
use crate::support::{Event, Gapless};

/// SIGKILL of the broker under load, two times.
pub(super) fn broker_killed(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for _ in 0..2 {
        world.sandbox.control_kafka("kill");
        episode.daemon().wait_for_metric("gapless_kafka_up", &[], 0.0);
        world.sandbox.control_kafka("start");
        episode.wait_for_progress(50);
    }
    episode.end_healed(2)
}

/// Partitions are added while the daemon runs; the daemon reads them from their beginning.
pub(super) fn partitions_added(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.grow_to(PARTITIONS + 2);
    let added =
        "select count(*) from gapless.consumer_positions where next_offset > start_offset and partition_id >= 3";
    episode.database.wait_for(added, 2);
    episode.end_healed(2)
}

/// Records below the position are deleted: nothing is lost and no partition halts.
pub(super) fn deleted_below_the_position(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.wait_for_progress(200);
    let mut lost: Vec<Lost> = Vec::new();
    for (partition, (_, next)) in episode.database.positions() {
        let log_start = (next - 1).max(0);
        episode.topic.delete_before(partition, log_start);
        lost.push((partition, 0, log_start));
    }
    episode.wait_for_progress(50);
    let account = episode.stop_load();
    episode.wait_for_the_end();
    episode.take_daemon().terminate().expect_code(0);
    assert!(lost.iter().any(|(_, _, end)| *end > 0), "something was deleted");
    episode.outcome.effects = lost.len() as u64;
    episode.compare(&account, &lost)
}

/// Unread records are deleted while the daemon is down: the halt names exactly that range, and the partition continues
/// only after the operator's decision.
pub(super) fn deleted_above_the_position(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.take_daemon().terminate().expect_code(0);
    let (_, next) = episode.database.positions()[&1];
    until("messages beyond the position", || match episode.topic.last_stable(1) {
        end if end > next + 40 => Ok(()),
        end => Err(end.to_string()),
    });
    let log_start = next + 30;
    episode.topic.delete_before(1, log_start);
    let account = episode.stop_load();
    let range = format!("[{next}, {log_start})");
    let ended = episode.call().until_end().run().expect_code(3).expect_says(&["expired", &range]);
    drop(ended);
    for (partition, (_, position)) in episode.database.positions() {
        let expected = if partition == 1 { next } else { episode.topic.last_stable(partition) };
        assert_eq!(position, expected, "partition {partition}: the halted one stays, the others are finished");
    }
    let (from, to) = (next.to_string(), log_start.to_string());
    let decision = [episode.topic.name.as_str(), "1", &from, &to, "--reason", "the campaign deleted it"];
    Gapless::verb("accept-loss", &episode.topic, &episode.database).args(decision).run().expect_code(0);
    episode.call().until_end().run().expect_code(0);
    assert!(
        episode.database.gaps(1).contains(&(next, log_start, "lost".to_owned())),
        "the loss is recorded: {:?}",
        episode.database.gaps(1)
    );
    episode.outcome.effects = 1;
    episode.outcome.halts.push(format!("expired {range}"));
    // The records before that range were read, and were deleted with it.
    episode.compare(&account, &[(1, 0, log_start)])
}

/// The topic is deleted, re-created and filled beyond the stored position while the daemon is down.
pub(super) fn recreated_while_away(world: &World, seed: u64) -> Outcome {
    recreated(world, seed, false)
}

/// The same while the daemon runs.
pub(super) fn recreated_while_running(world: &World, seed: u64) -> Outcome {
    recreated(world, seed, true)
}

fn recreated(world: &World, seed: u64, running: bool) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.stop_load();
    episode.wait_for_the_end();
    if !running {
        episode.take_daemon().terminate().expect_code(0);
    }
    let rows = r#"select md5(string_agg(r::text, ',' order by partition_id, "offset"))
                  from gapless.kafka_events_received r where generation = 1"#;
    let before: String = episode.database.value(rows);
    let longest = episode.database.positions().values().map(|(_, next)| *next).max().unwrap_or(0);
    episode.topic.recreate(PARTITIONS);
    // The new log is longer than the old one, so that the topic's id is the only difference.
    let grown = u64::try_from(longest + 50).expect("a length");
    for partition in 0..PARTITIONS {
        let first = 1_000_000 * (1 + partition as u64);
        let sent = (0..grown).map(|number| Event::numbered(seed, first + number));
        episode.topic.send_to(partition, sent);
    }
    let printed = if running {
        let line = episode.daemon().wait_for("re-created");
        until("all partitions to halt", || {
            let body = episode.daemon().get("/readyz").body;
            if body.contains("recreated") { Ok(()) } else { Err(body) }
        });
        episode.take_daemon().terminate().expect_code(0);
        line["fields"]["message"].as_str().expect("a message").to_owned()
    } else {
        episode.call().until_end().run().expect_code(3).expect_says(&["re-created"]).to_string()
    };
    assert_eq!(episode.database.value::<String>(rows), before, "nothing of the old generation changed");
    assert_eq!(
        episode.database.value::<i64>("select count(*) from gapless.kafka_events_received where generation > 1"),
        0,
        "nothing of the new topic was stored"
    );
    carry_out(&command(&printed, "gapless rebase"), &episode.topic, &episode.database);
    episode.call().until_end().run().expect_code(0);
    assert_eq!(episode.database.value::<String>(rows), before, "nothing of the old generation changed");
    assert_eq!(
        episode.database.value::<i64>("select count(*) from gapless.kafka_events_received where generation = 2"),
        i64::from(PARTITIONS) * grown as i64,
        "all messages of the new topic are in generation 2"
    );
    episode.database.assert_accounting();
    super::check::verify_deep(&episode.topic, &episode.database);
    let mut outcome = episode.outcome;
    outcome.effects = 1;
    outcome.messages = grown * PARTITIONS as u64;
    outcome.halts.push("recreated".to_owned());
    outcome
}

/// The broker loses the end of a partition's log from below the position on, as in a crash without fsync or an unclean
/// leader election.
pub(super) fn truncated(world: &World, seed: u64) -> Outcome {
    cut_log(world, seed, false)
}

/// The same, and afterwards the log grows beyond the position with other messages.
pub(super) fn truncated_and_grown(world: &World, seed: u64) -> Outcome {
    cut_log(world, seed, true)
}

fn cut_log(world: &World, seed: u64, grows: bool) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.wait_for_progress(200);
    episode.stop_load();
    episode.wait_for_the_end();
    episode.take_daemon().terminate().expect_code(0);
    let before = episode.database.outcomes();
    let (_, next) = episode.database.positions()[&0];
    world.sandbox.control_kafka("stop");
    let kept =
        truncate_log(&world.sandbox.data().join("kafka/log").join(format!("{}-0", episode.topic.name)), next / 2);
    world.sandbox.control_kafka("start");
    assert!(kept < next, "the log was cut at {kept}, below {next}");
    if grows {
        let more = u64::try_from(next - kept + 20).expect("a length");
        episode.topic.send_to(0, (0..more).map(|number| Event::numbered(seed, 5_000_000 + number)));
    }
    let reason = if grows { "replaced" } else { "beyond_log_end" };
    let halted = episode.call().until_end().run().expect_code(3).expect_says(&[reason]);
    assert_eq!(episode.database.outcomes(), before, "nothing of a log that differs from the recorded one was stored");
    assert_eq!(episode.database.positions()[&0].1, next, "the position does not move");
    // The remedy that the halt names reads the whole present log into the next generation.
    carry_out(&command(&halted, "--log-replaced"), &episode.topic, &episode.database);
    episode.call().until_end().run().expect_code(0);
    let sql = r#"select partition_id::int, "offset"::bigint from gapless.kafka_events_received where generation = 2"#;
    let stored: BTreeSet<(i32, i64)> =
        episode.database.rows(sql, &[]).iter().map(|row| (row.get(0), row.get(1))).collect();
    let readable: BTreeSet<(i32, i64)> = super::check::read_again(&episode.topic).into_keys().collect();
    assert_eq!(stored, readable, "every message of the log has its outcome in generation 2, and no other");
    episode.database.assert_accounting();
    super::check::verify_deep(&episode.topic, &episode.database);
    let mut outcome = episode.outcome;
    outcome.effects = 1;
    outcome.messages = before.len() as u64;
    outcome.halts.push(reason.to_owned());
    outcome
}

/// Cuts the only segment of a stopped broker's partition at the first batch that begins at `keep` or later. Returns the
/// new log end.
fn truncate_log(directory: &Path, keep: i64) -> i64 {
    let segment = directory.join("00000000000000000000.log");
    let bytes = std::fs::read(&segment).unwrap_or_else(|error| panic!("{}: {error}", segment.display()));
    let mut at = 0;
    // A batch begins with its first offset (8 bytes) and the length of the rest (4 bytes).
    while at + 12 <= bytes.len() {
        let first = i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if first >= keep {
            let file = std::fs::OpenOptions::new().write(true).open(&segment).expect("the segment");
            file.set_len(at as u64).expect("cutting the segment");
            // The broker rebuilds the indexes from the log, as after a crash.
            for entry in std::fs::read_dir(directory).expect("the partition's files").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if [".index", ".timeindex", ".txnindex", ".snapshot"].iter().any(|end| name.ends_with(end)) {
                    std::fs::remove_file(entry.path()).expect("removing an index");
                }
            }
            let _ = std::fs::remove_file(directory.with_file_name(".kafka_cleanshutdown"));
            return first;
        }
        let length = i32::from_be_bytes(bytes[at + 8..at + 12].try_into().expect("four bytes"));
        at += 12 + usize::try_from(length).expect("a length");
    }
    panic!("no batch at {keep} or later in {}", segment.display());
}
