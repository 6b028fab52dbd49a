//! Who may do what: passwords, tokens, node certificates, and nobody at all.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::documents::schema::ecconfigd::Limits as Settings;
use cluster::http_client::{ApiClient, ClientError, Credentials};
use cluster::identity::{KeyRequest, NodeCert, NodeRole, ReloadingIdentity};
use ecconfigd::state::CertificateRecord;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use support::{TestServer, problem};

#[tokio::test]
async fn nobody_is_asked_for_credentials() {
    let server = TestServer::start().await;
    for path in [
        "/api/v1/repos",
        "/api/v1/repos/default/watch",
        "/default.git/info/refs?service=git-upload-pack",
        "/api/v1/whoami",
    ] {
        let response = server.anonymous(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
        problem(response).await;
    }
}

#[tokio::test]
async fn passwords_and_tokens() {
    let server = TestServer::start().await;
    let whoami = |client: reqwest::RequestBuilder| async { client.send().await.unwrap() };
    let base = || server.anonymous(Method::GET, "/api/v1/whoami");
    let me: Value = whoami(base().basic_auth("admin", Some(&server.password))).await.json().await.unwrap();
    assert_eq!(me, json!({"kind": "user", "name": "admin", "by": "password", "account_role": "admin"}));

    let made = server.post("/api/v1/tokens", &json!({"name": "ci", "ttl": "1h"})).await;
    assert_eq!((made.status().as_u16(), made.headers()["cache-control"].to_str().unwrap()), (201, "no-store"));
    let made: Value = made.json().await.unwrap();
    let token = made["token"].as_str().unwrap().to_owned();
    for request in
        [base().bearer_auth(&token), base().basic_auth("admin", Some(&token)), base().basic_auth("", Some(&token))]
    {
        let me: Value = whoami(request).await.json().await.unwrap();
        assert_eq!((&me["name"], &me["by"]), (&json!("admin"), &json!("token")));
    }
    let mut forged = token.clone();
    forged.pop();
    forged.push(if token.ends_with('A') { 'B' } else { 'A' });
    for request in [
        base().bearer_auth(&forged),
        base().bearer_auth("nonsense"),
        base().basic_auth("other", Some(&token)),
        base().basic_auth("admin", Some("wrong password")),
        base().basic_auth("nobody", Some("wrong password")),
        base().header("authorization", "Digest x"),
    ] {
        let response = whoami(request).await;
        assert_eq!(response.status(), 401);
        problem(response).await;
    }

    let listed = server.json("/api/v1/tokens").await;
    assert_eq!((&listed[0]["name"], listed[0].get("token")), (&json!("ci"), None));
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!(server.request(Method::DELETE, &format!("/api/v1/tokens/{id}")).send().await.unwrap().status(), 204);
    assert_eq!(whoami(base().bearer_auth(&token)).await.status(), 401, "revoked at once");
    assert_eq!(server.request(Method::DELETE, &format!("/api/v1/tokens/{id}")).send().await.unwrap().status(), 404);
    for bad in [
        json!({"name": ""}),
        json!({"name": "x", "ttl": "soon"}),
        json!({"name": "x", "ttl": "0s"}),
        json!({"name": "x", "ttl": "99999d"}),
    ] {
        assert_eq!(server.post("/api/v1/tokens", &bad).await.status(), 422, "{bad}");
    }
}

#[tokio::test]
async fn a_changed_password_ends_the_old_one_at_once() {
    let server = TestServer::start().await;
    // Verified, hence cached.
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200);
    let token: Value = server.post("/api/v1/tokens", &json!({"name": "t"})).await.json().await.unwrap();
    let change = |request: reqwest::RequestBuilder| request.json(&json!({"password": "a new password"})).send();
    let by_token = server.anonymous(Method::PUT, "/api/v1/password").bearer_auth(token["token"].as_str().unwrap());
    assert_eq!(change(by_token).await.unwrap().status(), 403, "a leaked token must not take the account over");
    assert_eq!(change(server.request(Method::PUT, "/api/v1/password")).await.unwrap().status(), 204);
    assert_eq!(server.get("/api/v1/whoami").await.status(), 401);
    let fresh = server.anonymous(Method::GET, "/api/v1/whoami").basic_auth("admin", Some("a new password"));
    assert_eq!(fresh.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_does_not_lock_out_who_is_known() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200);
    let mut limited = None;
    for _ in 0..20 {
        let guess =
            server.anonymous(Method::GET, "/api/v1/whoami").basic_auth("admin", Some("guess")).send().await.unwrap();
        if guess.status() == 429 {
            limited = Some(guess);
            break;
        }
        assert_eq!(guess.status(), 401);
    }
    let limited = limited.expect("guessing goes on for ever");
    assert!(limited.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200, "cached credentials go on");
}

