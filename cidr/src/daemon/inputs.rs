//! Events over sockets: a unix stream and UDP, lines or binary batches.
//!
//! A connection or datagram that begins with `ECB1` carries batches, any other lines. Whoever closes its side of a stream gets one line
//! back: `counted 3` or `counted 2 refused 1: line 2: …`. UDP gets no answer.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cidr_engine::ingest::MAX_BATCH_BYTES;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UdpSocket, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::service::Service;

/// Senders on the unix socket at a time; the next ones wait in the listen queue.
const SENDERS: usize = 512;
/// What a connection holds: a batch, and the beginning of the next one. It grows to this only for senders of batches.
const MOST_BUFFERED: usize = MAX_BATCH_BYTES + (64 << 10);
/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// Datagrams wait here while a window is cut; the kernel doubles and caps it.
const UDP_BUFFER_BYTES: usize = 8 << 20;
/// An answer nobody reads is given up.
const ANSWER: Duration = Duration::from_secs(2);

/// What a stream brought.
#[derive(Debug, Default)]
pub struct Received {
    counted: u64,
    refused: u64,
    lines: u64,
    /// The first refusal.
    why: Option<String>,
}

impl Received {
    /// `counted 2 refused 1: line 2: …`
    pub fn summary(&self) -> String {
        match (&self.why, self.refused) {
            (Some(why), refused) => format!("counted {} refused {refused}: {why}\n", self.counted),
            _ => format!("counted {}\n", self.counted),
        }
    }

    /// How many events were counted, and how many lines or batches were not.
    pub const fn totals(&self) -> (u64, u64) {
        (self.counted, self.refused)
    }

