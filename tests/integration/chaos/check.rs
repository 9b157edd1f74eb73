//! The invariants after every episode: the account of the producer, the log as another program reads it, and the ledger
//! agree in every offset, byte and identity.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::process::Command;

use super::load::{Account, Delivery};
use crate::support::database::SourcePosition;
use crate::support::{Database, Gapless, Topic};

/// A message as kcat reads it, with another build of librdkafka, isolation level read_committed and checked checksums.
pub(crate) struct Seen {
    uid: Option<u64>,
    value: Option<Vec<u8>>,
}

/// Reads the whole topic. The key is partition and offset.
pub(crate) fn read_again(topic: &Topic) -> BTreeMap<SourcePosition, Seen> {
    let output = Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-b", &topic.brokers, "-t", &topic.name])
        .args([
            "-X",
            "isolation.level=read_committed",
            "-X",
            "check.crcs=true",
            "-X",
            "fetch.message.max.bytes=20000000",
        ])
        // The lengths come before the texts, since a value may contain any byte.
        .args(["-f", "%p %o %K %S %h\\n%k%s\\n"])
        .output()
        .expect("kcat, which reads what gapless read (Debian package kcat)");
    assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    let mut messages = BTreeMap::new();
    let mut rest = output.stdout.as_slice();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').expect("the end of a head");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let mut words = head.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok()).expect("a number in a head");
        let (partition, offset, key, size) = (number(), number(), number(), number());
        let uid = words.next().and_then(|text| text.strip_prefix("uid=")?.parse().ok());
        let start = end + 1 + key.max(0) as usize;
        let stop = start + size.max(0) as usize;
        let value = (size >= 0).then(|| rest[start..stop].to_vec());
        messages.insert((partition as i32, offset), Seen { uid, value });
        rest = &rest[stop + 1..];
    }
    messages
}

/// A range that the episode itself has deleted: partition, first offset, offset after the last.
pub(crate) type Lost = (i32, i64, i64);

/// Compares account, log and ledger. Returns each broken promise with up to five examples.
pub(crate) fn faults(topic: &Topic, database: &Database, account: &Account, lost: &[Lost]) -> Vec<String> {
    let seen = read_again(topic);
    let mut faults = Faults::default();
    compare_account_and_log(account, &seen, lost, &mut faults);
    compare_log_and_ledger(account, &seen, database, lost, &mut faults);
    match database.accounting_faults() {
        Ok(found) => faults.0.extend(found.into_iter().map(|fault| ("accounting", fault))),
        Err(error) => faults.add("accounting", "the accounting can be queried", &[error]),
    }
    for (partition, (_, next)) in database.positions() {
        let end = topic.last_stable(partition);
        if next != end {
            faults.add(
                "coverage",
                "every position is the last stable offset",
                &[format!("{partition}: {next}, not {end}")],
            );
        }
    }
    faults.0.into_iter().map(|(invariant, text)| format!("[{invariant}] {text}")).collect()
}

/// Asserts that `gapless verify --deep` finds nothing wrong.
#[track_caller]
pub(crate) fn verify_deep(topic: &Topic, database: &Database) {
    Gapless::verb("verify", topic, database).args(["--deep"]).run().expect_code(0);
}

