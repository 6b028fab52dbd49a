//! The answering end of a connection that TLS has let in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::identity::Peer;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bulk::Bulk;
use super::frame::{self, Frame};
use super::hello::{self, Hello, VERSION, Welcome};
use super::link::write_all;
use super::{Lane, Method, Refusal, RefusalCode};

/// How long the caller may take for its hello.
const HELLO: Duration = Duration::from_secs(5);
/// Requests of one connection that are worked on at a time; then reading stops, and TCP makes the caller wait.
const IN_FLIGHT: usize = 256;
/// Answers that wait to be written; each is also one of the requests in flight.
const QUEUE: usize = IN_FLIGHT;
/// Bulk streams that are served at a time: each may read packs or write a snapshot.
const BULKS: usize = 32;

/// Who calls: what the certificate proves and the hello says.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The node behind the verified certificate.
    pub peer: Peer,
    /// Its number in the Raft group, as it says.
    pub raft_id: u64,
}

/// What a node answers.
pub trait Service: Send + Sync + 'static {
    /// This node's number in the Raft group.
    fn raft_id(&self) -> u64;

    /// Whether this caller may ask this at all, or why not. Asked at the hello (without a method) and for every request.
    fn admit(&self, caller: &Caller, method: Option<Method>) -> Result<(), String>;

    /// A caller that was let in says where it is reached.
    fn reached_at(&self, _caller: &Caller, _address: &str) {}

    /// Answers a call. Requests of one connection begin in the order in which they came: the future is polled once before the next
    /// request is read.
    fn call(
        self: Arc<Self>,
        caller: Arc<Caller>,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// Serves a bulk stream. A refusal is sent to the caller in place of the stream's end.
    fn bulk<'a>(
        self: Arc<Self>,
        caller: Arc<Caller>,
        method: Method,
        head: Bytes,
        stream: &'a mut Bulk,
    ) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// Serves connections until it is closed. Clones share it.
