//! Input that nobody means well with: random paths, queries, heads and bodies against a running server. Whatever comes, the answer is a
//! whole one, no handler fails inside, refusals are problem documents, and the server goes on.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use reqwest::Method;
use serde_json::{Value, json};
use support::{TestServer, problem, raw};
use tokio::io::AsyncWriteExt as _;

/// Values drawn from a strategy, the same for the same seed; the seed is printed.
fn drawn<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut seed = [0; 32];
    match std::env::var("HOSTILE_SEED") {
        Ok(text) => hex::decode_to_slice(text, &mut seed).unwrap(),
        Err(_) => getrandom::fill(&mut seed).unwrap(),
    }
    println!("HOSTILE_SEED={}", hex::encode(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Pieces of targets: what is there, what is nearly there, and what parsers stumble over.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "/api/v1", "/repos", "/default", "/global", "/none", "/head", "/files", "/tree", "/log", "/diff", "/commits",
            "/refs", "/watch", "/nodes", "/n1", "/target", "/effective", "/tokens", "/cluster", "/default.git",
            "/info/refs", "/git-upload-pack", "/report", "/a.toml", "/README.md", "/r1", "/1", "//",
        ]).prop_map(str::to_owned),
        1 => prop::sample::select(vec![
            "/..", "/%2e%2e", "/%2e%2e%2fetc", "/%00", "/%ff", "/%C3%BC", "/.git", "/.%67it", "/%", "/%zz", "/\\", "/:", "/*",
            "/{repo}", "/~", "/a%0d%0ab",
        ]).prop_map(str::to_owned),
        1 => "[!-\"$->@-~]{0,12}".prop_map(|text| format!("/{text}")),
    ]
}

fn parameter() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "after",
        "path",
        "revision",
        "min_revision",
        "from",
        "to",
        "limit",
        "skip",
        "recursive",
        "first_parent",
        "service",
        "x",
        "",
        "%ff",
    ]);
    let value = prop_oneof![
        3 => prop::sample::select(vec![
            "0", "1", "r1", "-1", "18446744073709551615", "18446744073709551616", "1e9", "true", "default", "../x",
            "git-upload-pack", "git-receive-pack", "%00", "%ff", "%", "%5B", "**", "%7B%7Ba,b%7D", "deadbeef", "0000000",
            "ffffffffffffffffffffffffffffffffffffffff", "",
        ]).prop_map(str::to_owned),
        1 => "[!-%'-~]{0,40}".prop_map(|text| text.replace('#', "")),
    ];
    (name, value).prop_map(|(name, value)| format!("{name}={value}"))
}

fn target() -> impl Strategy<Value = String> {
    (prop::collection::vec(piece(), 1..7), prop::collection::vec(parameter(), 0..4)).prop_map(|(pieces, parameters)| {
        let path = pieces.concat();
        if parameters.is_empty() { path } else { format!("{path}?{}", parameters.join("&")) }
    })
}

fn header() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "Accept",
        "Prefer",
        "Last-Event-ID",
        "If-None-Match",
        "Git-Protocol",
        "Content-Type",
        "Content-Encoding",
        "Idempotency-Key",
        "X-Request-Id",
        "Expect",
        "Range",
        "Host",
        "Cookie",
    ]);
    let value = prop_oneof![
        prop::sample::select(vec![
            "text/event-stream",
            "wait=0",
            "wait=99999999999999999999",
            "wait=-1",
            "*",
            "\"\"",
            "version=2",
            "version=2:x",
            "gzip",
            "application/json",
            "application/x-git-upload-pack-request",
            "W/\"x\", \"",
            "bytes=0-1",
            "",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,60}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}: {value}\r\n"))
}

#[tokio::test]
async fn no_target_and_no_head_makes_a_handler_fail() {
    let server = TestServer::start().await;
    let login = format!("Authorization: {}\r\n", support::basic(&server));
    let method = prop::sample::select(vec!["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]);
    let request = (method, target(), prop::collection::vec(header(), 0..4), any::<bool>());
    for (method, target, headers, anonymous) in drawn(request, 400) {
        let login = if anonymous { "" } else { &login };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nPrefer: wait=0\r\nConnection: close\r\n{login}{}Content-Length: 0\r\n\r\n",
            headers.concat()
        );
        let mut stream = raw(&server).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // A stream of events has no end: its head is all there is to see.
        let answer = support::read_head(&mut stream).await;
        let status: u16 =
            answer.get(9..12).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{head}\n{answer}"));
        assert!(status < 500 || status == 503, "{head}\n{answer}");
        if status >= 400 {
            assert!(answer.contains("content-type: application/problem+json\r\n"), "{head}\n{answer}");
            assert!(answer.contains("x-request-id: "), "{head}\n{answer}");
        }
        if anonymous && status == 200 {
            let open = ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json", "/api/v1/ca", "/"];
            let path = target.split('?').next().unwrap();
            assert!(open.contains(&path), "{target} needs no login");
        }
    }
    assert_eq!(server.get("/api/v1/repos/default/head").await.status(), 200, "the server goes on");
}

/// JSON that is nearly what an endpoint wants.
fn body() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        prop::sample::select(vec![
            "",
            "1",
            "r1",
            "default",
            "global",
            "../x",
            "a/b",
            ".git/config",
            "100644",
            "100755",
            "120000",
            "40000",
            "AP8=",
            "\u{0}",
            "n1",
            "1h",
            "999999999999999999999999d",
            "-1s",
            "agent",
            "healthy",
        ])
        .prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "base",
        "message",
        "changes",
        "path",
        "content",
        "content_base64",
        "mode",
        "delete",
        "rename_to",
        "repos",
        "default",
        "global",
        "name",
        "ttl",
        "subcluster",
        "program",
        "serial",
        "state",
        "steps",
        "detail",
        "output",
        "token",
        "node",
        "csr_pem",
        "password",
        "from",
        "with_history",
    ]);
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

