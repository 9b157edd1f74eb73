//! Whether a server can be used: told once when it is lost, with the reason, and once when it is back, with the duration.
//!
//! The one place for these lines: whoever meets an error only notes it here, as often as it comes.

use std::time::Instant;

/// A server that was not asked yet is not known to be up.
const UNKNOWN: &str = "not reached yet";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Kafka,
    Postgres,
}

/// How it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObservedBy {
    /// A question beside the stream.
    Question,
    /// A batch: a server that answers questions may still take none (read-only, disk full).
    Batch,
}

/// What is known of one server.
#[derive(Debug)]
pub(crate) struct Server {
    name: Name,
    to_questions: Option<String>,
    to_batches: Option<String>,
    was_up: bool,
    down_since: Option<Instant>,
}

impl Server {
    pub(crate) fn new(name: Name) -> Self {
        Self { name, to_questions: Some(UNKNOWN.into()), to_batches: None, was_up: false, down_since: None }
    }

    /// Why it cannot be used, as far as is known.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.to_batches.as_deref().or(self.to_questions.as_deref())
    }

    pub(crate) fn note(&mut self, by: ObservedBy, trouble: Option<String>) {
        match by {
            ObservedBy::Question => self.to_questions = trouble,
            ObservedBy::Batch => self.to_batches = trouble,
        }
        match (self.problem(), self.down_since) {
            (Some(why), None) => {
                // Before it was ever up, "waiting to start" says why.
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
    fn a_server_that_answers_but_takes_no_batch_is_not_back() {
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
