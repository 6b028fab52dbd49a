//! kill -9 at any instant: what was reported is there, and what was half done does no harm.
//!
//! The test runs itself as a child that commits, syncs and consolidates as fast as it can and reports each commit once it is
//! installed; the parent kills it at some moment and looks at what is left.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use repos::{ConsolidateOptions, Draft, Oid, Store};

use crate::support::{git, new_commit, put};

const CHILD: &str = "REPOS_TEST_CRASH_CHILD";
const TIP: &str = "REPOS_TEST_CRASH_TIP";

/// Not a test of its own: the child's part.
#[test]
fn child() {
    let (Ok(path), Ok(tip)) = (std::env::var(CHILD), std::env::var(TIP)) else { return };
    let store = Store::open(Path::new(&path)).unwrap();
    let mut tip: Option<Oid> = tip.parse().ok();
    for n in 0.. {
        let mut draft = Draft::new(&store).unwrap();
        let base = tip.map_or(Oid::EMPTY_TREE, |tip| draft.tree_of(tip).unwrap());
        let tree = draft.apply(base, &[put(&format!("d{}/f", n % 4), format!("{tip:?} {n}\n").repeat(20))]).unwrap();
        let commit = draft.commit(&new_commit(tree, tip.as_slice(), n)).unwrap();
        store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
        // Straight to the pipe: the harness would keep what println! prints.
        use std::io::Write;
        writeln!(std::io::stderr(), "installed {commit}").unwrap();
        tip = Some(commit);
        if n % 5 == 4 {
            store.sync().unwrap();
            store.consolidate(&ConsolidateOptions { min_packs: 3, factor: 2 }, tip.as_slice()).unwrap();
        }
    }
}

#[test]
fn nothing_that_was_reported_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.git");
    Store::init(&path).unwrap();
    let mut tip: Option<Oid> = None;
    for round in 0..15u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture"])
            .env(CHILD, &path)
            .env(TIP, tip.map_or_else(String::new, |tip| tip.to_string()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reports = BufReader::new(child.stderr.take().unwrap());
        // Killed after a number of commits and a little: anywhere in what comes then.
        let wanted = 1 + round * 7 % 23;
        let mut seen = 0;
        let mut line = String::new();
        while seen < wanted && reports.read_line(&mut line).unwrap() > 0 {
            if let Some(id) = line.trim_end().strip_prefix("installed ") {
                tip = Some(id.parse().unwrap());
                seen += 1;
            }
            line.clear();
        }
        assert_eq!(seen, wanted, "the child failed by itself");
        std::thread::sleep(std::time::Duration::from_micros(round * 397 % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        reports.read_to_string(&mut rest).unwrap();
        if let Some(id) = rest.lines().rev().find_map(|line| line.strip_prefix("installed ")?.parse().ok()) {
            tip = Some(id);
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.verify(tip.as_slice()).unwrap(), [], "round {round}");
        let left = std::fs::read_dir(path.join("quarantine"))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().is_dir())
            .count();
        assert_eq!(left, 0, "round {round}: staging directories are left");
    }
    git(&path, &["fsck", "--full", "--no-dangling"]);
}
