//! One Kafka record, owned and free of any Kafka library's types, and the digests taken of it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use sha2::{Digest as _, Sha256};

use crate::model::offset::Offset;

/// The first 16 bytes of a SHA-256: long enough that no two texts meet by chance, short enough to
/// be a key. Stored as PostgreSQL `uuid`, the fixed-size 16-byte type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// Keyed by digests, which are hashes already.
pub type DigestMap<V> = HashMap<Digest, V, BuildHasherDefault<DigestHasher>>;
pub type DigestSet = HashSet<Digest, BuildHasherDefault<DigestHasher>>;

/// Keyed by occurrences of events: identity and content digest.
pub type OccurrenceMap<V> = HashMap<(Digest, Digest), V, BuildHasherDefault<DigestHasher>>;
pub type OccurrenceSet = HashSet<(Digest, Digest), BuildHasherDefault<DigestHasher>>;

/// Takes the first half of each digest as it is.
#[derive(Debug, Default, Clone, Copy)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed by it");
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

/// Takes a digest of several parts so that no two different lists of parts give the same bytes.
pub struct Digester {
    hash: Sha256,
    /// What is not hashed yet: many small parts cost less in one go.
    waiting: Vec<u8>,
}

impl Digester {
    const WAITING: usize = 1024;

    /// Adds one part; an absent part differs from an empty one.
    pub fn part(&mut self, part: Option<&[u8]>) -> &mut Self {
        self.add(part, |_| ())
    }

    /// The same with ASCII letters in lower case, as hex digits are compared.
    pub fn lower_case(&mut self, part: Option<&str>) -> &mut Self {
        self.add(part.map(str::as_bytes), <[u8]>::make_ascii_lowercase)
    }

    fn add(&mut self, part: Option<&[u8]>, change: impl Fn(&mut [u8])) -> &mut Self {
        let Some(bytes) = part else {
            self.waiting.push(0);
            return self;
        };
        self.waiting.push(1);
        self.waiting.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        for piece in bytes.chunks(Self::WAITING) {
            if self.waiting.len() + piece.len() > Self::WAITING {
                self.hash.update(&self.waiting);
                self.waiting.clear();
            }
            let at = self.waiting.len();
            self.waiting.extend_from_slice(piece);
            change(&mut self.waiting[at..]);
        }
        self
    }

    pub fn finish(&mut self) -> Digest {
        self.hash.update(&self.waiting);
        self.waiting.clear();
        Digest::cut(self.hash.finalize_reset())
    }
}

impl Default for Digester {
    fn default() -> Self {
        Self { hash: Sha256::new(), waiting: Vec::with_capacity(Self::WAITING) }
    }
}

/// A text with its ASCII letters in lower case; itself where it has no others.
pub fn lower_case(text: &str) -> Cow<'_, str> {
    // To the end in any case: that the compiler makes wide instructions of.
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

    /// Its bytes as two numbers, each as good as random.
    pub fn halves(self) -> (u64, u64) {
        let bits = u128::from_be_bytes(self.0);
        ((bits >> 64) as u64, bits as u64)
    }

    /// The plain digest of some bytes: in SQL, `substring(sha256(payload) for 16)`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::cut(Sha256::digest(bytes))
    }
}

/// Which assignment of a partition a record came from. Records of an earlier assignment are dropped
/// without any effect: the partition was read again from somewhere else since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AssignmentEpoch(pub u64);

/// A header as the producer wrote it: neither name nor value need be text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// One Kafka record.
#[derive(Debug, Clone)]
pub struct Record {
    pub partition: i32,
    pub offset: Offset,
    pub epoch: AssignmentEpoch,
    /// Milliseconds since 1970, as the producer or broker set it; `None` where the record has none.
    pub timestamp_ms: Option<i64>,
    pub leader_epoch: Option<i32>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone, which is not the same as an empty value.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

impl Record {
    /// Bytes this record holds in memory, near enough to keep the byte budget honest.
    pub fn footprint(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|h| h.name.len() + h.value.as_ref().map_or(0, Vec::len) + 48).sum();
        size_of::<Self>() + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + headers
    }

    /// Digest of the value, `None` for a tombstone.
    pub fn payload_digest(&self) -> Option<Digest> {
        self.value.as_deref().map(Digest::of)
    }

    /// Digest of timestamp, key, headers and value. A monitor that publishes the same blocks to a
    /// re-created topic writes equal values; the timestamps tell the two lives apart.
    pub fn anchor_digest(&self) -> Digest {
        let mut digester = Digester::default();
        digester.part(self.timestamp_ms.map(i64::to_be_bytes).as_ref().map(|b| b.as_slice())).part(self.key.as_deref());
        for header in &self.headers {
            digester.part(Some(&header.name)).part(header.value.as_deref());
        }
        digester.part(self.value.as_deref()).finish()
    }
}

/// The last stored message of a partition: its log is the one we know if this message is still there.
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
    /// A tombstone of partition 0 at that offset, for tests of what looks at little else.
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
    fn moving_a_byte_from_one_part_to_the_next_changes_the_digest() {
        let digest = |a: &[u8], b: &[u8]| Digester::default().part(Some(a)).part(Some(b)).finish();
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }

    #[test]
    fn an_absent_part_differs_from_an_empty_one() {
        assert_ne!(Digester::default().part(None).finish(), Digester::default().part(Some(b"")).finish());
    }

    #[test]
    fn a_part_longer_than_what_waits_is_hashed_whole() {
        for length in [1000, 1015, 1016, 1024, 5000] {
            let text = "Ab".repeat(length);
            let mut plain = vec![1];
            plain.extend_from_slice(&(text.len() as u64).to_be_bytes());
            plain.extend_from_slice(text.to_ascii_lowercase().as_bytes());
            assert_eq!(Digester::default().lower_case(Some(&text)).finish(), Digest::of(&plain), "{length}");
        }
    }

    #[test]
    fn the_payload_digest_is_the_head_of_the_plain_sha256() {
        assert_eq!(Digest::of(b"abc").0[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
