//! Rows in PostgreSQL's binary COPY format, encoded straight from the messages into one buffer that is
//! used again.
//!
//! The format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format". A field is its
//! length as 32 bits, -1 for null, then its bytes in network order.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;

use crate::record::Digest;

/// Signature, no flags, no header extension.
const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// PostgreSQL counts microseconds from 2000-01-01.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
/// Rows are handed over in pieces of about this size, so that the server works while more is encoded.
const PIECE: usize = 128 * 1024;

/// The rows of one COPY.
#[derive(Default)]
pub(super) struct Rows {
    buffer: BytesMut,
}

impl Rows {
    pub(super) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.reserve(2 * PIECE);
        self.buffer.put_slice(HEAD);
    }

    /// Begins a row of that many fields.
    pub(super) fn begin_row(&mut self, fields: i16) {
        self.buffer.put_i16(fields);
    }

    /// What is to be handed over before more is encoded.
    pub(super) fn full_piece(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= PIECE).then(|| {
            let piece = self.buffer.split().freeze();
            // Takes the allocation of earlier pieces back, once they are sent.
            self.buffer.reserve(2 * PIECE);
            piece
        })
    }

    /// The rest, with the end of the data.
    pub(super) fn last_piece(&mut self) -> Bytes {
        self.buffer.put_i16(-1);
        self.buffer.split().freeze()
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.put_i32(i32::try_from(bytes.len()).expect("PostgreSQL's fields are smaller than 2 GiB"));
        self.buffer.put_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn digest(&mut self, digest: Digest) {
        self.bytes(&digest.0);
    }

    pub(super) fn int(&mut self, n: i32) {
        self.buffer.put_i32(4);
        self.buffer.put_i32(n);
    }

    pub(super) fn bigint(&mut self, n: i64) {
        self.buffer.put_i32(8);
        self.buffer.put_i64(n);
    }

    pub(super) fn timestamp(&mut self, at: Timestamp) {
        self.bigint(at.as_microsecond() - EPOCH_MICROSECONDS);
    }

    pub(super) fn optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => put(self, value),
            None => self.buffer.put_i32(-1),
        }
    }
}
