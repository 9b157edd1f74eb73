//! Decides the effects of each message of a batch, given the existing events of the ledger. Pure.
//!
//! The order of messages within a partition is the order of their effects: the first appearance of an event is stored,
//! a removal sets its status to `removed`, and a later addition sets it back. `event_rows` and `outcome_rows` write the
//! effects.

use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome, Status};
use crate::model::event_numbers::{EventNumbers, InsertedEvents};
use crate::model::offset::Offset;
use crate::model::record::{Digest, DigestMap, OccurrenceMap, OccurrenceSet};

/// An event of the batch: the index of its message, and its index within the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EventAt {
    pub(crate) message: usize,
    pub(crate) event: usize,
}

/// An event of a log: position id, offset, and index within the message.
pub(crate) type SourcePosition = (i32, Offset, i32);

/// The event of the ledger that has an identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExistingEvent {
    pub(crate) id: i64,
    pub(crate) content: Digest,
    pub(crate) status: Status,
    /// The status in the ledger.
    pub(crate) stored_status: Status,
    /// The event of this batch that was inserted; `None` if the event existed before.
    pub(crate) inserted_as: Option<EventAt>,
    /// The position of the event in its log, if the event existed before.
    pub(crate) source_position: Option<SourcePosition>,
}

/// How a message takes part in the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    New,
    /// The message has an outcome and keeps it. Only lost events that the message had inserted are restored.
    AlreadyRecorded,
    /// The message has no effects.
    Skipped,
}

/// The ledger's events and conflicts with the identities of the batch.
#[derive(Debug, Default)]
pub(crate) struct ExistingEvents {
    pub(crate) events: DigestMap<ExistingEvent>,
    /// Status of the recorded conflicts, by identity and content digest.
    pub(crate) occurrences: OccurrenceMap<Status>,
}

/// The outcome of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageOutcome {
    pub(crate) message: usize,
    pub(crate) outcome: Outcome,
    pub(crate) event_id: Option<i64>,
    /// The column `inserted`: the events that the message inserted, if the outcome alone does not say it.
    pub(crate) inserted: Option<EventNumbers>,
}

impl MessageOutcome {
    fn without_events(message: usize, outcome: Outcome) -> Self {
        Self { message, outcome, event_id: None, inserted: None }
    }
}

/// A conflicting event to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewConflict {
    pub(crate) at: EventAt,
    pub(crate) existing_id: i64,
    pub(crate) status: Status,
}

/// All effects of the batch except the inserted events.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) outcomes: Vec<MessageOutcome>,
    /// For messages that have an outcome: the outcome that they would get now, with the event that it should reference.
    pub(crate) recomputed: Vec<MessageOutcome>,
    pub(crate) conflicts: Vec<NewConflict>,
    pub(crate) event_status: Vec<(i64, Status)>,
    pub(crate) conflict_status: Vec<((Digest, Digest), Status)>,
    /// The number of rows of the batch's messages: of their events, or one of a message without events.
    pub(crate) rows: u64,
    /// The number of events that this batch inserted.
    pub(crate) events_stored: u64,
    /// The number of identities of the batch whose event existed before.
    pub(crate) events_existing: u64,
    /// The number of events whose content differs from the existing event of their identity, whether their conflict was
    /// recorded now or before.
    pub(crate) conflicting_events: u64,
}

impl Effects {
    /// Whether an outcome must say which events its message inserted. No message with one event needs it, except one that
    /// is `removed`.
    pub(crate) fn record_event_numbers(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.inserted.is_some())
    }
}

