//! `gapless receipt`: the outcome of one message, or the events of one transaction. Also `gapless conflicts list`.

use super::{failed, ledger, print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::ledger::read::receipt::{MessageReceipt, Occurrence, OffsetDisposition};

/// The most conflicts that a list shows.
const MAX_SHOWN: i64 = 1_000;

/// The outcome of the message at this offset, in each generation of the topic. Exit 3 if the partition was never read
/// or the message is missing.
pub async fn of_message(config: &Config, partition: i32, offset: i64, format: OutputFormat) -> Result<Exit, Failure> {
    let topic = &config.kafka.topic;
    let receipts = ledger(config).await?.receipt(topic, partition, offset).await.map_err(failed)?;
    if receipts.is_empty() {
        return Err(Failure::decide(format!(
            "partition {partition} of {topic} was never read into this ledger; `gapless status` shows what was"
        )));
    }
    match format {
        OutputFormat::Json => print_json(&receipts)?,
        OutputFormat::Table => print(&receipts.iter().map(text).collect::<Vec<_>>().join("\n"))?,
    }
    match receipts.iter().any(|r| r.fate == OffsetDisposition::Missing) {
        true => Err(Failure::decide(format!(
            "offset {offset} was passed without an outcome and without a proof; see `gapless verify`"
        ))),
        false => Ok(Exit::Done),
    }
}

/// Each stored event and conflict of a transaction, of any topic. Exit 3 if there is none.
pub async fn of_transaction(config: &Config, txn: &str, format: OutputFormat) -> Result<Exit, Failure> {
    let found = ledger(config).await?.occurrences_of(txn).await.map_err(failed)?;
    if found.is_empty() {
        return Err(Failure::decide(format!(
            "no event of transaction {txn} is stored; `gapless status` shows how far the ledger is, `gapless \
             dead-letters list` what could not be read"
        )));
    }
    show(&found, format)
}

/// The events of the topic whose identity belongs to a stored event with other content.
pub async fn conflicts(config: &Config, format: OutputFormat) -> Result<Exit, Failure> {
    let found = ledger(config).await?.conflicts(&config.kafka.topic, MAX_SHOWN).await.map_err(failed)?;
    if found.len() as i64 == MAX_SHOWN {
        eprintln!("gapless: only the first {MAX_SHOWN}; the others are in gapless.event_conflicts");
    }
    show(&found, format)
}

fn show(found: &[Occurrence], format: OutputFormat) -> Result<Exit, Failure> {
    match format {
        OutputFormat::Json => print_json(&found)?,
        OutputFormat::Table => print(&occurrences(found))?,
    }
    Ok(Exit::Done)
}

fn text(receipt: &MessageReceipt) -> String {
    let MessageReceipt { topic, generation, partition, offset, start_offset, next_offset, fate, .. } = receipt;
    let disposition = match fate {
        OffsetDisposition::Message(outcome) => {
            let mut lines = format!("{} at {}", outcome.handling_state, outcome.update_time);
            if let Some(dead) = &outcome.dead_letter {
                lines += &format!("\ndead letter, {}: {}: {}", dead.state, dead.reason, dead.detail);
            }
            if let Some(time) = &outcome.message_time {
                lines += &format!("\nmessage of {time}");
            }
            if let Some(digest) = &outcome.payload_digest {
                lines += &format!("\npayload digest {digest}");
            }
            lines
        }
        OffsetDisposition::Gap { kind, proof } => format!("no message ({kind}): {proof}"),
        OffsetDisposition::NotWritten => format!("not written yet, the position is {next_offset}"),
        OffsetDisposition::BeforeStart => format!("before the ledger's start at {start_offset}"),
        OffsetDisposition::Missing => "MISSING: passed without an outcome and without a proof".to_owned(),
    };
    let head = format!("{topic} [{partition}] offset {offset}, generation {generation}: {disposition}\n");
    match receipt.occurrences.as_slice() {
        [] => head,
        found => head + &occurrences(found),
    }
}

fn occurrences(found: &[Occurrence]) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let message = |o: &Occurrence| match o.event_no {
        0 => format!("{} [{}] {}", o.topic, o.partition, o.offset),
        number => format!("{} [{}] {} event {number}", o.topic, o.partition, o.offset),
    };
    let row = |o: &Occurrence| {
        vec![
            o.kind.clone(),
            o.event_id.to_string(),
            o.txn.clone(),
            o.event_type.clone(),
            or_none(o.block_number.map(|n| n.to_string())),
            or_none(o.log_index.map(|n| n.to_string())),
            o.status.clone(),
            message(o),
        ]
    };
    let header = ["kind", "event_id", "txn", "event_type", "block", "log_index", "status", "message"];
    table(&header, &found.iter().map(row).collect::<Vec<_>>())
}
