//! The environment of the episodes: the campaign's own servers with a bad network before each, and the topic, database,
//! load and daemon of one episode.

use std::time::Duration;

use super::check::{self, Lost};
use super::load::{Account, Load, Shape};
use crate::support::database::address;
use crate::support::proxy::Proxy;
use crate::support::servers::Sandbox;
use crate::support::wait::until;
use crate::support::wire::{Condition, Wire};
use crate::support::{Database, Gapless, Random, Running, Topic};

/// Partitions of an episode's topic.
pub(crate) const PARTITIONS: i32 = 3;

/// Kafka behind a wire; PostgreSQL behind a proxy that recognises COMMITs, itself behind a wire.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) kafka: Wire,
    pub(crate) postgres: Wire,
    pub(crate) commits: Proxy,
}

impl World {
    pub(crate) fn begin() -> Self {
        let (kafka, postgres) = (Wire::new(), Wire::new());
        let sandbox = Sandbox::behind(kafka.address.port());
        kafka.forward_to(sandbox.proxied_brokers());
        let commits = Proxy::before(address(&sandbox.database_url));
        postgres.forward_to(commits.address);
        Self { sandbox, kafka, postgres, commits }
    }

    /// Ends all faults of the network and of the COMMIT proxy.
    pub(crate) fn heal(&self) {
        self.kafka.set_condition(Condition::Clear);
        self.postgres.set_condition(Condition::Clear);
        self.postgres.forward_to(self.commits.address);
        self.commits.disarm();
    }

    /// Starts the servers with their original settings, after an episode that failed.
    pub(crate) fn restore(&self) {
        self.heal();
        self.sandbox.control_kafka("start");
        self.sandbox.control_postgres("start");
        let database = Database::on(&self.sandbox.database_url);
        database.execute("alter system reset all");
        database.execute("select pg_reload_conf()");
    }
}

/// The result of an episode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The number of times that the fault took effect; an episode with 0 proves nothing.
    pub(crate) effects: u64,
    pub(crate) messages: u64,
    pub(crate) aborted: u64,
    pub(crate) gaps: u64,
    pub(crate) commits_unknown: u64,
    /// The expected halts, by their reason.
    pub(crate) halts: Vec<String>,
}

pub(crate) struct Episode<'world> {
    pub(crate) world: &'world World,
    pub(crate) random: Random,
    pub(crate) topic: Topic,
    pub(crate) database: Database,
    seed: u64,
    load: Option<Load>,
    daemon: Option<Running>,
    pub(crate) outcome: Outcome,
}

impl<'world> Episode<'world> {
    pub(crate) fn new(world: &'world World, seed: u64) -> Self {
        Self::on(world, seed, Database::on(&world.sandbox.database_url))
    }

    pub(crate) fn on(world: &'world World, seed: u64, database: Database) -> Self {
        let topic = Topic::on(&world.sandbox.brokers, PARTITIONS, &[]);
        let outcome = Outcome::default();
        Self { world, random: Random::new(seed), topic, database, seed, load: None, daemon: None, outcome }
    }

    /// A call of the daemon that connects to both servers through the wires, with short timeouts.
    pub(crate) fn call(&mut self) -> Gapless {
        self.through_the_wires(Gapless::daemon(&self.topic, &self.database))
    }

    pub(crate) fn through_the_wires(&mut self, gapless: Gapless) -> Gapless {
        let batch = 1 + self.random.below(400) as u32;
        gapless
            .brokers(&self.world.kafka.address.to_string())
            .database_url(&self.database.url_through(self.world.postgres.address))
            .batches_of(batch)
            .env("GAPLESS__DATABASE__STATEMENT_TIMEOUT_MS", "4000")
            .env("GAPLESS__DATABASE__LOCK_TIMEOUT_MS", "1000")
            .env("GAPLESS__DATABASE__CONNECT_TIMEOUT_MS", "2000")
    }

    pub(crate) fn load(&mut self) {
        self.load_of(Shape::default());
    }

    pub(crate) fn load_of(&mut self, shape: Shape) {
        self.load = Some(Load::start(&self.topic, PARTITIONS, self.seed, shape));
    }

    pub(crate) fn grow_to(&mut self, partitions: i32) {
        self.topic.grow_to(partitions);
        // The producers learn of the partitions with their next metadata refresh; until then they send nothing there.
        std::thread::sleep(Duration::from_secs(2));
        self.load.as_ref().expect("a load").spread_to(partitions);
    }

