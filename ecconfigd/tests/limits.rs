//! Too big, too slow, too many: every bound answers, and nobody else notices.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::documents::schema::ecconfigd::Limits as Settings;
use cluster::units::{HumanDuration, HumanSize};
use reqwest::Method;
use serde_json::json;
use support::{PATIENCE, TestServer, client, problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A TLS connection that speaks HTTP/1.1, to be written by hand.
async fn raw(server: &TestServer) -> TlsStream<TcpStream> {
    let mut tls = cluster::tls::client_config(&server.ca_pem, None).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::from(server.address.ip());
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap()
}

/// Everything until the server closes.
async fn read_all(stream: &mut TlsStream<TcpStream>) -> String {
    let mut text = Vec::new();
    // A close without close_notify is an end as well.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await.expect("the server closes in time");
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn bodies_have_a_size() {
    let settings = Settings { body_size: HumanSize::from_kib(64), ..Settings::default() };
    let server = TestServer::with(settings).await;
    let body = json!({"base": 1, "message": "m", "changes": [{"path": "a", "content": "x".repeat(65 << 10)}]});
    let response = server.post("/api/v1/repos/default/commits", &body).await;
    assert_eq!(response.status(), 413);
    assert_eq!(problem(response).await["code"], "too_large");
    // Without an announced length the limit holds as well.
    let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 4096]));
    let endless = server.request(Method::POST, "/api/v1/tokens").header("content-type", "application/json");
    // A refusal may reach the client as a reset while it still writes.
    if let Ok(response) = endless.body(reqwest::Body::wrap_stream(chunks)).send().await {
        assert_eq!(response.status(), 413);
    }
    let small = json!({"name": "x".repeat(2 << 20)});
    assert_eq!(server.post("/api/v1/tokens", &small).await.status(), 413);
}

#[tokio::test]
async fn heads_have_a_size_and_a_count() {
    let settings = Settings { header_size: HumanSize::from_kib(8), header_count: 30, ..Settings::default() };
    let server = TestServer::with(settings).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let client = client(&server.ca_pem, None, Some(alpn));
        let long = client.get(server.url("/healthz")).header("x-long", "x".repeat(16 << 10)).send().await;
        assert!(long.is_err() || long.unwrap().status() == 431);
    }
    let mut many = client(&server.ca_pem, None, Some(b"http/1.1")).get(server.url("/healthz"));
    for number in 0..40 {
        many = many.header(format!("x-{number}"), "1");
    }
    assert_eq!(many.send().await.unwrap().status(), 431);
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let settings = Settings {
        header_timeout: HumanDuration::from_millis(300),
        idle_timeout: HumanDuration::from_millis(300),
        stall_timeout: HumanDuration::from_millis(300),
        ..Settings::default()
    };
    let server = TestServer::with(settings).await;
    let started = Instant::now();

    // Nothing at all, not even TLS.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, silent.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    // A head that never ends.
    let mut half = raw(&server).await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    assert_eq!(read_all(&mut half).await, "");
    // A body that stops.
    let mut stalled = raw(&server).await;
    let head = format!(
        "POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\nAuthorization: Basic {}\r\n\r\n{{",
        base64(&format!("admin:{}", server.password))
    );
    stalled.write_all(head.as_bytes()).await.unwrap();
    let answer = read_all(&mut stalled).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    // A connection that has had its answer and says no more.
    let mut idle = raw(&server).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_all(&mut idle).await.starts_with("HTTP/1.1 200 "));
    assert!(started.elapsed() < Duration::from_secs(10));

    // A long poll is not idle.
    let poll = server.request(Method::GET, "/api/v1/repos/default/watch?after=1").header("prefer", "wait=1");
    assert_eq!(poll.send().await.unwrap().status(), 304);
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn connections_of_an_address_are_bounded() {
    let settings = Settings { connections_per_address: 4, ..Settings::default() };
    let server = TestServer::with(settings).await;
    // The client of `start` may hold one; the ones here are their own.
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = raw(&server).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        if &start != b"HTTP/1.1 200" {
            break (start, read_all(&mut stream).await);
        }
        held.push(stream);
        assert!(held.len() <= 4, "no bound");
    };
    assert_eq!(&refused.0, b"HTTP/1.1 429");
    assert!(refused.1.to_lowercase().contains("retry-after: 5"), "{}", refused.1);
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let fresh = client(&server.ca_pem, None, Some(b"http/1.1"));
        if fresh.get(server.url("/healthz")).send().await.is_ok_and(|response| response.status() == 200) {
            break;
        }
        assert!(Instant::now() < deadline, "places are never given back");
    }
}

#[tokio::test]
async fn requests_at_once_are_bounded() {
    let settings =
        Settings { requests: 4, queue: 1, queue_timeout: HumanDuration::from_millis(200), ..Settings::default() };
    let server = TestServer::with(settings).await;
    // Reads that wait for a revision hold their places.
    let waiting: Vec<_> = (0..4)
        .map(|_| tokio::spawn(server.request(Method::GET, "/api/v1/repos/default/head?min_revision=2").send()))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = server.anonymous(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        if metrics.contains("ecconfigd_requests_in_flight 4") {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
    let refused = server.get("/api/v1/whoami").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(problem(refused).await["code"], "overloaded");
    assert_eq!(server.anonymous(Method::GET, "/readyz").send().await.unwrap().status(), 200, "operations go on");
    for request in waiting {
        request.abort();
    }
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let server = TestServer::start().await;
    let (client, url) = (server.client.clone(), server.url("/readyz"));
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    server.stop().await;
    assert!(client.get(&url).send().await.is_err(), "the port is closed");
}
