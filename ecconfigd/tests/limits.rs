//! Too big, too slow, too many: every bound answers, and nobody else notices.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use cluster::documents::schema::ecconfigd::Limits as Settings;
use cluster::units::{HumanDuration, HumanSize};
use reqwest::Method;
use serde_json::json;
use support::{PATIENCE, TestServer, client, problem, raw, read_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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
        let long = client.get(server.url("/healthz")).header("x-long", "x".repeat(9 << 10)).send().await.unwrap();
        assert_eq!(long.status(), 431);
        assert_eq!(problem(long).await["code"], "head_too_large");
        let mut many = client.get(server.url("/healthz"));
        for number in 0..40 {
            many = many.header(format!("x-{number}"), "1");
        }
        let many = many.send().await.unwrap();
        assert_eq!(many.status(), 431);
        assert_eq!(problem(many).await["code"], "head_too_large");
        // Far beyond the limit HTTP/2 refuses by itself.
        let huge = client.get(server.url("/healthz")).header("x-long", "x".repeat(40 << 10)).send().await;
        assert!(huge.is_err() || huge.unwrap().status() == 431);
    }
}

#[tokio::test]
async fn heads_that_make_no_sense_are_problems_too() {
    let server = TestServer::start().await;
    for (head, status, code) in [
        ("GET /healthz HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400, "bad_request"),
        ("G@T /healthz HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /\x01 HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70 << 10)), 414, "uri_too_long"),
    ] {
        let mut stream = raw(&server).await;
        // One request that is fine in front: what comes after it is judged alike.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(support::read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) || status == 414 && answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["code"] == code || status == 414, "{answer}");
        assert!(answer.contains(&format!("x-request-id: {}\r\n", body["request_id"].as_str().unwrap())), "{answer}");
    }
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
        "POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\nAuthorization: {}\r\n\r\n{{",
        support::basic(&server)
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

/// Who is refused before it has sent everything reads why, and not that its connection or stream was reset.
#[tokio::test]
async fn who_is_still_sending_reads_why_it_is_refused() {
    let server = TestServer::start().await;
    let dir = server.dir.path();
    let (small, large) = (dir.join("small"), dir.join("large"));
    std::fs::write(&small, "{}").unwrap();
    std::fs::write(&large, vec![b'x'; 8 << 20]).unwrap();
    let (url, ca) = (server.url("/api/v1/repos"), server.data().join("ca.pem"));
    let login = dir.join("login");
    std::fs::write(&login, format!("user = admin:{}\n", server.password)).unwrap();
    let json = "content-type: application/json";
    for (version, body, header, login, status) in ["--http1.1", "--http2"].iter().flat_map(|version| {
        [
            (version, &small, "content-type: text/plain", Some(&login), "415"),
            (version, &large, json, Some(&login), "413"),
            (version, &large, json, None, "401"),
        ]
    }) {
        for length in ["content-length: ", "transfer-encoding: chunked"] {
            let mut curl = std::process::Command::new("curl");
            curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", version, "-H", header, &url]);
            // Without its length in front, and without asking whether it is welcome.
            if length.ends_with("chunked") {
                curl.args(["-H", length, "-H", "expect:"]);
            }
            curl.arg("--cacert").arg(&ca).arg("--data-binary").arg(format!("@{}", body.display()));
            if let Some(login) = login {
                curl.arg("--config").arg(login);
            }
            let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let what = format!("{version} {header} {length}: {}", text(&output.stderr));
            assert_eq!((text(&output.stdout).as_str(), output.status.code()), (status, Some(0)), "{what}");
        }
    }
}

/// What SIGHUP does: what can change while the server runs does, the rest is named, and a wrong file changes nothing.
#[tokio::test]
async fn limits_change_while_the_server_runs() {
    let server = TestServer::start().await;
    let file = server.data().join("ecconfigd.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let body = json!({"base": 1, "message": "m", "changes": [{"path": "a", "content": "x".repeat(65 << 10)}]});
    let say = |text: &str| {
        std::fs::write(&file, format!("{before}{text}")).unwrap();
        server.server.reread()
    };
    let reread = say("[limits]\nbody_size = \"64KiB\"\nrequests = 9\n").unwrap();
    assert_eq!((reread.changed, reread.at_start), (vec!["body_size"], vec!["requests"]));
    assert_eq!(server.post("/api/v1/repos/default/commits", &body).await.status(), 413);
    let error = say("log = \"a=b=c\"\n[limits]\nbody_size = \"1MiB\"\n").unwrap_err().to_string();
    assert!(error.contains("ecconfigd.toml:") && error.contains("a=b=c"), "{error}");
    assert_eq!(server.post("/api/v1/repos/default/commits", &body).await.status(), 413);
    let reread = say("log = \"debug\"\n").unwrap();
    assert_eq!((reread.changed, reread.at_start), (vec!["body_size", "log"], Vec::new()));
    assert_eq!(server.server.log().as_deref(), Some("debug"));
    assert_eq!(server.post("/api/v1/repos/default/commits", &body).await.status(), 201);
}
