//! Real git against a real server, over TLS, in each version of the protocol.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Server, fails, ok};

/// A repository on the client's side, spoken to in one version of the protocol.
struct Client<'a> {
    server: &'a Server,
    version: u8,
    dir: PathBuf,
}

impl<'a> Client<'a> {
    fn new(server: &'a Server, version: u8) -> Client<'a> {
        let dir = server.dir.path().join(format!("v{version}"));
        std::fs::create_dir_all(&dir).unwrap();
        Client { server, version, dir }
    }

    fn git(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut git = self.server.git(dir);
        git.arg("-c").arg(format!("protocol.version={}", self.version)).args(arguments);
        git
    }

    fn clone(&self, name: &str, options: &[&str]) -> PathBuf {
        let url = self.server.repo_url("default");
        let to = self.dir.join(name);
        let arguments = [&["clone", "-q"], options, &[&url, to.to_str().unwrap()]].concat();
        ok(&mut self.git(&self.dir, &arguments));
        to
    }

    /// Commits a file and gives the commit's id.
    fn commit(&self, repo: &Path, path: &str, text: &str) -> String {
        let file = repo.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        ok(&mut self.git(repo, &["add", "-A"]));
        ok(&mut self.git(repo, &["commit", "-q", "-m", &format!("Write {path}")]));
        self.rev(repo, "HEAD")
    }

    fn rev(&self, repo: &Path, name: &str) -> String {
        ok(&mut self.git(repo, &["rev-parse", name])).trim().to_owned()
    }

    fn count(&self, repo: &Path) -> usize {
        ok(&mut self.git(repo, &["rev-list", "--count", "HEAD"])).trim().parse().unwrap()
    }

    fn fsck(&self, repo: &Path) {
        ok(&mut self.git(repo, &["fsck", "--strict", "--no-dangling"]));
    }
}

fn story(version: u8) {
    let server = Server::start();
    let client = Client::new(&server, version);

    // Clone, push, and the server's head follows by one revision however many commits come.
    let work = client.clone("work", &[]);
    let before = server.head("default").revision;
    for number in 1..=5 {
        client.commit(&work, &format!("default/app/{number}.conf"), &format!("value = {number}\n"));
    }
    ok(&mut client.git(&work, &["push", "-q", "origin", "main"]));
    let head = server.head("default");
    assert_eq!((head.revision, head.commit), (before + 1, client.rev(&work, "HEAD")));

    // Shallow, deepened, whole again.
    let shallow = client.clone("shallow", &["--depth", "2"]);
    assert_eq!(client.count(&shallow), 2);
    ok(&mut client.git(&shallow, &["fetch", "-q", "--deepen", "1"]));
    assert_eq!(client.count(&shallow), 3);
    ok(&mut client.git(&shallow, &["fetch", "-q", "--unshallow"]));
    assert_eq!(client.count(&shallow), client.count(&work));
    client.fsck(&shallow);

    // An incremental fetch sees what another client pushed.
    let newest = client.commit(&work, "default/app/6.conf", "value = 6\n");
    ok(&mut client.git(&work, &["push", "-q", "origin", "main"]));
    ok(&mut client.git(&shallow, &["pull", "-q", "--ff-only"]));
    assert_eq!(client.rev(&shallow, "HEAD"), newest);

    // Branches and annotated tags come, move and go; a push of several refs is one step.
    ok(&mut client.git(&work, &["tag", "-a", "v1", "-m", "First"]));
    ok(&mut client.git(&work, &["branch", "topic"]));
    ok(&mut client.git(&work, &["push", "-q", "--atomic", "origin", "topic", "v1"]));
    ok(&mut client.git(&shallow, &["fetch", "-q", "--tags"]));
    assert_eq!(client.rev(&shallow, "v1^{commit}"), newest);
    ok(&mut client.git(&work, &["push", "-q", "origin", ":topic"]));
    assert!(!ok(&mut client.git(&work, &["ls-remote", "origin"])).contains("refs/heads/topic"));

    // main neither goes back nor away; an atomic push with one bad ref changes nothing at all.
    ok(&mut client.git(&shallow, &["reset", "-q", "--hard", "HEAD~1"]));
    client.commit(&shallow, "default/app/other.conf", "value = 0\n");
    let refused = fails(&mut client.git(&shallow, &["push", "--force", "origin", "main"]));
    assert!(refused.contains("[remote rejected]") && refused.contains("main only moves forward"), "{refused}");
    ok(&mut client.git(&shallow, &["branch", "along"]));
    let refused = fails(&mut client.git(&shallow, &["push", "--force", "--atomic", "origin", "along", "main"]));
    assert!(refused.contains("along") && refused.contains("main"), "{refused}");
    assert!(!ok(&mut client.git(&work, &["ls-remote", "origin"])).contains("refs/heads/along"));
    let refused = fails(&mut client.git(&work, &["push", "origin", ":main"]));
    assert!(refused.contains("[remote rejected]"), "{refused}");
    assert_eq!(server.head("default").commit, newest);

    // The gate's refusal names file, line and reason.
    client.commit(&work, "default/duravip.toml", "dead_after = \"300ms\"\nhartbeat = \"40ms\"\n");
    let refused = fails(&mut client.git(&work, &["push", "origin", "main"]));
    assert!(refused.contains("remote: ") && refused.contains("default/duravip.toml:2"), "{refused}");
    assert!(refused.contains("hartbeat") && refused.contains("heartbeat"), "{refused}");
    assert_eq!(server.head("default").commit, newest);

    // What the server holds is sound, and so is a fresh clone of it.
    let last = client.clone("last", &[]);
    assert_eq!(client.rev(&last, "HEAD"), newest);
    client.fsck(&last);
}

#[test]
fn protocol_version_0() {
    story(0);
}

#[test]
fn protocol_version_1() {
    story(1);
}

#[test]
fn protocol_version_2() {
    story(2);
}

#[test]
fn plain_git_works_in_a_working_copy() {
    let server = Server::start();
    server.commit("default", "First", &[("default/a.conf", "one\n"), ("n1/b.conf", "two\n")]).unwrap();
    let wc = server.dir.path().join("conf");
    ok(server.eccfg(&wc).args(["bootstrap", "--clustername", "default"]));
    assert_eq!(std::fs::read_to_string(wc.join("default/a.conf")).unwrap(), "one\n");

    for repo in [wc.clone(), wc.join("global")] {
        assert_eq!(ok(server.git(&repo).args(["status", "--porcelain"])), "");
        ok(server.git(&repo).args(["fsck", "--strict", "--no-dangling"]));
        assert_eq!(ok(server.git(&repo).args(["rev-parse", "--abbrev-ref", "HEAD"])).trim(), "main");
    }
    assert!(ok(server.git(&wc).args(["log", "--oneline"])).contains("First"));

    // An edit shows in git and in eccfg alike, survives an update, and is committed by eccfg.
    std::fs::write(wc.join("default/a.conf"), "one, edited\n").unwrap();
    assert_eq!(ok(server.git(&wc).args(["status", "--porcelain"])), " M default/a.conf\n");
    server.commit("default", "Second", &[("n1/b.conf", "two and a half\n")]).unwrap();
    ok(server.eccfg(&wc).arg("pull"));
    assert_eq!(std::fs::read_to_string(wc.join("n1/b.conf")).unwrap(), "two and a half\n");
    assert_eq!(ok(server.git(&wc).args(["diff", "--name-only"])), "default/a.conf\n");
    ok(server.eccfg(&wc).args(["commit", "-m", "Edit a"]));
    assert_eq!(ok(server.git(&wc).args(["status", "--porcelain"])), "");
    assert_eq!(server.head("default").commit, ok(server.git(&wc).args(["rev-parse", "HEAD"])).trim());

    // git add -A never records global/ as a submodule, and git's own push works from here too.
    ok(server.git(&wc).args(["add", "-A"]));
    assert_eq!(ok(server.git(&wc).args(["status", "--porcelain"])), "");
    std::fs::write(wc.join("default/c.conf"), "three\n").unwrap();
    ok(server.git(&wc).args(["add", "default/c.conf"]));
    ok(server.git(&wc).args(["commit", "-q", "-m", "Third, by git"]));
    ok(server.git(&wc).args(["push", "-q", &server.repo_url("default"), "HEAD:main"]));
    ok(server.eccfg(&wc).arg("pull"));
    assert_eq!(ok(server.git(&wc).args(["status", "--porcelain"])), "");
    assert_eq!(server.head("default").commit, ok(server.git(&wc).args(["rev-parse", "HEAD"])).trim());
}
