//! What gapless promises, tested with the real binary on a real Kafka and a real PostgreSQL: `make test`.
//! One file, one promise. Each test has its own topic and its own database, so all of them run side by side.

// In tests a panic is the report.
#![allow(clippy::unwrap_used)]

mod support;

mod accounting;
mod added_by_users;
mod bulk;
mod catalogue;
mod catalogue_while_running;
mod chaos;
mod checking;
mod configuration;
mod conflicts;
mod connections_kafka;
mod connections_limited;
mod connections_postgres;
mod contents;
mod decisions;
mod documents;
mod earlier_ledgers;
mod exactly_once;
mod fence;
mod forgeries;
mod gaps;
mod generator;
mod headroom;
mod http;
mod indexes;
mod instruments;
mod kill;
mod late_changes;
mod leaders;
mod outages;
mod poison;
mod readers;
mod rebase;
mod receipts;
mod rejections;
mod remedies;
mod removed;
mod replay;
mod rights;
mod roles;
mod servers_restart;
mod several_events;
mod start_positions;
mod status;
mod stop;
mod systemd;
mod tidy;
mod unknown_commit;
mod unpacked;
mod verbs;
mod verifying;
mod write_strategies;
