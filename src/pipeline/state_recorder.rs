//! Writes to the ledger which partitions are not being read, so that it is known while no daemon runs.
//!
//! The loop notes each transition and does not wait; a task writes it, and repeats a failed write. Nothing is written
//! per batch.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::run::Parts;
use crate::ledger::connect::LedgerStore;
use crate::ledger::positions::FencingToken;
use crate::ledger::write::partition_states::RecordedState;
use crate::model::partition_state::PartitionState;
use crate::model::topic::TopicPartition;

/// A shorter suspension is not written: each assignment begins with one.
const DEBOUNCE: Duration = Duration::from_secs(2);
/// How often the current states are confirmed, so that a reader can distinguish them from those of a dead daemon.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// The wait before a failed write is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long the end of a run waits until the last states are written.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// Partitions that are not being read, and since when.
type PendingStates = BTreeMap<TopicPartition, (Instant, PartitionState)>;

/// The loop's handle of the task.
pub(super) struct StateRecorder {
    notes: watch::Sender<PendingStates>,
    task: JoinHandle<()>,
}

impl StateRecorder {
    /// Starts the task with the first state of each partition.
    pub(super) fn start<'a>(
        parts: &Parts,
        partitions: impl Iterator<Item = (&'a TopicPartition, &'a PartitionState)>,
    ) -> Self {
        let now = Instant::now();
        let notes = partitions.map(|(partition, state)| (partition.clone(), (now, state.clone()))).collect();
        let (notes, seen) = watch::channel(notes);
        let store = parts.store.clone();
        let (source_id, token) = (parts.started.source_id, parts.started.token);
        let task = tokio::spawn(StateWriter { store, source_id, token, seen, written: None }.run());
        Self { notes, task }
    }

    /// Notes the current state of a partition.
    pub(super) fn note(&self, partition: &TopicPartition, state: &PartitionState) {
        self.notes.send_if_modified(|notes| match (state, notes.get(partition)) {
            (PartitionState::Reading, None) => false,
            (PartitionState::Reading, Some(_)) => notes.remove(partition).is_some(),
            (state, Some((_, noted))) if noted == state => false,
            // Another reason does not begin a new suspension: its time stays.
            (PartitionState::Troubled(_), Some((since, PartitionState::Troubled(_)))) => {
                let since = *since;
                notes.insert(partition.clone(), (since, state.clone()));
                true
            }
            (state, _) => {
                notes.insert(partition.clone(), (Instant::now(), state.clone()));
                true
            }
        });
    }

    /// Waits until the last states are written, at most [`FINISH_TIMEOUT`].
    pub(super) async fn finish(self) {
        drop(self.notes);
        let _ = tokio::time::timeout(FINISH_TIMEOUT, self.task).await;
    }
}

struct StateWriter {
    store: LedgerStore,
    source_id: i32,
    token: FencingToken,
    seen: watch::Receiver<PendingStates>,
    /// The states that this start wrote last.
    written: Option<Vec<RecordedState>>,
}

impl StateWriter {
    async fn run(mut self) {
        let mut confirmed = Instant::now();
        let mut warned = false;
        loop {
            let (states, settles_in) = due(&self.seen.borrow_and_update(), Instant::now());
            let confirm = confirmed.elapsed() >= REFRESH_INTERVAL;
            let mut wait = settles_in.unwrap_or(REFRESH_INTERVAL).min(REFRESH_INTERVAL);
            // The states of an earlier start stay until this start has decided about each partition.
            let is_decided = self.written.is_some() || settles_in.is_none();
            if is_decided && (confirm || self.written.as_ref() != Some(&states)) {
                match self.store.record_states(self.source_id, self.token, &states).await {
                    Ok(()) => {
                        (self.written, confirmed, warned) = (Some(states), Instant::now(), false);
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(
                                event = "partition_states_not_written",
                                error = %error,
                                remedy = %error.remedy(),
                                "cannot write the states of the partitions into the ledger; `gapless status` may be out of date"
                            );
                        }
                        wait = wait.min(RETRY_INTERVAL);
                    }
                }
            }
            match tokio::time::timeout(wait, self.seen.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return self.write_final_states().await,
            }
        }
    }

    /// Writes the states at the end of a run, if the ledger does not have them already.
    async fn write_final_states(self) {
        let (states, settles_in) = due(&self.seen.borrow(), Instant::now());
        let is_decided = self.written.is_some() || settles_in.is_none();
        if is_decided && self.written.as_ref() != Some(&states) {
            let _ = self.store.record_states(self.source_id, self.token, &states).await;
        }
    }
}

/// The states to write now, and the time until the next suspension has lasted for [`DEBOUNCE`].
fn due(notes: &PendingStates, now: Instant) -> (Vec<RecordedState>, Option<Duration>) {
    let (mut states, mut settles_in) = (Vec::new(), None::<Duration>);
    for (partition, (since, state)) in notes {
        match state {
            PartitionState::Reading => {}
            PartitionState::Troubled(reason) => {
                let rest = DEBOUNCE.saturating_sub(now.duration_since(*since));
                if rest.is_zero() {
                    states.push(RecordedState {
                        partition: partition.partition,
                        state: "suspended",
                        reason: "suspended",
                        detail: reason.clone(),
                        range: None,
                        remedy: "the daemon tries again by itself".to_owned(),
                    });
                } else {
                    settles_in = Some(settles_in.map_or(rest, |least| least.min(rest)));
                }
            }
            PartitionState::Halted(halt) => states.push(RecordedState {
                partition: partition.partition,
                state: "halted",
                reason: halt.reason.name(),
                detail: halt.detail.clone(),
                range: halt.range,
                remedy: halt.remedy(partition),
            }),
        }
    }
    (states, settles_in)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::partition_state::{Halt, HaltReason};
    use crate::model::topic::Topic;

    fn note(state: PartitionState, age: Duration) -> (Vec<RecordedState>, Option<Duration>) {
        let now = Instant::now() + DEBOUNCE * 2;
        due(&PendingStates::from([(Topic::from("events").partition(3), (now - age, state))]), now)
    }

    #[test]
    fn a_halt_is_written_at_once_and_a_suspension_when_it_lasts() {
        let halt = Halt::new(HaltReason::Recreated, None, "another id");
        let (states, _) = note(PartitionState::Halted(halt), Duration::ZERO);
        assert_eq!((states[0].state, states[0].reason), ("halted", "recreated"));
        assert!(states[0].remedy.contains("gapless rebase events"), "{}", states[0].remedy);
        let suspended = PartitionState::Troubled("no leader".into());
        let (states, settles_in) = note(suspended.clone(), DEBOUNCE / 2);
        assert!(states.is_empty() && settles_in == Some(DEBOUNCE / 2));
        let (states, settles_in) = note(suspended, DEBOUNCE);
        assert!(states.len() == 1 && states[0].state == "suspended" && settles_in.is_none());
    }
}
