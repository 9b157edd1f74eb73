//! `gapless status`: positions, accounting and lag, from PostgreSQL and Kafka.

use serde::Serialize;

use super::{ledger, print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::source::observer::Observer;
use crate::store::{LedgerStatus, PartitionStatus};

#[derive(Serialize)]
struct Status {
    topic: String,
    owner: Option<String>,
    open_dead_letters: i64,
    conflicts: i64,
    /// Why there are no watermarks, if Kafka did not answer.
    kafka: Option<String>,
    partitions: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    ledger: PartitionStatus,
    log_start_offset: Option<i64>,
    last_stable_offset: Option<i64>,
    log_end_offset: Option<i64>,
    lag: Option<i64>,
}

pub async fn run(config: &Config, format: OutputFormat) -> Result<Exit, Failure> {
    let ledger = ledger(config).await?.ledger_status(&config.kafka.topic).await.map_err(Failure::failed)?;
    let status = with_kafka(config, ledger).await;
    match format {
        OutputFormat::Json => print_json(&status)?,
        OutputFormat::Table => {
            print(&text(&status))?;
            if let Some(why) = &status.kafka {
                eprintln!("gapless: no watermarks: {why}");
            }
        }
    }
    Ok(Exit::Done)
}

async fn with_kafka(config: &Config, ledger: LedgerStatus) -> Status {
    let survey = match Observer::new(&config.kafka) {
        Ok(observer) => observer.survey().await,
        Err(error) => Err(error),
    };
    let newest = ledger.partitions.iter().map(|p| p.generation).max().unwrap_or(0);
    let row = |p: PartitionStatus| {
        // Offsets mean something within one life of the topic only.
        let marks =
            survey.as_ref().ok().filter(|_| p.generation == newest).and_then(|s| s.partitions.get(&p.partition));
        Row {
            log_start_offset: marks.map(|m| m.log_start.get()),
            last_stable_offset: marks.map(|m| m.last_stable.get()),
            log_end_offset: marks.map(|m| m.log_end.get()),
            lag: marks.map(|m| (m.last_stable.get() - p.next_offset).max(0)),
            ledger: p,
        }
    };
    Status {
        topic: config.kafka.topic.clone(),
        owner: ledger.owner,
        open_dead_letters: ledger.open_dead_letters,
        conflicts: ledger.conflicts,
        partitions: ledger.partitions.into_iter().map(row).collect(),
        kafka: survey.err().map(|e| e.to_string()),
    }
}

fn text(status: &Status) -> String {
    let number = |n: Option<i64>| n.map_or("?".to_owned(), |n| n.to_string());
    let rows: Vec<Vec<String>> = status
        .partitions
        .iter()
        .map(|row| {
            let p = &row.ledger;
            vec![
                p.generation.to_string(),
                p.partition.to_string(),
                p.start_offset.to_string(),
                p.next_offset.to_string(),
                p.outcomes.to_string(),
                p.gap_offsets.to_string(),
                p.unaccounted_offsets.to_string(),
                number(row.last_stable_offset),
                number(row.lag),
            ]
        })
        .collect();
    let header = ["generation", "partition", "start", "next", "outcomes", "gaps", "unaccounted", "stable", "lag"];
    format!(
        "topic {}, last started by {}\n{}open dead letters: {}, conflicts: {}",
        status.topic,
        status.owner.as_deref().unwrap_or("nobody"),
        table(&header, &rows),
        status.open_dead_letters,
        status.conflicts
    )
}
