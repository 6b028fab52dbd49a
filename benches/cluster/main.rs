//! Three ecconfigd beside three etcd, on the same machine in the same run, taking turns: a commit against a bare put.
//!
//!     cargo bench --bench cluster [-- PART…]      latency throughput watchers failover catchup
//!
//! Each put carries 1 KB, each commit one file of 1 KB: blob, trees, commit, ref, gate and a quorum's fsync, over TLS and with a login, where
//! etcd is spoken to in the clear. Both sync to the same file system. The ratios mean more than the milliseconds.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod etcd;
mod ours;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use cluster::http_client::{ApiClient, Incoming};
use etcd::Etcd;
use ours::{Ours, commit, head};
use tokio::task::JoinSet;

const BYTES: usize = 1024;
const CLIENTS: usize = 32;

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|one| one == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut etcd = Etcd::start();
        let mut ours = Ours::start().await;
        if wanted("latency") {
            latency(&etcd, &ours).await;
        }
        if wanted("throughput") {
            throughput(&etcd, &ours).await;
        }
        if wanted("watchers") {
            for count in [100, 1_000] {
                watchers(&etcd, &ours, count).await;
            }
        }
        if wanted("failover") {
            failover(&mut etcd, &mut ours).await;
        }
        if wanted("catchup") {
            catchup(&mut ours, None).await;
            println!("the same, the member that catches up on a processor of its own, everybody else on another:");
            ours.pin_all(0);
            catchup(&mut ours, Some(1)).await;
        }
    });
}

fn quantile(times: &mut [Duration], at: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * at).round() as usize]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn line(what: &str, theirs: Duration, ours: Duration) {
    println!("{what:<52} etcd {:>8.2} ms   ours {:>8.2} ms   ratio {:.2}", ms(theirs), ms(ours), ms(ours) / ms(theirs));
}

/// One writer, one after the other; blocks of each in turn, so that what the machine does meanwhile hits both.
async fn latency(etcd: &Etcd, ours: &Ours) {
    const BLOCKS: usize = 10;
    const EACH: usize = 100;
    let mut put = etcd::Client::connect(etcd.port(etcd.leader().await)).await.unwrap();
    let client = ours.client(ours.leader().await);
    let mut base = head(&client).await.unwrap().revision;
    let (mut theirs, mut mine) = (Vec::new(), Vec::new());
    for block in 0..=BLOCKS {
        for number in 0..EACH {
            let value = content(number + block * EACH);
            let begun = Instant::now();
            put.put("bench/key", &value).await.unwrap();
            theirs.push(begun.elapsed());
        }
        for number in 0..EACH {
            let value = content(number + block * EACH);
            let begun = Instant::now();
            base = commit(&client, base, "default/bench.txt", &value).await.unwrap();
            mine.push(begun.elapsed());
        }
        if block == 0 {
            // Warm caches, open connections.
            (theirs, mine) = (Vec::new(), Vec::new());
        }
    }
    for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
        line(&format!("sequential commit, {name}"), quantile(&mut theirs, at), quantile(&mut mine, at));
    }
}

fn content(number: usize) -> Vec<u8> {
    let mut content = format!("number {number}\n").into_bytes();
    content.resize(BYTES, b'.');
    content
}

/// Many writers at once; a second of each in turn.
async fn throughput(etcd: &Etcd, ours: &Ours) {
    const ROUNDS: usize = 6;
    let (port, leader) = (etcd.port(etcd.leader().await), ours.leader().await);
    let (mut puts, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        puts.push(etcd::Client::connect(port).await.unwrap());
        clients.push(ours.client(leader));
    }
    let (mut theirs, mut mine) = (0, 0);
    for round in 0..=ROUNDS {
        let (put, committed) = (puts_in_a_second(&puts).await, commits_in_a_second(&clients, round).await);
        // The first second is for warm caches and open connections.
        if round > 0 {
            (theirs, mine) = (theirs + put, mine + committed);
        }
    }
    let rate = |done: usize| done as f64 / ROUNDS as f64;
    println!(
        "{:<52} etcd {:>8.0} /s   ours {:>8.0} /s   ratio {:.2}",
        format!("commits per second, {CLIENTS} clients"),
        rate(theirs),
        rate(mine),
        rate(mine) / rate(theirs)
    );
}

async fn puts_in_a_second(puts: &[etcd::Client]) -> usize {
    let mut tasks = JoinSet::new();
    for (client, put) in puts.iter().enumerate() {
        let mut put = put.clone();
        tasks.spawn(async move {
            let (begun, mut done) = (Instant::now(), 0_usize);
            while begun.elapsed() < Duration::from_secs(1) {
                put.put(&format!("bench/{client}"), &content(done)).await.unwrap();
                done += 1;
            }
            done
        });
    }
    tasks.join_all().await.into_iter().sum()
}

