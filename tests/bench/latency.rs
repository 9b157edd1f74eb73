//! Latency from the sending of a message to its visibility in PostgreSQL, at 1,000 messages a second. gapless
//! alternates with the plainest program that inserts messages at all; that program shows the limits of servers and
//! machine.
//!
//! Another connection queries the progress. To load the machine little, the queries for a message begin only after the
//! time in which the fastest of the recent messages became visible. A message becomes visible between the last query
//! that does not show it and the first answer that does: the report gives the middle and the possible error.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::Run;
use crate::events::Event;
use crate::measure::{CpuTime, Running, median_of};
use crate::server::{self, Server};
use crate::work;

const MESSAGES: usize = 40_000;
/// Not counted: meanwhile connections are made and caches filled.
const WARM_UP: usize = 10_000;
const EVERY: Duration = Duration::from_millis(1);
/// One of this many messages is observed.
const ONE_OF: usize = 10;
/// Pause between two queries.
const PAUSE: Duration = Duration::from_micros(100);
/// The queries begin after the time in which this many of the last [`LAST`] messages became visible: enough messages to
/// know the fast ones, too few to change the median.
const FASTEST: usize = 10;
const LAST: usize = 100;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Messages in the topic before the measurement.
const BEFORE: usize = 100;

/// Significant digits of the microseconds in a histogram.
const SIGNIFICANT_DIGITS: u8 = 3;

/// In milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Quantiles {
    fn of(seen: &[Seen], value: impl Fn(&Seen) -> f64) -> anyhow::Result<Self> {
        let mut histogram = Histogram::<u64>::new(SIGNIFICANT_DIGITS)?;
        for seen in seen {
            histogram.record((value(seen) * 1000.0) as u64)?;
        }
        let millis = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(Self { p50: millis(0.5), p99: millis(0.99), p999: millis(0.999) })
    }

    fn median(rounds: &[Self]) -> Self {
        Self {
            p50: median_of(rounds, |q| q.p50),
            p99: median_of(rounds, |q| q.p99),
            p999: median_of(rounds, |q| q.p999),
        }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, p999 } = self;
        write!(f, "p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2} ms")
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    /// From the time at which a message was sent.
    pub(crate) from_send: Quantiles,
    /// From the time at which a message was due. A blocked sender sends late: measured from the sending alone, a stall
    /// would hide its own cost (coordinated omission).
    pub(crate) from_due: Quantiles,
    /// For half of the messages the error is at most this many milliseconds.
    pub(crate) within: f64,
    /// The share of the CPU time that the host gave to other machines meanwhile, in percent.
    pub(crate) stolen: f64,
}

impl Latency {
    /// The median of each value over the rounds.
    fn median(rounds: &[Self]) -> Self {
        let quantiles = |of: fn(&Self) -> Quantiles| Quantiles::median(&rounds.iter().map(of).collect::<Vec<_>>());
        Self {
            from_send: quantiles(|l| l.from_send),
            from_due: quantiles(|l| l.from_due),
            within: median_of(rounds, |l| l.within),
            stolen: median_of(rounds, |l| l.stolen),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from_send, from_due, within, stolen } = self;
        write!(
            f,
            "{from_send} from the sending, {from_due} from when it was due, ± {within:.2} ms; {stolen:.1} % stolen"
        )
    }
}

/// The medians over the rounds.
pub(crate) struct Latencies {
    pub(crate) gapless: Latency,
    pub(crate) plainest: Latency,
}

/// Measures one system on a topic.
type Measure = fn(&Run, &str) -> anyhow::Result<Latency>;

/// Measures both systems alternately, once in each round.
pub(crate) fn run(run: &Run) -> anyhow::Result<Latencies> {
    let (mut gapless, mut plainest) = (Vec::new(), Vec::new());
    eprintln!("warming up: latency");
    of_the_plainest(run, &work::topic("latency-warm-up-1"))?;
    of_gapless(run, &work::topic("latency-warm-up-2"))?;
    for round in 1..=run.rounds {
        eprintln!("round {round}: latency");
        let topic = |name: &str| work::topic(&format!("latency-{name}-{round}"));
        let mut systems: [(_, Measure, _); 2] =
            [("gapless", of_gapless, &mut gapless), ("plainest", of_the_plainest, &mut plainest)];
        if round % 2 == 0 {
            systems.reverse();
        }
        for (name, measure, rounds) in systems {
            let latency = measure(run, &topic(name))?;
            eprintln!("  {name}: {latency}");
            rounds.push(latency);
        }
    }
    let [gapless, plainest] = [&gapless, &plainest].map(|rounds| Latency::median(rounds));
    Ok(Latencies { gapless, plainest })
}

fn of_gapless(run: &Run, topic: &str) -> anyhow::Result<Latency> {
    work::produce(run, topic, 1, &["--events".into(), BEFORE.to_string()])?;
    let url = server::new_database(&run.database_url, "bench")?;
    work::migrate(run, topic, &url)?;
    let mut daemon = Running(work::daemon(run, topic, &url).stderr(Stdio::piped()).spawn()?);
    // The log must be read to its end, or the daemon would block on a full pipe.
    let log = BufReader::new(daemon.0.stderr.take().context("piped")?);
    std::thread::spawn(move || log.lines().for_each(drop));
    measure(run, topic, &url, "select coalesce(max(next_offset), 0) from gapless.positions")
}