    /// The first refusal.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

/// Counts a piece of a stream; how much of it is done. After a batch that makes no sense nothing more can be understood: `Err`. Others count in
/// between, but a piece of megabytes takes its time: see [`feed_all`].
pub fn feed(service: &Service, data: &[u8], complete: bool, received: &mut Received) -> Result<usize, ()> {
    if data.starts_with(b"ECB1") || (!data.is_empty() && !complete && b"ECB1".starts_with(data)) {
        return feed_batches(service, data, complete, received);
    }
    let mut consumed = 0;
    while consumed < data.len() {
        let why = &mut received.why;
        let fed = service.counted(|counting, now| {
            counting.text(&data[consumed..], complete, now, &mut |line, error| {
                if why.is_none() {
                    let shown: String =
                        String::from_utf8_lossy(line).chars().take(60).filter(|c| !c.is_control()).collect();
                    *why = Some(format!("{error} in \"{shown}\""));
                }
            })
        });
        received.lines += fed.counted + fed.refused;
        received.counted += fed.counted;
        received.refused += fed.refused;
        consumed += fed.consumed;
        if fed.consumed == 0 {
            break;
        }
    }
    Ok(consumed)
}

/// Counts what came whole, however much it is, where that keeps nobody's sockets and timers waiting.
pub async fn feed_all(service: &Arc<Service>, data: Bytes) -> Received {
    let service = service.clone();
    let fed = tokio::task::spawn_blocking(move || {
        let mut received = Received::default();
        let _ = feed(&service, &data, true, &mut received);
        received
    });
    fed.await.unwrap_or_else(|error| Received { refused: 1, why: Some(error.to_string()), ..Received::default() })
}

fn feed_batches(service: &Service, data: &[u8], complete: bool, received: &mut Received) -> Result<usize, ()> {
    let mut consumed = 0;
    while consumed < data.len() {
        match service.counted(|counting, now| counting.batch(&data[consumed..], now)) {
            Ok(Some((bytes, events))) => {
                consumed += bytes;
                received.counted += events;
            }
            Ok(None) if !complete => return Ok(consumed),
            Ok(None) => {
                received.refused += 1;
                received.why.get_or_insert_with(|| "the last batch is cut off".into());
                return Err(());
            }
            Err(error) => {
                received.refused += 1;
                received.why.get_or_insert_with(|| error.to_string());
                return Err(());
            }
        }
    }
    Ok(consumed)
}

/// Serves the unix socket.
pub async fn unix(service: Arc<Service>, listener: UnixListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(SENDERS));
    loop {
        let Some(Ok(place)) = stop.run_until_cancelled(places.clone().acquire_owned()).await else { return };
        match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => {
                let (service, stop) = (service.clone(), stop.clone());
                tokio::spawn(async move {
                    let _ = stream_of("unix", &service, stream, &stop).await;
                    drop(place);
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a sender could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Binds the unix socket where everybody on this machine may send. The control socket's lock keeps a second daemon away from it.
pub fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Reads one sender to its end, or until the daemon stops: then what has arrived is still counted.
async fn stream_of(
    input: &'static str,
    service: &Service,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let (mut buffer, mut received) = (Vec::with_capacity(READ_BYTES), Received::default());
    loop {
        buffer.reserve(READ_BYTES);
        let read = tokio::select! {
            biased;
            read = stream.read_buf(&mut buffer) => read?,
            () = stop.cancelled() => 0,
        };
        let over = read == 0;
        let before = received.totals();
        let done = feed(service, &buffer, over, &mut received);
        service.meters.brought(input, received.counted - before.0, received.refused - before.1);
        let Ok(consumed) = done else { break };
        buffer.drain(..consumed);
        if over || buffer.len() > MOST_BUFFERED {
            break;
        }
    }
    let _ = tokio::time::timeout(ANSWER, stream.write_all(received.summary().as_bytes())).await;
    let _ = tokio::time::timeout(ANSWER, stream.shutdown()).await;
    Ok(())
}

/// Binds UDP with room for a burst.
pub async fn bind_udp(address: std::net::SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).await?;
    // Root may exceed the system's limit; for others the system's limit is what there is.
    if setsockopt(&socket, sockopt::RcvBufForce, &UDP_BUFFER_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &UDP_BUFFER_BYTES);
    }
    tracing::debug!(fd = socket.as_raw_fd(), "UDP bound");
    Ok(socket)
}

/// Counts datagrams until the daemon stops. Each stands for itself: a line or a batch never spans two.
pub async fn udp(service: Arc<Service>, socket: UdpSocket, stop: CancellationToken) {
    let mut buffer = vec![0; 64 << 10];
    while let Some(read) = stop.run_until_cancelled(socket.recv(&mut buffer)).await {
        let Ok(bytes) = read else { continue };
        datagram(&service, &buffer[..bytes]);
        // What waits already is taken without going to sleep in between.
        while let Ok(bytes) = socket.try_recv(&mut buffer) {
            datagram(&service, &buffer[..bytes]);
        }
        tokio::task::yield_now().await;
    }
}

fn datagram(service: &Service, data: &[u8]) {
    let mut received = Received::default();
    let _ = feed(service, data, true, &mut received);
    let (counted, refused) = received.totals();
    service.meters.brought("udp", counted, refused);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::service::QueryLimits;
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A runtime of one thread: what blocks it blocks everything.
    #[tokio::test]
    async fn who_waits_for_the_counters_with_much_to_count_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = crate::outbox::Outbox::open(&dir.path().join("outbox"), "n1").unwrap();
        let limits = QueryLimits { max_queries: 1, query_seconds: 1, query_rows: 1, query_memory_mib: 1 };
        let (peers, meters) = (crate::peers::Peers::new(None), crate::metrics::Meters::new("n1"));
        let (service, _finished) = Service::new("n1".into(), dir.path().into(), limits, outbox, peers, meters);
        let (let_go, told) = mpsc::channel();
        let (holding, held) = tokio::sync::oneshot::channel();
        let holder = service.clone();
        let holds = std::thread::spawn(move || {
            holder.counted(|_, _| {
                let _ = holding.send(());
                told.recv_timeout(PATIENCE)
            })
        });
        held.await.unwrap();
        let lines = "spam 10.0.0.1 2\n".repeat(10_000) + "spam 10.0.0.256\nspam 10.0.0.1";
        let block = "10.0.0.0/8".parse().unwrap();
        let (received, asked, ()) = tokio::join!(
            feed_all(&service, lines.into()),
            service.count_aside("ham", &block, 300),
            // The turn of this one comes only where those before it wait elsewhere.
            async { assert!(let_go.send(()).is_ok()) },
        );
        assert_eq!(holds.join().unwrap(), Ok(()), "the others were held up");
        assert_eq!((received.totals(), asked.unwrap()), ((10_001, 1), 0));
        assert!(received.why().unwrap().contains("10.0.0.256"), "{received:?}");
        assert_eq!(service.count_aside("spam", &block, 300).await.unwrap(), 20_001);
    }
}
