//! Polling with a deadline, for conditions without a notification.

use std::time::{Duration, Instant};

/// Far longer than any condition should take: a test that reaches it has found a fault, or the machine is overloaded.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// Short enough not to slow a test down, long enough not to load the servers.
const INTERVAL: Duration = Duration::from_millis(40);

/// Calls `ask` until it returns `Ok`. After the deadline it panics with the description and the last error.
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

/// Asserts that a condition holds during `time`.
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

/// A name that no other test of this or another run uses.
pub(crate) fn unique(kind: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() % 100_000_000;
    format!("{kind}_{}_{now}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
