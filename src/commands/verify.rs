//! `gapless verify`: compares the ledger with itself and with the log. Exit 0, or 3 with exact ranges.

pub mod log_comparison;

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use self::log_comparison::{Compared, Mismatch};
use self::text::text;
use super::remedy::{self, RetainedRange};
use super::{failed, ledger, line, print, print_json};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::kafka::metadata::Observer;
use crate::ledger::catalogue::Difference;
use crate::ledger::connect::LedgerReader;
use crate::ledger::read::consistency::{Accepted, Inspector, PartitionSnapshot};
use crate::ledger::read::inconsistency::Inconsistency;
use crate::model::offset::OffsetRange;
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::topic::{TopicPartition, TopicSnapshot};
use crate::observe::progress::OffsetProgress;

mod effects;
mod text;
mod whole;

/// The most findings that are kept and printed as JSON. Further ones are only counted.
const MAX_FINDINGS: usize = 5_000;

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
    /// Losses that an operator has accepted. They are no findings.
    accepted: Vec<AcceptedLoss>,
    findings: Vec<Finding>,
    /// The number of findings that are not in `findings`.
    more_findings: u64,
    /// The error because of which not everything was compared with Kafka.
    unfinished: Option<String>,
}

#[derive(Serialize)]
struct Checked {
    generation: i32,
    partition: i32,
    start_offset: i64,
    next_offset: i64,
    outcomes: u64,
    gap_offsets: u64,
    /// The number of messages that were read from Kafka again and compared.
    compared: u64,
}

/// A range that an operator has given up.
#[derive(Serialize)]
struct AcceptedLoss {
    kind: String,
    generation: i32,
    partition: i32,
    from: i64,
    to: i64,
    proof: String,
}

impl AcceptedLoss {
    fn of(p: &PartitionSnapshot, Accepted { range, kind, proof }: Accepted) -> Self {
        let (from, to) = (range.from().get(), range.to().get());
        Self { kind, generation: p.generation, partition: p.partition.partition, from, to, proof }
    }
}

#[derive(Serialize)]
struct Finding {
    kind: &'static str,
    /// Null if the ledger does not know the topic.
    generation: Option<i32>,
    /// Null if the finding is about the whole ledger.
    partition: Option<i32>,
    /// Half-open; null if the finding is about the whole partition.
    from: Option<i64>,
    to: Option<i64>,
    /// Details, if the kind does not say everything.
    detail: Option<String>,
    remedy: String,
}

impl Finding {
    /// A difference of the schema from what this version needs, with the SQL that repairs it.
    fn of_schema(difference: Difference) -> Self {
        let detail = Some(difference.to_string());
        let remedy = difference.remedy;
        Self { kind: "schema_differs", generation: None, partition: None, from: None, to: None, detail, remedy }
    }

    fn new(kind: &'static str, p: &PartitionSnapshot, range: Option<OffsetRange>, remedy: impl Into<String>) -> Self {
        let (from, to) = (range.map(|r| r.from().get()), range.map(|r| r.to().get()));
        let (generation, partition) = (Some(p.generation), Some(p.partition.partition));
        Self { kind, generation, partition, from, to, detail: None, remedy: remedy.into() }
    }
}

/// The first findings, and the number of further ones.
#[derive(Default)]
struct Findings {
    kept: Vec<Finding>,
    more: u64,
}

impl Findings {
    fn push(&mut self, finding: Finding) {
        if self.kept.len() < MAX_FINDINGS { self.kept.push(finding) } else { self.more += 1 }
    }

    /// Removes a finding that two checks have found.
    fn deduplicate(&mut self) {
        let mut seen = HashSet::new();
        self.kept.retain(|f| seen.insert((f.kind, f.generation, f.partition, f.from, f.to, f.detail.clone())));
    }

    fn has(&self, inconsistency: Inconsistency) -> bool {
        self.kept.iter().any(|finding| finding.kind == inconsistency.name())
    }

    fn room(&self) -> usize {
        MAX_FINDINGS - self.kept.len()
    }

    fn total(&self) -> u64 {
        self.kept.len() as u64 + self.more
    }
}

