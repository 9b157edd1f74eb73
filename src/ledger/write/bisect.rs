//! Finds the rows that PostgreSQL refuses, by bisection, in a transaction that the next attempt rolls back.

use std::future::Future;

use super::connection::WriterConnection;
use super::effects::{EventAt, NewConflict};
use super::event_paths::rejection;
use super::event_rows;
use super::writer::Failed;
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::error_class::Class;
use crate::model::event::{Reason, Rejection};

/// A row that is inserted and belongs to a message.
pub(crate) trait Insert: Copy + Send + Sync {
    /// The event of the row.
    fn at(&self) -> EventAt;

    fn insert(
        connection: &mut WriterConnection,
        messages: &[Message<'_>],
        rows: &[Self],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

impl Insert for EventAt {
    fn at(&self) -> EventAt {
        *self
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
    fn at(&self) -> EventAt {
        self.at
    }

    async fn insert(
        connection: &mut WriterConnection,
        messages: &[Message<'_>],
        rows: &[Self],
    ) -> Result<(), LedgerError> {
        event_rows::insert_conflicts(&connection.session, messages, rows).await
    }
}

/// Finds the messages whose rows PostgreSQL refuses, after it refused `rows` together. The batch then begins again
/// without these messages.
pub(crate) async fn isolate<T: Insert>(
    connection: &mut WriterConnection,
    cause: LedgerError,
    messages: &[Message<'_>],
    rows: &[T],
) -> Failed {
    match refused_rows(connection, messages, rows).await {
        // No row is refused on its own, so the cause is not a row.
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
    // One round trip rolls the failed transaction back and begins a new one. That one stays open for the next attempt,
    // because a batch keeps its connection.
    connection.session.begin().await?;
    let mut refused = Vec::new();
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        connection.session.savepoint().await?;
        let result = T::insert(connection, messages, part).await;
        connection.session.rollback_to_savepoint().await?;
        match result {
            Err(error) if error.class() == Class::Data => match part {
                [row] => {
                    let (at, reason) = (row.at(), Reason::RefusedByPostgres);
                    refused.push((at.message, rejection(messages, at, reason, &error.to_string())));
                }
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
