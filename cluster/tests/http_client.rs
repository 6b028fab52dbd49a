//! The HTTP client against a small server over TLS: failover, what is never sent twice, problems, streams.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use cluster::http_client::{ApiClient, Call, ClientError, Credentials, Incoming, Payload, ServerUrl, upload_pipe};
use common::{Trust, dead_server, soon};
use futures::StreamExt as _;
use serde_json::{Value, json};
use zeroize::Zeroizing;

fn client(trust: &Trust, servers: Vec<ServerUrl>) -> ApiClient {
    ApiClient::new(servers, trust.ca.certificate_pem(), Credentials::None).unwrap()
}

/// Counts requests and answers with `status` and a small document.
fn counting(status: StatusCode) -> (Router, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let handler = async move || {
        let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
        (status, axum::Json(json!({ "number": number })))
    };
    (Router::new().fallback(any(handler)), count)
}

#[tokio::test]
async fn the_next_server_is_tried_and_the_good_one_remembered() {
    let trust = Trust::new();
    let (busy_router, busy) = counting(StatusCode::SERVICE_UNAVAILABLE);
    let (good_router, good) = counting(StatusCode::OK);
    let busy_server = trust.serve("n1", busy_router).await;
    let good_server = trust.serve("n2", good_router).await;
    let client = client(&trust, vec![dead_server().await, busy_server.url(), good_server.url()]);
    for number in 1..=3 {
        let answer: Value = client.get_json("/x").await.unwrap();
        assert_eq!(answer["number"], number);
    }
    assert_eq!((busy.load(Ordering::SeqCst), good.load(Ordering::SeqCst)), (1, 3));
    assert_eq!(client.preferred_server(), good_server.url());

    // When it dies the others are asked again, and the error names each.
    good_server.kill().await;
    let error = client.get_json::<Value>("/x").await.unwrap_err();
    let ClientError::Unreachable { attempts } = &error else { panic!("{error}") };
    assert_eq!(attempts.len(), 3);
    let text = error.to_string();
    assert!(text.contains("onnection refused") && text.contains(busy_server.url().as_str()), "{text}");
    assert!(error.is_temporary());
}

/// A server that takes a whole request and then drops the connection.
async fn swallower(trust: &Trust) -> (ServerUrl, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    let handler = async move |_body: axum::body::Bytes| -> Response {
        counter.fetch_add(1, Ordering::SeqCst);
        panic!("this connection ends here");
    };
    let server = trust.serve("swallower", Router::new().fallback(any(handler))).await;
    (server.url(), seen)
}

