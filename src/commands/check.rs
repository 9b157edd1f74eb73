//! `gapless check`: the findings that a start would have, each with its remedy. Exit 3 if a start would be refused or a
//! partition would halt, 1 if a start would wait or fail, 0 if it would read.
//!
//! Changes nothing. A start waits or is refused by the same findings ([`crate::findings`]). The configuration was
//! validated before this runs.

use serde::Serialize;

use super::{print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::daemon::{self, Run};
use crate::exit::{Exit, Failure};
use crate::findings::{Effect, Finding};
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::kafka::rights::may_commit;
use crate::ledger::catalogue::Difference;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::start::plan::{PartitionPlan, Plan, next_offset_after};
use crate::ledger::start::schema::SchemaState;
use crate::ledger::start::{StartError, StartRequest};
use crate::model::partition_state::Halt;
use crate::model::start_order::{Again, SkipAllowed, StartOrder};
use crate::model::topic::IdentityMismatch;
use crate::pipeline::validate_log::{lost, mismatch_halt};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

impl Verdict {
    fn of(effect: Effect) -> Self {
        match effect {
            Effect::None => Self::Ok,
            Effect::Warns => Self::Warning,
            Effect::Waits | Effect::Fails | Effect::Misused | Effect::Halts | Effect::Refuses => Self::Error,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        }
    }
}

#[derive(Serialize)]
struct Row<'a> {
    verdict: Verdict,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// The state of the ledger, which decides what can be read from it.
enum Ledger {
    /// The ledger has this program's version.
    Current,
    Absent,
    /// This program must migrate the ledger before it may read positions.
    Older,
    /// The ledger was not reached, or has a newer version.
    Unknown,
}

pub async fn run(config: &Config, format: OutputFormat) -> Result<Exit, Failure> {
    let mut findings = vec![Finding::new("configuration", Effect::None, "valid", "")];
    findings.extend(address(config));
    let store = LedgerStore::new(&config.database).map_err(Failure::usage)?;
    let (of_database, ledger) = database(&store).await;
    findings.extend(of_database);
    let (of_kafka, request) = kafka(config).await;
    findings.extend(of_kafka);
    if let Some(request) = request {
        findings.extend(start(config, &store, &ledger, &request).await);
    }
    let rows: Vec<Row<'_>> =
        findings.iter().map(|finding| Row { verdict: Verdict::of(finding.effect), finding }).collect();
    match format {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Table => print(&text(&rows))?,
    }
    let errors = rows.iter().filter(|row| row.verdict == Verdict::Error).count();
    let summary = format!("{errors} of {} findings are errors", rows.len());
    match findings.iter().map(|finding| finding.effect).max().unwrap_or(Effect::None) {
        Effect::None | Effect::Warns => Ok(Exit::Done),
        Effect::Waits | Effect::Fails => Err(Failure::failed(summary)),
        Effect::Misused => Err(Failure::usage(summary)),
        Effect::Halts | Effect::Refuses => Err(Failure::decide(summary)),
    }
}

/// The finding if `server.bind` cannot be used for the probes.
fn address(config: &Config) -> Option<Finding> {
    let bind = config.server.bind;
    let error = std::net::TcpListener::bind(bind).err()?;
    let detail = format!("server.bind {bind}: {error}");
    Some(match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Finding::new("address", Effect::Warns, detail, "none, if that is the running daemon; else free the port")
        }
        _ => Finding::new("address", Effect::Fails, detail, "choose an address of this host"),
    })
}

async fn database(store: &LedgerStore) -> (Vec<Finding>, Ledger) {
    match store.schema_state().await {
        Ok(SchemaState::Current) => {
            let reached = Finding::new("postgresql", Effect::None, "reached, schema up to date", "");
            let rest = ledger(store).await.unwrap_or_else(|error| vec![error.into()]);
            (std::iter::once(reached).chain(rest).collect(), Ledger::Current)
        }
        Ok(state) => {
            let (detail, ledger) = match state {
                SchemaState::Older { found, known } => (
                    format!("reached, the schema is at version {found} and this gapless needs version {known}"),
                    Ledger::Older,
                ),
                SchemaState::Absent | SchemaState::Current => {
                    ("reached, there is no ledger in this database yet".to_owned(), Ledger::Absent)
                }
            };
            let remedy = "the next start migrates it, or run `gapless migrate`";
            let reached = Finding::new("postgresql", Effect::Warns, detail, remedy);
            let refused = store.may_migrate().await.err().map(Finding::from);
            let standby = standby(store).await.unwrap_or_else(|error| Some(error.into()));
            (std::iter::once(reached).chain(refused).chain(standby).collect(), ledger)
        }
        Err(error) => (vec![daemon::of_migration(store, error).await], Ledger::Unknown),
    }
}

