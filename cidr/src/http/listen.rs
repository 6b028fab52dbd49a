//! Accepting connections: plain HTTP on loopback addresses, TLS everywhere, told apart by the first byte.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use cluster::identity::{Peer, ReloadingIdentity};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// Connections at a time; the next ones wait in the listen queue.
const CONNECTIONS: usize = 2_048;
/// The first byte, the handshake, and each request's head have this long.
const HEAD: Duration = Duration::from_secs(10);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 22;

/// How a connection came.
#[derive(Debug, Clone)]
pub enum Line {
    /// Without TLS, from this machine.
    Plain,
    /// With TLS; the node, where it showed a certificate.
    Secure(Option<Arc<Peer>>),
}

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    plain: bool,
}

impl Listener {
    /// Serves a socket as its address allows.
    pub fn new(
        socket: TcpListener,
        identity: Option<&Arc<ReloadingIdentity>>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let address = socket.local_addr()?;
        let plain = is_loopback(address.ip());
        let tls = match identity {
            Some(identity) => {
                let ca = identity.current().ca_pem().to_owned();
                Some(TlsAcceptor::from(Arc::new(cluster::tls::server_config(identity.clone(), &ca)?)))
            }
            None if plain => None,
            None => {
                return Err(
                    format!("{address} is no loopback address: there it takes an identity or a cluster key").into()
                );
            }
        };
        Ok(Self { socket, address, tls, plain })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// True when nothing but TLS is spoken here.
    pub fn is_secure(&self) -> bool {
        !self.plain
    }

    /// Serves until told to stop; what runs then is finished.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let (places, tasks) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
        let this = Arc::new(self);
        loop {
            let Some(Ok(place)) = stop.run_until_cancelled(places.clone().acquire_owned()).await else { break };
            match stop.run_until_cancelled(this.socket.accept()).await {
                None => break,
                Some(Ok((stream, _))) => {
                    let (this, router, stop) = (this.clone(), router.clone(), stop.clone());
                    tasks.spawn(async move {
                        this.connection(stream, router, stop).await;
                        drop(place);
                    });
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn connection(&self, stream: TcpStream, router: Router, stop: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let mut first = [0; 1];
        let peeked = tokio::select! {
            peeked = tokio::time::timeout(HEAD, stream.peek(&mut first)) => peeked,
            () = stop.cancelled() => return,
        };
        if !matches!(peeked, Ok(Ok(1))) {
            return;
        }
        match &self.tls {
            Some(tls) if first[0] == TLS_HANDSHAKE => {
                let Ok(Ok(stream)) = tokio::time::timeout(HEAD, tls.accept(stream)).await else { return };
                let peer = Peer::from_connection(stream.get_ref().1).ok().flatten().map(Arc::new);
                serve_http(stream, Line::Secure(peer), router, stop).await;
            }
            _ if self.plain => serve_http(stream, Line::Plain, router, stop).await,
            _ => {}
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    line: Line,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(line.clone());
        router.clone().call(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        // A batch of windows in flight, without a round trip per 64 KiB.
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
