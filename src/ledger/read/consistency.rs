//! Checks that the ledger's tables are consistent with each other, for `gapless verify`: in one snapshot, while the
//! daemon runs.
//!
//! It reads all tables together in offset order, page by page: each outcome or gap must begin where the previous one
//! ends, and each row requires the rows that belong to it. [`inconsistency`](crate::ledger::read::inconsistency) checks
//! the rows of each offset.

use std::collections::HashSet;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::inconsistency::{
    AtOffset, DeadLetterState, FoundEvents, Inconsistencies, OutcomeRow, PartitionScan, Reference,
};
use super::walk::{GapWalk, MergedScan};
use crate::formats::Preset;
use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;
use crate::model::event::Outcome;
use crate::model::event_numbers::EventNumbers;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::topic::{Topic, TopicIdentity, TopicPartition};
use crate::observe::progress::OffsetProgress;
use crate::postgres::session::Session;

/// References to events that one statement looks up.
const REFERENCES_PER_STATEMENT: usize = 10_000;

/// One partition of one generation of the topic.
#[derive(Debug, Clone)]
pub struct PartitionSnapshot {
    pub position_id: i32,
    pub generation: i32,
    pub identity: TopicIdentity,
    pub partition: TopicPartition,
    pub start: NextOffset,
    pub next: NextOffset,
}

const GENERATION: &str = "-- inspect_generation
select max(generation) from gapless.sources where topic = $1";

const PARTITIONS: &str = "-- inspect_partitions
select p.id, s.generation, s.cluster_id, s.topic_id, p.partition_id, p.start_offset, p.next_offset
from gapless.positions p join gapless.sources s on s.id = p.source_id
where s.topic = $1
order by s.generation, p.partition_id";

const OUTCOMES: &str = "-- walk_outcomes
select \"offset\", state::text, event_id, inserted::text from gapless.outcomes
where position_id = $1 and \"offset\" >= $2 order by \"offset\" fetch first $3 rows with ties";

const EVENTS: &str = "-- walk_events
select \"offset\" from gapless.stored_events
where position_id = $1 and \"offset\" >= $2 order by \"offset\" fetch first $3 rows with ties";

const CONFLICTS: &str = "-- walk_conflicts
select \"offset\", event_id from gapless.conflicting_events
where position_id = $1 and \"offset\" >= $2 order by \"offset\" fetch first $3 rows with ties";

const DEAD_LETTERS: &str = "-- walk_dead_letters
select \"offset\", state from gapless.rejected_messages
where position_id = $1 and \"offset\" >= $2 order by \"offset\" fetch first $3 rows with ties";

const SEVERAL_EVENTS: &str = "-- has_several_events_a_message
select exists (select from gapless.format_history where format <> all ($1))";

const EVENT_NUMBERS: &str = "-- event_numbers
select event_no from gapless.stored_events where position_id = $1 and \"offset\" = $2 order by event_no";

/// The subquery looks up one key at a time, so that no planner turns it into a join.
const MISSING: &str = "-- missing_events
select id from unnest($1::int8[]) as u(id)
where (select e.id from gapless.stored_events e where e.id = u.id) is null";

const ACCEPTED: &str = "-- inspect_accepted
select lower(r), upper(r), g.kind::text, g.proof from gapless.gaps g cross join lateral unnest(g.ranges) as r
where g.position_id = $1 and g.kind in ('lost', 'skipped') order by 1";

/// A range that an operator has given up.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub range: OffsetRange,
    /// `lost` or `skipped`.
    pub kind: String,
    pub proof: String,
}

/// One snapshot of the ledger. It ends when the value is dropped.
pub struct Inspector {
    pub(crate) session: Session,
}

impl LedgerReader {
    pub async fn inspector(&self) -> Result<Inspector, LedgerError> {
        let mut session = self.whole_ledger_session().await?;
        // `verify` reads the log between two statements, and Kafka may pause.
        session.begin_walk().await?;
        Ok(Inspector { session })
    }
}