/// Checks a ledger of this program's version: rights, and whether its tables are what this program needs.
async fn ledger(store: &LedgerStore) -> Result<Vec<Finding>, LedgerError> {
    let mut findings = Finding::of_rights(&store.missing_rights().await?);
    if findings.is_empty() {
        findings.push(Finding::new("rights", Effect::None, "the role may read and write all that a daemon does", ""));
    }
    findings.extend(standby(store).await?);
    findings.extend(catalogue(store).await.unwrap_or_else(|error| vec![error.into()]));
    Ok(findings)
}

/// Checks the ledger's tables, and lists the objects that users added to them.
async fn catalogue(store: &LedgerStore) -> Result<Vec<Finding>, LedgerError> {
    let found = store.check_catalogue().await?;
    let differs = |d: Difference| Finding::new("ledger", Effect::Refuses, &d, d.remedy.clone());
    let mut findings: Vec<Finding> = found.differences.into_iter().map(differs).collect();
    if findings.is_empty() {
        let sound = "tables, keys, indexes, views and functions are as needed";
        findings.push(Finding::new("ledger", Effect::None, sound, ""));
    }
    findings.extend(found.additions.into_iter().map(|added| Finding::new("added by users", Effect::None, added, "")));
    Ok(findings)
}

async fn standby(store: &LedgerStore) -> Result<Option<Finding>, LedgerError> {
    let finding = || {
        let detail = "the server is a standby and read-only";
        Finding::new("postgresql", Effect::Waits, detail, "give the primary's address in database.url, or promote it")
    };
    Ok(store.is_standby().await?.then(finding))
}

/// Checks Kafka. Returns the findings, and the request with which a start would go to the ledger.
async fn kafka(config: &Config) -> (Vec<Finding>, Option<StartRequest>) {
    let observer = match Observer::new(&config.kafka) {
        Ok(observer) => observer,
        Err(error) => return (vec![error.into()], None),
    };
    let run = Run { order: StartOrder::FromDb, skip_allowed: SkipAllowed::No, again: Again::No, until_end: false };
    let request = match daemon::request(config, &run, &observer).await {
        Ok(request) => request,
        Err(error) => return (vec![error.into()], None),
    };
    let detail = format!(
        "reached cluster {}, topic {} has {} partitions",
        request.snapshot.identity.cluster_id.as_deref().unwrap_or("(unnamed)"),
        config.kafka.topic,
        request.snapshot.count()
    );
    let mut findings = vec![Finding::new("kafka", Effect::None, detail, "")];
    if !request.snapshot.leaderless.is_empty() {
        findings.push(observer.no_leader(request.snapshot.leaderless.len()).into());
    }
    findings.push(match observer.is_compacted(&config.kafka).await {
        Ok(false) => Finding::new("topic", Effect::None, "cleanup.policy does not compact", ""),
        Ok(true) => Finding::new(
            "topic",
            Effect::Warns,
            "cleanup.policy compacts: Kafka deletes events that share a key with later ones",
            "set cleanup.policy=delete on the topic",
        ),
        Err(error) => Finding { effect: Effect::Warns, ..error.into() },
    });
    findings.extend(rights(config, &observer).await.unwrap_or_else(|error| vec![error.into()]));
    (findings, Some(request))
}

