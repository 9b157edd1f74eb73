//! `gapless verify`: the ledger against itself and against the broker. Exit 0, or 3 with exact ranges.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::position::OffsetRange;
use crate::progress::Bar;
use crate::source::observer::{Observer, Survey};
use crate::store::{Flaw, Inspected, Inspector, Store};
use crate::verify::{self, Mismatch};

/// Findings that a table shows.
const SHOWN: usize = 40;

/// How much of the log is compared with the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Sample,
    Deep,
}

#[derive(Serialize)]
struct Verdict {
    topic: String,
    verified: bool,
    partitions: Vec<Checked>,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Checked {
    generation: i32,
    partition: i32,
    start_offset: i64,
    next_offset: i64,
    outcomes: i64,
    gap_offsets: i64,
    /// Messages read again from Kafka and compared.
    compared: u64,
}

#[derive(Serialize)]
struct Finding {
    kind: &'static str,
    generation: i32,
    partition: i32,
    /// Half-open; null where it is about the partition as a whole.
    from: Option<i64>,
    to: Option<i64>,
    remedy: String,
}

impl Finding {
    fn new(kind: &'static str, p: &Inspected, range: Option<OffsetRange>, remedy: impl Into<String>) -> Self {
        let (from, to) = (range.map(|r| r.from().get()), range.map(|r| r.to().get()));
        Self { kind, generation: p.generation, partition: p.partition, from, to, remedy: remedy.into() }
    }
}

pub async fn run(config: &Config, depth: Depth, format: OutputFormat) -> Result<Exit, Failure> {
    let store = Store::new(&config.database).map_err(Failure::usage)?;
    if !store.schema_is_current().await.map_err(Failure::failed)? {
        return Err(Failure::failed("there is no ledger in this database yet; start gapless or run `gapless migrate`"));
    }
    let inspector = store.inspect().await.map_err(Failure::failed)?;
    let observer = Observer::new(&config.kafka).map_err(Failure::usage)?;
    let survey = observer.survey().await.map_err(Failure::failed)?;
    let compacted = observer.is_compacted(&config.kafka).await.unwrap_or(false);
    let partitions = inspector.partitions(&config.kafka.topic).await.map_err(Failure::failed)?;

    let mut findings = Vec::new();
    for p in &partitions {
        findings.extend(against_itself(&inspector, p, &config.kafka.topic).await?);
    }
    let newest = partitions.iter().map(|p| p.generation).max();
    let present: Vec<&Inspected> = partitions.iter().filter(|p| Some(p.generation) == newest).collect();
    findings.extend(present.iter().flat_map(|p| against_watermarks(p, &survey)));
    let compared = against_log(config, &inspector, &present, &survey, depth, compacted, &mut findings).await?;

    let mut checked = Vec::new();
    for p in &partitions {
        let (outcomes, gap_offsets) = inspector.counts(p).await.map_err(Failure::failed)?;
        checked.push(Checked {
            generation: p.generation,
            partition: p.partition,
            start_offset: p.start.get(),
            next_offset: p.next.get(),
            outcomes,
            gap_offsets,
            compared: compared.get(&p.position_id).copied().unwrap_or(0),
        });
    }
    let verdict =
        Verdict { topic: config.kafka.topic.clone(), verified: findings.is_empty(), partitions: checked, findings };
    match format {
        OutputFormat::Json => print_json(&verdict)?,
        OutputFormat::Table => print(&text(&verdict))?,
    }
    match verdict.findings.len() {
        0 => Ok(Exit::Done),
        n => Err(Failure::decide(format!("{n} findings"))),
    }
}

async fn against_itself(inspector: &Inspector, p: &Inspected, topic: &str) -> Result<Vec<Finding>, Failure> {
    let flaws = inspector.flaws(p).await.map_err(Failure::failed)?;
    let replay = |r: OffsetRange| format!("gapless replay --offsets {topic}:{}:{}-{}", p.partition, r.from(), r.to());
    let remedy = |flaw: Flaw, r: OffsetRange| match flaw {
        Flaw::Overlap => "a bug, or rows written by hand: look at offset_gaps and kafka_events_received".to_owned(),
        _ => replay(r),
    };
    Ok(flaws.into_iter().map(|(flaw, r)| Finding::new(flaw.name(), p, Some(r), remedy(flaw, r))).collect())
}

fn against_watermarks(p: &Inspected, survey: &Survey) -> Option<Finding> {
    if let Some(difference) = p.life.differs(&survey.life) {
        return Some(Finding::new("another_life", p, None, difference.to_string()));
    }
    let Some(marks) = survey.partitions.get(&p.partition) else {
        return Some(Finding::new("no_partition", p, None, "Kafka has no such partition"));
    };
    if let Some(range) = OffsetRange::new(p.next, marks.log_start) {
        return Some(Finding::new("expired", p, Some(range), "Kafka removed it before it was read"));
    }
    let range = OffsetRange::new(marks.log_end, p.next)?;
    Some(Finding::new("beyond_log_end", p, Some(range), "the log was truncated"))
}

/// Reads the log again where it is still the one that was read; returns messages compared, by position.
async fn against_log(
    config: &Config,
    inspector: &Inspector,
    present: &[&Inspected],
    survey: &Survey,
    depth: Depth,
    compacted: bool,
    findings: &mut Vec<Finding>,
) -> Result<BTreeMap<i32, u64>, Failure> {
    let same_life = present.iter().filter(|p| p.life.differs(&survey.life).is_none());
    let ranges: Vec<(Inspected, Vec<OffsetRange>)> = same_life
        .filter_map(|p| {
            let marks = survey.partitions.get(&p.partition)?;
            Some(((*p).clone(), verify::spots(p, *marks, depth == Depth::Deep)))
        })
        .collect();
    let total = ranges.iter().flat_map(|(_, r)| r).map(|r| r.count()).sum();
    let bar = Bar::new(total, "messages");
    let compared = verify::compare(&config.kafka, inspector, ranges, &bar).await.map_err(Failure::failed)?;
    bar.finish();
    for p in present {
        let Some(result) = compared.get(&p.position_id) else { continue };
        for (mismatch, range) in &result.mismatches {
            let remedy = match mismatch {
                Mismatch::NoMessage if compacted => continue,
                Mismatch::NotRecorded => {
                    format!(
                        "gapless replay --offsets {}:{}:{}-{}",
                        config.kafka.topic,
                        p.partition,
                        range.from(),
                        range.to()
                    )
                }
                Mismatch::Differs | Mismatch::NoMessage => {
                    "the log was replaced or rewritten, or the row by hand".to_owned()
                }
            };
            findings.push(Finding::new(mismatch.name(), p, Some(*range), remedy));
        }
    }
    Ok(compared.into_iter().map(|(id, result)| (id, result.messages)).collect())
}

fn text(verdict: &Verdict) -> String {
    let rows = verdict.partitions.iter().map(|p| {
        [i64::from(p.generation), i64::from(p.partition), p.start_offset, p.next_offset, p.outcomes, p.gap_offsets]
            .map(|n| n.to_string())
            .into_iter()
            .chain([p.compared.to_string()])
            .collect()
    });
    let header = ["generation", "partition", "start", "next", "outcomes", "gaps", "compared"];
    let partitions = table(&header, &rows.collect::<Vec<Vec<String>>>());
    let topic = &verdict.topic;
    if verdict.verified {
        return format!("topic {topic}\n{partitions}verified: nothing is missing, nothing is doubled");
    }
    let number = |n: Option<i64>| n.map_or("-".to_owned(), |n| n.to_string());
    let cells = |f: &Finding| {
        let (generation, partition) = (f.generation.to_string(), f.partition.to_string());
        vec![f.kind.to_owned(), generation, partition, number(f.from), number(f.to), f.remedy.clone()]
    };
    let shown: Vec<Vec<String>> = verdict.findings.iter().take(SHOWN).map(cells).collect();
    let findings = table(&["finding", "generation", "partition", "from", "to (exclusive)", "remedy"], &shown);
    let more = match verdict.findings.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("… and {more} more; --format json has them all"),
        _ => String::new(),
    };
    format!("topic {topic}\n{partitions}\n{findings}{more}")
}
