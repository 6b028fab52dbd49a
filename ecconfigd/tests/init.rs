//! `init` and start: what is written, what a repetition does, what survives a restart.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use cluster::documents::schema::ecconfigd::Limits as Settings;
use ecconfigd::init::{InitError, init};
use ecconfigd::server::{Options, Server, StartError};
use support::{TestServer, init_options};

#[tokio::test]
async fn init_writes_what_the_contract_names() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let report = init(&init_options(&data)).await.unwrap();
    assert_eq!((report.cluster.as_str(), report.node.as_str()), ("test", "n1"));
    assert!(fs::read_to_string(data.join("ca.pem")).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let password = fs::read_to_string(data.join("admin-password")).unwrap();
    assert!(password.trim().len() >= 20 && password.trim().bytes().all(|b| b.is_ascii_alphanumeric()));
    let mode = |name: &str| fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("admin-password"), mode("ca-key.pem"), mode("identity/key.pem")), (0o600, 0o600, 0o600));
    assert_eq!(["raft", "repos", "uploads", "state.redb"].map(mode), [0o700, 0o700, 0o700, 0o600]);
    assert_eq!(mode("ca.pem"), 0o644, "everybody may know whom to trust");
    assert_eq!(cluster::identity::Identity::load(&data.join("identity")).unwrap().node(), "n1");

    let again = init(&init_options(&data)).await;
    assert!(matches!(again, Err(InitError::Done { .. })), "{again:?}");
    assert_eq!(fs::read_to_string(data.join("admin-password")).unwrap(), password, "nothing was touched");
}

#[tokio::test]
async fn an_interrupted_init_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&init_options(&data)).await.unwrap();
    // Killed before its last step, with everything else done …
    fs::remove_file(data.join("ecconfigd.toml")).unwrap();
    let unfinished = Server::start(Options { data: data.clone(), ..Options::default() }).await;
    assert!(matches!(unfinished, Err(StartError::NoCluster { .. })));
    init(&init_options(&data)).await.unwrap();
    // … and with the password written and nothing after it.
    let server = TestServer::run(dir, Settings::default()).await;
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200);

    let early = tempfile::tempdir().unwrap();
    let data = early.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("admin-password"), "fromBefore123456\n").unwrap();
    init(&init_options(&data)).await.unwrap();
    let server = TestServer::run(early, Settings::default()).await;
    assert_eq!(server.password, "fromBefore123456");
    assert_eq!(server.get("/api/v1/whoami").await.status(), 200);
}

#[tokio::test]
async fn names_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    for (node, subcluster, name) in
        [("N1", "default", "c"), ("n1", "global", "c"), ("default", "default", "c"), ("n1", "default", "a b")]
    {
        let mut options = init_options(&dir.path().join("data"));
        (options.node, options.subcluster, options.cluster) = (node.into(), subcluster.into(), name.into());
        assert!(matches!(init(&options).await, Err(InitError::Name(_))), "{node} {subcluster} {name}");
    }
    assert!(!dir.path().join("data").exists(), "nothing was made");
}

#[tokio::test]
async fn another_subcluster_has_its_repository() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = init_options(&dir.path().join("data"));
    options.subcluster = "east".into();
    init(&options).await.unwrap();
    let server = TestServer::run(dir, Settings::default()).await;
    let target = server.json("/api/v1/nodes/n1/target").await;
    let names: Vec<_> = target["repos"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["east", "global"]);
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let server = TestServer::start().await;
    server.commit("default", &[("default/a", "kept\n")]).await;
    let dir = server.stop().await;
    let server = TestServer::run(dir, Settings::default()).await;
    assert_eq!(server.head("default").await, 2);
    assert_eq!(server.get("/api/v1/repos/default/files/default/a").await.text().await.unwrap(), "kept\n");
    assert_eq!(server.json("/api/v1/repos/default/watch?after=1").await["revision"], 2);
}

#[tokio::test]
async fn two_servers_do_not_share_a_directory() {
    let server = TestServer::start().await;
    let second = Server::start(Options { data: server.data(), ..Options::default() }).await;
    match second {
        Err(StartError::Lock(error)) => assert!(error.to_string().contains("ecconfigd of node n1"), "{error}"),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_wrong_setting_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&init_options(&data)).await.unwrap();
    fs::write(data.join("ecconfigd.toml"), "listen = \"127.0.0.1:0\"\n[limits]\nwatcher = 3\n").unwrap();
    let error = Server::start(Options { data, ..Options::default() }).await.err().unwrap().to_string();
    assert!(error.contains("ecconfigd.toml:3") && error.contains("watcher"), "{error}");
}

#[tokio::test]
async fn inherited_sockets_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&init_options(&data)).await.unwrap();
    let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| std::net::TcpListener::bind(address).unwrap());
    let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let options = Options { data: data.clone(), inherited: sockets.into(), ..Options::default() };
    let server = Server::start(options).await.unwrap();
    let served = server.addresses();
    assert!(
        served.starts_with(&addresses) && served.len() > addresses.len(),
        "besides the address of its own: {served:?}"
    );
    let client = support::client(&fs::read_to_string(data.join("ca.pem")).unwrap(), None, None);
    for address in addresses {
        assert_eq!(client.get(format!("https://{address}/healthz")).send().await.unwrap().status(), 200);
    }
    let _ = server.shutdown().await;
}
