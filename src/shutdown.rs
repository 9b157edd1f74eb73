//! When and how the process ends: signals, and the deadline that holds whatever hangs.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// After a signal the process is gone by then, whatever a broker or database does. Kubernetes and
/// systemd kill after 30 s or more. Ending is safe at any moment: PostgreSQL knows where to resume.
const DEADLINE: Duration = Duration::from_secs(9);

/// Cancels `stop` at the first SIGTERM or SIGINT; a second one ends the process at once.
pub fn on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let name = either(&mut term, &mut int).await;
        tracing::info!(signal = name, "stopping");
        stop.cancel();
        tokio::select! {
            name = either(&mut term, &mut int) => tracing::warn!(signal = name, "second signal, ending at once"),
            () = tokio::time::sleep(DEADLINE) => tracing::warn!("a server does not answer, ending without it"),
        }
        std::process::exit(0);
    });
    Ok(())
}

async fn either(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

/// A panic in any thread or task ends the process: half a daemon looks healthy and does nothing.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}