fn of_the_plainest(run: &Run, topic: &str) -> anyhow::Result<Latency> {
    work::produce(run, topic, 1, &["--events".into(), BEFORE.to_string()])?;
    let url = server::new_database(&run.database_url, "bench")?;
    Server::connect(&url)?.execute("create table plainest (message_offset bigint primary key, payload text)")?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let inserting = scope.spawn(|| insert_plainly(run, topic, &url, &stop));
        let latency = measure(run, topic, &url, "select coalesce(max(message_offset) + 1, 0) from plainest");
        stop.store(true, Ordering::Relaxed);
        inserting.join().expect("the inserting thread does not panic")?;
        latency
    })
}

/// Inserts the fetched messages by one statement, without position, proof or a second row.
fn insert_plainly(run: &Run, topic: &str, url: &str, stop: &AtomicBool) -> anyhow::Result<()> {
    let server = Server::connect(url)?;
    let insert = server.prepare_insert("insert into plainest select * from unnest($1::int8[], $2::text[])")?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &run.brokers)
        .set("group.id", "plainest")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&from)?;
    while !stop.load(Ordering::Relaxed) {
        let mut next = consumer.poll(Duration::from_millis(100));
        let (mut offsets, mut messages): (Vec<i64>, Vec<BorrowedMessage<'_>>) = Default::default();
        while let Some(message) = next {
            let message = message?;
            offsets.push(message.offset());
            messages.push(message);
            next = consumer.poll(Duration::ZERO);
        }
        let text = |m: &BorrowedMessage<'_>| String::from_utf8_lossy(m.payload().unwrap_or_default()).into_owned();
        if !offsets.is_empty() {
            insert(&offsets, &messages.iter().map(text).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// Measures the latency on a topic. The query `progress` returns the offset up to which everything is visible.
fn measure(run: &Run, topic: &str, url: &str, progress: &str) -> anyhow::Result<Latency> {
    let server = Server::connect(url)?;
    let reached = server.prepare(progress)?;
    let begun = Instant::now();
    while (reached()? as usize) < BEFORE {
        ensure!(begun.elapsed() < PROGRESS_TIMEOUT, "{topic} is not read");
        std::thread::sleep(Duration::from_millis(100));
    }
    let cpu_time = CpuTime::now();
    let (sent, observed) = mpsc::channel();
    let seen = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(run, topic, sent));
        let seen = observe(observed, reached);
        let sent = sending.join().expect("the sender does not panic");
        // If both failed, the sender failed because the observer had ended.
        let seen = seen?;
        sent.map(|()| seen)
    })?;
    let counted = &seen[WARM_UP / ONE_OF..];
    Ok(Latency {
        from_send: Quantiles::of(counted, |seen| seen.from_send)?,
        from_due: Quantiles::of(counted, |seen| seen.from_send + seen.sent_late)?,
        stolen: cpu_time.stolen_percent(),
        within: median_of(counted, |seen| seen.within),
    })
}

/// A sent message whose visibility is observed.
struct Sent {
    due: Instant,
    sent: Instant,
    /// The offset after the message.
    next: i64,
}

/// Times of a message that became visible, in milliseconds.
struct Seen {
    from_send: f64,
    /// The possible error of `from_send`.
    within: f64,
    /// Time from the due time to the sending.
    sent_late: f64,
}

fn observe(observed: mpsc::Receiver<Sent>, reached: impl Fn() -> anyhow::Result<i64>) -> anyhow::Result<Vec<Seen>> {
    let mut seen: Vec<Seen> = Vec::new();
    let (mut visible, mut not_shown, mut shown) = (0, Instant::now(), Instant::now());
    for Sent { due, sent, next } in observed {
        std::thread::sleep(latency_of_fastest(&seen).saturating_sub(sent.elapsed()));
        while visible < next {
            ensure!(sent.elapsed() < PROGRESS_TIMEOUT, "the message at offset {} does not become visible", next - 1);
            let asked = Instant::now();
            visible = reached()?;
            shown = Instant::now();
            if visible < next {
                not_shown = asked;
                std::thread::sleep(PAUSE);
            }
        }
        let earliest = not_shown.max(sent);
        let within = millis(shown - earliest) / 2.0;
        seen.push(Seen { from_send: millis(earliest - sent) + within, within, sent_late: millis(sent - due) });
    }
    Ok(seen)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The latency of the fastest of the last messages; 0 while there are too few.
fn latency_of_fastest(seen: &[Seen]) -> Duration {
    let Some(last) = seen.last_chunk::<LAST>() else { return Duration::ZERO };
    let mut latencies = last.each_ref().map(|seen| seen.from_send);
    latencies.sort_by(f64::total_cmp);
    Duration::from_secs_f64(latencies[FASTEST - 1] / 1000.0)
}

fn send(run: &Run, topic: &str, observed: mpsc::Sender<Sent>) -> anyhow::Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &run.brokers).set("linger.ms", "0").create()?;
    let begun = Instant::now();
    for number in 0..MESSAGES {
        let event = Event::numbered(7, number as u64).sized(crate::events::USUAL_SIZE).json();
        let due = begun + EVERY * number as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        producer.send(BaseRecord::<(), _>::to(topic).partition(0).payload(&event)).map_err(|(error, _)| error)?;
        if number % ONE_OF == 0 {
            observed.send(Sent { due, sent, next: (BEFORE + number + 1) as i64 })?;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}
