//! From send to visible in PostgreSQL, message by message, at 1,000 messages a second. Another connection asks for the
//! position all the time: a message is visible when the answer that shows it is there, so what is told is never too low.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::Run;
use crate::events::Event;
use crate::measure::quantile;
use crate::server::{self, Server};
use crate::work;

const MESSAGES: usize = 40_000;
/// Not counted: connections are made, caches filled, and a broker that was just started runs cold code for that long.
const WARM_UP: usize = 20_000;
const EVERY: Duration = Duration::from_millis(1);

/// In milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// `before` messages are in the topic already.
pub(crate) fn run(run: &Run, topic: &str, before: usize) -> anyhow::Result<Latency> {
    eprintln!("latency");
    let url = server::new_database(&run.database_url, "bench")?;
    work::migrate(run, topic, &url)?;
    let mut daemon = work::daemon(run, topic, &url).stderr(Stdio::piped()).spawn()?;
    // Read to the end, or the daemon would wait for its log to be read.
    let log = BufReader::new(daemon.stderr.take().context("piped")?);
    std::thread::spawn(move || log.lines().for_each(drop));
    let server = Server::connect(&url)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.number("select count(*) from gapless.positions")? == 0 {
        ensure!(Instant::now() < deadline, "the daemon does not start");
        std::thread::sleep(Duration::from_millis(100));
    }
    let next = server.prepare("select next_offset from gapless.positions")?;
    while next()? < before as i64 {
        ensure!(Instant::now() < deadline, "the daemon reads nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = Mutex::new(Vec::with_capacity(MESSAGES));
    let mut latencies = Vec::with_capacity(MESSAGES);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(run, topic, &sent));
        while latencies.len() < MESSAGES
            && !(sending.is_finished() && Instant::now() > deadline + Duration::from_secs(60))
        {
            let reached = (next()? as usize).saturating_sub(before);
            let now = Instant::now();
            let sent = sent.lock().expect("no panic while it is held");
            let new = sent[latencies.len()..].iter().take(reached.saturating_sub(latencies.len()));
            let new: Vec<f64> = new.map(|at: &Instant| (now - *at).as_secs_f64() * 1000.0).collect();
            latencies.extend(new);
            drop(sent);
            std::thread::sleep(Duration::from_micros(400));
        }
        sending.join().expect("the sender does not panic")
    })?;
    daemon.kill()?;
    daemon.wait()?;
    ensure!(latencies.len() == MESSAGES, "{} of {MESSAGES} messages were seen", latencies.len());
    let mut counted = latencies.split_off(WARM_UP);
    counted.sort_by(f64::total_cmp);
    Ok(Latency { p50: quantile(&counted, 0.5), p99: quantile(&counted, 0.99), p999: quantile(&counted, 0.999) })
}

fn send(run: &Run, topic: &str, sent: &Mutex<Vec<Instant>>) -> anyhow::Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &run.brokers).set("linger.ms", "0").create()?;
    let begun = Instant::now();
    for number in 0..MESSAGES {
        let due = begun + EVERY * number as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let event = Event::numbered(7, number as u64).sized(crate::events::USUAL_SIZE).json();
        // Held while sending: a message is never seen before its time is noted.
        let mut sent = sent.lock().expect("no panic while it is held");
        sent.push(Instant::now());
        producer.send(BaseRecord::<(), _>::to(topic).partition(0).payload(&event)).map_err(|(error, _)| error)?;
        drop(sent);
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}
