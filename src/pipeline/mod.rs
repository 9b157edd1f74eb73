//! The one loop: takes what the reader fetched, has holes proven, writes batches, and is the only
//! place that branches on what went wrong.
//!
//! A free lane takes what is there at once, a busy one finds a larger batch when it returns: nothing
//! ever waits for a batch to fill. Memory is a cache of what PostgreSQL said; after anything unknown
//! or unexpected the positions are read again and the partitions assigned anew from there.
//!
//! - [`decoder`]: what the messages of a batch say.
//! - [`ends`]: how far logs were seen to reach, as the ledger is told.
//! - [`intake`]: what was fetched, taken into drafts.
//! - [`flights`]: batches on their way into the ledger.
//! - [`admit`]: whether a log is the one that was read so far.
//! - [`outlook`]: what may go wrong next: retention, open transactions.
//! - [`partition`]: what is known of one partition in memory.
//! - [`unwritten`]: what was read of it and is not in the ledger yet.
//! - [`proofs`]: what a second client is asked to read again.
//! - [`mod@write`]: drafts to batches, batches committed.
//! - [`resolve`]: what PostgreSQL says where memory cannot be trusted.
//! - [`schema`]: whether the ledger's tables are still as this version needs them.
//! - [`settings`]: the topic's settings, as they are now.
//! - [`silence`]: how long a client has said nothing.
//! - [`states`]: which partitions are not being read, as the ledger is told.
//! - [`suspension`]: a partition that is not being read for a while, told at both ends.
//! - [`watch`]: what is looked at beside the stream: watermarks, new partitions, a newer daemon.

mod admit;
mod decoder;
mod ends;
mod flights;
mod intake;
mod outlook;
mod partition;
mod proofs;
mod resolve;
mod schema;
mod settings;
mod silence;
mod states;
mod suspension;
mod unwritten;
mod watch;
mod write;

use crate::formats::Format;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::admit::{lost, mismatch_halt, topic_identity_mismatch};
use self::decoder::Decoder;
use self::ends::Ends;
use self::flights::Flights;
use self::intake::Rest;
use self::partition::Partition;
use self::proofs::Proofs;
pub use self::settings::COMPACTED;
use self::settings::Settings;
use self::states::States;
use self::watch::Watch;
use self::write::BACKLOG;
use crate::config::{BatchLimits, KafkaConfig};
use crate::failpoints::{self, Failpoint};
use crate::kafka::access::is_denied;
use crate::kafka::anchors::Anchors;
use crate::kafka::gap_prover::Prover;
use crate::kafka::metadata::Observer;
use crate::kafka::reader::{Fetched, Reader};
use crate::ledger::connect::Store;
use crate::ledger::start::Started;
use crate::ledger::start::positions::{Owner, Tenure};
use crate::ledger::write::writer::Writer;
use crate::model::generation::Unread;
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::partition_state::{Halt, HaltReason};
pub use crate::model::topic::Compaction;
use crate::model::topic::Retention;
use crate::model::topic::{TopicIdentity, TopicSnapshot};
use crate::observe::health::Health;
use crate::observe::progress::Progress;

/// How often the loop turns when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// An idle tail is proven this long after its end was reached, unless the run is to end there.
const TAIL_AFTER: Duration = Duration::from_secs(1);
/// Positions beyond the log end and damaged batches are believed only after this long: while
/// brokers restart, offsets are reported too low for a moment.
const BELIEVE_AFTER: Duration = Duration::from_secs(30);

/// The same, shorter in a test that says so.
fn believe_after() -> Duration {
    failpoints::scaled(BELIEVE_AFTER)
}

/// How long a batch in flight may take to finish once a stop is asked for.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
/// How long connections may take to be opened before they are needed.
const OPEN_WITHIN: Duration = Duration::from_secs(1);
/// How often Kafka is told how far PostgreSQL is, and the log how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// When the run ends by itself.
#[derive(Debug, Clone)]
pub enum Until {
    Stopped,
    /// Each partition has reached its last stable offset as seen at the start.
    End {
        ends: BTreeMap<i32, NextOffset>,
        /// Partitions without a leader: their ends are known when they have one, and the run waits for that.
        awaited: BTreeSet<i32>,
    },
}

impl Until {
    /// The end of everything as Kafka shows it now.
    pub fn end(survey: &TopicSnapshot) -> Self {
        let ends = survey.partitions.iter().map(|(partition, marks)| (*partition, marks.last_stable)).collect();
        Self::End { ends, awaited: survey.leaderless.iter().copied().collect() }
    }