    /// Starts load and daemon and waits until the daemon stores messages.
    pub(crate) fn begin(&mut self) {
        self.load();
        let call = self.call();
        self.run(call);
        self.wait_for_progress(50);
    }

    pub(crate) fn run(&mut self, call: Gapless) {
        self.daemon = Some(call.start());
    }

    pub(crate) fn restart(&mut self) {
        let call = self.call();
        self.run(call);
    }

    pub(crate) fn daemon(&mut self) -> &mut Running {
        self.daemon.as_mut().expect("a daemon")
    }

    pub(crate) fn take_daemon(&mut self) -> Running {
        self.daemon.take().expect("a daemon")
    }

    /// Uses the ledger on another server from now on.
    pub(crate) fn moved_to(&mut self, database: Database) {
        self.database = database;
    }

    /// Sleeps for a random time of at most `most_ms` milliseconds; load and daemon continue.
    pub(crate) fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(1 + self.random.below(most_ms)));
    }

    /// Waits for `more` additional outcomes. Fewer are enough if the load has ended and one was added or everything is
    /// read.
    #[track_caller]
    pub(crate) fn wait_for_progress(&self, more: i64) {
        let outcomes = || {
            let rows = self.database.try_rows("select count(*) from gapless.kafka_events_received", &[])?;
            Ok::<i64, String>(rows[0].get(0))
        };
        let before = outcomes().unwrap_or(0);
        until("the daemon to make progress", || {
            let now = outcomes()?;
            let some = |load: &Load| load.is_full() && (now > before || self.has_read_everything().is_ok());
            if now >= before + more || self.load.as_ref().is_none_or(some) {
                Ok(())
            } else {
                let log = self.daemon.as_ref().map(Running::tail).unwrap_or_default();
                Err(format!("{now} outcomes, before {before}; the daemon's log:\n{log}"))
            }
        });
    }

    /// Ends the load and returns its account.
    pub(crate) fn stop_load(&mut self) -> Account {
        self.load.take().expect("a load").stop()
    }

    /// Waits until every partition is read to its last stable offset.
    #[track_caller]
    pub(crate) fn wait_for_the_end(&self) {
        until("the daemon to read everything", || self.has_read_everything());
    }

    fn has_read_everything(&self) -> Result<(), String> {
        let sql = "select partition_id::int, next_offset::bigint from gapless.consumer_positions";
        let positions = self.database.try_rows(sql, &[])?;
        let behind: Vec<String> = positions
            .iter()
            .map(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1), self.topic.last_stable(row.get(0))))
            .filter(|(_, next, end)| next != end)
            .map(|(partition, next, end)| format!("partition {partition} at {next} of {end}"))
            .collect();
        let daemon = self.daemon.as_ref().map(Running::tail).unwrap_or_default();
        if behind.is_empty() { Ok(()) } else { Err(format!("{}; the daemon's log:\n{daemon}", behind.join(", "))) }
    }

    /// Ends an episode whose fault needs no operator: stops the load, waits until everything is read, compares
    /// everything.
    #[track_caller]
    pub(crate) fn end_healed(self, effects: u64) -> Outcome {
        self.world.heal();
        self.end_kept(effects)
    }

    /// The same without ending the network faults, for an episode with servers of its own.
    #[track_caller]
    pub(crate) fn end_kept(mut self, effects: u64) -> Outcome {
        self.pause(300);
        let account = self.stop_load();
        self.wait_for_the_end();
        self.record_metrics();
        self.take_daemon().terminate().expect_code(0);
        self.outcome.effects += effects;
        self.compare(&account, &[])
    }

    /// Records the counters of the running daemon, which are lost when it ends.
    pub(crate) fn record_metrics(&mut self) {
        let unknown = self.daemon().metric("gapless_commit_unknown_total", &[]);
        self.outcome.commits_unknown += unknown as u64;
    }

    /// Checks all invariants with the campaign's own comparison and with `gapless verify --deep`.
    #[track_caller]
    pub(crate) fn compare(mut self, account: &Account, lost: &[Lost]) -> Outcome {
        let faults = check::faults(&self.topic, &self.database, account, lost);
        assert!(faults.is_empty(), "broken promises:\n{}", faults.join("\n"));
        check::verify_deep(&self.topic, &self.database);
        self.outcome.messages += account.acknowledged() as u64;
        self.outcome.aborted += account.aborted() as u64;
        self.outcome.gaps += self.database.count("offset_gaps") as u64;
        self.outcome
    }
}
