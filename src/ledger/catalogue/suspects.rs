//! Objects that users added and that may be the cause of a failure. The error names them, so that the operator need not
//! search for them.

use super::{Kind, actual, compare, expected};
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::postgres::connector::Access;

impl LedgerStore {
    /// The users' triggers, rules and policies that may have raised this error or suppressed rows. Without an error:
    /// those that may have kept positions from moving. `None` for any other error, or if the catalogue cannot be read
    /// now.
    pub async fn suspects(&self, error: Option<&LedgerError>) -> Option<String> {
        let function = error.and_then(LedgerError::foreign_function);
        if function.is_none() && error.is_some_and(|error| !error.lacks_rows()) {
            return None;
        }
        let added = self.added(function).await.ok()?;
        (!added.is_empty()).then(|| added.join(", "))
    }

    /// The users' triggers, rules and policies on gapless's tables. With a function: only the triggers that execute it.
    async fn added(&self, function: Option<&str>) -> Result<Vec<String>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_looking(Access::Read).await?;
        let mut actual = actual::read(&session).await?;
        session.rollback().await?;
        actual.retain(|key, properties| match key.kind {
            Kind::Trigger => function.is_none_or(|name| {
                let executes = properties.get("function").and_then(|f| f.split('(').next()).unwrap_or_default();
                executes == name || executes.rsplit('.').next() == Some(name)
            }),
            Kind::Rule | Kind::Policy | Kind::RowSecurity => function.is_none(),
            _ => false,
        });
        Ok(compare::additions(expected::catalogue(), &actual))
    }
}