    pub fn ends(&self) -> Option<&BTreeMap<i32, NextOffset>> {
        match self {
            Self::Stopped => None,
            Self::End { ends, .. } => Some(ends),
        }
    }

    /// A partition has a leader; one whose end was awaited is read to where that is now.
    fn seen(&mut self, partition: i32, marks: Watermarks) {
        if let Self::End { ends, awaited } = self
            && awaited.remove(&partition)
        {
            ends.insert(partition, marks.last_stable);
        }
    }
}

/// Why the loop ended.
#[derive(Debug)]
pub enum Stop {
    /// A signal.
    Asked,
    /// `--until-end`: every partition is at its end.
    Finished,
    /// `--until-end`: some partitions are halted, the others at their end.
    Halted,
    /// A newer daemon took the positions over.
    TakenOver(Owner),
    /// The database no longer knows this start (restored or failed over): start again.
    LedgerChanged,
    /// An operator began a new generation of the topic: start again, with that one.
    Rebased,
    /// The ledger is not as this version needs it, so that not even the positions can be read.
    SchemaDiffers(String),
}

/// Everything the loop works with.
pub struct Parts {
    pub reader: Reader,
    pub fetched: mpsc::Receiver<Fetched>,
    pub prover: Prover,
    pub anchors: Anchors,
    pub observer: Observer,
    pub store: Store,
    pub format: Format,
    pub writer: Writer,
    /// Batches written at once.
    pub lanes: usize,
    pub started: Started,
    pub survey: TopicSnapshot,
    pub limits: BatchLimits,
    /// How often the ledger's tables are looked at.
    pub look_at_catalogue_every: Duration,
    pub compaction: Compaction,
    pub retention: Retention,
    pub kafka: KafkaConfig,
    pub health: Health,
    pub progress: Progress,
    pub stop: CancellationToken,
    pub until: Until,
}

/// Reads and writes until there is a reason to stop. No wait in it is without end.
pub async fn run(parts: Parts) -> Stop {
    let found = parts.survey.identity.clone();
    let mut pipeline = Pipeline::new(parts);
    let mut turned = pipeline.begin(&found).await;
    let stop = loop {
        match turned {
            Ok(()) => turned = pipeline.turn().await,
            Err(stop) => break stop,
        }
    };
    pipeline.let_land().await;
    pipeline.tell();
    pipeline.progress.finish();
    for p in pipeline.partitions.values() {
        pipeline.ends.note(p.position().id, p.position().log_end);
    }
    tokio::join!(pipeline.states.finish(), pipeline.ends.finish());
    pipeline.reader.stop(Duration::from_secs(2)).await;
    stop
}

struct Pipeline {
    reader: Reader,
    fetched: mpsc::Receiver<Fetched>,
    proofs: Proofs,
    store: Store,
    flights: Flights,
    source_id: i32,
    tenure: Tenure,
    watch: Watch,
    partitions: BTreeMap<i32, Partition>,
    /// Of the topic whose offsets the positions are.
    identity: TopicIdentity,
    /// Taken before anything newer.
    rest: Option<Rest>,
    /// How often something fetched was taken.
    taken: u64,
    limits: BatchLimits,
    retention: Retention,
    kafka: KafkaConfig,
    /// Batches that the ledger refused, since the last one it took.
    refused_in_a_row: u32,
    health: Health,
    states: States,
    ends: Ends,
    progress: Progress,
    stop: CancellationToken,
    until: Until,
    told: Instant,
    conflict_explained: bool,
    commit_refusal_told: bool,
    /// Set once the ledger is not as this version needs it: then nothing is written any more.
    schema_halt: Option<Halt>,
    /// Said once that it was mended since.
    schema_mended: bool,
}

