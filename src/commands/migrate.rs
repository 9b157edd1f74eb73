//! `gapless migrate`: creates or updates the schema, for a role of its own or a deployment step of its own.

use super::{failed, print};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::ledger::connect::LedgerStore;
use crate::ledger::start::schema::MigrationRequest;

pub async fn run(config: &Config) -> Result<Exit, Failure> {
    let store = LedgerStore::new(&config.database).map_err(Failure::usage)?;
    let applied = store.migrate(MigrationRequest::ByVerb).await.map_err(failed)?;
    store.require_catalogue().await.map_err(failed)?;
    match applied.as_slice() {
        [] => print("the schema is up to date")?,
        names => print(&names.iter().map(|name| format!("applied {name}\n")).collect::<String>())?,
    }
    Ok(Exit::Done)
}
