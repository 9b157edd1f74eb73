//! Where episodes take place: servers of the campaign's own with a bad network before each, and one episode's topic,
//! ledger, load and daemon.

use std::time::Duration;

use super::check::{self, Lost};
use super::load::{Account, Load, Shape};
use crate::support::database::address;
use crate::support::proxy::Proxy;
use crate::support::servers::Sandbox;
use crate::support::wait::until;
use crate::support::wire::{Weather, Wire};
use crate::support::{Database, Gapless, Random, Running, Topic};

/// Partitions of an episode's topic.
pub(crate) const PARTITIONS: i32 = 3;

/// Kafka behind a wire; PostgreSQL behind a proxy that knows its COMMITs, behind a wire.
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
        kafka.lead_to(sandbox.proxied_brokers());
        let commits = Proxy::before(address(&sandbox.database_url));
        postgres.lead_to(commits.address);
        Self { sandbox, kafka, postgres, commits }
    }

    /// Everything as it was before an episode.
    pub(crate) fn heal(&self) {
        self.kafka.weather(Weather::Clear);
        self.postgres.weather(Weather::Clear);
        self.postgres.lead_to(self.commits.address);
        self.commits.disarm();
    }

    /// After an episode that broke off: the servers run, with the settings they began with.
    pub(crate) fn restore(&self) {
        self.heal();
        self.sandbox.tell_kafka("start");
        self.sandbox.tell_postgres("start");
        let database = Database::on(&self.sandbox.database_url);
        database.execute("alter system reset all");
        database.execute("select pg_reload_conf()");
    }
}

/// What an episode came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// How often the fault took effect; 0 makes the episode worthless.
    pub(crate) effects: u64,
    pub(crate) messages: u64,
    pub(crate) aborted: u64,
    pub(crate) gaps: u64,
    pub(crate) commits_unknown: u64,
    /// The halts that had to come, as they were named.
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

    /// A call of the daemon whose ways to both servers lead over the wires, and whose patience is short.
    pub(crate) fn call(&mut self) -> Gapless {
        self.dressed(Gapless::daemon(&self.topic, &self.database))
    }

    pub(crate) fn dressed(&mut self, gapless: Gapless) -> Gapless {
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
        // The producers hear of it with their next metadata; until then they send nothing there.
        std::thread::sleep(Duration::from_secs(2));
        self.load.as_ref().expect("a load").spread_to(partitions);
    }

    /// Load and daemon, until the daemon is at work.
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

    /// The ledger is on another server from now on.
    pub(crate) fn moved_to(&mut self, database: Database) {
        self.database = database;
    }

    /// A moment of random length in which load and daemon go on.
    pub(crate) fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(1 + self.random.below(most_ms)));
    }

    /// So many more outcomes than there are now; less where the load has ended and some came, or all is stored.
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

    /// Ends the load; its account.
    pub(crate) fn settle(&mut self) -> Account {
        self.load.take().expect("a load").stop()
    }

    /// Waits until every partition was read to its last stable offset.
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

    /// The end of an episode that heals by itself: the rest of the load, everything read, everything compared.
    #[track_caller]
    pub(crate) fn end_healed(self, effects: u64) -> Outcome {
        self.world.heal();
        self.end_kept(effects)
    }

    /// The same on other servers than the campaign's.
    #[track_caller]
    pub(crate) fn end_kept(mut self, effects: u64) -> Outcome {
        self.pause(300);
        let account = self.settle();
        self.wait_for_the_end();
        self.note_metrics();
        self.take_daemon().terminate().expect_code(0);
        self.outcome.effects += effects;
        self.compare(&account, &[])
    }

    /// Counters of the running daemon, which end with it.
    pub(crate) fn note_metrics(&mut self) {
        let unknown = self.daemon().metric("gapless_commit_unknown_total", &[]);
        self.outcome.commits_unknown += unknown as u64;
    }

    /// All invariants, as this program and as gapless itself sees them.
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
