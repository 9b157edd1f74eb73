//! Tests of the generated messages.

use std::collections::HashSet;

use serde_json::Value;

use crate::support::events::{Event, USUAL_SIZE};

#[test]
fn an_event_has_the_fields_of_a_real_one_and_a_capture_time() {
    let lines = include_str!("../data/web3-lottery-events.ndjson");
    let event: Value = serde_json::from_str(&Event::numbered(1, 7).json()).unwrap();
    for line in lines.lines() {
        let real: Value = serde_json::from_str(line).unwrap();
        for (field, value) in real.as_object().unwrap().iter().filter(|(field, _)| *field != "lottery_sig") {
            let ours = &event[field];
            assert_eq!(std::mem::discriminant(ours), std::mem::discriminant(value), "{field}: {ours} for {value}");
        }
        assert_eq!(event["transactionHash"].as_str().unwrap().len(), real["transactionHash"].as_str().unwrap().len());
        assert_eq!(event["blockHash"].as_str().unwrap().len(), real["blockHash"].as_str().unwrap().len());
    }
    assert_eq!(Event::numbered(1, 0).capture_time.unwrap(), "2018-11-07T12:34:56.78");
}

#[test]
fn an_event_has_the_size_asked_for() {
    for number in 0..200 {
        for size in [900, USUAL_SIZE, 5000, 1_000_000] {
            let length = Event::numbered(3, number).sized(size).json().len();
            assert!(length == size || length == size - 1, "event {number} of {size} bytes has {length}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_events_and_each_has_its_own_transaction() {
    let stream = |seed| (0..1000).map(move |number| Event::numbered(seed, number).json());
    assert!(stream(5).eq(stream(5)));
    assert!(stream(5).zip(stream(6)).all(|(one, other)| one != other));
    let transactions: HashSet<_> = (0..1000).map(|number| Event::numbered(5, number).txn().to_owned()).collect();
    assert_eq!(transactions.len(), 1000);
}

#[test]
fn a_conflicting_event_shares_the_identity_and_not_the_content() {
    let event = Event::numbered(1, 1);
    let other = event.conflicting();
    assert_eq!((event.txn(), &event.name), (other.txn(), &other.name));
    assert_ne!((&event.block_hash, event.log_index), (&other.block_hash, other.log_index));
}
