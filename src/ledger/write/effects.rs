//! Decides what each message of a batch did, given what the ledger holds. Pure.
//!
//! The order within a partition is the order of effects: an event's first appearance is the one that
//! is stored, a removal takes it back, a later addition sets it back. What is decided here is only
//! written down by `rows`.

use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome, Status};
use crate::model::offset::Offset;
use crate::model::record::{Digest, DigestMap, OccurrenceMap, OccurrenceSet};

/// Which event of which message of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EventAt {
    pub(crate) message: usize,
    pub(crate) event: usize,
}

/// Which event of which message of a log: position id, offset, number.
pub(crate) type Place = (i32, Offset, i32);

/// The event that holds an identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Winner {
    pub(crate) id: i64,
    pub(crate) content: Digest,
    pub(crate) status: Status,
    /// The status that the ledger has.
    pub(crate) stored_status: Status,
    /// The event of this batch that was stored just now; `None` if it was there before.
    pub(crate) brought_by: Option<EventAt>,
    /// Where it was read, if it was there before.
    pub(crate) place: Option<Place>,
}

/// What to decide of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    New,
    /// It has an outcome and keeps it; only what it brought and is lost comes back.
    Told,
    Skipped,
}

/// What the ledger holds of the identities in the batch.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) winners: DigestMap<Winner>,
    /// Conflicting occurrences that are kept already, by identity and content.
    pub(crate) occurrences: OccurrenceMap<Status>,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) message: usize,
    pub(crate) outcome: Outcome,
    pub(crate) event_id: Option<i64>,
}

/// A conflicting event to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewConflict {
    pub(crate) at: EventAt,
    pub(crate) winner_id: i64,
    pub(crate) status: Status,
}

/// Everything the batch does besides inserting events.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) told: Vec<Told>,
    /// Of messages that have an outcome: what it would be, with the event that it should name.
    pub(crate) again: Vec<Told>,
    pub(crate) conflicts: Vec<NewConflict>,
    pub(crate) event_status: Vec<(i64, Status)>,
    pub(crate) conflict_status: Vec<((Digest, Digest), Status)>,
    /// Events that are in the ledger because of this batch.
    pub(crate) events_stored: u64,
    /// Events with another content than their winner's, whether kept now or before.
    pub(crate) conflicting_events: u64,
}

