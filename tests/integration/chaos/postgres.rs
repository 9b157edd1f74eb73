//! Faults of PostgreSQL: crashes, refusals, locks, a full disk, a failover that loses commits, a pooler.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::world::{Episode, Outcome, World};
use crate::support::Database;
use crate::support::bouncer::Bouncer;
use crate::support::database::{address, through};
use crate::support::proxy::Proxy;
use crate::support::servers::Sandbox;
use crate::support::wait::{unique, until};
use crate::support::wire::Disconnect;

/// An immediate stop skips the checkpoint; the next start recovers from the WAL.
pub(super) fn stopped_immediately(world: &World, seed: u64) -> Outcome {
    restarted(world, seed, &["immediate", "stop"])
}

pub(super) fn killed(world: &World, seed: u64) -> Outcome {
    restarted(world, seed, &["kill"])
}

fn restarted(world: &World, seed: u64, ways: &[&str]) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    for way in ways {
        world.sandbox.control_postgres(way);
        episode.daemon().wait_for_metric("gapless_database_up", &[], 0.0);
        episode.pause(1000);
        world.sandbox.control_postgres("start");
        episode.wait_for_progress(50);
    }
    episode.end_healed(ways.len() as u64)
}

/// `pg_terminate_backend` on all sessions of the ledger, and `pg_cancel_backend` between.
pub(super) fn backends_terminated(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let mut effects = 0;
    for _ in 0..6 {
        for function in ["pg_terminate_backend", "pg_cancel_backend"] {
            effects += episode.database.value::<i64>(&format!(
                "select count(*) filter (where {function}(pid)) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()"
            )) as u64;
            episode.pause(200);
        }
    }
    episode.end_healed(effects)
}

/// 53300: for some time the role may have no connection.
pub(super) fn too_many_connections(world: &World, seed: u64) -> Outcome {
    let role = unique("role");
    let database = Database::on(&world.sandbox.database_url);
    // Connection limits do not apply to superusers, so the ledger belongs to an ordinary role.
    database.execute(&format!(
        "create role {role} login password 'limited'; grant create on database {} to {role}",
        database.name()
    ));
    let url = through(&database.url_as(&role, "limited"), world.postgres.address);
    let mut episode = Episode::on(world, seed, database);
    episode.load();
    let call = episode.call().database_url(&url);
    episode.run(call);
    episode.wait_for_progress(50);
    episode.database.execute(&format!("alter role {role} connection limit 0"));
    episode
        .database
        .execute(&format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'"));
    episode.daemon().wait_for("53300");
    episode.pause(1000);
    episode.database.execute(&format!("alter role {role} connection limit -1"));
    episode.wait_for_progress(50);
    let outcome = episode.end_healed(1);
    let maker = Database::on(&world.sandbox.database_url);
    maker.execute(&format!("drop role {role}"));
    outcome
}

/// For some time the address leads to a hot standby, where every session is read-only.
pub(super) fn read_only(world: &World, seed: u64) -> Outcome {
    let standby = Sandbox::second_postgres(Some(&world.sandbox.database_url));
    let mut episode = Episode::new(world, seed);
    episode.begin();
    world.postgres.forward_to(address(&standby.database_url));
    world.postgres.disconnect(Disconnect::Reset);
    episode.daemon().wait_for("a standby?");
    episode.pause(1500);
    world.postgres.forward_to(world.commits.address);
    world.postgres.disconnect(Disconnect::Reset);
    episode.wait_for_progress(50);
    episode.end_healed(1)
}

fn terminate_others(database: &Database) {
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid()",
    );
}

/// Another session holds an exclusive lock on every table of the ledger.
pub(super) fn tables_locked(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let mut effects = 0;
    for _ in 0..2 {
        let before = episode.daemon().metric("gapless_retries_total", &["class=\"contention\""]);
        episode.database.execute(
            "begin; lock table gapless.events, gapless.kafka_events_received in access exclusive mode;
             select pg_sleep(3); commit",
        );
        episode.wait_for_progress(50);
        effects += (episode.daemon().metric("gapless_retries_total", &["class=\"contention\""]) - before) as u64;
    }
    episode.end_healed(effects)
}

/// The synchronous standby is gone: COMMIT waits for it until the daemon's deadline; then its result is unknown.
pub(super) fn standby_gone(world: &World, seed: u64) -> Outcome {
    let mut episode = Episode::new(world, seed);
    episode.begin();
    episode.database.execute("alter system set synchronous_standby_names = 'nobody'");
    episode.database.execute("select pg_reload_conf()");
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and datname = current_database()";
    until("a COMMIT to wait for the standby", || match episode.database.value::<i64>(waiting) {
        0 => Err(episode.daemon().tail()),
        _ => Ok(()),
    });
    // Longer than the deadline of a statement.
    std::thread::sleep(Duration::from_secs(6));
    // From another session: ALTER SYSTEM does not wait for the standby.
    episode.database.execute("alter system reset synchronous_standby_names");
    episode.database.execute("select pg_reload_conf()");
    episode.wait_for_progress(50);
    episode.end_healed(1)
}

