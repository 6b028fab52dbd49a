//! From commit to file: how long a change takes from the request of whoever commits to the exchanged tree on a node, with nobody else and
//! with a thousand watchers connected; what a watcher costs, and ten thousand; how long a restart takes.
//! Every watcher is a descriptor here and one in the server: `ulimit -Hn` has to be above 10,200.
//!
//!     cargo bench --bench change [-- COMMITS [WATCHERS]]
//!
//! Everything is real: the release binary, TLS, a tree of 10,000 files, an agent that runs beside it. In the same run a raw
//! write + fdatasync is timed, which no durable commit can beat; the ratio to it means more than the milliseconds do.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::api::{ChangeRequest, CommitRequest, CommitResponse, ReportState};
use cluster::http_client::{ApiClient, Incoming};
use support::{Agent, Server, eventually};

const FILES: usize = 10_000;
const DIRECTORIES: usize = 100;
const RESTART_COMMITS: usize = 5_000;
/// What one server shall hold within 200 MB.
const IDLE_WATCHERS: usize = 10_000;
/// Watchers that connect at once.
const AT_A_TIME: usize = 250;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let commits = numbers.first().copied().unwrap_or(300);
    let watchers = numbers.get(1).copied().unwrap_or(1_000);

    raise_file_limit();
    let mut server = Server::start();
    allow_one_address_everything(&mut server);
    fill(&server);
    let mut agent = Agent::new(&server, "");
    agent.spawn();
    server.report("n1", server.head("default").revision, &[ReportState::Healthy]);

    let fsync = raw_fsync(server.dir.path(), commits);
    print("write + fdatasync of 4 KiB, for comparison", &fsync);
    let alone = changes(&server, &agent, commits);
    print("commit → file exchanged, 1 agent", &alone);

    let before = rss_bytes(server.pid());
    let mut streams = tokio::task::JoinSet::new();
    watch(&server, watchers, &mut streams);
    let after = rss_bytes(server.pid());
    println!(
        "{watchers} idle watchers: {:.1} KiB each of the server's memory",
        (after.saturating_sub(before)) as f64 / 1024.0 / watchers as f64
    );
    let crowded = changes(&server, &agent, commits);
    print(&format!("commit → file exchanged, {watchers} watchers connected"), &crowded);
    agent.kill();
    watch(&server, IDLE_WATCHERS.saturating_sub(watchers), &mut streams);
    let all = rss_bytes(server.pid()) as f64 / 1e6;
    println!("{} idle watchers: the server has {all:.0} MB in all", streams.len());
    drop(streams);

    many_commits(&server, RESTART_COMMITS);
    server.terminate();
    let begun = Instant::now();
    server.run();
    println!("restart to ready after SIGTERM, {} commits: {:.0} ms", RESTART_COMMITS, ms(begun.elapsed()));
    many_commits(&server, 100);
    server.kill();
    let begun = Instant::now();
    server.run();
    println!("restart to ready after kill -9: {:.0} ms", ms(begun.elapsed()));
}

/// The soft limit is for programs that use `select`; the server inherits what is set here.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// All watchers here come from one address.
fn allow_one_address_everything(server: &mut Server) {
    server.terminate();
    let config = server.data().join("ecconfigd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(!text.lines().any(|line| line.trim() == "[limits]"), "{text}");
    std::fs::write(&config, format!("{text}\n[limits]\nconnections_per_address = 16384\n")).unwrap();
    server.run();
}

/// A tree of many files, in one commit.
fn fill(server: &Server) {
    let file = |number: usize| {
        let path = format!("default/d{:02}/f{number:05}.conf", number % DIRECTORIES);
        ChangeRequest::put(path, format!("number = {number}\n").into_bytes())
    };
    commit(server, (0..FILES).map(file).collect(), "Fill the tree");
}

fn commit(server: &Server, changes: Vec<ChangeRequest>, message: &str) {
    let head = server.head("default");
    let request = CommitRequest { base: head.revision.into(), message: message.into(), changes };
    let _: CommitResponse =
        server.runtime.block_on(server.client().post_json("/api/v1/repos/default/commits", &request)).unwrap();
}

/// One commit after the other, each timed until the file is there by its path.
fn changes(server: &Server, agent: &Agent, count: usize) -> Vec<Duration> {
    let client = server.client();
    let mut base = server.head("default").revision;
    let mut times = Vec::new();
    for number in 0..count {
        let path = format!("default/d{:02}/f{:05}.conf", number % DIRECTORIES, number % DIRECTORIES);
        let text = format!("changed = \"{number} at {base}\"\n");
        let request = CommitRequest {
            base: base.into(),
            message: format!("Change {number}"),
            changes: vec![ChangeRequest::put(&*path, text.clone().into_bytes())],
        };
        let begun = Instant::now();
        let file = agent.wc.join(&path);
        let commit = server.runtime.spawn(post(client.clone(), request));
        while std::fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            assert!(begun.elapsed() < support::DEADLINE, "the file never came\n{}", agent.log());
            std::thread::sleep(Duration::from_micros(200));
        }
        times.push(begun.elapsed());
        base = server.runtime.block_on(commit).unwrap().revision;
        // The next change meets an agent at rest: reported and settled.
        server.report("n1", base, &[ReportState::Healthy]);
    }
    times
}

