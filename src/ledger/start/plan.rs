//! The decisions of a start, for `gapless plan`: the same code in a snapshot that is rolled back. It locks nothing and
//! changes nothing.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::{OrderState, StartError, StartRequest, check_belongs, decide_each, effective_order, known};
use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::{self, Position};
use crate::ledger::read::old_generation;
use crate::ledger::source::{SOURCE, known_source};
use crate::model::generation::Unread;
use crate::model::offset::NextOffset;
use crate::model::start_order::{Move, PartitionRequest, Refusal, StartOrder, undecided};
use crate::model::topic::{IdentityMismatch, TopicIdentity, TopicPartition};
use crate::postgres::session::Session;

/// The decisions of a start that was not carried out.
#[derive(Debug)]
pub struct Plan {
    pub order: OrderState,
    /// Why the stored positions are not valid in the log that Kafka shows.
    pub topic_identity_mismatch: Option<IdentityMismatch>,
    /// The unread ranges of the newest generation. Beginning a new generation gives them up.
    pub unread: Vec<Unread>,
    pub partitions: Vec<PartitionPlan>,
    pub leaderless: Vec<Leaderless>,
}

/// A partition without a leader: nothing is known about its log.
#[derive(Debug)]
pub struct Leaderless {
    pub partition: TopicPartition,
    pub stored: Option<Position>,
    /// True if the start fails until the partition has a leader. Otherwise the partition is suspended and the others
    /// are read.
    pub undecided: bool,
}

/// The decision for one partition.
#[derive(Debug)]
pub struct PartitionPlan {
    pub partition: TopicPartition,
    pub stored: Option<Position>,
    pub decision: Result<Move, Refusal>,
    /// The number of offsets that would be read again: they already have an outcome.
    pub recorded: i64,
}

const EXISTS: &str = "-- ledger_exists
select to_regclass('gapless.ledger') is not null";

const RECORDED: &str = "-- count_recorded
select count(*) from gapless.outcomes where position_id = $1 and \"offset\" >= $2";

impl LedgerReader {
    /// Decides what a start would do. An empty database counts as a ledger without positions.
    pub async fn plan(&self, request: &StartRequest) -> Result<Plan, StartError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let plan = plan(&session, request).await?;
        session.rollback().await?;
        Ok(plan)
    }
}

async fn plan(session: &Session, request: &StartRequest) -> Result<Plan, StartError> {
    if !session.query(EXISTS, &[]).await?.first().is_some_and(|row| row.get(0)) {
        return empty(request);
    }
    check_belongs(session, &request.group, &request.decoding.identity_fields).await?;
    let source = session.query(SOURCE, &[(&request.topic.as_str(), Type::TEXT)]).await?;
    let source: Option<(i32, TopicIdentity)> = source.first().map(known_source);
    let stored = match &source {
        Some((id, _)) => positions::read_unlocked(session, *id, &request.topic).await?,
        None => BTreeMap::new(),
    };
    let (ask, order): (Option<&PartitionRequest>, OrderState) = effective_order(session, request).await?;
    let mut partitions = Vec::new();
    for (partition, decision) in decide_each(request, ask, &stored) {
        let stored = stored.get(&partition).cloned();
        let recorded = recorded(session, stored.as_ref(), &decision).await?;
        partitions.push(PartitionPlan { partition, stored, decision, recorded });
    }
    let unread = match &source {
        Some((id, _)) => old_generation::unread(session, *id).await?,
        None => Vec::new(),
    };
    let topic_identity_mismatch = source.and_then(|(_, identity)| identity.mismatch(&request.snapshot.identity));
    let leaderless = leaderless(request, ask, &stored);
    Ok(Plan { order, topic_identity_mismatch, unread, partitions, leaderless })
}

fn leaderless(
    request: &StartRequest,
    ask: Option<&PartitionRequest>,
    stored: &BTreeMap<TopicPartition, Position>,
) -> Vec<Leaderless> {
    let leaderless = &request.snapshot.leaderless;
    let undecided = undecided(leaderless, ask, known(stored));
    let each = leaderless.iter().map(|partition| Leaderless {
        partition: partition.clone(),
        stored: stored.get(partition).cloned(),
        undecided: undecided.contains(partition),
    });
    each.collect()
}

/// The plan of the first start of a ledger.
fn empty(request: &StartRequest) -> Result<Plan, StartError> {
    let (ask, order) = match &request.order {
        StartOrder::FromDb => (None, OrderState::Resumed),
        StartOrder::Offset { text, ask } => {
            ask.check(request.snapshot.count())?;
            (Some(ask), OrderState::CarriedOut(text.clone()))
        }
    };
    let decisions = decide_each(request, ask, &BTreeMap::new()).into_iter();
    let partitions = decisions
        .map(|(partition, decision)| PartitionPlan { partition, stored: None, decision, recorded: 0 })
        .collect();
    let leaderless = leaderless(request, ask, &BTreeMap::new());
    Ok(Plan { order, topic_identity_mismatch: None, unread: Vec::new(), partitions, leaderless })
}

async fn recorded(
    session: &Session,
    stored: Option<&Position>,
    decision: &Result<Move, Refusal>,
) -> Result<i64, LedgerError> {
    let (Some(position), Ok(change)) = (stored, decision) else { return Ok(0) };
    let from: i64 = next_offset_after(Some(position), *change).get();
    let rows = session.query(RECORDED, &[(&position.id, Type::INT4), (&from, Type::INT8)]).await?;
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

/// The offset where reading would begin.
pub fn next_offset_after(stored: Option<&Position>, change: Move) -> NextOffset {
    match (change, stored) {
        (Move::Begin(at) | Move::Rewind(at), _) => at,
        (Move::Skip(range) | Move::BeginBehind(range), _) => range.to(),
        (Move::Resume, Some(position)) => position.next,
        (Move::Resume, None) => unreachable!("only a partition with a stored position resumes"),
    }
}
