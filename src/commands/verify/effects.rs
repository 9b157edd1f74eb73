//! Findings about statuses of occurrences that differ from what the last message of the occurrence set.

use super::{Finding, Findings, RetainedRange, failed, remedy};
use crate::exit::Failure;
use crate::ledger::read::consistency::{Inspector, PartitionSnapshot};

/// Compares the statuses with the order of additions and removals.
pub(super) async fn against_effects(
    inspector: &Inspector,
    partitions: &[PartitionSnapshot],
    topic: &str,
    retained: impl Fn(&PartitionSnapshot) -> RetainedRange,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let (undone, more) = inspector.undone(partitions, findings.room()).await.map_err(failed)?;
    for found in undone {
        let Some(p) = partitions.iter().find(|p| p.position_id == found.position_id) else { continue };
        let remedy = remedy::of_altered(&found.fields, p, found.range, topic, retained(p));
        let detail = Some(found.fields.to_string());
        findings.push(Finding { detail, ..Finding::new("altered", p, Some(found.range), remedy) });
    }
    findings.more += more;
    Ok(())
}
