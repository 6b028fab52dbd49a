//! Following a configuration: from a directory that is edited and exchanged, and from a server that comes and goes.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Path as UrlPath;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster::api::{EntryKind, Head, NodeReport, ReportState, Target, TreeEntry};
use cluster::documents::schema::duravip::Duravip;
use cluster::documents::{EffectiveFile, KeyPath, SearchPath};
use cluster::http_client::{ApiClient, ServerUrl};
use cluster::subscription::{Settings, Snapshot, Subscription, Wanted};
use common::{Served, Trust, dead_server, soon};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn duravip(dead_after_ms: u32) -> String {
    format!("dead_after = \"{dead_after_ms}ms\"\n")
}

/// A daemon's place on disk, and the way to send it a SIGHUP.
struct Place {
    dir: tempfile::TempDir,
    reloads: watch::Sender<u64>,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), reloads: watch::Sender::new(0) }
    }

    fn settings(&self) -> Settings {
        Settings {
            program: "duravip".into(),
            node: "n1".into(),
            subcluster: None,
            data: self.dir.path().join("data"),
            wanted: Wanted::documents(["duravip.toml"]).files(["default/web/**"]).unwrap(),
            search_path: None,
            reloads: self.reloads.subscribe(),
            stop: CancellationToken::new(),
        }
    }

    fn conf(&self) -> std::path::PathBuf {
        self.dir.path().join("conf")
    }

    fn follow_dir(&self) -> Subscription {
        Subscription::conf_dir(self.conf(), self.settings())
    }
}

async fn next(subscription: &mut Subscription) -> Snapshot {
    soon("a snapshot", subscription.next()).await.expect("the subscription goes on")
}

fn dead_after_ms(snapshot: &Snapshot) -> u128 {
    snapshot.load::<Duravip>().unwrap().dead_after.get().as_millis()
}

/// Waits for a silent step to the next version; a snapshot in the meantime is a mistake.
async fn advances_silently(subscription: &mut Subscription) {
    let mut versions = subscription.versions();
    versions.mark_unchanged();
    tokio::select! {
        changed = soon("the next version", versions.changed()) => changed.unwrap(),
        snapshot = subscription.next() => panic!("woken for {:?}", snapshot.map(|snapshot| snapshot.version().clone())),
    }
}

#[tokio::test]
async fn a_directory_is_followed_and_only_what_is_wanted_wakes() {
    let place = Place::new();
    let conf = place.conf();
    write(&conf, "global/cluster.toml", "[node.n1]\naddress = \"10.0.0.1\"\ngroups = [\"relays\"]\n");
    write(&conf, "default/duravip.toml", &format!("{}mature = \"1s\"\n", duravip(300)));
    write(&conf, "relays/duravip.toml", &duravip(400));
    write(&conf, "default/web/a/index.html", "hello");
    write(&conf, "default/other", "x");
    let mut subscription = place.follow_dir();

    let first = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&first), 400);
    let EffectiveFile::Document(document) = first.effective("duravip.toml").unwrap() else { panic!("no document") };
    let origin = document.origin(&KeyPath::keys(["dead_after"])).unwrap();
    assert_eq!(origin.file.as_ref(), "relays/duravip.toml");
    assert_eq!(first.files("default/web/").collect::<Vec<_>>(), [("default/web/a/index.html", &b"hello"[..])]);
    assert_eq!(first.files("default/we").count(), 0);
    assert_eq!(first.version().commit.len(), 40);
    let before = first.version().clone();
    first.applied().await;
    assert_eq!(subscription.versions().borrow().as_ref(), Some(&before));

    // Another program's document: a new version for everybody, and no reason to wake this one.
    write(&conf, "default/cidr.toml", "[maintain]\nretention = \"3d\"\n");
    advances_silently(&mut subscription).await;

    write(&conf, "n1/duravip.toml", &duravip(500));
    let second = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&second), 500);
    second.applied().await;
    write(&conf, "default/web/new.css", "body {}");
    assert_eq!(next(&mut subscription).await.files("").count(), 2);
}

