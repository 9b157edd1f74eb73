//! How much memory the unpacked batches of one client may take, and why a batch was not unpacked.
//!
//! [`crate::kafka::unpacking`] reserves memory before it unpacks a batch, and releases it when librdkafka frees the
//! batch. librdkafka reports each batch that was not unpacked as "bad compression"; the notes here say which of these
//! batches are not damaged.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that librdkafka allocates for a message in addition to its content, rounded up: one queue operation.
const BYTES_PER_MESSAGE: u64 = 512;
/// Bytes of a message without key, value and headers.
const SHORTEST_MESSAGE: u64 = 7;
/// How long memory is held for a waiting batch. librdkafka fetches the batch again after `fetch.error.backoff.ms`
/// (0.5 s). A batch that is not fetched again belongs to a partition that is no longer read.
const RESERVATION_HOLD: Duration = Duration::from_secs(2);
/// The number of notes that are kept. The errors about older batches were read long before.
const MAX_NOTES: usize = 1024;

/// The size of a batch, packed and unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The first offset, as in librdkafka's error text; `None` if the batch does not contain it.
    pub offset: Option<i64>,
    /// Bytes, as in librdkafka's error text.
    pub packed: u64,
    /// Bytes.
    pub unpacked: u64,
    /// The number of messages; 0 if the batch does not contain it.
    pub messages: u64,
}

impl Size {
    fn is_of_same_batch(self, other: Self) -> bool {
        (self.offset, self.packed) == (other.offset, other.packed)
    }

    /// Returns true if this error text is about the batch. Source: `rd_kafka_msgset_reader_decompress` formats the
    /// text.
    fn is_named_by(self, error: &str) -> bool {
        let offset = self.offset.map(|offset| format!(" at {offset}"));
        error.contains(&format!("{} of {} bytes failed", offset.unwrap_or_default(), self.packed))
    }

    /// The bytes of memory that the unpacked batch takes, with librdkafka's own allocations.
    pub fn needed(self) -> u64 {
        // The batch may state a wrong number of messages, but the number of bytes is known.
        let messages = self.messages.min(self.unpacked / SHORTEST_MESSAGE);
        self.unpacked.saturating_add(messages.saturating_mul(BYTES_PER_MESSAGE))
    }
}

/// Why a batch that is not damaged was not unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It needs more than `kafka.max_unpacked_bytes`.
    TooLarge,
    /// The operating system has no memory for it.
    NoMemory,
    /// It fits once earlier batches are freed. The client fetches it again.
    Later,
}

/// A batch that is not damaged and was not unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUnpacked {
    pub size: Size,
    pub why: Refusal,
    /// `kafka.max_unpacked_bytes`.
    pub limit: u64,
}

impl fmt::Display for NotUnpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (packed, needed, limit) = (self.size.packed, self.size.needed(), self.limit);
        write!(f, "a batch is sound and has {packed} bytes, but takes {needed} bytes of memory unpacked: ")?;
        match self.why {
            Refusal::TooLarge => write!(f, "kafka.max_unpacked_bytes allows {limit}"),
            Refusal::NoMemory => write!(f, "the process gets no more memory for it"),
            Refusal::Later => write!(f, "it waits for room in kafka.max_unpacked_bytes ({limit})"),
        }
    }
}

/// The memory that the unpacked batches of one client may take together.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_use: u64,
    waiting: Option<Waiting>,
    notes: VecDeque<NotUnpacked>,
}

/// The batch that gets the next free memory. Without it, smaller batches of other partitions could always come first.
#[derive(Debug)]
struct Waiting {
    size: Size,
    asked_at: Instant,
}

/// Reserved memory of a budget. It is dropped when the batch is freed.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.lock().in_use -= self.bytes;
    }
}

