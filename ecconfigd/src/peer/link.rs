//! One lane to one member: a connection that is made when somebody calls, shared by all calls, and given up when it goes silent.
//!
//! Connecting happens in a task of its own: a heartbeat that is given up after 50 ms must not end a handshake that needs 60.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::io::{AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

use super::client::{Dialer, Target};
use super::frame::{self, Frame};
use super::{Lane, Method, PeerError};

/// Frames that wait to be written: openraft keeps a few dozen appends in flight. Who finds it full waits within its own time.
const QUEUE: usize = 128;
/// After a failure nobody knocks again for this long; calls in between fail with the same words.
const COOL_DOWN: Duration = Duration::from_millis(100);
/// How often a quiet connection with something outstanding is pinged, …
const PING: Duration = Duration::from_millis(500);
/// … and how long it may say nothing at all. The kernel would take minutes to notice that a host is gone.
const SILENCE: Duration = Duration::from_secs(3);

type Dialing = Shared<BoxFuture<'static, Result<Arc<Connection>, PeerError>>>;

pub(super) struct Link {
    dialer: Arc<Dialer>,
    target: Target,
    lane: Lane,
    state: Mutex<State>,
    /// Whether it was last said to be away.
    away: AtomicBool,
}

enum State {
    Idle,
    /// Under way or up.
    Made(Dialing),
    Failed(PeerError, Instant),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn new(dialer: Arc<Dialer>, target: Target, lane: Lane) -> Self {
        Self { dialer, target, lane, state: Mutex::new(State::Idle), away: AtomicBool::new(false) }
    }

    pub(super) async fn call(&self, method: Method, body: Bytes, within: Duration) -> Result<Bytes, PeerError> {
        let late = || PeerError::TimedOut {
            peer: self.target.node.clone(),
            method,
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        };
        let begin = Instant::now();
        let connection = match tokio::time::timeout(within, self.connection()?).await {
            Ok(made) => made.inspect_err(|error| self.failed(error))?,
            // Nothing was sent.
            Err(_) => {
                let why = format!("no connection to {} within {} ms", self.target.address, within.as_millis());
                return Err(PeerError::Unreachable { peer: self.target.node.clone(), why });
            }
        };
        self.tell(false, &"");
        let left = within.saturating_sub(begin.elapsed());
        tokio::time::timeout(left, connection.call(method, body, left)).await.map_err(|_| late())?
    }

    /// The connection, or the one that is being made.
    fn connection(&self) -> Result<Dialing, PeerError> {
        let mut state = locked(&self.state);
        match &*state {
            State::Failed(error, since) if since.elapsed() < COOL_DOWN => return Err(error.clone()),
            State::Made(made) => match made.peek() {
                Some(Ok(connection)) if connection.closed.is_cancelled() => {}
                Some(Err(_)) => {}
                _ => return Ok(made.clone()),
            },
            _ => {}
        }
        let (dialer, target, lane) = (self.dialer.clone(), self.target.clone(), self.lane);
        let task = tokio::spawn(async move {
            let io = dialer.dial(&target, lane).await?;
            Ok(Connection::start(io, target.node))
        });
        let node = self.target.node.clone();
        let made = task.map(move |done| {
            done.unwrap_or_else(|error| Err(PeerError::Unreachable { peer: node, why: error.to_string() }))
        });
        let made = made.boxed().shared();
        *state = State::Made(made.clone());
        Ok(made)
    }

    fn failed(&self, error: &PeerError) {
        let mut state = locked(&self.state);
        // Whoever comes late must not end what somebody else has made meanwhile.
        if matches!(&*state, State::Made(made) if matches!(made.peek(), Some(Err(_)))) {
            *state = State::Failed(error.clone(), Instant::now());
            self.tell(true, error);
        }
    }

    /// Says once that a member went away or came back; heartbeats are tried many times a second. One lane speaks for all.
    fn tell(&self, away: bool, why: &dyn std::fmt::Display) {
        if self.lane != Lane::Urgent || self.away.swap(away, Ordering::Relaxed) == away {
            return;
        }
        match away {
            true => tracing::warn!("a member went away: {why}"),
            false => tracing::info!(member = %self.target.node, "a member is back"),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let State::Made(made) = &*locked(&self.state)
            && let Some(Ok(connection)) = made.peek()
        {
            connection.close("this node has no business with it any more");
        }
    }
}

type Waiting = oneshot::Sender<Result<Bytes, PeerError>>;

/// A connection that is up.
pub(super) struct Connection {
    peer: String,
    out: mpsc::Sender<Frame>,
    /// Calls without an answer; bounded by what callers have in flight.
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_id: AtomicU64,
    made: Instant,
    /// When something was last read, in milliseconds after `made`.
    heard_ms: AtomicU64,
    closed: CancellationToken,
}

/// Forgets a call whose caller has gone.
struct Forget<'a>(&'a Connection, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        locked(&self.0.waiting).remove(&self.1);
    }
}

