//! `gapless dead-letters list|show|discard`: rejected messages, their bytes, and the decision to give them up.

use super::{failed, ledger, ledger_to_change, print, print_json, table};
use crate::cli::OutputFormat;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::ledger::read::dead_letters::{DeadLetter, DeadLetterContent, Selector};

/// The most dead letters that a list shows.
const MAX_SHOWN: i64 = 1_000;

pub async fn list(config: &Config, selector: &Selector, format: OutputFormat) -> Result<Exit, Failure> {
    let store = ledger(config).await?;
    let dead_letters = store.dead_letters(selector, MAX_SHOWN).await.map_err(failed)?;
    match format {
        OutputFormat::Json => print_json(&dead_letters)?,
        OutputFormat::Table => {
            let row = |l: &DeadLetter| {
                let (generation, partition, offset) =
                    (l.generation.to_string(), l.partition.to_string(), l.offset.to_string());
                vec![
                    generation,
                    partition,
                    offset,
                    l.state.clone(),
                    l.reason.clone(),
                    l.bytes.to_string(),
                    l.detail.clone(),
                ]
            };
            let header = ["generation", "partition", "offset", "state", "reason", "bytes", "detail"];
            print(&table(&header, &dead_letters.iter().map(row).collect::<Vec<_>>()))?;
        }
    }
    if dead_letters.len() as i64 == MAX_SHOWN {
        eprintln!("gapless: only the first {MAX_SHOWN}; narrow with --rejected-for, --id, --since or --until");
    }
    Ok(Exit::Done)
}

pub async fn show(config: &Config, selector: &Selector) -> Result<Exit, Failure> {
    let store = ledger(config).await?;
    let found = store.dead_letter_contents(selector).await.map_err(failed)?;
    if found.is_empty() {
        return Err(Failure::failed("there is no such dead letter"));
    }
    for DeadLetterContent { letter, key, payload, headers } in &found {
        let DeadLetter {
            partition, offset, generation, reason, detail, attempts, first_seen, last_seen, state, ..
        } = letter;
        print(&format!(
            "partition {partition} offset {offset} (generation {generation})\n{state}, {attempts} attempts, first {first_seen}, last {last_seen}\n{reason}: {detail}\nheaders: {headers}\nkey: {}\npayload:\n{}",
            key.as_deref().map_or("null".to_owned(), readable),
            payload.as_deref().map_or("null".to_owned(), readable),
        ))?;
    }
    Ok(Exit::Done)
}

pub async fn discard(config: &Config, selector: &Selector, reason: &str) -> Result<Exit, Failure> {
    let store = ledger_to_change(config).await?;
    let discarded = store.discard_dead_letters(selector, reason).await.map_err(failed)?;
    print(&format!("{discarded} dead letters discarded; their bytes are kept"))?;
    Ok(Exit::Done)
}

/// Text as it is, with control characters escaped; other bytes as a hexdump.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
        }
        Err(_) => hexdump(bytes),
    }
}

fn hexdump(bytes: &[u8]) -> String {
    let line = |(at, chunk): (usize, &[u8])| {
        let hex: Vec<String> = chunk.iter().map(|b| format!("{b:02x}")).collect();
        let text: String = chunk.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
        format!("{:08x}  {:<47}  {text}\n", at * 16, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_without_control_characters_and_bytes_as_hex() {
        assert_eq!(readable(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(readable(b"\xffA"), format!("00000000  {:<47}  .A\n", "ff 41"));
    }
}
