//! Debian's etcd, three members, spoken to as its own clients do: gRPC over HTTP/2. The few messages needed are written by hand, so that the
//! comparison brings no gRPC stack along.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// Three members on the loopback address.
pub struct Etcd {
    dir: tempfile::TempDir,
    clients: Vec<u16>,
    peers: Vec<u16>,
    children: Vec<Option<Child>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub fn start() -> Etcd {
        let ports = || (0..3).map(|_| free_port()).collect::<Vec<_>>();
        let mut etcd = Etcd {
            dir: tempfile::tempdir().unwrap(),
            clients: ports(),
            peers: ports(),
            children: vec![None, None, None],
        };
        for number in 0..3 {
            etcd.run(number);
        }
        etcd
    }

    fn data(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("e{number}"))
    }

    pub fn run(&mut self, number: usize) {
        let cluster: Vec<String> =
            (0..3).map(|other| format!("e{other}=http://127.0.0.1:{}", self.peers[other])).collect();
        let client = format!("http://127.0.0.1:{}", self.clients[number]);
        let peer = format!("http://127.0.0.1:{}", self.peers[number]);
        let child = Command::new("etcd")
            .args([
                "--name",
                &format!("e{number}"),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(self.data(number))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd comes from Debian: apt-get install etcd-server");
        self.children[number] = Some(child);
    }

    pub fn kill(&mut self, number: usize) {
        let mut child = self.children[number].take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn port(&self, number: usize) -> u16 {
        self.clients[number]
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            for number in 0..3 {
                let Ok(mut client) = Client::connect(self.port(number)).await else { continue };
                let Ok(status) = client.call("/etcdserverpb.Maintenance/Status", Bytes::new()).await else { continue };
                let own = field(&field_bytes(&status, 1).unwrap_or_default(), 2);
                if own.is_some() && own == field(&status, 4) {
                    return number;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "etcd has no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One connection.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Body>,
    port: u16,
}

impl Client {
    pub async fn connect(port: u16) -> Result<Client, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Client { send, port })
    }

    fn request(&self, method: &str, body: Body) -> http::Request<Body> {
        http::Request::post(format!("http://127.0.0.1:{}{method}", self.port))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .expect("a request")
    }

    async fn call(&mut self, method: &str, message: Bytes) -> Result<Bytes, String> {
        let body = http_body_util::Full::new(framed(&message)).boxed();
        let answer = self.send.send_request(self.request(method, body)).await.map_err(|error| error.to_string())?;
        let refused = answer.headers().get("grpc-status").is_some_and(|status| status != "0");
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        if refused || status.is_some_and(|status| status != "0") {
            return Err("refused".into());
        }
        let bytes = body.to_bytes();
        Ok(bytes.slice(5.min(bytes.len())..))
    }

    /// A bare put.
    pub async fn put(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, key.as_bytes());
        put_bytes(&mut message, 2, value);
        self.call("/etcdserverpb.KV/Put", message.freeze()).await.map(drop)
    }

    /// Follows a key: one message when the watch is there, then one for every answer that carries events.
    pub async fn watch(mut self, key: &str) -> mpsc::Receiver<()> {
        let mut create = BytesMut::new();
        put_bytes(&mut create, 1, key.as_bytes());
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, &create);
        let (frames, mut kept) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        frames.send(Ok(Frame::data(framed(&message)))).await.expect("room for one");
        let stream = futures::stream::poll_fn(move |cx| kept.poll_recv(cx));
        let body = StreamBody::new(SyncStream(stream)).boxed();
        let answer = self.send.send_request(self.request("/etcdserverpb.Watch/Watch", body)).await.expect("a watch");
        let (told, events) = mpsc::channel(16);
        tokio::spawn(async move {
            let _open = frames;
            let mut body = answer.into_body();
            // Small messages come in frames of their own; the first says that the watch exists.
            while let Some(Ok(frame)) = body.frame().await {
                if frame.is_data() && told.send(()).await.is_err() {
                    return;
                }
            }
        });
        events
    }
}

/// The stream is polled by one task only.
struct SyncStream<S>(S);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::pin::Pin::new(&mut self.0).poll_next(cx)
    }
}

// ── protobuf, as much of it as is needed ─────────────────────────────────────────────────────────────────────────────────────────

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("small"));
    frame.put_slice(message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_bytes(out: &mut BytesMut, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Goes through a message; gives the number, the varint and the bytes of each field.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Bytes)> {
    let mut found = Vec::new();
    while let Some(tag) = take_varint(&mut bytes) {
        match tag & 7 {
            0 => match take_varint(&mut bytes) {
                Some(value) => found.push((tag >> 3, value, Bytes::new())),
                None => break,
            },
            2 => {
                let Some(length) = take_varint(&mut bytes).and_then(|length| usize::try_from(length).ok()) else {
                    break;
                };
                let Some((value, rest)) = bytes.split_at_checked(length) else { break };
                found.push((tag >> 3, 0, Bytes::copy_from_slice(value)));
                bytes = rest;
            }
            _ => break,
        }
    }
    found
}

fn field(bytes: &[u8], number: u64) -> Option<u64> {
    fields(bytes).into_iter().find(|(found, ..)| *found == number).map(|(_, value, _)| value)
}

fn field_bytes(bytes: &[u8], number: u64) -> Option<Bytes> {
    fields(bytes).into_iter().find(|(found, ..)| *found == number).map(|(.., value)| value)
}
