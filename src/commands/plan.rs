//! `gapless plan`: what a start would do, per partition, changing nothing. Exit 3 where it would be
//! refused or halt.

use serde::Serialize;

use super::{failed, print, print_json, table};
use crate::app::{self, Run};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::position::{NextOffset, OffsetRange, Watermarks};
use crate::source::observer::Observer;
use crate::store::{OrderState, PartitionPlan, Plan, Store, begins};

#[derive(Serialize)]
struct Row {
    partition: i32,
    stored: Option<i64>,
    log_start_offset: i64,
    last_stable_offset: i64,
    log_end_offset: i64,
    /// Where reading would begin; `None` where it would not.
    begin: Option<i64>,
    why: String,
    offsets_to_read: Option<u64>,
    already_recorded: i64,
    refused: bool,
}

pub async fn run(config: &Config, run: &Run, format: OutputFormat) -> Result<Exit, Failure> {
    let store = Store::for_reading(&config.database).map_err(Failure::usage)?;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    let request = app::request(config, run, &observer).await.map_err(failed)?;
    let plan = store.plan(&request).await.map_err(failed)?;
    let marks = |partition: i32| request.survey.partitions[&partition];
    let rows: Vec<Row> = plan.partitions.iter().map(|p| row(p, marks(p.partition), &plan)).collect();
    match format {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Table => print(&text(&rows, &plan.order))?,
    }
    match rows.iter().filter(|row| row.refused).count() {
        0 => Ok(Exit::Done),
        n => Err(Failure::decide(format!("{n} of {} partitions would be refused or halt", rows.len()))),
    }
}

fn row(plan: &PartitionPlan, marks: Watermarks, whole: &Plan) -> Row {
    let begin = plan.decision.as_ref().ok().map(|change| begins(plan.stored.as_ref(), *change));
    let gone = begin.and_then(|at| OffsetRange::new(at, marks.log_start));
    let beyond = begin.and_then(|at| OffsetRange::new(marks.log_end, at));
    let why = match (&plan.decision, &whole.another_life, gone, beyond) {
        (Err(refusal), ..) => refusal.to_string(),
        (_, Some(difference), ..) => format!("would halt: {difference}"),
        (_, _, Some(range), _) => format!("would halt: Kafka no longer has {range}"),
        (_, _, _, Some(range)) => format!("would halt: {range} lies beyond the log end"),
        (Ok(change), ..) => change.to_string(),
    };
    let refused = plan.decision.is_err() || whole.another_life.is_some() || gone.is_some() || beyond.is_some();
    Row {
        partition: plan.partition,
        stored: plan.stored.map(|p| p.next.get()),
        log_start_offset: marks.log_start.get(),
        last_stable_offset: marks.last_stable.get(),
        log_end_offset: marks.log_end.get(),
        begin: begin.filter(|_| !refused).map(NextOffset::get),
        why,
        offsets_to_read: begin
            .filter(|_| !refused)
            .map(|at| OffsetRange::new(at, marks.last_stable).map_or(0, OffsetRange::count)),
        already_recorded: plan.recorded,
        refused,
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
            row.log_start_offset.to_string(),
            row.last_stable_offset.to_string(),
            row.log_end_offset.to_string(),
            number(row.begin),
            row.offsets_to_read.map_or("-".to_owned(), |n| n.to_string()),
            row.already_recorded.to_string(),
            row.why.clone(),
        ]
    };
    let header = ["partition", "stored", "log start", "stable", "end", "begin", "to read", "recorded", "why"];
    format!("{order}\n{}", table(&header, &rows.iter().map(cells).collect::<Vec<_>>()))
}
