//! The COPY baseline: plain binary COPY of both rows, one transaction per batch, several connections, no guarantee. It
//! prints the seconds from the first poll to the last commit as one line of JSON.
//!
//! `ledger`: the columns and keys of gapless's own tables, in a database that `gapless migrate` prepared, with cheap
//! values where gapless computes digests. `plain`: a simple schema with surrogate key, text key and jsonb.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_postgres::NoTls;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    partitions: i32,
    #[arg(long)]
    connections: usize,
    #[arg(long, default_value_t = 5000)]
    batch: usize,
    #[arg(long)]
    messages: usize,
    #[arg(long, value_enum)]
    tables: Tables,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tables {
    Ledger,
    Plain,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    address: &'a str,
    block_number: i64,
    transaction_hash: &'a str,
    log_index: i32,
    event: &'a str,
    block_hash: Option<&'a str>,
}

struct Message {
    partition: i32,
    offset: i64,
    time_ms: i64,
    value: Vec<u8>,
}

const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const PLAIN: &str = "drop schema if exists plain cascade; create schema plain;
create table plain.events (id bigint generated always as identity primary key, txn text not null, event_type text not null,
    block_number bigint, log_index int, address text, payload jsonb, unique (txn, event_type));
create table plain.received (topic text not null, part int not null, off bigint not null, state text,
    received_at timestamptz default now(), primary key (topic, part, off)); checkpoint";

impl Tables {
    fn statements(self) -> [&'static str; 2] {
        match self {
            Self::Ledger => [
                "copy gapless.stored_events (id, \"offset\", block_number, event_capture_time, position_id, event_no, log_index,
                 status, identity, content_digest, txn, event_type, block_hash, address, event_info) from stdin (format binary)",
                "copy gapless.outcomes (\"offset\", event_id, message_time, position_id, state, payload_digest)
                 from stdin (format binary)",
            ],
            Self::Plain => [
                "copy plain.events (txn, event_type, block_number, log_index, address, payload) from stdin (format binary)",
                "copy plain.received (topic, part, off, state) from stdin (format binary)",
            ],
        }
    }

    fn encode(self, message: &Message, id: i64, events: &mut BytesMut, received: &mut BytesMut) {
        let event: Event<'_> = serde_json::from_slice(&message.value).expect("a clean topic");
        let time = message.time_ms * 1000 - 946_684_800_000_000;
        match self {
            Self::Ledger => {
                let digest = Sha256::new().chain_update(event.transaction_hash).chain_update(event.event).finalize();
                let digest = &digest[..16];
                events.put_i16(15);
                [id, message.offset, event.block_number, time].iter().for_each(|n| bigint(events, *n));
                [message.partition, 0, event.log_index].iter().for_each(|n| int(events, *n));
                [b"confirmed", digest, digest, event.transaction_hash.as_bytes(), event.event.as_bytes()]
                    .iter()
                    .for_each(|bytes| field(events, bytes));
                match event.block_hash {
                    Some(hash) => field(events, hash.as_bytes()),
                    None => events.put_i32(-1),
                }
                field(events, event.address.as_bytes());
                field(events, &message.value);
                received.put_i16(6);
                [message.offset, id, time].iter().for_each(|n| bigint(received, *n));
                int(received, message.partition);
                field(received, b"stored");
                field(received, digest);
            }
            Self::Plain => {
                events.put_i16(6);
                field(events, event.transaction_hash.as_bytes());
                field(events, event.event.as_bytes());
                bigint(events, event.block_number);
                int(events, event.log_index);
                field(events, event.address.as_bytes());
                events.put_i32(message.value.len() as i32 + 1);
                events.put_u8(1); // jsonb's version
                events.put_slice(&message.value);
                received.put_i16(4);
                field(received, b"monitor");
                int(received, message.partition);
                bigint(received, message.offset);
                field(received, b"stored");
            }
        }
    }
}

fn field(row: &mut BytesMut, bytes: &[u8]) {
    row.put_i32(bytes.len() as i32);
    row.put_slice(bytes);
}

fn int(row: &mut BytesMut, n: i32) {
    field(row, &n.to_be_bytes());
}

fn bigint(row: &mut BytesMut, n: i64) {
    field(row, &n.to_be_bytes());
}

async fn copy(transaction: &tokio_postgres::Transaction<'_>, sql: &str, rows: Bytes) -> anyhow::Result<()> {
    let mut sink = std::pin::pin!(transaction.copy_in(sql).await?);
    sink.send(rows).await?;
    sink.finish().await?;
    Ok(())
}

/// Writes the batches of one connection, one transaction per batch.
fn write(options: &Options, connection_number: usize, batches: &Receiver<Vec<Message>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut client, connection) = tokio_postgres::connect(&options.database_url, NoTls).await?;
        tokio::spawn(connection);
        let statements = options.tables.statements();
        let mut id = (connection_number as i64) << 32;
        while let Ok(batch) = batches.recv() {
            let mut events = BytesMut::with_capacity(batch.len() * 1500);
            let mut received = BytesMut::with_capacity(batch.len() * 96);
            events.put_slice(HEAD);
            received.put_slice(HEAD);
            for message in &batch {
                id += 1;
                options.tables.encode(message, id, &mut events, &mut received);
            }
            events.put_i16(-1);
            received.put_i16(-1);
            let transaction = client.transaction().await?;
            copy(&transaction, statements[0], events.freeze()).await?;
            copy(&transaction, statements[1], received.freeze()).await?;
            transaction.commit().await?;
        }
        Ok(())
    })
}

fn prepare(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&options.database_url, NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(if options.tables == Tables::Plain { PLAIN } else { "checkpoint" }).await?;
        Ok(())
    })
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    prepare(options)?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let (senders, writers): (Vec<_>, Vec<_>) = (0..options.connections)
            .map(|number| {
                let (sender, batches) = sync_channel(2);
                (sender, scope.spawn(move || write(options, number, &batches)))
            })
            .unzip();
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &options.brokers)
            .set("group.id", "baseline")
            .set("enable.auto.commit", "false")
            .set("fetch.message.max.bytes", "4194304")
            .set("queued.max.messages.kbytes", "65536")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..options.partitions {
            list.add_partition_offset(&options.topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let mut batch = Vec::with_capacity(options.batch);
        let mut batch_number = 0;
        for read in 1..=options.messages {
            let record = loop {
                if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                    break record?;
                }
            };
            batch.push(Message {
                partition: record.partition(),
                offset: record.offset(),
                time_ms: record.timestamp().to_millis().unwrap_or(0),
                value: record.payload().context("a tombstone in a clean topic")?.to_vec(),
            });
            if batch.len() == options.batch || read == options.messages {
                senders[batch_number % senders.len()].send(std::mem::take(&mut batch)).context("a writer ended")?;
                batch_number += 1;
            }
        }
        drop(senders);
        for writer in writers {
            writer.join().expect("a writer does not panic")?;
        }
        println!("{}", json!({ "messages": options.messages, "seconds": begun.elapsed().as_secs_f64() }));
        Ok(())
    })
}
