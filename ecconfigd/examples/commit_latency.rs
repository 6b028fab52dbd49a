//! How long a commit takes inside the core: blob, trees, commit, gate, log with fdatasync, apply. Prints a table.
//!
//! `cargo run --release -p ecconfigd --example commit_latency [-- COMMITS [CLIENTS [FILES]]]`
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use cluster::api::RevisionSpec;
use ecconfigd::commit::{CommitRequest, RepoChange};
use ecconfigd::core::{Bootstrap, Core, CoreLimits, CoreOptions, TemplateFile};
use ecconfigd::state::{Author, RepoName, Role, UserRecord};
use repos::{Content, RepoPath, TreeChange};

fn request(repo: &RepoName, path: String, number: usize) -> anyhow::Result<CommitRequest> {
    let content = format!("{number}\n{}", "x".repeat(1000));
    let put = TreeChange::Put { path: RepoPath::new(path)?, mode: None, content: Content::Bytes(content.into()) };
    let change = RepoChange { base: RevisionSpec::Number(1), changes: vec![put] };
    Ok(CommitRequest {
        author: Author { user: "a".into(), name: "A".into(), email: "a@example".into() },
        message: format!("Change {number}"),
        idempotency_key: None,
        repos: BTreeMap::from([(repo.clone(), change)]),
    })
}

fn first(repo: &RepoName, files: usize) -> anyhow::Result<Bootstrap> {
    let file = |number: usize| TemplateFile {
        path: format!("default/d{}/f{number}.txt", number % 100).parse().expect("a plain path"),
        mode: repos::Mode::File,
        content: Bytes::from(format!("file {number}\n")),
    };
    let admin = UserRecord {
        name: "admin".into(),
        password_hash: String::new(),
        role: Role::Admin,
        full_name: String::new(),
        email: String::new(),
        created_time_ms: 0,
        generation: 0,
    };
    let repos = vec![(repo.clone(), (0..files).map(file).collect()), ("global".parse()?, vec![])];
    Ok(Bootstrap { cluster: "bench".into(), admin, subcluster: repo.clone(), repos })
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}

fn show(what: &str, mut times: Vec<Duration>, wall: Duration) {
    times.sort();
    let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    let rate = times.len() as f64 / wall.as_secs_f64();
    println!("{what:<28} p50 {p50:>9.2?}  p99 {p99:>9.2?}  {rate:>7.0}/s");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let commits = arguments.next().transpose()?.unwrap_or(1000);
    let clients = arguments.next().transpose()?.unwrap_or(32);
    let files = arguments.next().transpose()?.unwrap_or(10_000);
    let dir = tempfile::tempdir_in(".").context("a directory on a real disk")?;
    let repo: RepoName = "default".parse()?;
    let limits = CoreLimits::default();
    let options = CoreOptions {
        data: dir.path().to_owned(),
        node: "n1".parse()?,
        address: "127.0.0.1:1".into(),
        peers: BTreeMap::new(),
        limits,
    };
    let core = Core::bootstrap(options.clone(), first(&repo, files)?).await?;

    let (mut times, begin) = (Vec::new(), Instant::now());
    for number in 0..commits {
        let one = Instant::now();
        core.commit(request(&repo, format!("default/d{}/f{number}.txt", number % 100), number)?).await?;
        times.push(one.elapsed());
    }
    show("one after the other", times, begin.elapsed());

    let (begin, mut tasks) = (Instant::now(), Vec::new());
    for client in 0..clients {
        let (core, repo) = (core.clone(), repo.clone());
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for number in 0..commits / clients {
                let one = Instant::now();
                core.commit(request(&repo, format!("default/c{client}/f{number}.txt"), number)?).await?;
                times.push(one.elapsed());
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    show(&format!("{clients} clients"), times, begin.elapsed());
    let figures = core.figures();
    println!("{figures:#?}");
    core.shutdown().await;
    drop(core);

    let begin = Instant::now();
    let core = Core::open(options).await?;
    core.wait_ready(Duration::from_secs(60)).await?;
    println!("restart to ready with {} revisions: {:.2?}", core.head(&repo)?.revision, begin.elapsed());
    core.shutdown().await;
    Ok(())
}