#[tokio::test]
async fn what_may_have_happened_is_not_sent_again() {
    let trust = Trust::new();
    let (swallowing, swallowed) = swallower(&trust).await;
    let (router, count) = counting(StatusCode::OK);
    let server = trust.serve("n2", router).await;
    let servers = vec![swallowing, server.url()];

    let error = client(&trust, servers.clone()).post_json::<_, Value>("/x", &json!({})).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }) && !error.is_certainly_not_done(), "{error}");
    assert_eq!((swallowed.load(Ordering::SeqCst), count.load(Ordering::SeqCst)), (1, 0));

    client(&trust, servers.clone()).post_json_idempotent::<_, Value>("/x", &json!({}), "key-1").await.unwrap();
    client(&trust, servers.clone()).get_json::<Value>("/x").await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 2);

    // Nor has one done anything that says so.
    for (not_done, tried) in [(true, 3), (false, 3)] {
        let problem = json!({"title": "cut off", "status": 503, "not_done": not_done});
        let cut_off = Router::new().fallback(any(async move || (StatusCode::SERVICE_UNAVAILABLE, problem.to_string())));
        let cut_off = trust.serve("n1", cut_off).await;
        let client = client(&trust, vec![cut_off.url(), server.url()]);
        let posted = client.post_json::<_, Value>("/x", &json!({})).await;
        assert_eq!(posted.is_ok(), not_done, "{posted:?}");
        assert_eq!(count.load(Ordering::SeqCst), tried);
    }

    // What the second one refuses the first may have done.
    let (router, _) = counting(StatusCode::NOT_FOUND);
    let gone = trust.serve("n3", router).await;
    for (first, in_doubt) in [(servers[0].clone(), true), (dead_server().await, false)] {
        let client = client(&trust, vec![first, gone.url()]);
        let error = client.post_json_idempotent::<_, Value>("/x", &json!({}), "key-2").await.unwrap_err();
        assert_eq!((error.status(), error.api().unwrap().in_doubt), (Some(404), in_doubt), "{error}");
        assert_eq!(error.is_certainly_not_done(), !in_doubt);
    }

    // A server that was never reached has seen nothing, so even a plain POST may go on to the next.
    client(&trust, vec![dead_server().await, server.url()]).post_json::<_, Value>("/x", &json!({})).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn problems_arrive_with_everything_they_say() {
    let trust = Trust::new();
    let conflict = || async {
        let problem = json!({
            "type": "urn:eccluster:problem:conflict", "title": "Conflict", "status": 409, "code": "conflict",
            "detail": "somebody was faster", "paths": [{"repo": "default", "path": "a.toml"}],
            "findings": [{"file": "a.toml", "line": 3, "message": "no"}], "something": "newer",
        });
        let headers = [("content-type", "application/problem+json"), ("x-request-id", "req-7"), ("retry-after", "3")];
        (StatusCode::CONFLICT, headers, problem.to_string())
    };
    let router = Router::new()
        .route("/conflict", get(conflict))
        .route("/page", get(async || (StatusCode::BAD_GATEWAY, "<h1>\nbroken</h1>")))
        .route("/elsewhere", get(async || (StatusCode::FOUND, [("location", "/conflict")])))
        .route("/odd", get(async || "not json"))
        .route("/long", get(async || vec![b'x'; 100_000]));
    let server = trust.serve("n1", router).await;
    let client = client(&trust, vec![server.url()]);

    let error = client.get_json::<Value>("/conflict").await.unwrap_err();
    let api = error.api().unwrap();
    assert_eq!(
        (api.status, api.request_id.as_deref(), api.retry_after),
        (409, Some("req-7"), Some(Duration::from_secs(3)))
    );
    assert_eq!(
        (&*api.problem.code, &*api.problem.paths[0].path, api.problem.findings[0].line),
        ("conflict", "a.toml", 3)
    );
    assert_eq!(error.to_string(), "Conflict: somebody was faster");
    assert!(!error.is_temporary() && error.is_certainly_not_done());

    let error = client.get_json::<Value>("/page").await.unwrap_err();
    assert_eq!(error.to_string(), "Bad Gateway: <h1> broken</h1>");
    assert_eq!(
        client.get_json::<Value>("/elsewhere").await.unwrap_err().status(),
        Some(302),
        "redirects are not followed"
    );
    assert!(matches!(client.get_json::<Value>("/odd").await, Err(ClientError::Answer { .. })));
    let error = client.get_bytes("/long", 1000).await.unwrap_err().to_string();
    assert!(error.contains("longer than 1000"), "{error}");
}

