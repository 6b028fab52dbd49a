//! One accepted connection, from the first byte to the last: admission, TLS, HTTP/1.1 or HTTP/2 by ALPN, idle time, shutdown.
//!
//! Ten thousand of these are open at once and most do nothing, so their memory counts: the protocol is known from ALPN and only its state
//! is kept, buffers are small, and idle time is watched by one timer per connection. What lasts over HTTP/1.1 is taken away from hyper and
//! its buffers (see [`super::http1`]). A connection over the bounds is still answered, with 429 or 503, as long as few are; then it is
//! dropped before TLS costs anything. A connection that was opened with a node's certificate ends with that certificate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse as _;
use cluster::identity::Peer;
use cluster::telemetry::RequestId;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::ConnectionInfo;
use super::wire;
use crate::limits::{ConnectionGate, ConnectionPlace, Live};
use crate::peer;

/// Connections over the bounds that are answered at a time; the others are closed without a word.
const REFUSALS: usize = 32;

/// How long a client has to read why its handshake failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A connection's TLS.
pub(super) type Tls = TlsStream<TcpStream>;

/// In an answer's extensions: nothing follows it on its connection, and it may last for hours.
#[derive(Debug, Clone, Copy)]
pub struct LastAnswer;

/// An answer that may take minutes in which nothing happens.
pub type LaterAnswer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What a handler has to say.
pub enum Answer {
    /// This.
    Now(Response<Body>),
    /// Something that is waited for.
    Later(LaterAnswer),
}

/// Answers one request; what the router is to connections.
pub trait Handler: Send + Sync + 'static {
    /// Answers; failures are answers too.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        info: Arc<ConnectionInfo>,
    ) -> impl Future<Output = Answer> + Send;
}

/// What all connections share.
pub struct Acceptor<H> {
    /// TLS with the node's certificate, client certificates optional.
    pub tls: TlsAcceptor,
    /// Who answers.
    pub handler: Arc<H>,
    /// The bounds.
    pub limits: Live,
    /// Who is in.
    pub gate: Arc<ConnectionGate>,
    /// Refusals being answered.
    pub refusals: Arc<Semaphore>,
    /// No new connections and requests from here on.
    pub draining: CancellationToken,
    /// The connections' tasks.
    pub tasks: TaskTracker,
    /// Who takes the connections of other members, which speak no HTTP.
    pub peers: Option<peer::Server>,
}

impl<H: Handler> Acceptor<H> {
    /// Puts the parts together.
    pub fn new(
        tls: Arc<rustls::ServerConfig>,
        handler: Arc<H>,
        limits: Live,
        gate: Arc<ConnectionGate>,
        draining: CancellationToken,
    ) -> Arc<Self> {
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        let tasks = TaskTracker::new();
        Arc::new(Self { tls: tls.into(), handler, limits, gate, refusals, draining, tasks, peers: None })
    }

    /// The same, and connections that chose the peer protocol go to this server.
    pub fn with_peers(self: Arc<Self>, peers: peer::Server) -> Arc<Self> {
        let this = Arc::into_inner(self).expect("it was just made and nobody else has it");
        Arc::new(Self { peers: Some(peers), ..this })
    }