/// Decides. Every identity of an event in `messages` has a winner in `known`.
pub(crate) fn decide(messages: &[Message<'_>], skip: &[bool], known: Known) -> Effects {
    let roles: Vec<Role> = skip.iter().map(|skip| if *skip { Role::Skipped } else { Role::New }).collect();
    decide_each(messages, &roles, &mut OccurrenceSet::default(), known)
}

/// The same, where some messages have an outcome. `touched` are the occurrences, by identity and content,
/// that came back or got another status: every later message sets theirs once more.
pub(crate) fn decide_each(
    messages: &[Message<'_>],
    roles: &[Role],
    touched: &mut OccurrenceSet,
    mut known: Known,
) -> Effects {
    let stored = known.winners.values().filter(|w| w.brought_by.is_some()).count();
    let told = Vec::with_capacity(messages.len());
    let mut effects = Effects { events_stored: stored as u64, told, ..Effects::default() };
    let mut fresh = OccurrenceMap::default();
    let kept_before = known.occurrences.clone();
    for (index, message) in messages.iter().enumerate() {
        let role = roles[index];
        let told = match &message.decoded {
            _ if role == Role::Skipped => continue,
            Decoded::Nothing | Decoded::Rejected(_) if role == Role::Told => continue,
            Decoded::Nothing => Told { message: index, outcome: Outcome::Ignored, event_id: None },
            Decoded::Rejected(_) => Told { message: index, outcome: Outcome::Rejected, event_id: None },
            Decoded::Events(_) => one_message(index, message, role, &mut known, &mut fresh, touched, &mut effects),
        };
        if role == Role::New { effects.told.push(told) } else { effects.again.push(told) }
    }
    let moved = known.winners.values().filter(|winner| winner.status != winner.stored_status);
    effects.event_status = moved.map(|winner| (winner.id, winner.status)).collect();
    effects.conflict_status =
        known.occurrences.into_iter().filter(|(key, status)| kept_before.get(key) != Some(status)).collect();
    effects
}

fn one_message(
    index: usize,
    message: &Message<'_>,
    role: Role,
    known: &mut Known,
    fresh: &mut OccurrenceMap<usize>,
    touched: &mut OccurrenceSet,
    effects: &mut Effects,
) -> Told {
    let Decoded::Events(events) = &message.decoded else { unreachable!("the caller looked") };
    let (mut brought, mut first_winner, mut took_back) = (None, None, false);
    for (no, event) in events.iter().enumerate() {
        let at = EventAt { message: index, event: no };
        let Some(winner) = known.winners.get_mut(&event.identity) else {
            assert!(role == Role::Told, "every identity was inserted or looked up");
            continue;
        };
        first_winner.get_or_insert(winner.id);
        took_back |= event.status == Status::Removed;
        let key = (event.identity, event.content);
        let sets = role == Role::New || touched.contains(&key);
        // (Its event is there and names it, only its outcome was lost: the status is what came after it.)
        let own = winner.place.is_some() && winner.place == place(message, no);
        if own || winner.brought_by == Some(at) {
            if event.status == Status::Confirmed {
                brought.get_or_insert(winner.id);
            }
            if !own {
                winner.status = event.status;
                touched.insert(key);
            }
        } else if winner.content == event.content {
            if sets {
                winner.status = event.status;
                touched.insert(key);
            }
        } else {
            effects.conflicting_events += u64::from(role == Role::New);
            if let Some(status) = known.occurrences.get_mut(&key) {
                if sets {
                    *status = event.status;
                    touched.insert(key);
                }
            } else if let Some(kept) = fresh.get(&key) {
                effects.conflicts[*kept].status = event.status;
            } else {
                fresh.insert(key, effects.conflicts.len());
                touched.insert(key);
                effects.conflicts.push(NewConflict { at, winner_id: winner.id, status: event.status });
            }
        }
    }
    let outcome = match (brought, took_back) {
        (Some(_), _) => Outcome::Stored,
        (None, true) => Outcome::Removed,
        (None, false) => Outcome::Processed,
    };
    Told { message: index, outcome, event_id: brought.or(first_winner) }
}

fn place(message: &Message<'_>, no: usize) -> Option<Place> {
    Some((message.slice.position_id, message.record.offset, i32::try_from(no).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::Slice;
    use crate::model::event::{ContractEvent, EventText, Fields};
    use crate::model::offset::{NextOffset, OffsetRange};
    use crate::model::record::Record;

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
        Slice { position_id: 1, partition: 0, range, records: vec![Record::tombstone(0)], gap: None, reread: false }
    }

    /// Runs messages of one event each; the first of each identity is the one that was inserted,
    /// unless the ledger held it with the content and status given.
    fn run(held: &[(u8, u8, Status)], events: &[ContractEvent<'static>]) -> (Vec<Outcome>, Effects) {
        let slice = slice();
        let messages: Vec<_> = events
            .iter()
            .map(|e| Message {
                slice: &slice,
                record: &slice.records[0],
                decoded: Decoded::Events(vec![e.clone()]),
                payload_digest: None,
            })
            .collect();
        let mut known = Known::default();
        for (identity, content, status) in held {
            let winner = Winner {
                id: 1000 + i64::from(*identity),
                content: digest(*content),
                status: *status,
                stored_status: *status,
                brought_by: None,
                place: None,
            };
            known.winners.insert(digest(*identity), winner);
        }
        for (message, e) in events.iter().enumerate() {
            let at = EventAt { message, event: 0 };
            let new = Winner {
                id: message as i64,
                content: e.content,
                status: e.status,
                stored_status: e.status,
                brought_by: Some(at),
                place: None,
            };
            known.winners.entry(e.identity).or_insert(new);
        }
        let effects = decide(&messages, &vec![false; events.len()], known);
        (effects.told.iter().map(|t| t.outcome).collect(), effects)
    }

    use Outcome::{Processed, Removed as TakenBack, Stored};
    use Status::{Confirmed, Removed};

    #[test]
    fn the_same_event_twice_in_a_batch_is_stored_then_processed() {
        let (outcomes, effects) = run(&[], &[event(1, 1, Confirmed), event(1, 1, Confirmed)]);
        assert_eq!(outcomes, [Stored, Processed]);
        assert_eq!(effects.told[1].event_id, Some(0));
        assert!(effects.conflicts.is_empty());
    }

    #[test]
    fn another_content_is_processed_and_kept_once() {
        let (outcomes, effects) =
            run(&[], &[event(1, 1, Confirmed), event(1, 2, Confirmed), event(1, 2, Confirmed), event(1, 3, Confirmed)]);
        assert_eq!(outcomes, [Stored, Processed, Processed, Processed]);
        let kept: Vec<_> = effects.conflicts.iter().map(|c| c.at.message).collect();
        assert_eq!(kept, [1, 3]);
        assert_eq!(effects.conflicting_events, 3);
    }

    #[test]
    fn a_removal_takes_back_and_a_later_addition_sets_back() {
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed)]);
        assert_eq!(outcomes, [TakenBack]);
        assert_eq!(effects.event_status, [(1001, Removed)]);
        let (outcomes, effects) = run(&[(1, 1, Removed)], &[event(1, 1, Confirmed)]);
        assert_eq!(outcomes, [Processed]);
        assert_eq!(effects.event_status, [(1001, Confirmed)]);
        let (_, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed), event(1, 1, Confirmed)]);
        assert!(effects.event_status.is_empty(), "back where it was");
    }

    #[test]
    fn a_removal_that_matches_nothing_is_kept_as_a_removed_occurrence() {
        let (outcomes, _) = run(&[], &[event(1, 1, Removed)]);
        assert_eq!(outcomes, [TakenBack], "inserted as removed, but it brought no event");
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 2, Removed)]);
        assert_eq!(outcomes, [TakenBack]);
        assert_eq!(effects.conflicts[0].status, Removed);
        assert!(effects.event_status.is_empty(), "the winner is another occurrence");
    }

    #[test]
    fn a_reorganisation_leaves_the_new_block_confirmed_and_the_old_removed() {
        let (outcomes, effects) = run(&[(1, 1, Confirmed)], &[event(1, 1, Removed), event(1, 2, Confirmed)]);
        assert_eq!(outcomes, [TakenBack, Processed]);
        assert_eq!(effects.event_status, [(1001, Removed)]);
        assert_eq!(effects.conflicts[0].status, Confirmed);
    }
}
