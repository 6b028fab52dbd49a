//! Long polls and event streams: order, resumption, filters, and how they end.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use cluster::documents::schema::ecconfigd::Limits as Settings;
use futures::StreamExt as _;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{PATIENCE, TestServer, problem};
use tokio::io::AsyncWriteExt as _;

/// Reads an event stream event by event.
struct Events {
    stream: std::pin::Pin<Box<dyn futures::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

impl Events {
    fn new(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { stream: Box::pin(response.bytes_stream()), text: String::new() }
    }

    /// The next event; `None` when the stream ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
                };
                let Some(data) = field("data") else { continue };
                let data = serde_json::from_str(&data).unwrap();
                return Some(Event { id: field("id").unwrap().parse().unwrap(), name: field("event").unwrap(), data });
            }
            let chunk = tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("an event in time")?;
            let Ok(chunk) = chunk else { return None };
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

async fn stream(server: &TestServer, path: &str, last: Option<u64>) -> Events {
    let mut request = server.request(Method::GET, path).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    Events::new(request.send().await.unwrap())
}

#[tokio::test]
async fn a_long_poll_answers_with_the_first_revision_after() {
    let server = TestServer::start().await;
    for number in 0..3 {
        server.commit("default", &[("default/a", &format!("{number}\n"))]).await;
    }
    let response = server.get("/api/v1/repos/default/watch?after=2").await;
    assert_eq!((response.status().as_u16(), response.headers()["x-revision"].to_str().unwrap()), (200, "3"));
    let event: Value = response.json().await.unwrap();
    assert_eq!((&event["repo"], &event["revision"]), (&json!("default"), &json!(3)));
    assert_eq!((&event["author"], &event["message"]), (&json!("admin <admin@test>"), &json!("test")));
    assert_eq!(event["paths"], json!(["default/a"]));
    assert!(event["time"].as_str().unwrap().ends_with('Z') && event["commit"].as_str().unwrap().len() == 40);

    // Waiting for what is not there yet.
    let waiting = server.request(Method::GET, "/api/v1/repos/default/watch?after=4").send();
    let waiting = tokio::spawn(waiting);
    server.commit("default", &[("default/b", "x\n")]).await;
    let event: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(event["revision"], 5);
}

#[tokio::test]
async fn nothing_in_time_is_304() {
    let server = TestServer::start().await;
    let started = Instant::now();
    let poll =
        |wait: &str| server.request(Method::GET, "/api/v1/repos/default/watch?after=1").header("prefer", wait).send();
    let response = poll("wait=1").await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["x-revision"].to_str().unwrap()), (304, "1"));
    assert!(started.elapsed() >= Duration::from_millis(900));
    assert_eq!(poll("wait=0").await.unwrap().status(), 304);
}

#[tokio::test]
async fn a_stream_is_ordered_and_resumes_without_gap() {
    let server = TestServer::start().await;
    let path = "/api/v1/repos/default/watch";
    let mut events = stream(&server, &format!("{path}?after=1"), None).await;
    for number in 2..=4 {
        assert_eq!(server.commit("default", &[("default/a", &format!("{number}\n"))]).await, number);
    }
    for number in 2..=3 {
        let event = events.next().await.unwrap();
        assert_eq!((event.id, event.name.as_str(), &event.data["revision"]), (number, "revision", &json!(number)));
    }
    drop(events);
    server.commit("default", &[("default/a", "5\n")]).await;
    // Last-Event-ID goes before `after`.
    let mut resumed = stream(&server, &format!("{path}?after=1"), Some(3)).await;
    assert_eq!((resumed.next().await.unwrap().id, resumed.next().await.unwrap().id), (4, 5));
}

/// Whoever has seen more than there is has seen it elsewhere; what comes until the numbers meet would be passed over.
#[tokio::test]
async fn nobody_waits_after_a_revision_that_does_not_exist() {
    let server = TestServer::start().await;
    for accept in ["application/json", "text/event-stream"] {
        let ahead = server.request(Method::GET, "/api/v1/repos/default/watch?after=999").header("accept", accept);
        let response = ahead.header("prefer", "wait=0").send().await.unwrap();
        assert_eq!(response.status(), 404, "{accept}");
        let words = problem(response).await["detail"].as_str().unwrap().to_owned();
        assert!(words.contains("r999 of default, which is at r1"), "{words}");
    }
}