    /// Accepts until the server drains.
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, remote)) => self.admit(stream, remote),
                // Out of file descriptors, or the client is gone already: neither may stop the loop, nor let it spin.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        match self.gate.enter(remote.ip()) {
            Ok(place) => {
                self.tasks.spawn(self.clone().serve(stream, remote, place));
            }
            Err(why) => {
                let Ok(permit) = self.refusals.clone().try_acquire_owned() else { return };
                let this = self.clone();
                self.tasks.spawn(async move {
                    this.refuse(stream, why.error().into_response()).await;
                    drop(permit);
                });
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, remote: SocketAddr, place: ConnectionPlace) {
        tune(&stream);
        // Each stage is boxed: a task is as large as its largest stage, and an idle watcher would carry the handshake's and the other
        // protocol's room for hours.
        let Some(stream) = Box::pin(self.handshake(stream)).await else { return };
        let Some(stream) = self.unless_peer(stream) else { return };
        let (_, session) = stream.get_ref();
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let peer = Peer::from_connection(session).unwrap_or_else(|error| {
            tracing::warn!(%remote, %error, "a client certificate of our CA names no node");
            None
        });
        let info = ConnectionInfo::new(remote, peer);
        let serving = async {
            if is_http2 {
                Box::pin(self.serve_http2(stream, info.clone())).await;
            } else {
                self.serve_http1(stream, info.clone()).await;
            }
        };
        match info.peer.as_ref().map(|peer| peer.not_after) {
            None => serving.await,
            Some(not_after) => tokio::select! {
                () = serving => {}
                () = until(not_after) => tracing::info!(%remote, "a connection ended with its certificate"),
            },
        }
        drop(place);
    }

    /// The connection back, unless it is another member's: those live until the core ends, outside the bounds and the drain for clients.
    fn unless_peer(&self, stream: Box<Tls>) -> Option<Box<Tls>> {
        let session = stream.get_ref().1;
        let Some(peers) = self.peers.as_ref().filter(|_| session.alpn_protocol() == Some(peer::ALPN)) else {
            return Some(stream);
        };
        // No certificate, or one that names no node, is refused there, with words.
        let peer = Peer::from_connection(session).unwrap_or_default();
        peers.take((*stream).into(), peer);
        None
    }

    /// TLS within its time; a client that speaks plain HTTP is told so.
    async fn handshake(&self, mut stream: TcpStream) -> Option<Box<Tls>> {
        let handshake = async {
            let mut first = [0u8; 1];
            if stream.peek(&mut first).await.ok()? > 0 && first[0].is_ascii_uppercase() {
                let _ = stream.write_all(&plain_http()).await;
                return None;
            }
            match self.tls.accept(stream).into_fallible().await {
                Ok(stream) => Some(Box::new(stream)),
                Err((_, stream)) => {
                    let _ = tokio::time::timeout(LAST_WORDS, last_words(stream)).await;
                    None
                }
            }
        };
        tokio::select! {
            done = tokio::time::timeout(self.limits.now().header_time, handshake) => done.ok().flatten(),
            () = self.draining.cancelled() => None,
        }
    }

    async fn serve_http2(&self, stream: Box<Tls>, info: Arc<ConnectionInfo>) {
        let service = service_fn(|request| {
            let (handler, info) = (self.handler.clone(), info.clone());
            async move {
                match handler.handle(request, info).await {
                    Answer::Now(response) => Ok::<_, Infallible>(response),
                    Answer::Later(later) => Ok(later.await),
                }
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.now().streams_per_connection)
            // Heads over the limit are refused with words, by `Web`; those over twice the limit by HTTP/2 itself, without.
            .max_header_list_size((self.limits.now().header_bytes as u32).saturating_mul(2))
            // Large enough that a push over a 20 ms link is not throttled, small enough that a stalled one holds little.
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20)
            .max_send_buf_size(64 << 10)
            .max_frame_size(16 << 10)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut leaving = false;
        let leave = async {
            tokio::select! {
                () = self.draining.cancelled() => {}
                () = info.left() => {}
            }
        };
        let mut leave = pin!(leave);
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = leave.as_mut(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.idle_too_long(&info) => return,
            }
        }
    }

    /// Ends when no request has been in flight for the idle time, or none came at all within the head's time.
    pub(super) async fn idle_too_long(&self, info: &ConnectionInfo) {
        loop {
            let fresh = info.served() == 0;
            let bound = if fresh { self.limits.now().header_time } else { self.limits.now().idle_time };
            let idle = info.idle();
            if idle >= bound {
                return;
            }
            tokio::time::sleep(bound - idle).await;
        }
    }

    /// Says why over TLS and closes, within the head's time.
    async fn refuse(&self, stream: TcpStream, response: Response<Body>) {
        let Some(stream) = self.handshake(stream).await else { return };
        // However many clients there are, the members must reach each other.
        let Some(mut stream) = self.unless_peer(stream) else { return };
        let _ = tokio::time::timeout(self.limits.now().header_time, refuse_http1(&mut stream, response)).await;
    }
}

/// Reads one request's head and answers it. HTTP/2 clients get their answer as a closed connection.
async fn refuse_http1(stream: &mut Tls, response: Response<Body>) {
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return;
    }
    let mut response = response;
    super::web::mark(&mut response, &RequestId::random());
    let response = Mutex::new(Some(response));
    let service = service_fn(|_: Request<Incoming>| {
        let answer = response.lock().expect("no code panics while it holds this lock").take();
        async move { answer.ok_or("one answer is all there is") }
    });
    let mut builder = http1::Builder::new();
    let _ = builder.keep_alive(false).serve_connection(TokioIo::new(&mut *stream), service).await;
    let _ = stream.shutdown().await;
}

/// Lets a client read why its handshake failed. In TLS 1.3 it has sent its request by then, and a connection that is closed with that
/// unread is reset, which takes the alert away from whoever did not read it yet.
async fn last_words(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut unread = [0u8; 4096];
    while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
}

/// What a client that speaks plain HTTP to the TLS port is told.
fn plain_http() -> bytes::Bytes {
    wire::raw(cluster::api::Problem {
        kind: "urn:eccluster:problem:plain_http".into(),
        title: "This port speaks HTTPS".into(),
        status: 400,
        detail: "the request came without TLS".into(),
        code: "plain_http".into(),
        hint: Some("use https:// and the cluster's CA, ca.pem".into()),
        ..Default::default()
    })
}

/// Waits for a moment of the wall clock. Looks again every hour: clocks are set, and machines sleep.
async fn until(moment: OffsetDateTime) {
    const AGAIN: Duration = Duration::from_secs(3600);
    loop {
        let left = moment - OffsetDateTime::now_utc();
        let Ok(left) = Duration::try_from(left) else { return };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(AGAIN)).await;
    }
}

/// Small messages leave at once, and a peer that vanished is noticed.
fn tune(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
}
