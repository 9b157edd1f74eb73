//! How the daemon shows itself: health, metrics, logs, progress, and what systemd is told. Only memory is read.

pub mod health;
pub mod metrics;
pub mod progress;
pub mod systemd;
pub mod telemetry;
