//! The one place that polls: everything that has no signal of its own is waited for here, with a deadline.

use std::time::{Duration, Instant};

/// Far beyond what anything should take: a test that meets it has found something, or the machine is very busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// Short enough not to slow a test down, long enough not to load the servers.
const INTERVAL: Duration = Duration::from_millis(40);

/// Asks until there is an answer. After the deadline it says what it waited for and what it saw last.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if start.elapsed() > DEADLINE => {
                panic!("waited {DEADLINE:?} for {what}; last seen: {seen}")
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// Watches that something stays true for a while: for what has no other sign than that nothing happens.
#[track_caller]
pub(crate) fn stays(what: &str, time: Duration, mut ask: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(seen) = ask() {
            panic!("{what} was to last {time:?}, but: {seen}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// A name no other test of this or another run uses.
pub(crate) fn unique(kind: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() % 100_000_000;
    format!("{kind}_{}_{now}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
