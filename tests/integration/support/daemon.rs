//! Runs the real binary as a process: arguments, environment, failpoints, and assertions on its log and its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::{self, Response};
use super::wait::{DEADLINE, until};
use super::{Database, Topic};

/// At most this many lines of the log are shown when a test fails.
const MAX_SHOWN_LINES: usize = 60;

/// Builder for a call of gapless.
pub(crate) struct Gapless {
    command: Command,
    failpoints: Vec<String>,
    brokers: Option<String>,
    database_url: Option<String>,
    group: Option<String>,
}

impl Gapless {
    /// The daemon for a topic and a database, in the group `gapless`.
    pub(crate) fn daemon(topic: &Topic, database: &Database) -> Self {
        Self::bare().servers(topic, database)
    }

    /// The daemon, started by another program that replaces itself with it (`exec`), such as `prlimit`.
    pub(crate) fn daemon_through(wrapper: &[&str], topic: &Topic, database: &Database) -> Self {
        Self::through(wrapper).args(["--log-format", "json"]).servers(topic, database)
    }

    /// A verb, started by another program that replaces itself with it.
    pub(crate) fn verb_through(wrapper: &[&str], name: &str, topic: &Topic, database: &Database) -> Self {
        Self::through(wrapper).args(["--log-format", "json", name]).servers(topic, database)
    }

    /// A verb with the flags that all verbs have.
    pub(crate) fn verb(name: &str, topic: &Topic, database: &Database) -> Self {
        Self::bare().args([name]).servers(topic, database)
    }

    /// A call without servers, and without the gapless and PostgreSQL variables of the tests' own environment.
    pub(crate) fn bare() -> Self {
        Self::bare_without_flags().args(["--log-format", "json"])
    }

    pub(crate) fn bare_without_flags() -> Self {
        Self::through(&[])
    }

    /// A call that is started by another program, given with its arguments.
    fn through(wrapper: &[&str]) -> Self {
        let call: Vec<&str> = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_gapless")]).collect();
        let mut command = Command::new(call[0]);
        command.args(&call[1..]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GAPLESS") || name.starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("GAPLESS__SERVER__BIND", "127.0.0.1:0").env_remove("RUST_LOG");
        // The tests themselves may run under systemd.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        Self { command, failpoints: Vec::new(), brokers: None, database_url: None, group: None }
    }

    fn servers(self, topic: &Topic, database: &Database) -> Self {
        self.args(["--topic", &topic.name]).brokers(&topic.brokers).database_url(&database.url)
    }

    /// Replaces the broker addresses of the topic, for example by that of a proxy.
    pub(crate) fn brokers(mut self, brokers: &str) -> Self {
        self.brokers = Some(brokers.to_owned());
        self
    }

    /// Replaces the URL of the database, for example by that of a proxy.
    pub(crate) fn database_url(mut self, url: &str) -> Self {
        self.database_url = Some(url.to_owned());
        self
    }

    pub(crate) fn group(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    pub(crate) fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn offset(self, order: &str) -> Self {
        self.args(["--offset", order])
    }

    pub(crate) fn until_end(self) -> Self {
        self.args(["--until-end"])
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Reads lists of events as well: messages with several events.
    pub(crate) fn lists(self) -> Self {
        self.env("GAPLESS__FORMAT__PRESET", "web3_list")
    }

    /// Limits a transaction to `messages` messages.
    pub(crate) fn batches_of(self, messages: u32) -> Self {
        self.env("GAPLESS__BATCH__MAX_MESSAGES", &messages.to_string())
    }

    /// Sets a failpoint as `name=action@hit`; several calls set several failpoints.
    pub(crate) fn failpoint(mut self, failpoint: &str) -> Self {
        self.failpoints.push(failpoint.to_owned());
        self
    }

    pub(crate) fn start(mut self) -> Running {
        if let Some(brokers) = &self.brokers {
            self.command.args(["--brokers", brokers]);
        }
        if let Some(url) = &self.database_url {
            self.command.args(["--database-url", url]);
        }
        if let Some(group) = &self.group {
            self.command.args(["--group", group]);
        }
        if !self.failpoints.is_empty() {
            self.command.env("GAPLESS_FAILPOINTS", self.failpoints.join(","));
        }
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting gapless");
        let log = Arc::new(Log::default());
        let errors = child.stderr.take().expect("standard error was piped");
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow(errors)
        });
        let mut output = child.stdout.take().expect("standard output was piped");
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = output.read_to_string(&mut text);
            text
        });
        Running { child, log, output: Some(output), call: format!("{:?}", self.command) }
    }

    /// Starts the process and waits for its end.
    #[track_caller]
    pub(crate) fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A running process of gapless. Dropping it kills the process by its id, never by a name.
