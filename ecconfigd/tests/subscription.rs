//! A daemon's subscription against a real server: what it fetches, what it reports, and how it lives without one.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::api::ReportState;
use cluster::documents::EffectiveFile;
use cluster::documents::schema::duravip::Duravip;
use cluster::http_client::ApiClient;
use cluster::identity::{ReloadingIdentity, renew};
use cluster::subscription::{Settings, Snapshot, Subscription, Wanted};
use serde_json::Value;
use support::{PATIENCE, TestServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn settings(data: &Path, identity: &ReloadingIdentity) -> Settings {
    Settings {
        program: "duravip".into(),
        node: identity.current().node().to_owned(),
        subcluster: Some(identity.current().peer().subcluster.clone()),
        data: data.to_owned(),
        wanted: Wanted::documents(["duravip.toml"]).files(["default/web/**", "global/motd"]).unwrap(),
        search_path: None,
        reloads: watch::Sender::new(0).subscribe(),
        stop: CancellationToken::new(),
    }
}

fn follow(server: &TestServer, identity: &Arc<ReloadingIdentity>) -> Subscription {
    let client = ApiClient::as_node(vec![server.url("").parse().unwrap()], identity.clone()).unwrap();
    Subscription::server(client, settings(&server.dir.path().join("daemon"), identity))
}

async fn next(subscription: &mut Subscription) -> Snapshot {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("a snapshot comes").expect("it goes on")
}

/// Waits until the cluster knows the node's report about a serial.
async fn reported(server: &TestServer, state: ReportState, serial: u64) -> Value {
    let wanted = serde_json::to_value(state).unwrap();
    let known = async {
        loop {
            let node = server.json("/api/v1/nodes/web1").await;
            let report = node["reports"][0].clone();
            if report["state"] == wanted && report["serial"] == serial {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("the report arrives")
}

#[tokio::test]
async fn a_daemon_follows_reports_and_outlives_the_server() {
    let server = TestServer::start().await;
    let identity = server.enroll("web1").await;
    let files = [("default/duravip.toml", "dead_after = \"400ms\"\n"), ("default/web/a b/ä?.html", "A"), ("x/y", "z")];
    server.commit("default", &files).await;
    server.commit("global", &[("motd", "hello")]).await;
    let mut subscription = follow(&server, &identity);

    let snapshot = next(&mut subscription).await;
    assert_eq!(snapshot.load::<Duravip>().unwrap().dead_after.as_millis(), 400);
    let EffectiveFile::Document(document) = snapshot.effective("duravip.toml").unwrap() else { panic!("no document") };
    let (_, origin) = document.origins().into_iter().next().unwrap();
    assert_eq!((origin.file.as_ref(), origin.at.line), ("default/duravip.toml", 1));
    let files: Vec<_> = snapshot.files("").collect();
    assert_eq!(files, [("default/web/a b/ä?.html", &b"A"[..]), ("global/motd", b"hello")]);
    let first = snapshot.version().serial.unwrap();
    assert_eq!(snapshot.version().repos["default"].revision, server.head("default").await);
    snapshot.applied().await;
    reported(&server, ReportState::Applied, first).await;

    // Nothing that is wanted: silent, and reported all the same.
    server.commit("default", &[("x/y", "other")]).await;
    let mut versions = subscription.versions();
    versions.mark_unchanged();
    tokio::select! {
        changed = tokio::time::timeout(PATIENCE, versions.changed()) => changed.unwrap().unwrap(),
        snapshot = subscription.next() => panic!("woken by {:?}", snapshot.map(|snapshot| snapshot.version().clone())),
    }
    reported(&server, ReportState::Applied, first + 1).await;

    // Refused by the program, for all to see.
    server.commit("default", &[("default/duravip.toml", "dead_after = \"500ms\"\n")]).await;
    next(&mut subscription).await.refused("half a second is too long").await;
    let report = reported(&server, ReportState::Refused, first + 2).await;
    assert_eq!(report["detail"], "half a second is too long");

    // A renewed certificate serves the same subscription's reports.
    let client = ApiClient::as_node(vec![server.url("").parse().unwrap()], identity.clone()).unwrap();
    identity.replace(&renew(&client, &identity.current()).await.unwrap()).unwrap();
    server.commit("default", &[("n/a", "b"), ("web1/duravip.toml", "dead_after = \"600ms\"\n")]).await;
    let snapshot = next(&mut subscription).await;
    assert_eq!(snapshot.load::<Duravip>().unwrap().dead_after.as_millis(), 600);
    snapshot.applied().await;
    reported(&server, ReportState::Applied, first + 3).await;
    drop(subscription);

    // The server is gone; the daemon starts with what it had.
    let url = server.url("");
    let data = server.dir.path().join("daemon");
    let dir = server.stop().await;
    let client = ApiClient::as_node(vec![url.parse().unwrap()], identity.clone()).unwrap();
    let mut subscription = Subscription::server(client, settings(&data, &identity));
    let snapshot = next(&mut subscription).await;
    assert_eq!(snapshot.load::<Duravip>().unwrap().dead_after.as_millis(), 600);
    assert_eq!(snapshot.files("global").collect::<Vec<_>>(), [("global/motd", &b"hello"[..])]);
    drop(dir);
}