#[derive(Clone)]
pub struct Server {
    service: Arc<dyn Service>,
    bulks: Arc<Semaphore>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// A server for this service.
    pub fn new(service: Arc<dyn Service>) -> Self {
        let bulks = Arc::new(Semaphore::new(BULKS));
        Self { service, bulks, closing: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// Takes a connection whose handshake chose [`super::ALPN`]. `peer` is what its verified certificate says.
    pub fn take(&self, stream: TlsStream<TcpStream>, peer: Option<Peer>) {
        if self.tasks.is_closed() {
            return;
        }
        super::client::tune(stream.get_ref().0);
        let this = self.clone();
        self.tasks.spawn(async move {
            let closing = this.closing.clone();
            let served =
                closing.run_until_cancelled(this.serve(BufStream::with_capacity(64 << 10, 64 << 10, stream), peer));
            if let Some(Err(error)) = served.await {
                tracing::debug!(%error, "a peer's connection ended");
            }
        });
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn serve(self, mut io: BufStream<TlsStream<TcpStream>>, peer: Option<Peer>) -> std::io::Result<()> {
        let greeted = tokio::time::timeout(HELLO, self.greet(&mut io, peer)).await;
        let Some((caller, lane)) = greeted.map_err(std::io::Error::from)?? else { return Ok(()) };
        let caller = Arc::new(caller);
        match lane {
            Lane::Bulk => self.serve_bulk(io, caller).await,
            _ => self.serve_calls(io, caller).await,
        }
    }

    /// Reads the hello and answers it; `None` when the caller was refused.
    async fn greet(
        &self,
        io: &mut BufStream<TlsStream<TcpStream>>,
        peer: Option<Peer>,
    ) -> std::io::Result<Option<(Caller, Lane)>> {
        let (version, words) = hello::read(io).await?;
        let welcome = |refused| Welcome { refused, build: hello::build() };
        match self.judge(version, &words, peer) {
            Ok(welcomed) => {
                hello::write(io, VERSION, &welcome(None)).await?;
                Ok(Some(welcomed))
            }
            Err(why) => {
                tracing::info!(why, "a peer was refused");
                hello::write(io, VERSION, &welcome(Some(why))).await?;
                // Half closed and drained, so that the words arrive before the reset that unread bytes would cause.
                let _ = io.shutdown().await;
                Ok(None)
            }
        }
    }

    fn judge(&self, version: u16, words: &[u8], peer: Option<Peer>) -> Result<(Caller, Lane), String> {
        if version != VERSION {
            return Err(hello::other_version(version));
        }
        let hello: Hello =
            serde_json::from_slice(words).map_err(|error| format!("the hello cannot be read: {error}"))?;
        let peer = peer.ok_or("a peer has to show its certificate")?;
        let own = self.service.raft_id();
        if hello.to != own {
            return Err(format!("this is member {own}, not {}", hello.to));
        }
        let caller = Caller { peer, raft_id: hello.from };
        self.service.admit(&caller, None)?;
        if let Some(address) = &hello.address {
            self.service.reached_at(&caller, address);
        }
        Ok((caller, hello.lane))
    }

    async fn serve_calls(self, io: BufStream<TlsStream<TcpStream>>, caller: Arc<Caller>) -> std::io::Result<()> {
        let (input, output) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(QUEUE);
        // Ends with this function: tasks that still work then have nobody to answer.
        let closed = self.closing.child_token();
        let _close = closed.clone().drop_guard();
        self.tasks.spawn(write_all(output, frames, closed.clone()));
        let reading = self.read_calls(input, out, caller);
        closed.run_until_cancelled(reading).await.unwrap_or(Ok(()))
    }

    async fn read_calls(
        &self,
        mut input: impl AsyncRead + Unpin,
        out: mpsc::Sender<Frame>,
        caller: Arc<Caller>,
    ) -> std::io::Result<()> {
        let places = Arc::new(Semaphore::new(IN_FLIGHT));
        while let Some(frame) = frame::read(&mut input).await? {
            let (id, method, time_left_ms, body) = match frame {
                Frame::Request { id, method, time_left_ms, body } => (id, method, time_left_ms, body),
                Frame::Ping => {
                    // A full queue is an answer, too.
                    let _ = out.try_send(Frame::Pong);
                    continue;
                }
                other => return Err(std::io::Error::other(format!("an unexpected frame: {other:?}"))),
            };
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            if let Err(words) = self.service.admit(&caller, Some(method)) {
                let refusal = Refusal::new(RefusalCode::Stranger, words);
                drop(out.send(Frame::Refusal { id, refusal }).await);
                continue;
            }
            let within = Duration::from_millis(u64::from(time_left_ms));
            let mut work = self.service.clone().call(caller.clone(), method, body, within);
            let out = out.clone();
            // Polled here first: what came first begins first.
            if let std::task::Poll::Ready(answer) = futures::poll!(&mut work) {
                drop(out.send(frame_of(id, answer)).await);
                continue;
            }
            self.tasks.spawn(async move {
                // A little longer than the caller waits: its own clock decides.
                let answer = tokio::time::timeout(within + Duration::from_secs(1), work).await;
                if let Ok(answer) = answer {
                    drop(out.send(frame_of(id, answer)).await);
                }
                drop(place);
            });
        }
        Ok(())
    }

    async fn serve_bulk(self, mut io: BufStream<TlsStream<TcpStream>>, caller: Arc<Caller>) -> std::io::Result<()> {
        let first = tokio::time::timeout(HELLO, frame::read(&mut io)).await.map_err(std::io::Error::from)??;
        let Some(Frame::Request { method, body, .. }) = first else { return Ok(()) };
        let mut stream = Bulk::new(io, caller.peer.node.clone());
        let place = self.bulks.clone().try_acquire_owned();
        let served = match (self.service.admit(&caller, Some(method)), &place) {
            (Err(words), _) => Err(Refusal::new(RefusalCode::Stranger, words)),
            (Ok(()), Err(_)) => Err(Refusal::new(RefusalCode::NotNow, "too many transfers at the moment")),
            (Ok(()), Ok(_)) => self.service.clone().bulk(caller, method, body, &mut stream).await,
        };
        if let Err(refusal) = served {
            tracing::debug!(%method, why = refusal.words, "a bulk stream was refused");
            let _ = stream.refuse(refusal).await;
        }
        Ok(())
    }
}

fn frame_of(id: u64, answer: Result<Bytes, Refusal>) -> Frame {
    match answer {
        Ok(body) => Frame::Answer { id, body },
        Err(refusal) => Frame::Refusal { id, refusal },
    }
}
