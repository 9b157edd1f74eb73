//! The messages that `produce` sends and their expected outcomes. Pure: the same options give the same messages.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::Options;
use crate::events::{Event, Random};

/// First number of poison; event numbers are below it, so that the streams have no event in common.
const POISON_NUMBERS: u64 = 1 << 40;
/// First number of aborted events.
const ABORTED_NUMBERS: u64 = 1 << 41;
/// A duplicate or conflict refers to one of this many last events: some are in the same batch of the daemon, some not.
const MEMORY: usize = 8000;

/// Events of fewer bytes have only the fields of the ledger's columns.
const BRIEF: usize = 400;

#[derive(Clone, Copy)]
enum Poison {
    Truncated,
    Noise,
    NoTransaction,
    InvalidUtf8,
    Empty,
    /// Valid JSON that jsonb refuses.
    Nul,
    Tombstone,
}

/// The kinds of poison, used in rotation.
const POISONS: [Poison; 7] = [
    Poison::Truncated,
    Poison::Noise,
    Poison::NoTransaction,
    Poison::InvalidUtf8,
    Poison::Empty,
    Poison::Nul,
    Poison::Tombstone,
];

pub(crate) struct Message {
    pub(crate) partition: i32,
    /// `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
}

pub(crate) struct Transaction {
    pub(crate) messages: Vec<Message>,
    pub(crate) end: End,
}

pub(crate) enum End {
    Commit,
    /// The events have the name `Aborted` and must never be stored.
    Abort,
}

