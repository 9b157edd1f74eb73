//! Rows in PostgreSQL's binary COPY format, encoded straight from the messages into one buffer that is
//! used again.
//!
//! The format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use bytes::{BufMut, Bytes, BytesMut};

use super::field::{Field, RowSink};

/// Signature, no flags, no header extension.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Rows are handed over in pieces of about this size, so that the server works while more is encoded.
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

    /// What is to be handed over before more is encoded.
    pub(crate) fn full_piece(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= COPY_PIECE_BYTES).then(|| {
            let piece = self.buffer.split().freeze();
            // Takes the allocation of earlier pieces back, once they are sent.
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
