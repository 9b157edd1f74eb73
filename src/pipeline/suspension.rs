//! A partition that is not being read for a while: told once when that begins, and once when it is read again.

use std::time::Instant;

use crate::model::offset::NextOffset;

#[derive(Debug, Default)]
pub(super) struct Suspension {
    since: Option<Instant>,
}

impl Suspension {
    /// Further reasons of the same suspension are no news.
    pub(super) fn begin(&mut self, partition: i32, offset: NextOffset, why: &str) {
        if self.since.is_some() {
            tracing::debug!(kafka.partition = partition, kafka.offset = offset.get(), "still suspended: {why}");
            return;
        }
        self.begin_silently();
        tracing::warn!(
            event = "partition_suspended",
            kafka.partition = partition,
            kafka.offset = offset.get(),
            "partition suspended, it is tried again: {why}"
        );
    }

    /// What begins it was told otherwise.
    pub(super) fn begin_silently(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Something of it was delivered.
    pub(super) fn end(&mut self, partition: i32, offset: NextOffset) {
        if let Some(since) = self.since.take() {
            tracing::info!(
                event = "partition_resumed",
                kafka.partition = partition,
                kafka.offset = offset.get(),
                duration_ms = since.elapsed().as_millis() as u64,
                "partition resumed: it is read again"
            );
        }
    }

    #[cfg(test)]
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }
}
