//! What the reader fetched, taken into the drafts of its partitions as far as there is room.

use std::time::Duration;

use super::partition::Taken;
use super::silence::Heard;
use super::unwritten::Share;
use super::{Pipeline, believe_after};
use crate::kafka::reader::{Chunk, FetchError, Fetched};
use crate::kafka::unpacked::{NotUnpacked, Refusal};
use crate::model::offset::OffsetRange;
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::record::Record;

/// A proof that takes longer leaves the room of its partition to others.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// A chunk that was taken only in part, because the next batch is full.
pub(super) struct Rest {
    records: std::vec::IntoIter<Record>,
    share: Share,
}

impl Pipeline {
    /// Messages and bytes that take the room of the next batch.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let waiting = self.partitions.values().map(|p| p.unwritten.waiting());
        waiting.fold((0, 0), |(m, b), (messages, bytes)| (m + messages, b + bytes))
    }

    pub(super) fn has_room(&self) -> bool {
        let (messages, bytes) = self.waiting();
        messages < self.limits.max_messages && bytes < self.limits.max_bytes
    }

    /// Partitions that wait for a proof leave the room to the others: one that holds more than its share while there is
    /// no room gives back what it read beyond it, and reads that again after its proof.
    pub(super) fn relieve(&mut self) {
        let is_full = !self.has_room() || self.reader.is_out_of_budget();
        let share = self.limits.max_bytes / self.partitions.len().max(1);
        let alone = self.partitions.len() < 2;
        for (partition, p) in &mut self.partitions {
            if let Some(assignment) = p.read_on() {
                self.reader.add(assignment);
            } else if is_full && !alone && p.unwritten.is_proving_for() >= PARK_AFTER && p.park(share) {
                tracing::debug!(kafka.partition = partition, "gives up room while it waits for a proof");
                self.reader.remove(*partition);
            }
        }
    }

    pub(super) fn take_what_is_there(&mut self) {
        self.take_rest();
        while self.rest.is_none()
            && self.has_room()
            && let Ok(fetched) = self.fetched.try_recv()
        {
            self.take(fetched);
        }
    }

    /// How much the client has said.
    pub(super) fn heard(&self) -> Heard {
        Heard { read: self.taken - u64::from(self.rest.is_some()), delivered: self.taken + self.fetched.len() as u64 }
    }

    pub(super) fn take(&mut self, fetched: Fetched) {
        self.taken += 1;
        match fetched {
            Fetched::Records(Chunk { records, permit }) => {
                self.rest = Some(Rest { records: records.into_iter(), share: Share::of(permit) });
                self.take_rest();
            }
            Fetched::End { partition, epoch, offset } => {
                if let Some(p) = self.partitions.get_mut(&partition) {
                    p.reached(offset, epoch);
                }
            }
            Fetched::Failed(error) => self.fetch_failed(&error),
            Fetched::Advanced(partitions) => {
                for (partition, epoch) in partitions {
                    if let Some(p) = self.partitions.get_mut(&partition).filter(|p| p.epoch() == epoch) {
                        p.unheard();
                    }
                }
            }
            Fetched::SecretsChanged => self.renew_reader(),
            Fetched::Trouble { code, message } => {
                tracing::debug!(kafka.code = ?code, "kafka: {message}");
                self.watch.look_now();
            }
        }
    }

    fn take_rest(&mut self) {
        let Some(mut rest) = self.rest.take() else { return };
        while self.has_room() {
            let Some(record) = rest.records.next() else { return };
            let share = rest.share.split(record.footprint());
            let (partition, offset) = (record.partition, record.offset);
            let Some(p) = self.partitions.get_mut(&partition) else { continue };
            if p.take(record, share) == Taken::Twice {
                tracing::debug!(
                    kafka.partition = partition,
                    kafka.offset = offset.get(),
                    "delivered twice, taken once"
                );
            }
        }
        self.rest = Some(rest);
    }

    /// librdkafka stops fetching a partition after an error and says so once. Whether something is
    /// lost, the watermarks tell; they are asked for at once.
    fn fetch_failed(&mut self, error: &FetchError) {
        let why = error.missing_right(&self.kafka).unwrap_or_else(|| error.why());
        let Some(p) = self.partitions.get_mut(&error.partition) else { return };
        let Some(since) = p.failed(error.epoch, &why) else { return };
        let range = p.marks.and_then(|marks| OffsetRange::new(p.expected(), marks.last_stable));
        // Memory may be there again soon.
        if let Some(batch) = error.not_unpacked
            && (batch.why == Refusal::TooLarge || since >= believe_after())
        {
            return self.halt_not_unpacked(error.partition, batch);
        }
        if error.is_damage() && since >= believe_after() {
            let detail = format!(
                "the log cannot be read at offset {}: {}; restore the broker's segment or its replica, then restart",
                p.expected(),
                error.message
            );
            return self.halt(error.partition, Halt::new(HaltReason::Unreadable, range, detail));
        }
        self.show(error.partition);
        self.watch.look_now();
    }

    /// The partition needs a batch that takes more memory than is allowed or there.
    pub(super) fn halt_not_unpacked(&mut self, partition: i32, batch: NotUnpacked) {
        let Some(p) = self.partitions.get(&partition) else { return };
        let range = p.marks.and_then(|marks| OffsetRange::new(p.expected(), marks.last_stable));
        let needed = batch.size.needed();
        let reason = match batch.why {
            Refusal::TooLarge => HaltReason::UnpackedTooLarge { needed },
            Refusal::NoMemory | Refusal::Later => HaltReason::OutOfMemory { needed },
        };
        self.halt(partition, Halt::new(reason, range, format!("at offset {}, {batch}", p.expected())));
    }
}
