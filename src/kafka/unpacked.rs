//! How much memory the unpacked batches of one client may take, and why a batch was not unpacked.
//!
//! [`crate::kafka::unpacking`] reserves before it unpacks a batch and gives back when librdkafka frees it. librdkafka reports each
//! batch that was not unpacked as "bad compression"; what is noted here says which of them are sound.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What librdkafka keeps of a message beside its bytes, rounded up: one operation of its queue each.
const BYTES_PER_MESSAGE: u64 = 512;
/// Of a message without key, value and headers.
const SHORTEST_MESSAGE: u64 = 7;
/// For how long room is kept for a batch that waits for it. librdkafka asks for it again after `fetch.error.backoff.ms`
/// (0.5 s); one that does not come back belongs to a partition that is not read any more.
const RESERVATION_HOLD: Duration = Duration::from_secs(2);
/// Of the last batches that were not unpacked; errors about others were read long ago.
const MAX_NOTES: usize = 1024;

/// A batch as it came, and what it takes unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The first offset, as librdkafka names it in its error; `None` where the batch does not say.
    pub offset: Option<i64>,
    /// Bytes, as librdkafka names them in its error.
    pub packed: u64,
    pub unpacked: u64,
    /// 0 where the batch does not say.
    pub messages: u64,
}

impl Size {
    fn is_of_the_same(self, other: Self) -> bool {
        (self.offset, self.packed) == (other.offset, other.packed)
    }

    /// As `rd_kafka_msgset_reader_decompress` names a batch.
    fn is_named_by(self, error: &str) -> bool {
        let offset = self.offset.map(|offset| format!(" at {offset}"));
        error.contains(&format!("{} of {} bytes failed", offset.unwrap_or_default(), self.packed))
    }

    /// Of memory, with what librdkafka adds.
    pub fn needed(self) -> u64 {
        // A batch may lie about its messages, but not about their bytes.
        let messages = self.messages.min(self.unpacked / SHORTEST_MESSAGE);
        self.unpacked.saturating_add(messages.saturating_mul(BYTES_PER_MESSAGE))
    }
}

/// Why a sound batch was not unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It needs more than `kafka.max_unpacked_bytes`.
    TooLarge,
    /// The system gives no memory for it.
    NoMemory,
    /// It fits, once others that were unpacked before have been taken. The client fetches it again.
    Later,
}

/// A sound batch that was not unpacked.
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

/// Of one client.
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

/// The batch that gets the next room: smaller ones of other partitions would take it for ever.
#[derive(Debug)]
struct Waiting {
    size: Size,
    asked_at: Instant,
}

/// Room of a budget; dropped when the batch is freed.
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
    /// Gives back what the batch turned out not to need.
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

    /// Whether a batch of this size could ever be unpacked.
    pub(crate) fn allows(&self, size: Size) -> bool {
        size.needed() <= self.limit
    }

    /// Room for a batch. One that is allowed always fits while there is no other.
    pub(crate) fn reserve(self: &Arc<Self>, size: Size) -> Result<Reservation, Refusal> {
        if !self.allows(size) {
            return Err(Refusal::TooLarge);
        }
        let now = Instant::now();
        let mut state = self.lock();
        let state = &mut *state;
        // Its own turn, or that of a batch that did not come back.
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

    /// Notes why a batch is not unpacked.
    pub(crate) fn note(&self, size: Size, why: Refusal) {
        self.forget(size);
        let mut state = self.lock();
        if state.notes.len() >= MAX_NOTES {
            state.notes.pop_front();
        }
        state.notes.push_back(NotUnpacked { size, why, limit: self.limit });
    }

    /// Of a batch that was tried again and turned out damaged.
    pub(crate) fn forget(&self, size: Size) {
        self.lock().notes.retain(|note| !note.size.is_of_the_same(size));
    }

    /// What was noted of the batch that an error of librdkafka is about; `None`: it is damaged. The note stays: a batch that
    /// waits is fetched again before the first error about it is read.
    pub(crate) fn explain(&self, error: &str) -> Option<NotUnpacked> {
        self.lock().notes.iter().find(|note| note.size.is_named_by(error)).copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// First offset and number of messages that a batch of format 2 names in its head, which is the end of `head`; `None` if
/// that is no such head.
pub(crate) fn batch_head(head: &[u8], packed_len: usize) -> Option<(i64, u64)> {
    let number = |from_end: usize| {
        let at = head.len().checked_sub(from_end)?;
        head.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
    };
    // From the length on: epoch, format, checksum, attributes, last offset, times, producer, sequence, count.
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
    fn batches_take_no_more_than_the_limit_together_and_the_one_that_waits_is_next() {
        let budget = Budget::new(100);
        assert_eq!(budget.reserve(size(1, 101)).unwrap_err(), Refusal::TooLarge);
        let first = budget.reserve(size(1, 60)).expect("room");
        let second = budget.reserve(size(2, 30)).expect("room");
        assert_eq!(budget.reserve(size(3, 90)).unwrap_err(), Refusal::Later);
        // It would fit, and the batch that waits would never.
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
    fn messages_of_a_batch_count_beside_its_bytes() {
        let many = Size { unpacked: 1000, messages: 100, ..size(1, 0) };
        assert_eq!(many.needed(), 1000 + 51_200);
        assert_eq!(Size { unpacked: 70, ..many }.needed(), 70 + 5120, "no more of them than fit");
        let budget = Budget::new(52_200);
        let mut reservation = budget.reserve(many).expect("room");
        reservation.shrink(Size { unpacked: 900, ..many });
        assert_eq!(budget.lock().in_use, 52_100);
    }

    #[test]
    fn a_sound_batch_is_told_from_a_damaged_one() {
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
    fn the_head_of_a_batch_says_where_it_begins_and_how_many_messages_it_has() {
        let mut head = [0; 61];
        head[..8].copy_from_slice(&7_i64.to_be_bytes());
        head[8..12].copy_from_slice(&149_u32.to_be_bytes());
        head[16] = 2;
        head[57..].copy_from_slice(&12_u32.to_be_bytes());
        assert_eq!(batch_head(&head, 100), Some((7, 12)));
        assert_eq!(batch_head(&head, 101), None);
    }
}
