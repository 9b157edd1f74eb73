//! Whether a server can be used. Logs once when a server is lost, with the reason, and once when it returns, with the
//! duration.
//!
//! Only this module logs an outage. Code that meets an error records it here, as often as it occurs.

use std::time::Instant;

/// The problem of a server that has not answered yet.
const UNKNOWN: &str = "not reached yet";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Kafka,
    Postgres,
}

/// The operation that observed the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObservedBy {
    /// A query outside the stream of batches.
    Question,
    /// A batch. A server that answers queries may still refuse batches, e.g. because it is read-only or its disk is
    /// full.
    Batch,
}

/// The observed state of one server.
#[derive(Debug)]
pub(crate) struct Server {
    name: Name,
    query_problem: Option<String>,
    batch_problem: Option<String>,
    was_up: bool,
    down_since: Option<Instant>,
}

impl Server {
    pub(crate) fn new(name: Name) -> Self {
        Self { name, query_problem: Some(UNKNOWN.into()), batch_problem: None, was_up: false, down_since: None }
    }

    /// Why the server cannot be used; `None` if it can be used.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.batch_problem.as_deref().or(self.query_problem.as_deref())
    }

    pub(crate) fn note(&mut self, by: ObservedBy, trouble: Option<String>) {
        match by {
            ObservedBy::Question => self.query_problem = trouble,
            ObservedBy::Batch => self.batch_problem = trouble,
        }
        match (self.problem(), self.down_since) {
            (Some(why), None) => {
                // Before the server was up for the first time, another log line, "waiting to start", gives the reason.
                if self.was_up {
                    self.lost(why);
                }
                self.down_since = Some(Instant::now());
            }
            (None, Some(since)) => {
                self.returned(since);
                self.down_since = None;
                self.was_up = true;
            }
            (None, None) => self.was_up = true,
            (Some(_), Some(_)) => {}
        }
    }

    fn lost(&self, why: &str) {
        match self.name {
            Name::Kafka => tracing::warn!(event = "kafka_lost", "Kafka cannot be used, waiting for it: {why}"),
            Name::Postgres => {
                tracing::warn!(event = "postgres_lost", "PostgreSQL cannot be used, waiting for it: {why}");
            }
        }
    }

    fn returned(&self, since: Instant) {
        let (duration_ms, seconds) = (since.elapsed().as_millis() as u64, since.elapsed().as_secs());
        match self.name {
            Name::Kafka => {
                tracing::info!(event = "kafka_returned", duration_ms, "Kafka can be used again, after {seconds} s");
            }
            Name::Postgres => {
                tracing::info!(
                    event = "postgres_returned",
                    duration_ms,
                    "PostgreSQL can be used again, after {seconds} s"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_queries_but_refuses_batches_is_still_down() {
        let mut server = Server::new(Name::Postgres);
        assert_eq!(server.problem(), Some(UNKNOWN));
        server.note(ObservedBy::Question, None);
        assert_eq!(server.problem(), None);
        server.note(ObservedBy::Batch, Some("disk full".into()));
        server.note(ObservedBy::Question, None);
        assert_eq!(server.problem(), Some("disk full"));
        let since = server.down_since.expect("down");
        server.note(ObservedBy::Batch, Some("still full".into()));
        assert_eq!(server.down_since, Some(since), "one outage");
        server.note(ObservedBy::Batch, None);
        assert_eq!((server.problem(), server.down_since), (None, None));
    }
}
