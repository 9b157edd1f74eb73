//! A produce request built byte by byte, for records that client libraries refuse to send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::Topic;
use super::wait::{DEADLINE, until};

/// Sends one record to partition 0; its header keys may be any bytes. The cluster must have one broker only.
pub(crate) fn send_with_headers(topic: &Topic, value: &[u8], headers: &[(&[u8], &[u8])]) {
    let before = topic.log_end(0);
    let batch = record_batch(value, headers);
    let mut body = Vec::new();
    // Produce, version 8; correlation id; client id; no transaction; acks of all; timeout.
    body.extend([0, 0, 0, 8, 0, 0, 0, 1]);
    string(&mut body, b"gapless-tests");
    body.extend((-1i16).to_be_bytes());
    body.extend((-1i16).to_be_bytes());
    body.extend(30_000i32.to_be_bytes());
    body.extend(1i32.to_be_bytes());
    string(&mut body, topic.name.as_bytes());
    body.extend(1i32.to_be_bytes());
    body.extend(0i32.to_be_bytes());
    body.extend((batch.len() as i32).to_be_bytes());
    body.extend(batch);
    let mut broker = TcpStream::connect(&topic.brokers).expect("a connection to the broker");
    broker.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    broker.write_all(&(body.len() as i32).to_be_bytes()).expect("sending to the broker");
    broker.write_all(&body).expect("sending to the broker");
    broker.read_exact(&mut [0; 4]).expect("an answer of the broker");
    until("the broker to have the record", || match topic.log_end(0) {
        end if end == before + 1 => Ok(()),
        end => Err(format!("{end} after {before}")),
    });
}

fn record_batch(value: &[u8], headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    // Attributes, timestamp delta, offset delta, no key.
    let mut record = vec![0, 0, 0];
    varint(&mut record, -1);
    varint(&mut record, value.len() as i64);
    record.extend(value);
    varint(&mut record, headers.len() as i64);
    for bytes in headers.iter().flat_map(|(key, value)| [key, value]) {
        varint(&mut record, bytes.len() as i64);
        record.extend(*bytes);
    }
    // Attributes, last offset delta, first and last timestamp, no producer id, epoch and sequence, one record.
    let mut checked = vec![0; 6];
    checked.extend((now as i64).to_be_bytes().repeat(2));
    checked.extend([0xff; 14]);
    checked.extend(1i32.to_be_bytes());
    varint(&mut checked, record.len() as i64);
    checked.extend(record);
    let mut batch = vec![0; 8];
    batch.extend((checked.len() as i32 + 9).to_be_bytes());
    // No leader epoch, format 2.
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend((text.len() as i16).to_be_bytes());
    bytes.extend(text);
}

fn varint(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}
