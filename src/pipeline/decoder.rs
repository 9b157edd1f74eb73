//! The stage between buffer and ledger: it decodes the messages of a batch.

use std::sync::Arc;

use crate::formats::{Format, decode_within};
use crate::model::batch::Batch;
use crate::model::decoded_batch::DecodedBatch;

/// A batch with fewer messages and bytes is decoded on the current thread, because a change of thread takes longer.
const DECODED_IN_PLACE: usize = 64;
const DECODED_IN_PLACE_BYTES: usize = 128 * 1024;

/// Decodes batches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Decoder {
    format: Arc<Format>,
}

impl Decoder {
    pub(super) fn new(format: Format) -> Self {
        Self { format: Arc::new(format) }
    }

    /// Decodes every message. Other tasks run meanwhile. A format that asks a server may wait here.
    ///
    /// An error if the messages have more than `max_rows` rows together: the number of the first messages that do not.
    #[expect(clippy::unused_async, reason = "a format that asks a schema registry waits for it here")]
    pub(super) async fn decode<'a>(&self, batch: &'a Batch, max_rows: usize) -> Result<DecodedBatch<'a>, usize> {
        let decode = || decode_within(&self.format, batch, max_rows);
        if is_small(batch) { decode() } else { tokio::task::block_in_place(decode) }
    }
}

fn is_small(batch: &Batch) -> bool {
    let values = || batch.slices().iter().flat_map(|slice| &slice.records).filter_map(|record| record.value.as_ref());
    batch.message_count() < DECODED_IN_PLACE && values().map(Vec::len).sum::<usize>() < DECODED_IN_PLACE_BYTES
}