impl Inspector {
    /// The session, for statements of other files in the same snapshot.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The newest generation of the topic. After `gapless rebase` it has no position until the next start.
    pub async fn generation(&self, topic: &str) -> Result<Option<i32>, LedgerError> {
        let rows = self.session.query(GENERATION, &[(&topic, Type::TEXT)]).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    /// All partitions of all generations of the topic.
    pub async fn partitions(&self, topic: &Topic) -> Result<Vec<PartitionSnapshot>, LedgerError> {
        let rows = self.session.query(PARTITIONS, &[(&topic.as_str(), Type::TEXT)]).await?;
        let next =
            |row: &Row, column| NextOffset::new(row.get(column)).expect("the table's checks refuse a negative offset");
        Ok(rows
            .iter()
            .map(|row| PartitionSnapshot {
                position_id: row.get(0),
                generation: row.get(1),
                identity: TopicIdentity { cluster_id: row.get(2), topic_id: row.get(3) },
                partition: topic.partition(row.get(4)),
                start: next(row, 5),
                next: next(row, 6),
            })
            .collect())
    }

    /// All inconsistencies of a partition's rows as ranges: at most `max_ranges` of each kind; the others are counted.
    /// `bar` advances by one per offset.
    pub async fn inconsistencies(
        &self,
        p: &PartitionSnapshot,
        max_ranges: usize,
        bar: &OffsetProgress,
    ) -> Result<Inconsistencies, LedgerError> {
        let (session, id) = (&self.session, p.position_id);
        let mut outcomes = MergedScan::new(session, id, OUTCOMES, outcome_row);
        let mut events = MergedScan::new(session, id, EVENTS, |_| ());
        let mut conflicts = MergedScan::new(session, id, CONFLICTS, |row| row.get::<_, i64>(1));
        let mut dead_letters = MergedScan::new(session, id, DEAD_LETTERS, dead_letter_state);
        let mut gaps = GapWalk::begin(session, id).await?;
        let mut scan = PartitionScan::new(p.start, p.next, max_ranges);
        let mut reported = 0;
        loop {
            let offsets = [
                outcomes.offset().await?,
                events.offset().await?,
                conflicts.offset().await?,
                dead_letters.offset().await?,
            ];
            let at = offsets.into_iter().flatten().min();
            match (gaps.peek().await?, at) {
                (None, None) => break,
                (Some(gap), at) if at.is_none_or(|at| gap.from() <= at.at()) => {
                    gaps.pop();
                    scan.gap(gap);
                }
                (_, None) => unreachable!("without a row, the first arm takes the gap"),
                (_, Some(at)) => {
                    let outcome = outcomes.take(at);
                    let count = std::iter::from_fn(|| events.take(at)).count();
                    let numbers = match &outcome {
                        Some(outcome) if scan.must_number(outcome, count) => Some(self.event_numbers(id, at).await?),
                        _ => None,
                    };
                    let found = AtOffset {
                        outcome,
                        events: FoundEvents { count, numbers },
                        conflict_event_ids: std::iter::from_fn(|| conflicts.take(at)).collect(),
                        dead_letter: dead_letters.take(at),
                    };
                    scan.at(at, found);
                }
            }
            let references = scan.references(REFERENCES_PER_STATEMENT);
            if !references.is_empty() {
                self.look_up(references, &mut scan).await?;
                bar.advance(scan.passed() - reported);
                reported = scan.passed();
            }
        }
        let references = scan.references(0);
        self.look_up(references, &mut scan).await?;
        bar.advance(p.next.get().abs_diff(p.start.get()).saturating_sub(reported));
        Ok(scan.finish())
    }

    /// Whether some message of the ledger may have several events, or was decoded by a format that this program does not
    /// know.
    pub(crate) async fn has_several_events_a_message(&self) -> Result<bool, LedgerError> {
        let names = Preset::names_with_one_event();
        Ok(self.session.one(SEVERAL_EVENTS, &[(&names, Type::TEXT_ARRAY)]).await?.get(0))
    }

    /// The numbers of an offset's events, sorted. The walk reads an index only, which does not have them.
    async fn event_numbers(&self, position_id: i32, at: Offset) -> Result<Vec<i32>, LedgerError> {
        let offset = at.get();
        let params = [(&position_id as _, Type::INT4), (&offset as _, Type::INT8)];
        Ok(self.session.query(EVENT_NUMBERS, &params).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Records the references whose event does not exist, in their order.
    async fn look_up(&self, references: Vec<Reference>, scan: &mut PartitionScan) -> Result<(), LedgerError> {
        let mut ids: Vec<i64> = references.iter().filter_map(|r| r.event_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let missing = self.session.query(MISSING, &[(&ids, Type::INT8_ARRAY)]).await?;
        let missing: HashSet<i64> = missing.iter().map(|row| row.get(0)).collect();
        let is_dangling = |r: &Reference| r.event_id.is_none_or(|id| missing.contains(&id));
        references.into_iter().filter(is_dangling).for_each(|r| scan.dangling(r));
        Ok(())
    }

    /// The ranges of a partition that an operator gave up.
    pub async fn accepted(&self, p: &PartitionSnapshot) -> Result<Vec<Accepted>, LedgerError> {
        let rows = self.session.query(ACCEPTED, &[(&p.position_id, Type::INT4)]).await?;
        let offset = |row: &Row, column| NextOffset::new(row.get(column));
        let accepted = |row: &Row| {
            let range = OffsetRange::new(offset(row, 0)?, offset(row, 1)?)?;
            Some(Accepted { range, kind: row.get(2), proof: row.get(3) })
        };
        Ok(rows.iter().filter_map(accepted).collect())
    }
}

fn outcome_row(row: &Row) -> OutcomeRow {
    let name: &str = row.get(1);
    let state = Outcome::ALL.into_iter().find(|outcome| outcome.name() == name);
    OutcomeRow { state, event_id: row.get(2), inserted: row.get::<_, Option<&str>>(3).map(EventNumbers::parse_or_none) }
}

fn dead_letter_state(row: &Row) -> DeadLetterState {
    if row.get::<_, &str>(1) == "replayed" { DeadLetterState::Replayed } else { DeadLetterState::Kept }
}
