//! Real `git` against the running server: TLS with the cluster's CA, every protocol version, pushes that are taken and refused.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;
use support::TestServer;

/// A place to run git in, with the credentials in the URL.
struct Git {
    home: tempfile::TempDir,
    url: String,
    ca: PathBuf,
}

struct Ran {
    ok: bool,
    text: String,
}

impl Git {
    fn new(server: &TestServer) -> Self {
        let url = format!("https://admin:{}@{}", server.password, server.address);
        Self { home: tempfile::tempdir().unwrap(), url, ca: server.data().join("ca.pem") }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs git away from the runtime's threads.
    async fn run(&self, dir: &Path, args: &[&str]) -> Ran {
        let mut command = Command::new("git");
        command
            .current_dir(dir)
            .args(["-c", &format!("http.sslCAInfo={}", self.ca.display())])
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"])
            .args(args)
            // Wherever this runs, git shall trust what the test tells it to.
            .env_remove("GIT_SSL_CAINFO")
            .env_remove("GIT_SSL_CAPATH")
            .env("NO_PROXY", "127.0.0.1")
            .env("HOME", self.home.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C");
        let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        Ran { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    async fn must(&self, dir: &Path, args: &[&str]) -> String {
        let ran = self.run(dir, args).await;
        assert!(ran.ok, "git {args:?}\n{}", ran.text);
        ran.text
    }

    async fn clone(&self, name: &str, extra: &[&str]) -> PathBuf {
        let (url, dir) = (format!("{}/default.git", self.url), self.dir(name));
        let args = [extra, &["clone", "-q", &url, name]].concat();
        self.must(self.home.path(), &args).await;
        dir
    }

    async fn commit(&self, dir: &Path, file: &str, text: &str) {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self.must(dir, &["add", "-A"]).await;
        self.must(dir, &["commit", "-q", "-m", "by hand"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clone_push_and_fetch_in_every_protocol_version() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    for (number, version) in ["0", "1", "2"].into_iter().enumerate() {
        let config = format!("protocol.version={version}");
        let dir = git.clone(&format!("v{version}"), &["-c", &config]).await;
        git.must(&dir, &["fsck", "--strict"]).await;
        git.commit(&dir, &format!("default/v{version}"), "x\n").await;
        let told = git.must(&dir, &["-c", &config, "push", "origin", "main"]).await;
        assert_eq!(server.head("default").await, 2 + number as u64, "{told}");
        let event = server.json(&format!("/api/v1/repos/default/watch?after={}", 1 + number)).await;
        assert_eq!(event["paths"], json!([format!("default/v{version}")]));
        assert_eq!(event["author"], "admin <admin@test>", "who moved main, whoever wrote the commits: {event}");
    }
    let log = server.json("/api/v1/repos/default/log?limit=1").await;
    assert_eq!(log[0]["author"], "Ada <ada@example.org>", "a pushed commit keeps its author");
    server.commit("default", &[("default/api", "y\n")]).await;
    let dir = git.dir("v2");
    git.must(&dir, &["pull", "-q", "--ff-only"]).await;
    assert_eq!(std::fs::read_to_string(dir.join("default/api")).unwrap(), "y\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn shallow_clones_branches_and_tags() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    for number in 0..4 {
        server.commit("default", &[("default/a", &format!("{number}\n"))]).await;
    }
    let url = format!("{}/default.git", git.url);
    git.must(git.home.path(), &["clone", "-q", "--depth", "1", &url, "shallow"]).await;
    let dir = git.dir("shallow");
    assert_eq!(git.must(&dir, &["rev-list", "--count", "HEAD"]).await.trim(), "1");
    git.must(&dir, &["fetch", "-q", "--deepen", "2"]).await;
    assert_eq!(git.must(&dir, &["rev-list", "--count", "HEAD"]).await.trim(), "3");
    git.must(&dir, &["fetch", "-q", "--unshallow"]).await;
    assert_eq!(git.must(&dir, &["rev-list", "--count", "HEAD"]).await.trim(), "5");

    git.must(&dir, &["tag", "-a", "v1", "-m", "one"]).await;
    git.must(&dir, &["checkout", "-q", "-b", "topic"]).await;
    git.commit(&dir, "default/topic", "x\n").await;
    git.must(&dir, &["push", "-q", "--atomic", "origin", "topic", "v1"]).await;
    assert_eq!(server.head("default").await, 5, "only main makes revisions");
    let refs = git.must(&dir, &["ls-remote", "origin"]).await;
    assert!(refs.contains("refs/heads/topic") && refs.contains("refs/tags/v1^{}"), "{refs}");
    git.must(&dir, &["push", "-q", "origin", ":topic"]).await;
    assert!(!git.must(&dir, &["ls-remote", "origin"]).await.contains("topic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_names_file_line_and_reason() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    let dir = git.clone("work", &[]).await;
    git.commit(&dir, "default/logd.toml", "# fine\n[log.a]\ninptu = \"unix:/x\"\n").await;
    let refused = git.run(&dir, &["push", "origin", "main"]).await;
    assert!(!refused.ok);
    let line = refused
        .text
        .lines()
        .find(|line| line.contains("default/logd.toml:3"))
        .unwrap_or_else(|| panic!("{}", refused.text));
    assert!(line.starts_with("remote: ") && line.contains("inptu"), "{line}");
    assert!(refused.text.contains("! [remote rejected] main -> main"), "{}", refused.text);
    assert_eq!(server.head("default").await, 1);
    // Mended, it goes through.
    git.commit(&dir, "default/logd.toml", "[log.a]\ninput = \"unix:/run/x\"\n").await;
    git.must(&dir, &["push", "-q", "origin", "main"]).await;
    assert_eq!(server.head("default").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_of_main_only_grows() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    let dir = git.clone("work", &[]).await;
    git.commit(&dir, "default/a", "1\n").await;
    git.must(&dir, &["push", "-q", "origin", "main"]).await;
    git.must(&dir, &["reset", "-q", "--hard", "HEAD~1"]).await;
    git.commit(&dir, "default/a", "2\n").await;
    let plain = git.run(&dir, &["push", "origin", "main"]).await;
    assert!(!plain.ok, "{}", plain.text);
    let forced = git.run(&dir, &["push", "--force", "origin", "main"]).await;
    assert!(!forced.ok && forced.text.contains("rejected"), "{}", forced.text);
    let deleted = git.run(&dir, &["push", "origin", ":main"]).await;
    assert!(!deleted.ok && deleted.text.contains("rejected"), "{}", deleted.text);
    assert_eq!(server.head("default").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_missing_repositories() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    let home = git.home.path().to_owned();
    let wrong = format!("https://admin:wrong@{}/default.git", server.address);
    let ran = git.run(&home, &["clone", "-q", &wrong, "x"]).await;
    assert!(!ran.ok && ran.text.contains("Authentication failed"), "{}", ran.text);
    let ran = git.run(&home, &["clone", "-q", &format!("{}/none.git", git.url), "x"]).await;
    assert!(!ran.ok && ran.text.contains("not found"), "{}", ran.text);
    // A token works where a password does.
    let made: serde_json::Value = server.post("/api/v1/tokens", &json!({"name": "git"})).await.json().await.unwrap();
    let url = format!("https://token:{}@{}/default.git", made["token"].as_str().unwrap(), server.address);
    git.must(&home, &["clone", "-q", &url, "by-token"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_and_clone_are_streamed() {
    let server = TestServer::start().await;
    let git = Git::new(&server);
    let dir = git.clone("work", &[]).await;
    // Not compressible, in several files: 24 MB, beyond what one log entry or one post buffer takes.
    let mut seed = 1u64;
    for number in 0..6 {
        let mut data = Vec::with_capacity(4 << 20);
        while data.len() < 4 << 20 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            data.extend_from_slice(&seed.to_le_bytes());
        }
        std::fs::write(dir.join(format!("big{number}")), data).unwrap();
    }
    git.must(&dir, &["add", "-A"]).await;
    git.must(&dir, &["commit", "-q", "-m", "large"]).await;
    git.must(&dir, &["push", "-q", "origin", "main"]).await;
    let copy = git.clone("copy", &[]).await;
    assert_eq!(std::fs::read(copy.join("big5")).unwrap(), std::fs::read(dir.join("big5")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_gits() {
    let server = TestServer::start().await;
    let get = server.get("/default.git/info/refs").await;
    assert_eq!(get.status(), 403, "the dumb protocol");
    let get = server.get("/default.git/info/refs?service=git-upload-pack").await;
    assert_eq!(get.headers()["content-type"], "application/x-git-upload-pack-advertisement");
    assert!(get.headers()["cache-control"].to_str().unwrap().contains("no-cache"));
    assert_eq!(server.get("/default/info/refs?service=git-upload-pack").await.status(), 404);
    let post = |kind: &str, encoding: &str| {
        server
            .request(reqwest::Method::POST, "/default.git/git-upload-pack")
            .header("content-type", kind)
            .header("content-encoding", encoding)
            .body("0000")
            .send()
    };
    assert_eq!(post("text/plain", "identity").await.unwrap().status(), 415);
    assert_eq!(post("application/x-git-upload-pack-request", "br").await.unwrap().status(), 415);
}
