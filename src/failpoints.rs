//! Named faults at points of the write path, for tests. Without the feature `failpoints` every function here is empty.
//!
//! `GAPLESS_FAILPOINTS="before_commit=kill@3,gap_proof=hang"`: the process kills itself when it reaches
//! `before_commit` for the third time, and hangs at the first gap proof. Each fault fires once. Actions: `kill`
//! (SIGKILL), `error` (a lost connection), `hang`, `panic`, `pause` (12 s, longer than the server allows a transaction
//! of the daemon to be idle).

/// The points at which a fault can be injected. Keep them at most ten: a fault that a proxy can cause needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    Migration,
    /// The start positions are stored, and no message is fetched yet.
    StartStored,
    /// A record was polled. `error`: the client loses the record without an error.
    SourceRecord,
    TxOpen,
    EventsWritten,
    BeforeCas,
    /// After the compare-and-set of the position.
    BeforeCommit,
    /// The commit is applied and its reply has arrived, but the state in memory is not updated yet.
    AfterCommit,
    GapProof,
    /// An iteration of the daemon's loop begins.
    LoopTurn,
}

/// The error of the action `error`. Callers treat it as a lost connection.
#[derive(Debug, thiserror::Error)]
#[error("failpoint {0:?}: connection lost")]
pub struct Injected(pub Failpoint);

#[cfg(not(feature = "failpoints"))]
mod imp {
    use std::time::Duration;

    use super::{Failpoint, Injected};

    #[allow(clippy::unused_async, reason = "the same signature as with the feature")]
    pub async fn hit(_: Failpoint) -> Result<(), Injected> {
        Ok(())
    }

    pub fn hit_sync(_: Failpoint) -> Result<(), Injected> {
        Ok(())
    }

    pub fn scaled(duration: Duration) -> Duration {
        duration
    }
}

#[cfg(feature = "failpoints")]
mod imp {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::{Failpoint, Injected};

    const PAUSE: Duration = Duration::from_secs(12);

    struct Armed {
        name: String,
        action: String,
        nth: u64,
        hits: AtomicU64,
    }

    fn armed() -> &'static [Armed] {
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        ARMED.get_or_init(|| {
            let text = std::env::var("GAPLESS_FAILPOINTS").unwrap_or_default();
            text.split(',').filter(|item| !item.trim().is_empty()).map(parse).collect()
        })
    }

    fn parse(item: &str) -> Armed {
        let (name, rest) = item.trim().split_once('=').expect("a failpoint is name=action@n");
        let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
        assert!(["kill", "error", "hang", "panic", "pause"].contains(&action), "unknown failpoint action {action}");
        Armed {
            name: name.to_owned(),
            action: action.to_owned(),
            nth: nth.parse().expect("a failpoint's hit is a number"),
            hits: AtomicU64::new(0),
        }
    }

    fn name(point: Failpoint) -> &'static str {
        match point {
            Failpoint::Migration => "migration",
            Failpoint::StartStored => "start_stored",
            Failpoint::SourceRecord => "source_record",
            Failpoint::TxOpen => "tx_open",
            Failpoint::EventsWritten => "events_written",
            Failpoint::BeforeCas => "before_cas",
            Failpoint::BeforeCommit => "before_commit",
            Failpoint::AfterCommit => "after_commit",
            Failpoint::GapProof => "gap_proof",
            Failpoint::LoopTurn => "loop_turn",
        }
    }

    fn due(point: Failpoint) -> Option<&'static str> {
        let armed = armed().iter().find(|a| a.name == name(point))?;
        if armed.hits.fetch_add(1, Ordering::SeqCst) + 1 != armed.nth {
            return None;
        }
        eprintln!("failpoint {point:?}: {}", armed.action);
        Some(armed.action.as_str())
    }

    /// Shortens a timeout of Kafka operations for a test: `GAPLESS_TIMEOUT_DIVISOR=10` turns 30 s into 3 s.
    pub fn scaled(duration: Duration) -> Duration {
        static DIVISOR: OnceLock<u32> = OnceLock::new();
        let divisor = std::env::var("GAPLESS_TIMEOUT_DIVISOR").ok();
        duration / *DIVISOR.get_or_init(|| divisor.map_or(1, |text| text.parse().expect("a divisor is a number")))
    }

    fn die() -> ! {
        let pid = std::process::id().to_string();
        std::process::Command::new("kill").args(["-9", &pid]).status().expect("kill can be run");
        unreachable!("killed");
    }

    pub async fn hit(point: Failpoint) -> Result<(), Injected> {
        match due(point) {
            None => Ok(()),
            Some("error") => Err(Injected(point)),
            Some("hang") => std::future::pending().await,
            Some("pause") => {
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            Some("panic") => panic!("failpoint {point:?}"),
            Some(_) => die(),
        }
    }

    pub fn hit_sync(point: Failpoint) -> Result<(), Injected> {
        match due(point) {
            None => Ok(()),
            Some("error") => Err(Injected(point)),
            Some("hang") => loop {
                std::thread::park();
            },
            Some("pause") => {
                std::thread::sleep(PAUSE);
                Ok(())
            }
            Some("panic") => panic!("failpoint {point:?}"),
            Some(_) => die(),
        }
    }
}

pub use imp::{hit, hit_sync, scaled};
