//! kill -9 of the agent at every step of an update: the working copy is the old or the new tree as a whole, no local edit is lost, and the
//! next run ends at the target with services that have seen it. (The commands are killed in `eccfg/crash.rs`.)
#![cfg(debug_assertions)] // a release has no fault points
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "support/node.rs"]
mod node;
mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;

use cluster::api::{ChangeRequest, MultiCommitRequest, MultiCommitResponse, RepoChanges, ReportState};
use eccfg::agent::fault as agent;
use node::Node;
use repos::worktree::fault as worktree;
use support::{eventually, ok};

/// Points of an update that moves files; the others belong to one that only moves the base.
fn of_a_swap() -> impl Iterator<Item = &'static str> {
    worktree::POINTS.iter().copied().filter(|point| !point.starts_with("flip."))
}

/// The files that every commit of these tests changes together: in two directories and in both repositories.
const FILES: &[&str] = &["default/web/conf", "default/web/deep/er/file", "n1/file", "global/file"];

/// Commits `content` to all of [`FILES`] at once; the revision of `default`.
fn commit(node: &Node, content: &str) -> u64 {
    let part = |repo: &str, of: &dyn Fn(&str) -> Option<String>| RepoChanges {
        base: node.server.head(repo).revision.into(),
        changes: FILES
            .iter()
            .filter_map(|path| Some(ChangeRequest::put(of(path)?, content.as_bytes().to_vec())))
            .collect(),
    };
    let inside = |path: &str| path.strip_prefix("global/").map(str::to_owned);
    let outside = |path: &str| (!path.starts_with("global/")).then(|| path.to_owned());
    let repos = [("default".to_owned(), part("default", &outside)), ("global".to_owned(), part("global", &inside))];
    let request = MultiCommitRequest { message: content.to_owned(), repos: repos.into() };
    let response: MultiCommitResponse =
        node.server.runtime.block_on(node.server.client().post_json("/api/v1/commits", &request)).unwrap();
    response.repos["default"].revision
}

/// What all of [`FILES`] hold.
#[track_caller]
fn whole(node: &Node, when: &str) -> String {
    let seen: BTreeSet<String> = FILES.iter().map(|path| node.read(path)).collect();
    assert_eq!(seen.len(), 1, "{when}: a mixture of trees: {seen:?}");
    seen.into_iter().next().unwrap()
}

/// A node at content `0`, with a local edit and a file that nobody knows.
fn edited_node() -> Node {
    let node = Node::new(&["web"]);
    commit(&node, "0");
    node
}

const EDITED: &str = "default/edited";
const MINE: &str = "default/mine";

fn edit(node: &Node) {
    node.write(EDITED, "one\ntwo\nthree, as edited here\n");
    node.write(MINE, "mine\n");
}

#[track_caller]
fn edits_are_there(node: &Node, when: &str) {
    assert_eq!(node.read(EDITED), "one\ntwo\nthree, as edited here\n", "{when}");
    assert_eq!(node.read(MINE), "mine\n", "{when}");
}

/// Starts an agent that must die at this point.
#[track_caller]
fn die_at(node: &mut Node, point: &str) {
    node.agent.spawn_dying(point);
    eventually(&format!("the agent dies at {point}"), || node.agent.has_ended().then_some(()));
    assert_eq!(node.agent.wait().signal(), Some(9), "{point}: {}", node.agent.log());
}

/// What the services saw last.
fn last_steps(node: &Node) -> Vec<String> {
    let journal = node.journal();
    journal[journal.len().saturating_sub(2)..].to_vec()
}

#[test]
fn an_agent_killed_at_any_step_of_an_update_ends_at_the_target() {
    let mut node = edited_node();
    node.server.commit("default", "Edited", &[(EDITED, "one\ntwo\nthree\n")]).unwrap();
    node.start();
    edit(&node);
    node.agent.kill();
    for (number, point) in of_a_swap().chain(agent::POINTS.iter().copied()).enumerate() {
        let (old, new) = (number.to_string(), (number + 1).to_string());
        let revision = commit(&node, &new);
        node.take_journal();
        die_at(&mut node, point);
        let seen = whole(&node, point);
        assert!(seen == old || seen == new, "{point}: {seen}");
        let exchanged = seen == new;
        // What services were told, they were told about what is there.
        let told = |journal: &[String]| journal.iter().any(|line| !line.contains(" check ") && line.ends_with(&new));
        assert!(exchanged || !told(&node.journal()), "{point}: {:?}", node.journal());
        edits_are_there(&node, point);
        node.agent.spawn();
        node.healthy(revision);
        eventually("the record is written", || node.record()["underway"].is_null().then_some(()));
        assert_eq!(whole(&node, point), new, "{point}");
        edits_are_there(&node, point);
        let wanted = ["reload", "verify"].map(|step| format!("web {step} r{revision} {new}"));
        assert_eq!(last_steps(&node), wanted, "{point}");
        let record = node.record();
        assert_eq!(record["applied"]["default"]["revision"], revision, "{point}");
        assert!(record["given_up"].is_null(), "{point}: {record:#}");
        node.agent.kill();
    }
    ok(support::git(&node.agent.wc).args(["fsck", "--strict", "--no-dangling"]));
}