#[tokio::test]
async fn credentials_travel_in_the_header_and_nowhere_else() {
    let trust = Trust::new();
    let echo = async |headers: HeaderMap| {
        headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let server = trust.serve("n1", Router::new().route("/", get(echo))).await;
    let secret = || Zeroizing::new("hush:é".to_owned());
    for (credentials, expected) in [
        (Credentials::None, ""),
        (Credentials::Basic { username: "admin".into(), password: secret() }, "Basic YWRtaW46aHVzaDrDqQ=="),
        (Credentials::Bearer(Zeroizing::new("tok-hush".into())), "Bearer tok-hush"),
    ] {
        let client = ApiClient::new(vec![server.url()], trust.ca.certificate_pem(), credentials).unwrap();
        assert_eq!(client.get_bytes("/", 1000).await.unwrap(), expected);
        let call = Call::get("/");
        assert!(!format!("{client:?}{call:?}").contains("hush"), "{client:?}");
    }
}

#[tokio::test]
async fn a_long_poll_waits_as_told_and_nothing_new_is_no_error() {
    let trust = Trust::new();
    let answer = async |headers: HeaderMap| match headers.get("prefer").map(|value| value.to_str().unwrap()) {
        Some("wait=7") => axum::Json(json!({"revision": 8})).into_response(),
        _ => StatusCode::NOT_MODIFIED.into_response(),
    };
    let server = trust.serve("n1", Router::new().route("/watch", get(answer))).await;
    let client = client(&trust, vec![server.url()]);
    let found: Option<Value> = client.long_poll("/watch", Duration::from_secs(7)).await.unwrap();
    assert_eq!(found.unwrap()["revision"], 8);
    assert_eq!(client.long_poll::<Value>("/watch", Duration::from_secs(1)).await.unwrap(), None);
}

#[tokio::test]
async fn an_event_stream_resumes_after_the_last_event() {
    let trust = Trust::new();
    // What each connection gets, and what it asked to resume after.
    let scripts = Arc::new(Mutex::new(VecDeque::from([
        event_stream("retry: 1\n\nid: 1\ndata: a\n\n: comment\n\nid: 2\ndata: b\n\nid: 3\ndata: cut"),
        (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response(),
        event_stream("id: 3\nevent: target\ndata: c\n\n"),
        (StatusCode::NOT_FOUND, "gone").into_response(),
    ])));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let handler = move |headers: HeaderMap| {
        log.lock().unwrap().push(headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned()));
        let response: Response = scripts.lock().unwrap().pop_front().unwrap();
        async move { response }
    };
    let server = trust.serve("n1", Router::new().route("/watch", get(handler))).await;
    let mut events = client(&trust, vec![dead_server().await, server.url()]).events("/watch", None);

    assert!(matches!(soon("connecting", events.next()).await.unwrap(), Incoming::Connected));
    let mut seen = Vec::new();
    let end = loop {
        match soon("an event", events.next_event()).await {
            Ok(event) => seen.push((event.id.unwrap(), event.data)),
            Err(error) => break error,
        }
    };
    assert_eq!(seen, [("1", "a"), ("2", "b"), ("3", "c")].map(|(id, data)| (id.to_owned(), data.to_owned())));
    assert_eq!(end.status(), Some(404), "a refusal ends it");
    let resumed = [None, Some("2"), Some("2"), Some("3")].map(|id| id.map(str::to_owned));
    assert_eq!(*asked.lock().unwrap(), resumed);
}

fn event_stream(text: &'static str) -> Response {
    ([("content-type", "text/event-stream")], text).into_response()
}

#[tokio::test]
async fn bodies_stream_both_ways_through_blocking_code() {
    const SIZE: usize = 3_000_000;
    let trust = Trust::new();
    // Echoes while it is still being sent to, so a client that buffered everything would not notice but one that deadlocks would.
    let echo =
        async |body: Body| Body::from_stream(body.into_data_stream().map(|piece| piece.map(|bytes| bytes.to_vec())));
    let server = trust.serve("n1", Router::new().route("/echo", post(echo))).await;
    let client = client(&trust, vec![server.url()]);
    let (mut writer, body) = upload_pipe(64 << 10);
    let writing = tokio::task::spawn_blocking(move || {
        let block: Vec<u8> = (0..1000).map(|n| (n % 251) as u8).collect();
        (0..SIZE / 1000).for_each(|_| writer.write_all(&block).unwrap());
    });
    let call = Call::post("/echo").body("application/x-git-upload-pack-request", Payload::Stream(Some(body)));
    let reply = soon("the head", client.send(call.streaming(Duration::from_secs(10)))).await.unwrap();
    let mut reader = reply.into_blocking_reader();
    let read = tokio::task::spawn_blocking(move || {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        back
    });
    let back = soon("the body", read).await.unwrap();
    soon("the writer", writing).await.unwrap();
    assert_eq!(back.len(), SIZE);
    assert!(back.iter().enumerate().all(|(at, byte)| *byte == (at % 1000 % 251) as u8));
}
