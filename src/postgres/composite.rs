//! Rows as one array of composite values: what a statement takes in one parameter. (With an array a column, of
//! which there would be thirty, a small batch takes the server about a tenth longer.)
//!
//! The format is what `array_recv` and `record_recv` of PostgreSQL read: dimensions, whether there are nulls, the type
//! of the elements, and for the one dimension its length and first index; then each element with its length, as a count
//! of fields, each with its type.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::field::{Field, RowSink};
use super::session::Param;

/// Where the array's length stands.
const COUNT: usize = 12;
/// The type of the rows has another number in each database, and one the server knows from the statement. Since PostgreSQL
/// 14 it insists on the sender's only among its own types (`array_recv`).
const AS_THE_STATEMENT_SAYS: u32 = 0;

#[derive(Debug)]
pub(crate) struct Composites {
    buffer: BytesMut,
    count: i32,
    /// Where the last row begins, with its length.
    last: usize,
}

impl Default for Composites {
    /// No rows, and by that no dimension.
    fn default() -> Self {
        let mut buffer = BytesMut::new();
        buffer.put_i32(0);
        buffer.put_i32(0);
        buffer.put_u32(AS_THE_STATEMENT_SAYS);
        Self { buffer, count: 0, last: 0 }
    }
}

impl Composites {
    pub(crate) fn param(&self) -> Param<'_> {
        (self, Type::UNKNOWN)
    }

    fn set(&mut self, at: usize, n: i32) {
        self.buffer[at..at + size_of::<i32>()].copy_from_slice(&n.to_be_bytes());
    }
}

impl RowSink for Composites {
    fn begin_row(&mut self, fields: i16) {
        if self.count == 0 {
            self.set(0, 1);
            self.buffer.put_i32(0);
            self.buffer.put_i32(1);
        }
        self.count += 1;
        self.set(COUNT, self.count);
        self.last = self.buffer.len();
        self.buffer.put_i32(0);
        self.buffer.put_i32(fields.into());
    }

    fn put<F: Field>(&mut self, field: F) {
        self.buffer.put_u32(F::OID);
        field.put(&mut self.buffer);
        let length = self.buffer.len() - self.last - size_of::<i32>();
        self.set(self.last, i32::try_from(length).expect("PostgreSQL's rows are smaller than 2 GiB"));
    }
}

impl ToSql for Composites {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.buffer);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}
