//! `gapless accept-loss` and `gapless rebase`: the operator's decisions, each with its reason.

use super::{failed, print};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::position::{NextOffset, OffsetRange};
use crate::source::observer::Observer;
use crate::store::{DecisionError, Store};

pub async fn accept_loss(config: &Config, partition: i32, from: i64, to: i64, reason: &str) -> Result<Exit, Failure> {
    let range = NextOffset::new(from).zip(NextOffset::new(to)).and_then(|(from, to)| OffsetRange::new(from, to));
    let range = range.ok_or_else(|| Failure::usage(format!("[{from}, {to}) is no range: FROM must lie below TO")))?;
    // Only what Kafka no longer has can be lost.
    let survey = Observer::new(&config.kafka).map_err(failed)?.survey().await.map_err(failed)?;
    let marks = survey.partitions.get(&partition).ok_or_else(|| Failure::usage("Kafka has no such partition"))?;
    if range.to() > marks.log_start {
        let (log_start, log_end) = (marks.log_start, marks.log_end);
        return Err(Failure::decide(format!(
            "the log begins at {log_start} and ends at {log_end}: of {range} only what lies below {log_start} is lost; \
             to leave out what Kafka has, start with --offset and --allow-skip"
        )));
    }
    let store = Store::new(&config.database).map_err(Failure::usage)?;
    store.accept_loss(&config.kafka.topic, &survey.life, partition, range, reason).await.map_err(not_decided)?;
    print(&format!("{range} is recorded as lost; the partition goes on at {}", range.to()))?;
    Ok(Exit::Done)
}

pub async fn rebase(config: &Config, reason: &str) -> Result<Exit, Failure> {
    let survey = Observer::new(&config.kafka).map_err(failed)?.survey().await.map_err(failed)?;
    let store = Store::new(&config.database).map_err(Failure::usage)?;
    let generation = store.rebase(&config.kafka.topic, &survey.life, reason).await.map_err(not_decided)?;
    print(&format!("generation {generation} begins: restart the daemon, it reads the new topic from its beginning"))?;
    Ok(Exit::Done)
}

fn not_decided(error: DecisionError) -> Failure {
    match error {
        DecisionError::Store(error) => failed(error),
        DecisionError::NoPartition { .. } | DecisionError::NeverRead(_) => Failure::usage(error),
        DecisionError::NotAtPosition { .. } | DecisionError::SameLife { .. } | DecisionError::OtherLife(_) => {
            Failure::decide(error)
        }
    }
}