async fn commits_in_a_second(clients: &[ApiClient], round: usize) -> usize {
    let mut tasks = JoinSet::new();
    for (number, client) in clients.iter().enumerate() {
        let client = client.clone();
        tasks.spawn(async move {
            let mut base = head(&client).await.unwrap().revision;
            let (begun, mut done) = (Instant::now(), 0_usize);
            while begun.elapsed() < Duration::from_secs(1) {
                let content = content(round * 1_000_000 + done);
                base = commit(&client, base, &format!("default/c{number}.txt"), &content).await.unwrap();
                done += 1;
            }
            done
        });
    }
    tasks.join_all().await.into_iter().sum()
}

/// From the request until the last of many is told. Every watcher has a connection of its own and is heard in the same way; blocks of each
/// in turn, as for the latency.
async fn watchers(etcd: &Etcd, ours: &Ours, count: usize) {
    const BLOCKS: usize = 10;
    const EACH: usize = 10;
    let (etcd_leader, leader) = (etcd.port(etcd.leader().await), ours.leader().await);
    let (mut watches, mut followers, mut tasks) = (Vec::new(), Vec::new(), JoinSet::new());
    for _ in 0..count {
        watches.push(etcd::Client::connect(etcd_leader).await.unwrap().watch("bench/watched").await);
        let (told, events) = tokio::sync::mpsc::channel(16);
        tasks.spawn(follow(ours.client(leader), told));
        followers.push(events);
    }
    // The first message of each says that it watches.
    heard(&mut watches).await;
    heard(&mut followers).await;
    let mut put = etcd::Client::connect(etcd_leader).await.unwrap();
    let client = ours.client(leader);
    let mut base = head(&client).await.unwrap().revision;
    let (mut theirs, mut mine) = (Vec::new(), Vec::new());
    for block in 0..=BLOCKS {
        for number in 0..EACH {
            let value = content(number + block * EACH);
            let begun = Instant::now();
            put.put("bench/watched", &value).await.unwrap();
            heard(&mut watches).await;
            theirs.push(begun.elapsed());
        }
        for _ in 0..EACH {
            let value = content(usize::try_from(base).unwrap());
            let begun = Instant::now();
            base = commit(&client, base, "default/watched.txt", &value).await.unwrap();
            heard(&mut followers).await;
            mine.push(begun.elapsed());
        }
        if block == 0 {
            (theirs, mine) = (Vec::new(), Vec::new());
        }
    }
    line(&format!("last of {count} watchers told, p50"), quantile(&mut theirs, 0.5), quantile(&mut mine, 0.5));
}

/// Waits until each has heard something.
async fn heard(watches: &mut [tokio::sync::mpsc::Receiver<()>]) {
    for watch in watches {
        watch.recv().await.expect("it still watches");
    }
}

async fn follow(client: ApiClient, told: tokio::sync::mpsc::Sender<()>) {
    let mut events = client.events("/api/v1/repos/default/watch?path=default/watched.txt", None);
    while let Ok(incoming) = events.next().await {
        if matches!(incoming, Incoming::Connected | Incoming::Event(_)) && told.send(()).await.is_err() {
            return;
        }
    }
}

