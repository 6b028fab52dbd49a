//! How much anybody may ask of this server, and the counters that enforce it.
//!
//! Every number is a setting under `[limits]` in `ecconfigd.toml`; the settings, their defaults and what they mean are declared in
//! [`cluster::documents::schema::ecconfigd`]. What always
//! holds: nothing waits without a bound on how many wait and how long, and whoever is turned away gets 429 (it is you) or 503 (it is
//! us) with `Retry-After`. Idle watchers are counted apart from requests that work, so that ten thousand of them block nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use cluster::documents::schema::ecconfigd::Limits as Settings;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::accounts::throttle::network;
use crate::http::problem::{ApiError, Code};

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's head. 16 KiB is what common proxies take.
    pub header_bytes: usize,
    /// Fields of a request's head.
    pub header_count: usize,
    /// From accept to the end of the TLS handshake, and from there to the first request.
    pub header_time: Duration,
    /// How long a connection may stay open with no request in flight; bounds slow heads too.
    pub idle_time: Duration,
    /// How long any body may pause.
    pub body_idle_time: Duration,
    /// A JSON request from first to last byte of work; watches and transfers have their own bounds.
    pub request_time: Duration,
    /// A clone, fetch or push in all.
    pub transfer_time: Duration,
    /// Bytes of an ordinary JSON body.
    pub body_bytes: usize,
    /// Bytes of a commit's JSON body.
    pub commit_bytes: usize,
    /// Bytes of a pushed pack.
    pub push_bytes: u64,
    /// Bytes of one object in a pushed pack.
    pub object_bytes: u64,
    /// Objects in a pushed pack.
    pub push_objects: u32,
    /// Bytes of a file that the API hands out in one piece.
    pub file_bytes: u64,
    /// Open connections in all.
    pub connections: usize,
    /// Open connections of one address (or IPv6 /64). A site behind NAT is one address, hence generous.
    pub connections_per_address: usize,
    /// Streams of one HTTP/2 connection.
    pub streams_per_connection: u32,
    /// Requests that are being worked on.
    pub in_flight: usize,
    /// Requests that may wait for their turn.
    pub queue: usize,
    /// How long a request may wait for its turn.
    pub queue_time: Duration,
    /// Long polls and event streams.
    pub watchers: usize,
    /// Clones and fetches at once: each holds a thread.
    pub fetches: usize,
    /// Pushes at once: each holds a thread and a quarantine on disk.
    pub pushes: usize,
    /// Password verifications at once: each takes a core and 19 MiB for some 20 ms.
    pub password_checks: usize,
    /// The longest that a long poll waits, whatever it asks for.
    pub wait_time: Duration,
    /// How long a certificate is good for.
    pub certificate_life: Duration,
    /// How long the server drains at shutdown.
    pub shutdown_time: Duration,
}

/// The limits in force, for all parts of the server that look at them. What was begun under the old ones goes on under them.
#[derive(Debug, Clone)]
pub struct Live(Arc<ArcSwap<Limits>>);

impl Live {
    /// Begins with these.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }

    /// Those of this moment.
    pub fn now(&self) -> Arc<Limits> {
        self.0.load_full()
    }

    /// Puts others in force.
    pub fn set(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }
}

/// Threads that read repositories at once: enough to keep every disk busy, and far from all that the runtime has.
const READERS: usize = 64;
/// An ordinary JSON body. Nothing but a commit has more to say, so this one is no setting.
const BODY_BYTES: usize = 1 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self::from(&Settings::default())
    }
}

impl From<&Settings> for Limits {
    fn from(set: &Settings) -> Self {
        Self {
            header_bytes: set.header_size.bytes() as usize,
            header_count: set.header_count as usize,
            header_time: set.header_timeout.get(),
            idle_time: set.idle_timeout.get(),
            body_idle_time: set.stall_timeout.get(),
            request_time: set.request_timeout.get(),
            transfer_time: set.transfer_timeout.get(),
            body_bytes: BODY_BYTES.min(set.body_size.bytes() as usize),
            commit_bytes: set.body_size.bytes() as usize,
            push_bytes: set.push_size.bytes(),
            object_bytes: set.file_size.bytes(),
            push_objects: set.push_objects,
            file_bytes: set.file_size.bytes(),
            connections: set.connections as usize,
            connections_per_address: set.connections_per_address as usize,
            streams_per_connection: set.streams_per_connection,
            in_flight: set.requests as usize,
            queue: set.queue as usize,
            queue_time: set.queue_timeout.get(),
            watchers: set.watchers as usize,
            fetches: set.git_transfers as usize,
            pushes: set.git_pushes as usize,
            password_checks: set.password_checks as usize,
            wait_time: set.wait.get(),
            certificate_life: set.certificate_life.get(),
            shutdown_time: set.shutdown_timeout.get(),
        }
    }
}