#[tokio::test]
async fn an_exchanged_working_copy_is_followed() {
    let place = Place::new();
    let (conf, spare) = (place.conf(), place.dir.path().join("spare"));
    write(&conf, "default/duravip.toml", &duravip(300));
    write(&spare, "default/duravip.toml", &duravip(400));
    let mut subscription = place.follow_dir();
    next(&mut subscription).await.applied().await;
    for expected_ms in [400, 300, 400] {
        let here = nix::fcntl::AT_FDCWD;
        let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
        nix::fcntl::renameat2(here, &conf, here, &spare, flags).unwrap();
        let snapshot = next(&mut subscription).await;
        assert_eq!(dead_after_ms(&snapshot), expected_ms);
        snapshot.applied().await;
    }
    // The tree that is live now is the one that is watched.
    write(&conf, "default/duravip.toml", &duravip(700));
    assert_eq!(dead_after_ms(&next(&mut subscription).await), 700);
}

#[tokio::test]
async fn what_was_refused_comes_back_only_when_it_changes_or_somebody_asks() {
    let place = Place::new();
    let conf = place.conf();
    write(&conf, "default/duravip.toml", &duravip(300));
    let mut subscription = place.follow_dir();
    next(&mut subscription).await.applied().await;

    write(&conf, "default/duravip.toml", &duravip(400));
    next(&mut subscription).await.refused("I do not like it").await;
    // A comment changes nothing, and the refused one is not offered again; the next real change is.
    write(&conf, "default/duravip.toml", &format!("# please\n{}", duravip(400)));
    place.reloads.send_modify(|count| *count += 1);
    let asked = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&asked), 400, "SIGHUP offers it again");
    drop(asked);
    write(&conf, "default/cidr.toml", "[maintain]\nretention = \"3d\"\n");
    write(&conf, "default/duravip.toml", &duravip(500));
    let snapshot = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&snapshot), 500);
    snapshot.refused("nor this").await;
    // Back to what is in use: nothing to do.
    write(&conf, "default/duravip.toml", &duravip(300));
    write(&conf, "default/cidr.toml", "[maintain]\nretention = \"4d\"\n");
    advances_silently(&mut subscription).await;

    // What cannot be read never reaches the program.
    write(&conf, "default/duravip.toml", "dead_after = \n");
    write(&conf, "default/web/x", "y");
    write(&conf, "default/duravip.toml", &duravip(600));
    assert_eq!(dead_after_ms(&next(&mut subscription).await), 600);
}

#[tokio::test]
async fn the_last_good_configuration_outlives_a_restart_with_a_bad_one() {
    let place = Place::new();
    let conf = place.conf();
    write(&conf, "default/duravip.toml", &duravip(300));
    let mut subscription = place.follow_dir();
    next(&mut subscription).await.applied().await;
    drop(subscription);

    // One that cannot be read at all.
    write(&conf, "default/duravip.toml", "dead_after = [\n");
    let mut subscription = place.follow_dir();
    let snapshot = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&snapshot), 300);
    snapshot.applied().await;
    drop(subscription);

    // One that the program refuses.
    write(&conf, "default/duravip.toml", &duravip(400));
    let mut subscription = place.follow_dir();
    let snapshot = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&snapshot), 400);
    snapshot.refused("no").await;
    let snapshot = next(&mut subscription).await;
    assert_eq!(dead_after_ms(&snapshot), 300);
    snapshot.applied().await;
    write(&conf, "default/duravip.toml", &duravip(500));
    assert_eq!(dead_after_ms(&next(&mut subscription).await), 500);
    drop(subscription);

    // A damaged cache is ignored.
    let cache = place.dir.path().join("data/configuration.cache");
    let mut bytes = std::fs::read(&cache).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&cache, bytes).unwrap();
    assert_eq!(dead_after_ms(&next(&mut place.follow_dir()).await), 500);
}