impl Reservation {
    /// Releases the bytes that the batch does not need.
    pub(crate) fn shrink(&mut self, size: Size) {
        let surplus = self.bytes.saturating_sub(size.needed());
        self.bytes -= surplus;
        self.budget.lock().in_use -= surplus;
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit as u64, state: Mutex::default() })
    }

    /// Returns true if a batch of this size fits into an empty budget.
    pub(crate) fn allows(&self, size: Size) -> bool {
        size.needed() <= self.limit
    }

    /// Reserves memory for a batch. An allowed batch always fits while there is no other.
    pub(crate) fn reserve(self: &Arc<Self>, size: Size) -> Result<Reservation, Refusal> {
        if !self.allows(size) {
            return Err(Refusal::TooLarge);
        }
        let now = Instant::now();
        let mut state = self.lock();
        let state = &mut *state;
        // The waiting batch is this one, or it was not fetched again in time.
        let _ = state.waiting.take_if(|w| w.size == size || now.duration_since(w.asked_at) > RESERVATION_HOLD);
        let kept = state.waiting.as_ref().map_or(0, |waiting| waiting.size.needed());
        if state.in_use + kept + size.needed() > self.limit && (state.in_use > 0 || kept > 0) {
            if kept == 0 {
                state.waiting = Some(Waiting { size, asked_at: now });
            }
            return Err(Refusal::Later);
        }
        state.in_use += size.needed();
        Ok(Reservation { budget: Arc::clone(self), bytes: size.needed() })
    }

    /// Records why a batch is not unpacked.
    pub(crate) fn note(&self, size: Size, why: Refusal) {
        self.forget(size);
        let mut state = self.lock();
        if state.notes.len() >= MAX_NOTES {
            state.notes.pop_front();
        }
        state.notes.push_back(NotUnpacked { size, why, limit: self.limit });
    }

    /// Removes the note about a batch: it was tried again and is damaged.
    pub(crate) fn forget(&self, size: Size) {
        self.lock().notes.retain(|note| !note.size.is_of_same_batch(size));
    }

    /// The note about the batch that an error text of librdkafka names; `None` if the batch is damaged. The note stays,
    /// because a waiting batch may be fetched again before the first error about it is read.
    pub(crate) fn explain(&self, error: &str) -> Option<NotUnpacked> {
        self.lock().notes.iter().find(|note| note.size.is_named_by(error)).copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// First offset and number of messages in the header of a batch of format 2. The header is the end of `head`. `None` if
/// `head` does not end with such a header.
pub(crate) fn batch_head(head: &[u8], packed_len: usize) -> Option<(i64, u64)> {
    let number = |from_end: usize| {
        let at = head.len().checked_sub(from_end)?;
        head.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
    };
    // The fields after the length: epoch, format, checksum, attributes, last offset, times, producer, sequence, count.
    let is_head = number(53).is_some_and(|length| length as usize == packed_len + 49)
        && head.len().checked_sub(45).and_then(|at| head.get(at)) == Some(&2);
    let offset = head.len().checked_sub(61).and_then(|at| head.get(at..)?.first_chunk::<8>())?;
    number(4).filter(|_| is_head).map(|count| (i64::from_be_bytes(*offset), u64::from(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(packed: u64, unpacked: u64) -> Size {
        Size { offset: Some(7), packed, unpacked, messages: 0 }
    }

    #[test]
    fn batches_together_stay_within_the_limit_and_a_waiting_batch_is_next() {
        let budget = Budget::new(100);
        assert_eq!(budget.reserve(size(1, 101)).unwrap_err(), Refusal::TooLarge);
        let first = budget.reserve(size(1, 60)).expect("room");
        let second = budget.reserve(size(2, 30)).expect("room");
        assert_eq!(budget.reserve(size(3, 90)).unwrap_err(), Refusal::Later);
        // It would fit, but then the waiting batch might never fit.
        assert_eq!(budget.reserve(size(4, 10)).unwrap_err(), Refusal::Later);
        drop(first);
        assert_eq!(budget.reserve(size(4, 10)).unwrap_err(), Refusal::Later);
        drop(second);
        let third = budget.reserve(size(3, 90)).expect("room");
        let fourth = budget.reserve(size(4, 10)).expect("room");
        drop((third, fourth));
        assert_eq!(budget.lock().in_use, 0);
    }

    #[test]
    fn the_number_of_messages_adds_to_the_memory_of_a_batch() {
        let many = Size { unpacked: 1000, messages: 100, ..size(1, 0) };
        assert_eq!(many.needed(), 1000 + 51_200);
        assert_eq!(Size { unpacked: 70, ..many }.needed(), 70 + 5120, "not more messages than the bytes can hold");
        let budget = Budget::new(52_200);
        let mut reservation = budget.reserve(many).expect("room");
        reservation.shrink(Size { unpacked: 900, ..many });
        assert_eq!(budget.lock().in_use, 52_100);
    }

    #[test]
    fn a_sound_batch_is_distinguished_from_a_damaged_one() {
        let budget = Budget::new(1000);
        let sound = size(270_123, 2000);
        budget.note(sound, Refusal::TooLarge);
        let error = |packed: u64| {
            format!(
                "Decompression (codec 0x4) of message at 7 of {packed} bytes failed: Local: Invalid compressed data"
            )
        };
        assert_eq!(budget.explain(&error(70_123)), None);
        assert_eq!(
            budget.explain(&error(270_123)),
            Some(NotUnpacked { size: sound, why: Refusal::TooLarge, limit: 1000 })
        );
        assert!(budget.explain(&error(270_123)).is_some(), "two errors about it may be on their way");
        assert_eq!(budget.explain(&error(270_123).replace("at 7", "at 17")), None);
        budget.forget(sound);
        assert_eq!(budget.explain(&error(270_123)), None);
    }

    #[test]
    fn the_header_of_a_batch_contains_its_first_offset_and_number_of_messages() {
        let mut head = [0; 61];
        head[..8].copy_from_slice(&7_i64.to_be_bytes());
        head[8..12].copy_from_slice(&149_u32.to_be_bytes());
        head[16] = 2;
        head[57..].copy_from_slice(&12_u32.to_be_bytes());
        assert_eq!(batch_head(&head, 100), Some((7, 12)));
        assert_eq!(batch_head(&head, 101), None);
    }
}
