//! The daemon's notifications to systemd, received on a socket that replaces systemd's.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::wait::{DEADLINE, unique, until};
use crate::support::{Database, Gapless, Ledger, Topic};

/// The socket of a service manager; dropping it removes the file.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("gapless-notify"));
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    fn of(&self, gapless: Gapless) -> Gapless {
        gapless.env("NOTIFY_SOCKET", self.path.to_str().unwrap())
    }

    /// The next notification, its assignments separated by line breaks; `None` if none arrives within `time`.
    fn receive(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time.max(Duration::from_millis(1)))).unwrap();
        let mut text = [0; 4096];
        self.socket.recv(&mut text).ok().map(|length| String::from_utf8(text[..length].to_vec()).unwrap())
    }

    /// Waits for the first notification that contains `text`. Returns all notifications up to it.
    #[track_caller]
    fn wait_for(&self, wanted: &str) -> Vec<String> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while let Some(text) = self.receive(DEADLINE.saturating_sub(begun.elapsed())) {
            all.push(text);
            if all.last().is_some_and(|text| text.contains(wanted)) {
                return all;
            }
        }
        panic!("no {wanted} within {DEADLINE:?}; received: {all:?}");
    }

    /// Receives all pending notifications.
    fn drain(&self) -> Vec<String> {
        std::iter::from_fn(|| self.receive(Duration::from_millis(1))).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn count(received: &[String], part: &str) -> usize {
    received.iter().filter(|text| text.contains(part)).count()
}

#[test]
fn readiness_is_reported_once_positions_are_stored_and_stopping_is_reported_at_the_end() {
    let (topic, database, manager) = (Topic::new(2), Database::new(), Manager::new());
    let daemon = manager.of(Gapless::daemon(&topic, &database)).start();
    manager.wait_for("READY=1");
    assert_eq!(database.positions().len(), 2, "the positions are stored before the notification");
    manager.wait_for("STATUS=reading 2 partitions, lag 0");
    daemon.terminate().expect_code(0);
    let rest = manager.wait_for("STOPPING=1");
    assert_eq!(count(&rest, "READY=1") + count(&rest, "WATCHDOG=1"), 0, "no watchdog is configured: {rest:?}");
    assert!(manager.drain().is_empty(), "STOPPING=1 is the last notification");
}

#[test]
fn a_run_that_ends_by_itself_reports_readiness_first() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    manager.of(Gapless::daemon(&topic, &database)).until_end().run().expect_code(0);
    let received = manager.wait_for("STOPPING=1");
    assert_eq!(count(&received, "READY=1"), 1, "{received:?}");
}

#[test]
fn a_daemon_that_waits_for_a_server_has_its_start_extended_and_is_not_ready() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    // A free port, on which no server listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = manager.of(Gapless::daemon(&topic, &database).database_url(&database.url_through(free))).start();
    let mut received = manager.wait_for("STATUS=not ready: ");
    for _ in 0..3 {
        received.extend(manager.wait_for("EXTEND_TIMEOUT_USEC=30000000"));
    }
    until("the status to contain the reason", || {
        received.extend(manager.drain());
        if count(&received, "postgresql") > 0 { Ok(()) } else { Err(format!("{received:?}")) }
    });
    daemon.terminate().expect_code(0);
    received.extend(manager.wait_for("STOPPING=1"));
    assert_eq!(count(&received, "READY=1"), 0, "{received:?}");
}

#[test]
fn watchdog_pings_arrive_within_the_interval_that_systemd_sets() {
    const PERIOD: Duration = Duration::from_secs(4);
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let daemon =
        manager.of(Gapless::daemon(&topic, &database)).env("WATCHDOG_USEC", &PERIOD.as_micros().to_string()).start();
    for _ in 0..4 {
        let begun = Instant::now();
        manager.wait_for("WATCHDOG=1");
        assert!(begun.elapsed() < PERIOD, "{:?}", begun.elapsed());
    }
    daemon.terminate().expect_code(0);
}

#[test]
fn a_daemon_whose_loop_hangs_stops_sending_watchdog_pings() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let daemon = manager
        .of(Gapless::daemon(&topic, &database))
        .env("WATCHDOG_USEC", "1000000")
        .failpoint("loop_turn=hang@5")
        .start();
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    // The heartbeat that /livez checks becomes too old, and the pings end.
    let before = manager.wait_for("STATUS=not ready: the loop is stuck");
    assert!(count(&before, "WATCHDOG=1") > 10, "the daemon sends pings for half a minute: {before:?}");
    assert_eq!(daemon.get("/livez").status, 503);
    std::thread::sleep(Duration::from_secs(3));
    let after = manager.drain();
    assert_eq!(count(&after, "WATCHDOG=1"), 0, "{after:?}");
    let ended = daemon.terminate().expect_code(0);
    assert!(ended.took < Duration::from_secs(10), "{:?}", ended.took);
}

#[test]
fn a_service_manager_that_does_not_listen_does_not_block_the_daemon() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let mut ledger = Ledger::of(&topic);
    // One ping per millisecond fills the socket's queue at once.
    let daemon = manager.of(Gapless::daemon(&topic, &database)).env("WATCHDOG_USEC", "2000").start();
    daemon.wait_until_ready();
    ledger.send_events(0, 100);
    database.wait_for_outcomes(100);
    for _ in 0..50 {
        assert_eq!(daemon.get("/livez").status, 200);
    }
    let ended = daemon.terminate().expect_code(0);
    assert!(ended.took < Duration::from_secs(10), "{:?}", ended.took);
    ledger.assert_complete(&database);
}

#[test]
fn systemd_accepts_the_unit_file() {
    let unit = include_str!("../../deploy/systemd/gapless.service");
    for line in ["Type=notify", "NotifyAccess=main", "WatchdogSec="] {
        assert!(unit.lines().any(|found| found.starts_with(line)), "{line}");
    }
    let folder = std::env::temp_dir().join(unique("gapless-unit"));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("gapless.service");
    // systemd-analyze verifies that the program exists.
    std::fs::write(&file, unit.replace("/usr/local/bin/gapless", env!("CARGO_BIN_EXE_gapless"))).unwrap();
    let verified = std::process::Command::new("systemd-analyze").arg("verify").arg(&file).output();
    std::fs::remove_dir_all(&folder).unwrap();
    match verified {
        Err(error) => eprintln!("not verified: no systemd-analyze here ({error})"),
        Ok(output) => {
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !printed.contains("gapless.service"), "{printed}");
        }
    }
}
