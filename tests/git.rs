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

    /// An object as plain git would never make it.
    fn blob(&self, repo: &Path, content: &str) -> String {
        self.piped(repo, &["hash-object", "-w", "--stdin"], content)
    }

    fn tree(&self, repo: &Path, entries: &str) -> String {
        self.piped(repo, &["mktree", "--missing"], entries)
    }

    fn piped(&self, repo: &Path, arguments: &[&str], input: &str) -> String {
        let file = self.dir.join("input");
        std::fs::write(&file, input).unwrap();
        ok(self.git(repo, arguments).stdin(std::fs::File::open(file).unwrap())).trim().to_owned()
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
    assert_eq!((head.revision, head.commit.as_str()), (before + 1, client.rev(&work, "HEAD").as_str()));

    // Every form of a first copy is sound: mirrors (which name every ref) and single branches too.
    let mirror = client.clone("mirror", &["--mirror"]);
    client.fsck(&mirror);
    assert_eq!(client.rev(&mirror, "refs/heads/main"), head.commit);
    let single = client.clone("single", &["--single-branch", "--no-tags"]);
    client.fsck(&single);

    // Shallow, deepened, whole again; sound at every depth, and good enough to push from.
    let shallow = client.clone("shallow", &["--depth", "2"]);
    assert_eq!(client.count(&shallow), 2);
    client.fsck(&shallow);
    ok(&mut client.git(&shallow, &["fetch", "-q", "--deepen", "1"]));
    assert_eq!(client.count(&shallow), 3);
    client.fsck(&shallow);
    ok(&mut client.git(&shallow, &["fetch", "-q", "--depth", "1"]));
    assert_eq!(client.count(&shallow), 1);
    let from_shallow = client.commit(&shallow, "default/app/shallow.conf", "value = 0\n");
    ok(&mut client.git(&shallow, &["push", "-q", "origin", "main"]));
    assert_eq!(server.head("default").commit, from_shallow);
    ok(&mut client.git(&work, &["pull", "-q", "--ff-only"]));
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
    let revision = server.head("default").revision;
    let newest = client.commit(&work, "default/app/7.conf", "value = 7\n");
    ok(&mut client.git(&work, &["tag", "-a", "v2", "-m", "Second"]));
    ok(&mut client.git(&work, &["push", "-q", "--atomic", "origin", "main", "main:more", "v2"]));
    let head = server.head("default");
    assert_eq!((head.revision, head.commit.as_str()), (revision + 1, newest.as_str()));
    let refs = ok(&mut client.git(&work, &["ls-remote", "origin"]));
    for wanted in [format!("{newest}\trefs/heads/more"), format!("{newest}\trefs/tags/v2^{{}}")] {
        assert!(refs.contains(&wanted), "{wanted} in\n{refs}");
    }
    // A tag comes along with the commit that it names, in the same pack, without being asked for.
    ok(&mut client.git(&shallow, &["pull", "-q", "--ff-only"]));
    assert_eq!(client.rev(&shallow, "v2^{commit}"), newest);
    // Branches other than main may be forced.
    ok(&mut client.git(&work, &["push", "-q", "--force", "origin", "HEAD~1:more"]));
    ok(&mut client.git(&work, &["push", "-q", "origin", ":more", ":refs/tags/v2"]));
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

    // What could harm a checkout is refused by name, and nothing of it stays.
    let blob = client.blob(&work, "x\n");
    let inner = client.tree(&work, &format!("100644 blob {blob}\tconfig\n"));
    let link = client.blob(&work, "../../../etc/passwd");
    for (entry, words) in [
        (format!("040000 tree {inner}\t.GIT"), ".GIT: "),
        (format!("100644 blob {blob}\tgit~1"), "git~1: "),
        (format!("040000 tree {inner}\tglobal"), "global: "),
        (format!("160000 commit {newest}\tmodule"), "module: submodules"),
        (format!("120000 blob {link}\tout"), "it leaves the tree"),
    ] {
        let tree = client.tree(&work, &format!("{entry}\n"));
        let harmful = ok(&mut client.git(&work, &["commit-tree", &tree, "-p", "HEAD", "-m", "harm"])).trim().to_owned();
        let refused = fails(&mut client.git(&work, &["push", "origin", &format!("{harmful}:main")]));
        assert!(refused.contains("remote: ") && refused.contains(words), "{words} in\n{refused}");
        assert_eq!(server.head("default").commit, newest);
    }

    // Any number of things that the server does not have: the request is long, and goes compressed.
    ok(&mut client.git(&shallow, &["reset", "-q", "--hard", "origin/main"]));
    for number in 0..60 {
        let message = format!("{number}");
        ok(&mut client.git(&shallow, &["commit", "-q", "--allow-empty", "-m", &message]));
    }
    let newest = client.commit(&work, "default/app/8.conf", "value = 8\n");
    ok(&mut client.git(&work, &["push", "-q", "origin", "main"]));
    let output = client.git(&shallow, &["fetch", "-q"]).env("GIT_TRACE_CURL", "1").output().unwrap();
    assert!(output.status.success());
    let trace = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(trace.contains("content-encoding: gzip"), "the request was not long enough to show anything");
    assert_eq!(client.rev(&shallow, "origin/main"), newest);

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

    // What git does to its own files in between is no business of eccfg's: packing, pruning, stashing, moving.
    for arguments in [&["gc", "-q", "--prune=now"][..], &["repack", "-a", "-d", "-q"], &["prune"]] {
        ok(server.git(&wc).args(arguments));
    }
    server.commit("default", "While git packs", &[("n1/b.conf", "three\n")]).unwrap();
    std::fs::write(wc.join("default/a.conf"), "one, stashed\n").unwrap();
    ok(server.git(&wc).args(["stash", "-q"]));
    ok(server.eccfg(&wc).arg("pull"));
    ok(server.git(&wc).args(["stash", "pop", "-q"]));
    assert_eq!(std::fs::read_to_string(wc.join("default/a.conf")).unwrap(), "one, stashed\n");
    ok(server.git(&wc).args(["checkout", "-q", "default/a.conf"]));
    ok(server.git(&wc).args(["mv", "default/a.conf", "default/moved.conf"]));
    ok(server.eccfg(&wc).args(["commit", "-m", "Move a"]));
    assert_eq!(ok(server.git(&wc).args(["status", "--porcelain"])), "");
    for repo in [wc.clone(), wc.join("global")] {
        ok(server.git(&repo).args(["fsck", "--strict", "--no-dangling"]));
        ok(server.git(&repo).args(["fetch", "-q", "origin"]));
    }

    // On another branch eccfg neither commits nor updates, and says how to come back.
    ok(server.git(&wc).args(["switch", "-q", "-c", "side"]));
    std::fs::write(wc.join("default/moved.conf"), "on the side\n").unwrap();
    let revision = server.head("default").revision;
    let refused = fails(server.eccfg(&wc).args(["commit", "-m", "From the side"]));
    assert!(refused.contains("main is not checked out") && refused.contains("git switch main"), "{refused}");
    assert_eq!(server.head("default").revision, revision);
    ok(server.git(&wc).args(["checkout", "-q", "default/moved.conf"]));
    ok(server.git(&wc).args(["switch", "-q", "main"]));

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
