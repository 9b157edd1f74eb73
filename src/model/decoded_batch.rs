//! A batch with its decoded messages: the input of the ledger.

use super::batch::Slice;
use super::event::Decoded;
use super::record::{Digest, Record};

/// One decoded message of a batch.
#[derive(Debug)]
pub struct Message<'a> {
    pub slice: &'a Slice,
    pub record: &'a Record,
    pub decoded: Decoded<'a>,
    /// The digest of the record's value; `None` for a tombstone.
    pub payload_digest: Option<Digest>,
}

/// The slices of a batch with their messages, in offset order within each partition.
#[derive(Debug)]
pub struct DecodedBatch<'a> {
    pub slices: &'a [Slice],
    pub messages: Vec<Message<'a>>,
}