pub async fn run(config: &Config, depth: Depth, format: OutputFormat) -> Result<Exit, Failure> {
    let topic = &config.kafka.topic;
    let store = ledger(config).await?;
    let mut findings = Findings::default();
    let catalogue = store.check_catalogue().await.map_err(failed)?;
    catalogue.differences.into_iter().for_each(|difference| findings.push(Finding::of_schema(difference)));
    let Examination { checked, accepted, unfinished } = match examine(config, &store, depth, &mut findings).await {
        Ok(examined) => examined,
        // A missing table makes the examination fail; the schema finding explains it.
        Err(failure) if findings.total() > 0 => {
            Examination { checked: Vec::new(), accepted: Vec::new(), unfinished: Some(failure.message) }
        }
        Err(failure) => return Err(failure),
    };
    let total = findings.total();
    let verdict = Verdict {
        topic: topic.to_string(),
        verified: total == 0 && unfinished.is_none(),
        partitions: checked,
        accepted,
        findings: findings.kept,
        more_findings: findings.more,
        unfinished,
    };
    match format {
        OutputFormat::Json => print_json(&verdict)?,
        OutputFormat::Table => print(&text(&verdict))?,
    }
    match (total, verdict.unfinished) {
        (0, None) => Ok(Exit::Done),
        (0, Some(error)) => Err(Failure::failed(format!("comparison with Kafka incomplete: {error}"))),
        (n, None) => Err(Failure::decide(format!("{n} findings"))),
        (n, Some(error)) => Err(Failure::decide(format!("{n} findings; comparison with Kafka incomplete: {error}"))),
    }
}

struct Examination {
    checked: Vec<Checked>,
    accepted: Vec<AcceptedLoss>,
    /// The error because of which not everything was compared with Kafka.
    unfinished: Option<String>,
}

/// Compares the rows of the ledger with each other and with Kafka.
async fn examine(
    config: &Config,
    store: &LedgerReader,
    depth: Depth,
    findings: &mut Findings,
) -> Result<Examination, Failure> {
    let topic = &config.kafka.topic;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    // The snapshot of the ledger begins before the one of Kafka: a log end is then never older than a position.
    let inspector = store.inspector().await.map_err(failed)?;
    let snapshot = observer.snapshot().await;
    let newest = inspector.generation(topic).await.map_err(failed)?;
    let partitions = inspector.partitions(topic).await.map_err(failed)?;
    let present: Vec<&PartitionSnapshot> = partitions.iter().filter(|p| Some(p.generation) == newest).collect();

    let retained = |p: &PartitionSnapshot| RetainedRange::of(p, newest, snapshot.as_ref());
    whole::against_ledger_row(&inspector, config, &partitions, retained, findings).await?;
    whole::doubled(&inspector, &partitions, findings).await?;
    whole::orphans(&inspector, findings).await?;
    let (mut checked, mut removals) = (Vec::new(), 0);
    let bar = OffsetProgress::new(
        partitions.iter().filter_map(accounted).map(OffsetRange::count).sum(),
        "offsets of the ledger",
    );
    for p in &partitions {
        checked.push(against_itself(&inspector, p, topic, retained(p), &bar, &mut removals, findings).await?);
    }
    bar.finish();
    if removals > 0 {
        effects::against_effects(&inspector, &partitions, topic, retained, findings).await?;
    }
    let mut unfinished = snapshot.as_ref().err().cloned().map(line);
    let mut compared = BTreeMap::new();
    if let Ok(snapshot) = &snapshot {
        unfinished = (!snapshot.leaderless.is_empty()).then(|| line(observer.no_leader(snapshot.leaderless.len())));
        for p in &present {
            let another = remedy::topic_identity_mismatch(&inspector, topic, p, snapshot).await.map_err(failed)?;
            against_watermarks(p, snapshot, another).into_iter().for_each(|f| findings.push(f));
        }
        not_read(&present, newest, snapshot).for_each(|f| findings.push(f));
        let result = against_log(config, &observer, &inspector, &present, snapshot, depth, findings).await;
        let error;
        (compared, error) = result;
        unfinished = unfinished.or(error);
    }
    if depth == Depth::Deep {
        let expired: Vec<_> =
            partitions.iter().filter_map(|p| Some((p, retained(p), retained(p).unavailable_range(p)?))).collect();
        against_own_texts(&inspector, &expired, topic, findings).await?;
    }

    let mut accepted = Vec::new();
    for (checked, p) in checked.iter_mut().zip(&partitions) {
        checked.compared = compared.get(&p.position_id).copied().unwrap_or(0);
        let given_up = inspector.accepted(p).await.map_err(failed)?;
        accepted.extend(given_up.into_iter().map(|loss| AcceptedLoss::of(p, loss)));
    }
    findings.deduplicate();
    Ok(Examination { checked, accepted, unfinished })
}

