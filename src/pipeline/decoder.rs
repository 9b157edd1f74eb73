//! The stage between buffer and ledger: it decodes the messages of a batch.

use std::sync::Arc;

use crate::formats::{Format, decode_batch};
use crate::model::batch::Batch;
use crate::model::decoded_batch::DecodedBatch;

/// A batch with fewer messages is decoded on the current thread, because a change of thread takes longer.
const DECODED_IN_PLACE: usize = 64;

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
    #[expect(clippy::unused_async, reason = "a format that asks a schema registry waits for it here")]
    pub(super) async fn decode<'a>(&self, batch: &'a Batch) -> DecodedBatch<'a> {
        let decode = || decode_batch(&self.format, batch);
        if batch.message_count() < DECODED_IN_PLACE { decode() } else { tokio::task::block_in_place(decode) }
    }
}
