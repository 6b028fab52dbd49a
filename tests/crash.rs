//! kill -9 at random moments: no acknowledged commit is lost, none is half-visible.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::api::{ChangeRequest, MultiCommitRequest, MultiCommitResponse, RepoChanges};
use cluster::http_client::{ApiClient, Call};
use support::{Server, ok};

const COMMITS: u64 = 500;
const KILLS: u32 = 20;

/// Small, fast, and the same sequence for the same seed (Steele, Lea, Flood: SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Each commit writes its number to both repositories at once: seeing one without the other would be half a commit.
async fn commit(client: &ApiClient, number: u64) -> Result<MultiCommitResponse, cluster::http_client::ClientError> {
    let part = |path: &str| RepoChanges {
        base: 1.into(),
        changes: vec![ChangeRequest::put(path, format!("{number}\n").into_bytes())],
    };
    let (ours, theirs) = (format!("default/n/{number}"), format!("n/{number}"));
    let repos = BTreeMap::from([("default".to_owned(), part(&ours)), ("global".to_owned(), part(&theirs))]);
    let request = MultiCommitRequest { message: format!("Commit {number}"), repos };
    let call = Call::post("/api/v1/commits")
        .json(&request)?
        .idempotency_key(&format!("crash-{number}"))
        .timeout(Duration::from_secs(5));
    client.send(call).await?.json().await
}

#[test]
fn no_acknowledged_commit_is_lost() {
    let seed = std::env::var("ECCLUSTER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("ECCLUSTER_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut server = Server::start();
    let client = server.client();
    let acknowledged: Arc<Mutex<BTreeMap<u64, MultiCommitResponse>>> = Arc::default();
    let (done, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (acknowledged, done, progress) = (Arc::clone(&acknowledged), Arc::clone(&done), Arc::clone(&progress));
        server.runtime.spawn(async move {
            for number in 1..=COMMITS {
                // The same key until an answer comes: a commit that was applied before the kill is not applied twice.
                let response = loop {
                    match commit(&client, number).await {
                        Ok(response) => break response,
                        Err(error) if error.status().is_some_and(|status| status < 500 && status != 429) => {
                            panic!("commit {number}: {error}")
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                };
                acknowledged.lock().unwrap().insert(number, response);
                progress.store(number, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        })
    };
    for kill in 1..=KILLS {
        // Somewhere in this kill's share of the commits, at a random fraction of one commit's time.
        let share = COMMITS / u64::from(KILLS + 1);
        let wanted = share * u64::from(kill) + random.below(share);
        support::eventually("commits go on", || {
            (progress.load(Ordering::SeqCst) >= wanted || done.load(Ordering::SeqCst)).then_some(())
        });
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        server.kill();
        server.spawn();
    }
    server.runtime.block_on(load).unwrap();
    server.wait_ready();
    let acknowledged = acknowledged.lock().unwrap();
    assert_eq!(acknowledged.len() as u64, COMMITS);
    check(&server, &acknowledged);
    // And once more from disk alone.
    server.kill();
    server.run();
    check(&server, &acknowledged);
}

/// Every acknowledged commit is in the history of both repositories, at the revision that was promised, once.
fn check(server: &Server, acknowledged: &BTreeMap<u64, MultiCommitResponse>) {
    let dir = tempfile::tempdir().unwrap();
    for (repo, prefix) in [("default", "default/n"), ("global", "n")] {
        let clone = dir.path().join(repo);
        ok(server.git(dir.path()).args(["clone", "-q", &server.repo_url(repo)]).arg(&clone));
        ok(server.git(&clone).args(["fsck", "--strict", "--no-dangling"]));
        let log = ok(server.git(&clone).args(["log", "--format=%H %s"]));
        let history: BTreeMap<&str, &str> = log.lines().filter_map(|line| line.split_once(' ')).collect();
        for (number, response) in acknowledged {
            let subject = format!("Commit {number}");
            assert_eq!(history.get(response.repos[repo].commit.as_str()).copied(), Some(subject.as_str()), "{repo}");
            assert_eq!(
                std::fs::read_to_string(clone.join(prefix).join(number.to_string())).unwrap(),
                format!("{number}\n")
            );
        }
        let count = history.values().filter(|subject| subject.starts_with("Commit ")).count();
        assert_eq!(count, acknowledged.len(), "{repo} has commits twice");
        let revisions: std::collections::BTreeSet<u64> =
            acknowledged.values().map(|response| response.repos[repo].revision).collect();
        assert_eq!(revisions.len(), acknowledged.len(), "{repo} has used a revision twice");
    }
}
