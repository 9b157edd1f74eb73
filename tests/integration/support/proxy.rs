//! A proxy before PostgreSQL that parses the protocol and breaks a connection at a COMMIT.
//!
//! The proxy reads the frames of both directions, so it knows when the server has answered a forwarded request. An
//! armed fault applies once, to the next COMMIT of a batch on any connection. It does not apply to the transactions in
//! which the daemon records states and counts.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::wait::DEADLINE;

/// A fault at the next COMMIT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The server receives and applies the COMMIT; the client's connection ends before the reply.
    ReplyLost,
    /// The connection ends and the server never receives the COMMIT.
    RequestLost,
    /// The client's connection ends; the server receives the COMMIT at `release`, on a connection that is still open.
    AppliedLate,
    /// As `AppliedLate`; in addition, of a statement that is a transaction by itself the server receives no part
    /// earlier.
    StartedLate,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    armed: Option<Fault>,
    /// The number of faults that were applied to a COMMIT, and of those that the server has finished with.
    met: usize,
    finished: usize,
    released: bool,
    /// Nothing passes in any direction, and no connection is closed.
    black_hole: bool,
    open: Vec<TcpStream>,
    statements: Vec<Statement>,
}

/// A statement that passed the proxy. `text` is `close` when a named prepared statement is closed.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// The client's port.
    pub(crate) connection: u16,
    /// The name of the prepared statement; empty without one.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Proxy {
    pub(crate) fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the proxy");
        let address = listener.local_addr().expect("the port of the proxy");
        let shared = Arc::new(Shared { upstream, state: Mutex::default(), changed: Condvar::new() });
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    // Broken connections are the purpose of this proxy: an error ends its own connection only.
                    std::thread::spawn(move || shared.serve(client));
                }
            }
        });
        Self { address, shared }
    }

    /// Applies this fault to the next COMMIT.
    pub(crate) fn arm(&self, fault: Fault) {
        let mut state = self.shared.lock();
        (state.armed, state.released) = (Some(fault), false);
    }

    /// Applies no fault any more and releases a held COMMIT.
    pub(crate) fn disarm(&self) {
        let mut state = self.shared.lock();
        state.armed = None;
        state.released = true;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until `count` faults in total were applied and, unless the COMMIT is held, the server has finished with
    /// it.
    #[track_caller]
    pub(crate) fn wait_for_faults(&self, count: usize) {
        self.shared.wait("a fault to be applied to a COMMIT", |state| state.met >= count && state.finished >= count);
    }

    /// Waits until a COMMIT is held.
    #[track_caller]
    pub(crate) fn wait_for_held(&self) {
        self.shared.wait("a COMMIT to be held", |state| state.met > state.finished);
    }

    /// Forwards the held COMMIT and waits for the server's answer to it.
    #[track_caller]
    pub(crate) fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
        self.shared.wait("the answer to the released COMMIT", |state| state.met == state.finished);
    }

    /// The number of faults that were applied and are finished.
    pub(crate) fn faults_met(&self) -> usize {
        let state = self.shared.lock();
        state.met.min(state.finished)
    }

    /// Every statement that has passed, in order and without comments.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        self.shared.lock().statements.clone()
    }

    /// Drops everything from now on, on open and on new connections.
    pub(crate) fn black_hole(&self) {
        self.shared.lock().black_hole = true;
    }

    /// Closes the connections of the black hole; new ones pass.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        state.black_hole = false;
        state.cut_all();
    }

    /// Closes every open connection.
    pub(crate) fn cut_all(&self) {
        self.shared.lock().cut_all();
    }
}

impl State {
    fn cut_all(&mut self) {
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the proxy waited {DEADLINE:?} for {what}");
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn serve(self: Arc<Self>, client: TcpStream) -> Option<()> {
        self.lock().open.push(client.try_clone().ok()?);
        let server = TcpStream::connect(self.upstream).ok()?;
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let connection =
            Arc::new(Connection { shared: Arc::clone(&self), client, server, replies: Replies::default() });
        let mut from_client = connection.client.try_clone().ok()?;
        connection.start_up(&mut from_client)?;
        std::thread::spawn({
            let connection = Arc::clone(&connection);
            move || connection.forward_replies()
        });
        connection.forward_requests(&mut from_client);
        let _ = connection.server.shutdown(Shutdown::Both);
        Some(())
    }
}

struct Connection {
    shared: Arc<Shared>,
    client: TcpStream,
    server: TcpStream,
    replies: Replies,
}

/// The number of expected and received replies. The server answers every Query and every Sync by one ReadyForQuery.
#[derive(Default)]
struct Replies {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    asked: usize,
    answered: usize,
    ended: bool,
}

impl Connection {
    /// Frames without a type come first: a request for encryption, which this proxy declines, and the start-up message.
    fn start_up(&self, client: &mut TcpStream) -> Option<()> {
        loop {
            let mut head = [0; 8];
            client.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes(head[..4].try_into().ok()?) as usize;
            let code = u32::from_be_bytes(head[4..].try_into().ok()?);
            let mut rest = vec![0; length.checked_sub(8)?];
            client.read_exact(&mut rest).ok()?;
            const ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];
            if ENCRYPTION.contains(&code) {
                (&self.client).write_all(b"N").ok()?;
                continue;
            }
            self.pass(&self.server, &[head.to_vec(), rest].concat())?;
            return Some(());
        }
    }

