//! `kill -9` at every step of an update: the working copy is the old or the new one, and the next command repairs the rest.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use repos::worktree::fault::POINTS;

use crate::session::{Server, Session};

const FILES: usize = 12;

/// Writes every file of both repositories with this version in it.
fn write_version(wc: &Path, version: usize) {
    for number in 0..FILES {
        let place = wc.join(format!("default/d{}/f{number}", number % 3));
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("directories");
        std::fs::write(place, format!("{version}\n")).expect("a file");
    }
    std::fs::write(wc.join("global/version"), format!("{version}\n")).expect("a file");
}

/// The version that every file has; a mixture is what must never be.
#[track_caller]
fn version(wc: &Path, point: &str) -> usize {
    let mut seen: Vec<String> = (0..FILES)
        .map(|number| format!("default/d{}/f{number}", number % 3))
        .chain(["global/version".to_owned()])
        .map(|path| std::fs::read_to_string(wc.join(&path)).unwrap_or_else(|error| panic!("{point}: {path}: {error}")))
        .collect();
    seen.dedup();
    assert_eq!(seen.len(), 1, "{point}: a mixture of versions: {seen:?}");
    seen[0].trim().parse().expect("a version")
}

#[track_caller]
fn success(mut command: Command, what: &str) -> String {
    let output = command.output().expect("eccfg runs");
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that dies at `point`; false if it never came by there and succeeded.
#[track_caller]
fn died(mut command: Command, point: &str) -> bool {
    let output = command.env("ECCFG_FAULT", point).output().expect("eccfg runs");
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{point}: {}", String::from_utf8_lossy(&output.stderr));
    killed
}

#[test]
fn a_pull_that_is_killed_leaves_one_tree_or_the_other() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    let (a, b) = (session.dir().join("a"), session.dir().join("b"));
    write_version(&a, 0);
    std::fs::write(a.join("default/shared"), "one\ntwo\nthree\nfour\nfive\n").expect("a file");
    success(session.command(&["commit", "--wc", "a", "--add-all", "-m", "0"]), "the first commit");
    session.checkout("b");
    std::fs::write(b.join("default/shared"), "one\ntwo\nthree\nfour\nmine\n").expect("a file");
    std::fs::write(b.join("default/unknown"), "mine\n").expect("a file");

    let mut deaths = Vec::new();
    for (before, point) in POINTS.iter().enumerate() {
        write_version(&a, before + 1);
        success(session.command(&["commit", "--wc", "a", "-m", point]), point);
        if died(session.command(&["pull", "--wc", "b"]), point) {
            deaths.push(*point);
        }
        let found = version(&b, point);
        assert!(found == before || found == before + 1, "{point}: version {found} between {before} and {}", before + 1);
        success(session.command(&["pull", "--wc", "b"]), point);
        assert_eq!(version(&b, point), before + 1, "{point}");
        assert_eq!(
            std::fs::read_to_string(b.join("default/shared")).expect("a file"),
            "one\ntwo\nthree\nfour\nmine\n",
            "{point}"
        );
        assert_eq!(std::fs::read_to_string(b.join("default/unknown")).expect("a file"), "mine\n", "{point}");
        let status = success(session.command(&["status", "--local", "--wc", "b"]), point);
        let edits: Vec<&str> = status.lines().filter(|line| line.as_bytes().get(1..3) == Some(b"  ")).collect();
        assert_eq!(edits, ["M  default/shared", "?  default/unknown"], "{point}: {status}");
    }
    for point in [
        "stage.patched",
        "stage.journal-ready",
        "exchange.before",
        "exchange.after",
        "settle.scanned",
        "settle.journal-cleared",
    ] {
        assert!(deaths.contains(&point), "{point} was never reached, so nothing was shown: {deaths:?}");
    }
}

#[test]
fn a_commit_that_is_killed_is_committed_once() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    let a = session.dir().join("a");
    write_version(&a, 0);
    success(session.command(&["commit", "--wc", "a", "--add-all", "-m", "0"]), "the first commit");

    let mut deaths = 0;
    let first = head(&session);
    for (before, point) in POINTS.iter().enumerate() {
        write_version(&a, before + 1);
        deaths += usize::from(died(session.command(&["commit", "--wc", "a", "-m", point]), point));
        assert_eq!(version(&a, point), before + 1, "{point}: local edits stay");
        // The first run may have died before its commit was sent, never in the middle of it.
        success(session.command(&["commit", "--wc", "a", "-m", "again"]), point);
        assert_eq!(head(&session), first + 1 + before as u64, "{point}: committed once");
        let status = success(session.command(&["status", "--wc", "a"]), point);
        assert!(
            status.contains("up to date") && !status.contains("behind") && !status.contains("M  "),
            "{point}: {status}"
        );
    }
    assert!(deaths > 0, "no commit died, so nothing was shown");
}

#[test]
fn a_bootstrap_that_is_killed_can_be_repeated() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    write_version(&session.dir().join("a"), 7);
    success(session.command(&["commit", "--wc", "a", "--add-all", "-m", "7"]), "the first commit");
    let mut deaths = 0;
    for point in POINTS {
        let args = ["bootstrap", "--clustername", "default", "--wc", point];
        let killed = died(session.command(&args), point);
        deaths += usize::from(killed);
        let wc = session.dir().join(point);
        if killed && !wc.join("global/version").exists() {
            success(session.command(&args), point);
        } else {
            success(session.command(&["pull", "--wc", point]), point);
        }
        assert_eq!(version(&wc, point), 7, "{point}");
        let status = success(session.command(&["status", "--wc", point]), point);
        assert!(status.contains("up to date") && !status.contains("?  "), "{point}: {status}");
    }
    assert!(deaths > 0, "no bootstrap died, so nothing was shown");
}

fn head(session: &Session<'_>) -> u64 {
    let log = success(session.command(&["--json", "log", "-n", "1"]), "log");
    let entries: Vec<cluster::api::LogEntry> = serde_json::from_str(&log).expect("JSON");
    entries[0].revision.expect("the head has a revision")
}