impl Connection {
    fn start(io: BufStream<TlsStream<TcpStream>>, peer: String) -> Arc<Self> {
        let (out, frames) = mpsc::channel(QUEUE);
        let this = Arc::new(Self {
            peer,
            out,
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
            made: Instant::now(),
            heard_ms: AtomicU64::new(0),
            closed: CancellationToken::new(),
        });
        let (input, output) = tokio::io::split(io);
        tokio::spawn(write_all(output, frames, this.closed.clone()));
        tokio::spawn(this.clone().read_all(input));
        tokio::spawn(this.clone().listen_for_silence());
        this
    }

    fn since_made_ms(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn call(&self, method: Method, body: Bytes, left: Duration) -> Result<Bytes, PeerError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        locked(&self.waiting).insert(id, answer);
        let _forget = Forget(self, id);
        let time_left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let request = Frame::Request { id, method, time_left_ms, body };
        let unsent = || PeerError::Unreachable { peer: self.peer.clone(), why: "the connection has just ended".into() };
        if self.closed.is_cancelled() || self.out.send(request).await.is_err() {
            return Err(unsent());
        }
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or_else(|_| Err(self.lost("it was closed"))),
            () = self.closed.cancelled() => Err(self.lost("it was closed")),
        }
    }

    fn lost(&self, why: &str) -> PeerError {
        PeerError::Lost { peer: self.peer.clone(), why: why.into() }
    }

    fn close(&self, why: &str) {
        if !self.closed.is_cancelled() {
            tracing::debug!(peer = %self.peer, why, "a connection to a peer is closed");
        }
        self.closed.cancel();
        for (_, waiting) in locked(&self.waiting).drain() {
            drop(waiting.send(Err(self.lost(why))));
        }
    }

    async fn read_all(self: Arc<Self>, mut input: impl tokio::io::AsyncRead + Unpin) {
        loop {
            let frame = tokio::select! {
                frame = frame::read(&mut input) => frame,
                () = self.closed.cancelled() => return,
            };
            self.heard_ms.store(self.since_made_ms(), Ordering::Relaxed);
            match frame {
                Ok(Some(Frame::Answer { id, body })) => self.answer(id, Ok(body)),
                Ok(Some(Frame::Refusal { id, refusal })) => {
                    self.answer(id, Err(PeerError::Refused { peer: self.peer.clone(), refusal }));
                }
                Ok(Some(Frame::Pong)) => {}
                Ok(Some(_)) => return self.close("it sent a frame that is no answer"),
                Ok(None) => return self.close("it closed the connection"),
                Err(error) => return self.close(&error.to_string()),
            }
        }
    }

    fn answer(&self, id: u64, answer: Result<Bytes, PeerError>) {
        // A caller that gave up is not there any more.
        if let Some(waiting) = locked(&self.waiting).remove(&id) {
            drop(waiting.send(answer));
        }
    }

    /// Pings while something is outstanding; closes when nothing comes back.
    async fn listen_for_silence(self: Arc<Self>) {
        let mut pinged_ms = None;
        while self.closed.run_until_cancelled(tokio::time::sleep(PING)).await.is_some() {
            let heard = self.heard_ms.load(Ordering::Relaxed);
            if pinged_ms.is_some_and(|pinged| heard >= pinged) {
                pinged_ms = None;
            }
            match pinged_ms {
                Some(pinged) if self.since_made_ms() > pinged + SILENCE.as_millis() as u64 => {
                    return self.close("it has gone silent");
                }
                Some(_) => {}
                None if locked(&self.waiting).is_empty() => {}
                None => {
                    // Before sending: the answer may be here at once. A full queue means that enough is on its way to be answered.
                    pinged_ms = Some(self.since_made_ms());
                    let _ = self.out.try_send(Frame::Ping);
                }
            }
        }
    }
}

/// Writes what waits, and flushes when nothing does.
pub(super) async fn write_all(
    output: impl tokio::io::AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
    closed: CancellationToken,
) {
    let mut output = output;
    let work = async {
        while let Some(frame) = frames.recv().await {
            frame::write(&mut output, &frame).await?;
            while let Ok(frame) = frames.try_recv() {
                frame::write(&mut output, &frame).await?;
            }
            output.flush().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let done = closed.run_until_cancelled(work).await;
    if let Some(Err(error)) = done {
        tracing::debug!(%error, "a connection to a peer broke");
    }
    closed.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), output.shutdown()).await;
}
