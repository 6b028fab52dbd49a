//! The control socket between real processes' worth of pieces: a bound socket, a lock, clients.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cluster::control::{Client, ControlError, Failure, Router, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

fn options(dir: &Path) -> ServerOptions {
    ServerOptions::new("duravip", "n1").at(dir.join("duravip.sock"))
}

fn router() -> Router {
    Router::new()
        .command("echo", "Says it again", |args, _| async move { Ok(args) })
        .command("count", "Counts in parts", |args: Value, parts| async move {
            for number in 0..args["to"].as_u64().unwrap() {
                parts.send(number).await?;
            }
            Ok(json!("done"))
        })
        .command("refuse", "Always refuses", |_, _| async {
            Err(Failure::new("not today").hint("try tomorrow").code("closed"))
        })
}

/// A served socket that ends with the value.
struct Served {
    path: PathBuf,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&options(dir.path())).unwrap();
        let (path, stop) = (server.path().to_path_buf(), CancellationToken::new());
        let task = tokio::spawn(server.serve(router(), stop.clone()));
        Self { path, stop, task, _dir: dir }
    }

    async fn client(&self) -> Client {
        Client::connect_at("duravip", &self.path).await.unwrap()
    }
}

#[tokio::test]
async fn commands_answer_stream_and_refuse() {
    let served = Served::start();
    let mut client = served.client().await;
    let answer = client.call("echo", json!({"a": [1, "ä"]}), |_| {}).await.unwrap();
    assert_eq!(answer, json!({"a": [1, "ä"]}));

    let mut parts = Vec::new();
    let answer = client.call("count", json!({"to": 100}), |part| parts.push(part)).await.unwrap();
    assert_eq!(answer, "done");
    assert_eq!(parts, (0..100).map(Value::from).collect::<Vec<_>>());

    let error = client.call("refuse", (), |_| {}).await.unwrap_err();
    let ControlError::Refused(failure) = error else { panic!("{error}") };
    assert_eq!(
        (failure.message.as_str(), failure.hint.as_deref(), &*failure.code),
        ("not today", Some("try tomorrow"), "closed")
    );

    let error = client.call("ehco", (), |_| {}).await.unwrap_err();
    let ControlError::Refused(failure) = error else { panic!("{error}") };
    assert!(failure.hint.unwrap().contains("count, echo, help, refuse, version"));

    let help = client.call("help", (), |_| {}).await.unwrap();
    let mut known: Vec<&String> = help.as_object().unwrap().keys().collect();
    known.sort();
    assert_eq!(known, ["count", "echo", "help", "refuse", "version"]);

    served.stop.cancel();
    served.task.await.unwrap();
    assert!(!served.path.exists(), "the socket is removed");
}

#[tokio::test]
async fn the_socket_is_private_and_a_second_owner_is_refused_by_name() {
    let served = Served::start();
    let mode = std::fs::metadata(&served.path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let error = Server::bind(&options(served.path.parent().unwrap())).unwrap_err().to_string();
    for part in ["duravip", "node n1", &format!("pid {}", std::process::id())] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    served.client().await.call("echo", (), |_| {}).await.unwrap();
}

/// Tells when a handler ended, by being dropped with it.
struct Ends(Option<tokio::sync::oneshot::Sender<()>>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

#[tokio::test]
async fn a_command_that_waits_ends_with_whoever_asked_and_with_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(&options(dir.path())).unwrap();
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let router = Router::new().command("wait", "Waits for ever", move |_, parts| {
        let (sender, end) = tokio::sync::oneshot::channel();
        ended.send(end).unwrap();
        async move {
            let _ends = Ends(Some(sender));
            parts.send("waiting").await?;
            std::future::pending().await
        }
    });
    let (path, stop) = (server.path().to_path_buf(), CancellationToken::new());
    let serving = tokio::spawn(server.serve(router, stop.clone()));
    let wait = async || {
        let mut client = Client::connect_at("duravip", &path).await.unwrap();
        client.call("wait", (), |_| {}).await
    };

    // The first one goes away once its handler runs; the second is cut off by the daemon's end.
    let end = tokio::select! {
        answer = wait() => panic!("{answer:?}"),
        end = ends.recv() => end.unwrap(),
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), end).await.expect("the handler ends").unwrap();
    let (answer, ()) = tokio::join!(wait(), async {
        let end = ends.recv().await.unwrap();
        stop.cancel();
        end.await.unwrap();
    });
    let Err(ControlError::Refused(failure)) = answer else { panic!("{answer:?}") };
    assert_eq!(failure.code, "stopping");
    serving.await.unwrap();
}

#[tokio::test]
async fn what_a_dead_process_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = options(dir.path()).path;
    // A socket without a listener, and the lock file of its owner, as kill -9 leaves them.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::write(path.with_extension("lock"), r#"{"program":"duravip","node":"n1","pid":1,"boot_id":"","since":""}"#)
        .unwrap();
    let error = Client::connect_at("duravip", &path).await.unwrap_err().to_string();
    assert!(error.contains("duravip is not running"), "{error}");

    let server = Server::bind(&options(dir.path())).unwrap();
    tokio::spawn(server.serve(router(), CancellationToken::new()));
    let mut client = Client::connect_at("duravip", &path).await.unwrap();
    client.call("version", (), |_| {}).await.unwrap();
}

#[tokio::test]
async fn nonsense_and_floods_get_an_answer_and_harm_nobody() {
    let served = Served::start();
    let mut raw = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    raw.write_all(b"hello\n{\"command\":\"echo\",\"args\":1}\n").await.unwrap();
    raw.shutdown().await.unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    let lines: Vec<&str> = answer.lines().collect();
    assert!(lines[0].contains("bad-request") && lines[1] == r#"{"ok":1}"# && lines.len() == 2, "{answer}");

    let mut raw = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    // The server stops reading at its limit, so the write may end early; the answer must come either way.
    let _ = raw.write_all(&vec![b'x'; 2 << 20]).await;
    let mut answer = Vec::new();
    let _ = raw.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).contains("too long"));
    served.client().await.call("echo", (), |_| {}).await.unwrap();
}
