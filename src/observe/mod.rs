//! The visible state of the daemon: health, metrics, logs, progress, and notifications to systemd. It is read from
//! memory only.

pub mod health;
pub mod metrics;
pub mod progress;
pub mod systemd;
pub mod telemetry;