/// From kill -9 of the leader until a write through one of the others is acknowledged.
async fn failover(etcd: &mut Etcd, ours: &mut Ours) {
    const ROUNDS: usize = 7;
    let (mut theirs, mut mine) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let leader = etcd.leader().await;
        let others: Vec<u16> = (0..3).filter(|number| *number != leader).map(|number| etcd.port(number)).collect();
        let begun = Instant::now();
        etcd.kill(leader);
        let mut tries = others.iter().cycle();
        loop {
            let port = *tries.next().expect("endless");
            let attempt = async {
                let mut client = etcd::Client::connect(port).await?;
                client.put("bench/failover", &content(round)).await
            };
            if matches!(tokio::time::timeout(Duration::from_millis(200), attempt).await, Ok(Ok(()))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        theirs.push(begun.elapsed());
        etcd.run(leader);
        tokio::time::sleep(Duration::from_secs(2)).await;

        let leader = ours.leader().await;
        let others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
        let clients: Vec<ApiClient> = others.iter().map(|number| ours.client(*number)).collect();
        let base = head(&clients[0]).await.unwrap().revision;
        let begun = Instant::now();
        ours.kill(leader);
        let mut tries = clients.iter().cycle();
        loop {
            let client = tries.next().expect("endless");
            let value = content(round + usize::try_from(base).unwrap());
            let attempt = commit(client, base, "default/failover.txt", &value);
            if matches!(tokio::time::timeout(Duration::from_millis(200), attempt).await, Ok(Ok(_))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        mine.push(begun.elapsed());
        ours.run(leader);
        ours.ready(leader).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    line("without a leader after kill -9, p50", quantile(&mut theirs, 0.5), quantile(&mut mine, 0.5));
    line("without a leader after kill -9, worst", quantile(&mut theirs, 1.0), quantile(&mut mine, 1.0));
}

/// A node that was away for 10,000 commits. Several times, because few commits fall into one catching up. All of them share one machine, so
/// what the member takes from the leader is more than what it costs the leader to send; pinned to a processor of its own it takes less.
async fn catchup(ours: &mut Ours, processor: Option<usize>) {
    const COMMITS: usize = 10_000;
    const ROUNDS: usize = 6;
    let (mut before, mut without, mut during, mut took) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut starting, mut sending, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let leader = ours.leader().await;
        let away = (leader + 1) % 3;
        let client = ours.client(leader);
        before.extend(commit_times(&client, Duration::from_secs(1), || false).await);
        ours.kill(away);
        fill(ours, leader, COMMITS).await;
        without.extend(commit_times(&client, Duration::from_secs(1), || false).await);
        let target = head(&client).await.unwrap().revision;
        let begun = Instant::now();
        ours.run_on(away, processor);
        let (reached, follower) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), ours.client(away));
        let flag = reached.clone();
        let waiting = tokio::spawn(async move {
            let mut up = None;
            loop {
                match head(&follower).await {
                    Ok(head) if head.revision >= target => break,
                    Ok(_) => up = up.or_else(|| Some(begun.elapsed())),
                    // A problem is an answer, too.
                    Err(error) if error.api().is_some() => up = up.or_else(|| Some(begun.elapsed())),
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
            (up.unwrap_or_else(|| begun.elapsed()), begun.elapsed())
        });
        let stop = || reached.load(std::sync::atomic::Ordering::Relaxed);
        let times = commit_times(&client, Duration::from_secs(60), stop).await;
        let (up, all) = waiting.await.unwrap();
        took.push(all);
        let mut at = Duration::ZERO;
        for time in &times {
            if at < up {
                starting.push(*time)
            } else {
                sending.push(*time)
            }
            slowest.push((*time, at, up));
            at += *time;
        }
        during.extend(times);
        ours.ready(away).await;
        if processor.is_some() {
            ours.pin_all(0);
        }
    }
    let seconds = |at, took: &mut [Duration]| quantile(took, at).as_secs_f64();
    println!(
        "a node that missed {COMMITS} commits has them after {:.1} s, at worst {:.1} s",
        seconds(0.5, &mut took),
        seconds(1.0, &mut took)
    );
    let phases = [
        ("all are there", &mut before),
        ("it is away", &mut without),
        ("it catches up", &mut during),
        ("… it starts", &mut starting),
        ("… it is sent", &mut sending),
    ];
    for (name, times) in phases.into_iter().filter(|(_, times)| !times.is_empty()) {
        let count = times.len();
        println!(
            "commits of the leader while {name:<14} {count:>6}   p50 {:>6.2} ms   p90 {:>6.2} ms   p99 {:>6.2} ms",
            ms(quantile(times, 0.5)),
            ms(quantile(times, 0.9)),
            ms(quantile(times, 0.99))
        );
    }
    slowest.sort_unstable();
    let slowest = slowest.iter().rev().take(12);
    let slowest: Vec<_> =
        slowest.map(|(time, at, up)| format!("{:.0} at {:.0} (up {:.0})", ms(*time), ms(*at), ms(*up))).collect();
    println!("the slowest meanwhile, in ms after its start: {}", slowest.join(", "));
    println!("p99 meanwhile: {:.1} times", ms(quantile(&mut during, 0.99)) / ms(quantile(&mut before, 0.99)));
}

/// So many commits, by all clients together.
async fn fill(ours: &Ours, leader: usize, commits: usize) {
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let client = ours.client(leader);
        tasks.spawn(async move {
            let mut base = head(&client).await.unwrap().revision;
            for round in 0..commits / CLIENTS {
                let path = format!("default/c{number}.txt");
                let content = content(round + usize::try_from(base).unwrap());
                base = surely(&client, base, &path, &content).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Commits; on a machine that is so busy that the leadership moves, again.
async fn surely(client: &ApiClient, base: u64, path: &str, content: &[u8]) -> u64 {
    loop {
        if let Ok(revision) = commit(client, base, path, content).await {
            return revision;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn commit_times(client: &ApiClient, time: Duration, stop: impl Fn() -> bool) -> Vec<Duration> {
    let mut base = head(client).await.unwrap().revision;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time && !stop() {
        let started = Instant::now();
        base = surely(client, base, "default/bench.txt", &content(usize::try_from(base).unwrap())).await;
        times.push(started.elapsed());
    }
    times
}
