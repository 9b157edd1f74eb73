//! The campaign: episodes, each with its own topic and ledger, that expose a daemon under load to one kind of fault.
//! `make chaos SECONDS=900 SEED=1` runs every kind at least once, `make chaos-sweep` every failpoint with every action
//! at its first, second and hundredth hit.

mod check;
mod kafka;
mod load;
mod network;
mod postgres;
mod process;
mod report;
mod sweep;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::support::Random;
use crate::support::wire::Disconnect;
use network::{KAFKA, POSTGRES};
use report::{Report, Run};
use world::{Outcome, World};

type Play = fn(&World, u64) -> Outcome;

/// Every kind of fault, with the name that the report and `ONLY=` use.
const KINDS: [(&str, Play); 39] = [
    ("daemon killed", process::killed),
    ("daemon terminated", process::terminated),
    ("failpoint", process::failpoint),
    ("taken over while asleep", process::taken_over_while_asleep),
    ("clock stepped", process::clock_stepped),
    ("memory limited, 1 MB messages", process::memory_limited),
    ("broker killed", kafka::broker_killed),
    ("partitions added", kafka::partitions_added),
    ("records deleted below the position", kafka::deleted_below_the_position),
    ("records deleted above the position", kafka::deleted_above_the_position),
    ("topic re-created while away", kafka::recreated_while_away),
    ("topic re-created while running", kafka::recreated_while_running),
    ("log truncated", kafka::truncated),
    ("log truncated and grown", kafka::truncated_and_grown),
    ("Kafka: latency", |w, s| network::latency(w, s, KAFKA, 150)),
    ("Kafka: slices", |w, s| network::slices(w, s, KAFKA)),
    ("Kafka: black hole", |w, s| network::black_hole(w, s, KAFKA, 6000)),
    ("Kafka: cut after n bytes", |w, s| network::cut(w, s, KAFKA)),
    ("Kafka: reset", |w, s| network::disconnects(w, s, KAFKA, Disconnect::Reset)),
    ("Kafka: half-closed", |w, s| network::disconnects(w, s, KAFKA, Disconnect::HalfClose)),
    ("PostgreSQL: latency", |w, s| network::latency(w, s, POSTGRES, 60)),
    ("PostgreSQL: slices", |w, s| network::slices(w, s, POSTGRES)),
    ("PostgreSQL: black hole", |w, s| network::black_hole(w, s, POSTGRES, 7000)),
    ("PostgreSQL: cut after n bytes", |w, s| network::cut(w, s, POSTGRES)),
    ("PostgreSQL: reset", |w, s| network::disconnects(w, s, POSTGRES, Disconnect::Reset)),
    ("PostgreSQL: half-closed", |w, s| network::disconnects(w, s, POSTGRES, Disconnect::HalfClose)),
    ("COMMIT: request lost", network::commit_request_lost),
    ("COMMIT: reply lost", network::commit_reply_lost),
    ("COMMIT: applied late", network::commit_applied_late),
    ("PostgreSQL stopped immediately", postgres::stopped_immediately),
    ("PostgreSQL killed", postgres::killed),
    ("backends terminated", postgres::backends_terminated),
    ("too many connections (53300)", postgres::too_many_connections),
    ("read-only standby (25006)", postgres::read_only),
    ("tables locked", postgres::tables_locked),
    ("synchronous standby gone", postgres::standby_gone),
    ("disk full (53100)", postgres::disk_full),
    ("failover that loses commits", postgres::failover),
    ("PgBouncer in transaction mode", postgres::pooler),
];

/// Seconds that are enough for every kind.
const FULL_CAMPAIGN_S: u64 = 900;

#[test]
#[ignore = "takes minutes: make chaos"]
fn campaign() {
    let only = std::env::var("GAPLESS_CHAOS_ONLY").unwrap_or_default();
    let seconds = number("SECONDS", if only.is_empty() { FULL_CAMPAIGN_S } else { 0 });
    // A kind selected by name runs at least once, and in a full campaign every kind does.
    let at_least_once = !only.is_empty() || seconds >= FULL_CAMPAIGN_S;
    let seed = number("SEED", 1);
    let kinds: Vec<(&str, Play)> =
        KINDS.into_iter().filter(|(name, _)| only.is_empty() || name.contains(&only)).collect();
    assert!(!kinds.is_empty(), "no kind of fault has a name that contains {only:?}");
    let world = World::begin();
    let mut report = Report::new(seed, kinds.iter().map(|(name, _)| *name).collect());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random::new(seed);
    let mut first = true;
    'rounds: loop {
        for (name, play) in shuffled(&kinds, &mut random) {
            if Instant::now() >= end && !(first && at_least_once) {
                break 'rounds;
            }
            report.add(play_one(&world, name, &play, random.next() >> 1));
        }
        first = false;
    }
    report.finish();
}

fn shuffled(kinds: &[(&'static str, Play)], random: &mut Random) -> Vec<(&'static str, Play)> {
    let mut order = kinds.to_vec();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// A failed episode becomes a line of the report; the campaign continues.
fn play_one(world: &World, name: &str, play: &dyn Fn(&World, u64) -> Outcome, seed: u64) -> Run {
    let start = Instant::now();
    world.heal();
    let outcome = catch_unwind(AssertUnwindSafe(|| play(world, seed))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".to_owned())
    });
    if outcome.is_err() {
        world.restore();
    }
    let run = Run { kind: name.to_owned(), seed, seconds: start.elapsed().as_secs_f64(), outcome };
    eprintln!("{run}");
    run
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(format!("GAPLESS_CHAOS_{name}")) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        _ => default,
    }
}
