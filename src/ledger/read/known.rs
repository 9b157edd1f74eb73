//! The topics and partitions of the ledger, for the error of a verb that names an unknown one.

use std::fmt;

use tokio_postgres::Row;

use super::consistency::Inspector;
use crate::ledger::error::LedgerError;
use crate::postgres::session::Session;

/// The highest number of topics that are named.
const MAX_TOPICS: i64 = 20;

const KNOWN: &str = "-- known_topics
select s.topic, array_agg(distinct p.partition_id order by p.partition_id)
from gapless.positions p join gapless.sources s on s.id = p.source_id
group by s.topic order by s.topic limit $1";

/// The topics of the ledger, each with its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOverview {
    topics: Vec<(String, Vec<i32>)>,
}

impl LedgerOverview {
    pub(crate) async fn read(session: &Session) -> Result<Self, LedgerError> {
        // One more topic shows that some are not named.
        let limit = MAX_TOPICS + 1;
        let rows = session.query(KNOWN, &[(&limit, tokio_postgres::types::Type::INT8)]).await?;
        let topic = |row: &Row| (row.get(0), row.get(1));
        Ok(Self { topics: rows.iter().map(topic).collect() })
    }
}

impl Inspector {
    pub async fn overview(&self) -> Result<LedgerOverview, LedgerError> {
        LedgerOverview::read(self.session()).await
    }
}

impl fmt::Display for LedgerOverview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.topics.is_empty() {
            return f.write_str("it has no topic yet: start gapless, which reads one, or correct --database-url");
        }
        let shown = usize::try_from(MAX_TOPICS).unwrap_or(usize::MAX);
        let topic = |(topic, partitions): &(String, Vec<i32>)| format!("{topic} (partitions {})", ranges(partitions));
        let topics: Vec<String> = self.topics.iter().take(shown).map(topic).collect();
        let more = if self.topics.len() > shown { " and more" } else { "" };
        write!(f, "it has {}{more}: name one of these, or correct --database-url", topics.join(", "))
    }
}

/// Ascending numbers as `0-3, 7`.
fn ranges(numbers: &[i32]) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let range = |(first, last): &(i32, i32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_the_ledger_are_named_with_ranges_of_partitions() {
        let known = |topics: &[(&str, &[i32])]| LedgerOverview {
            topics: topics.iter().map(|(topic, partitions)| ((*topic).to_owned(), partitions.to_vec())).collect(),
        };
        let text = known(&[("events", &[0, 1, 2, 5]), ("other", &[0])]).to_string();
        assert!(text.starts_with("it has events (partitions 0-2, 5), other (partitions 0): "), "{text}");
        assert!(known(&[]).to_string().contains("start gapless"));
        let many: Vec<(String, Vec<i32>)> = (0..30).map(|n| (format!("t{n}"), vec![0])).collect();
        let text = LedgerOverview { topics: many }.to_string();
        assert!(text.contains("t19") && !text.contains("t20") && text.contains(" and more"), "{text}");
    }
}
