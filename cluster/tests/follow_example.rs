//! The example daemon, run as a third party would run it: configured, reconfigured, asked, stopped.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::control::{Client, ControlError};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Cargo puts examples beside the directory of the test's own executable.
fn example() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/follow")
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path) -> Running {
    start_with_log(dir, Stdio::null())
}

fn start_with_log(dir: &Path, log: Stdio) -> Running {
    let child = Command::new(example())
        .args(["--node", "n1", "--conf"])
        .arg(dir.join("conf"))
        .arg("--data")
        .arg(dir.join("data"))
        .arg("--identity")
        .arg(dir.join("no-identity"))
        .env("ECCLUSTER_RUN", dir.join("run"))
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

async fn ask(dir: &Path, command: &str, args: Value) -> Result<Value, ControlError> {
    let path = dir.join("run/greeter.sock");
    Client::connect_at("greeter", &path).await?.call(command, args, |_| {}).await
}

/// Asks until the answer is the expected one: a signal or a file change has no other acknowledgement.
async fn greets(dir: &Path, expected: &str) {
    let began = Instant::now();
    loop {
        let answer = ask(dir, "greet", json!({"name": "Ada"})).await;
        if answer.as_ref().is_ok_and(|answer| answer == expected) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{answer:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A pipe that holds no more; whoever writes to it waits for as long as the reader is kept.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // Another opening of the pipe: the daemon's own must not learn to give up.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
    for size in [4096, 1] {
        while filler.write(&vec![b'x'; size]).is_ok() {}
    }
    (reader, writer)
}

#[tokio::test]
async fn a_daemon_whose_log_nobody_reads_starts_answers_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let document = dir.join("conf/default/greeter.toml");
    std::fs::create_dir_all(document.parent().unwrap()).unwrap();
    std::fs::write(&document, "greeting = \"Hello\"\n").unwrap();
    let (mut reader, writer) = full_pipe();
    let mut running = start_with_log(dir, writer.into());
    greets(dir, "Hello, Ada!").await;
    kill(Pid::from_raw(running.0.id() as i32), Signal::SIGTERM).unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it waits for who reads its log");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(status.success(), "{status}");

    // Somebody reads: what is said first and last is there.
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(log.trim_start_matches('x'), "", "it came after the pipe was full");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut running = start_with_log(dir, writer.into());
    greets(dir, "Hello, Ada!").await;
    kill(Pid::from_raw(running.0.id() as i32), Signal::SIGTERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    reader.read_to_string(&mut log).unwrap();
    assert!(log.trim_start_matches('x').lines().count() > 1, "{log}");
}

#[tokio::test]
async fn the_example_follows_answers_and_leaves() {
    assert!(
        example().exists(),
        "no example: `cargo test` without --test builds it, or `cargo build -p cluster --examples`"
    );
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let document = dir.join("conf/default/greeter.toml");
    std::fs::create_dir_all(document.parent().unwrap()).unwrap();
    std::fs::write(&document, "greeting = \"Hello\"\n").unwrap();
    let mut running = start(dir);
    greets(dir, "Hello, Ada!").await;

    // Refused: the one in use stays. The next good one shows that the refused one was seen and passed over.
    std::fs::write(&document, "greetng = \"Oops\"\n").unwrap();
    kill(Pid::from_raw(running.0.id() as i32), Signal::SIGHUP).unwrap();
    greets(dir, "Hello, Ada!").await;
    std::fs::write(&document, "greeting = \"Servus\"\n").unwrap();
    greets(dir, "Servus, Ada!").await;
    let metrics = ask(dir, "metrics", Value::Null).await.unwrap();
    assert!(metrics.as_str().unwrap().contains("greeter_greetings_total"));

    // A second one for the same data is told who has it.
    let second = Command::new(example())
        .args(["--node", "n1", "--conf", "/nonexistent", "--data"])
        .arg(dir.join("data"))
        .arg("--identity")
        .arg(dir.join("no-identity"))
        .env("ECCLUSTER_RUN", dir.join("run"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains(&format!("pid {}", running.0.id())), "{words}");

    // It starts again from what it had when the configuration is bad by then.
    kill(Pid::from_raw(running.0.id() as i32), Signal::SIGTERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    assert!(matches!(ask(dir, "greet", Value::Null).await, Err(ControlError::NotRunning { .. })));
    std::fs::write(&document, "greeting = \"\"\n").unwrap();
    let _running = start(dir);
    greets(dir, "Servus, Ada!").await;
}