impl Pipeline {
    fn new(parts: Parts) -> Self {
        let partitions: BTreeMap<i32, Partition> = parts
            .started
            .positions
            .values()
            .map(|p| (p.partition, Partition::new(*p, parts.survey.partitions.get(&p.partition).copied())))
            .collect();
        let settings = Settings::new(parts.observer.clone(), parts.kafka.clone(), parts.compaction);
        let began = partitions.iter().map(|(partition, p)| (*partition, p.position().next)).collect();
        Self {
            watch: Watch::start(&parts, settings.clone(), began),
            states: States::start(&parts, partitions.iter().map(|(partition, p)| (*partition, p.state()))),
            ends: Ends::start(&parts),
            limits: parts.limits.within(parts.kafka.drafted_bytes(), parts.lanes),
            kafka: parts.kafka,
            retention: parts.retention,
            reader: parts.reader,
            fetched: parts.fetched,
            proofs: Proofs::new(parts.prover, parts.anchors, settings),
            store: parts.store,
            flights: Flights::new(Decoder::new(parts.format), parts.writer, parts.lanes),
            source_id: parts.started.source_id,
            tenure: parts.started.tenure,
            partitions,
            identity: parts.started.identity,
            rest: None,
            taken: 0,
            refused_in_a_row: 0,
            health: parts.health,
            progress: parts.progress,
            stop: parts.stop,
            until: parts.until,
            told: Instant::now(),
            conflict_explained: false,
            commit_refusal_told: false,
            schema_halt: None,
            schema_mended: false,
        }
    }

    /// Admits the partitions, unless the topic is not the one that was read so far.
    async fn begin(&mut self, found: &TopicIdentity) -> Result<(), Stop> {
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        if let Some(halt) = topic_identity_mismatch(&self.identity, found) {
            self.halt_all(&halt);
        }
        for partition in partitions {
            if self.partitions.get(&partition).is_some_and(|p| p.marks.is_none()) {
                self.wait_for_leader(partition);
                continue;
            }
            self.admit(partition);
            self.foresee(partition);
        }
        self.started();
        let reading = self.partitions.values().filter(|p| !p.state().is_halted());
        let lag: i64 = reading.filter_map(Partition::lag).sum();
        if lag >= BACKLOG as i64 {
            // Beside Kafka's first answers. A server that takes longer is waited for with the first batch.
            let open = tokio::time::timeout(OPEN_WITHIN, self.flights.open());
            beating(&self.health, &self.stop, open).await?.ok();
        }
        Ok(())
    }

    /// Says that the start is over once each partition was looked at.
    fn started(&self) {
        if !self.health.has_started() && !self.partitions.values().any(Partition::is_asking) {
            self.health.started();
        }
    }

    /// Halts every partition that is not halted yet.
    fn halt_all(&mut self, halt: &Halt) {
        for partition in self.not_halted() {
            self.halt(partition, halt.clone());
        }
    }

    /// One turn: wait for something, take all that is there, write it.
    async fn turn(&mut self) -> Result<(), Stop> {
        self.health.beat();
        failpoints::hit(Failpoint::LoopTurn).await.ok();
        if self.stop.is_cancelled() {
            return Err(Stop::Asked);
        }
        if self.told.elapsed() >= TELL_EVERY {
            self.tell();
        }
        self.ended()?;
        self.relieve();
        // With records left over and room for them there is no need to wait; without room (all lanes busy,
        // or much that was read behind a proof) waiting is all there is.
        let (mut glance, mut landed, mut answer) = (None, None, None);
        let has_room = self.has_room();
        if self.rest.is_none() || !has_room {
            tokio::select! {
                () = self.stop.cancelled() => return Err(Stop::Asked),
                Some(fetched) = self.fetched.recv(), if self.rest.is_none() && has_room => self.take(fetched),
                done = self.flights.landing() => landed = Some(done),
                told = self.proofs.next() => answer = Some(told),
                seen = self.watch.next() => glance = Some(seen),
                () = tokio::time::sleep(TICK) => {}
            }
        }
        while let Some(done) = landed.take().or_else(|| self.flights.landing().now_or_never()) {
            self.land(done).await?;
        }
        while let Some(answer) = answer.take().or_else(|| self.proofs.next().now_or_never()) {
            self.answered(answer);
        }
        // What was fetched first: a look at Kafka may judge a partition by what it was heard of.
        self.take_what_is_there();
        while let Some(glance) = glance.take().or_else(|| self.watch.ready()) {
            self.look(glance).await?;
        }
        self.write();
        Ok(())
    }

    /// `--until-end`: whether every partition is at its end or halted.
    fn ended(&self) -> Result<(), Stop> {
        let Until::End { ends, awaited } = &self.until else { return Ok(()) };
        let halted = |p: &Partition| p.state().is_halted() && p.is_written();
        let all = ends.iter().filter_map(|(partition, end)| Some((self.partitions.get(partition)?, end)));
        if !awaited.is_empty() || !all.clone().all(|(p, end)| p.has_read_to(*end) || halted(p)) {
            return Ok(());
        }
        Err(if all.clone().any(|(p, _)| halted(p)) { Stop::Halted } else { Stop::Finished })
    }

