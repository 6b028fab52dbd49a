//! What a connection and the requests on it know of each other: who is at the other end, what is in flight, and whether it shall end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::identity::Peer;
use tokio::sync::Notify;

/// What a request's handler may know about its connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The other end.
    pub remote: SocketAddr,
    /// The node behind a verified client certificate.
    pub peer: Option<Peer>,
    activity: Activity,
    leaving: AtomicBool,
    left: Notify,
}

/// When the connection was last of use: how many requests are in flight, and since when none is.
#[derive(Debug)]
struct Activity {
    opened: Instant,
    in_flight: AtomicU32,
    idle_since_ms: AtomicU64,
    served: AtomicU64,
}

impl ConnectionInfo {
    /// A connection that has served nothing yet.
    pub fn new(remote: SocketAddr, peer: Option<Peer>) -> Arc<Self> {
        let activity = Activity {
            opened: Instant::now(),
            in_flight: AtomicU32::new(0),
            idle_since_ms: AtomicU64::new(0),
            served: AtomicU64::new(0),
        };
        Arc::new(Self { remote, peer, activity, leaving: AtomicBool::new(false), left: Notify::new() })
    }

    /// Requests so far.
    pub(super) fn served(&self) -> u64 {
        self.activity.served.load(Ordering::Relaxed)
    }

    /// Whether a request is in flight: not yet answered to its last byte.
    pub(super) fn busy(&self) -> bool {
        self.activity.in_flight.load(Ordering::Relaxed) > 0
    }

    /// How long no request has been in flight.
    pub(super) fn idle(&self) -> Duration {
        if self.busy() {
            return Duration::ZERO;
        }
        let since = Duration::from_millis(self.activity.idle_since_ms.load(Ordering::Relaxed));
        self.activity.opened.elapsed().saturating_sub(since)
    }

    /// The connection shall end after the answers under way: what it was opened with does not hold any more.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.left.notify_one();
    }

    /// Whether it shall end.
    pub(super) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Waits until it shall end. For one waiter, the connection's loop.
    pub(super) async fn left(&self) {
        while !self.leaving() {
            self.left.notified().await;
        }
    }
}

/// A request in flight on its connection; it ends when the last byte of the answer is sent.
#[derive(Debug)]
pub struct InFlight(Arc<ConnectionInfo>);

impl InFlight {
    /// Counts a request.
    pub fn begin(info: &Arc<ConnectionInfo>) -> Self {
        info.activity.in_flight.fetch_add(1, Ordering::Relaxed);
        info.activity.served.fetch_add(1, Ordering::Relaxed);
        Self(info.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.0.activity;
        activity.idle_since_ms.store(activity.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
        activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
