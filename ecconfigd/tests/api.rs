//! Every JSON endpoint, with good and bad input, against a running server.
#![allow(clippy::unwrap_used)]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{TestServer, client, problem};

#[tokio::test]
async fn repositories_begin_with_the_packaged_templates() {
    let server = TestServer::start().await;
    let repos = server.json("/api/v1/repos").await;
    let names: Vec<_> = repos.as_array().unwrap().iter().map(|repo| repo["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "global"]);
    assert_eq!(repos[0]["revision"], 1);

    let response = server.get("/api/v1/repos/default/head").await;
    assert_eq!(response.headers()["x-revision"], "1");
    let head: Value = response.json().await.unwrap();
    assert_eq!(head["commit"], repos[0]["commit"]);
    assert_eq!(head.as_object().unwrap().len(), 2, "the contract names revision and commit: {head}");

    let text = server.get("/api/v1/repos/global/files/cluster.toml").await.text().await.unwrap();
    assert!(text.contains("[node.n1]"), "{text}");
    let refs = server.json("/api/v1/repos/default/refs").await;
    assert_eq!(refs[0]["name"], "refs/heads/main");
    assert_eq!(refs[0]["id"], head["commit"]);
}

#[tokio::test]
async fn a_repository_can_be_created_once() {
    let server = TestServer::start().await;
    let response = server.post("/api/v1/repos", &json!({"name": "east"})).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["x-revision"], "1");
    assert_eq!(response.headers()["location"], "/api/v1/repos/east/head");
    assert_eq!(server.head("east").await, 1);

    let again = server.post("/api/v1/repos", &json!({"name": "east"})).await;
    assert_eq!(again.status(), 409);
    assert_eq!(problem(again).await["code"], "exists");
    for bad in ["East", "a b", "../x", "global", ""] {
        let response = server.post("/api/v1/repos", &json!({"name": bad})).await;
        let status = response.status().as_u16();
        assert!(status == 422 || (bad == "global" && status == 409), "{bad}: {status}");
        problem(response).await;
    }
}

#[tokio::test]
async fn a_creation_and_a_copy_are_repeated_under_their_keys() {
    let server = TestServer::start().await;
    let create = json!({"name": "east"});
    let copy = |history: bool| json!({"from": "default", "with_history": history});
    let asked =
        [("/api/v1/repos", create), ("/api/v1/repos/west/copy", copy(true)), ("/api/v1/repos/east/copy", copy(false))];
    server.commit("default", &[("default/a.txt", "to be copied")]).await;
    let mut first = Vec::new();
    for round in 0..2 {
        for (number, (path, body)) in asked.iter().enumerate() {
            // One key for all of them: it counts for one thing to be done.
            let request = server.request(Method::POST, path).header("idempotency-key", "k").json(body);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 201, "{path}");
            let info: Value = response.json().await.unwrap();
            if round == 0 { first.push(info) } else { assert_eq!(info, first[number]) }
        }
        server.commit("default", &[("default/a.txt", &format!("moved meanwhile {round}"))]).await;
    }
    for (path, body) in &asked[..2] {
        let request = server.request(Method::POST, path).header("idempotency-key", "another").json(body);
        assert_eq!(request.send().await.unwrap().status(), 409, "{path}");
    }
}