    fn halt(&mut self, partition: i32, halt: Halt) {
        let unread = self.unread_behind(partition, halt.reason);
        let halt = Halt { unread, ..halt };
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        tracing::error!(
            event = "partition_halted",
            kafka.partition = partition,
            kafka.offset = p.position().next.get(),
            halt.reason = halt.reason.name(),
            halt.range = halt.range.map(|r| r.to_string()),
            "partition halted: {}; {}",
            halt.detail,
            halt.remedy(&self.kafka.topic, partition)
        );
        p.halt(halt);
        // A new generation is judged by it, and may be asked for at once.
        self.ends.note(p.position().id, p.position().log_end);
        self.ends.write_now();
        self.reader.remove(partition);
        self.show(partition);
    }

    /// What a new generation of the topic would give up: of each log that is not the one that was read.
    fn unread_behind(&self, halting: i32, reason: HaltReason) -> Vec<Unread> {
        let is_gone = |partition: i32, p: &Partition| match reason {
            HaltReason::Recreated | HaltReason::OtherCluster => true,
            reason if !reason.is_of_another_log() => false,
            _ => partition == halting || p.state().is_of_another_log(),
        };
        let gone = self.partitions.iter().filter(|(partition, p)| is_gone(**partition, p));
        gone.filter_map(|(partition, p)| Some(Unread { partition: *partition, range: p.unread()? })).collect()
    }

    /// Whether this start still is the newest one that the database knows, and its generation the topic's newest.
    fn still_ours(&self, owner: Option<Owner>) -> Result<(), Stop> {
        match owner {
            Some(owner) if owner.tenure == self.tenure && owner.source_id != self.source_id => Err(Stop::Rebased),
            Some(owner) if owner.tenure == self.tenure => Ok(()),
            Some(owner) if owner.tenure.fence > self.tenure.fence => Err(Stop::TakenOver(owner)),
            _ => Err(Stop::LedgerChanged),
        }
    }

    /// Publishes a partition's state.
    fn show(&self, partition: i32) {
        if let Some(p) = self.partitions.get(&partition) {
            self.health.partition(partition, p.position().next, p.current_marks(), p.state());
            self.states.note(partition, p.state());
        }
    }

    /// Tells lag tools and the log how far PostgreSQL is.
    fn tell(&mut self) {
        self.told = Instant::now();
        self.reader
            .commit_hint(self.partitions.values().map(|p| (p.position().partition, p.position().next)).collect());
        let lag: Option<i64> = self.partitions.values().map(Partition::lag).sum();
        self.progress.tell(lag);
        self.tell_refused_commits();
    }

    /// Offsets committed to Kafka are a courtesy: each that failed is counted; a right that is missing is said once, and
    /// an outage or a deleted topic has lines of its own.
    fn tell_refused_commits(&mut self) {
        let refused = self.reader.refused_commits();
        if refused.is_empty() {
            return;
        }
        self.health.metrics().offset_commits_failed(refused.len() as u64);
        let Some(code) = refused.iter().find(|code| is_denied(**code)) else { return };
        if !std::mem::replace(&mut self.commit_refusal_told, true) {
            tracing::warn!(
                event = "offset_commit_refused",
                kafka.code = ?code,
                kafka.group = self.kafka.group,
                "Kafka does not take the offsets that are committed as a courtesy to lag tools; nothing is lost: grant Read on the consumer group to gapless's user"
            );
        }
    }

    /// Runs a long call while the loop counts as turning; a stop gives it a little time to finish.
    async fn while_beating<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Stop> {
        beating(&self.health, &self.stop, call).await
    }
}

/// Awaits a call, beating each second. Once a stop is asked for it has [`FINISH_WITHIN`] left.
async fn beating<T>(health: &Health, stop: &CancellationToken, call: impl Future<Output = T>) -> Result<T, Stop> {
    let given_up = async {
        stop.cancelled().await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    let (mut call, mut given_up) = (std::pin::pin!(call), std::pin::pin!(given_up));
    loop {
        tokio::select! {
            result = &mut call => return Ok(result),
            () = &mut given_up => return Err(Stop::Asked),
            () = tokio::time::sleep(Duration::from_secs(1)) => health.beat(),
        }
    }
}
