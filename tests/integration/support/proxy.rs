//! A proxy in front of PostgreSQL that understands its messages and breaks a connection at a COMMIT.
//!
//! It reads the frames of both directions, so it knows when the server has answered what was forwarded. A fault is
//! armed, meets the next COMMIT of a batch on any connection, and is spent. What the daemon writes down beside its batches
//! (states, counts) it does not meet.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::wait::DEADLINE;

/// What happens at the next COMMIT: each variant says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The server gets it and carries it out; the client's connection ends before the reply.
    ReplyLost,
    /// The connection ends and the server never sees it.
    RequestLost,
    /// The client's connection ends; the server gets it when `release` is called, from a connection still open.
    LandsLate,
    /// As `LandsLate`, but the server gets nothing before of a statement that is a transaction of its own.
    BeginsLate,
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
    /// Faults that met their COMMIT, and those of them whose work on the server is over.
    met: usize,
    finished: usize,
    released: bool,
    /// Nothing passes in any direction, and nobody is told.
    black_hole: bool,
    open: Vec<TcpStream>,
    statements: Vec<Statement>,
}

/// A statement as it passed, or the end of one prepared under a name: its text is then `close`.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// The client's port.
    pub(crate) connection: u16,
    /// Empty unless it was prepared under a name.
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
                    // A connection that breaks is what this proxy is for: its errors end it and nothing else.
                    std::thread::spawn(move || shared.serve(client));
                }
            }
        });
        Self { address, shared }
    }

    /// The next COMMIT meets this fault.
    pub(crate) fn arm(&self, fault: Fault) {
        let mut state = self.shared.lock();
        (state.armed, state.released) = (Some(fault), false);
    }

    /// No COMMIT meets a fault any more, and none is held.
    pub(crate) fn disarm(&self) {
        let mut state = self.shared.lock();
        state.armed = None;
        state.released = true;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until so many faults in all have met their COMMIT and, unless held, the server has dealt with it.
    #[track_caller]
    pub(crate) fn wait_for_faults(&self, count: usize) {
        self.shared.wait("a fault to meet a COMMIT", |state| state.met >= count && state.finished >= count);
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

    /// How many faults have met their COMMIT and are over.
    pub(crate) fn faults_met(&self) -> usize {
        let state = self.shared.lock();
        state.met.min(state.finished)
    }

    /// Every statement that has passed, in order and without its comments.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        self.shared.lock().statements.clone()
    }

    /// From now on nothing passes, on connections that are open and on new ones.
    pub(crate) fn black_hole(&self) {
        self.shared.lock().black_hole = true;
    }

    /// Connections that were swallowed are closed, new ones pass.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        state.black_hole = false;
        state.cut_all();
    }

    /// Closes every connection that is open.
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

/// How many answers the server owes, and has given. Every Query and every Sync is answered by one ReadyForQuery.
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
    /// Frames without a type come first: perhaps a wish for encryption, which this proxy declines, then the start-up.
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
        let (mut begins_late, mut held) = (false, Vec::new());
        loop {
            let (kind, frame) = read_frame(client)?;
            let body = &frame[5..];
            let commits = match kind {
                b'Q' => self.note(b"", body, &mut moves_positions),
                b'P' => {
                    // A name, then the statement, each ended by a zero.
                    let name = body.iter().position(|byte| *byte == 0)?;
                    commit_prepared |= self.note(&body[..name], &body[name + 1..], &mut moves_positions);
                    begins_late = commit_prepared && self.begins_late();
                    false
                }
                b'C' if body.first() == Some(&b'S') => {
                    self.note(&body[1..body.len() - 1], b"close", &mut moves_positions)
                }
                b'S' => std::mem::take(&mut commit_prepared),
                _ => false,
            };
            if commits && let Some(fault) = self.take_fault() {
                held.push((kind, frame));
                self.break_at_commit(fault, &held);
                return None;
            }
            if begins_late {
                held.push((kind, frame));
            } else {
                self.request(kind, &frame)?;
            }
        }
    }

    /// Keeps a zero-terminated statement; whether it commits a batch, which is a transaction that moves positions.
    fn note(&self, name: &[u8], text: &[u8], moves_positions: &mut bool) -> bool {
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

    fn begins_late(&self) -> bool {
        self.shared.lock().armed == Some(Fault::BeginsLate)
    }

    fn break_at_commit(&self, fault: Fault, held: &[(u8, Vec<u8>)]) {
        // From here on no reply reaches the client: its end of the connection is closed first.
        let _ = self.client.shutdown(Shutdown::Both);
        if matches!(fault, Fault::LandsLate | Fault::BeginsLate) {
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
            // The Sync that came with the COPY's Execute was passed over: a server in a COPY does not look at it.
            b'c' => counts.asked -= 1,
            _ => {}
        }
        drop(counts);
        self.pass(&self.server, frame)
    }

    fn wait_for_answers(&self) {
        let counts = self.replies.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // The ReadyForQuery after the start-up was not asked for, hence the one more.
        let owed = |counts: &mut Counts| counts.answered < counts.asked + 1 && !counts.ended;
        let _ = self.replies.changed.wait_timeout_while(counts, DEADLINE, owed);
    }

    fn forward_replies(&self) {
        if let Ok(mut server) = self.server.try_clone() {
            while let Some((kind, frame)) = read_frame(&mut server) {
                // The client may be gone already; what the server says still has to be read.
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

    /// Writes, unless everything is to vanish.
    fn pass(&self, mut to: &TcpStream, bytes: &[u8]) -> Option<()> {
        if self.shared.lock().black_hole {
            return Some(());
        }
        to.write_all(bytes).ok()
    }
}

/// A frame with its type and its whole bytes.
fn read_frame(from: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let mut frame = vec![0; length + 1];
    frame[..5].copy_from_slice(&head);
    from.read_exact(&mut frame[5..]).ok()?;
    Some((head[0], frame))
}

/// Whether `COMMIT` or `END` begins one of the statements of a text that has no comments, or it is one that is a
/// transaction of its own.
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
