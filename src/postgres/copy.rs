//! Encodes rows in PostgreSQL's binary COPY format, directly from the messages into one buffer that is used again.
//!
//! The format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use bytes::{BufMut, Bytes, BytesMut};

use super::field::{Field, RowSink};

/// Signature, no flags, no header extension.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Rows are sent in pieces of about this size, so that the server works while more rows are encoded.
const COPY_PIECE_BYTES: usize = 128 * 1024;

/// The rows of one COPY.
#[derive(Default)]
pub(crate) struct Rows {
    buffer: BytesMut,
}

impl Rows {
    pub(crate) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.reserve(2 * COPY_PIECE_BYTES);
        self.buffer.put_slice(COPY_HEADER);
    }

    /// The encoded piece, if it is large enough to be sent before more rows are encoded.
    pub(crate) fn full_piece(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= COPY_PIECE_BYTES).then(|| {
            let piece = self.buffer.split().freeze();
            // Uses the allocation of earlier pieces again, once they are sent.
            self.buffer.reserve(2 * COPY_PIECE_BYTES);
            piece
        })
    }

    /// The rest, with the end of the data.
    pub(crate) fn last_piece(&mut self) -> Bytes {
        self.buffer.put_i16(-1);
        self.buffer.split().freeze()
    }
}

impl RowSink for Rows {
    fn begin_row(&mut self, fields: i16) {
        self.buffer.put_i16(fields);
    }

    fn put<F: Field>(&mut self, field: F) {
        field.put(&mut self.buffer);
    }
}