#[test]
fn an_agent_killed_on_the_way_back_goes_on_back() {
    let mut node = edited_node();
    node.server.commit("default", "Edited", &[(EDITED, "one\ntwo\nthree\n")]).unwrap();
    node.start();
    edit(&node);
    node.agent.kill();
    let mut applied = node.server.head("default").revision;
    let mut content = "0".to_owned();
    // The second pass of the same points brings the old tree back. Every other one is enough here: what a kill leaves there
    // is the working copy's affair, and that is proved above and in its own tests.
    let back = of_a_swap().step_by(3).map(|point| format!("{point}#2"));
    for (number, point) in back.chain(agent::BACK_POINTS.iter().map(|point| (*point).to_owned())).enumerate() {
        let bad = format!("{number} bad-verify");
        let revision = commit(&node, &bad);
        node.take_journal();
        die_at(&mut node, &point);
        let seen = whole(&node, &point);
        assert!(seen == content || seen == bad, "{point}: {seen}");
        edits_are_there(&node, &point);
        node.agent.spawn();
        let report = node.ends(revision, ReportState::Failed);
        eventually("the record is written", || node.record()["underway"].is_null().then_some(()));
        assert!(report.detail.contains("verify of web failed"), "{point}: {report:#?}");
        assert!(report.detail.contains("the revision before is back"), "{point}: {report:#?}");
        assert_eq!(whole(&node, &point), content, "{point}");
        edits_are_there(&node, &point);
        // The services saw the old content last, and the failed target was tried once.
        let wanted = ["reload", "verify"].map(|step| format!("web {step} r{applied} {content}"));
        assert_eq!(last_steps(&node), wanted, "{point}");
        let tries =
            node.journal().iter().filter(|line| line.starts_with("web verify ") && line.ends_with(&bad)).count();
        assert_eq!(tries, 1, "{point}: {:#?}", node.journal());
        assert_eq!(node.record()["applied"]["default"]["revision"], applied, "{point}");
        // Now and then a good one, so that the way back has another place to go to.
        if number % 4 == 3 {
            content = format!("good {number}");
            applied = commit(&node, &content);
            node.healthy(applied);
        }
        node.agent.kill();
    }
}

#[test]
fn an_agent_killed_while_it_makes_the_working_copy_makes_it_the_next_time() {
    let mut node = edited_node();
    let points = worktree::CREATE_POINTS.iter().chain(agent::CREATE_POINTS);
    for (number, point) in
        points.copied().chain(["stage.patched-first", "exchange.before", "exchange.after"]).enumerate()
    {
        let when = format!("{point} at the first start");
        node.agent.wc = node.agent.dir().join(number.to_string()).join("conf");
        // Somebody has made the directory: it is replaced then.
        std::fs::create_dir_all(&node.agent.wc).unwrap();
        let _ = std::fs::remove_file(node.agent.dir().join("agent/state.json"));
        node.take_journal();
        die_at(&mut node, point);
        node.agent.spawn();
        let revision = node.server.head("default").revision;
        eventually(&when, || {
            let path = node.agent.dir().join("agent/state.json");
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            (record["applied"]["default"]["revision"] == revision && record["underway"].is_null()).then_some(())
        });
        assert_eq!(whole(&node, &when), "0");
        assert_eq!(last_steps(&node), ["reload", "verify"].map(|step| format!("web {step} r{revision} 0")), "{when}");
        assert_eq!(ok(support::git(&node.agent.wc).args(["status", "--porcelain"])), "", "{when}");
        // eccfg knows its cluster from the working copy alone.
        let mut diff = support::eccluster(node.server.dir.path());
        diff.arg("eccfg").args(["--username", "admin", "--password-file"]).arg(node.server.password_file());
        ok(diff.current_dir(&node.agent.wc).args(["pull"]));
        node.agent.kill();
    }
}