async fn post(client: ApiClient, request: CommitRequest) -> CommitResponse {
    client.post_json("/api/v1/repos/default/commits", &request).await.unwrap()
}

/// More watchers of a path that never changes: they are told nothing, they only stand there. Each has a connection of its own, all in this
/// process, so that only the server's side counts.
fn watch(server: &Server, count: usize, tasks: &mut tokio::task::JoinSet<()>) {
    let client = server.client();
    for begun in (0..count).step_by(AT_A_TIME) {
        let group = AT_A_TIME.min(count - begun);
        let (connected, mut ready) = tokio::sync::mpsc::channel(group);
        for _ in 0..group {
            let mut events = client.events("/api/v1/repos/default/watch?path=never/**", None);
            let connected = connected.clone();
            let follow = async move {
                loop {
                    if matches!(events.next().await, Ok(Incoming::Connected)) {
                        let _ = connected.send(()).await;
                    }
                }
            };
            tasks.spawn_on(follow, server.runtime.handle());
        }
        server.runtime.block_on(async {
            for _ in 0..group {
                tokio::time::timeout(support::DEADLINE, ready.recv()).await.expect("every watcher connects").unwrap();
            }
        });
    }
}

fn many_commits(server: &Server, count: usize) {
    const AT_ONCE: usize = 16;
    let client = server.client();
    let base = server.head("default").revision;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|lane| {
            let client = client.clone();
            server.runtime.spawn(async move {
                for number in 0..count / AT_ONCE + 1 {
                    let changes = vec![ChangeRequest::put(
                        format!("default/lane{lane}.conf"),
                        format!("number = {number}\n").into_bytes(),
                    )];
                    let request =
                        CommitRequest { base: base.into(), message: format!("Lane {lane}, {number}"), changes };
                    // Every lane has a file of its own, written by nobody else: the server merges on from the old base.
                    if client.post_json::<_, CommitResponse>("/api/v1/repos/default/commits", &request).await.is_err() {
                        let head: cluster::api::Head = client.get_json("/api/v1/repos/default/head").await.unwrap();
                        let request = CommitRequest { base: head.revision.into(), ..request };
                        post(client.clone(), request).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        server.runtime.block_on(task).unwrap();
    }
    println!("{count} commits from {AT_ONCE} clients: {:.0}/s", count as f64 / begun.elapsed().as_secs_f64());
}

/// What the disk alone takes.
fn raw_fsync(dir: &Path, count: usize) -> Vec<Duration> {
    let mut file = std::fs::File::create(dir.join("raw")).unwrap();
    let block = [7u8; 4096];
    file.write_all(&vec![0; block.len() * count]).unwrap();
    file.sync_all().unwrap();
    (0..count)
        .map(|number| {
            let begun = Instant::now();
            file.write_all_at(&block, (number * block.len()) as u64).unwrap();
            file.sync_data().unwrap();
            begun.elapsed()
        })
        .collect()
}

fn rss_bytes(pid: u32) -> u64 {
    // The allocator returns and takes in steps; two equal readings are a settled one.
    let mut last = 0;
    eventually("memory settles", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let now = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

fn print(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| ms(sorted[((sorted.len() - 1) as f64 * share) as usize]);
    println!("{what}: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms ({} times)", at(0.5), at(0.99), at(1.0), sorted.len());
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
