//! Which rows PostgreSQL refuses: found by halving, in a transaction that the next attempt rolls back.

use std::future::Future;

use super::connection::WriterConnection;
use super::effects::{EventAt, NewConflict};
use super::event_rows;
use super::writer::Failed;
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::error_class::Class;
use crate::model::event::{Reason, Rejection};

/// What is inserted, one row each, and came from a message.
pub(crate) trait Insert: Copy + Send + Sync {
    fn message(&self) -> usize;

    fn insert(
        connection: &mut WriterConnection,
        messages: &[Message<'_>],
        rows: &[Self],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

impl Insert for EventAt {
    fn message(&self) -> usize {
        self.message
    }

    async fn insert(
        connection: &mut WriterConnection,
        messages: &[Message<'_>],
        rows: &[Self],
    ) -> Result<(), LedgerError> {
        let ids = connection.allocate_ids(rows.len()).await?;
        event_rows::insert_events(&connection.session, messages, rows, &ids).await.map(drop)
    }
}

impl Insert for NewConflict {
    fn message(&self) -> usize {
        self.at.message
    }

    async fn insert(
        connection: &mut WriterConnection,
        messages: &[Message<'_>],
        rows: &[Self],
    ) -> Result<(), LedgerError> {
        event_rows::insert_conflicts(&connection.session, messages, rows).await
    }
}

/// The messages that PostgreSQL refuses of rows that it refused together; the batch is then written
/// without them, from the start.
pub(crate) async fn isolate<T: Insert>(
    connection: &mut WriterConnection,
    cause: LedgerError,
    messages: &[Message<'_>],
    rows: &[T],
) -> Failed {
    match refused_rows(connection, messages, rows).await {
        // Not refused again: whatever it was, it is not one row's fault.
        Ok(refused) if refused.is_empty() => cause.into(),
        Ok(refused) => Failed::Refused(refused),
        Err(error) => error.into(),
    }
}

async fn refused_rows<T: Insert>(
    connection: &mut WriterConnection,
    messages: &[Message<'_>],
    rows: &[T],
) -> Result<Vec<(usize, Rejection)>, LedgerError> {
    // Anew in the same message, and left open for the next attempt: a batch keeps its connection.
    connection.session.begin().await?;
    let mut refused = Vec::new();
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        connection.session.savepoint().await?;
        let result = T::insert(connection, messages, part).await;
        connection.session.rollback_to_savepoint().await?;
        match result {
            Err(error) if error.class() == Class::Data => match part {
                [row] => refused.push((row.message(), Rejection::new(Reason::RefusedByPostgres, error.to_string()))),
                _ => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
            },
            result => result?,
        }
    }
    Ok(refused)
}
