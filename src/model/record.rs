//! One Kafka record, owned and without types of a Kafka library, and its digests.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use sha2::{Digest as _, Sha256};

use crate::model::offset::Offset;

/// The first 16 bytes of a SHA-256: long enough that an accidental collision is not to be expected, and short enough
/// for a key. The ledger stores it as `uuid`, PostgreSQL's fixed-size 16-byte type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// A map with digests as keys. A digest is already a hash, so its own bytes are the hash value.
pub type DigestMap<V> = HashMap<Digest, V, BuildHasherDefault<DigestHasher>>;
pub type DigestSet = HashSet<Digest, BuildHasherDefault<DigestHasher>>;

/// A map with occurrences of events as keys: (identity, content digest).
pub type OccurrenceMap<V> = HashMap<(Digest, Digest), V, BuildHasherDefault<DigestHasher>>;
pub type OccurrenceSet = HashSet<(Digest, Digest), BuildHasherDefault<DigestHasher>>;

/// Uses the first half of each digest as its hash, without hashing it again.
#[derive(Debug, Default, Clone, Copy)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed with it");
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = self.0.rotate_left(1) ^ half;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.halves().0);
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Computes one digest of several parts. Two different lists of parts never have the same hashed bytes.
pub struct Digester {
    hash: Sha256,
    /// Bytes that are not hashed yet: hashing many small parts together is faster.
    buffer: Vec<u8>,
}

impl Digester {
    const BUFFER_BYTES: usize = 1024;

    /// Adds one part; an absent part differs from an empty one.
    pub fn part(&mut self, part: Option<&[u8]>) -> &mut Self {
        self.add(part, |_| ())
    }

    /// Adds one part with its ASCII letters in lower case, because hex digits are compared without case.
    pub fn lower_case(&mut self, part: Option<&str>) -> &mut Self {
        self.add(part.map(str::as_bytes), <[u8]>::make_ascii_lowercase)
    }

    fn add(&mut self, part: Option<&[u8]>, change: impl Fn(&mut [u8])) -> &mut Self {
        let Some(bytes) = part else {
            self.buffer.push(0);
            return self;
        };
        self.buffer.push(1);
        self.buffer.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        for piece in bytes.chunks(Self::BUFFER_BYTES) {
            if self.buffer.len() + piece.len() > Self::BUFFER_BYTES {
                self.hash.update(&self.buffer);
                self.buffer.clear();
            }
            let at = self.buffer.len();
            self.buffer.extend_from_slice(piece);
            change(&mut self.buffer[at..]);
        }
        self
    }

    pub fn finish(&mut self) -> Digest {
        self.hash.update(&self.buffer);
        self.buffer.clear();
        Digest::cut(self.hash.finalize_reset())
    }
}

impl Default for Digester {
    fn default() -> Self {
        Self { hash: Sha256::new(), buffer: Vec::with_capacity(Self::BUFFER_BYTES) }
    }
}

/// The text with its ASCII letters in lower case; borrowed if it has no upper-case letters.
pub fn lower_case(text: &str) -> Cow<'_, str> {
    // The fold does not stop at the first upper-case letter, so that the compiler can use SIMD instructions.
    match text.bytes().fold(false, |found, byte| found | byte.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

impl Digest {
    fn cut(hash: impl AsRef<[u8]>) -> Self {
        let mut cut = [0; 16];
        cut.copy_from_slice(&hash.as_ref()[..16]);
        Self(cut)
    }

    /// The bytes as two numbers, both uniformly distributed.
    pub fn halves(self) -> (u64, u64) {
        let bits = u128::from_be_bytes(self.0);
        ((bits >> 64) as u64, bits as u64)
    }

    /// The digest of the bytes alone, without a length prefix. The same in SQL: `substring(sha256(payload) for 16)`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::cut(Sha256::digest(bytes))
    }
}

/// The assignment of a partition by which a record was fetched. Records of an earlier assignment are dropped without
/// effect, because the partition was assigned again at another offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AssignmentEpoch(pub u64);

/// A header as the producer wrote it: name and value may be any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// One Kafka record.
#[derive(Debug, Clone)]
pub struct Record {
    /// The number of its partition. The chunk or slice that holds the record names the topic.
    pub partition: i32,
    pub offset: Offset,
    pub epoch: AssignmentEpoch,
    /// Milliseconds since 1970, set by the producer or the broker; `None` if the record has no timestamp.
    pub timestamp_ms: Option<i64>,
    pub leader_epoch: Option<i32>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone, which differs from an empty value.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

impl Record {
    /// The approximate number of bytes that this record uses in memory, for the byte budget.
    pub fn footprint(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|h| h.name.len() + h.value.as_ref().map_or(0, Vec::len) + 48).sum();
        size_of::<Self>() + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + headers
    }

    /// The digest of the value; `None` for a tombstone.
    pub fn payload_digest(&self) -> Option<Digest> {
        self.value.as_deref().map(Digest::of)
    }

    /// The digest of timestamp, key, headers and value. A monitor that publishes the same blocks to a re-created topic
    /// writes equal values; the timestamps distinguish the two logs.
    pub fn anchor_digest(&self) -> Digest {
        let mut digester = Digester::default();
        digester.part(self.timestamp_ms.map(i64::to_be_bytes).as_ref().map(|b| b.as_slice())).part(self.key.as_deref());
        for header in &self.headers {
            digester.part(Some(&header.name)).part(header.value.as_deref());
        }
        digester.part(self.value.as_deref()).finish()
    }
}

/// The last stored message of a partition. If the log still contains it, the log is the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub offset: Offset,
    pub digest: Digest,
    pub leader_epoch: Option<i32>,
}

impl Record {
    /// The record as an anchor.
    pub fn anchor(&self) -> Anchor {
        Anchor { offset: self.offset, digest: self.anchor_digest(), leader_epoch: self.leader_epoch }
    }
}

#[cfg(test)]
impl Record {
    /// A tombstone of partition 0 at this offset, for tests that need only partition and offset.
    pub(crate) fn tombstone(offset: i64) -> Self {
        Self {
            partition: 0,
            offset: Offset::new(offset).expect("not negative"),
            epoch: AssignmentEpoch(1),
            timestamp_ms: None,
            leader_epoch: None,
            key: None,
            value: None,
            headers: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_where_each_part_ends() {
        let digest = |a: &[u8], b: &[u8]| Digester::default().part(Some(a)).part(Some(b)).finish();
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }

    #[test]
    fn an_absent_part_differs_from_an_empty_one() {
        assert_ne!(Digester::default().part(None).finish(), Digester::default().part(Some(b"")).finish());
    }

    #[test]
    fn a_part_longer_than_the_buffer_is_hashed_completely() {
        for length in [1000, 1015, 1016, 1024, 5000] {
            let text = "Ab".repeat(length);
            let mut plain = vec![1];
            plain.extend_from_slice(&(text.len() as u64).to_be_bytes());
            plain.extend_from_slice(text.to_ascii_lowercase().as_bytes());
            assert_eq!(Digester::default().lower_case(Some(&text)).finish(), Digest::of(&plain), "{length}");
        }
    }

    #[test]
    fn the_payload_digest_is_the_first_16_bytes_of_sha256() {
        assert_eq!(Digest::of(b"abc").0[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
