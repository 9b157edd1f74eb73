//! The start of a daemon, one transaction: first the checks, then fence, start order and positions.
//!
//! Starts wait for each other on the row of `gapless.ledger`. All refusals come before the fence is taken, and the
//! transaction of a refused start is rolled back: it changes nothing, and the running daemon keeps its fence.

pub mod ledger_row;
pub mod plan;
pub mod rights;
pub mod schema;

use std::collections::BTreeMap;

use serde_json::json;
use tokio_postgres::types::Type;

use self::ledger_row::LedgerRow;
use super::connect::LedgerStore;
use super::format_history::Decoding;
use crate::ledger::decision::Decision;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::{self, FencingToken, Position};
use crate::ledger::read::old_generation;
use crate::ledger::source::{SOURCE, known_source};
use crate::ledger::write::decided_gaps::{DecidedGap, DecidedKind, record_gap};
use crate::model::event::IdentityRecipe;
use crate::model::generation::Unread;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::start_order::{
    Again, Before, Known, Move, OrderError, PartitionRequest, Refusal, SkipAllowed, StartOrder, decide, undecided,
};
use crate::model::topic::{IdentityMismatch, Topic, TopicIdentity, TopicPartition, TopicSnapshot};
use crate::postgres::error::PgError;
use crate::postgres::session::{Param, Session};

/// The input of a start. The values from Kafka are read before the transaction begins.
#[derive(Debug)]
pub struct StartRequest {
    pub group: String,
    pub decoding: Decoding,
    pub topic: Topic,
    pub order: StartOrder,
    pub skip_allowed: SkipAllowed,
    pub again: Again,
    pub snapshot: TopicSnapshot,
    /// For each partition, the offset of the first message at or after the requested time.
    pub times: BTreeMap<TopicPartition, NextOffset>,
    /// Host and process, for the message of the daemon that this start replaces.
    pub instance: String,
}

/// The result of a successful start.
#[derive(Debug)]
pub struct Started {
    pub token: FencingToken,
    pub source_id: i32,
    pub positions: BTreeMap<TopicPartition, Position>,
    pub order: OrderState,
    pub moves: Vec<(TopicPartition, Move)>,
    /// The identity of the topic to whose log the positions belong.
    pub identity: TopicIdentity,
}

/// The result of the start order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderState {
    /// There was no order.
    Resumed,
    CarriedOut(String),
    /// An earlier start carried out the same order, so this start did not.
    CarriedOutBefore(String),
}

/// Why a start failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] LedgerError),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    #[error(
        "this ledger belongs to consumer group {stored:?}, not {asked:?}: use that group (`gapless --group {stored}`), or another database"
    )]
    OtherGroup { stored: String, asked: String },
    #[error(
        "this ledger identifies events by identity.fields = {stored:?}, not {asked:?}: use those fields (GAPLESS__IDENTITY__FIELDS={stored}), or another database"
    )]
    OtherIdentity { stored: String, asked: String },
    /// The start positions of these partitions cannot be decided while they have no leader.
    #[error(
        "partitions {:?} have no leader, and this start must decide where they begin",
        .0.iter().map(|p| p.partition).collect::<Vec<_>>()
    )]
    NoLeader(Vec<TopicPartition>),
    /// Kafka shows another topic than the one that was read: no start order can be carried out.
    #[error("{difference}")]
    OtherTopicIdentity { topic: Topic, difference: IdentityMismatch, unread: Vec<Unread> },
}

impl From<PgError> for StartError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

const LEDGER: &str = "-- ledger
insert into gapless.ledger as l (consumer_group, identity_fields) values ($1, $2)
on conflict (singleton) do update set consumer_group = l.consumer_group
returning consumer_group, identity_fields";

const NEW_SOURCE: &str = "-- new_source
insert into gapless.sources (topic, cluster_id, topic_id) values ($1, $2, $3) returning id";

