//! Every failpoint with every action at its first, second and hundredth hit. The results are kept in
//! `target/chaos/sweep.json`, so that an interrupted sweep can be continued.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::process::{ACTIONS, HITS, POINTS, at_failpoint};
use super::report::directory;
use super::world::World;
use super::{number, play_one};

/// Failpoints that a start reaches once.
const ONCE: [&str; 2] = ["migration", "start_stored"];

#[test]
#[ignore = "takes half an hour: make chaos-sweep"]
fn sweep() {
    let file = directory().join("sweep.json");
    let mut coverage = read(&file);
    let world = World::begin();
    let mut failed = 0;
    for point in POINTS {
        for action in ACTIONS {
            for hit in HITS {
                let name = format!("{point}={action}@{hit}");
                let verdict = if ONCE.contains(&point) && hit > 1 {
                    "reached once by a start".to_owned()
                } else if point == "loop_turn" && action == "error" {
                    "an error of the loop has no effect".to_owned()
                } else if coverage.get(&name).is_some_and(|verdict| verdict == "ok") {
                    continue;
                } else {
                    let seed = number("SEED", 1) + u64::from(hit);
                    let play = |world: &World, seed| at_failpoint(world, seed, point, action, hit);
                    let run = play_one(&world, &name, &play, seed);
                    failed += usize::from(run.outcome.is_err());
                    run.outcome.map_or_else(|broken| broken, |_| "ok".to_owned())
                };
                coverage.insert(name, verdict);
                std::fs::write(&file, serde_json::to_string_pretty(&coverage).expect("the coverage"))
                    .expect("writing the coverage");
            }
        }
    }
    let passed = coverage.values().filter(|verdict| *verdict == "ok").count();
    println!("{passed} of {} passed, {failed} failed; {}", coverage.len(), file.display());
    assert_eq!(failed, 0, "see {}", file.display());
}

fn read(file: &PathBuf) -> BTreeMap<String, String> {
    std::fs::read_to_string(file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
