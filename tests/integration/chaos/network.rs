//! Network faults before either server, and connections that break at a COMMIT.

use std::time::Duration;

use super::world::{Episode, Outcome, World};
use crate::support::proxy::Fault;
use crate::support::wait::until;
use crate::support::wire::{Condition, Disconnect, Wire};

pub(super) type Which = fn(&World) -> &Wire;

pub(super) const KAFKA: Which = |world| &world.kafka;
pub(super) const POSTGRES: Which = |world| &world.postgres;

pub(super) fn latency(world: &World, seed: u64, which: Which, time_ms: u64) -> Outcome {
    under_conditions(world, seed, which, &[Condition::Latency(Duration::from_millis(time_ms))], 2000)
}

pub(super) fn slices(world: &World, seed: u64, which: Which) -> Outcome {
    under_conditions(world, seed, which, &[Condition::Slices(1), Condition::Slices(7)], 700)
}

pub(super) fn black_hole(world: &World, seed: u64, which: Which, time_ms: u64) -> Outcome {
    under_conditions(world, seed, which, &[Condition::BlackHole], time_ms)
}

pub(super) fn cut(world: &World, seed: u64, which: Which) -> Outcome {
    under_conditions(world, seed, which, &cuts(seed), 500)
}

/// Byte counts that end a connection in its handshake, in a frame header and in the middle of a body.
fn cuts(seed: u64) -> [Condition; 4] {
    [3, 40, 700, 20_000].map(|bytes| Condition::CutAfter(bytes + seed % 37))
}

/// Applies each of these conditions for `time_ms` milliseconds, with a clear network in between.
fn under_conditions(world: &World, seed: u64, which: Which, kinds: &[Condition], time_ms: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = which(world).effects();
    for kind in kinds {
        let earlier = which(world).effects();
        which(world).set_condition(*kind);
        if matches!(kind, Condition::CutAfter(_)) {
            // Open connections are reset, so that new ones are made under this condition.
            which(world).disconnect(Disconnect::Reset);
        }
        std::thread::sleep(Duration::from_millis(time_ms));
        // The daemon may have waited for a gap proof meanwhile, without any traffic.
        until("the condition to take effect", || match which(world).effects() {
            effects if effects > earlier => Ok(()),
            _ => Err(format!("{kind:?} had no effect")),
        });
        which(world).set_condition(Condition::Clear);
        episode.pause(200);
    }
    let effects = which(world).effects() - before;
    episode.end_healed(effects)
}

pub(super) fn disconnects(world: &World, seed: u64, which: Which, disconnect: Disconnect) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = which(world).effects();
    for _ in 0..8 {
        which(world).disconnect(disconnect);
        episode.pause(200);
        // A connection exists again, so that the next disconnect takes effect.
        episode.wait_for_progress(5);
    }
    let effects = which(world).effects() - before;
    episode.end_healed(effects)
}

/// The server never receives the COMMIT.
pub(super) fn commit_request_lost(world: &World, seed: u64) -> Outcome {
    at_commits(world, seed, Fault::RequestLost)
}

/// The server commits, and its reply is lost.
pub(super) fn commit_reply_lost(world: &World, seed: u64) -> Outcome {
    let outcome = at_commits(world, seed, Fault::ReplyLost);
    assert!(outcome.commits_unknown > 0, "no commit was unknown although replies were lost");
    outcome
}

fn at_commits(world: &World, seed: u64, fault: Fault) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let before = world.commits.faults_met();
    for more in 1..=6 {
        world.commits.arm(fault);
        until("a fault to be applied to a COMMIT", || match world.commits.faults_met() {
            met if met >= before + more => Ok(()),
            met => Err(format!("{} of {more}", met - before)),
        });
        episode.pause(150);
    }
    episode.end_healed(6)
}

/// The COMMIT is held until the daemon has given up and reconnected; then the server applies it.
pub(super) fn commit_applied_late(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for _ in 0..3 {
        world.commits.arm(Fault::AppliedLate);
        world.commits.wait_for_held();
        episode.pause(1500);
        world.commits.release();
        episode.pause(200);
    }
    episode.end_healed(3)
}