/// Decides the effects of new messages. `known` must contain an event for every identity in `messages`.
pub(crate) fn decide(messages: &[Message<'_>], skip: &[bool], known: ExistingEvents) -> Effects {
    let roles: Vec<Role> = skip.iter().map(|skip| if *skip { Role::Skipped } else { Role::New }).collect();
    decide_with_roles(messages, &roles, &mut OccurrenceSet::default(), known)
}

/// Decides the effects of messages of which some have an outcome. `changed` are the occurrences, by identity and
/// content digest, that were restored or got another status: every later message sets their status again.
pub(crate) fn decide_with_roles(
    messages: &[Message<'_>],
    roles: &[Role],
    changed: &mut OccurrenceSet,
    mut known: ExistingEvents,
) -> Effects {
    let stored = known.events.values().filter(|w| w.inserted_as.is_some()).count();
    let mut effects = Effects {
        events_stored: stored as u64,
        events_existing: (known.events.len() - stored) as u64,
        outcomes: Vec::with_capacity(messages.len()),
        ..Effects::default()
    };
    let mut new_conflicts = OccurrenceMap::default();
    let kept_before = known.occurrences.clone();
    for (index, message) in messages.iter().enumerate() {
        let role = roles[index];
        let outcome = match &message.decoded {
            _ if role == Role::Skipped => continue,
            Decoded::Nothing | Decoded::Rejected(_) if role == Role::AlreadyRecorded => continue,
            Decoded::Nothing => MessageOutcome::without_events(index, Outcome::Ignored),
            Decoded::Rejected(_) => MessageOutcome::without_events(index, Outcome::Rejected),
            Decoded::Events(_) => {
                one_message(index, message, role, &mut known, &mut new_conflicts, changed, &mut effects)
            }
        };
        effects.rows += message.decoded.rows() as u64;
        if role == Role::New { effects.outcomes.push(outcome) } else { effects.recomputed.push(outcome) }
    }
    let with_new_status = known.events.values().filter(|existing| existing.status != existing.stored_status);
    effects.event_status = with_new_status.map(|existing| (existing.id, existing.status)).collect();
    effects.conflict_status =
        known.occurrences.into_iter().filter(|(key, status)| kept_before.get(key) != Some(status)).collect();
    effects
}

fn one_message(
    index: usize,
    message: &Message<'_>,
    role: Role,
    known: &mut ExistingEvents,
    new_conflicts: &mut OccurrenceMap<usize>,
    changed: &mut OccurrenceSet,
    effects: &mut Effects,
) -> MessageOutcome {
    let Decoded::Events(events) = &message.decoded else {
        unreachable!("the caller has checked that there are events")
    };
    let (mut first_inserted, mut first_existing, mut has_removal) = (None, None, false);
    let mut inserted = InsertedEvents::default();
    for (no, event) in events.iter().enumerate() {
        let at = EventAt { message: index, event: no };
        let Some(existing) = known.events.get_mut(&event.identity) else {
            assert!(role == Role::AlreadyRecorded, "every identity was inserted or looked up");
            continue;
        };
        first_existing.get_or_insert(existing.id);
        has_removal |= event.status == Status::Removed;
        let key = (event.identity, event.content);
        let sets = role == Role::New || changed.contains(&key);
        // The message's own event exists and only its outcome was lost: later messages have set the status.
        let own = existing.source_position.is_some() && existing.source_position == source_position(message, no);
        if own || existing.inserted_as == Some(at) {
            inserted.add(event_number(no));
            if event.status == Status::Confirmed {
                first_inserted.get_or_insert(existing.id);
            }
            if !own {
                existing.status = event.status;
                changed.insert(key);
            }
        } else if existing.content == event.content {
            if sets {
                existing.status = event.status;
                changed.insert(key);
            }
        } else {
            effects.conflicting_events += u64::from(role == Role::New);
            if let Some(status) = known.occurrences.get_mut(&key) {
                if sets {
                    *status = event.status;
                    changed.insert(key);
                }
            } else if let Some(kept) = new_conflicts.get(&key) {
                effects.conflicts[*kept].status = event.status;
            } else {
                new_conflicts.insert(key, effects.conflicts.len());
                changed.insert(key);
                effects.conflicts.push(NewConflict { at, existing_id: existing.id, status: event.status });
            }
        }
    }
    let outcome = match (first_inserted, has_removal) {
        (Some(_), _) => Outcome::Stored,
        (None, true) => Outcome::Removed,
        (None, false) => Outcome::Processed,
    };
    let event_id = first_inserted.or(first_existing);
    MessageOutcome { message: index, outcome, event_id, inserted: inserted.into_column(outcome) }
}

fn source_position(message: &Message<'_>, no: usize) -> Option<SourcePosition> {
    Some((message.slice.position_id, message.record.offset, event_number(no)))
}

/// The number of an event, as the ledger stores it.
pub(crate) fn event_number(index: usize) -> i32 {
    i32::try_from(index).expect("a message has fewer than 2^31 events")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::Slice;
    use crate::model::event::{ContractEvent, EventText, Fields};
    use crate::model::offset::{NextOffset, OffsetRange};
    use crate::model::record::Record;
    use crate::model::topic::Topic;

    fn digest(n: u8) -> Digest {
        Digest([n; 16])
    }

    fn event(identity: u8, content: u8, status: Status) -> ContractEvent<'static> {
        ContractEvent {
            fields: Fields {
                txn: "0x1".into(),
                event_type: "Won".into(),
                block_number: None,
                block_hash: None,
                log_index: None,
                address: None,
            },
            captured_at: None,
            status,
            text: EventText::Json("{}"),
            identity: digest(identity),
            content: digest(content),
        }
    }

    fn slice() -> Slice {
        let range = OffsetRange::new(NextOffset::new(0).expect("zero"), NextOffset::new(1).expect("one")).expect("one");
        let partition = Topic::from("events").partition(0);
        Slice { position_id: 1, partition, range, records: vec![Record::tombstone(0)], gap: None, reread: false }
    }

    /// Decides messages of one event each.
    fn run(existing: &[(u8, u8, Status)], events: &[ContractEvent<'static>]) -> (Vec<Outcome>, Effects) {
        let messages: Vec<_> = events.iter().map(|event| vec![event.clone()]).collect();
        decide_messages(existing, &messages)
    }

    /// Decides messages with these events. The ledger contains `existing` as (identity, content, status); of any other
    /// identity, the first event of the batch was inserted.
    fn decide_messages(
        existing: &[(u8, u8, Status)],
        events: &[Vec<ContractEvent<'static>>],
    ) -> (Vec<Outcome>, Effects) {
        let slice = slice();
        let messages: Vec<_> = events
            .iter()
            .map(|events| Message {
                slice: &slice,
                record: &slice.records[0],
                decoded: Decoded::Events(events.clone()),
                payload_digest: None,
            })
            .collect();
        let mut known = ExistingEvents::default();
        for (identity, content, status) in existing {
            let event = ExistingEvent {
                id: 1000 + i64::from(*identity),
                content: digest(*content),
                status: *status,
                stored_status: *status,
                inserted_as: None,
                source_position: None,
            };
            known.events.insert(digest(*identity), event);
        }
        let numbered = |(message, events): (usize, &Vec<ContractEvent<'static>>)| {
            let at = move |event| EventAt { message, event };
            events.iter().cloned().enumerate().map(|(event, e)| (at(event), e)).collect::<Vec<_>>()
        };
        for (at, e) in events.iter().enumerate().flat_map(numbered) {
            let new = ExistingEvent {
                id: (100 * at.event + at.message) as i64,
                content: e.content,
                status: e.status,
                stored_status: e.status,
                inserted_as: Some(at),
                source_position: None,
            };
            known.events.entry(e.identity).or_insert(new);
        }
        let effects = decide(&messages, &vec![false; events.len()], known);
        (effects.outcomes.iter().map(|t| t.outcome).collect(), effects)
    }

    use Outcome::{Processed, Removed as RemovedOutcome, Stored};
    use Status::{Confirmed, Removed};

    #[test]
    fn the_same_event_twice_in_a_batch_is_stored_then_processed() {
        let (outcomes, effects) = run(&[], &[event(1, 1, Confirmed), event(1, 1, Confirmed)]);
        assert_eq!(outcomes, [Stored, Processed]);
        assert_eq!(effects.outcomes[1].event_id, Some(0));
        assert!(effects.conflicts.is_empty());
    }

    #[test]
    fn an_event_with_other_content_is_processed_and_recorded_once_as_a_conflict() {
        let (outcomes, effects) =
            run(&[], &[event(1, 1, Confirmed), event(1, 2, Confirmed), event(1, 2, Confirmed), event(1, 3, Confirmed)]);
        assert_eq!(outcomes, [Stored, Processed, Processed, Processed]);
        let kept: Vec<_> = effects.conflicts.iter().map(|c| c.at.message).collect();
        assert_eq!(kept, [1, 3]);
        assert_eq!(effects.conflicting_events, 3);
    }

    #[test]
    fn a_removal_removes_an_event_and_a_later_addition_confirms_it_again() {
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed)]);
        assert_eq!(outcomes, [RemovedOutcome]);
        assert_eq!(effects.event_status, [(1001, Removed)]);
        let (outcomes, effects) = run(&[(1, 1, Removed)], &[event(1, 1, Confirmed)]);
        assert_eq!(outcomes, [Processed]);
        assert_eq!(effects.event_status, [(1001, Confirmed)]);
        let (_, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed), event(1, 1, Confirmed)]);
        assert!(effects.event_status.is_empty(), "the status is the stored one");
    }

    #[test]
    fn a_removal_without_a_matching_occurrence_is_recorded_as_a_removed_occurrence() {
        let (outcomes, _) = run(&[], &[event(1, 1, Removed)]);
        assert_eq!(outcomes, [RemovedOutcome], "the event was inserted as removed, so the message is not `stored`");
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 2, Removed)]);
        assert_eq!(outcomes, [RemovedOutcome]);
        assert_eq!(effects.conflicts[0].status, Removed);
        assert!(effects.event_status.is_empty(), "the existing event is another occurrence");
    }

    #[test]
    fn a_reorganisation_leaves_the_new_block_confirmed_and_the_old_removed() {
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed), event(1, 2, Confirmed)]);
        assert_eq!(outcomes, [RemovedOutcome, Processed]);
        assert_eq!(effects.event_status, [(1001, Removed)]);
        assert_eq!(effects.conflicts[0].status, Confirmed);
    }

    /// The column `inserted` of each outcome, as text.
    fn inserted(effects: &Effects) -> Vec<Option<String>> {
        effects.outcomes.iter().map(|o| o.inserted.as_ref().map(EventNumbers::to_multirange)).collect()
    }

    #[test]
    fn an_outcome_says_which_of_several_events_its_message_inserted() {
        let (outcomes, effects) = decide_messages(
            &[(9, 9, Confirmed)],
            &[
                vec![event(1, 1, Confirmed), event(2, 2, Confirmed), event(3, 3, Confirmed)],
                vec![event(1, 1, Confirmed), event(4, 4, Confirmed)],
                vec![event(5, 5, Confirmed), event(1, 1, Confirmed)],
                vec![event(9, 9, Confirmed), event(2, 2, Confirmed)],
            ],
        );
        assert_eq!(outcomes, [Stored, Stored, Stored, Processed]);
        assert_eq!(inserted(&effects), [Some("{[0,3)}".to_owned()), Some("{[1,2)}".to_owned()), None, None]);
        let ids: Vec<_> = effects.outcomes.iter().map(|o| o.event_id).collect();
        assert_eq!(ids, [Some(0), Some(101), Some(2), Some(1009)]);
        assert_eq!((effects.rows, effects.events_stored, effects.events_existing), (9, 5, 1));
    }

    #[test]
    fn a_conflict_and_a_repetition_within_one_message_insert_one_event() {
        let events =
            vec![event(1, 1, Confirmed), event(1, 2, Confirmed), event(1, 1, Confirmed), event(2, 2, Confirmed)];
        let (outcomes, effects) = decide_messages(&[], &[events]);
        assert_eq!((outcomes, inserted(&effects)), (vec![Stored], vec![Some("{[0,1),[3,4)}".to_owned())]));
        let kept: Vec<_> = effects.conflicts.iter().map(|c| (c.at.event, c.existing_id)).collect();
        assert_eq!(kept, [(1, 0)]);
        assert_eq!((effects.events_stored, effects.conflicting_events), (2, 1));
    }

    #[test]
    fn a_removal_beside_a_new_event_in_one_message_takes_effect() {
        let (outcomes, effects) =
            decide_messages(&[(1, 1, Confirmed)], &[vec![event(1, 1, Removed), event(2, 2, Confirmed)]]);
        assert_eq!((outcomes, inserted(&effects)), (vec![Stored], vec![Some("{[1,2)}".to_owned())]));
        assert_eq!(effects.event_status, [(1001, Removed)]);
        // The order within the message is the order of effects.
        let (outcomes, effects) =
            decide_messages(&[(1, 1, Confirmed)], &[vec![event(1, 1, Removed), event(1, 1, Confirmed)]]);
        assert_eq!((outcomes, effects.event_status.len()), (vec![RemovedOutcome], 0));
    }

    #[test]
    fn an_outcome_with_removals_says_which_of_them_were_inserted() {
        let (outcomes, effects) = decide_messages(
            &[(1, 1, Confirmed)],
            &[vec![event(2, 2, Removed)], vec![event(1, 1, Removed)], vec![event(1, 1, Removed), event(3, 3, Removed)]],
        );
        assert_eq!(outcomes, [RemovedOutcome; 3]);
        let expected = ["{[0,1)}", "{}", "{[1,2)}"].map(|text| Some(text.to_owned()));
        assert_eq!(inserted(&effects), expected);
    }
}