/// Compares the rows of a partition with each other. Adds the messages that removed an event to `removals`.
async fn against_itself(
    inspector: &Inspector,
    p: &PartitionSnapshot,
    topic: &str,
    retained: RetainedRange,
    bar: &OffsetProgress,
    removals: &mut u64,
    findings: &mut Findings,
) -> Result<Checked, Failure> {
    let inconsistencies = inspector.inconsistencies(p, findings.room(), bar).await.map_err(failed)?;
    for found in inconsistencies.ranges {
        let remedy = remedy::of_inconsistency(&found, p, topic, retained);
        let detail = found.events.as_ref().map(ToString::to_string);
        findings.push(Finding { detail, ..Finding::new(found.inconsistency.name(), p, Some(found.range), remedy) });
    }
    findings.more += inconsistencies.more;
    *removals += inconsistencies.removals;
    Ok(Checked {
        generation: p.generation,
        partition: p.partition.partition,
        start_offset: p.start.get(),
        next_offset: p.next.get(),
        outcomes: inconsistencies.outcomes,
        gap_offsets: inconsistencies.gap_offsets,
        compared: 0,
    })
}

/// The range that the position of a partition declares as accounted for.
fn accounted(p: &PartitionSnapshot) -> Option<OffsetRange> {
    OffsetRange::new(p.start, p.next)
}

/// Compares rows of messages that Kafka no longer has with the text that is stored in them.
async fn against_own_texts(
    inspector: &Inspector,
    expired: &[(&PartitionSnapshot, RetainedRange, OffsetRange)],
    topic: &str,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let bar = OffsetProgress::new(expired.iter().map(|(.., r)| r.count()).sum(), "offsets that Kafka no longer has");
    let ranges = expired.iter().map(|(p, _, r)| ((*p).clone(), vec![*r])).collect();
    let compared = log_comparison::compare_texts(inspector, ranges, &bar).await.map_err(failed)?;
    bar.finish();
    for (p, retained, _) in expired {
        let found = compared.get(&p.position_id).into_iter();
        found.for_each(|found| mismatches(found, p, topic, *retained, false, findings));
    }
    Ok(())
}

fn mismatches(
    found: &Compared,
    p: &PartitionSnapshot,
    topic: &str,
    retained: RetainedRange,
    compacted: bool,
    findings: &mut Findings,
) {
    for (mismatch, r) in &found.mismatches {
        let remedy = match mismatch {
            Mismatch::NoMessage if compacted => continue,
            Mismatch::NotRecorded | Mismatch::ConflictMissing => {
                remedy::from_kafka(p, *r, retained, |r| remedy::replay(topic, p, r))
            }
            Mismatch::Differs | Mismatch::NoMessage => {
                "the log was replaced or rewritten, or the row was changed by hand".to_owned()
            }
            Mismatch::Altered(fields) if fields.are_of_lost_event() && findings.has(Inconsistency::EventMissing) => {
                continue;
            }
            Mismatch::Altered(fields) => remedy::of_altered(fields, p, *r, topic, retained),
            Mismatch::FormatUnknown => {
                "this version does not know the format: verify with the version that gapless.format_history names"
                    .to_owned()
            }
        };
        let detail = if let Mismatch::Altered(fields) = mismatch { Some(fields.to_string()) } else { None };
        findings.push(Finding { detail, ..Finding::new(mismatch.name(), p, Some(*r), remedy) });
    }
    findings.more += found.more;
}

/// Partitions of the topic that have no position in the newest generation: nothing of them was read.
fn not_read(
    present: &[&PartitionSnapshot],
    newest: Option<i32>,
    snapshot: &TopicSnapshot,
) -> impl Iterator<Item = Finding> {
    let known: HashSet<TopicPartition> = present.iter().map(|p| p.partition.clone()).collect();
    let unread = snapshot.partitions.keys().filter(move |partition| !known.contains(partition));
    unread.map(move |partition| Finding {
        kind: "not_read",
        generation: newest,
        partition: Some(partition.partition),
        from: None,
        to: None,
        detail: None,
        remedy: "nothing of it was read into this ledger: start gapless; check --topic and --database-url".to_owned(),
    })
}

