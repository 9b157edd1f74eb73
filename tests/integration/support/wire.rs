//! A bad network before any server: a TCP proxy that delays, slices, swallows, cuts, resets and half-closes.
//!
//! What it does to a connection it counts, so that a test can tell a fault that took effect from one that met nobody.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::servers::RUNTIME;

/// What the wire does to everything that passes, until it is told otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    Clear,
    /// Each piece that was read waits that long.
    Latency(Duration),
    /// Pieces of so many bytes, each sent by itself.
    Slices(usize),
    /// Nothing passes; it is kept and passes when the weather changes, as TCP's repetitions would have it.
    BlackHole,
    /// Each connection ends in the middle of whatever it carries, after so many bytes from the server.
    CutAfter(u64),
}

/// What happens once to every connection that is open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Strike {
    /// RST to both sides.
    Reset,
    /// The client hears the end of the stream, its own direction stays open.
    HalfClose,
}

#[derive(Clone, Copy)]
struct Orders {
    weather: Weather,
    strike: Strike,
    strikes: u64,
}

pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    upstream: Arc<Mutex<SocketAddr>>,
    orders: watch::Sender<Orders>,
    effects: Arc<AtomicU64>,
}

impl Wire {
    /// Listens on a free port; who connects before `lead_to` was called is turned away.
    pub(crate) fn new() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let (upstream, effects) = (Arc::new(Mutex::new(nowhere)), Arc::new(AtomicU64::new(0)));
        let orders = Orders { weather: Weather::Clear, strike: Strike::Reset, strikes: 0 };
        let (orders, heard) = watch::channel(orders);
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port for the wire");
        let address = listener.local_addr().expect("the port of the wire");
        RUNTIME.spawn({
            let (upstream, effects) = (Arc::clone(&upstream), Arc::clone(&effects));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let upstream = *upstream.lock().unwrap_or_else(PoisonError::into_inner);
                    tokio::spawn(serve(client, upstream, heard.clone(), Arc::clone(&effects)));
                }
            }
        });
        Self { address, upstream, orders, effects }
    }

    /// New connections go there from now on.
    pub(crate) fn lead_to(&self, upstream: SocketAddr) {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    pub(crate) fn weather(&self, weather: Weather) {
        self.orders.send_modify(|orders| orders.weather = weather);
    }

    pub(crate) fn strike(&self, strike: Strike) {
        self.orders.send_modify(|orders| (orders.strike, orders.strikes) = (strike, orders.strikes + 1));
    }

    /// Pieces delayed, sliced or kept, and connections ended, since the beginning.
    pub(crate) fn effects(&self) -> u64 {
        self.effects.load(Ordering::SeqCst)
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, heard: watch::Receiver<Orders>, effects: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut strikes = heard.clone();
    let before = strikes.borrow_and_update().strikes;
    let strike = async {
        // An error means that the wire is gone: then no strike comes any more.
        while strikes.borrow_and_update().strikes == before {
            if strikes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        strikes.borrow().strike
    };
    let struck = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = Direction { heard: heard.clone(), effects: Arc::clone(&effects), may_cut: false };
        let down = Direction { heard, effects: Arc::clone(&effects), may_cut: true };
        let mut up = Box::pin(up.copy(&mut from_client, &mut to_server));
        let mut down = Box::pin(down.copy(&mut from_server, &mut to_client));
        // One direction that ends takes the other with it, as a server that closes does.
        let struck = tokio::select! {
            () = &mut up => None,
            () = &mut down => None,
            strike = strike => Some(strike),
        };
        if struck.is_some() {
            effects.fetch_add(1, Ordering::SeqCst);
        }
        if struck == Some(Strike::HalfClose) {
            drop(down);
            let _ = to_client.shutdown().await;
            let _ = tokio::time::timeout(Duration::from_secs(2), up).await;
        }
        struck
    };
    if struck == Some(Strike::Reset) {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

struct Direction {
    heard: watch::Receiver<Orders>,
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

    /// None: this connection is over.
    async fn pass(&mut self, mut piece: &[u8], to: &mut WriteHalf<'_>, passed: &mut u64) -> Option<()> {
        loop {
            let weather = self.heard.borrow_and_update().weather;
            if weather != Weather::Clear && !matches!(weather, Weather::CutAfter(_)) {
                self.effects.fetch_add(1, Ordering::SeqCst);
            }
            match weather {
                Weather::Clear => {}
                Weather::Latency(time) => tokio::time::sleep(time).await,
                Weather::Slices(size) => {
                    while piece.len() > size {
                        to.write_all(&piece[..size]).await.ok()?;
                        tokio::task::yield_now().await;
                        piece = &piece[size..];
                    }
                }
                Weather::BlackHole => {
                    self.heard.changed().await.ok()?;
                    continue;
                }
                Weather::CutAfter(limit) if self.may_cut => {
                    let left = usize::try_from(limit.saturating_sub(*passed)).unwrap_or(usize::MAX);
                    if left < piece.len() {
                        self.effects.fetch_add(1, Ordering::SeqCst);
                        let _ = to.write_all(&piece[..left]).await;
                        return None;
                    }
                }
                Weather::CutAfter(_) => {}
            }
            *passed += piece.len() as u64;
            return to.write_all(piece).await.ok();
        }
    }
}