#[tokio::test]
async fn a_search_path_of_ones_own() {
    let place = Place::new();
    let conf = place.conf();
    write(&conf, "default/duravip.toml", &duravip(300));
    write(&conf, "lab/duravip.toml", &duravip(400));
    let search_path = Some(SearchPath::parse("lab:default", "n1").unwrap());
    let mut subscription = Subscription::conf_dir(&conf, Settings { search_path, ..place.settings() });
    assert_eq!(dead_after_ms(&next(&mut subscription).await), 400);
}

/// As much of ecconfigd as a subscription needs.
#[derive(Clone)]
struct Fake {
    state: Arc<Mutex<State>>,
    serial: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    target: Option<Target>,
    /// Commit → path → content.
    commits: BTreeMap<String, BTreeMap<String, String>>,
    reports: Vec<NodeReport>,
    not_modified: usize,
    lagging: usize,
}

impl Fake {
    fn new() -> Self {
        Self { state: Arc::default(), serial: watch::Sender::new(0) }
    }

    fn commit(&self, files: &[(&str, &str)]) -> u64 {
        let mut state = self.state.lock().unwrap();
        let serial = state.target.as_ref().map_or(1, |target| target.serial + 1);
        let mut repos = BTreeMap::new();
        for repo in ["default", "global"] {
            let commit = format!("{repo:x<32}{serial:08}");
            let of_repo = files.iter().filter_map(|(path, text)| match path.strip_prefix("global/") {
                Some(inner) if repo == "global" => Some((inner, text)),
                None if repo == "default" => Some((*path, text)),
                _ => None,
            });
            let tree = of_repo.map(|(path, text)| (path.to_owned(), (*text).to_owned())).collect();
            state.commits.insert(commit.clone(), tree);
            repos.insert(repo.to_owned(), Head { revision: serial, commit });
        }
        state.target = Some(Target { serial, repos, frozen: Vec::new() });
        drop(state);
        self.serial.send_replace(serial);
        serial
    }

    async fn reported(&self, state: ReportState, serial: u64) -> NodeReport {
        let arrived = async {
            loop {
                let reports = self.state.lock().unwrap().reports.clone();
                if let Some(report) =
                    reports.into_iter().find(|report| (report.state, report.serial) == (state, serial))
                {
                    return report;
                }
                tokio::task::yield_now().await;
            }
        };
        soon("a report", arrived).await
    }

    fn router(&self) -> Router {
        let (fake, files, tree, reports) = (self.clone(), self.clone(), self.clone(), self.clone());
        Router::new()
            .route("/api/v1/nodes/n1/target", get(move |headers: HeaderMap| async move { fake.targets(&headers) }))
            .route(
                "/api/v1/repos/{repo}/files/{*path}",
                get(move |UrlPath((_, path)): UrlPath<(String, String)>, uri: axum::http::Uri, headers: HeaderMap| async move {
                    files.file(uri.query().unwrap(), &path, &headers)
                }),
            )
            .route(
                "/api/v1/repos/{repo}/tree/{*path}",
                get(move |UrlPath((_, path)): UrlPath<(String, String)>, uri: axum::http::Uri| async move {
                    tree.tree(uri.query().unwrap(), &path)
                }),
            )
            .route(
                "/api/v1/nodes/n1/report",
                post(move |Json(report): Json<NodeReport>| async move {
                    reports.state.lock().unwrap().reports.push(report);
                    StatusCode::NO_CONTENT
                }),
            )
    }

    fn targets(&self, headers: &HeaderMap) -> Response {
        assert_eq!(headers["accept"], "text/event-stream");
        let known: u64 = headers.get("last-event-id").map_or(0, |id| id.to_str().unwrap().parse().unwrap());
        let (state, serials) = (self.state.clone(), self.serial.subscribe());
        let events = futures::stream::unfold((serials, known), move |(mut serials, known)| {
            let state = state.clone();
            async move {
                let serial = *serials.wait_for(|serial| *serial > known).await.ok()?;
                let target = serde_json::to_string(state.lock().unwrap().target.as_ref().unwrap()).unwrap();
                Some((format!("id: {serial}\nevent: target\ndata: {target}\n\n"), (serials, serial)))
            }
        });
        let body = axum::body::Body::from_stream(events.map(Ok::<_, std::convert::Infallible>));
        ([("content-type", "text/event-stream")], body).into_response()
    }

