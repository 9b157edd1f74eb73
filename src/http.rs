//! The HTTP endpoints `/livez`, `/readyz`, `/health` and `/metrics`. Only this module uses the crate axum.
//!
//! The endpoints read memory only. Connections are served by hyper directly and not by `axum::serve`, which sets no
//! timer and so disables hyper's header timeout. A connection whose request head does not arrive in time is closed, and
//! the number of connections is limited.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::config::ServerConfig;
use crate::observe::health::Health;

/// The longest time for a connection; each serves one request.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(30);

/// Binds the address and serves in the background. Returns the bound address, which has the chosen port if the
/// configured port is 0.
pub async fn start(config: &ServerConfig, health: Health) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(config.bind).await?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, config.max_connections, config.header_read_timeout, router(health)));
    tracing::info!(event = "http_listening", server.address = %address, "listening");
    Ok(address)
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(full))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn accept(listener: TcpListener, max_connections: usize, header_timeout: Duration, router: Router) {
    let free = Arc::new(Semaphore::new(max_connections));
    loop {
        let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The most likely cause is a temporary lack of file descriptors.
                tracing::warn!(event = "http_accept_failed", error = %error, "cannot accept an HTTP connection; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Errors of a client are ignored.
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, connection).await;
        });
    }
}

async fn livez(State(health): State<Health>) -> Response {
    match health.is_live() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the loop is stuck\n").into_response(),
    }
}

async fn readyz(State(health): State<Health>) -> Response {
    let report = health.report();
    match report.ready {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", report.reasons.join("\n"))).into_response(),
    }
}

async fn full(State(health): State<Health>) -> Response {
    let report = health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, health.metrics().text()).into_response()
}
