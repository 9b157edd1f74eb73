//! The end of the process: signals, panics, and a deadline that also holds if the work hangs.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The process ends within this time after a signal, also if a broker or the database hangs. Kubernetes and systemd
/// kill after 30 s or more. The process can end safely at any moment, because PostgreSQL has the positions at which to
/// resume.
const DEADLINE: Duration = Duration::from_secs(9);

/// The text with which tokio panics if the operating system refuses a thread; tokio returns no error for it.
const NO_THREAD: &str = "can't spawn worker thread";

/// Cancels `stop` at the first SIGTERM or SIGINT; a second one ends the process at once. SIGHUP does not end the
/// process, because log rotation tools and closing terminals send it.
pub fn on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    ignore_hangup()?;
    tokio::spawn(async move {
        let name = stop_signal(&mut term, &mut int).await;
        tracing::info!(event = "stopping", signal = name, "stopping");
        stop.cancel();
        tokio::select! {
            name = stop_signal(&mut term, &mut int) => tracing::warn!(
                event = "stop_forced", signal = name, "second signal, ending at once"
            ),
            () = tokio::time::sleep(DEADLINE) => tracing::warn!(
                event = "stop_forced",
                "the work in hand did not end within {} s of the signal, ending without it; the next start resumes at the stored positions",
                DEADLINE.as_secs()
            ),
        }
        std::process::exit(0);
    });
    Ok(())
}

/// Logs at the first SIGHUP that it has no effect.
fn ignore_hangup() -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut is_logged = false;
        while hangup.recv().await.is_some() {
            if !is_logged {
                is_logged = true;
                tracing::info!(
                    event = "hangup_ignored",
                    "SIGHUP ignored: gapless writes its log to standard error and reads its configuration at the start; to apply a change, restart it"
                );
            }
        }
    });
    Ok(())
}

/// The signal that interrupted a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interruption {
    pub name: &'static str,
    /// The signal's number in the operating system.
    pub number: u8,
}

/// Runs a verb to its end, or drops it at the first SIGTERM or SIGINT. A second signal ends the process at once.
pub async fn unless_interrupted<T>(work: impl Future<Output = T>) -> std::io::Result<Result<T, Interruption>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut work = std::pin::pin!(work);
    let name = tokio::select! {
        result = &mut work => return Ok(Ok(result)),
        name = stop_signal(&mut term, &mut int) => name,
    };
    let kind = if name == "SIGINT" { SignalKind::interrupt() } else { SignalKind::terminate() };
    let interruption = Interruption { name, number: u8::try_from(kind.as_raw_value()).unwrap_or(0) };
    tokio::spawn(async move {
        stop_signal(&mut term, &mut int).await;
        std::process::exit(i32::from(128 + interruption.number));
    });
    Ok(Err(interruption))
}

async fn stop_signal(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

/// Makes a panic in any thread or task end the process, because a daemon without one of its tasks looks healthy and
/// does no work. The last printed line explains the error and the remedy; the lines before it have the location.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(text) = panic.payload_as_str().filter(|text| text.contains(NO_THREAD)) {
            eprintln!(
                "gapless: cannot start a thread ({text}); raise the limit on tasks or memory (ulimit -u, TasksMax, pids.max, memory.max)"
            );
            std::process::exit(1);
        }
        print(panic);
        let trace = Backtrace::capture();
        // The previous hook has already printed the backtrace if it is enabled.
        let trace = match trace.status() {
            BacktraceStatus::Captured => String::new(),
            _ => format!("{}\n", Backtrace::force_capture()),
        };
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        // Not `eprintln!`, which panics if standard error cannot be written.
        let _ = write!(std::io::stderr(), "{trace}{}", bug(&place));
        std::process::abort();
    }));
}

/// Explains a panic and the remedy in one line.
fn bug(place: &str) -> String {
    format!(
        "gapless: internal error: a bug in gapless {} at {place}. Nothing stored is lost: restart it, and it resumes at the stored positions. Please report the bug with the lines above\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_bug_is_one_line_with_its_location_and_remedy() {
        let line = bug("src/batch.rs:17:5");
        assert_eq!(line.lines().count(), 1);
        for part in ["gapless: ", "src/batch.rs:17:5", "restart", "report", env!("CARGO_PKG_VERSION")] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