/// 53100: the tablespace of the ledger, on a small tmpfs, is full.
pub(super) fn disk_full(world: &World, seed: u64) -> Outcome {
    let disk = SmallDisk::mount(64);
    let space = unique("small");
    let outcome = {
        let maker = Database::on(&world.sandbox.database_url);
        maker.execute(&format!("create tablespace {space} location '{}'", disk.inside().display()));
        let database = Database::on(&world.sandbox.database_url);
        database.move_to(&space);
        let mut episode = Episode::on(world, seed, database);
        episode.begin();
        disk.fill();
        episode.daemon().wait_for("53100");
        episode.pause(1500);
        disk.free_space();
        episode.wait_for_progress(50);
        episode.end_healed(1)
    };
    let maker = Database::on(&world.sandbox.database_url);
    until("the tablespace to be empty", || maker.try_execute(&format!("drop tablespace {space}")));
    outcome
}

/// A small tmpfs; mounting it needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(megabytes: u32) -> Self {
        let path = std::env::temp_dir().join(unique("gapless-disk"));
        std::fs::create_dir_all(&path).expect("a directory to mount on");
        let size = format!("size={megabytes}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "none", &path.display().to_string()]);
        let disk = Self(path);
        std::fs::create_dir(disk.inside()).expect("a directory for a tablespace");
        run("chown", &["postgres:", &disk.inside().display().to_string()]);
        disk
    }

    fn inside(&self) -> PathBuf {
        self.0.join("space")
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = std::fs::File::create(self.0.join("ballast")).expect("a file to fill the disk");
        while ballast.write_all(&[0; 64 * 1024]).is_ok() {}
    }

    fn free_space(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("removing what filled the disk");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0.display().to_string()]).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Failover to a streaming replica that lacks the last commits: the stored positions go back, and the daemon reads
/// again.
pub(super) fn failover(world: &World, seed: u64) -> Outcome {
    let primary = Sandbox::second_postgres(None);
    let ledger = Database::on(&primary.database_url);
    let standby = Sandbox::second_postgres(Some(&primary.database_url));
    let commits = Proxy::before(address(&primary.database_url));
    world.postgres.forward_to(commits.address);
    let mut episode = Episode::on(world, seed, ledger);
    episode.begin();
    let name = episode.database.name().to_owned();
    let replica = Database::known(&standby.database_url, &name);
    let outcomes = "select count(*) from gapless.kafka_events_received";
    until("the replica to follow", || match replica.try_rows(outcomes, &[])?.first().map(|row| row.get::<_, i64>(0)) {
        Some(1..) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    // From now on the replica receives nothing.
    replica.execute("alter system set primary_conninfo = ''");
    replica.execute("select pg_reload_conf()");
    episode.wait_for_progress(300);
    let before = episode.database.value::<i64>(outcomes);
    primary.control_postgres("kill");
    standby.control_postgres("promote");
    let commits = Proxy::before(address(&standby.database_url));
    world.postgres.forward_to(commits.address);
    let after = replica.value::<i64>(outcomes);
    assert!(after < before, "the replica lacks commits: it has {after} of {before} outcomes");
    episode.moved_to(replica);
    episode.daemon().wait_for_event("position_reloaded");
    episode.wait_for_progress(50);
    episode.end_kept((before - after) as u64)
}

/// PgBouncer in transaction mode between daemon and server; it loses its server connections and then its server.
pub(super) fn pooler(world: &World, seed: u64) -> Outcome {
    let bouncer = Bouncer::before(&world.sandbox.database_url, 5);
    let commits = Proxy::before(bouncer.address());
    world.postgres.forward_to(commits.address);
    let mut episode = Episode::new(world, seed);
    episode.begin();
    let through = "select count(*) from pg_stat_activity where datname = current_database()
                   and application_name like '%gapless%' and pid <> pg_backend_pid()";
    let mut effects = 0;
    for _ in 0..4 {
        effects += episode.database.value::<i64>(through) as u64;
        terminate_others(&episode.database);
        episode.pause(400);
    }
    // The pooler runs without a server and answers with its own error (08P01).
    world.sandbox.control_postgres("stop");
    episode.daemon().wait_for_metric("gapless_database_up", &[], 0.0);
    episode.pause(3000);
    world.sandbox.control_postgres("start");
    episode.wait_for_progress(50);
    episode.end_kept(effects + 1)
}
