//! How long an update of a working copy with 10,000 files takes, step by step.
//!
//! `cargo run --release -p repos --example worktree_timing [files] [rounds] [directory]`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use repos::worktree::{CreateOptions, Durability, Mount, Ownership, Scan, StageOptions, Target, Targets, WorkingCopy};
use repos::{Content, Draft, Mode, NewCommit, Oid, RepoPath, Signature, TreeChange};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let files: usize = args.get(1).map_or(10_000, |a| a.parse().unwrap());
    let rounds: usize = args.get(2).map_or(50, |a| a.parse().unwrap());
    let temp = args.get(3).map_or_else(|| tempfile::tempdir().unwrap(), |d| tempfile::tempdir_in(d).unwrap());
    let mount = Mount {
        name: "default".into(),
        at: String::new(),
        remote_url: "https://config.test/default.git".into(),
        ca: None,
    };
    let options = CreateOptions { mounts: vec![mount], ownership: Ownership::default() };
    let wc = WorkingCopy::create(&temp.path().join("conf"), options).unwrap();
    let all: Vec<(String, String)> = (0..files)
        .map(|i| (format!("default/d{:03}/file-{i:05}.conf", i / 100), format!("key = {i}\n").repeat(20)))
        .collect();
    let mut tip = commit(&wc, None, &all);
    let start = Instant::now();
    stage(&wc, tip, Scan::Full, Durability::BeforeExchange).exchange().unwrap().settle().unwrap();
    println!("first checkout of {files} files: {:?}", start.elapsed());
    let start = Instant::now();
    wc.prepare().unwrap();
    println!("preparing the second tree: {:?}", start.elapsed());
    wc.watch().unwrap();
    wc.tend(Scan::Watched).unwrap();
    for (name, scan, durability) in [
        ("full scan, synced", Scan::Full, Durability::BeforeExchange),
        ("full scan, not synced", Scan::Full, Durability::Never),
        ("watched, synced", Scan::Watched, Durability::BeforeExchange),
        ("watched, not synced", Scan::Watched, Durability::Never),
    ] {
        let mut times: [Vec<Duration>; 3] = Default::default();
        let mut cpu = [Duration::ZERO; 2];
        for round in 0..rounds {
            let change = (all[round * 37 % files].0.clone(), format!("changed {name} {round}\n"));
            tip = commit(&wc, Some(tip), &[change]);
            let (start, before) = (Instant::now(), cpu_time());
            let staged = stage(&wc, tip, scan, durability);
            times[0].push(start.elapsed());
            let start = Instant::now();
            let exchanged = staged.exchange().unwrap();
            times[1].push(start.elapsed());
            cpu[0] += cpu_time() - before;
            let (start, before) = (Instant::now(), cpu_time());
            exchanged.settle().unwrap();
            times[2].push(start.elapsed());
            cpu[1] += cpu_time() - before;
            wc.tend(Scan::Watched).unwrap();
        }
        let [stage, exchange, settle] = times.map(quantiles);
        let [on, off] = cpu.map(|t| t.as_secs_f64() * 1e3 / rounds as f64);
        println!(
            "{name}: stage {stage}, exchange {exchange} (CPU {on:.2} ms); settle, off the path, {settle} (CPU {off:.2} ms)"
        );
    }
    let start = Instant::now();
    wc.status().unwrap();
    println!("status: {:?}", start.elapsed());
    let start = Instant::now();
    std::process::Command::new("git").args(["status", "--porcelain"]).current_dir(wc.root()).output().unwrap();
    println!("git status, the first after an update: {:?}", start.elapsed());
}

/// What all threads of this process used; says more than the clock on a busy machine.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of =
        |t: nix::sys::time::TimeVal| Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64);
    of(usage.user_time()) + of(usage.system_time())
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |q: usize| times[(times.len() - 1) * q / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms p99 {:.2} ms", at(50), at(99))
}

fn stage(wc: &WorkingCopy, tip: Target, scan: Scan, durability: Durability) -> repos::worktree::Staged {
    let targets = Targets::from([("default".to_owned(), tip)]);
    wc.stage(&targets, &StageOptions { scan, durability, ..StageOptions::default() }).unwrap()
}

fn commit(wc: &WorkingCopy, tip: Option<Target>, files: &[(String, String)]) -> Target {
    let store = wc.objects("default").unwrap();
    let mut draft = Draft::new(&store).unwrap();
    let tree = tip.map_or(Oid::EMPTY_TREE, |t| draft.tree_of(t.commit).unwrap());
    let put = |(path, text): &(String, String)| TreeChange::Put {
        path: RepoPath::new(path.as_bytes()).unwrap(),
        mode: Some(Mode::File),
        content: Content::Bytes(text.clone().into_bytes().into()),
    };
    let tree = draft.apply(tree, &files.iter().map(put).collect::<Vec<_>>()).unwrap();
    let who = Signature { name: "t".into(), email: "t@t".into(), time_s: 1_700_000_000, offset_min: 0 };
    let revision = tip.map_or(1, |t| t.revision + 1);
    let parents = tip.iter().map(|t| t.commit).collect();
    let commit =
        draft.commit(&NewCommit { tree, parents, author: who.clone(), committer: who, message: "m".into() }).unwrap();
    if let Some(pack) = draft.into_pack().unwrap() {
        store.install_pack(&pack).unwrap();
    }
    Target { revision, commit }
}