#[derive(Default)]
struct Faults(Vec<(&'static str, String)>);

impl Faults {
    fn add<T: Display>(&mut self, invariant: &'static str, claim: &str, violations: &[T]) {
        if violations.is_empty() {
            return;
        }
        let examples: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
        self.0.push((
            invariant,
            format!("violated: {claim}; {} cases, such as {}", violations.len(), examples.join("; ")),
        ));
    }
}

fn is_lost(lost: &[Lost], (partition, offset): SourcePosition) -> bool {
    lost.iter().any(|(of, from, to)| *of == partition && (*from..*to).contains(&offset))
}

/// The log has every acknowledged record and shows no aborted one; otherwise the oracle of the campaign itself is
/// wrong.
fn compare_account_and_log(
    account: &Account,
    seen: &BTreeMap<SourcePosition, Seen>,
    lost: &[Lost],
    faults: &mut Faults,
) {
    let (mut missing, mut invented) = (Vec::new(), Vec::new());
    for (uid, sent) in &account.sent {
        let Delivery::Acknowledged(offset) = sent.delivery else { continue };
        let position = (sent.partition, offset);
        let there = seen.get(&position).is_some_and(|seen| seen.uid == Some(*uid) && seen.value == sent.value);
        if !there && !is_lost(lost, position) {
            missing.push(format!("{uid} at {position:?}"));
        }
    }
    for (position, message) in seen {
        let sent = message.uid.and_then(|uid| account.sent.get(&uid));
        if sent.is_none_or(|sent| sent.delivery == Delivery::Never || sent.value != message.value) {
            invented.push(format!("{:?} at {position:?}", message.uid));
        }
    }
    faults.add("oracle", "Kafka has every record it acknowledged", &missing);
    faults.add("oracle", "Kafka shows no record that was aborted or never sent", &invented);
}

fn compare_log_and_ledger(
    account: &Account,
    seen: &BTreeMap<SourcePosition, Seen>,
    database: &Database,
    lost: &[Lost],
    faults: &mut Faults,
) {
    let outcomes = database.outcomes();
    let (mut missed, mut wrong, mut invented) = (Vec::new(), Vec::new(), Vec::new());
    let mut identities = BTreeSet::new();
    for (position, message) in seen {
        let sent = message.uid.and_then(|uid| account.sent.get(&uid));
        identities.extend(sent.and_then(|sent| sent.identity.clone()));
        match (outcomes.get(position), sent) {
            (None, _) => missed.push(format!("{position:?}")),
            (Some(state), Some(sent)) if !sent.class.outcomes().contains(&state.as_str()) => {
                wrong.push(format!("{position:?} is {state}, but {:?}", sent.class));
            }
            _ => {}
        }
    }
    for position in outcomes.keys().filter(|position| !seen.contains_key(position) && !is_lost(lost, **position)) {
        invented.push(format!("{position:?}"));
    }
    faults.add("no loss", "every readable message has an outcome", &missed);
    faults.add("no invention", "an outcome belongs to a readable message", &invented);
    faults.add("outcome", "an outcome is allowed for its class of message", &wrong);
    // A message of a deleted range may have inserted an event before it was deleted.
    let found = database.identities();
    let before: BTreeSet<_> = account.sent.values().filter_map(|sent| sent.identity.clone()).collect();
    let absent: Vec<String> = identities.difference(&found).map(|(txn, name)| format!("{txn} {name}")).collect();
    let expected = if lost.is_empty() { &identities } else { &before };
    let extra: Vec<String> = found.difference(expected).map(|(txn, name)| format!("{txn} {name}")).collect();
    faults.add("no loss", "every identity of the log is in events", &absent);
    faults.add("no invention", "events has no identity that the log does not have", &extra);
    compare_bytes(seen, database, faults);
}

/// Compares texts of events, bytes of dead letters and digests of all messages with the log.
fn compare_bytes(seen: &BTreeMap<SourcePosition, Seen>, database: &Database, faults: &mut Faults) {
    let texts = r#"select partition_id::int, "offset"::bigint, coalesce(event_raw, convert_to(event_info::text, 'UTF8'))
                   from gapless.events"#;
    let dead_letters = r#"select partition_id::int, "offset"::bigint, payload from gapless.dead_letters"#;
    let mut different = Vec::new();
    for sql in [texts, dead_letters] {
        for row in database.rows(sql, &[]) {
            let (position, bytes): (SourcePosition, Option<Vec<u8>>) = ((row.get(0), row.get(1)), row.get(2));
            if seen.get(&position).is_some_and(|message| message.value.as_ref() != bytes.as_ref()) {
                different.push(format!("{position:?}"));
            }
        }
    }
    faults.add("byte identity", "the stored bytes of a message are those of the log", &different);
    let digests = r#"select m.partition_id, m."offset"
                     from unnest($1::int[], $2::bigint[], $3::bytea[]) m(partition_id, "offset", value)
                     join gapless.kafka_events_received r using (partition_id, "offset")
                     where r.payload_digest is distinct from substring(sha256(m.value) for 16)"#;
    let (mut partitions, mut offsets, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for ((partition, offset), message) in seen {
        partitions.push(*partition);
        offsets.push(*offset);
        values.push(message.value.clone());
    }
    let different = database.rows(digests, &[&partitions, &offsets, &values]);
    let different: Vec<String> =
        different.iter().map(|row| format!("({}, {})", row.get::<_, i32>(0), row.get::<_, i64>(1))).collect();
    faults.add("byte identity", "payload_digest is the digest of the value", &different);
}
