//! Cancels statements whose caller was dropped before their answer.
//!
//! Otherwise an interrupted verb would leave its statement running: a server checks its client's connection only when
//! it sends something. A `Session` calls [`cancel`] when it is dropped; `main` waits for [`cancelled`].

use std::sync::LazyLock;
use std::time::Duration;

use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;

use super::connector::Connection;

/// How long sending a cancellation to the server may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);

/// The cancellations that are being sent. One tracker for the process: code that dropped a session cannot wait for it.
static UNDER_WAY: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Asks the server to cancel a connection's statement, without waiting for the cancellation. It uses a separate
/// connection with the same TLS settings.
pub(crate) fn cancel(connection: &Connection) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let (token, tls) = (connection.client.cancel_token(), connection.tls.clone());
    let request = async move {
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
    UNDER_WAY.spawn_on(request, &runtime);
}

/// Waits until every cancellation was sent to its server, or has timed out.
pub async fn cancelled() {
    UNDER_WAY.close();
    UNDER_WAY.wait().await;
}
