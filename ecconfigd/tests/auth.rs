//! Who may do what: passwords, tokens, node certificates, and nobody at all.
#![allow(clippy::unwrap_used)]

mod support;

use cluster::identity::KeyRequest;
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
    assert_eq!(me, json!({"kind": "user", "name": "admin", "by": "password"}));

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
    ecconfigd::server::renew_now(&app, app.ca.as_ref().unwrap(), &["127.0.0.1".into()]).await.unwrap();
    assert_ne!(app.identity.current().peer().fingerprint, before);
    let fresh = support::client(&server.ca_pem, None, None);
    assert_eq!(fresh.get(server.url("/healthz")).send().await.unwrap().status(), 200);
}
