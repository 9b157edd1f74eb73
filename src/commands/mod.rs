//! The verbs: one file for each, with its work and its output. Related verbs share a file: [`decide`] has `accept-loss` and
//! `rebase`, [`receipt`] has `receipt` and `conflicts list`, [`dead_letters`] has `list`, `show` and `discard`.
//! `remedy` chooses the remedies of findings and is no verb.

pub mod check;
pub mod dead_letters;
pub mod decide;
pub mod migrate;
pub mod plan;
pub mod receipt;
mod remedy;
pub mod replay;
pub mod status;
pub mod verify;

use std::io::Write;

use serde::Serialize;

use crate::config::Config;
use crate::exit::Failure;
use crate::findings::Finding;
use crate::ledger::connect::{LedgerReader, LedgerStore};
use crate::ledger::start::schema::SchemaState;

/// The ledger for reading. Fails if the database has none of this version.
async fn ledger(config: &Config) -> Result<LedgerReader, Failure> {
    let ledger = LedgerReader::new(&config.database).map_err(Failure::usage)?;
    require_current(&ledger).await?;
    Ok(ledger)
}

/// The ledger for changes. Fails if the database has none of this version, or if the ledger differs from what this
/// version needs: nothing is written into such a ledger.
async fn ledger_to_change(config: &Config) -> Result<LedgerStore, Failure> {
    let store = LedgerStore::new(&config.database).map_err(Failure::usage)?;
    require_current(&store).await?;
    store.require_catalogue().await.map_err(failed)?;
    Ok(store)
}

async fn require_current(ledger: &LedgerReader) -> Result<(), Failure> {
    match ledger.schema_state().await.map_err(failed)? {
        SchemaState::Current => Ok(()),
        SchemaState::Absent => {
            Err(Failure::failed("there is no ledger in this database yet; start gapless or run `gapless migrate`"))
        }
        SchemaState::Older { found, known } => Err(Failure::decide(format!(
            "the ledger's schema is at version {found} and this gapless needs version {known}; run `gapless migrate`, or \
             start the daemon, which migrates"
        ))),
    }
}

/// The failure of a verb, with the text, the remedy and the exit code that `check` has for the same error.
fn failed(error: impl Into<Finding>) -> Failure {
    error.into().into()
}

/// The text of an error after which a verb continues.
fn line(error: impl Into<Finding>) -> String {
    error.into().line()
}

/// Prints lines of data. The reader may close the pipe early (`| head`): that is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn print_json(data: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(data);
    print(&text.map_err(|error| Failure::failed(format!("cannot put the answer into JSON: {error}; this is a bug")))?)
}

/// Rows under a header. Each column is padded to its widest cell.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width =
        |column: usize| rows.iter().map(|r| r[column].chars().count()).chain([header[column].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    std::iter::once(line(&header)).chain(rows.iter().map(|row| line(row))).collect()
}