async fn status(client: &Client, method: Method, url: String) -> u16 {
    client.request(method, url).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_node_reads_and_reports_for_itself_only() {
    let server = TestServer::start().await;
    server.post("/api/v1/repos", &json!({"name": "east"})).await;
    let node = server.client_of(server.enroll("web1").await);
    let me: Value = node.get(server.url("/api/v1/whoami")).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        me,
        json!({"kind": "node", "name": "web1", "by": "certificate", "subcluster": "default", "role": "client"})
    );
    for (path, expected) in [
        ("/api/v1/repos/default/head", 200),
        ("/api/v1/repos/global/head", 200),
        ("/api/v1/repos/east/head", 403),
        ("/api/v1/nodes/web1/target", 200),
        ("/api/v1/nodes/n1/target", 403),
        ("/api/v1/nodes", 200),
        ("/api/v1/tokens", 403),
        ("/default.git/info/refs?service=git-upload-pack", 200),
        ("/default.git/info/refs?service=git-receive-pack", 403),
        ("/east.git/info/refs?service=git-upload-pack", 403),
    ] {
        assert_eq!(status(&node, Method::GET, server.url(path)).await, expected, "{path}");
    }
    // Of the others it sees that they are there, not what they shall have and what their commands printed.
    let report = json!({"program": "agent", "serial": 1, "state": "healthy", "detail": "a secret"});
    assert_eq!(server.post("/api/v1/nodes/n1/report", &report).await.status(), 204);
    let nodes: Value = node.get(server.url("/api/v1/nodes")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&nodes[0]["name"], &nodes[0]["reports"], nodes[0].get("target")), (&json!("n1"), &json!([]), None));
    assert_eq!((&nodes[1]["name"], nodes[1]["target"].is_object()), (&json!("web1"), true));
    let other: Value = node.get(server.url("/api/v1/nodes/n1")).send().await.unwrap().json().await.unwrap();
    assert!(!other.to_string().contains("a secret"), "{other}");
    assert_eq!(server.json("/api/v1/nodes/n1").await["reports"][0]["detail"], "a secret");

    let repos: Value = node.get(server.url("/api/v1/repos")).send().await.unwrap().json().await.unwrap();
    assert_eq!(repos.as_array().unwrap().len(), 2, "east is not shown: {repos}");

    let report = json!({"program": "agent", "serial": 1, "state": "healthy", "detail": "fine"});
    let send =
        |node_name: &str| node.post(server.url(&format!("/api/v1/nodes/{node_name}/report"))).json(&report).send();
    assert_eq!(send("web1").await.unwrap().status(), 204);
    assert_eq!(send("n1").await.unwrap().status(), 403);
    let info = server.json("/api/v1/nodes/web1").await;
    assert_eq!((&info["reports"][0]["state"], &info["role"]), (&json!("healthy"), &json!("client")));
    assert!(info["reports"][0]["time"].is_string());
    let commit = json!({"base": 1, "message": "m", "changes": [{"path": "a", "content": ""}]});
    let commit = node.post(server.url("/api/v1/repos/default/commits")).json(&commit).send().await.unwrap();
    assert_eq!(commit.status(), 403);
}

