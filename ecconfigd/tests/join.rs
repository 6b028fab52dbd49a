//! A second and a third server join the first, over HTTP and the peer protocol on one port.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use cluster::documents::schema::ecconfigd::Limits as Settings;
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

async fn status(response: reqwest::Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

/// A learner lacks the CA's key and takes every request all the same: what needs the key is passed on to a voter.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_passes_on_what_needs_the_key() {
    let settings = Settings { certificate_life: "12s".parse().unwrap(), ..Settings::default() };
    let first = TestServer::with(settings).await;
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut options_two = options(&first, dirs[0].path(), "n2", &token(&first).await);
    options_two.learner = true;
    join::join(&options_two).await.unwrap();
    let learner = run(dirs[0].path()).await;
    members(&first, &[("n1", "voter"), ("n2", "learner")]).await;
    assert!(!dirs[0].path().join("ca-key.pem").exists());
    let identity = learner.app().identity.clone();
    let issued = identity.current().peer().fingerprint;
    let url = format!("https://{}", learner.addresses()[0]);

    // A client enrols there, and renews there.
    let token_web = token(&first).await;
    let web = cluster::identity::enroll(vec![url.parse().unwrap()], &token_web, "web1").await.unwrap();
    let dir = first.dir.path().join("web1");
    web.store(&dir).unwrap();
    let web = cluster::identity::ReloadingIdentity::load(dir).unwrap();
    let client = support::client(&first.ca_pem, Some(web.clone()), None);
    let key = cluster::identity::KeyRequest::generate("web1").unwrap();
    let body = json!({"csr_pem": key.csr_pem()});
    let (code, answer) = status(client.post(format!("{url}/api/v1/renew")).json(&body).send().await.unwrap()).await;
    assert_eq!(code, 200, "{answer}");
    let pem = |name: &str| answer[name].as_str().unwrap().to_owned();
    let fresh = key.certified(&pem("certificate_pem"), &pem("ca_pem")).unwrap();
    assert_ne!(fresh.peer().fingerprint, web.current().peer().fingerprint);
    web.replace(&fresh).unwrap();
    let client = support::client(&first.ca_pem, Some(web), None);
    let (code, who) = status(client.get(format!("{url}/api/v1/whoami")).send().await.unwrap()).await;
    assert_eq!((code, who["name"].as_str()), (200, Some("web1")), "the learner knows what it passed on: {who}");
    // The voter's refusal arrives in its own words.
    let again = cluster::identity::enroll(vec![url.parse().unwrap()], &token_web, "web2").await.unwrap_err();
    let again = cluster::error::Chain(&again).to_string();
    assert!(again.contains("used already"), "{again}");

    // A server joins there.
    let mut options_three = options(&first, dirs[1].path(), "n3", &token(&first).await);
    options_three.servers = vec![url.parse().unwrap()];
    options_three.learner = true;
    join::join(&options_three).await.unwrap();
    let third = run(dirs[1].path()).await;
    members(&first, &[("n1", "voter"), ("n2", "learner"), ("n3", "learner")]).await;

    // The certificates live for seconds: the learners renew their own before they end, and go on.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while identity.current().peer().fingerprint == issued {
        assert!(tokio::time::Instant::now() < deadline, "the learner's certificate is never renewed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(identity.current().peer().role, cluster::api::NodeRole::Learner);
    let revision = first.commit("default", &[("default/y.txt", "y")]).await;
    let repo = "default".parse().unwrap();
    for server in [&learner, &third] {
        server.app().core.wait_revision(&repo, revision, PATIENCE).await.unwrap();
    }
    for server in [learner, third] {
        let _ = server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_learners_have_everything_and_take_writes() {
    let first = TestServer::start().await;
    let dirs: Vec<_> = (0..10).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut learners = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let mut options = options(&first, dir.path(), &format!("l{number}"), &token(&first).await);
        options.learner = true;
        join::join(&options).await.unwrap();
        learners.push(run(dir.path()).await);
    }
    let names: Vec<String> = (0..10).map(|number| format!("l{number}")).collect();
    let mut wanted = vec![("n1", "voter")];
    wanted.extend(names.iter().map(|name| (name.as_str(), "learner")));
    members(&first, &wanted).await;
    // A write through each, and each has all of them.
    for (number, learner) in learners.iter().enumerate() {
        let url = format!("https://{}/api/v1/repos/default/commits", learner.addresses()[0]);
        let changes = json!([{"path": format!("default/{number}.txt"), "content": "x"}]);
        let body = json!({"base": first.head("default").await, "message": "through a learner", "changes": changes});
        let asked = first.client.post(url).basic_auth("admin", Some(&first.password)).json(&body);
        let (code, answer) = status(asked.send().await.unwrap()).await;
        assert_eq!(code, 201, "{answer}");
    }
    let (repo, head) = ("default".parse().unwrap(), first.server.app().core.head(&"default".parse().unwrap()).unwrap());
    for learner in &learners {
        let core = &learner.app().core;
        core.wait_revision(&repo, head.revision, PATIENCE).await.unwrap();
        assert_eq!(core.head(&repo).unwrap(), head);
        assert!(core.store(&repo).unwrap().reader().unwrap().contains(head.commit));
    }
    for learner in learners {
        let _ = learner.shutdown().await;
    }
}

/// Two voters are the hard case: the one that stays cannot write the other's new address down without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_moved_is_found() {
    let first = TestServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    join::join(&options(&first, dir.path(), "n2", &token(&first).await)).await.unwrap();
    let second = run(dir.path()).await;
    members(&first, &[("n1", "voter"), ("n2", "voter")]).await;
    let _ = second.shutdown().await;
    let address = free_port();
    let moved = format!("listen = \"{address}\"\nadvertise = \"localhost:{}\"\n", address.rsplit(':').next().unwrap());
    std::fs::write(dir.path().join("ecconfigd.toml"), moved).unwrap();
    let second = run(dir.path()).await;
    let wanted = format!("localhost:{}", address.rsplit(':').next().unwrap());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let info = first.json("/api/v1/cluster").await;
        let nodes = first.json("/api/v1/nodes").await;
        let is = |list: &Value, key: &str| {
            list.as_array().unwrap().iter().any(|one| one[key] == "n2" && one["address"] == wanted.as_str())
        };
        if is(&info["members"], "node") && is(&nodes, "name") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{wanted} expected: {info} {nodes}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let revision = first.commit("default", &[("default/z.txt", "z")]).await;
    let repo = "default".parse().unwrap();
    second.app().core.wait_revision(&repo, revision, PATIENCE).await.unwrap();
    let _ = second.shutdown().await;
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
