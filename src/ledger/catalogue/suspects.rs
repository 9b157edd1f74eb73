//! What users added and may be the cause of a failure: named in the error, so that nobody has to look for it.

use super::{Kind, actual, compare, expected};
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::postgres::connector::Access;

impl LedgerStore {
    /// Triggers, rules and policies of users that may have raised this error, swallowed rows or, without an error, kept
    /// positions from moving; nothing where it is neither, or cannot be found out now.
    pub async fn suspects(&self, error: Option<&LedgerError>) -> Option<String> {
        let function = error.and_then(LedgerError::foreign_function);
        if function.is_none() && error.is_some_and(|error| !error.lacks_rows()) {
            return None;
        }
        let added = self.added(function).await.ok()?;
        (!added.is_empty()).then(|| added.join(", "))
    }

    /// What users added to our tables that runs with our statements: of a function, the triggers that execute it.
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
