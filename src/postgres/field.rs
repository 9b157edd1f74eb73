//! Values in PostgreSQL's binary formats: the length in 32 bits, -1 for null, then the bytes in network order.

use bytes::{BufMut, BytesMut};
use jiff::Timestamp;

use crate::model::event::CaptureTime;
use crate::model::event_numbers::EventNumbers;
use crate::model::record::Digest;

/// PostgreSQL counts microseconds from 2000-01-01.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

pub(crate) trait Field {
    /// The number of its type. PostgreSQL never changes these numbers (`pg_type.dat`).
    const OID: u32;

    fn put(&self, buffer: &mut BytesMut);
}

/// Takes rows, field by field.
pub(crate) trait RowSink {
    /// Begins a row with this number of fields.
    fn begin_row(&mut self, fields: i16);

    fn put<F: Field>(&mut self, field: F);
}

impl Field for i32 {
    const OID: u32 = 23;

    fn put(&self, buffer: &mut BytesMut) {
        buffer.put_i32(4);
        buffer.put_i32(*self);
    }
}

impl Field for i64 {
    const OID: u32 = 20;

    fn put(&self, buffer: &mut BytesMut) {
        buffer.put_i32(8);
        buffer.put_i64(*self);
    }
}

impl Field for Timestamp {
    const OID: u32 = 1184;

    fn put(&self, buffer: &mut BytesMut) {
        (self.as_microsecond() - EPOCH_MICROSECONDS).put(buffer);
    }
}

impl Field for CaptureTime {
    const OID: u32 = Timestamp::OID;

    fn put(&self, buffer: &mut BytesMut) {
        (self.as_microseconds() - EPOCH_MICROSECONDS).put(buffer);
    }
}

impl Field for Digest {
    const OID: u32 = 2950;

    fn put(&self, buffer: &mut BytesMut) {
        self.0.as_slice().put(buffer);
    }
}

impl Field for &[u8] {
    const OID: u32 = 17;

    fn put(&self, buffer: &mut BytesMut) {
        buffer.put_i32(i32::try_from(self.len()).expect("PostgreSQL's fields are smaller than 2 GiB"));
        buffer.put_slice(self);
    }
}

impl Field for &str {
    const OID: u32 = 25;

    fn put(&self, buffer: &mut BytesMut) {
        self.as_bytes().put(buffer);
    }
}

/// As an `int4multirange`: the number of ranges, then each with its length, its flags and both bounds.
impl Field for &EventNumbers {
    const OID: u32 = 4451;

    fn put(&self, buffer: &mut BytesMut) {
        const LOWER_BOUND_IS_INCLUSIVE: u8 = 2;
        const RANGE_BYTES: i32 = 1 + 2 * 8;
        let count = i32::try_from(self.ranges().len()).expect("a message has fewer than 2^31 events");
        buffer.put_i32(4 + count * (4 + RANGE_BYTES));
        buffer.put_i32(count);
        for range in self.ranges() {
            buffer.put_i32(RANGE_BYTES);
            buffer.put_u8(LOWER_BOUND_IS_INCLUSIVE);
            range.start.put(buffer);
            range.end.put(buffer);
        }
    }
}

impl<F: Field> Field for Option<F> {
    const OID: u32 = F::OID;

    fn put(&self, buffer: &mut BytesMut) {
        match self {
            Some(field) => field.put(buffer),
            None => buffer.put_i32(-1),
        }
    }
}
