//! Named faults at the seams of the write path, for tests: without the feature `failpoints` every
//! function here is empty.
//!
//! `GAPLESS_FAILPOINTS="before_commit=kill@3,hole_proof=hang"`: at the third arrival at
//! `before_commit` the process kills itself; at the first proof it hangs. Each fires once. Actions:
//! `kill` (SIGKILL), `error` (the connection is lost there), `hang`, `panic`, `pause` (12 s, longer
//! than the server lets a transaction of the daemon be idle).

/// The seams. Keep them ten at most: what a proxy can do from outside needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    Migration,
    /// Start positions are stored, nothing is fetched yet.
    StartStored,
    /// A record was polled. `error`: the client loses it without a word.
    SourceRecord,
    TxOpen,
    EventsWritten,
    BeforeCas,
    /// After the compare-and-set.
    BeforeCommit,
    /// The commit is applied and its reply known, but memory is not changed yet.
    AfterCommit,
    HoleProof,
    /// A turn of the one loop begins.
    LoopTurn,
}

/// The fault `error`: to be treated as a lost connection.
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
            Failpoint::HoleProof => "hole_proof",
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

    /// A time-out about Kafka, shortened for a test: `GAPLESS_TIMEOUT_DIVISOR=10` makes 30 s of it 3 s.
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
