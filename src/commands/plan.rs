//! `gapless plan`: the decision of a start for each partition. Changes nothing. Exit 3 if the start would be refused or
//! a partition would halt.

use serde::Serialize;

use super::{failed, print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::daemon::{self, Run};
use crate::exit::{Exit, Failure};
use crate::kafka::metadata::Observer;
use crate::ledger::connect::LedgerReader;
use crate::ledger::start::OrderState;
use crate::ledger::start::plan::{Leaderless, PartitionPlan, Plan, next_offset_after};
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::Halt;
use crate::model::topic::TopicPartition;
use crate::pipeline::validate_log::{lost, mismatch_halt};

#[derive(Serialize)]
struct Row {
    partition: i32,
    stored: Option<i64>,
    log_start_offset: Option<i64>,
    last_stable_offset: Option<i64>,
    log_end_offset: Option<i64>,
    /// The offset at which reading would begin; `None` if the partition would not be read.
    begin: Option<i64>,
    why: String,
    offsets_to_read: Option<u64>,
    already_recorded: i64,
    refused: bool,
}

pub async fn run(config: &Config, run: &Run, format: OutputFormat) -> Result<Exit, Failure> {
    let store = LedgerReader::new(&config.database).map_err(Failure::usage)?;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    let request = daemon::request(config, run, &observer).await.map_err(failed)?;
    let plan = store.plan(&request).await.map_err(failed)?;
    let marks = |partition: &TopicPartition| request.snapshot.partitions[partition];
    let mut rows: Vec<Row> = plan.partitions.iter().map(|p| row(p, marks(&p.partition), &plan)).collect();
    rows.extend(plan.leaderless.iter().map(without_leader));
    rows.sort_by_key(|row| row.partition);
    match format {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Table => print(&text(&rows, &plan.order))?,
    }
    match rows.iter().filter(|row| row.refused).count() {
        0 => Ok(Exit::Done),
        n => Err(Failure::decide(format!(
            "{n} of {} partitions would be refused or halt, each with its remedy",
            rows.len()
        ))),
    }
}

fn row(p: &PartitionPlan, marks: Watermarks, plan: &Plan) -> Row {
    let begin = p.decision.as_ref().ok().map(|change| next_offset_after(p.stored.as_ref(), *change));
    let halt = halt(&p.partition, begin, marks, plan);
    let why = match (&p.decision, &halt) {
        (Err(refusal), _) => refusal.to_string(),
        (Ok(_), Some(halt)) => {
            format!("would halt as {}: {}; {}", halt.reason.name(), halt.detail, halt.remedy(&p.partition))
        }
        (Ok(change), None) => change.to_string(),
    };
    let refused = p.decision.is_err() || halt.is_some();
    Row {
        partition: p.partition.partition,
        stored: p.stored.as_ref().map(|stored| stored.next.get()),
        log_start_offset: Some(marks.log_start.get()),
        last_stable_offset: Some(marks.last_stable.get()),
        log_end_offset: Some(marks.log_end.get()),
        begin: begin.filter(|_| !refused).map(NextOffset::get),
        why,
        offsets_to_read: begin
            .filter(|_| !refused)
            .map(|at| OffsetRange::new(at, marks.last_stable).map_or(0, OffsetRange::count)),
        already_recorded: p.recorded,
        refused,
    }
}

/// The halt, if the partition would not be read from `begin`.
fn halt(partition: &TopicPartition, begin: Option<NextOffset>, marks: Watermarks, plan: &Plan) -> Option<Halt> {
    if let Some(difference) = &plan.topic_identity_mismatch {
        return Some(Halt { unread: plan.unread.clone(), ..mismatch_halt(difference) });
    }
    let unread = plan.unread.iter().filter(|u| u.partition == partition.partition).copied().collect();
    Some(Halt { unread, ..lost(begin?, marks)? })
}

fn without_leader(p: &Leaderless) -> Row {
    let why = match p.undecided {
        true => "no leader answers for it: the start would wait, since it must decide where this partition begins",
        false => "no leader answers for it: would be suspended until it has one",
    };
    Row {
        partition: p.partition.partition,
        stored: p.stored.as_ref().map(|stored| stored.next.get()),
        log_start_offset: None,
        last_stable_offset: None,
        log_end_offset: None,
        begin: None,
        why: why.to_owned(),
        offsets_to_read: None,
        already_recorded: 0,
        refused: false,
    }
}

fn text(rows: &[Row], order: &OrderState) -> String {
    let order = match order {
        OrderState::Resumed => "no order: each partition resumes".to_owned(),
        OrderState::CarriedOut(order) => format!("--offset {order} would be carried out"),
        OrderState::CarriedOutBefore(order) => {
            format!("--offset {order} was carried out before: each partition resumes")
        }
    };
    let number = |n: Option<i64>| n.map_or("-".to_owned(), |n| n.to_string());
    let cells = |row: &Row| {
        vec![
            row.partition.to_string(),
            number(row.stored),
            number(row.log_start_offset),
            number(row.last_stable_offset),
            number(row.log_end_offset),
            number(row.begin),
            row.offsets_to_read.map_or("-".to_owned(), |n| n.to_string()),
            row.already_recorded.to_string(),
            row.why.clone(),
        ]
    };
    let header = ["partition", "stored", "log start", "stable", "end", "begin", "to read", "recorded", "why"];
    format!("{order}\n{}", table(&header, &rows.iter().map(cells).collect::<Vec<_>>()))
}
