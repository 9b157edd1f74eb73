//! Contract events as web3.js 1.x writes them, generated deterministically from a seed.
//!
//! The format is that of `tests/data/web3-lottery-events.ndjson` with the `capture_time` that published messages carry.
//! The integration tests use this file and, through `#[path]`, the example `produce` and the benchmark. It connects to
//! no server.

use std::fmt::Write as _;

/// Default length of a rendered event in bytes: the average length of the monitor's messages.
pub(crate) const USUAL_SIZE: usize = 1044;

/// `keccak("RedeemedLotttery(…)")`, as in the real messages.
const SIGNATURE: &str = "0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8";
const NAMES: [&str; 3] = ["RedeemedLotttery", "IssuedLottery", "TransferToken"];
const EVENTS_PER_BLOCK: u64 = 40;

/// One contract event. Its fields are public so that a test can change them.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// `None` leaves the field out, which makes the message undecodable.
    pub(crate) txn: Option<String>,
    /// `None` leaves the field out; the identity then falls back to the signature.
    pub(crate) name: Option<String>,
    pub(crate) address: String,
    pub(crate) block_number: u64,
    pub(crate) block_hash: String,
    pub(crate) log_index: u64,
    pub(crate) topics: Vec<String>,
    /// `raw.data`, with its `0x`.
    pub(crate) data: String,
    /// No zone, two fraction digits, UTC: `2018-11-07T12:34:56.78`.
    pub(crate) capture_time: Option<String>,
    pub(crate) removed: bool,
    /// JSON text of `returnValues.memo`; a test puts text here that PostgreSQL cannot store.
    pub(crate) memo: String,
}

impl Event {
    /// The n-th event of a stream. Two different numbers never share a transaction hash.
    pub(crate) fn numbered(seed: u64, number: u64) -> Self {
        let mut random = Random::new(seed ^ number.rotate_left(32));
        let block = number / EVENTS_PER_BLOCK;
        // The hash contains the number itself, so that no two events of a stream can collide.
        let txn = format!("0x{:016x}{number:016x}{}", mix(seed), random.hex(32));
        let mut event = Self {
            txn: Some(txn),
            name: Some(NAMES[(number % NAMES.len() as u64) as usize].to_owned()),
            address: format!("0x{}", random.hex(40)),
            block_number: 4171 + block,
            block_hash: format!("0x{}", Random::new(seed ^ mix(block)).hex(64)),
            log_index: number % EVENTS_PER_BLOCK,
            topics: vec![SIGNATURE.to_owned()],
            data: "0x".to_owned(),
            capture_time: Some(capture_time(number)),
            removed: false,
            memo: "\"none\"".to_owned(),
        };
        event.data.push_str(&random.hex(64));
        event
    }

    /// Fills `raw.data` until the rendered event has `size` bytes (one less where hex digits would not pair up).
    pub(crate) fn sized(mut self, size: usize) -> Self {
        let without_data = self.json().len() - (self.data.len() - 2);
        let digits = size.saturating_sub(without_data) & !1;
        let txn = self.txn.as_deref().unwrap_or_default();
        let mut random = Random::new(txn.bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte))));
        self.data.truncate(2);
        self.data.push_str(&random.hex(digits));
        self
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The same identity with other content: the same transaction after a reorganisation, in another block.
    pub(crate) fn conflicting(&self) -> Self {
        let mut other = self.clone();
        let digits = other.block_hash.split_off(2);
        other.block_hash.extend(digits.chars().rev());
        other.log_index += 1000;
        other.block_number += 1;
        other
    }

    pub(crate) fn txn(&self) -> &str {
        self.txn.as_deref().unwrap_or_default()
    }

    /// The text a monitor would publish.
    pub(crate) fn json(&self) -> String {
        let mut text = String::with_capacity(1100 + self.data.len());
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        let Self { address, block_number, block_hash, log_index, removed, memo, data, .. } = self;
        let id = &self.block_hash[self.block_hash.len().saturating_sub(32)..];
        // Writing to a String cannot fail.
        let _ = write!(text, r#"{{"address":"{address}","blockNumber":{block_number},"#);
        if let Some(txn) = &self.txn {
            let _ = write!(text, r#""transactionHash":"{txn}","#);
        }
        let _ = write!(
            text,
            r#""transactionIndex":0,"blockHash":"{block_hash}","logIndex":{log_index},"removed":{removed},"id":"log_0x{id}{log_index:032x}","returnValues":{{"0":"50","1":"{address}","faceValue":"50","issuer":"{address}","memo":{memo}}},"#
        );
        if let Some(name) = &self.name {
            let _ = write!(text, r#""event":"{name}","#);
        }
        let topics = self.topics.join("\",\"");
        let _ = write!(text, r#""signature":"{SIGNATURE}","raw":{{"data":"{data}","topics":["{topics}"]}}"#);
        if let Some(time) = &self.capture_time {
            let _ = write!(text, r#","capture_time":"{time}""#);
        }
        text.push('}');
    }
}

/// The first event has the capture time 2018-11-07T12:34:56.78, each later one a hundredth of a second more.
fn capture_time(number: u64) -> String {
    let hundredths = (12 * 3600 + 34 * 60 + 56) * 100 + 78 + number;
    let (day, rest) = (hundredths / 8_640_000, hundredths % 8_640_000);
    let (seconds, fraction) = (rest / 100, rest % 100);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    // Days of November 2018 after the 7th; a stream longer than 23 days of hundredths begins again.
    format!("2018-11-{:02}T{hour:02}:{minute:02}:{second:02}.{fraction:02}", 7 + day % 23)
}

/// SplitMix64: small, fast, the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= share && share > 0.0
    }

    pub(crate) fn hex(&mut self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            let _ = write!(text, "{:016x}", self.next());
        }
        text.truncate(digits);
        text
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