pub(crate) struct Running {
    child: Child,
    log: Arc<Log>,
    output: Option<std::thread::JoinHandle<String>>,
    call: String,
}

impl Running {
    /// The address of the HTTP server, from the log event `http_listening`.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        let line = self.wait_for_event("http_listening");
        let address = line["fields"]["server.address"].as_str().unwrap_or_default();
        address.parse().unwrap_or_else(|_| panic!("no address in {line}"))
    }

    /// Waits for a log line that contains `text`, from the beginning of the log.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.log.lock();
        let mut read = 0;
        loop {
            while let Some(line) = state.lines.get(read) {
                read += 1;
                if line.contains(text) {
                    return serde_json::from_str(line).unwrap_or(Value::String(line.clone()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let why = if state.ended { "it ended" } else { "the deadline passed" };
                panic!("{}\n{why} without a log line with {text:?}; its log:\n{}", self.call, state.tail());
            }
            state = self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a log line with this event (docs/operations.md lists them), from the beginning of the log.
    #[track_caller]
    pub(crate) fn wait_for_event(&self, name: &str) -> Value {
        self.wait_for(&event_field(name))
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        http::get(self.address(), path)
    }

    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let response = self.get("/metrics");
        let found = response.metric(name, labels);
        found.unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{}", response.body))
    }

    /// Waits until a metric has this value: a metric may change shortly before or after another sign of the same
    /// change.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, name: &str, labels: &[&str], wanted: f64) {
        until(&format!("{name}{labels:?} to be {wanted}"), || match self.get("/metrics").metric(name, labels) {
            Some(found) if found == wanted => Ok(()),
            found => Err(format!("{found:?}")),
        });
    }

    /// Waits until `/readyz` answers with this status and returns the body.
    #[track_caller]
    pub(crate) fn wait_until_ready_is(&self, status: u16) -> String {
        let address = self.address();
        until(&format!("/readyz to be {status}\n{}", self.tail()), || match http::try_get(address, "/readyz") {
            Ok(response) if response.status == status => Ok(response.body),
            Ok(response) => Err(format!("{} {}", response.status, response.body)),
            Err(error) => Err(format!("{error}\n{}", self.tail())),
        })
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        self.wait_until_ready_is(200);
    }

    /// Sends a signal such as `TERM`, `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("running kill");
        assert!(status.success(), "kill -s {name} {id} failed");
    }

    pub(crate) fn kill(mut self) -> Ended {
        self.child.kill().expect("killing gapless");
        self.wait()
    }

    /// Sends SIGTERM and waits for the end; `Ended::took` is the time until then.
    #[track_caller]
    pub(crate) fn terminate(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether a line of the log so far contains this text.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.log.lock().lines.iter().any(|line| line.contains(text))
    }

    /// Whether a line of the log so far has this event.
    pub(crate) fn has_event(&self, name: &str) -> bool {
        self.says(&event_field(name))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the state of the process").is_none()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait(self) -> Ended {
        self.wait_within(DEADLINE)
    }

    /// Waits for the end of the process, which must come within `limit`.
    #[track_caller]
    pub(crate) fn wait_within(mut self, limit: Duration) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("waiting for gapless") {
                Some(status) => break status,
                None if start.elapsed() > limit => {
                    panic!("{}\nstill runs after {limit:?}; its log:\n{}", self.call, self.tail())
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let took = start.elapsed();
        let output = self.output.take().map(|output| output.join().unwrap_or_default()).unwrap_or_default();
        Ended { status, took, output, log: self.log.finished(), call: self.call.clone() }
    }

    pub(crate) fn tail(&self) -> String {
        self.log.lock().tail()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if std::thread::panicking() {
                eprintln!("{}\nwas running when the test failed; its log:\n{}", self.call, self.tail());
            }
        }
    }
}