/// Adds the ids that an earlier start could not read from Kafka.
const COMPLETE_SOURCE: &str = "-- complete_source
update gapless.sources set cluster_id = coalesce(cluster_id, $2), topic_id = coalesce(topic_id, $3) where id = $1";

const LAST_ORDER: &str = "-- last_order
select start_order from gapless.start_orders where topic = $1";

const KEEP_ORDER: &str = "-- keep_order
insert into gapless.start_orders (topic, start_order) values ($1, $2)
on conflict (topic) do update set start_order = excluded.start_order, carried_out_at = now()";

const TAKE_FENCE: &str = "-- take_fence
insert into gapless.writers (instance, topic) values ($1, $2) returning fence, token";

const FENCE_ALL: &str = "-- fence_all
update gapless.positions set fence = $2 where source_id = $1";

const BEGIN: &str = "-- begin_position
insert into gapless.positions (source_id, partition_id, start_offset, next_offset, fence) values ($1, $2, $3, $3, $4)";

const REWIND: &str = "-- rewind_position
update gapless.positions set next_offset = $3, start_offset = least(start_offset, $3), updated_at = now(),
    announced_to = greatest(announced_to, next_offset)
where source_id = $1 and partition_id = $2";

pub(crate) const ADVANCE: &str = "-- skip_position
update gapless.positions set next_offset = $3, updated_at = now() where source_id = $1 and partition_id = $2";

impl LedgerStore {
    /// Carries out a start in one transaction.
    pub async fn start(&self, request: &StartRequest) -> Result<Started, StartError> {
        let mut session = self.session().await?;
        session.begin().await?;
        check_ledger(&session, request).await?;
        let (source_id, identity) = source(&session, request).await?;
        let stored = positions::read_locked(&session, source_id, &request.topic).await?;
        let (ask, order) = effective_order(&session, request).await?;
        let moves = match (identity.mismatch(&request.snapshot.identity), ask) {
            (None, _) => decide_all(request, ask, &stored)?,
            // The start succeeds and the daemon then halts, so that the mismatch is visible. No position moves.
            (Some(IdentityMismatch::Topic { .. }), None) => Vec::new(),
            (Some(difference), _) => {
                let (topic, unread) = (request.topic.clone(), old_generation::unread(&session, source_id).await?);
                return Err(StartError::OtherTopicIdentity { topic, difference, unread });
            }
        };

        let topic = request.topic.as_str();
        let taken = session.query(TAKE_FENCE, &[(&request.instance, Type::TEXT), (&topic, Type::TEXT)]).await?;
        let row = taken.first().ok_or(LedgerError::rows("take_fence", 1, 0))?;
        let token = FencingToken { fence: row.get(0), token: row.get(1) };
        let fence = token.fence;
        if let OrderState::CarriedOut(text) = &order {
            session.write(KEEP_ORDER, &[(&topic, Type::TEXT), (text, Type::TEXT)], 1).await?;
        }
        session.execute(FENCE_ALL, &[(&source_id, Type::INT4), (&fence, Type::INT8)]).await?;
        for (partition, change) in &moves {
            let target = PartitionStart { source_id, partition, fence };
            apply_move(&session, &target, *change, &order).await?;
        }
        request.decoding.keep(&session, source_id).await?;
        let positions = positions::read_locked(&session, source_id, &request.topic).await?;
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(Started { token, source_id, positions, order, moves, identity })
    }

    /// For a verb that writes events: an error unless its consumer group and identity fields are the ledger's. Both
    /// are fixed when the ledger is created.
    pub async fn check_belongs(&self, group: &str, identity: &IdentityRecipe) -> Result<(), StartError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        check_belongs(&session, group, &identity.text()).await?;
        Ok(session.rollback().await?)
    }

    /// The check of [`Self::check_belongs`] for a ledger that is not migrated yet.
    pub async fn check_older_belongs(&self, group: &str, identity: &IdentityRecipe) -> Result<(), StartError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let stored = ledger_row::read_alone(&session).await?;
        session.rollback().await?;
        stored.map_or(Ok(()), |row| belongs(group, &identity.text(), row))
    }
}

