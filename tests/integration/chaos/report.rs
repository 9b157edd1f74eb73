//! The report of a campaign: one line for each episode, a table of the kinds, and all of it as JSON in `target/chaos`.

use std::fmt;
use std::path::PathBuf;

use serde_json::json;

use super::world::Outcome;

/// One episode.
pub(crate) struct Run {
    pub(crate) kind: String,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    /// The result, or the broken promises.
    pub(crate) outcome: Result<Outcome, String>,
}

impl Run {
    /// The result; a fault without effect is a failure, since it proves nothing.
    fn verdict(&self) -> Result<&Outcome, String> {
        match &self.outcome {
            Ok(outcome) if outcome.effects == 0 => Err("the fault took no effect".to_owned()),
            Ok(outcome) => Ok(outcome),
            Err(broken) => Err(broken.clone()),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:6.1} s  {:36}", self.seconds, self.kind)?;
        match self.verdict() {
            Ok(outcome) => write!(out, " ok, {} effects, {} messages", outcome.effects, outcome.messages),
            Err(broken) => write!(out, " FAILED (seed {})\n{broken}", self.seed),
        }
    }
}

/// The whole campaign.
pub(crate) struct Report {
    seed: u64,
    kinds: Vec<&'static str>,
    runs: Vec<Run>,
}

impl Report {
    pub(crate) fn new(seed: u64, kinds: Vec<&'static str>) -> Self {
        Self { seed, kinds, runs: Vec::new() }
    }

    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Prints the table, writes the JSON, and panics if an episode failed or its fault had no effect.
    pub(crate) fn finish(self) {
        let path = directory().join("report.json");
        let text = serde_json::to_string_pretty(&self.json()).expect("a report");
        std::fs::write(&path, text).expect("writing the report");
        println!("{}", self.table());
        println!("seed {}; the whole report is {}", self.seed, path.display());
        let failed: Vec<String> = self.runs.iter().filter(|run| run.verdict().is_err()).map(Run::to_string).collect();
        assert!(failed.is_empty(), "{} of {} episodes failed:\n{}", failed.len(), self.runs.len(), failed.join("\n"));
    }

    fn of(&self, kind: &str) -> Vec<&Run> {
        self.runs.iter().filter(|run| run.kind == kind).collect()
    }

    fn table(&self) -> String {
        let mut rows = vec![
            "| fault | episodes | took effect | messages | gaps proven | commits unknown | broken |".to_owned(),
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |".to_owned(),
        ];
        let mut row = |name: &str, runs: &[&Run]| {
            let sum = |of: fn(&Outcome) -> u64| -> u64 {
                runs.iter().filter_map(|run| run.outcome.as_ref().ok()).map(of).sum()
            };
            let broken = runs.iter().filter(|run| run.verdict().is_err()).count();
            rows.push(format!(
                "| {name} | {} | {} | {} | {} | {} | {broken} |",
                runs.len(),
                sum(|outcome| outcome.effects),
                sum(|outcome| outcome.messages),
                sum(|outcome| outcome.gaps),
                sum(|outcome| outcome.commits_unknown),
            ));
        };
        for kind in &self.kinds {
            row(kind, &self.of(kind));
        }
        row("all", &self.runs.iter().collect::<Vec<_>>());
        rows.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let runs: Vec<_> = self
            .runs
            .iter()
            .map(|run| {
                let outcome = run.outcome.clone().unwrap_or_default();
                json!({
                    "kind": run.kind, "seed": run.seed, "seconds": run.seconds, "broken": run.verdict().err(),
                    "effects": outcome.effects, "messages": outcome.messages, "aborted": outcome.aborted,
                    "gaps": outcome.gaps, "commits_unknown": outcome.commits_unknown, "halts": outcome.halts,
                })
            })
            .collect();
        let never: Vec<_> = self.kinds.iter().filter(|kind| self.of(kind).is_empty()).collect();
        json!({ "seed": self.seed, "kinds": self.kinds.len(), "never_ran": never, "episodes": runs })
    }
}

/// The directory of the reports, created if needed.
pub(crate) fn directory() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/chaos");
    std::fs::create_dir_all(&directory).expect("a directory for reports");
    directory
}
