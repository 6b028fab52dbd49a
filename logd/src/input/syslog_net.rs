//! Syslog over UDP, TCP, TLS and unix datagrams.
//!
//! None of these has acknowledgements: what is in a socket's buffer when the daemon dies is gone. Over TCP and TLS a full journal makes senders
//! wait; datagrams that come meanwhile are dropped by the kernel. A sender that closes its side of a connection and waits is answered with the
//! end of the other side when everything it sent was taken (with `mode = "safe"`: is on disk), which is what logd's own sinks wait for.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::identity::ReloadingIdentity;
use logd_journal::Batch;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::lines::one_line;
use super::syslog::{Frames, Source, line_of};
use super::{Feed, listen};
use crate::node::Receipt;
use crate::path::now_us;

/// The largest datagram that a unix socket lets through by default is a little more than 200 KiB.
const DATAGRAM_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 64 << 10;
/// Room in the kernel for bursts, and for the time of a sync.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Datagrams of one chunk: a sync serves them together, and the first does not wait for more than are there.
const DATAGRAMS_AT_ONCE: usize = 512;
/// Chunks that may wait for their sync.
const CHUNKS_UNDER_WAY: usize = 4;
/// A TLS client that does not finish its handshake by then is sent away.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Makes lines of messages.
struct Messages<'a> {
    feed: &'a Feed,
    batch: Batch,
    raw: Vec<u8>,
    line: Vec<u8>,
    under_way: Vec<Receipt>,
}

impl<'a> Messages<'a> {
    fn new(feed: &'a Feed) -> Self {
        Self { feed, batch: Batch::new(), raw: Vec::new(), line: Vec::new(), under_way: Vec::new() }
    }

    fn add(&mut self, message: &[u8], host: &str, local: bool) {
        let now_us = now_us();
        line_of(message, Source { host, local, now_us }, &mut self.raw);
        let cut = one_line(&self.raw, self.feed.max_line_bytes, &mut self.line);
        self.feed.count_cut(cut.into());
        self.feed.push(&mut self.batch, now_us, &self.line);
    }

    /// Hands in what was added. False when the log takes no more.
    async fn send(&mut self) -> bool {
        if self.batch.is_empty() {
            return true;
        }
        let Ok(receipt) = self.feed.log.write(std::mem::take(&mut self.batch), false).await else { return false };
        self.under_way.push(receipt);
        if self.under_way.len() < CHUNKS_UNDER_WAY {
            return true;
        }
        self.under_way.remove(0).wait().await.is_ok()
    }

    /// Waits until everything is on disk; false when it is not.
    async fn settle(mut self) -> bool {
        let mut safe = self.send().await;
        for receipt in self.under_way {
            safe &= receipt.wait().await.is_ok();
        }
        safe
    }
}

pub(super) fn start_udp(feed: &Feed, address: SocketAddr) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let what = format!("udp://{address}");
        let bind = || {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            let socket = UdpSocket::from_std(socket)?;
            // Whoever may not have so much has less.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
            Ok(socket)
        };
        let Some(socket) = listen::until_bound(&feed, &what, bind).await else { return };
        let mut messages = Messages::new(&feed);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let stopped = feed.stop.run_until_cancelled(socket.readable()).await.is_none();
            for _ in 0..DATAGRAMS_AT_ONCE {
                let Ok((bytes, from)) = socket.try_recv_from(&mut buffer) else { break };
                messages.add(&buffer[..bytes], &from.ip().to_canonical().to_string(), false);
            }
            if !messages.send().await || stopped {
                break;
            }
        }
        messages.settle().await;
    });
}

pub(super) fn start_unix(feed: &Feed, path: PathBuf, node: &str) {
    let (feed, node) = (feed.clone(), node.to_owned());
    feed.clone().spawn(async move {
        let what = path.display().to_string();
        let bind = || {
            listen::clear_path(&path)?;
            let socket = UnixDatagram::bind(&path)?;
            listen::open_to_all(&path)?;
            let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
            Ok(socket)
        };
        let Some(socket) = listen::until_bound(&feed, &what, bind).await else { return };
        let mut messages = Messages::new(&feed);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let stopped = feed.stop.run_until_cancelled(socket.readable()).await.is_none();
            for _ in 0..DATAGRAMS_AT_ONCE {
                let Ok(bytes) = socket.try_recv(&mut buffer) else { break };
                messages.add(&buffer[..bytes], &node, true);
            }
            if !messages.send().await || stopped {
                break;
            }
        }
        messages.settle().await;
        let _ = std::fs::remove_file(&path);
    });
}

pub(super) fn start_tls(feed: &Feed, address: SocketAddr, identity: Option<Arc<ReloadingIdentity>>) {
    let Some(identity) = identity else {
        tracing::error!(log = feed.log.name(), "syslog over TLS needs the node's identity (--identity)");
        return;
    };
    let ca = identity.current().ca_pem().to_owned();
    match cluster::tls::server_config(identity, &ca) {
        Ok(mut config) => {
            // Senders of syslog speak no HTTP.
            config.alpn_protocols.clear();
            start_tcp(feed, address, Some(TlsAcceptor::from(Arc::new(config))));
        }
        Err(error) => {
            let error = cluster::error::Chain(&error);
            tracing::error!(log = feed.log.name(), %error, "syslog over TLS cannot be served");
        }
    }
}

pub(super) fn start_tcp(feed: &Feed, address: SocketAddr, tls: Option<TlsAcceptor>) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let what = format!("{}://{address}", if tls.is_some() { "tls" } else { "tcp" });
        let bind = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let Some(listener) = listen::until_bound(&feed, &what, bind).await else { return };
        let places = Arc::new(Semaphore::new(listen::MAX_CONNECTIONS));
        loop {
            let accepting = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let Some(Some((accepted, place))) = feed.stop.run_until_cancelled(accepting).await else { break };
            let Ok((stream, from)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (of_connection, tls) = (feed.clone(), tls.clone());
            feed.spawn(async move {
                let host = from.ip().to_canonical().to_string();
                match tls {
                    None => serve(stream, &of_connection, &host).await,
                    Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(stream, &of_connection, &host).await,
                        Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS"),
                        Err(_) => tracing::debug!(%from, "no TLS in time"),
                    },
                }
                drop(place);
            });
        }
    });
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, feed: &Feed, host: &str) {
    let mut messages = Messages::new(feed);
    let mut frames = Frames::new(feed.max_line_bytes);
    let mut buffer = vec![0; READ_BYTES];
    let mut ended = false;
    loop {
        let read: Option<io::Result<usize>> = feed.stop.run_until_cancelled(stream.read(&mut buffer)).await;
        let Some(Ok(bytes)) = read else { break };
        if bytes == 0 {
            ended = true;
            break;
        }
        frames.feed(&buffer[..bytes], |message| messages.add(message, host, false));
        if !messages.send().await {
            return;
        }
    }
    frames.finish(|message| messages.add(message, host, false));
    if messages.settle().await && ended {
        // A sender that does not wait is gone already.
        let _ = tokio::time::timeout(HANDSHAKE, stream.shutdown()).await;
    }
}
