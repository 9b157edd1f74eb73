//! The composition root: builds the parts of the daemon, gives them to the pipeline, and returns its result. A start
//! has two phases: it waits for the servers, and then it decides about the positions.

use crate::model::topic::Compaction;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::failpoints::{self, Failpoint};
use crate::findings::{Effect, Finding};
use crate::kafka::SourceError;
use crate::kafka::anchors::Anchors;
use crate::kafka::gap_prover::Prover;
use crate::kafka::metadata::Observer;
use crate::kafka::reader::Reader;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::Decoding;
use crate::ledger::start::schema::{MigrateError, MigrationRequest};
use crate::ledger::start::{OrderState, StartError, StartRequest, Started};
use crate::ledger::write::writer::Writer;
use crate::model::start_order::{Again, Move, SkipAllowed, StartOrder};
use crate::model::topic::Retention;
use crate::model::topic::{TopicPartition, TopicSnapshot};
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;
use crate::observe::progress::Progress;
use crate::observe::systemd;
use crate::pipeline::run::{self, Parts, Stop};
use crate::pipeline::topic_settings::COMPACTED;
use crate::pipeline::until::Until;
use crate::retry::Backoff;
use crate::{http, shutdown};

/// The start order, and whether the run ends by itself.
#[derive(Debug, Clone)]
pub struct Run {
    pub order: StartOrder,
    pub skip_allowed: SkipAllowed,
    pub again: Again,
    pub until_end: bool,
}

/// Runs the daemon to its end.
pub async fn run(config: Config, run: Run) -> Result<Exit, Failure> {
    let stop = CancellationToken::new();
    shutdown::on_signal(stop.clone()).map_err(Failure::failed)?;
    let health = Health::new(&config.kafka.topic, Metrics::new(&crate::kafka::librdkafka_version()));
    http::start(&config.server, health.clone()).await.map_err(|error| not_bound(config.server.bind, &error))?;
    let systemd = systemd::start(health.clone(), stop.clone());
    let result = start_and_read(&config, run, &health, &stop).await;
    // systemd gets the last notification also if the run ended by itself.
    stop.cancel();
    systemd::finish(systemd).await;
    result
}

/// The failure to bind the address. A port in use or an address that the machine does not have yet may become
/// available, so the exit code lets a service manager try again.
fn not_bound(bind: SocketAddr, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Failure::usage(format!("server.bind {bind}: {error}; choose a port of 1024 or more"))
        }
        _ => Failure::failed(format!(
            "server.bind {bind}: {error}; end the process that has it, or choose another address"
        )),
    }
}

async fn start_and_read(
    config: &Config,
    mut run: Run,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let store = LedgerStore::new(&config.database).map_err(Failure::usage)?;
    let observer = Observer::new(&config.kafka).map_err(Failure::usage)?;
    loop {
        let Some((started, snapshot)) = start(config, &run, &store, &observer, health, stop).await? else {
            return Ok(Exit::Done);
        };
        let parts = tokio::select! {
            parts = parts(config, &run, &store, &observer, health, stop, started, snapshot) => parts?,
            () = stop.cancelled() => return Ok(Exit::Done),
        };
        match Box::pin(run::run(parts)).await {
            Stop::Asked | Stop::Finished => return Ok(Exit::Done),
            Stop::Halted => return Err(Failure::decide("a partition is halted; the others are at their end")),
            Stop::TakenOver(owner) => {
                return Err(Failure::decide(format!(
                    "position taken over by {} (since {}), and only one process may write a topic: stop that one, \
                     then `gapless --from-db` continues where it stopped; see docs/operations.md#refused-taken-over",
                    owner.instance, owner.since
                )));
            }
            Stop::Rebased => {
                tracing::info!(
                    event = "generation_began",
                    "a new generation of the topic begins (gapless rebase), starting again with it"
                );
                run.order = StartOrder::FromDb;
            }
            Stop::SchemaDiffers(detail) => return Err(Failure::decide(detail)),
            Stop::LedgerChanged => {
                tracing::warn!(
                    event = "fencing_token_not_found",
                    "fencing token not found in the database (restored or failed over?); restarting from the stored positions"
                );
                run.order = StartOrder::FromDb;
            }
        }
    }
}