async fn check_ledger(session: &Session, request: &StartRequest) -> Result<(), StartError> {
    let (group, fields) = (&request.group, &request.decoding.identity_fields);
    check_belongs(session, group, fields).await?;
    let rows = session.query(LEDGER, &[(group, Type::TEXT), (fields, Type::TEXT)]).await?;
    let row = rows.first().ok_or(LedgerError::rows("ledger", 1, 0))?;
    belongs(group, fields, LedgerRow { group: row.get(0), identity_fields: row.get(1) })
}

/// An error if a ledger exists and has another consumer group or other identity fields.
pub(crate) async fn check_belongs(session: &Session, group: &str, fields: &str) -> Result<(), StartError> {
    ledger_row::read(session, group, fields).await?.map_or(Ok(()), |row| belongs(group, fields, row))
}

fn belongs(group: &str, fields: &str, stored: LedgerRow) -> Result<(), StartError> {
    if stored.group != group {
        return Err(StartError::OtherGroup { stored: stored.group, asked: group.to_owned() });
    }
    if stored.identity_fields != fields {
        return Err(StartError::OtherIdentity { stored: stored.identity_fields, asked: fields.to_owned() });
    }
    Ok(())
}

/// Id and topic identity of the topic's newest generation in the ledger. Inserts the generation that Kafka shows if the
/// ledger has none.
async fn source(session: &Session, request: &StartRequest) -> Result<(i32, TopicIdentity), LedgerError> {
    let found = &request.snapshot.identity;
    let ids: [Param<'_>; 2] = [(&found.cluster_id, Type::TEXT), (&found.topic_id, Type::TEXT)];
    let topic = request.topic.as_str();
    let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
    let Some(row) = rows.first() else {
        let [cluster_id, topic_id] = ids;
        let id = one(session, NEW_SOURCE, &[(&topic, Type::TEXT), cluster_id, topic_id]).await?;
        return Ok((id, found.clone()));
    };
    let (id, stored) = known_source(row);
    if stored.mismatch(found).is_some() {
        return Ok((id, stored));
    }
    let [cluster_id, topic_id] = ids;
    session.write(COMPLETE_SOURCE, &[(&id, Type::INT4), cluster_id, topic_id], 1).await?;
    let known = TopicIdentity {
        cluster_id: stored.cluster_id.or_else(|| found.cluster_id.clone()),
        topic_id: stored.topic_id.or_else(|| found.topic_id.clone()),
    };
    Ok((id, known))
}

/// The order that this start must carry out, if any. An order that an earlier start carried out is not repeated unless
/// the request says so.
pub(crate) async fn effective_order<'a>(
    session: &Session,
    request: &'a StartRequest,
) -> Result<(Option<&'a PartitionRequest>, OrderState), StartError> {
    let StartOrder::Offset { text, ask } = &request.order else { return Ok((None, OrderState::Resumed)) };
    let rows = session.query(LAST_ORDER, &[(&request.topic.as_str(), Type::TEXT)]).await?;
    let last = rows.first().map(|row| row.get::<_, String>(0));
    if request.again == Again::No && last.as_ref() == Some(text) {
        // The order is not carried out again, so it need not fit the topic any more.
        return Ok((None, OrderState::CarriedOutBefore(text.clone())));
    }
    ask.check(request.snapshot.count())?;
    Ok((Some(ask), OrderState::CarriedOut(text.clone())))
}

/// The decision for each partition that Kafka shows. The first start of a ledger stores a position for each of them.
pub(crate) fn decide_each(
    request: &StartRequest,
    ask: Option<&PartitionRequest>,
    stored: &BTreeMap<TopicPartition, Position>,
) -> Vec<(TopicPartition, Result<Move, Refusal>)> {
    let partitions = request.snapshot.partitions.iter();
    partitions
        .map(|(partition, marks)| {
            let before = Before {
                partition: partition.partition,
                stored: stored.get(partition).map(|p| (p.start, p.next)),
                topic: known(stored),
                marks: *marks,
                at_time: request.times.get(partition).copied(),
            };
            let point = ask.and_then(|ask| ask.point(partition.partition));
            (partition.clone(), decide(&before, point, request.skip_allowed))
        })
        .collect()
}

