//! The expected ledger of a topic: the sent messages and their expected outcomes, compared with the database.

use std::collections::{BTreeMap, BTreeSet};

use super::database::{Database, SourcePosition};
use super::topic::Transactions;
use super::{Event, Record, Topic};

/// The messages that a test has sent to one topic, with their expected outcomes.
pub(crate) struct Ledger<'topic> {
    topic: &'topic Topic,
    outcomes: BTreeMap<SourcePosition, &'static str>,
    identities: BTreeSet<(String, String)>,
    next: u64,
}

impl<'topic> Ledger<'topic> {
    pub(crate) fn of(topic: &'topic Topic) -> Self {
        Self { topic, outcomes: BTreeMap::new(), identities: BTreeSet::new(), next: 0 }
    }

    /// A new event, different from that of every other call. It is not sent.
    pub(crate) fn event(&mut self) -> Event {
        self.next += 1;
        Event::numbered(17, self.next)
    }

    /// Sends `count` new events to a partition; each must be stored. Returns their offsets.
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

    /// The same as [`Self::send_events`] for events that the test has made.
    pub(crate) fn send_new(&mut self, partition: i32, events: &[Event]) -> Vec<i64> {
        let offsets = self.topic.send_to(partition, events);
        self.expect_stored(partition, &offsets, events);
        offsets
    }

    /// Sends messages to partition 0, each with its expected outcome. Returns their offsets.
    pub(crate) fn send_all(&mut self, messages: &[(Record, &'static str)]) -> Vec<i64> {
        let offsets = self.topic.send_records(messages.iter().map(|(record, _)| record.clone()));
        for (offset, (_, outcome)) in offsets.iter().zip(messages) {
            self.expect(0, [*offset], outcome);
        }
        offsets
    }

    /// Sends one message for each list of new events. Returns their offsets.
    pub(crate) fn send_lists<L: AsRef<[Event]>>(&mut self, lists: &[L]) -> Vec<i64> {
        lists.iter().for_each(|events| self.expect_events(events.as_ref()));
        let messages: Vec<_> = lists.iter().map(|events| (Record::from(list(events.as_ref())), "stored")).collect();
        self.send_all(&messages)
    }

    /// Registers events that were sent by other means and must be in `events`.
    pub(crate) fn expect_events(&mut self, events: &[Event]) {
        self.identities.extend(events.iter().map(identity));
    }

    /// Sends one record that must have this outcome and insert no event. Returns its offset.
    pub(crate) fn send(&mut self, record: impl Into<Record>, outcome: &'static str) -> i64 {
        let record = record.into();
        let partition = record.partition;
        let offset = self.topic.send_records([record])[0];
        self.expect(partition, [offset], outcome);
        offset
    }

    /// Registers events that were sent by other means and must be stored.
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

    /// The number of messages that must have an outcome.
    pub(crate) fn len(&self) -> i64 {
        self.outcomes.len() as i64
    }

    /// Asserts that every message has its expected outcome, no other offset has one, `events` contains exactly the
    /// expected identities, and the accounting holds.
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
            .filter(|position| self.outcomes.get(position).copied() != found.get(position).map(String::as_str))
            .map(|position| {
                format!("{position:?}: expected {:?}, found {:?}", self.outcomes.get(position), found.get(position))
            })
            .take(20)
            .collect();
        assert!(wrong.is_empty(), "outcomes by (partition, offset):\n{}", wrong.join("\n"));
        let found = database.identities();
        let missing: Vec<_> = self.identities.difference(&found).take(5).collect();
        let invented: Vec<_> = found.difference(&self.identities).take(5).collect();
        assert!(missing.is_empty() && invented.is_empty(), "events missing: {missing:?}; never sent: {invented:?}");
    }

    /// Asserts the same as `assert_matches`, and that every partition is read to the end of its log.
    #[track_caller]
    pub(crate) fn assert_complete(&self, database: &Database) {
        self.assert_matches(database);
        for (partition, (_, next)) in database.positions() {
            assert_eq!(next, self.topic.log_end(partition), "position of partition {partition} at the end of its log");
        }
    }
}

/// The text of a message with all these events: a list.
pub(crate) fn list(events: &[Event]) -> String {
    format!("[{}]", events.iter().map(Event::json).collect::<Vec<_>>().join(","))
}

fn identity(event: &Event) -> (String, String) {
    (event.txn().to_owned(), event.name.clone().unwrap_or_else(|| event.topics[0].clone()))
}
