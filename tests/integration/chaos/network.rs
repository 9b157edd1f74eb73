//! Bad networks, before either server, and connections that break around a COMMIT.

use std::time::Duration;

use super::world::{Episode, Outcome, World};
use crate::support::proxy::Fault;
use crate::support::wait::until;
use crate::support::wire::{Strike, Weather, Wire};

pub(super) type Which = fn(&World) -> &Wire;

pub(super) const KAFKA: Which = |world| &world.kafka;
pub(super) const POSTGRES: Which = |world| &world.postgres;

pub(super) fn latency(world: &World, seed: u64, which: Which, time_ms: u64) -> Outcome {
    weather(world, seed, which, &[Weather::Latency(Duration::from_millis(time_ms))], 2000)
}

pub(super) fn slices(world: &World, seed: u64, which: Which) -> Outcome {
    weather(world, seed, which, &[Weather::Slices(1), Weather::Slices(7)], 700)
}

pub(super) fn black_hole(world: &World, seed: u64, which: Which, time_ms: u64) -> Outcome {
    weather(world, seed, which, &[Weather::BlackHole], time_ms)
}

pub(super) fn cut(world: &World, seed: u64, which: Which) -> Outcome {
    weather(world, seed, which, &cuts(seed), 500)
}

/// Byte counts that end a connection in its greeting, in a head and in the middle of a body.
fn cuts(seed: u64) -> [Weather; 4] {
    [3, 40, 700, 20_000].map(|bytes| Weather::CutAfter(bytes + seed % 37))
}

/// Each of these in turn, for so many milliseconds, with clear weather between.
fn weather(world: &World, seed: u64, which: Which, kinds: &[Weather], time_ms: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = which(world).effects();
    for kind in kinds {
        let felt = which(world).effects();
        which(world).weather(*kind);
        if matches!(kind, Weather::CutAfter(_)) {
            // Old connections too, so that new ones are made in this weather.
            which(world).strike(Strike::Reset);
        }
        std::thread::sleep(Duration::from_millis(time_ms));
        // The daemon may have waited for the proof of a hole meanwhile, and said nothing.
        until("the weather to be felt", || match which(world).effects() {
            effects if effects > felt => Ok(()),
            _ => Err(format!("{kind:?} met nothing")),
        });
        which(world).weather(Weather::Clear);
        episode.pause(200);
    }
    let effects = which(world).effects() - before;
    episode.end_healed(effects)
}

pub(super) fn strikes(world: &World, seed: u64, which: Which, strike: Strike) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = which(world).effects();
    for _ in 0..8 {
        which(world).strike(strike);
        episode.pause(200);
        // A connection there again, so that the next one strikes something.
        episode.wait_for_progress(5);
    }
    let effects = which(world).effects() - before;
    episode.end_healed(effects)
}

/// The server never sees the COMMIT.
pub(super) fn commit_request_lost(world: &World, seed: u64) -> Outcome {
    at_commits(world, seed, Fault::RequestLost)
}

/// The server commits, and nobody is told.
pub(super) fn commit_reply_lost(world: &World, seed: u64) -> Outcome {
    let outcome = at_commits(world, seed, Fault::ReplyLost);
    assert!(outcome.commits_unknown > 0, "no commit was unknown, though replies were lost");
    outcome
}

fn at_commits(world: &World, seed: u64, fault: Fault) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = world.commits.faults_met();
    for more in 1..=6 {
        world.commits.arm(fault);
        until("a COMMIT to meet its fault", || match world.commits.faults_met() {
            met if met >= before + more => Ok(()),
            met => Err(format!("{} of {more}", met - before)),
        });
        episode.pause(150);
    }
    episode.end_healed(6)
}

/// The COMMIT is held, the daemon gives up and connects anew, and then the old one lands.
pub(super) fn commit_lands_late(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for _ in 0..3 {
        world.commits.arm(Fault::LandsLate);
        world.commits.wait_for_held();
        episode.pause(1500);
        world.commits.release();
        episode.pause(200);
    }
    episode.end_healed(3)
}