pub(crate) struct Plan {
    random: Random,
    seed: u64,
    size: usize,
    events: u64,
    events_per_message: u64,
    duplicates: f64,
    of_any: bool,
    conflicts: f64,
    poison: f64,
    odd: f64,
    aborts: f64,
    per_transaction: usize,
    spread: bool,
    partitions: i32,
    /// Messages that are made and not sent yet.
    ready: VecDeque<Message>,
    /// Numbers of the events that a duplicate or a conflict may refer to.
    recent: VecDeque<u64>,
    /// Events that have a conflicting event: a second one would have the same content.
    conflicted: HashSet<u64>,
    made: u64,
    poisoned: u64,
    aborted: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl Plan {
    pub(crate) fn new(options: &Options, partitions: i32) -> anyhow::Result<Self> {
        let mut plan = Self {
            random: Random::new(options.seed),
            seed: options.seed,
            size: options.size,
            events: options.events,
            events_per_message: options.events_per_message,
            duplicates: options.duplicates,
            of_any: options.of_any,
            odd: options.odd,
            conflicts: options.conflicts,
            poison: options.poison,
            aborts: options.aborts,
            per_transaction: options.transactions,
            spread: options.partition_spread,
            partitions,
            ready: VecDeque::new(),
            recent: VecDeque::with_capacity(MEMORY),
            conflicted: HashSet::new(),
            made: 0,
            poisoned: 0,
            aborted: 0,
            counts: BTreeMap::new(),
        };
        let mut seen = HashMap::new();
        for file in &options.file {
            plan.read(file, &mut seen)?;
        }
        Ok(plan)
    }

    pub(crate) fn next_message(&mut self) -> Option<Message> {
        if self.ready.is_empty() && self.made < self.events {
            self.make();
        }
        let message = self.ready.pop_front()?;
        self.count("messages");
        Some(message)
    }

    pub(crate) fn next_transaction(&mut self) -> Option<Transaction> {
        let more = self.made < self.events || !self.ready.is_empty();
        if more && self.random.chance(self.aborts) {
            return Some(self.aborted_transaction());
        }
        let size = self.per_transaction;
        let messages: Vec<Message> = std::iter::from_fn(|| self.next_message()).take(size).collect();
        if messages.is_empty() {
            return None;
        }
        self.count("transactions");
        Some(Transaction { messages, end: End::Commit })
    }

    fn aborted_transaction(&mut self) -> Transaction {
        self.count("aborted_transactions");
        let messages = (0..self.per_transaction).map(|_| {
            self.aborted += 1;
            self.count("aborted_messages");
            let event = Event::numbered(self.seed, ABORTED_NUMBERS + self.aborted).named("Aborted").sized(self.size);
            self.message(self.aborted, Some(event.json().into_bytes()))
        });
        Transaction { messages: messages.collect(), end: End::Abort }
    }

    /// The number of sent messages and the expected contents of the ledger after all of them are read.
    pub(crate) fn summary(&self, topic: &str) -> Value {
        let of = |name| self.counts.get(name).copied().unwrap_or(0);
        let stored = of("file_stored") + of("events") + of("nul");
        json!({
            "topic": topic, "partitions": self.partitions, "seed": self.seed,
            "messages": of("messages"),
            "transactions": of("transactions"),
            "aborted_transactions": of("aborted_transactions"),
            "aborted_messages": of("aborted_messages"),
            "expected": {
                "events": stored,
                "stored": of("file_stored") + of("event_messages") + of("nul"),
                "processed": of("file_processed") + of("duplicates") + of("conflicts"),
                "rejected": of("file_rejected") + of("rejected"),
                "ignored": of("tombstones"),
                "event_conflicts": of("file_conflicts") + of("conflicts"),
                "with_event_raw": of("nul"),
            },
        })
    }

    /// Makes the next message with events and the messages that randomly follow it.
    fn make(&mut self) {
        let first = self.made;
        let text = match self.events_per_message.min(self.events - first) {
            1 if self.events_per_message == 1 => self.next_event(),
            count => {
                let events: Vec<String> = (0..count).map(|_| self.next_event()).collect();
                format!("[{}]", events.join(","))
            }
        };
        self.count("event_messages");
        self.push(first, Some(text.into_bytes()));
        if self.random.chance(self.duplicates) {
            let again = self.earlier();
            self.count("duplicates");
            self.push(again, Some(self.event(again).json().into_bytes()));
        }
        if self.random.chance(self.conflicts) {
            let other = self.earlier();
            // If the event already has a conflicting one, a duplicate is sent instead, so that the expected counts are
            // right.
            let (kind, event) = match self.conflicted.insert(other) {
                true => ("conflicts", self.event(other).conflicting()),
                false => ("duplicates", self.event(other)),
            };
            self.count(kind);
            self.push(other, Some(event.json().into_bytes()));
        }
        if self.random.chance(self.poison) {
            self.push_poison(POISONS[self.poisoned as usize % POISONS.len()]);
        }
        if self.random.chance(self.odd) {
            self.push_poison([Poison::Truncated, Poison::Nul][self.poisoned as usize % 2]);
        }
    }

    fn next_event(&mut self) -> String {
        let number = self.made;
        self.made += 1;
        self.count("events");
        if self.recent.len() == MEMORY {
            self.recent.pop_front();
        }
        self.recent.push_back(number);
        let event = self.event(number);
        if self.size < BRIEF { brief(&event) } else { event.json() }
    }

    fn event(&self, number: u64) -> Event {
        Event::numbered(self.seed, number).sized(self.size)
    }

    fn earlier(&mut self) -> u64 {
        if self.of_any {
            return self.random.below(self.made);
        }
        let index = self.random.below(self.recent.len() as u64) as usize;
        self.recent[index]
    }

    fn push_poison(&mut self, poison: Poison) {
        let number = POISON_NUMBERS + self.poisoned;
        self.poisoned += 1;
        let mut event = Event::numbered(self.seed, number).named("Poison").sized(self.size);
        let (kind, value) = match poison {
            Poison::Truncated => ("rejected", Some(event.json().as_bytes()[..event.json().len() / 2].to_vec())),
            Poison::Noise => ("rejected", Some((0..64).map(|_| self.random.next() as u8 & 0x1f).collect())),
            Poison::NoTransaction => {
                event.txn = None;
                ("rejected", Some(event.json().into_bytes()))
            }
            Poison::InvalidUtf8 => {
                event.memo = "\"\u{1}\"".to_owned();
                let mut bytes = event.json().into_bytes();
                bytes.iter_mut().filter(|byte| **byte == 1).for_each(|byte| *byte = 0xff);
                ("rejected", Some(bytes))
            }
            Poison::Empty => ("rejected", Some(Vec::new())),
            Poison::Nul => {
                event.memo = r#""a \u0000 b""#.to_owned();
                ("nul", Some(event.json().into_bytes()))
            }
            Poison::Tombstone => ("tombstones", None),
        };
        self.count(kind);
        self.push(number, value);
    }

    /// Queues the lines of a file and computes the expected outcome of each.
    fn read(&mut self, file: &Path, seen: &mut HashMap<(String, String), HashSet<String>>) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        for (number, line) in text.lines().filter(|line| !line.is_empty()).enumerate() {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            let outcome = match event["transactionHash"].as_str() {
                None => "file_rejected",
                Some(txn) => {
                    let identity = (txn.to_lowercase(), event["event"].to_string());
                    let content =
                        ["blockHash", "logIndex", "address", "raw"].map(|field| event[field].to_string()).join(" ");
                    let contents = seen.entry(identity).or_default();
                    let first = contents.is_empty();
                    if contents.insert(content) && !first {
                        self.count("file_conflicts");
                    }
                    if first { "file_stored" } else { "file_processed" }
                }
            };
            self.count(outcome);
            self.push(number as u64, Some(line.as_bytes().to_vec()));
        }
        Ok(())
    }

    fn push(&mut self, number: u64, value: Option<Vec<u8>>) {
        let message = self.message(number, value);
        self.ready.push_back(message);
    }

    fn message(&self, number: u64, value: Option<Vec<u8>>) -> Message {
        let key = if self.spread { self.counts.values().sum() } else { number };
        Message { partition: (key % self.partitions as u64) as i32, value }
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }
}

/// An event with only the fields of the ledger's columns: about 200 bytes.
fn brief(event: &Event) -> String {
    let Event { address, block_number, log_index, .. } = event;
    let (txn, name) = (event.txn(), event.name.as_deref().unwrap_or_default());
    format!(
        r#"{{"address":"{address}","blockNumber":{block_number},"transactionHash":"{txn}","logIndex":{log_index},"event":"{name}"}}"#
    )
}