pub(crate) fn known(stored: &BTreeMap<TopicPartition, Position>) -> Known {
    if stored.is_empty() { Known::New } else { Known::Read }
}

fn decide_all(
    request: &StartRequest,
    ask: Option<&PartitionRequest>,
    stored: &BTreeMap<TopicPartition, Position>,
) -> Result<Vec<(TopicPartition, Move)>, StartError> {
    let undecided = undecided(&request.snapshot.leaderless, ask, known(stored));
    if !undecided.is_empty() {
        return Err(StartError::NoLeader(undecided));
    }
    let (mut moves, mut refusals) = (Vec::new(), Vec::new());
    for (partition, decision) in decide_each(request, ask, stored) {
        match decision {
            Ok(change) => moves.push((partition, change)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() { Ok(moves) } else { Err(StartError::Refused(refusals)) }
}

/// A partition whose position a start stores or moves.
struct PartitionStart<'a> {
    source_id: i32,
    partition: &'a TopicPartition,
    fence: i64,
}

impl PartitionStart<'_> {
    fn params(&self) -> [Param<'_>; 2] {
        [(&self.source_id, Type::INT4), (&self.partition.partition, Type::INT4)]
    }
}

async fn apply_move(
    session: &Session,
    target: &PartitionStart<'_>,
    change: Move,
    order: &OrderState,
) -> Result<(), LedgerError> {
    match change {
        Move::Resume => Ok(()),
        Move::Begin(at) => insert_position(session, target, at).await,
        Move::BeginBehind(range) => {
            insert_position(session, target, range.from()).await?;
            skip(session, target, range, order).await
        }
        Move::Rewind(to) => {
            let ([source, partition], to) = (target.params(), to.get());
            Ok(session.write(REWIND, &[source, partition, (&to as _, Type::INT8)], 1).await?)
        }
        Move::Skip(range) => skip(session, target, range, order).await,
    }
}

async fn insert_position(session: &Session, target: &PartitionStart<'_>, at: NextOffset) -> Result<(), LedgerError> {
    let ([source, partition], at) = (target.params(), at.get());
    let params = [source, partition, (&at as _, Type::INT8), (&target.fence as _, Type::INT8)];
    Ok(session.write(BEGIN, &params, 1).await?)
}

async fn skip(
    session: &Session,
    target: &PartitionStart<'_>,
    range: OffsetRange,
    order: &OrderState,
) -> Result<(), LedgerError> {
    let order = match order {
        OrderState::CarriedOut(text) | OrderState::CarriedOutBefore(text) => text.as_str(),
        OrderState::Resumed => "--from-db",
    };
    let proof = format!("left out by the operator: --offset {order} --allow-skip");
    let (from, to) = (range.from().get(), range.to().get());
    let [source, partition] = target.params();
    let (source_id, kind) = (target.source_id, DecidedKind::Skipped);
    let gap = DecidedGap { source_id, partition: target.partition.partition, range, kind, proof: &proof };
    let gaps = record_gap(session, &gap).await?;
    session.write(ADVANCE, &[source, partition, (&to, Type::INT8)], 1).await?;
    let subject = format!("{} {range}", target.partition);
    let TopicPartition { topic, partition } = target.partition;
    let arguments = json!({ "topic": topic.as_str(), "partition": partition, "offset": order, "from": from, "to": to });
    let rows_changed = 1 + gaps;
    Decision { verb: "allow-skip", subject: &subject, reason: None, arguments, rows_changed }.record(session).await
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    session: &Session,
    sql: &'static str,
    params: &[Param<'_>],
) -> Result<T, LedgerError> {
    let rows = session.query(sql, params).await?;
    let row = rows.first().ok_or(LedgerError::rows("insert returning", 1, 0))?;
    Ok(row.get(0))
}
