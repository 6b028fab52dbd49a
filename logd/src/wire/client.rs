//! A connection to a node's log service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::protocol::{self, Answer, FrameError, Request, VERSION};
use super::trust::{Trust, TrustError};

/// A node that does not answer by then is away.
const CONNECT: Duration = Duration::from_secs(5);
/// What an answer may take beyond what the request itself waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that wait to be sent. Each stream has two at most, and sending is fast.
const QUEUE: usize = 64;

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It could not be reached.
    #[error("{node} cannot be reached at {address}: {why}")]
    Connect {
        /// The node.
        node: String,
        /// Where it was tried.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// This node cannot prove itself.
    #[error(transparent)]
    Trust(TrustError),
    /// The connection ended.
    #[error("the connection to {node} ended")]
    Gone {
        /// The node.
        node: String,
    },
    /// It did not answer.
    #[error("{node} does not answer")]
    Silent {
        /// The node.
        node: String,
    },
    /// It said no.
    #[error("{node} refused: {message}")]
    Refused {
        /// The node.
        node: String,
        /// In its words.
        message: String,
    },
}

type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Answer>>>>;

/// A connection; requests may be made side by side.
#[derive(Debug)]
pub struct Link {
    node: String,
    subcluster: String,
    requests: mpsc::Sender<(Request, oneshot::Sender<Answer>)>,
    ended: CancellationToken,
    _end: DropGuard,
}

impl Link {
    /// Connects to `node` at `address` (`host:port`), as `me`.
    pub async fn connect(trust: &Trust, me: &str, node: &str, address: &str) -> Result<Self, LinkError> {
        let failed = |why: String| LinkError::Connect { node: node.into(), address: address.into(), why };
        let stream = tokio::time::timeout(CONNECT, trust.connect(node, address)).await;
        let stream = stream.map_err(|_| failed("no answer".into()))?.map_err(|error| match error {
            TrustError::Nobody => LinkError::Trust(error),
            error => failed(cluster::error::Chain(&error).to_string()),
        })?;
        let (reader, writer) = tokio::io::split(stream);
        let (requests, queue) = mpsc::channel(QUEUE);
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let waiting = Waiting::default();
        tokio::spawn(send(writer, queue, waiting.clone(), stop.clone(), ended.clone()));
        tokio::spawn(receive(reader, waiting, stop.clone(), ended.clone()));
        let mut link = Self { node: node.into(), subcluster: String::new(), requests, ended, _end: stop.drop_guard() };
        let hello = Request::Hello { version: VERSION, node: me.into() };
        match link.ask(hello).await? {
            Answer::Welcome { version: VERSION, node: answering, subcluster } if answering == node => {
                link.subcluster = subcluster;
                Ok(link)
            }
            Answer::Welcome { version: VERSION, node: other, .. } => Err(failed(format!("{other} answered"))),
            Answer::Welcome { version, .. } => Err(failed(protocol::other_version(version))),
            other => Err(link.unexpected(&other)),
        }
    }

    /// The node at the other end.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its subcluster.
    pub fn subcluster(&self) -> &str {
        &self.subcluster
    }

    /// Ends with the connection.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Asks, and waits for the answer. A refusal is an error.
    pub async fn ask(&self, request: Request) -> Result<Answer, LinkError> {
        let own_wait = match &request {
            Request::List { wait_ms, .. } | Request::Pull { wait_ms, .. } => Duration::from_millis((*wait_ms).into()),
            _ => Duration::ZERO,
        };
        let gone = || LinkError::Gone { node: self.node.clone() };
        let (sender, answer) = oneshot::channel();
        self.requests.send((request, sender)).await.map_err(|_| gone())?;
        match tokio::time::timeout(own_wait + PATIENCE, answer).await {
            Ok(Ok(Answer::Refused { message })) => Err(LinkError::Refused { node: self.node.clone(), message }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(LinkError::Silent { node: self.node.clone() }),
        }
    }

    /// An answer of the wrong kind.
    pub fn unexpected(&self, answer: &Answer) -> LinkError {
        tracing::debug!(?answer, node = self.node, "an unexpected answer");
        LinkError::Refused { node: self.node.clone(), message: "an answer of another kind came".into() }
    }
}

async fn send(
    mut writer: impl tokio::io::AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<(Request, oneshot::Sender<Answer>)>,
    waiting: Waiting,
    stop: CancellationToken,
    ended: CancellationToken,
) {
    let mut number = 0_u32;
    let work = async {
        while let Some((request, answer)) = queue.recv().await {
            number = number.wrapping_add(1);
            let Ok(frame) = protocol::encode(number, &request) else { return };
            waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, answer);
            if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
        () = ended.cancelled() => {}
    }
    ended.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), writer.shutdown()).await;
}

async fn receive(
    mut reader: impl tokio::io::AsyncRead + Unpin,
    waiting: Waiting,
    stop: CancellationToken,
    ended: CancellationToken,
) {
    let work = async {
        loop {
            match protocol::read::<Answer>(&mut reader).await {
                Ok(Some((number, answer))) => {
                    let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                    // Whoever asked may have lost patience.
                    waits.map(|waits| waits.send(answer));
                }
                Ok(None) => return,
                Err(FrameError::Io(error)) => return tracing::debug!(%error, "a connection ended"),
                Err(error) => return tracing::warn!(%error, "a node's answer"),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
        () = ended.cancelled() => {}
    }
    ended.cancel();
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
