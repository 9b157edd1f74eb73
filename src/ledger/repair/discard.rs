//! `gapless dead-letters discard`: an operator gives up dead letters.

use crate::ledger::connect::LedgerStore;
use crate::ledger::decision::Decision;
use crate::ledger::error::LedgerError;
use crate::ledger::read::dead_letters::{Selector, selected};

const DISCARD: &str = selected!(
    "discard_dead_letters",
    "update gapless.rejected_messages t set state = 'discarded' from (select d.position_id, d.\"offset\"",
    " and d.state = 'open') as x where t.position_id = x.position_id and t.\"offset\" = x.\"offset\"
    and t.state = 'open'"
);

impl LedgerStore {
    /// Sets open dead letters to `discarded` and returns their number. Their rows stay.
    pub async fn discard_dead_letters(&self, selector: &Selector, reason: &str) -> Result<u64, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let discarded = session.execute(DISCARD, &selector.params()).await?;
        let (subject, arguments) = (format!("{discarded} dead letters: {selector}"), selector.arguments());
        let verb = "dead-letters discard";
        let decision = Decision { verb, subject: &subject, reason: Some(reason), arguments, rows_changed: discarded };
        decision.record(&session).await?;
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(discarded)
    }
}
