//! Findings about the whole ledger: its row in `gapless.ledger`, doubled rows, and rows that no view shows.

use std::collections::HashSet;

use super::{Finding, Findings, RetainedRange, failed, remedy};
use crate::config::Config;
use crate::exit::Failure;
use crate::ledger::error::LedgerError;
use crate::ledger::read::consistency::{Inspector, PartitionSnapshot};
use crate::ledger::read::contents::Fields;
use crate::ledger::read::doubles::Doubled;
use crate::ledger::start::ledger_row::OtherIdentity;

/// Compares the row of `gapless.ledger` with the rows that were written under it.
pub(super) async fn against_ledger_row(
    inspector: &Inspector,
    config: &Config,
    partitions: &[PartitionSnapshot],
    retained: impl Fn(&PartitionSnapshot) -> RetainedRange,
    findings: &mut Findings,
) -> Result<(), Failure> {
    match inspector.check_ledger_row(&config.kafka.group, &config.format.identity.text()).await {
        Ok(()) => {}
        Err(LedgerError::LedgerRow { found, sql }) => {
            let remedy = format!("in psql: {sql}; then gapless verify");
            findings.push(whole("ledger_row", found, remedy));
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    }
    let all = Fields::of_relations(&["events", "event_conflicts", "kafka_events_received"]);
    for OtherIdentity { position_id, range, identity_fields } in inspector.other_identities().await.map_err(failed)? {
        let Some(p) = partitions.iter().find(|p| p.position_id == position_id) else { continue };
        let detail =
            format!("the identities of these events were made of {identity_fields:?}, other than the ledger's");
        let history = format!(
            "in psql: delete from gapless.format_history where position_id = {position_id} and identity_fields = '{identity_fields}'; "
        );
        let remedy =
            remedy::of_altered(&all, p, range, &config.kafka.topic, retained(p)).replacen("in psql: ", &history, 1);
        findings.push(Finding { detail: Some(detail), ..Finding::new("other_identity", p, Some(range), remedy) });
    }
    Ok(())
}

fn whole(kind: &'static str, detail: String, remedy: String) -> Finding {
    Finding { kind, generation: None, partition: None, from: None, to: None, detail: Some(detail), remedy }
}

/// Rows whose position is missing.
pub(super) async fn orphans(inspector: &Inspector, findings: &mut Findings) -> Result<(), Failure> {
    for orphans in inspector.orphans().await.map_err(failed)? {
        let detail = format!(
            "gapless.{} has rows of position {}, which gapless.positions does not have: no view shows them",
            orphans.table, orphans.position_id
        );
        let remedy = "restore that row of gapless.positions from a backup of the database".to_owned();
        findings.push(whole("position_missing", detail, remedy));
    }
    Ok(())
}

/// Doubled rows. They are counted without the help of the keys, because a key may be missing.
pub(super) async fn doubled(
    inspector: &Inspector,
    partitions: &[PartitionSnapshot],
    findings: &mut Findings,
) -> Result<(), Failure> {
    let (doubles, more) = inspector.doubles(partitions, findings.room()).await.map_err(failed)?;
    for (doubled, position, range) in doubles {
        let Some(p) = partitions.iter().find(|p| p.position_id == position) else { continue };
        let relation = doubled.relation();
        let remedy = match doubled {
            Doubled::Events => "docs/operations.md, \"Doubled rows\", has the SQL that removes the later copies",
            _ => "keep one of the equal rows and delete the others; docs/operations.md, \"Doubled rows\"",
        };
        let detail = format!("gapless.{relation} has rows of these messages twice");
        findings.push(Finding { detail: Some(detail), ..Finding::new("doubled", p, Some(range), remedy) });
    }
    findings.more += more;
    let mut seen = HashSet::new();
    for p in partitions.iter().filter(|p| !seen.insert((p.generation, &p.partition))) {
        let detail = Some("gapless.positions has this partition twice".to_owned());
        let remedy = "delete the row that is behind, with the daemon stopped, and add the key again";
        findings.push(Finding { detail, ..Finding::new("doubled", p, None, remedy) });
    }
    Ok(())
}
