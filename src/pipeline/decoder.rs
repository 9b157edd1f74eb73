//! The stage between buffer and ledger: what the messages of a batch say.

use std::sync::Arc;

use crate::formats::{Format, decode_batch};
use crate::model::batch::Batch;
use crate::model::decoded_batch::DecodedBatch;

/// Below so many messages, moving to another thread takes longer than decoding.
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

    /// Other tasks go on meanwhile. May wait, for a format that asks a server.
    #[expect(clippy::unused_async, reason = "a format that asks a schema registry waits for it here")]
    pub(super) async fn decode<'a>(&self, batch: &'a Batch) -> DecodedBatch<'a> {
        let decode = || decode_batch(&self.format, batch);
        if batch.message_count() < DECODED_IN_PLACE { decode() } else { tokio::task::block_in_place(decode) }
    }
}
