//! What the daemon tells systemd, heard on a socket that stands in for it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::wait::{DEADLINE, unique, until};
use crate::support::{Database, Gapless, Ledger, Topic};

/// The socket of a service manager; gone when dropped.
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

    /// The next notification, its assignments separated by line breaks; `None` if none comes within `time`.
    fn heard(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time.max(Duration::from_millis(1)))).unwrap();
        let mut text = [0; 4096];
        self.socket.recv(&mut text).ok().map(|length| String::from_utf8(text[..length].to_vec()).unwrap())
    }

    /// Everything up to and including the first notification that contains this.
    #[track_caller]
    fn hears(&self, what: &str) -> Vec<String> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while let Some(text) = self.heard(DEADLINE.saturating_sub(begun.elapsed())) {
            all.push(text);
            if all.last().is_some_and(|text| text.contains(what)) {
                return all;
            }
        }
        panic!("no {what} within {DEADLINE:?}; heard: {all:?}");
    }

    /// Everything that lies in the socket.
    fn drain(&self) -> Vec<String> {
        std::iter::from_fn(|| self.heard(Duration::from_millis(1))).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn count(heard: &[String], what: &str) -> usize {
    heard.iter().filter(|text| text.contains(what)).count()
}

#[test]
fn readiness_is_reported_once_positions_are_stored_and_stopping_is_reported_at_the_end() {
    let (topic, database, manager) = (Topic::new(2), Database::new(), Manager::new());
    let daemon = manager.of(Gapless::daemon(&topic, &database)).start();
    manager.hears("READY=1");
    assert_eq!(database.positions().len(), 2, "stored before it was said");
    manager.hears("STATUS=reading 2 partitions, lag 0");
    daemon.terminate().expect_code(0);
    let rest = manager.hears("STOPPING=1");
    assert_eq!(count(&rest, "READY=1") + count(&rest, "WATCHDOG=1"), 0, "nobody asked for pings: {rest:?}");
    assert!(manager.drain().is_empty(), "the last word");
}

#[test]
fn a_run_that_ends_by_itself_reports_readiness_first() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    manager.of(Gapless::daemon(&topic, &database)).until_end().run().expect_code(0);
    let heard = manager.hears("STOPPING=1");
    assert_eq!(count(&heard, "READY=1"), 1, "{heard:?}");
}

#[test]
fn a_daemon_that_waits_for_a_server_has_its_start_extended_and_is_not_ready() {
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = manager.of(Gapless::daemon(&topic, &database).database_url(&database.url_through(free))).start();
    let mut heard = manager.hears("STATUS=not ready: ");
    for _ in 0..3 {
        heard.extend(manager.hears("EXTEND_TIMEOUT_USEC=30000000"));
    }
    until("the status to say why", || {
        heard.extend(manager.drain());
        if count(&heard, "postgresql") > 0 { Ok(()) } else { Err(format!("{heard:?}")) }
    });
    daemon.terminate().expect_code(0);
    heard.extend(manager.hears("STOPPING=1"));
    assert_eq!(count(&heard, "READY=1"), 0, "{heard:?}");
}

#[test]
fn watchdog_pings_arrive_within_the_interval_that_systemd_sets() {
    const PERIOD: Duration = Duration::from_secs(4);
    let (topic, database, manager) = (Topic::new(1), Database::new(), Manager::new());
    let daemon =
        manager.of(Gapless::daemon(&topic, &database)).env("WATCHDOG_USEC", &PERIOD.as_micros().to_string()).start();
    for _ in 0..4 {
        let begun = Instant::now();
        manager.hears("WATCHDOG=1");
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
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    // The heartbeat that feeds /livez grows old, and with it the pings end.
    let before = manager.hears("STATUS=not ready: the loop is stuck");
    assert!(count(&before, "WATCHDOG=1") > 10, "it was alive for half a minute: {before:?}");
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
    // A ping a millisecond: the socket's queue is full at once.
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
    // Verified with a program that is there.
    std::fs::write(&file, unit.replace("/usr/local/bin/gapless", env!("CARGO_BIN_EXE_gapless"))).unwrap();
    let verified = std::process::Command::new("systemd-analyze").arg("verify").arg(&file).output();
    std::fs::remove_dir_all(&folder).unwrap();
    match verified {
        Err(error) => eprintln!("not verified: no systemd-analyze here ({error})"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !said.contains("gapless.service"), "{said}");
        }
    }
}
