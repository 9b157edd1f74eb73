//! `gapless check`: the configuration and both servers, each finding with its remedy.
//!
//! Changes nothing. (That the configuration is valid is known by the time this runs.)

use serde::Serialize;

use super::{print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::source::SourceError;
use crate::source::observer::Observer;
use crate::store::{MigrateError, Store};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    detail: String,
    remedy: String,
}

impl Finding {
    fn new(what: &'static str, verdict: Verdict, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict, detail: detail.into(), remedy: remedy.into() }
    }
}

pub async fn run(config: &Config, format: OutputFormat) -> Result<Exit, Failure> {
    let store = Store::new(&config.database).map_err(Failure::usage)?;
    let mut findings = vec![Finding::new("configuration", Verdict::Ok, "valid", "")];
    findings.push(database(&store).await);
    findings.extend(kafka(config).await);
    match format {
        OutputFormat::Json => print_json(&findings)?,
        OutputFormat::Table => print(&text(&findings))?,
    }
    match findings.iter().filter(|f| f.verdict == Verdict::Error).count() {
        0 => Ok(Exit::Done),
        n => Err(Failure::failed(format!("{n} of {} findings are errors", findings.len()))),
    }
}

async fn database(store: &Store) -> Finding {
    match store.schema_is_current().await {
        Ok(true) => Finding::new("postgresql", Verdict::Ok, "reached, schema up to date", ""),
        Ok(false) => Finding::new(
            "postgresql",
            Verdict::Warning,
            "reached, the schema is missing or older than this program",
            "the next start migrates it, or run `gapless migrate`",
        ),
        Err(MigrateError::Store(error)) => {
            Finding::new("postgresql", Verdict::Error, error.to_string(), error.remedy())
        }
        Err(error) => Finding::new("postgresql", Verdict::Error, error.to_string(), ""),
    }
}

async fn kafka(config: &Config) -> Vec<Finding> {
    let observer = match Observer::new(&config.kafka) {
        Ok(observer) => observer,
        Err(error) => return vec![unreachable(&error)],
    };
    let survey = match observer.survey().await {
        Ok(survey) if survey.unreachable > 0 => return vec![unreachable(&observer.no_leader(survey.unreachable))],
        Ok(survey) => survey,
        Err(error) => return vec![unreachable(&error)],
    };
    let detail = format!(
        "reached cluster {}, topic {} has {} partitions",
        survey.life.cluster_id.as_deref().unwrap_or("(unnamed)"),
        config.kafka.topic,
        survey.partitions.len()
    );
    let policy = match observer.is_compacted(&config.kafka).await {
        Ok(false) => Finding::new("topic", Verdict::Ok, "cleanup.policy does not compact", ""),
        Ok(true) => Finding::new(
            "topic",
            Verdict::Warning,
            "cleanup.policy compacts: Kafka deletes events that share a key with later ones",
            "set cleanup.policy=delete on the topic",
        ),
        Err(error) => Finding::new("topic", Verdict::Warning, error.to_string(), error.remedy()),
    };
    vec![Finding::new("kafka", Verdict::Ok, detail, ""), policy]
}

fn unreachable(error: &SourceError) -> Finding {
    Finding::new("kafka", Verdict::Error, error.to_string(), error.remedy())
}

fn text(findings: &[Finding]) -> String {
    let verdict = |v| match v {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Error => "ERROR",
    };
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|f| vec![f.what.to_owned(), verdict(f.verdict).to_owned(), f.detail.clone(), f.remedy.clone()])
        .collect();
    table(&["what", "verdict", "finding", "remedy"], &rows)
}
