//! Measures what an idle watcher costs the server: opens many watches, each over its own TLS connection, and reads the server's memory.
//!
//! ```text
//! cargo run --release -p ecconfigd --example idle_watchers -- DATA ADDR:PORT SERVER_PID [COUNT] [sse|poll] [http/1.1|h2]
//! ```
//! `DATA` is the server's data directory (for the CA and the password). Printed are the server's memory before and with all watchers, as the
//! kernel counts it (RSS) and with what it shares with other processes divided among them (PSS), and the growth per watcher: so run it against
//! a server that has just started, built with `--release`: debug figures mislead. How this program itself is built does not matter.
//! Watchers come from 127.0.0.1, 127.0.0.2, … because the server bounds connections per address; both processes need a file descriptor for each.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// Watchers of one address.
const PER_ADDRESS: usize = 2000;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, address, pid, ..] = args.as_slice() else {
        println!("usage: idle_watchers DATA ADDR:PORT SERVER_PID [COUNT] [sse|poll] [http/1.1|h2]");
        return;
    };
    raise_file_limit();
    let count: usize = args.get(3).map_or(1000, |count| count.parse().unwrap());
    let sse = args.get(4).is_none_or(|kind| kind == "sse");
    let h2 = args.get(5).is_some_and(|protocol| protocol == "h2");
    let ca = std::fs::read_to_string(format!("{data}/ca.pem")).unwrap();
    let password = std::fs::read_to_string(format!("{data}/admin-password")).unwrap();
    let authorization = format!("Basic {}", STANDARD.encode(format!("admin:{}", password.trim())));
    let address: SocketAddr = address.parse().unwrap();

    // One before counting: what the first request sets up is not a watcher's cost.
    let mut held = vec![open(from(0), address, &ca, &authorization, sse, h2).await];
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = Memory::of(pid);
    for number in 1..=count {
        held.push(open(from(number), address, &ca, &authorization, sse, h2).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = Memory::of(pid);
    for (name, before, after) in [("RSS", before.rss_kib, after.rss_kib), ("PSS", before.pss_kib, after.pss_kib)] {
        let each = after.saturating_sub(before) as f64 / count as f64;
        let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
        println!("{count} watchers: {name} {:.1} -> {:.1} MB, {each:.1} KiB each", mb(before), mb(after));
    }
    assert_eq!(held.len(), count + 1);
    drop(held);
}

type Held = Box<dyn std::any::Any>;

/// Where a watcher comes from.
fn from(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 1 + (number / PER_ADDRESS) as u8).into()
}

/// Every watcher is a file descriptor.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

async fn open(from: IpAddr, address: SocketAddr, ca: &str, authorization: &str, sse: bool, h2: bool) -> Held {
    if h2 {
        open_http2(from, address, ca, authorization, sse).await
    } else {
        open_http1(from, address, ca, authorization, sse).await
    }
}

async fn open_http1(from: IpAddr, address: SocketAddr, ca: &str, authorization: &str, sse: bool) -> Held {
    let mut tls = cluster::tls::client_config(ca, None).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let tcp = socket.connect(address).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(address.ip().into(), tcp).await.unwrap();
    let accept = if sse { "text/event-stream" } else { "application/json" };
    let head = format!(
        "GET /api/v1/repos/default/watch HTTP/1.1\r\nHost: {address}\r\nAuthorization: {authorization}\r\nAccept: {accept}\r\n\
         Prefer: wait=300\r\nUser-Agent: idle-watchers\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    if sse {
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
    Box::new(stream)
}

async fn open_http2(from: IpAddr, address: SocketAddr, ca: &str, authorization: &str, sse: bool) -> Held {
    let mut tls = cluster::tls::client_config(ca, None).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().local_address(from);
    let client = client.build().unwrap();
    let request = client
        .get(format!("https://{address}/api/v1/repos/default/watch"))
        .header("authorization", authorization)
        .header("prefer", "wait=300");
    if sse {
        let response = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), 200);
        Box::new((client, response))
    } else {
        Box::new((client, tokio::spawn(request.send())))
    }
}

/// The server's memory.
struct Memory {
    rss_kib: u64,
    pss_kib: u64,
}

impl Memory {
    fn of(pid: &str) -> Memory {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib = |name: &str| line(name).split_whitespace().next().unwrap().parse().unwrap();
        Memory { rss_kib: kib("Rss:"), pss_kib: kib("Pss:") }
    }
}
