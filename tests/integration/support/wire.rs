//! A bad network before a server: a TCP proxy that delays, slices, holds, cuts, resets and half-closes connections.
//!
//! The proxy counts its effects on connections, so that a test can detect a fault without effect.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::servers::RUNTIME;

/// The effect of the network on all traffic, until another condition is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Condition {
    Clear,
    /// Each piece that is read is delayed by this time.
    Latency(Duration),
    /// Traffic is sent in pieces of at most this many bytes.
    Slices(usize),
    /// Nothing passes. The data is kept and passes when the condition changes, as with TCP's retransmissions.
    BlackHole,
    /// Each connection ends after this many bytes from the server, in the middle of a message.
    CutAfter(u64),
}

/// A one-time fault on every open connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Disconnect {
    /// Both sides receive an RST.
    Reset,
    /// The client receives the end of the stream; its own direction stays open.
    HalfClose,
}

#[derive(Clone, Copy)]
struct Orders {
    condition: Condition,
    disconnect: Disconnect,
    disconnects: u64,
}

pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    upstream: Arc<Mutex<SocketAddr>>,
    orders: watch::Sender<Orders>,
    effects: Arc<AtomicU64>,
}

impl Wire {
    /// Listens on a free port. Connections before the first `forward_to` fail.
    pub(crate) fn new() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let (upstream, effects) = (Arc::new(Mutex::new(nowhere)), Arc::new(AtomicU64::new(0)));
        let orders = Orders { condition: Condition::Clear, disconnect: Disconnect::Reset, disconnects: 0 };
        let (orders, orders_seen) = watch::channel(orders);
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port for the wire");
        let address = listener.local_addr().expect("the port of the wire");
        RUNTIME.spawn({
            let (upstream, effects) = (Arc::clone(&upstream), Arc::clone(&effects));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let upstream = *upstream.lock().unwrap_or_else(PoisonError::into_inner);
                    tokio::spawn(serve(client, upstream, orders_seen.clone(), Arc::clone(&effects)));
                }
            }
        });
        Self { address, upstream, orders, effects }
    }

    /// Forwards new connections to this address.
    pub(crate) fn forward_to(&self, upstream: SocketAddr) {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    pub(crate) fn set_condition(&self, condition: Condition) {
        self.orders.send_modify(|orders| orders.condition = condition);
    }

    pub(crate) fn disconnect(&self, disconnect: Disconnect) {
        self.orders
            .send_modify(|orders| (orders.disconnect, orders.disconnects) = (disconnect, orders.disconnects + 1));
    }

    /// The number of pieces delayed, sliced or held, and of connections ended, since the start.
    pub(crate) fn effects(&self) -> u64 {
        self.effects.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    orders_seen: watch::Receiver<Orders>,
    effects: Arc<AtomicU64>,
) {
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut disconnects = orders_seen.clone();
    let before = disconnects.borrow_and_update().disconnects;
    let disconnect = async {
        // An error means that the `Wire` was dropped: then no further disconnect can come.
        while disconnects.borrow_and_update().disconnects == before {
            if disconnects.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        disconnects.borrow().disconnect
    };
    let disconnected = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = Direction { orders_seen: orders_seen.clone(), effects: Arc::clone(&effects), may_cut: false };
        let down = Direction { orders_seen, effects: Arc::clone(&effects), may_cut: true };
        let mut up = Box::pin(up.copy(&mut from_client, &mut to_server));
        let mut down = Box::pin(down.copy(&mut from_server, &mut to_client));
        // The end of one direction ends the other, as when a server closes the connection.
        let disconnected = tokio::select! {
            () = &mut up => None,
            () = &mut down => None,
            disconnect = disconnect => Some(disconnect),
        };
        if disconnected.is_some() {
            effects.fetch_add(1, Ordering::SeqCst);
        }
        if disconnected == Some(Disconnect::HalfClose) {
            drop(down);
            let _ = to_client.shutdown().await;
            let _ = tokio::time::timeout(Duration::from_secs(2), up).await;
        }
        disconnected
    };
    if disconnected == Some(Disconnect::Reset) {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

struct Direction {
    orders_seen: watch::Receiver<Orders>,
    effects: Arc<AtomicU64>,
    may_cut: bool,
}

impl Direction {
    async fn copy(mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) {
        let mut buffer = vec![0; 16 * 1024];
        let mut passed = 0;
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if self.pass(&buffer[..count], to, &mut passed).await.is_none() {
                return;
            }
        }
    }

    /// `None`: the connection has ended.
    async fn pass(&mut self, mut piece: &[u8], to: &mut WriteHalf<'_>, passed: &mut u64) -> Option<()> {
        loop {
            let condition = self.orders_seen.borrow_and_update().condition;
            if condition != Condition::Clear && !matches!(condition, Condition::CutAfter(_)) {
                self.effects.fetch_add(1, Ordering::SeqCst);
            }
            match condition {
                Condition::Clear => {}
                Condition::Latency(time) => tokio::time::sleep(time).await,
                Condition::Slices(size) => {
                    while piece.len() > size {
                        to.write_all(&piece[..size]).await.ok()?;
                        tokio::task::yield_now().await;
                        piece = &piece[size..];
                    }
                }
                Condition::BlackHole => {
                    self.orders_seen.changed().await.ok()?;
                    continue;
                }
                Condition::CutAfter(limit) if self.may_cut => {
                    let left = usize::try_from(limit.saturating_sub(*passed)).unwrap_or(usize::MAX);
                    if left < piece.len() {
                        self.effects.fetch_add(1, Ordering::SeqCst);
                        let _ = to.write_all(&piece[..left]).await;
                        return None;
                    }
                }
                Condition::CutAfter(_) => {}
            }
            *passed += piece.len() as u64;
            return to.write_all(piece).await.ok();
        }
    }
}