#[tokio::test]
async fn files_and_trees_are_read_at_any_revision() {
    let server = TestServer::start().await;
    let one = server.commit("default", &[("default/a.txt", "one\n"), ("default/sub/b.html", "<script>")]).await;
    let two = server.commit("default", &[("default/a.txt", "two\n")]).await;
    assert_eq!(two, one + 1);

    let now = server.get("/api/v1/repos/default/files/default/a.txt").await;
    assert_eq!(now.headers()["x-revision"], two.to_string().as_str());
    assert_eq!(now.headers()["x-mode"], "100644");
    assert_eq!(now.headers()["content-type"], "text/plain; charset=utf-8");
    let tag = now.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(now.text().await.unwrap(), "two\n");

    let same = server.request(Method::GET, "/api/v1/repos/default/files/default/a.txt");
    let same = same.header("if-none-match", &tag).send().await.unwrap();
    assert_eq!((same.status().as_u16(), same.headers()["etag"].to_str().unwrap()), (304, tag.as_str()));

    for revision in [format!("{one}"), format!("r{one}")] {
        let old = server.get(&format!("/api/v1/repos/default/files/default/a.txt?revision={revision}")).await;
        assert_eq!(old.headers()["x-revision"], one.to_string().as_str());
        assert_eq!(old.text().await.unwrap(), "one\n");
    }
    let commit = server.json(&format!("/api/v1/repos/default/commits/r{one}")).await;
    let hex = commit["commit"].as_str().unwrap();
    for digits in 7..20 {
        let old = server.get(&format!("/api/v1/repos/default/files/default/a.txt?revision={}", &hex[..digits])).await;
        assert_eq!(old.text().await.unwrap(), "one\n", "{}", &hex[..digits]);
    }

    let page = server.get("/api/v1/repos/default/files/default/sub/b.html").await;
    assert_eq!(page.headers()["content-type"], "text/plain; charset=utf-8", "a browser must not run it");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");

    let tree = server.json("/api/v1/repos/default/tree/default").await;
    let paths: Vec<_> = tree.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["default/README.md", "default/a.txt", "default/sub"]);
    assert_eq!((&tree[1]["kind"], &tree[1]["size"]), (&json!("file"), &json!(4)));
    assert_eq!(tree[2]["kind"], "dir");
    let root = server.json("/api/v1/repos/default/tree").await;
    assert_eq!(server.json("/api/v1/repos/default/tree/").await, root);
    let all = server.json("/api/v1/repos/default/tree?recursive=true").await;
    assert!(all.as_array().unwrap().iter().any(|entry| entry["path"] == "default/sub/b.html"), "{all}");

    for (path, status) in [
        ("/api/v1/repos/default/files/default/missing", 404),
        ("/api/v1/repos/default/files/default", 404),
        ("/api/v1/repos/default/files/default/../x", 404),
        ("/api/v1/repos/default/files/.git/config", 404),
        ("/api/v1/repos/default/files/default/a.txt?revision=99", 404),
        ("/api/v1/repos/default/files/default/a.txt?revision=deadbeef", 404),
        ("/api/v1/repos/default/files/default/a.txt?revision=main", 400),
        ("/api/v1/repos/default/tree/missing", 404),
        ("/api/v1/repos/none/head", 404),
        ("/api/v1/repos/NONE/head", 404),
    ] {
        let response = server.get(path).await;
        assert_eq!(response.status(), status, "{path}");
        problem(response).await;
    }
}

