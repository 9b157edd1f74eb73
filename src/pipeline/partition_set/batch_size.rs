//! The size of the next batch: how many messages it may have. The limit is one of rows, and a message may have several
//! events.

use super::{BACKLOG_ROWS, PartitionSet};

/// The number of rows that a message has, as far as the last batches show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowsPerMessage(usize);

impl Default for RowsPerMessage {
    fn default() -> Self {
        Self(1)
    }
}

impl RowsPerMessage {
    /// A larger number counts at once. A smaller one halves the distance, because such messages may alternate with
    /// larger ones.
    pub(super) fn on_written(&mut self, messages: usize, rows: usize) {
        if messages > 0 {
            let written = rows.div_ceil(messages).max(1);
            self.0 = written.max(usize::midpoint(self.0, written));
        }
    }

    /// The number of messages that have this number of rows, at least one.
    pub(super) fn messages(self, rows: usize) -> usize {
        (rows / self.0).max(1)
    }
}

impl PartitionSet {
    /// Messages and bytes that count against the limits of the next batch.
    fn waiting(&self) -> (usize, usize) {
        let waiting = self.partitions.values().map(|p| p.buffer.waiting());
        waiting.fold((0, 0), |(m, b), (messages, bytes)| (m + messages, b + bytes))
    }

    pub(super) fn max_messages(&self) -> usize {
        self.rows_per_message.messages(self.settings.limits.max_messages)
    }

    pub(super) fn has_room(&self) -> bool {
        let (messages, bytes) = self.waiting();
        messages < self.max_messages() && bytes < self.settings.limits.max_bytes
    }

    /// Whether enough is buffered for a batch beside those in flight. A small batch would only wait for its
    /// predecessor; meanwhile more messages may come and share one commit.
    pub(super) fn is_backlog(&self) -> bool {
        let (messages, bytes) = self.waiting();
        let limits = &self.settings.limits;
        messages >= self.rows_per_message.messages(BACKLOG_ROWS.min(limits.max_messages))
            || bytes >= limits.max_bytes / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_as_many_messages_as_rows_while_messages_have_one_event() {
        let mut rows = RowsPerMessage::default();
        (0..3).for_each(|_| rows.on_written(700, 700));
        rows.on_written(0, 0);
        assert_eq!(rows.messages(5000), 5000);
    }

    #[test]
    fn messages_with_more_events_make_smaller_batches_at_once_and_those_with_fewer_step_by_step() {
        let mut rows = RowsPerMessage::default();
        rows.on_written(10, 50_000);
        assert_eq!((rows.messages(5000), rows.messages(20_000)), (1, 4));
        let sizes: Vec<usize> = (0..4)
            .map(|_| {
                rows.on_written(100, 100);
                rows.messages(5000)
            })
            .collect();
        assert_eq!(sizes, [2, 4, 8, 15]);
        (0..20).for_each(|_| rows.on_written(100, 100));
        assert_eq!(rows.messages(5000), 5000);
    }
}