/// Waits for both servers and the topic, then stores the positions of this start. `None`: a stop was asked for
/// meanwhile.
async fn start(
    config: &Config,
    run: &Run,
    store: &LedgerStore,
    observer: &Observer,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<(Started, TopicSnapshot)>, Failure> {
    let mut backoff = Backoff::starting_at(Duration::from_millis(200));
    let mut last_logged = LastLoggedReason::default();
    loop {
        let attempt = async {
            let attempt = attempt_start(config, run, store, observer, health);
            // A long migration must not look like a hanging loop to the watchdog.
            let beats = async {
                loop {
                    health.beat();
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            };
            tokio::select! {
                attempt = attempt => Some(attempt),
                () = stop.cancelled() => None,
                () = beats => None,
            }
        };
        let reason = match attempt.await {
            None => return Ok(None),
            Some(Ok(started)) => return Ok(Some(started)),
            Some(Err(finding)) if finding.effect == Effect::Waits => finding.line(),
            Some(Err(finding)) => return Err(finding.into()),
        };
        if last_logged.must_log(&reason, Instant::now()) {
            tracing::warn!(event = "waiting_to_start", "waiting to start: {reason}");
        } else {
            tracing::debug!("still waiting for the same reason");
        }
        health.starting(reason);
        tokio::select! {
            () = tokio::time::sleep(backoff.delay()) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// The last logged reason for which a start waits.
#[derive(Default)]
struct LastLoggedReason(Option<(String, Instant)>);

impl LastLoggedReason {
    /// How often the same reason is logged again, so that it is near the end of the log.
    const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

    fn must_log(&mut self, reason: &str, now: Instant) -> bool {
        let is_repeated =
            matches!(&self.0, Some((last, at)) if last == reason && now.duration_since(*at) < Self::REPEAT_INTERVAL);
        if !is_repeated {
            self.0 = Some((reason.to_owned(), now));
        }
        !is_repeated
    }
}

async fn attempt_start(
    config: &Config,
    run: &Run,
    store: &LedgerStore,
    observer: &Observer,
    health: &Health,
) -> Result<(Started, TopicSnapshot), Finding> {
    let applied = match store.migrate(MigrationRequest::ByStart).await {
        Ok(applied) => applied,
        Err(error) => {
            let finding = of_migration(store, error).await;
            health.database(Some(finding.line()));
            return Err(finding);
        }
    };
    applied.iter().for_each(|name| tracing::info!(event = "schema_migrated", migration = name, "schema migrated"));
    if let Some(finding) = Finding::denied(&store.missing_rights().await?) {
        health.database(Some(finding.line()));
        return Err(finding);
    }
    // Not before the rights are known: without them the database cannot be used yet.
    health.database(None);
    // No batch of an earlier run waits for the database.
    health.batches(None);
    store.require_catalogue().await.inspect_err(|error| {
        if let LedgerError::Schema(differences) = error {
            differences.log();
        }
    })?;
    let request = request(config, run, observer).await.map_err(|error| {
        health.kafka(Some(error.to_string()));
        Finding::from(error)
    })?;
    health.kafka(None);
    let started = store.start(&request).await.map_err(|error| match error {
        // The observer adds the error of the last failed connection.
        StartError::NoLeader(partitions) => Finding::from(observer.no_leader(partitions.len())),
        error => error.into(),
    })?;
    let _ = failpoints::hit(Failpoint::StartStored).await;
    log_start(&started);
    Ok((started, request.snapshot))
}

/// The finding of a failed migration or schema check. It names the missing right if a right is missing.
pub async fn of_migration(store: &LedgerStore, error: MigrateError) -> Finding {
    let denied = match &error {
        MigrateError::Store(error) if error.is_denied() => store.missing_rights().await.ok(),
        _ => None,
    };
    denied.and_then(|missing| Finding::denied(&missing)).unwrap_or_else(|| error.into())
}

/// The request of a start: its order, and the topic as Kafka shows it now.
pub async fn request(config: &Config, run: &Run, observer: &Observer) -> Result<StartRequest, SourceError> {
    let snapshot = observer.snapshot().await?;
    let mut times = BTreeMap::new();
    if let StartOrder::Offset { ask, .. } = &run.order {
        let mut asked: BTreeMap<i64, Vec<TopicPartition>> = BTreeMap::new();
        for partition in snapshot.partitions.keys() {
            if let Some(time_ms) = ask.time_ms(partition.partition) {
                asked.entry(time_ms).or_default().push(partition.clone());
            }
        }
        for (time_ms, partitions) in asked {
            let found = observer.offsets_for_time(partitions, time_ms).await?;
            times.extend(found.into_iter().filter_map(|(p, offset)| Some((p, offset?))));
        }
    }
    Ok(StartRequest {
        group: config.kafka.group.clone(),
        decoding: Decoding::of(&config.format),
        topic: config.kafka.topic.clone(),
        order: run.order.clone(),
        skip_allowed: run.skip_allowed,
        again: run.again,
        snapshot,
        times,
        instance: instance(),
    })
}

/// Logs the start order and the stored positions.
fn log_start(started: &Started) {
    match &started.order {
        OrderState::Resumed => {}
        OrderState::CarriedOut(order) => {
            tracing::info!(event = "start_order_carried_out", start.order = order, "start order carried out")
        }
        OrderState::CarriedOutBefore(order) => {
            tracing::info!(
                event = "start_order_already_carried_out",
                start.order = order,
                "this start order was carried out before, resuming (--again repeats it)"
            );
        }
    }
    let count = |which: fn(&Move) -> bool| started.moves.iter().filter(|(_, change)| which(change)).count();
    tracing::info!(
        event = "run_started",
        partitions = started.positions.len(),
        start.begun = count(|change| matches!(change, Move::Begin(_))),
        start.rewound = count(|change| matches!(change, Move::Rewind(_))),
        start.skipped = count(|change| matches!(change, Move::Skip(_))),
        fence = started.token.fence,
        "positions taken; each partition is read after its last stored message was found in the log"
    );
    for position in started.positions.values() {
        let change = started.moves.iter().find(|(p, _)| *p == position.partition).map(|(_, change)| change.to_string());
        tracing::debug!(
            kafka.partition = position.partition.partition,
            kafka.offset = position.next.get(),
            start.change = change,
            "reading from"
        );
    }
}

#[expect(clippy::too_many_arguments, reason = "each is one part of the daemon, named once")]
async fn parts(
    config: &Config,
    run: &Run,
    store: &LedgerStore,
    observer: &Observer,
    health: &Health,
    stop: &CancellationToken,
    started: Started,
    snapshot: TopicSnapshot,
) -> Result<Parts, Failure> {
    let (compaction, retention) = match observer.settings(&config.kafka).await {
        Ok(settings) => {
            if settings.compacts {
                tracing::warn!(event = "topic_compacted", "{}", COMPACTED);
            }
            (Compaction::of(&settings), settings.retention)
        }
        Err(error) => {
            tracing::warn!(
                event = "topic_settings_unreadable",
                error = %error,
                "cannot read the topic's cleanup.policy and retention, so retention risk is estimated from the speed of the log start alone; grant DescribeConfigs on the topic"
            );
            (Compaction::Unknown, Retention::Unknown)
        }
    };
    let (reader, fetched) = Reader::start(&config.kafka).map_err(Finding::from)?;
    let until = if run.until_end { Until::end(&snapshot) } else { Until::Stopped };
    let ends = until.ends().cloned().unwrap_or_default();
    Ok(Parts {
        reader,
        fetched,
        prover: Prover::start(&config.kafka).map_err(Finding::from)?,
        anchors: Anchors::start(&config.kafka).map_err(Finding::from)?,
        observer: observer.clone(),
        store: store.clone(),
        writer: Writer::new(store.clone(), started.token.fence, config.format.identity.clone(), config.rejections),
        format: config.format.clone(),
        max_in_flight: config.database.writers,
        progress: Progress::new(ends, started.positions.values().map(|p| (&p.partition, p.next))),
        started,
        snapshot,
        limits: config.batch,
        catalogue_check_interval: config.database.catalogue_check,
        compaction,
        retention,
        kafka: config.kafka.clone(),
        health: health.clone(),
        stop: stop.clone(),
        until,
    })
}

/// The name of this process in the ledger, by which the processes before and after it name it in their messages.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("gapless {} on {} (pid {})", env!("CARGO_PKG_VERSION"), host.trim(), std::process::id())
}
