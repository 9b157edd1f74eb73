//! Benchmarks of the daemon's stages without servers: `cargo bench`. One batch has 5,000 events of 1 KB each.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gapless::formats::{Format, Preset, decode, decode_within};
use gapless::ledger::write::event_rows::encoded_bytes;
use gapless::model::batch::{Batch, Slice};
use gapless::model::decoded_batch::Message;
use gapless::model::event::IdentityRecipe;
use gapless::model::offset::{NextOffset, Offset, OffsetRange};
use gapless::model::record::{AssignmentEpoch, Record};
use gapless::model::topic::Topic;

#[path = "../integration/support/events.rs"]
#[allow(dead_code)] // The integration tests use the rest of this file.
mod events;

const MESSAGES: i64 = 5000;

fn record(offset: i64) -> Record {
    let event = events::Event::numbered(1, offset as u64).sized(events::USUAL_SIZE);
    Record {
        partition: 0,
        offset: Offset::new(offset).expect("not negative"),
        epoch: AssignmentEpoch(1),
        timestamp_ms: Some(1_541_594_096_780),
        leader_epoch: None,
        key: None,
        value: Some(event.json().into_bytes()),
        headers: Vec::new(),
    }
}

fn slice(records: Vec<Record>) -> Slice {
    let at = |offset| NextOffset::new(offset).expect("not negative");
    let range = OffsetRange::new(at(0), at(MESSAGES)).expect("not empty");
    let partition = Topic::from("events").partition(0);
    Slice { position_id: 1, partition, range, records, gap: None, reread: false }
}

fn decode_all<'a>(format: &Format, batch: &'a Batch) -> Vec<Message<'a>> {
    decode_within(format, batch, usize::MAX).expect("no batch has more rows").messages
}

fn stages(criterion: &mut Criterion) {
    let format =
        Format { preset: Preset::Web3, identity: IdentityRecipe::default(), max_message_bytes: 64 * 1024 * 1024 };
    let records: Vec<Record> = (0..MESSAGES).map(record).collect();
    let batch = Batch::new(vec![slice(records.clone())]).expect("not empty");
    let messages = decode_all(&format, &batch);
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(MESSAGES as u64)).sample_size(20);
    group.bench_function("decode", |b| b.iter(|| records.iter().for_each(|r| drop(decode(&format, r)))));
    group.bench_function("encode", |b| b.iter(|| encoded_bytes(&messages)));
    group.bench_function("payload digest", |b| {
        b.iter(|| records.iter().filter_map(Record::payload_digest).map(|d| d.halves().0).fold(0, |a, b| a ^ b));
    });
    group.bench_function("batch: made and decoded", |b| {
        b.iter_batched(
            || slice(records.clone()),
            |slice| Batch::new(vec![slice]).map(|batch| decode_all(&format, &batch).len()),
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