#[tokio::test]
async fn a_node_token_is_good_once_and_for_a_proper_name() {
    let server = TestServer::start().await;
    let made = server.post("/api/v1/node-tokens", &json!({})).await;
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    assert_eq!(made["subcluster"], "default");
    let enroll = |token: &str, node: &str| {
        let key = KeyRequest::generate("web1").unwrap();
        let body = json!({"token": token, "node": node, "csr_pem": key.csr_pem()});
        server.anonymous(Method::POST, "/api/v1/enroll").json(&body).send()
    };
    let token = made["token"].as_str().unwrap();
    for bad in ["Web1", "a b", "", "default", "../x"] {
        assert_eq!(enroll(token, bad).await.unwrap().status(), 422, "{bad:?}");
    }
    assert_eq!(enroll(token, "n1").await.unwrap().status(), 409, "the name of a server");
    let done = enroll(token, "web1").await.unwrap();
    assert_eq!(done.status(), 200);
    let done: Value = done.json().await.unwrap();
    assert_eq!((&done["subcluster"], &done["cluster"]), (&json!("default"), &json!("test")));
    let again = enroll(token, "web2").await.unwrap();
    assert_eq!(again.status(), 403);
    problem(again).await;
    assert_eq!(enroll("ecjoin_nonsense", "web2").await.unwrap().status(), 403);

    for (bad, expected) in
        [(json!({"subcluster": "none"}), 404), (json!({"subcluster": "global"}), 422), (json!({"ttl": "x"}), 422)]
    {
        assert_eq!(server.post("/api/v1/node-tokens", &bad).await.status(), expected, "{bad}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_by_its_owner() {
    let server = TestServer::start().await;
    let identity = server.enroll("web1").await;
    let before = identity.current().peer().fingerprint;
    let node = server.client_of(identity.clone());
    let key = KeyRequest::generate("web1").unwrap();
    let body = json!({"csr_pem": key.csr_pem()});
    let answer = node.post(server.url("/api/v1/renew")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    let fresh = key.certified(answer["certificate_pem"].as_str().unwrap(), answer["ca_pem"].as_str().unwrap()).unwrap();
    assert_eq!((fresh.node(), fresh.peer().fingerprint != before), ("web1", true));
    assert_eq!(server.post("/api/v1/renew", &body).await.status(), 403, "a person has no certificate to renew");
    let broken = node.post(server.url("/api/v1/renew")).json(&json!({"csr_pem": "nonsense"})).send().await.unwrap();
    assert_eq!(broken.status(), 422);
}

#[tokio::test]
async fn the_servers_own_certificate_is_replaced_without_a_restart() {
    let server = TestServer::start().await;
    let app = server.server.app().clone();
    let before = app.identity.current().peer().fingerprint;
    ecconfigd::server::renew_now(&app, &["127.0.0.1".into()]).await.unwrap();
    assert_ne!(app.identity.current().peer().fingerprint, before);
    let fresh = support::client(&server.ca_pem, None, None);
    assert_eq!(fresh.get(server.url("/healthz")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_restart_under_a_herd_costs_one_password_check() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200);
    let server = TestServer::run(server.stop().await, Settings::default()).await;
    for (password, expected) in [(server.password.clone(), 200), ("outdated".to_owned(), 401)] {
        let before = server.server.app().accounts.password_runs();
        // Each client is a connection of its own.
        let herd = (0..150).map(|_| {
            let client = support::client(&server.ca_pem, None, None);
            let (url, password) = (server.url("/api/v1/whoami"), password.clone());
            async move { client.get(url).basic_auth("admin", Some(password)).send().await.unwrap().status().as_u16() }
        });
        let statuses = futures::future::join_all(herd).await;
        // Who comes after ten others have failed from the same address is slowed down instead.
        let fits = |status: &u16| *status == expected || (expected == 401 && *status == 429);
        assert!(statuses.iter().all(fits), "{statuses:?}");
        assert_eq!(server.server.app().accounts.password_runs() - before, 1);
    }
}

/// In TLS 1.3 the client is through with its handshake before the server looks at its certificate: it must read the reason all the same.
#[tokio::test]
async fn a_node_of_another_cluster_is_always_told_so() {
    let (server, other) = (TestServer::start().await, TestServer::start().await);
    let stranger = other.enroll("web1").await;
    let url: cluster::http_client::ServerUrl = server.url("").parse().unwrap();
    for round in 0..20 {
        let credentials = Credentials::Identity(stranger.clone());
        let client = ApiClient::new(vec![url.clone()], &server.ca_pem, credentials).unwrap();
        // A request that is larger than what the kernel takes at once.
        let report = json!({"filler": "x".repeat(round * 20_000)});
        let error = client.post_json::<_, Value>("/api/v1/nodes/web1/report", &report).await.unwrap_err();
        assert!(matches!(error, ClientError::Certificate { .. }), "round {round}: {error:?}");
        assert!(error.to_string().ends_with("another cluster has issued it"), "{error}");
    }
}

/// An identity of a registered node whose certificate ends so soon.
async fn short_lived(server: &TestServer, node: &str, life: Duration) -> Arc<ReloadingIdentity> {
    server.enroll(node).await;
    let app = server.server.app();
    let key = KeyRequest::generate(node).unwrap();
    let wanted = NodeCert::new(node, "default", NodeRole::Client);
    let chain = cluster::identity::Ca::load(app.core.data_dir()).unwrap().issue(key.csr_pem(), &wanted, life).unwrap();
    let identity = key.certified(&chain.pem, &chain.ca_pem).unwrap();
    let record = CertificateRecord {
        serial: String::new(),
        fingerprint: identity.peer().fingerprint.to_string(),
        issued_time_ms: 0,
        not_after_time_ms: 0,
    };
    app.core.certificate_issued(&node.parse().unwrap(), record).await.unwrap();
    let dir = server.dir.path().join(format!("short-{node}"));
    identity.store(&dir).unwrap();
    ReloadingIdentity::load(dir).unwrap()
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let server = TestServer::start().await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let identity = short_lived(&server, "web1", Duration::from_secs(3)).await;
        let client = support::client(&server.ca_pem, Some(identity), Some(alpn));
        let stream = client.get(server.url("/api/v1/repos/default/watch")).header("accept", "text/event-stream");
        let stream = stream.send().await.unwrap();
        assert_eq!(stream.status(), 200);
        let poll = tokio::spawn(client.get(server.url("/api/v1/repos/default/watch?after=1")).send());
        let ended = tokio::time::timeout(support::PATIENCE, stream.text()).await.expect("the stream ends in time");
        assert!(ended.is_err() || ended.unwrap().starts_with("retry:"));
        assert!(poll.await.unwrap().is_err(), "the poll's connection is closed");
        assert!(client.get(server.url("/api/v1/whoami")).send().await.is_err(), "TLS refuses the certificate by now");
    }
}

#[tokio::test]
async fn a_certificate_that_was_replaced_often_is_sent_away_with_its_connection() {
    let server = TestServer::start().await;
    let identity = server.enroll("web1").await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let client = support::client(&server.ca_pem, Some(identity.clone()), Some(alpn));
        let whoami = || async { client.get(server.url("/api/v1/whoami")).send().await.unwrap() };
        if alpn == b"h2" {
            assert_eq!(whoami().await.status(), 403, "another connection changes nothing");
            continue;
        }
        assert_eq!(whoami().await.status(), 200);
        let mut events = client.get(server.url("/api/v1/repos/default/watch?after=1"));
        events = events.header("accept", "text/event-stream");
        let events = events.send().await.unwrap();
        assert_eq!((events.status().as_u16(), events.headers()["x-revision"].to_str().unwrap()), (200, "1"));
        for number in 0..4 {
            let record = CertificateRecord {
                serial: String::new(),
                fingerprint: format!("{number}"),
                issued_time_ms: 0,
                not_after_time_ms: 0,
            };
            server.server.app().core.certificate_issued(&"web1".parse().unwrap(), record).await.unwrap();
        }
        let refused = whoami().await;
        assert_eq!(refused.headers()["connection"], "close");
        assert_eq!(refused.status(), 403);
        problem(refused).await;
        server.commit("default", &[("default/secret", "x\n")]).await;
        let text = tokio::time::timeout(support::PATIENCE, events.text()).await.expect("the stream ends").unwrap();
        assert!(!text.contains("default/secret"), "{text}");
    }
}

#[tokio::test]
async fn a_revoked_token_ends_its_streams_and_polls() {
    let server = TestServer::start().await;
    let token: Value = server.post("/api/v1/tokens", &json!({"name": "t"})).await.json().await.unwrap();
    let watch = || {
        let request = server.anonymous(Method::GET, "/api/v1/repos/default/watch?after=1");
        request.bearer_auth(token["token"].as_str().unwrap())
    };
    let stream = watch().header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let poll = tokio::spawn(watch().send());
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let metrics = server.anonymous(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        if metrics.contains("ecconfigd_watchers 2") {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
    let id = token["id"].as_str().unwrap();
    assert_eq!(server.request(Method::DELETE, &format!("/api/v1/tokens/{id}")).send().await.unwrap().status(), 204);
    server.commit("default", &[("default/secret", "x\n")]).await;
    let text = tokio::time::timeout(support::PATIENCE, stream.text()).await.expect("the stream ends").unwrap();
    assert!(!text.contains("default/secret"), "{text}");
    let polled = poll.await.unwrap().unwrap();
    assert_eq!(polled.status(), 401);
    problem(polled).await;
}

#[tokio::test]
async fn a_server_that_moved_reissues_its_certificate_at_start() {
    let server = TestServer::start().await;
    let before = server.server.app().identity.current().peer().fingerprint;
    let dir = server.stop().await;
    let config = dir.path().join("data/ecconfigd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("advertise = \"moved.example:2027\"\n{text}")).unwrap();
    let server = TestServer::run(dir, Settings::default()).await;
    let app = server.server.app().clone();
    let deadline = Instant::now() + support::PATIENCE;
    while !app.identity.current().covers(&["moved.example".into()]) {
        assert!(Instant::now() < deadline, "the certificate stays as it was");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(app.identity.current().peer().fingerprint, before);
    // Known to the state, so that whoever uses the node's identity is let in.
    let node = server.client_of(app.identity.clone());
    assert_eq!(node.get(server.url("/api/v1/whoami")).send().await.unwrap().status(), 200);
    // A start with nothing new keeps it.
    let kept = app.identity.current().peer().fingerprint;
    drop(app);
    let server = TestServer::run(server.stop().await, Settings::default()).await;
    assert!(server.server.app().identity.current().covers(&["moved.example".into()]));
    assert_eq!(server.server.app().identity.current().peer().fingerprint, kept);
}

#[tokio::test]
async fn a_removed_node_is_out_at_once_and_its_name_is_no_way_back() {
    let server = TestServer::start().await;
    let identity = server.enroll("web1").await;
    let client = support::client(&server.ca_pem, Some(identity.clone()), Some(b"h2"));
    let whoami = || async { client.get(server.url("/api/v1/whoami")).send().await.unwrap() };
    assert_eq!(whoami().await.status(), 200);
    let events = client.get(server.url("/api/v1/repos/default/watch?after=1")).header("accept", "text/event-stream");
    let events = events.send().await.unwrap();
    assert_eq!(events.status(), 200);

    let removed = server.request(Method::DELETE, "/api/v1/nodes/web1").send().await.unwrap();
    assert_eq!(removed.status(), 204);
    let refused = whoami().await;
    assert_eq!(refused.status(), 403);
    problem(refused).await;
    server.commit("default", &[("default/secret", "x\n")]).await;
    let text = tokio::time::timeout(support::PATIENCE, events.text()).await.expect("the stream ends").unwrap();
    assert!(!text.contains("default/secret"), "{text}");

    // Another machine gets the name; the first one's certificate does not come back to life with it.
    tokio::fs::remove_dir_all(server.dir.path().join("identity-web1")).await.unwrap();
    let second = server.client_of(server.enroll("web1").await);
    assert_eq!(second.get(server.url("/api/v1/whoami")).send().await.unwrap().status(), 200);
    assert_eq!(whoami().await.status(), 403);
}
