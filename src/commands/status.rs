//! `gapless status`: positions, accounting, lag, and partitions that are not being read, from PostgreSQL and Kafka.
//! Exit 3 if a partition is halted or suspended or offsets are unaccounted for, 1 if a server cannot be asked.

use serde::Serialize;

use super::{failed, ledger, print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::findings::Finding;
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::ledger::connect::LedgerReader;
use crate::ledger::read::status::{LedgerStatus, PartitionStatus, Recorded};
use crate::model::generation::Unread;
use crate::model::offset::NextOffset;
use crate::model::partition_state::Halt;
use crate::model::topic::{Topic, TopicPartition, TopicSnapshot};
use crate::pipeline::validate_log::{lost, topic_identity_mismatch};

#[derive(Serialize)]
struct Status {
    topic: String,
    owner: Option<String>,
    open_dead_letters: i64,
    /// The count was stopped early: there are at least `open_dead_letters`.
    open_dead_letters_is_minimum: bool,
    conflicts: i64,
    conflicts_is_minimum: bool,
    /// The error and its remedy, if Kafka gave no watermarks.
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
    /// `ok`, `halted` or `suspended`.
    state: String,
    #[serde(flatten)]
    problem: Option<Problem>,
}

/// The reason for which a partition is not being read.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(skip)]
    state: String,
    reason: String,
    detail: String,
    /// The offsets that it is about, half-open.
    range: Option<(i64, i64)>,
    remedy: String,
    /// `daemon`: a daemon wrote it into the ledger. `kafka`: the log shows it now.
    known_from: &'static str,
    since: Option<String>,
    /// When a daemon confirmed it last. A running daemon confirms it every 30 s.
    confirmed_at: Option<String>,
    written_by: Option<String>,
}

impl Problem {
    fn recorded(recorded: &Recorded) -> Self {
        Self {
            state: recorded.state.clone(),
            reason: recorded.reason.clone(),
            detail: recorded.detail.clone(),
            range: recorded.range,
            remedy: recorded.remedy.clone(),
            known_from: "daemon",
            since: Some(recorded.since.clone()),
            confirmed_at: Some(recorded.updated_at.clone()),
            written_by: recorded.instance.clone(),
        }
    }

    fn evident(partition: &TopicPartition, halt: &Halt) -> Self {
        Self {
            state: "halted".to_owned(),
            reason: halt.reason.name().to_owned(),
            detail: halt.detail.clone(),
            range: halt.range.map(|r| (r.from().get(), r.to().get())),
            remedy: halt.remedy(partition),
            known_from: "kafka",
            since: None,
            confirmed_at: None,
            written_by: None,
        }
    }

    fn without_leader() -> Self {
        let finding = Finding::from(SourceError::NoLeader { partitions: 1, failure: None });
        Self {
            state: "suspended".to_owned(),
            reason: "no_leader".to_owned(),
            detail: "no leader answers for the partition".to_owned(),
            range: None,
            remedy: finding.remedy,
            known_from: "kafka",
            since: None,
            confirmed_at: None,
            written_by: None,
        }
    }
}

pub async fn run(config: &Config, format: OutputFormat) -> Result<Exit, Failure> {
    let store = ledger(config).await?;
    let status = status(config, &store).await?;
    match format {
        OutputFormat::Json => print_json(&status)?,
        OutputFormat::Table => print(&text(&status))?,
    }
    verdict(&status)
}

fn verdict(status: &Status) -> Result<Exit, Failure> {
    let not_read = status.partitions.iter().filter(|row| row.problem.is_some()).count();
    let missing: i64 = status.partitions.iter().filter_map(|row| row.ledger.unaccounted_offsets).sum();
    match (not_read, missing, &status.kafka) {
        (0, 0, None) => Ok(Exit::Done),
        (0, 0, Some(why)) => Err(Failure::failed(format!("no watermarks: {why}"))),
        (0, missing, _) => {
            Err(Failure::decide(format!("{missing} offsets are unaccounted for; `gapless verify` names them")))
        }
        (n, _, None) => Err(Failure::decide(format!("{n} partitions are halted or suspended"))),
        (n, _, Some(why)) => {
            Err(Failure::decide(format!("{n} partitions are halted or suspended; no watermarks: {why}")))
        }
    }
}

/// Reads the ledger before Kafka, so that a log end is never older than a position.
async fn status(config: &Config, store: &LedgerReader) -> Result<Status, Failure> {
    let topic = &config.kafka.topic;
    let ledger = store.ledger_status(topic).await.map_err(failed)?;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    let snapshot = observer.snapshot().await;
    let unread = store.unread(topic).await.map_err(failed)?;
    let status = combine(topic, ledger, snapshot.as_ref(), &unread);
    let by_kafka = |row: &Row| row.problem.as_ref().is_some_and(|problem| problem.known_from == "kafka");
    if !status.partitions.iter().any(by_kafka) {
        return Ok(status);
    }
    // A daemon may have read on, and retention may have deleted that part, between the two queries. So both are
    // repeated.
    let ledger = store.ledger_status(topic).await.map_err(failed)?;
    Ok(combine(topic, ledger, observer.snapshot().await.as_ref(), &unread))
}