#[tokio::test]
async fn filters_pass_over_what_does_not_match() {
    let server = TestServer::start().await;
    let mut events =
        stream(&server, "/api/v1/repos/default/watch?after=1&path=default/nginx/**&path=n1/*.conf", None).await;
    server.commit("default", &[("default/other", "x\n")]).await;
    server.commit("default", &[("default/nginx/sites/a", "x\n")]).await;
    server.commit("default", &[("n1/deep/er.conf", "x\n")]).await;
    server.commit("default", &[("n1/direct.conf", "x\n")]).await;
    assert_eq!((events.next().await.unwrap().id, events.next().await.unwrap().id), (3, 5));
}

#[tokio::test]
async fn a_target_is_followed_by_its_serial() {
    let server = TestServer::start().await;
    let path = "/api/v1/nodes/n1/target";
    let response = server.get(path).await;
    let serial = response.headers()["x-revision"].to_str().unwrap().parse::<u64>().unwrap();
    let target: Value = response.json().await.unwrap();
    assert_eq!(target["serial"], serial);
    assert_eq!(target["repos"]["default"]["revision"], 1);
    assert_eq!(target["repos"]["global"]["revision"], 1);

    let waiting = tokio::spawn(server.request(Method::GET, &format!("{path}?after={serial}")).send());
    let mut events = stream(&server, &format!("{path}?after={serial}"), None).await;
    server.commit("global", &[("x", "y\n")]).await;
    let polled: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    let streamed = events.next().await.unwrap();
    assert_eq!((streamed.id, streamed.name.as_str()), (serial + 1, "target"));
    assert_eq!(polled, streamed.data);
    assert_eq!(
        (&polled["repos"]["global"]["revision"], &polled["repos"]["default"]["revision"]),
        (&json!(2), &json!(1))
    );
    // A serial from another life of the cluster is answered with the present one.
    let ahead = server.get(&format!("{path}?after=999")).await;
    assert_eq!(ahead.status(), 200);
    assert_eq!(server.get("/api/v1/nodes/n9/target").await.status(), 404);
    let same = server.request(Method::GET, &format!("{path}?after={}", serial + 1)).header("prefer", "wait=0");
    assert_eq!(same.send().await.unwrap().status(), 304);
}

#[tokio::test]
async fn bad_watches_are_refused() {
    let server = TestServer::start().await;
    for (query, status) in [("after=x", 400), ("path=%5B", 400), ("path=a%7Bb", 400)] {
        let response = server.get(&format!("/api/v1/repos/default/watch?{query}")).await;
        assert_eq!(response.status(), status, "{query}");
        problem(response).await;
    }
    assert_eq!(server.get("/api/v1/repos/none/watch").await.status(), 404);
}

#[tokio::test]
async fn watches_have_their_own_bound() {
    let server = TestServer::with(Settings { watchers: 1, ..Settings::default() }).await;
    let held = stream(&server, "/api/v1/repos/default/watch?after=1", None).await;
    let refused = server.get("/api/v1/repos/default/watch?after=1").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(server.get("/api/v1/repos/default/head").await.status(), 200, "others are not concerned");
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let poll = server.request(Method::GET, "/api/v1/repos/default/watch?after=1").header("prefer", "wait=0");
        if poll.send().await.unwrap().status() == 304 {
            break;
        }
        assert!(Instant::now() < deadline, "the place of a watcher that left is never given back");
    }
}

#[tokio::test]
async fn shutdown_ends_watches_at_once() {
    let server = TestServer::start().await;
    let mut events = stream(&server, "/api/v1/repos/default/watch?after=1", None).await;
    let waiting = tokio::spawn(server.request(Method::GET, "/api/v1/nodes/n1/target?after=1").send());
    // Both are there when the server counts two.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = server.anonymous(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        if metrics.contains("ecconfigd_watchers 2") {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
    let started = Instant::now();
    server.stop().await;
    assert_eq!(events.next().await, None);
    let polled = waiting.await.unwrap().unwrap();
    assert_eq!(polled.status(), 503);
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
}

