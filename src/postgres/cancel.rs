//! Statements whose caller went away before their answer: the server is told to cancel them.
//!
//! A verb that is interrupted would otherwise leave its statement running: a server looks at the connection of its
//! client only when it has something to say. `session` calls this when it is dropped; `main` waits for the end of it.

use std::sync::LazyLock;
use std::time::Duration;

use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;

use super::connector::Connection;

/// How long a server may take to hear of a cancellation.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);

/// Of the process, for whoever dropped a session has nothing left to wait with.
static UNDER_WAY: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Asks the server to cancel what it does for a connection, and does not wait for that. By a connection of its own,
/// encrypted as the other is.
pub(crate) fn cancel(connection: &Connection) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let (token, tls) = (connection.client.cancel_token(), connection.tls.clone());
    let asking = async move {
        let ask = async {
            match tls {
                Some(tls) => token.cancel_query(tls).await,
                None => token.cancel_query(NoTls).await,
            }
        };
        match tokio::time::timeout(CANCEL_TIMEOUT, ask).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %error, "cannot cancel a statement"),
            Err(_) => tracing::debug!("cannot cancel a statement: the server does not answer"),
        }
    };
    UNDER_WAY.spawn_on(asking, &runtime);
}

/// Waits until the server has heard of every cancellation, or does not answer.
pub async fn cancelled() {
    UNDER_WAY.close();
    UNDER_WAY.wait().await;
}
