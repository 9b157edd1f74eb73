//! `gapless status`: positions, accounting, lag, and which partitions are not being read, from PostgreSQL and
//! Kafka. Exit 3 where a partition is halted or suspended, 1 where a server could not be asked.

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
use crate::model::topic::TopicSnapshot;
use crate::pipeline::validate_log::{lost, topic_identity_mismatch};

#[derive(Serialize)]
struct Status {
    topic: String,
    owner: Option<String>,
    open_dead_letters: i64,
    /// There are more than `open_dead_letters` says.
    open_dead_letters_is_minimum: bool,
    conflicts: i64,
    conflicts_is_minimum: bool,
    /// Why there are no watermarks, if Kafka did not answer, with the remedy.
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
    /// `ok` where nothing is known that keeps the partition from being read.
    state: String,
    #[serde(flatten)]
    trouble: Option<Trouble>,
}

/// What keeps a partition from being read.
#[derive(Debug, Serialize)]
struct Trouble {
    #[serde(skip)]
    state: String,
    reason: String,
    detail: String,
    /// The offsets it is about, half-open.
    range: Option<(i64, i64)>,
    remedy: String,
    /// `daemon`, as it wrote into the ledger, or `kafka`, as its log shows now.
    known_from: &'static str,
    since: Option<String>,
    /// When the daemon confirmed it last: every 30 s while it runs.
    confirmed_at: Option<String>,
    written_by: Option<String>,
}

impl Trouble {
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

    fn evident(topic: &str, partition: i32, halt: &Halt) -> Self {
        Self {
            state: "halted".to_owned(),
            reason: halt.reason.name().to_owned(),
            detail: halt.detail.clone(),
            range: halt.range.map(|r| (r.from().get(), r.to().get())),
            remedy: halt.remedy(topic, partition),
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
    let not_read = status.partitions.iter().filter(|row| row.trouble.is_some()).count();
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

/// The ledger first: a log end is then never older than a position.
async fn status(config: &Config, store: &LedgerReader) -> Result<Status, Failure> {
    let topic = &config.kafka.topic;
    let ledger = store.ledger_status(topic).await.map_err(failed)?;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    let snapshot = observer.snapshot().await;
    let unread = store.unread(topic).await.map_err(failed)?;
    let status = judged(topic, ledger, snapshot.as_ref(), &unread);
    let by_kafka = |row: &Row| row.trouble.as_ref().is_some_and(|trouble| trouble.known_from == "kafka");
    if !status.partitions.iter().any(by_kafka) {
        return Ok(status);
    }
    // A daemon may have read on, and the log been cut behind it, between the two looks: both once more.
    let ledger = store.ledger_status(topic).await.map_err(failed)?;
    Ok(judged(topic, ledger, observer.snapshot().await.as_ref(), &unread))
}

fn judged(
    topic: &str,
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
        // Offsets mean something within one life of the topic only.
        let snapshot = snapshot.ok().filter(|_| p.generation == newest && another.is_none());
        let marks = snapshot.and_then(|snapshot| snapshot.partitions.get(&p.partition));
        let trouble = || {
            let recorded = p.recorded_problem().map(Trouble::recorded);
            let evident = another
                .clone()
                .or_else(|| marks.and_then(|marks| lost(NextOffset::new(p.next_offset)?, *marks)))
                .map(|halt| {
                    // Of another topic or cluster no log is the one that was read, of a replaced log only this one.
                    let is_gone = |u: &&Unread| another.is_some() || u.partition == p.partition;
                    Halt { unread: unread.iter().filter(is_gone).copied().collect(), ..halt }
                })
                .map(|halt| Trouble::evident(topic, p.partition, &halt));
            let absent = snapshot.filter(|_| marks.is_none()).map(|_| Trouble::without_leader());
            recorded.or(evident).or(absent)
        };
        let trouble = (p.generation == newest).then(trouble).flatten();
        Row {
            log_start_offset: marks.map(|m| m.log_start.get()),
            last_stable_offset: marks.map(|m| m.last_stable.get()),
            log_end_offset: marks.map(|m| m.log_end.get()),
            lag: marks.map(|m| (m.last_stable.get() - p.next_offset).max(0)),
            state: trouble.as_ref().map_or("ok".to_owned(), |trouble| trouble.state.clone()),
            trouble,
            ledger: p,
        }
    };
    Status {
        topic: topic.to_owned(),
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
        status.owner.as_deref().unwrap_or("nobody"),
        table(&header, &rows),
        at_least(status.open_dead_letters, status.open_dead_letters_is_minimum),
        at_least(status.conflicts, status.conflicts_is_minimum),
    )
}

/// What does not fit into the table.
fn notes(row: &Row) -> Vec<String> {
    let partition = row.ledger.partition;
    let mut notes = Vec::new();
    if let Some(trouble) = &row.trouble {
        let Trouble { state, reason, detail, remedy, .. } = trouble;
        notes.push(format!("partition {partition} {state} ({reason}): {detail}; {remedy}"));
        let written = (&trouble.since, &trouble.confirmed_at, &trouble.written_by);
        if let (Some(since), Some(confirmed), by) = written {
            let by = by.as_deref().unwrap_or("an unknown start");
            notes.push(format!("partition {partition}: since {since}, as {by} wrote, confirmed {confirmed}"));
        }
    }
    if let Some(counted) = &row.ledger.unaccounted_as_of {
        notes.push(format!(
            "partition {partition}: unaccounted is of [{}, {}) as the daemon counted until {}; `gapless verify` counts all",
            counted.from, counted.to, counted.at
        ));
    }
    notes
}
