//! What was sent and what must become of it, kept beside the program and compared with what it did.

use std::collections::{BTreeMap, BTreeSet};

use super::database::{Database, Place};
use super::topic::Transactions;
use super::{Event, Record, Topic};

/// The account of one topic that a test keeps itself.
pub(crate) struct Ledger<'topic> {
    topic: &'topic Topic,
    outcomes: BTreeMap<Place, &'static str>,
    identities: BTreeSet<(String, String)>,
    next: u64,
}

impl<'topic> Ledger<'topic> {
    pub(crate) fn of(topic: &'topic Topic) -> Self {
        Self { topic, outcomes: BTreeMap::new(), identities: BTreeSet::new(), next: 0 }
    }

    /// A new event that no other test and no other call has; not yet sent.
    pub(crate) fn event(&mut self) -> Event {
        self.next += 1;
        Event::numbered(17, self.next)
    }

    /// Sends so many new events to a partition; each must be stored. Returns their offsets.
    pub(crate) fn send_events(&mut self, partition: i32, count: usize) -> Vec<i64> {
        let events: Vec<Event> = (0..count).map(|_| self.event()).collect();
        self.send_new(partition, &events)
    }

    /// Commits one new event to partition 0 in a transaction of its own; it must be stored.
    pub(crate) fn commit_event(&mut self, transactions: &Transactions<'_>) {
        let event = self.event();
        let offsets = transactions.commit([&event]);
        self.expect_stored(0, &offsets, &[event]);
    }

    /// The same as [`Self::send_events`] for events that the test has a hand in.
    pub(crate) fn send_new(&mut self, partition: i32, events: &[Event]) -> Vec<i64> {
        let offsets = self.topic.send_to(partition, events);
        self.expect_stored(partition, &offsets, events);
        offsets
    }

    /// Sends one record to partition 0 that must come to this end without bringing an event.
    pub(crate) fn send(&mut self, record: impl Into<Record>, outcome: &'static str) -> i64 {
        let record = record.into();
        let partition = record.partition;
        let offset = self.topic.send_records([record])[0];
        self.expect(partition, [offset], outcome);
        offset
    }

    /// Events that were sent by other means and must be stored.
    pub(crate) fn expect_stored(&mut self, partition: i32, offsets: &[i64], events: &[Event]) {
        assert_eq!(offsets.len(), events.len(), "one offset for each event");
        self.expect(partition, offsets.iter().copied(), "stored");
        self.identities.extend(events.iter().map(identity));
    }

    pub(crate) fn expect(&mut self, partition: i32, offsets: impl IntoIterator<Item = i64>, outcome: &'static str) {
        for offset in offsets {
            self.outcomes.insert((partition, offset), outcome);
        }
    }

    /// So many messages must have an outcome.
    pub(crate) fn len(&self) -> i64 {
        self.outcomes.len() as i64
    }

    /// Every message has the outcome it must have, no other offset has one, `events` holds exactly what it must,
    /// and the accounting is right.
    #[track_caller]
    pub(crate) fn assert_matches(&self, database: &Database) {
        database.assert_accounting();
        let found = database.outcomes();
        let wrong: Vec<String> = self
            .outcomes
            .keys()
            .chain(found.keys())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|place| self.outcomes.get(place).copied() != found.get(place).map(String::as_str))
            .map(|place| format!("{place:?}: expected {:?}, found {:?}", self.outcomes.get(place), found.get(place)))
            .take(20)
            .collect();
        assert!(wrong.is_empty(), "outcomes by (partition, offset):\n{}", wrong.join("\n"));
        let found = database.identities();
        let missing: Vec<_> = self.identities.difference(&found).take(5).collect();
        let invented: Vec<_> = found.difference(&self.identities).take(5).collect();
        assert!(missing.is_empty() && invented.is_empty(), "events missing: {missing:?}; never sent: {invented:?}");
    }

    /// As `assert_matches`, and every partition is read to the end of its log.
    #[track_caller]
    pub(crate) fn assert_complete(&self, database: &Database) {
        self.assert_matches(database);
        for (partition, (_, next)) in database.positions() {
            assert_eq!(next, self.topic.log_end(partition), "position of partition {partition} at the end of its log");
        }
    }
}

fn identity(event: &Event) -> (String, String) {
    (event.txn().to_owned(), event.name.clone().unwrap_or_else(|| event.topics[0].clone()))
}