#[tokio::test]
async fn over_http1_a_stream_is_the_last_answer_of_its_connection() {
    let server = TestServer::start().await;
    let http1 = support::client(&server.ca_pem, None, Some(b"http/1.1"));
    let open = |last: u64| {
        let request = http1.get(server.url("/api/v1/repos/default/watch")).basic_auth("admin", Some(&server.password));
        request.header("accept", "text/event-stream").header("last-event-id", last).send()
    };
    let response = open(1).await.unwrap();
    assert_eq!(
        (response.version(), response.headers()["connection"].to_str().unwrap()),
        (http::Version::HTTP_11, "close")
    );
    assert!(response.headers().contains_key("date") && response.headers().contains_key("x-request-id"));
    let mut events = Events::new(response);
    for number in 2..=3 {
        server.commit("default", &[("default/a", &format!("{number}\n"))]).await;
        assert_eq!(events.next().await.unwrap().id, number);
    }
    let mut resumed = Events::new(open(2).await.unwrap());
    assert_eq!(resumed.next().await.unwrap().id, 3);
    let started = Instant::now();
    server.stop().await;
    assert_eq!((events.next().await, resumed.next().await), (None, None));
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_long_poll_leaves_its_http1_connection_open() {
    let server = TestServer::start().await;
    let mut stream = support::raw(&server).await;
    let head = |path: &str, more: &str| {
        let login = support::basic(&server);
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {login}\r\n{more}\r\n")
    };
    let watch = "/api/v1/repos/default/watch?after=1";
    // Nothing in time; the next request comes along with the poll's last byte.
    stream.write_all(head(watch, "Prefer: wait=1\r\n").as_bytes()).await.unwrap();
    stream.write_all(head("/api/v1/repos/default/head", "").as_bytes()).await.unwrap();
    let poll = support::read_answer(&mut stream).await;
    assert!(poll.starts_with("HTTP/1.1 304 ") && poll.contains("x-revision: 1\r\n"), "{poll}");
    assert!(poll.contains("x-request-id: ") && !poll.contains("content-length"), "{poll}");
    let after = support::read_answer(&mut stream).await;
    assert!(after.starts_with("HTTP/1.1 200 ") && after.contains("\"revision\":1"), "{after}");
    // An event, then one more poll that the client wants to be the last.
    stream.write_all(head(watch, "").as_bytes()).await.unwrap();
    server.commit("default", &[("default/a", "x\n")]).await;
    let event = support::read_answer(&mut stream).await;
    assert!(event.starts_with("HTTP/1.1 200 ") && event.contains("\"paths\":[\"default/a\"]"), "{event}");
    stream
        .write_all(head("/api/v1/repos/default/watch?after=2", "Prefer: wait=0\r\nConnection: close\r\n").as_bytes())
        .await
        .unwrap();
    let last = support::read_all(&mut stream).await;
    assert!(last.starts_with("HTTP/1.1 304 ") && last.contains("connection: close\r\n"), "{last}");
}

#[tokio::test]
async fn watches_take_min_revision() {
    let server = TestServer::start().await;
    let waiting =
        tokio::spawn(server.request(Method::GET, "/api/v1/repos/default/watch?after=0&min_revision=2").send());
    let next = server.json("/api/v1/nodes/n1/target").await["serial"].as_u64().unwrap() + 1;
    let target = format!("/api/v1/nodes/n1/target?min_revision={next}");
    let target = tokio::spawn(server.request(Method::GET, &target).send());
    server.commit("default", &[("default/a", "x\n")]).await;
    let event = waiting.await.unwrap().unwrap();
    assert_eq!((event.status().as_u16(), event.headers()["x-revision"].to_str().unwrap()), (200, "1"));
    let target: Value = target.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(target["serial"], next, "{target}");
    let response = server.get("/api/v1/repos/default/watch?min_revision=x").await;
    assert_eq!(response.status(), 400);
    problem(response).await;
}
