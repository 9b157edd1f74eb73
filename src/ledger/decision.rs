//! A row of `gapless.decisions`: each verb that changes something inserts one, in the transaction that carries it out.

use serde_json::Value;
use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::postgres::session::Session;

const DECIDED: &str = "-- decided
insert into gapless.decisions (verb, subject, reason, db_role, os_user, arguments, rows_changed, program_version)
values ($1, $2, $3, session_user::text, $4, $5::text::jsonb, $6, $7)";

/// An operator's decision, as recorded in `gapless.decisions`.
pub(crate) struct Decision<'a> {
    pub(crate) verb: &'static str,
    pub(crate) subject: &'a str,
    /// `None` if the verb requires no reason and none was given.
    pub(crate) reason: Option<&'a str>,
    /// The arguments of the verb, as a JSON object.
    pub(crate) arguments: Value,
    pub(crate) rows_changed: u64,
}

impl Decision<'_> {
    /// Records the decision in the transaction that carries it out.
    pub(crate) async fn record(&self, session: &Session) -> Result<(), LedgerError> {
        let (os_user, arguments) = (whoami::username().ok(), self.arguments.to_string());
        let rows_changed = i64::try_from(self.rows_changed).unwrap_or(i64::MAX);
        let params = [
            (&self.verb as _, Type::TEXT),
            (&self.subject as _, Type::TEXT),
            (&self.reason as _, Type::TEXT),
            (&os_user as _, Type::TEXT),
            (&arguments as _, Type::TEXT),
            (&rows_changed as _, Type::INT8),
            (&env!("CARGO_PKG_VERSION") as _, Type::TEXT),
        ];
        Ok(session.write(DECIDED, &params, 1).await?)
    }
}