fn combine(
    topic: &Topic,
    ledger: LedgerStatus,
    snapshot: Result<&TopicSnapshot, &SourceError>,
    unread: &[Unread],
) -> Status {
    let newest = ledger.partitions.iter().map(|p| p.generation).max().unwrap_or(0);
    let identity = ledger.identity;
    let another = identity
        .as_ref()
        .zip(snapshot.ok())
        .and_then(|(known, snapshot)| topic_identity_mismatch(known, &snapshot.identity));
    let row = |p: PartitionStatus| {
        // Offsets of another generation cannot be compared with this log.
        let snapshot = snapshot.ok().filter(|_| p.generation == newest && another.is_none());
        let partition = topic.partition(p.partition);
        let marks = snapshot.and_then(|snapshot| snapshot.partitions.get(&partition));
        let problem = || {
            let recorded = p.recorded_problem().map(Problem::recorded);
            let evident = another
                .clone()
                .or_else(|| marks.and_then(|marks| lost(NextOffset::new(p.next_offset)?, *marks)))
                .map(|halt| {
                    // With another topic or cluster the unread offsets of all partitions are gone, else only those of
                    // this one.
                    let is_gone = |u: &&Unread| another.is_some() || u.partition == p.partition;
                    Halt { unread: unread.iter().filter(is_gone).copied().collect(), ..halt }
                })
                .map(|halt| Problem::evident(&partition, &halt));
            let absent = snapshot.filter(|_| marks.is_none()).map(|_| Problem::without_leader());
            recorded.or(evident).or(absent)
        };
        let problem = (p.generation == newest).then(problem).flatten();
        Row {
            log_start_offset: marks.map(|m| m.log_start.get()),
            last_stable_offset: marks.map(|m| m.last_stable.get()),
            log_end_offset: marks.map(|m| m.log_end.get()),
            lag: marks.map(|m| (m.last_stable.get() - p.next_offset).max(0)),
            state: problem.as_ref().map_or("ok".to_owned(), |problem| problem.state.clone()),
            problem,
            ledger: p,
        }
    };
    Status {
        topic: topic.to_string(),
        owner: ledger.owner,
        open_dead_letters: ledger.open_dead_letters.count,
        open_dead_letters_is_minimum: ledger.open_dead_letters.is_minimum,
        conflicts: ledger.conflicts.count,
        conflicts_is_minimum: ledger.conflicts.is_minimum,
        partitions: ledger.partitions.into_iter().map(row).collect(),
        kafka: snapshot.err().map(|error| Finding::from(error.clone()).line()),
    }
}

fn text(status: &Status) -> String {
    let number = |n: Option<i64>| n.map_or("?".to_owned(), |n| n.to_string());
    let cells = |row: &Row| {
        let p = &row.ledger;
        vec![
            p.generation.to_string(),
            p.partition.to_string(),
            p.start_offset.to_string(),
            p.next_offset.to_string(),
            number(p.outcomes),
            number(p.gap_offsets),
            number(p.unaccounted_offsets),
            number(row.last_stable_offset),
            number(row.lag),
            row.state.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = status.partitions.iter().map(cells).collect();
    let header =
        ["generation", "partition", "start", "next", "outcomes", "gaps", "unaccounted", "stable", "lag", "state"];
    let notes: String = status.partitions.iter().flat_map(notes).map(|note| note + "\n").collect();
    let at_least = |count: i64, is_minimum| if is_minimum { format!("{count}+") } else { count.to_string() };
    format!(
        "topic {}, last started by {}\n{}{notes}open dead letters: {}, conflicts: {}",
        status.topic,
        status.owner.as_deref().unwrap_or("no daemon"),
        table(&header, &rows),
        at_least(status.open_dead_letters, status.open_dead_letters_is_minimum),
        at_least(status.conflicts, status.conflicts_is_minimum),
    )
}

/// The lines below the table: details that do not fit into it.
fn notes(row: &Row) -> Vec<String> {
    let partition = row.ledger.partition;
    let mut notes = Vec::new();
    if let Some(problem) = &row.problem {
        let Problem { state, reason, detail, remedy, .. } = problem;
        notes.push(format!("partition {partition} {state} ({reason}): {detail}; {remedy}"));
        let written = (&problem.since, &problem.confirmed_at, &problem.written_by);
        if let (Some(since), Some(confirmed), by) = written {
            let by = by.as_deref().unwrap_or("an unknown start");
            notes.push(format!("partition {partition}: since {since}, as {by} wrote, confirmed {confirmed}"));
        }
    }
    if let Some(counted) = &row.ledger.unaccounted_as_of {
        notes.push(format!(
            "partition {partition}: the unaccounted offsets are those of [{}, {}), as the daemon counted until {}; `gapless verify` counts all",
            counted.from, counted.to, counted.at
        ));
    }
    notes
}
