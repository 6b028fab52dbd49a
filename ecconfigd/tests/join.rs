//! A second and a third server join the first, over HTTP and the peer protocol on one port.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use cluster::identity::JoinToken;
use ecconfigd::join::{self, JoinError};
use ecconfigd::server::{Options, Server};
use reqwest::Method;
use serde_json::{Value, json};
use support::{PATIENCE, TestServer};

/// A port that is free now; nobody else here asks for a given one.
fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn token(server: &TestServer) -> JoinToken {
    let answer = server.post("/api/v1/node-tokens", &json!({"subcluster": "default"})).await;
    let answer: Value = answer.json().await.unwrap();
    answer["token"].as_str().unwrap().parse().unwrap()
}

fn options(first: &TestServer, data: &Path, node: &str, token: &JoinToken) -> join::Options {
    join::Options {
        data: data.to_owned(),
        node: node.into(),
        listen: free_port().parse().unwrap(),
        advertise: None,
        servers: vec![first.url("").parse().unwrap()],
        token: token.clone(),
        learner: false,
        link: None,
    }
}

async fn run(data: &Path) -> Server {
    let server = Server::start(Options { data: data.to_owned(), ..Options::default() }).await.unwrap();
    server.app().core.wait_ready(PATIENCE).await.unwrap();
    server
}

async fn members(first: &TestServer, wanted: &[(&str, &str)]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let info = first.json("/api/v1/cluster").await;
        let found: Vec<(&str, &str)> = info["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| (member["node"].as_str().unwrap(), member["role"].as_str().unwrap()))
            .collect();
        if found == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{wanted:?} expected: {info}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_join_vote_and_are_removed() {
    let first = TestServer::start().await;
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut servers = Vec::new();
    for (dir, node) in dirs.iter().zip(["n2", "n3"]) {
        let options = options(&first, dir.path(), node, &token(&first).await);
        let report = join::join(&options).await.unwrap();
        assert_eq!((report.cluster.as_str(), report.subcluster.as_str()), ("test", "default"));
        assert!(matches!(join::join(&options).await, Err(JoinError::Done { .. })));
        servers.push(run(dir.path()).await);
    }
    members(&first, &[("n1", "voter"), ("n2", "voter"), ("n3", "voter")]).await;
    let revision = first.commit("default", &[("default/x.txt", "x")]).await;
    for server in &servers {
        let repo = "default".parse().unwrap();
        server.app().core.wait_revision(&repo, revision, PATIENCE).await.unwrap();
    }
    let nodes = first.json("/api/v1/nodes").await;
    assert_eq!(nodes.as_array().unwrap().iter().filter(|node| node["role"] == "voter").count(), 3, "{nodes}");

    let status = |response: reqwest::Response| response.status().as_u16();
    assert_eq!(status(first.post("/api/v1/nodes/n3/demote", &json!({})).await), 204);
    members(&first, &[("n1", "voter"), ("n2", "voter"), ("n3", "learner")]).await;
    assert_eq!(status(first.post("/api/v1/nodes/n3/promote", &json!({})).await), 204);
    members(&first, &[("n1", "voter"), ("n2", "voter"), ("n3", "voter")]).await;
    assert_eq!(status(first.request(Method::DELETE, "/api/v1/nodes/n3").send().await.unwrap()), 204);
    members(&first, &[("n1", "voter"), ("n2", "voter")]).await;
    assert_eq!(status(first.post("/api/v1/nodes/n9/promote", &json!({})).await), 404);
    for server in servers {
        let _ = server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_can_be_repeated_and_a_name_is_not_given_twice() {
    let first = TestServer::start().await;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token_one = token(&first).await;
    let options_one = options(&first, dir.path(), "n2", &token_one);
    // Killed after the cluster had answered: everything is there but the last file, and the key is still kept.
    let key = dir.path().join("join.key");
    std::fs::create_dir_all(dir.path()).unwrap();
    cluster::identity::KeyRequest::kept(&key, "n2").unwrap();
    let kept = std::fs::read(&key).unwrap();
    let before = join::join(&options_one).await.unwrap();
    assert!(!key.exists());
    std::fs::remove_file(dir.path().join("ecconfigd.toml")).unwrap();
    std::fs::write(&key, kept).unwrap();
    let again = join::join(&options_one).await.unwrap();
    assert_eq!(again.raft_id, before.raft_id);

    // The token is used up for everybody else, and another token does not give the name away …
    let refused = join::join(&options(&first, other.path(), "n4", &token_one)).await.unwrap_err();
    assert!(
        cluster::error::Chain(&refused).to_string().contains("used already"),
        "{}",
        cluster::error::Chain(&refused)
    );
    let fresh = token(&first).await;
    let refused = join::join(&options(&first, other.path(), "n2", &fresh)).await.unwrap_err();
    assert!(
        cluster::error::Chain(&refused).to_string().contains("member already"),
        "{}",
        cluster::error::Chain(&refused)
    );
    // … but one for its replacement does, under a number of its own.
    let answer: Value = first.post("/api/v1/nodes/n2/replace", &json!({})).await.json().await.unwrap();
    let replace: JoinToken = answer["token"].as_str().unwrap().parse().unwrap();
    let replaced = join::join(&options(&first, other.path(), "n2", &replace)).await.unwrap();
    assert!(replaced.raft_id > before.raft_id);
    let server = run(other.path()).await;
    members(&first, &[("n1", "voter"), ("n2", "voter")]).await;
    let _ = server.shutdown().await;
}