/// The result of a process that has ended.
pub(crate) struct Ended {
    status: ExitStatus,
    pub(crate) took: Duration,
    /// The standard output.
    pub(crate) output: String,
    log: Vec<String>,
    call: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit code ({:?}) of {}", self.status, self);
        self
    }

    /// Asserts that SIGKILL ended the process, as a failpoint with the action `kill` does.
    #[track_caller]
    pub(crate) fn expect_killed(self) -> Self {
        assert_eq!(self.status.signal(), Some(9), "the signal that ended ({:?}) {}", self.status, self);
        self
    }

    pub(crate) fn status(&self) -> ExitStatus {
        self.status
    }

    /// Asserts that the log or the output contains each of the texts.
    #[track_caller]
    pub(crate) fn expect_says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.says(text), "{text:?} is not said by {self}");
        }
        self
    }

    /// The number of log lines that contain this text.
    pub(crate) fn count_of(&self, text: &str) -> usize {
        self.log.iter().filter(|line| line.contains(text)).count()
    }

    /// The number of log lines with this event.
    pub(crate) fn count_of_event(&self, name: &str) -> usize {
        self.count_of(&event_field(name))
    }

    pub(crate) fn has_event(&self, name: &str) -> bool {
        self.count_of_event(name) > 0
    }

    /// Asserts that a log line has this event.
    #[track_caller]
    pub(crate) fn expect_event(self, name: &str) -> Self {
        assert!(self.has_event(name), "no log line has the event {name:?}: {self}");
        self
    }

    /// The first log line that contains this text, as JSON.
    #[track_caller]
    pub(crate) fn line_of(&self, text: &str) -> Value {
        let line = self.log.iter().find(|line| line.contains(text));
        let line = line.unwrap_or_else(|| panic!("{text:?} is in no line of {self}"));
        serde_json::from_str(line).expect("a line of JSON")
    }

    /// The first log line with this event, as JSON.
    #[track_caller]
    pub(crate) fn line_of_event(&self, name: &str) -> Value {
        self.line_of(&event_field(name))
    }

    /// The last line of the log.
    pub(crate) fn last_line(&self) -> &str {
        self.log.last().map_or("", String::as_str)
    }

    pub(crate) fn says(&self, text: &str) -> bool {
        self.output.contains(text) || self.log.iter().any(|line| line.contains(text))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let from = self.log.len().saturating_sub(MAX_SHOWN_LINES);
        write!(out, "{}\nlog:\n{}\noutput:\n{}", self.call, self.log[from..].join("\n"), self.output)
    }
}

/// The field of a JSON log line that names its event.
fn event_field(name: &str) -> String {
    format!("\"event\":\"{name}\"")
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, errors: impl Read) {
        let mut errors = BufReader::new(errors);
        let mut line = Vec::new();
        while errors.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.lock().lines.push(text);
            self.changed.notify_all();
            line.clear();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The whole log of a process that has ended.
    fn finished(&self) -> Vec<String> {
        let mut state = self.lock();
        while !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.lines.clone()
    }
}

impl LogState {
    fn tail(&self) -> String {
        self.lines[self.lines.len().saturating_sub(MAX_SHOWN_LINES)..].join("\n")
    }
}