#[tokio::test]
async fn no_json_makes_a_handler_fail() {
    let server = TestServer::start().await;
    let path = prop::sample::select(vec![
        "/api/v1/repos",
        "/api/v1/repos/default/commits",
        "/api/v1/commits",
        "/api/v1/tokens",
        "/api/v1/node-tokens",
        "/api/v1/enroll",
        "/api/v1/renew",
        "/api/v1/nodes/n1/report",
    ]);
    for (path, body) in drawn((path, body()), 300) {
        let response = server.post(path, &body).await;
        let status = response.status().as_u16();
        assert!(status < 500 || status == 503, "{path} {body}: {status} {}", response.text().await.unwrap());
        if status >= 400 {
            problem(response).await;
        }
    }
}

/// git's requests, cut, repeated and overwritten.
fn git_body() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        prop::sample::select(vec![
            "0000", "0001", "0002", "0003", "0004", "fff0", "ffff", "zzzz", "0014command=ls-refs\n", "0012command=fetch",
            "0011command=bogus", "0009done\n", "000fofs-delta\n", "0015agent=git/2.47.0", "0009peel\n", "000csymrefs\n",
            "0032want 0000000000000000000000000000000000000000\n", "0032have ffffffffffffffffffffffffffffffffffffffff\n",
            "000ddeepen 1\n", "0018deepen 99999999999999\n", "0014filter blob:none\n", "PACK\u{0}\u{0}\u{0}\u{2}\u{0}\u{0}\u{0}\u{1}",
            "00680000000000000000000000000000000000000000 ffffffffffffffffffffffffffffffffffffffff refs/heads/x\u{0} report-status\n",
            "00680000000000000000000000000000000000000000 0000000000000000000000000000000000000000 refs/heads/../\u{0} report-status\n",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..80),
    ];
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
}

#[tokio::test]
async fn no_git_request_makes_a_handler_fail() {
    let server = TestServer::start().await;
    let head = server.head("default").await;
    let service = prop::sample::select(vec!["upload-pack", "receive-pack"]);
    let protocol = prop::sample::select(vec!["", "version=1", "version=2", "version=99", "version=2:version=1", ":::"]);
    let encoding = prop::sample::select(vec!["", "", "", "gzip", "identity", "br"]);
    for (service, protocol, encoding, body) in drawn((service, protocol, encoding, git_body()), 300) {
        let what = format!("{service} {protocol:?} {encoding:?} {}", String::from_utf8_lossy(&body));
        let mut request = server
            .request(Method::POST, &format!("/default.git/git-{service}"))
            .header("content-type", format!("application/x-git-{service}-request"))
            .header("git-protocol", protocol);
        if !encoding.is_empty() {
            request = request.header("content-encoding", encoding);
        }
        let response = request.body(body).send().await.unwrap();
        let status = response.status().as_u16();
        assert!(matches!(status, 200 | 400 | 413 | 415), "{what}: {status}");
        match status {
            // Words in git's form, or a pack that breaks off.
            200 => drop(response.bytes().await),
            _ => drop(problem(response).await),
        }
    }
    assert_eq!(server.head("default").await, head);
    let refs = server.json("/api/v1/repos/default/refs").await;
    assert_eq!(refs.as_array().unwrap().len(), 1, "{refs}");
}

#[tokio::test]
async fn paths_do_not_leave_their_place() {
    let server = TestServer::start().await;
    server.commit("default", &[("n1/own", "mine\n"), ("n2/secret", "theirs\n")]).await;
    for path in [
        "/api/v1/effective/default/n1/../n2/secret",
        "/api/v1/effective/default/n1/%2e%2e/n2/secret",
        "/api/v1/effective/default/n1/%2e%2e%2fn2%2fsecret",
        "/api/v1/effective/default/n1//n2/secret",
        "/api/v1/effective/default/n1/.%2f..%2fn2%2fsecret",
        "/api/v1/repos/default/files/n1/%2e%2e/n2/secret",
        "/api/v1/repos/default/files/%2fetc%2fpasswd",
        "/api/v1/repos/default%2f..%2fglobal/files/cluster.toml",
        "/default.git%2f..%2fglobal.git/info/refs?service=git-upload-pack",
        "/..%2fdefault.git/info/refs?service=git-upload-pack",
    ] {
        // By hand: clients tidy paths up before they send them.
        let mut stream = raw(&server).await;
        let login = support::basic(&server);
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {login}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = support::read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains("theirs"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn numbers_at_the_edge() {
    let server = TestServer::start().await;
    let max = u64::MAX;
    for (path, expected) in [
        (format!("/api/v1/repos/default/log?skip={max}&limit={max}"), 200),
        ("/api/v1/repos/default/log?limit=0".to_owned(), 200),
        (format!("/api/v1/repos/default/head?revision={max}"), 200),
        (format!("/api/v1/repos/default/commits/{max}"), 404),
        (format!("/api/v1/repos/default/diff?from={max}"), 404),
        (format!("/api/v1/nodes/n1/target?after={max}"), 200),
    ] {
        assert_eq!(server.get(&path).await.status(), expected, "{path}");
    }
    let poll =
        server.request(Method::GET, &format!("/api/v1/repos/default/watch?after={max}")).header("prefer", "wait=0");
    assert_eq!(poll.send().await.unwrap().status(), 404);
}