fn against_watermarks(p: &PartitionSnapshot, snapshot: &TopicSnapshot, another: Option<String>) -> Option<Finding> {
    if let Some(remedy) = another {
        return Some(Finding::new("other_topic_identity", p, None, remedy));
    }
    let Some(marks) = snapshot.partitions.get(&p.partition) else {
        // A partition whose leader does not answer may exist.
        return snapshot
            .leaderless
            .is_empty()
            .then(|| Finding::new("no_partition", p, None, "Kafka has no such partition"));
    };
    if let Some(range) = OffsetRange::new(p.next, marks.log_start) {
        return Some(Finding::new("expired", p, Some(range), remedy_of(HaltReason::Expired, p, range)));
    }
    let range = OffsetRange::new(marks.log_end, p.next)?;
    Some(Finding::new("beyond_log_end", p, Some(range), remedy_of(HaltReason::BeyondLogEnd, p, range)))
}

/// The remedy that the daemon prints for the same halt.
fn remedy_of(reason: HaltReason, p: &PartitionSnapshot, range: OffsetRange) -> String {
    Halt::new(reason, Some(range), "").remedy(&p.partition)
}

/// Reads the log again if it is still the one that was read. Returns the number of compared messages by position id,
/// and the error that ended it early.
async fn against_log(
    config: &Config,
    observer: &Observer,
    inspector: &Inspector,
    present: &[&PartitionSnapshot],
    snapshot: &TopicSnapshot,
    depth: Depth,
    findings: &mut Findings,
) -> (BTreeMap<i32, u64>, Option<String>) {
    // A second snapshot: retention has continued while the ledger was examined.
    let now = match observer.snapshot().await {
        Ok(now) => now,
        Err(error) => return (BTreeMap::new(), Some(line(error))),
    };
    if let Some(difference) = snapshot.identity.mismatch(&now.identity) {
        return (BTreeMap::new(), Some(difference.to_string()));
    }
    let compacted = observer.is_compacted(&config.kafka).await.unwrap_or(false);
    let mut ranges: Vec<(PartitionSnapshot, Vec<OffsetRange>)> = Vec::new();
    for p in present.iter().filter(|p| p.identity.mismatch(&now.identity).is_none()) {
        let Some(marks) = now.partitions.get(&p.partition) else { continue };
        let given_up = match inspector.accepted(p).await {
            Ok(accepted) => accepted.into_iter().filter(|a| a.kind == "skipped").map(|a| a.range).collect::<Vec<_>>(),
            Err(error) => return (BTreeMap::new(), Some(error.to_string())),
        };
        // Kafka may have the messages that an operator skipped; it does not have lost ones.
        let samples = log_comparison::sample_ranges(p, *marks, depth == Depth::Deep).into_iter();
        ranges.push(((*p).clone(), samples.flat_map(|range| without(range, &given_up)).collect()));
    }
    let total = ranges.iter().flat_map(|(_, r)| r).map(|r| r.count()).sum();
    let bar = OffsetProgress::new(total, "messages");
    let (compared, result) = log_comparison::compare(&config.kafka, observer, inspector, ranges, &bar).await;
    bar.finish();
    for p in present {
        let retained = now
            .partitions
            .get(&p.partition)
            .map_or(RetainedRange::Unknown, |marks| RetainedRange::From(marks.log_start));
        let found = compared.get(&p.position_id).into_iter();
        found.for_each(|found| mismatches(found, p, &config.kafka.topic, retained, compacted, findings));
    }
    let messages = compared.into_iter().map(|(id, result)| (id, result.messages)).collect();
    (messages, result.err().map(line))
}

/// A range without the others, which are in order and do not overlap.
fn without(range: OffsetRange, others: &[OffsetRange]) -> Vec<OffsetRange> {
    let (mut left, mut from) = (Vec::new(), range.from());
    for other in others {
        left.extend(OffsetRange::new(from, other.from().min(range.to())));
        from = from.max(other.to());
    }
    left.extend(OffsetRange::new(from, range.to()));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::NextOffset;

    fn range(from: i64, to: i64) -> OffsetRange {
        let at = |n| NextOffset::new(n).expect("not negative");
        OffsetRange::new(at(from), at(to)).expect("not empty")
    }

    #[test]
    fn ranges_that_were_given_up_are_left_out_of_the_comparison() {
        assert_eq!(without(range(10, 20), &[]), [range(10, 20)]);
        let others = [range(0, 5), range(8, 12), range(14, 15), range(18, 30), range(40, 50)];
        assert_eq!(without(range(10, 20), &others), [range(12, 14), range(15, 18)]);
        assert_eq!(without(range(10, 20), &[range(0, 30)]), []);
    }
}
