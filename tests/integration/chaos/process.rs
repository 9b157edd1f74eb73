//! Faults of the daemon itself: killed, stopped, a failpoint, its clock moved, its memory limited.

use std::time::Duration;

use super::load::Shape;
use super::world::{Episode, Outcome, World};
use crate::support::wait::{unique, until};
use crate::support::{Gapless, Random};

/// The failpoints of `src/failpoints.rs`.
pub(super) const POINTS: [&str; 10] = [
    "migration",
    "start_stored",
    "source_record",
    "tx_open",
    "events_written",
    "before_cas",
    "before_commit",
    "after_commit",
    "gap_proof",
    "loop_turn",
];
pub(super) const ACTIONS: [&str; 4] = ["kill", "error", "hang", "panic"];
pub(super) const HITS: [u32; 3] = [1, 2, 100];

/// SIGKILL at five random moments.
pub(super) fn killed(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for _ in 0..5 {
        episode.pause(600);
        episode.take_daemon().kill().expect_killed();
        episode.restart();
    }
    episode.end_healed(5)
}

/// SIGTERM under load and a restart; each time the daemon must exit with 0.
pub(super) fn terminated(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for _ in 0..4 {
        episode.pause(500);
        let daemon = episode.take_daemon();
        // Before that the process has no handler for the signal and would be killed by it.
        daemon.wait_for_event("http_listening");
        daemon.terminate().expect_code(0);
        episode.restart();
    }
    episode.end_healed(4)
}

/// One random failpoint with a random action, at its first or second hit.
pub(super) fn failpoint(world: &World, seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let mut of = |words: &[&'static str]| words[random.below(words.len() as u64) as usize];
    let (point, action) = (of(&POINTS[2..]), of(&ACTIONS));
    let hit = HITS[random.below(2) as usize];
    at_failpoint(world, seed, point, action, hit)
}

/// Arms one failpoint. The episode fails if the failpoint does not fire.
pub(super) fn at_failpoint(world: &World, seed: u64, point: &str, action: &str, hit: u32) -> Outcome {
    let mut episode = Episode::new(world, seed);
    // A gap after each transaction, so that there are a hundred proofs.
    let transactions = if point == "gap_proof" { 0.9 } else { Shape::default().transactions };
    episode.load_of(Shape { transactions, ..Shape::default() });
    // Small batches, so that a failpoint of a transaction is reached a hundred times.
    let call = episode.call().batches_of(20).failpoint(&format!("{point}={action}@{hit}"));
    episode.run(call);
    let log_text = format!("failpoint {}", camel(point));
    until(&format!("{point}={action}@{hit} to fire"), || {
        let daemon = episode.daemon();
        if daemon.says(&log_text) { Ok(()) } else { Err(daemon.tail()) }
    });
    match action {
        "kill" => drop(episode.take_daemon().wait().expect_killed()),
        "panic" => drop(episode.take_daemon().wait()),
        "hang" => {
            episode.pause(1500);
            drop(episode.take_daemon().kill());
        }
        _ => {
            episode.wait_for_progress(20);
            return episode.end_healed(1);
        }
    }
    episode.restart();
    episode.wait_for_progress(20);
    episode.end_healed(1)
}

fn camel(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// SIGSTOP, a start of another daemon, SIGCONT: the stopped daemon must leave nothing and exit as fenced.
pub(super) fn taken_over_while_asleep(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.pause(300);
    let sleeper = episode.take_daemon();
    sleeper.signal("STOP");
    episode.restart();
    episode.wait_for_progress(100);
    sleeper.signal("CONT");
    sleeper.wait().expect_code(3).expect_says(&["taken over"]);
    episode.end_healed(1)
}

/// The clock of the daemon jumps forward and back by days.
pub(super) fn clock_stepped(world: &World, seed: u64) -> Outcome {
    let library = std::env::temp_dir().join(unique("gapless-clock-library")).with_extension("so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/chaos/clock.c");
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.is_ok_and(|status| status.success()), "cc could not build {source}");
    let mut episode = Episode::new(world, seed);
    episode.load();
    let file = std::env::temp_dir().join(unique("gapless-clock"));
    // The file is replaced by a rename, so that the daemon never reads a half-written one.
    let step = |text: &str| {
        let next = file.with_extension("next");
        std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &file)).expect("a file for the clock");
    };
    step("0");
    let call = episode
        .call()
        .env("LD_PRELOAD", &library.display().to_string())
        .env("STEPPED_CLOCK", &file.display().to_string());
    episode.run(call);
    episode.wait_for_progress(50);
    let steps = [1, -1, 2, -400].map(|days: i64| (days * 86_400).to_string());
    for seconds in &steps {
        step(seconds);
        episode.wait_for_progress(50);
    }
    // The last log lines have the time of the moved clock, which proves that it was moved.
    let ended = episode.take_daemon().terminate().expect_code(0);
    let moved = ended.says(&a_year_ago());
    let _ = (std::fs::remove_file(&file), std::fs::remove_file(&library));
    episode.restart();
    episode.end_healed(if moved { steps.len() as u64 } else { 0 })
}

/// The beginning of a log line from 400 days ago.
fn a_year_ago() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    let past = std::time::UNIX_EPOCH + Duration::from_secs(seconds - 400 * 86_400);
    let text = jiff::Timestamp::try_from(past).expect("a time").to_string();
    format!("\"timestamp\":\"{}", &text[..10])
}

/// Messages of a megabyte under a memory limit.
pub(super) fn memory_limited(world: &World, seed: u64) -> Outcome {
    const LIMIT_MB: u64 = 384;
    const RESIDENT_MB: u64 = 256;
    let mut episode = Episode::new(world, seed);
    episode.load_of(Shape { size: 1_000_000, ..Shape::default() });
    let limit = format!("--data={}", LIMIT_MB << 20);
    let call = Gapless::daemon_through(&["prlimit", &limit], &episode.topic, &episode.database);
    let call = episode.through_the_wires(call).batches_of(5000);
    episode.run(call);
    episode.wait_for_progress(60);
    let status = std::fs::read_to_string(format!("/proc/{}/status", episode.daemon().id())).expect("its status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak of memory");
    let peak: u64 = peak.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
    assert!(peak >> 10 <= RESIDENT_MB, "the peak was {} MB, more than {RESIDENT_MB}", peak >> 10);
    episode.end_healed(1)
}