/// Checks the rights of this user in Kafka.
async fn rights(config: &Config, observer: &Observer) -> Result<Vec<Finding>, SourceError> {
    let (topic, group) = (&config.kafka.topic, &config.kafka.group);
    let mut findings = Vec::new();
    if observer.may_read().await? == Some(false) {
        let detail = format!("gapless's user has no right to Read on topic {topic}");
        let remedy = format!("grant it: kafka-acls.sh --add --allow-principal User:… --operation Read --topic {topic}");
        findings.push(Finding::new("topic", Effect::Waits, detail, remedy));
    }
    if may_commit(&config.kafka).await? == Some(false) {
        let detail =
            format!("gapless's user has no right to Read on group {group}: lag tools see no offsets, nothing is lost");
        let remedy = format!("grant it: kafka-acls.sh --add --allow-principal User:… --operation Read --group {group}");
        findings.push(Finding::new("group", Effect::Warns, detail, remedy));
    }
    Ok(findings)
}

/// The decisions of a start, as findings: a refusal, or a halt of a partition.
async fn start(config: &Config, store: &LedgerStore, ledger: &Ledger, request: &StartRequest) -> Vec<Finding> {
    let plan = match ledger {
        Ledger::Unknown => return Vec::new(),
        Ledger::Older => {
            let refused = store.check_older_belongs(&request.group, &config.format.identity).await.err();
            return refused.map(Finding::from).into_iter().collect();
        }
        Ledger::Current | Ledger::Absent => store.plan(request).await,
    };
    let mut findings = match plan {
        Ok(plan) => partitions(request, &plan),
        Err(error) => return vec![error.into()],
    };
    if matches!(ledger, Ledger::Current) {
        let recorded = recorded(store, &request.topic).await.unwrap_or_else(|error| vec![error.into()]);
        let is_new = |finding: &Finding| findings.iter().all(|known| known.what != finding.what);
        let others: Vec<Finding> = recorded.into_iter().filter(is_new).collect();
        findings.extend(others);
    }
    if findings.is_empty() {
        findings.push(Finding::new("start", Effect::None, "each partition would be read from its position", ""));
    }
    findings
}

fn partitions(request: &StartRequest, plan: &Plan) -> Vec<Finding> {
    let halt = match &plan.topic_identity_mismatch {
        Some(difference @ IdentityMismatch::Cluster { .. }) => {
            let (topic, difference, unread) = (request.topic.clone(), difference.clone(), plan.unread.clone());
            return vec![StartError::OtherTopicIdentity { topic, difference, unread }.into()];
        }
        Some(difference @ IdentityMismatch::Topic { .. }) => {
            Some(Halt { unread: plan.unread.clone(), ..mismatch_halt(difference) })
        }
        None => None,
    };
    let of_partition = |p: &PartitionPlan| match (&p.decision, &halt) {
        (_, Some(halt)) => Some(Finding::of_halt(&p.partition, halt)),
        (Err(refusal), None) => Some(refusal.clone().into()),
        (Ok(change), None) => {
            let marks = request.snapshot.partitions.get(&p.partition)?;
            let halt = lost(next_offset_after(p.stored.as_ref(), *change), *marks)?;
            let unread = plan.unread.iter().filter(|u| u.partition == p.partition.partition).copied().collect();
            Some(Finding::of_halt(&p.partition, &Halt { unread, ..halt }))
        }
    };
    plan.partitions.iter().filter_map(of_partition).collect()
}

/// The partitions that a daemon has recorded as halted or suspended.
async fn recorded(store: &LedgerStore, topic: &str) -> Result<Vec<Finding>, LedgerError> {
    let ledger = store.ledger_status(topic).await?;
    let newest = ledger.partitions.iter().map(|p| p.generation).max();
    let partitions = ledger.partitions.iter().filter(|p| Some(p.generation) == newest);
    let recorded = partitions.filter_map(|p| Some((p.partition, p.recorded_problem()?)));
    Ok(recorded.map(|(partition, recorded)| Finding::of_recorded(partition, recorded)).collect())
}

fn text(rows: &[Row<'_>]) -> String {
    let cells = |row: &Row<'_>| {
        let Finding { what, detail, remedy, .. } = row.finding;
        vec![what.to_string(), row.verdict.name().to_owned(), detail.clone(), remedy.clone()]
    };
    table(&["what", "verdict", "finding", "remedy"], &rows.iter().map(cells).collect::<Vec<_>>())
}