    fn file(&self, query: &str, path: &str, headers: &HeaderMap) -> Response {
        let mut state = self.state.lock().unwrap();
        if state.lagging > 0 {
            state.lagging -= 1;
            return (StatusCode::SERVICE_UNAVAILABLE, "not there yet").into_response();
        }
        let commit = query.strip_prefix("revision=").unwrap().split('&').next().unwrap();
        assert!(query.contains("&min_revision="), "{query}");
        let Some(text) = state.commits[commit].get(path).cloned() else { return StatusCode::NOT_FOUND.into_response() };
        let tag = format!("\"{}\"", text.len());
        if headers.get("if-none-match").is_some_and(|known| known == tag.as_str()) {
            state.not_modified += 1;
            return StatusCode::NOT_MODIFIED.into_response();
        }
        match text.strip_prefix("-> ") {
            Some(link) => ([("x-mode", "120000")], link.to_owned()).into_response(),
            None => ([("x-mode", "100644"), ("etag", &tag)], text).into_response(),
        }
    }

    fn tree(&self, query: &str, directory: &str) -> Response {
        assert!(query.contains("recursive=true"), "{query}");
        let state = self.state.lock().unwrap();
        let commit = query.split('&').find_map(|pair| pair.strip_prefix("revision=")).unwrap();
        let files = state.commits[commit].keys().filter(|path| path.starts_with(&format!("{directory}/")));
        let entry = |path: &String| TreeEntry {
            path: path.clone(),
            kind: EntryKind::File,
            mode: "100644".into(),
            id: "0".repeat(40),
            size: None,
        };
        Json(files.map(entry).collect::<Vec<_>>()).into_response()
    }
}

struct Setting {
    trust: Trust,
    fake: Fake,
    server: Served,
    place: Place,
}

impl Setting {
    async fn new() -> Self {
        let (trust, fake) = (Trust::new(), Fake::new());
        let server = trust.serve("server", fake.router()).await;
        Self { trust, fake, server, place: Place::new() }
    }

    fn follow(&self, servers: Vec<ServerUrl>) -> Subscription {
        let client = ApiClient::as_node(servers, self.trust.identity("n1")).unwrap();
        Subscription::server(client, Settings { subcluster: Some("default".into()), ..self.place.settings() })
    }
}

