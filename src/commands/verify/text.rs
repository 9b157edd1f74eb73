//! The verdict of `gapless verify` as a table.

use super::{AcceptedLoss, Finding, MAX_FINDINGS, Verdict};
use crate::commands::table;

/// The most findings that a table shows.
const MAX_SHOWN: usize = 40;

fn accepted_losses(accepted: &[AcceptedLoss]) -> String {
    if accepted.is_empty() {
        return String::new();
    }
    let cells = |a: &AcceptedLoss| {
        let numbers = [i64::from(a.generation), i64::from(a.partition), a.from, a.to].map(|n| n.to_string());
        std::iter::once(a.kind.clone()).chain(numbers).chain([a.proof.clone()]).collect()
    };
    let shown: Vec<Vec<String>> = accepted.iter().take(MAX_SHOWN).map(cells).collect();
    let more = accepted.len().saturating_sub(MAX_SHOWN);
    let more = if more == 0 { String::new() } else { format!("… and {more} more; --format json has all\n") };
    format!("\n{}{more}\n", table(&["accepted", "generation", "partition", "from", "to (exclusive)", "proof"], &shown))
}

pub(super) fn text(verdict: &Verdict) -> String {
    let rows = verdict.partitions.iter().map(|p| {
        let offsets = [i64::from(p.generation), i64::from(p.partition), p.start_offset, p.next_offset];
        let counts = [p.outcomes, p.gap_offsets, p.compared].map(|n| n.to_string());
        offsets.map(|n| n.to_string()).into_iter().chain(counts).collect()
    });
    let header = ["generation", "partition", "start", "next", "outcomes", "gaps", "compared"];
    let partitions = table(&header, &rows.collect::<Vec<Vec<String>>>()) + &accepted_losses(&verdict.accepted);
    let topic = &verdict.topic;
    if verdict.verified {
        let but = if verdict.accepted.is_empty() { "" } else { " but what was accepted" };
        return format!(
            "topic {topic}\n{partitions}verified: nothing is missing{but}, nothing is doubled, nothing is altered"
        );
    }
    if verdict.findings.is_empty() {
        return format!(
            "topic {topic}\n{partitions}not verified: the log could not be compared; the ledger itself has no findings"
        );
    }
    let number = |n: Option<i64>| n.map_or("-".to_owned(), |n| n.to_string());
    let cells = |f: &Finding| {
        let (generation, partition) = (number(f.generation.map(i64::from)), number(f.partition.map(i64::from)));
        let remedy = f.detail.iter().chain([&f.remedy]).cloned().collect::<Vec<_>>().join(": ");
        vec![f.kind.to_owned(), generation, partition, number(f.from), number(f.to), remedy]
    };
    let shown: Vec<Vec<String>> = verdict.findings.iter().take(MAX_SHOWN).map(cells).collect();
    let findings = table(&["finding", "generation", "partition", "from", "to (exclusive)", "remedy"], &shown);
    let more = match (verdict.findings.len() as u64 + verdict.more_findings).checked_sub(MAX_SHOWN as u64) {
        Some(more @ 1..) => format!("… and {more} more; --format json has the first {MAX_FINDINGS}"),
        _ => String::new(),
    };
    format!("topic {topic}\n{partitions}\n{findings}{more}")
}