/// Places of one kind, with a bounded queue in front.
#[derive(Debug)]
pub struct Places {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
    queue_time: Duration,
    what: &'static str,
}

impl Places {
    /// So many places; at most `queue` callers wait for one, each at most `queue_time`.
    pub fn new(what: &'static str, places: usize, queue: usize, queue_time: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), waiting: AtomicUsize::new(0), queue, queue_time, what }
    }

    /// Takes a place, waiting for it as long as the bounds allow.
    pub async fn take(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::enter(&self.waiting, self.queue).ok_or_else(|| self.full())?;
        let place = tokio::time::timeout(self.queue_time, self.places.clone().acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or_else(|| self.full())
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    fn full(&self) -> ApiError {
        let wait = self.queue_time.max(Duration::from_secs(1));
        let words = format!("no free place among the {}", self.what);
        ApiError::new(Code::Overloaded, words).retry_after(wait).not_done()
    }
}

/// One caller in a queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, bound: usize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let this = Self(count);
        (before < bound).then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts open connections, in all and per address.
#[derive(Debug)]
pub struct ConnectionGate {
    limits: Live,
    /// Bounded by `connections`: an address is here only while it has a connection.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// This address has too many.
    Address,
    /// There are too many in all.
    Full,
}

impl TurnedAway {
    /// What the client is told.
    pub fn error(self) -> ApiError {
        let wait = Duration::from_secs(5);
        match self {
            Self::Address => ApiError::new(Code::TooMany, "too many connections from this address").retry_after(wait),
            Self::Full => ApiError::new(Code::Overloaded, "too many connections").retry_after(wait),
        }
    }
}

/// An open connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct ConnectionPlace {
    gate: Arc<ConnectionGate>,
    address: IpAddr,
}

impl ConnectionGate {
    /// A gate with these bounds.
    pub fn new(limits: &Live) -> Arc<Self> {
        Arc::new(Self { limits: limits.clone(), open: Mutex::default() })
    }

    /// Lets a connection in or says why not.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionPlace, TurnedAway> {
        let (address, limits) = (network(address), self.limits.now());
        let mut open = self.open.lock().expect("no code panics while it holds this lock");
        if open.total >= limits.connections {
            return Err(TurnedAway::Full);
        }
        let count = open.by_address.entry(address).or_default();
        if *count >= limits.connections_per_address {
            return Err(TurnedAway::Address);
        }
        *count += 1;
        open.total += 1;
        Ok(ConnectionPlace { gate: self.clone(), address })
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.lock().expect("no code panics while it holds this lock").total
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock().expect("no code panics while it holds this lock");
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

/// The places of every kind.
#[derive(Debug)]
pub struct AllPlaces {
    /// Ordinary requests.
    pub requests: Places,
    /// Long polls and event streams: no queue, a watcher that finds no place goes to another node.
    pub watchers: Places,
    /// Threads that read repositories: a request that gave up after its time leaves its thread behind, which still counts here.
    pub readers: Places,
    /// Clones and fetches.
    pub fetches: Places,
    /// Pushes.
    pub pushes: Places,
}

impl AllPlaces {
    /// The places that the limits name.
    pub fn new(limits: &Limits) -> Self {
        let transfer_wait = limits.queue_time * 6;
        Self {
            requests: Places::new("requests", limits.in_flight, limits.queue, limits.queue_time),
            watchers: Places::new("watchers", limits.watchers, 0, Duration::ZERO),
            readers: Places::new("readers", limits.in_flight.min(READERS), limits.queue, limits.queue_time),
            fetches: Places::new("fetches", limits.fetches, limits.queue, transfer_wait),
            pushes: Places::new("pushes", limits.pushes, limits.queue, transfer_wait),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn connections_are_counted_per_address_and_in_all() {
        let limits = Live::new(Limits { connections: 3, connections_per_address: 2, ..Limits::default() });
        let gate = ConnectionGate::new(&limits);
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = gate.enter(one).unwrap();
        let _second = gate.enter(one).unwrap();
        assert_eq!(gate.enter(one).unwrap_err(), TurnedAway::Address);
        let _third = gate.enter(two).unwrap();
        assert_eq!(gate.enter(two).unwrap_err(), TurnedAway::Full);
        drop(first);
        assert!(gate.enter(one).is_ok());
        limits.set(Limits { connections: 2, ..Limits::default() });
        assert_eq!(gate.enter(one).unwrap_err(), TurnedAway::Full);
        limits.set(Limits::default());
        assert!(gate.enter(one).is_ok());
        assert_eq!(gate.open(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_bounded_in_length_and_time() {
        let places = Arc::new(Places::new("things", 1, 1, Duration::from_secs(5)));
        let held = places.take().await.unwrap();
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take().await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(places.take().await.unwrap_err().code(), Code::Overloaded, "the queue is full");
        assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Overloaded, "waited long enough");
        drop(held);
        assert!(places.take().await.is_ok());
    }
}