#[tokio::test]
async fn history_names_revisions() {
    let server = TestServer::start().await;
    server.commit("default", &[("default/a", "1\n")]).await;
    let two = server.commit("default", &[("default/b", "x\n")]).await;
    let three = server.commit("default", &[("default/a", "2\n")]).await;
    let log = server.json("/api/v1/repos/default/log").await;
    let revisions: Vec<_> = log.as_array().unwrap().iter().map(|entry| entry["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, [three, two, two - 1, 1]);
    assert_eq!(log[0]["author"], "admin <admin@test>");
    let of_a = server.json("/api/v1/repos/default/log?path=default/a").await;
    assert_eq!(of_a.as_array().unwrap().len(), 2, "{of_a}");
    let limited = server.json("/api/v1/repos/default/log?limit=1&skip=1").await;
    assert_eq!(limited[0]["revision"], two);

    let diff = server.json(&format!("/api/v1/repos/default/diff?from={}&to=r{three}", two - 1)).await;
    let changes = diff["changes"].as_array().unwrap();
    assert_eq!((&changes[0]["path"], &changes[0]["status"]), (&json!("default/a"), &json!("modified")));
    assert_eq!((&changes[1]["path"], &changes[1]["status"]), (&json!("default/b"), &json!("added")));
    let patch = server.request(Method::GET, "/api/v1/repos/default/diff").header("accept", "text/x-diff");
    let patch = patch.send().await.unwrap();
    assert_eq!(patch.headers()["content-type"], "text/x-diff; charset=utf-8");
    let patch = patch.text().await.unwrap();
    assert!(patch.contains("-1\n+2\n") && !patch.contains("default/b"), "{patch}");
    let detail = server.json(&format!("/api/v1/repos/default/commits/{three}")).await;
    assert_eq!(detail["diff"]["patch"], patch);
    assert_eq!(server.get("/api/v1/repos/default/commits/main").await.status(), 404);
}

/// One in 27 has no letter among its first seven digits.
#[tokio::test]
async fn an_abbreviated_commit_may_look_like_a_number() {
    let server = TestServer::start().await;
    for attempt in 0..1000 {
        let revision = server.commit("default", &[("default/a", &format!("{attempt}\n"))]).await;
        let commit = server.json(&format!("/api/v1/repos/default/commits/r{revision}")).await;
        let short = &commit["commit"].as_str().unwrap()[..7];
        let found = server.json(&format!("/api/v1/repos/default/commits/{short}")).await;
        assert_eq!(found["revision"], revision, "{short}");
        if short.bytes().all(|byte| byte.is_ascii_digit()) {
            return;
        }
    }
    panic!("a thousand commits, and every one has a letter");
}

#[tokio::test]
async fn commits_merge_conflict_and_repeat() {
    let server = TestServer::start().await;
    let base = server.commit("default", &[("default/a", "a\n"), ("default/b", "b\n")]).await;
    let commit = |base: u64, changes: Value| json!({"base": base, "message": "m", "changes": changes});
    let url = "/api/v1/repos/default/commits";

    // Somebody else changes a; a change of b on the old base merges.
    server.commit("default", &[("default/a", "theirs\n")]).await;
    let merged = server.post(url, &commit(base, json!([{"path": "default/b", "content": "ours\n"}]))).await;
    assert_eq!(merged.status(), 201);
    assert_eq!(merged.headers()["x-revision"], (base + 2).to_string().as_str());

    // A change of a does not.
    let conflict = server.post(url, &commit(base, json!([{"path": "default/a", "content": "ours\n"}]))).await;
    assert_eq!(conflict.status(), 409);
    let conflict = problem(conflict).await;
    assert_eq!((&conflict["code"], &conflict["paths"][0]["path"]), (&json!("conflict"), &json!("default/a")));

    // The same key commits once.
    let head = server.head("default").await;
    let keyed = || {
        let body = commit(head, json!([{"path": "default/c", "content": "c\n"}]));
        server.request(Method::POST, url).header("idempotency-key", "k1").json(&body).send()
    };
    let (first, second) = (keyed().await.unwrap(), keyed().await.unwrap());
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (201, 201));
    let (first, second): (Value, Value) = (first.json().await.unwrap(), second.json().await.unwrap());
    assert_eq!(first, second);
    assert_eq!(server.head("default").await, head + 1);
    let other = commit(head, json!([{"path": "default/d", "content": "d\n"}]));
    let other = server.request(Method::POST, url).header("idempotency-key", "k1").json(&other).send().await.unwrap();
    assert!(other.status().is_client_error(), "{}", other.status());

    // Nothing to do is said so.
    let head = server.head("default").await;
    let nothing = server.post(url, &commit(head, json!([{"path": "default/c", "content": "c\n"}]))).await;
    assert_eq!(nothing.status(), 200);
    let nothing: Value = nothing.json().await.unwrap();
    assert_eq!((&nothing["unchanged"], &nothing["revision"]), (&json!(true), &json!(head)));

    // Modes, deletions, renames, bytes.
    let changes = json!([
        {"path": "default/run", "content": "#!/bin/sh\n", "mode": "100755"},
        {"path": "default/bytes", "content_base64": "AP8="},
        {"path": "default/c", "rename_to": "default/moved"},
        {"path": "default/b", "delete": true},
    ]);
    assert_eq!(server.post(url, &commit(head, changes)).await.status(), 201);
    let tree = server.json("/api/v1/repos/default/tree/default").await;
    let mode_of = |name: &str| {
        let found = tree.as_array().unwrap().iter().find(|entry| entry["path"] == format!("default/{name}"));
        found.map(|entry| entry["mode"].as_str().unwrap().to_owned())
    };
    assert_eq!(mode_of("run").as_deref(), Some("100755"));
    assert_eq!((mode_of("b"), mode_of("c")), (None, None));
    assert!(mode_of("moved").is_some());
    let bytes = server.get("/api/v1/repos/default/files/default/bytes").await.bytes().await.unwrap();
    assert_eq!(&bytes[..], [0, 255]);
}

#[tokio::test]
async fn bad_commits_change_nothing() {
    let server = TestServer::start().await;
    let url = "/api/v1/repos/default/commits";
    for (body, status) in [
        (json!({"base": 1, "message": "m", "changes": [{"path": "default/x.toml", "content": "a = \n"}]}), 422),
        (
            json!({"base": 1, "message": "m", "changes": [{"path": "default/duravip.toml", "content": "dead_aftr = \"1s\"\n"}]}),
            422,
        ),
        (json!({"base": 1, "message": "m", "changes": [{"path": "global/x", "content": ""}]}), 422),
        (json!({"base": 1, "message": "m", "changes": [{"path": "a", "contents": ""}]}), 422),
        (json!({"base": 1, "message": "m", "changes": [{"path": "../a", "content": ""}]}), 422),
        (json!({"base": 1, "message": "", "changes": [{"path": "a", "content": ""}]}), 422),
        (json!({"base": 1, "message": "m"}), 422),
        (json!({"base": "main", "message": "m", "changes": []}), 422),
    ] {
        let response = server.post(url, &body).await;
        assert_eq!(response.status(), status, "{body}");
        problem(response).await;
    }
    for (body, status) in [
        (json!({"base": 99, "message": "m", "changes": [{"path": "a", "content": ""}]}), [400, 404]),
        (json!({"base": 1, "message": "m", "changes": [{"path": "missing", "delete": true}]}), [422, 409]),
    ] {
        let response = server.post(url, &body).await;
        assert!(status.contains(&response.status().as_u16()), "{body}: {}", response.status());
        problem(response).await;
    }
    let broken = server.request(Method::POST, url).header("content-type", "application/json").body("{").send();
    assert_eq!(broken.await.unwrap().status(), 400);
    let typed = server.request(Method::POST, url).body("{}").send().await.unwrap();
    assert_eq!(typed.status(), 415);
    problem(typed).await;
    assert_eq!(server.head("default").await, 1);
}

#[tokio::test]
async fn a_refusal_names_file_line_and_reason() {
    let server = TestServer::start().await;
    let changes =
        json!([{"path": "default/logd.toml", "content": "# a comment\n[log.mainlog]\ninptu = \"unix:/x\"\n"}]);
    let body = json!({"base": 1, "message": "m", "changes": changes});
    let response = server.post("/api/v1/repos/default/commits", &body).await;
    assert_eq!(response.status(), 422);
    let problem = problem(response).await;
    let finding = &problem["findings"][0];
    assert_eq!((&finding["file"], &finding["line"]), (&json!("default/logd.toml"), &json!(3)), "{problem}");
    let words = format!("{}{}", finding["message"], finding["hint"]);
    assert!(words.contains("inptu") && words.contains("input"), "{words}");
}

#[tokio::test]
async fn several_repositories_commit_together_or_not_at_all() {
    let server = TestServer::start().await;
    let body = |global: &str| {
        json!({"message": "both", "repos": {
            "default": {"base": 1, "changes": [{"path": "default/a", "content": "a\n"}]},
            "global": {"base": 1, "changes": [{"path": "x.toml", "content": global}]},
        }})
    };
    let refused = server.post("/api/v1/commits", &body("broken =")).await;
    assert_eq!(refused.status(), 422);
    assert_eq!(problem(refused).await["findings"][0]["repo"], "global");
    assert_eq!((server.head("default").await, server.head("global").await), (1, 1));

    let done = server.post("/api/v1/commits", &body("a = 1\n")).await;
    assert_eq!(done.status(), 201);
    let done: Value = done.json().await.unwrap();
    assert_eq!((&done["repos"]["default"]["revision"], &done["repos"]["global"]["revision"]), (&json!(2), &json!(2)));
    let empty = server.post("/api/v1/commits", &json!({"message": "m", "repos": {}})).await;
    assert_eq!(empty.status(), 422);
    let unknown = json!({"message": "m", "repos": {"none": {"base": 1, "changes": [{"path": "a", "content": ""}]}}});
    assert_eq!(server.post("/api/v1/commits", &unknown).await.status(), 404);
}

#[tokio::test]
async fn effective_documents_say_where_each_value_came_from() {
    let server = TestServer::start().await;
    server.commit("global", &[("cidr.toml", "[maintain]\nretention = \"30d\"\ncondense = \"1d\"\n")]).await;
    let revision = server
        .commit("default", &[("default/cidr.toml", "[maintain]\nretention = \"10d\"\n"), ("n1/motd", "hi\n")])
        .await;
    let response = server.get("/api/v1/effective/default/n1/cidr.toml").await;
    assert_eq!(response.headers()["x-revision"], revision.to_string().as_str());
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["value"], json!({"maintain": {"retention": "10d", "condense": "1d"}}));
    assert_eq!(document["search_path"], json!(["n1", "default", "global"]));
    let origin = &document["origins"]["maintain.retention"];
    assert_eq!(
        (&origin["repo"], &origin["file"], &origin["line"]),
        (&json!("default"), &json!("default/cidr.toml"), &json!(2))
    );
    let origin = &document["origins"]["maintain.condense"];
    assert_eq!(
        (&origin["repo"], &origin["file"], &origin["line"]),
        (&json!("global"), &json!("global/cidr.toml"), &json!(3))
    );

    let motd = server.json("/api/v1/effective/default/n1/motd").await;
    assert_eq!((&motd["value"], &motd["origins"][""]["file"]), (&json!("hi\n"), &json!("n1/motd")));
    for path in ["default/n1/missing.txt", "default/n9/cidr.toml", "global/n1/cidr.toml", "none/n1/cidr.toml"] {
        assert_eq!(server.get(&format!("/api/v1/effective/{path}")).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn nodes_are_those_of_the_state_and_of_cluster_toml() {
    let server = TestServer::start().await;
    let info = server.json("/api/v1/cluster").await;
    assert_eq!((&info["cluster"], &info["node"], &info["leader"]), (&json!("test"), &json!("n1"), &json!("n1")));
    assert_eq!(info["members"][0]["role"], "voter");

    let text = server.get("/api/v1/repos/global/files/cluster.toml").await.text().await.unwrap();
    let text = format!("{text}\n[node.n9]\naddress = \"10.0.0.9\"\nlabels = [\"rack-b\"]\ngroups = [\"relays\"]\n");
    server.commit("global", &[("cluster.toml", &text)]).await;
    let listed = server.get("/api/v1/nodes?min_revision=2").await;
    assert_eq!(listed.headers()["x-revision"], "2", "cluster.toml at global's revision");
    let nodes: Value = listed.json().await.unwrap();
    let names: Vec<_> = nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1", "n9"]);
    assert_eq!(nodes[0]["role"], "voter");
    assert_eq!(nodes[1]["role"], Value::Null, "named, not enrolled");
    assert_eq!(nodes[1]["search_path"], json!(["n9", "relays", "default", "global"]));
    assert_eq!(server.json("/api/v1/nodes/n9").await["address"], "10.0.0.9");
    assert_eq!(server.get("/api/v1/nodes/n8").await.status(), 404);
}

#[tokio::test]
async fn a_read_waits_for_its_revision() {
    let server = TestServer::start().await;
    let reading = {
        let request = server.request(Method::GET, "/api/v1/repos/default/files/default/late?min_revision=r2").send();
        tokio::spawn(request)
    };
    tokio::task::yield_now().await;
    server.commit("default", &[("default/late", "here\n")]).await;
    assert_eq!(reading.await.unwrap().unwrap().text().await.unwrap(), "here\n");
    let next = tokio::spawn(server.request(Method::GET, "/api/v1/repos/default/commits/3?min_revision=3").send());
    tokio::task::yield_now().await;
    assert_eq!(server.commit("default", &[("default/late", "later\n")]).await, 3);
    assert_eq!(next.await.unwrap().unwrap().headers()["x-revision"], "3");
    assert_eq!(server.get("/api/v1/repos/default/head?min_revision=x").await.status(), 400);
}

#[tokio::test]
async fn what_does_not_exist_is_a_problem_document() {
    let server = TestServer::start().await;
    let response = server.anonymous(Method::GET, "/nowhere").send().await.unwrap();
    assert_eq!(response.status(), 404);
    assert_eq!(problem(response).await["code"], "not_found");
    let response = server.anonymous(Method::DELETE, "/api/v1/repos/default/head").send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert!(response.headers()["allow"].to_str().unwrap().contains("GET"));
    assert_eq!(problem(response).await["code"], "method_not_allowed");
    let response = server.anonymous(Method::GET, "/nowhere").header("x-request-id", "mine-1").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-1");
}

#[tokio::test]
async fn operations_need_no_login() {
    let server = TestServer::start().await;
    let get = |path: &'static str| server.anonymous(Method::GET, path).send();
    assert_eq!(get("/healthz").await.unwrap().json::<Value>().await.unwrap()["status"], "ok");
    assert_eq!(get("/readyz").await.unwrap().status(), 200);
    let page = get("/").await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    assert!(page.text().await.unwrap().contains("eccluster"));
    server.get("/api/v1/repos/default/head").await;
    let metrics = get("/metrics").await.unwrap().text().await.unwrap();
    for line in [
        "ecconfigd_ready 1",
        "ecconfigd_http_requests_total{method=\"GET\",route=\"/api/v1/repos/{repo}/head\",status=\"200\"} 1",
        "ecconfigd_connections ",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    let ca = get("/api/v1/ca").await.unwrap().text().await.unwrap();
    assert_eq!(ca.trim(), server.ca_pem.trim());
}

#[tokio::test]
async fn both_protocols_and_plain_words_for_plain_http() {
    let server = TestServer::start().await;
    for (alpn, version) in [(&b"h2"[..], http::Version::HTTP_2), (b"http/1.1", http::Version::HTTP_11)] {
        let response = client(&server.ca_pem, None, Some(alpn)).get(server.url("/healthz")).send().await.unwrap();
        assert_eq!((response.version(), response.status().as_u16()), (version, 200));
    }
    let plain = reqwest::Client::builder()
        .tls_backend_preconfigured(cluster::tls::client_config(&server.ca_pem, None).unwrap());
    let plain = plain.no_proxy().build().unwrap();
    let response = plain.get(format!("http://{}/healthz", server.address)).send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "plain_http");
}