#[tokio::test]
async fn a_target_is_fetched_applied_and_reported() {
    let setting = Setting::new().await;
    let cluster = "[node.n1]\naddress = \"10.0.0.1\"\ngroups = [\"relays\"]\n";
    let base = [
        ("global/cluster.toml", cluster),
        ("default/duravip.toml", "mature = \"9s\"\n"),
        ("relays/duravip.toml", "-> ../lab/d"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    setting.fake.commit(&with(&[
        ("lab/d", "dead_after = \"400ms\"\n"),
        ("default/web/a", "A"),
        ("default/unwanted", "x"),
    ]));
    let mut subscription = setting.follow(vec![dead_server().await, setting.server.url()]);

    let snapshot = next(&mut subscription).await;
    assert_eq!((snapshot.version().serial, dead_after_ms(&snapshot)), (Some(1), 400));
    assert_eq!(snapshot.files("").collect::<Vec<_>>(), [("default/web/a", &b"A"[..])]);
    assert_eq!(snapshot.version().repos["default"].revision, 1);
    snapshot.applied().await;
    let report = setting.fake.reported(ReportState::Applied, 1).await;
    assert_eq!(
        (&*report.program, &*report.repos["global"].commit),
        ("duravip", "globalxxxxxxxxxxxxxxxxxxxxxxxxxx00000001")
    );

    // A commit that touches nothing wanted: silent here, applied there. What is known is not fetched again.
    setting.fake.commit(&with(&[
        ("lab/d", "dead_after = \"400ms\"\n"),
        ("default/web/a", "A"),
        ("default/unwanted", "y"),
    ]));
    advances_silently(&mut subscription).await;
    setting.fake.reported(ReportState::Applied, 2).await;
    assert!(setting.fake.state.lock().unwrap().not_modified >= 3);

    // A refusal goes to the cluster with its reason, again for later commits that do not mend it.
    setting.fake.commit(&with(&[("lab/d", "dead_after = \"500ms\"\n"), ("default/web/a", "A")]));
    next(&mut subscription).await.refused("half a second is too long").await;
    let report = setting.fake.reported(ReportState::Refused, 3).await;
    assert_eq!(report.detail, "half a second is too long");
    setting.fake.commit(&with(&[("lab/d", "dead_after = \"500ms\"\n"), ("default/web/a", "A"), ("default/z", "z")]));
    tokio::select! {
        report = setting.fake.reported(ReportState::Refused, 4) => assert_eq!(report.detail, "half a second is too long"),
        snapshot = subscription.next() => panic!("offered again: {:?}", snapshot.map(|snapshot| snapshot.version().clone())),
    }
    setting.fake.commit(&with(&[("lab/d", "dead_after = \"600ms\"\n")]));
    let mended = next(&mut subscription).await;
    assert_eq!((mended.version().serial, dead_after_ms(&mended)), (Some(5), 600));

    // What is no TOML is refused without the program's help, and a server that is behind is asked again.
    mended.applied().await;
    subscription.reporter().report(ReportState::Healthy, "all VIPs are up");
    setting.fake.reported(ReportState::Healthy, 5).await;
    setting.fake.state.lock().unwrap().lagging = 3;
    setting.fake.commit(&with(&[("lab/d", "dead_after = \n")]));
    setting.fake.commit(&with(&[("lab/d", "dead_after = \"700ms\"\n")]));
    assert_eq!(dead_after_ms(&next(&mut subscription).await), 700);
}

#[tokio::test]
async fn without_a_server_the_last_good_configuration_is_used_and_later_replaced() {
    let setting = Setting::new().await;
    setting.fake.commit(&[("default/duravip.toml", "dead_after = \"300ms\"\n")]);
    let mut subscription = setting.follow(vec![setting.server.url()]);
    next(&mut subscription).await.applied().await;
    setting.fake.reported(ReportState::Applied, 1).await;
    drop(subscription);
    let Setting { trust, fake, server, place } = setting;
    server.kill().await;

    let back = trust.serve("server", fake.router()).await;
    let gate = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gate.local_addr().unwrap();
    drop(gate);
    let setting = Setting { trust, fake, server: back, place };
    let mut subscription = setting.follow(vec![format!("https://{address}").parse().unwrap()]);
    let began = std::time::Instant::now();
    let cached = next(&mut subscription).await;
    assert!(began.elapsed() < Duration::from_secs(3), "a refused connection needs no patience");
    assert_eq!((cached.version().serial, dead_after_ms(&cached)), (Some(1), 300));
    cached.applied().await;

    // A server comes up at the address that was dead: the subscription finds it by itself and the report from before arrives.
    setting.fake.state.lock().unwrap().reports.clear();
    setting.fake.commit(&[("default/duravip.toml", "dead_after = \"400ms\"\n")]);
    let relay = tokio::spawn(relay(address, setting.server.address));
    let snapshot = next(&mut subscription).await;
    assert_eq!((snapshot.version().serial, dead_after_ms(&snapshot)), (Some(2), 400));
    setting.fake.reported(ReportState::Applied, 1).await;
    relay.abort();
}

/// Lets a server appear at an address of the test's choice.
async fn relay(from: std::net::SocketAddr, to: std::net::SocketAddr) {
    let listener = tokio::net::TcpListener::bind(from).await.unwrap();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}