    fn forward_requests(&self, client: &mut TcpStream) -> Option<()> {
        let mut commit_prepared = false;
        let mut moves_positions = false;
        let (mut starts_late, mut held) = (false, Vec::new());
        loop {
            let (kind, frame) = read_frame(client)?;
            let body = &frame[5..];
            let commits = match kind {
                b'Q' => self.record(b"", body, &mut moves_positions),
                b'P' => {
                    // A name, then the statement, each ended by a zero.
                    let name = body.iter().position(|byte| *byte == 0)?;
                    commit_prepared |= self.record(&body[..name], &body[name + 1..], &mut moves_positions);
                    starts_late = commit_prepared && self.starts_late();
                    false
                }
                b'C' if body.first() == Some(&b'S') => {
                    self.record(&body[1..body.len() - 1], b"close", &mut moves_positions)
                }
                b'S' => std::mem::take(&mut commit_prepared),
                _ => false,
            };
            if commits && let Some(fault) = self.take_fault() {
                held.push((kind, frame));
                self.break_at_commit(fault, &held);
                return None;
            }
            if starts_late {
                held.push((kind, frame));
            } else {
                self.request(kind, &frame)?;
            }
        }
    }

    /// Records a zero-terminated statement. Returns true if it commits a batch, that is a transaction that moves
    /// positions.
    fn record(&self, name: &[u8], text: &[u8], moves_positions: &mut bool) -> bool {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = without_comments(&String::from_utf8_lossy(text)).trim().to_owned();
        *moves_positions |= ["gapless.advance(", "gapless.write_few("].iter().any(|function| text.contains(function));
        let commits = is_commit(&text) && std::mem::take(moves_positions);
        let name = String::from_utf8_lossy(name).into_owned();
        let connection = self.client.peer_addr().map_or(0, |address| address.port());
        self.shared.lock().statements.push(Statement { connection, name, text });
        commits
    }

    fn take_fault(&self) -> Option<Fault> {
        let mut state = self.shared.lock();
        let fault = state.armed.take()?;
        state.met += 1;
        drop(state);
        self.shared.changed.notify_all();
        Some(fault)
    }

    fn starts_late(&self) -> bool {
        self.shared.lock().armed == Some(Fault::StartedLate)
    }

    fn break_at_commit(&self, fault: Fault, held: &[(u8, Vec<u8>)]) {
        // The client's side is closed first, so that no reply reaches it.
        let _ = self.client.shutdown(Shutdown::Both);
        if matches!(fault, Fault::AppliedLate | Fault::StartedLate) {
            self.shared.wait("the release of a held COMMIT", |state| state.released);
        }
        let forward = || held.iter().try_for_each(|(kind, frame)| self.request(*kind, frame));
        if fault != Fault::RequestLost && forward().is_some() {
            self.wait_for_answers();
        }
        let _ = self.server.shutdown(Shutdown::Both);
        self.shared.lock().finished += 1;
        self.shared.changed.notify_all();
    }

    fn request(&self, kind: u8, frame: &[u8]) -> Option<()> {
        let mut counts = self.replies.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            b'Q' | b'S' => counts.asked += 1,
            // The server ignored the Sync after the Execute of the COPY: it does so during a COPY.
            b'c' => counts.asked -= 1,
            _ => {}
        }
        drop(counts);
        self.pass(&self.server, frame)
    }

    fn wait_for_answers(&self) {
        let counts = self.replies.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // The ReadyForQuery after the start-up has no request, hence one more.
        let owed = |counts: &mut Counts| counts.answered < counts.asked + 1 && !counts.ended;
        let _ = self.replies.changed.wait_timeout_while(counts, DEADLINE, owed);
    }

    fn forward_replies(&self) {
        if let Ok(mut server) = self.server.try_clone() {
            while let Some((kind, frame)) = read_frame(&mut server) {
                // The client may be gone already; the server's replies must still be read.
                let _ = self.pass(&self.client, &frame);
                if kind == b'Z' {
                    self.replies.counts.lock().unwrap_or_else(PoisonError::into_inner).answered += 1;
                    self.replies.changed.notify_all();
                }
            }
        }
        self.replies.counts.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.replies.changed.notify_all();
        let _ = self.client.shutdown(Shutdown::Both);
    }

    /// Writes the bytes, or drops them during a black hole.
    fn pass(&self, mut to: &TcpStream, bytes: &[u8]) -> Option<()> {
        if self.shared.lock().black_hole {
            return Some(());
        }
        to.write_all(bytes).ok()
    }
}

/// Reads a frame. Returns its type and all of its bytes.
fn read_frame(from: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let mut frame = vec![0; length + 1];
    frame[..5].copy_from_slice(&head);
    from.read_exact(&mut frame[5..]).ok()?;
    Some((head[0], frame))
}

/// Whether a statement of this text, which has no comments, begins with `COMMIT` or `END`, or is a transaction by
/// itself.
fn is_commit(text: &str) -> bool {
    text.to_lowercase().split(';').any(|statement| {
        let word: String = statement.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
        word == "commit" || word == "end"
    }) || text.contains("gapless.write_few(")
}

fn without_comments(mut text: &str) -> String {
    let mut kept = String::new();
    while let Some(start) = text.find("/*").into_iter().chain(text.find("--")).min() {
        kept.push_str(&text[..start]);
        let (end, skip) = if text[start..].starts_with("/*") { ("*/", 2) } else { ("\n", 1) };
        text = text[start..].find(end).map_or("", |found| &text[start + found + skip..]);
    }
    kept + text
}

#[test]
fn a_commit_is_found_behind_comments_and_in_a_list_of_statements() {
    for text in ["COMMIT", " commit ", "/* batch */ COMMIT", "-- batch\ncommit;", "select 1; COMMIT", "end"] {
        assert!(is_commit(&without_comments(text)), "{text}");
    }
    for text in ["BEGIN", "select 'commit'", "/* commit */ select 1", "-- commit", "", "set synchronous_commit = on"] {
        assert!(!is_commit(&without_comments(text)), "{text}");
    }
}
