//! Watching over real connections and real restarts: `eccfg watch --exec`, long polls and event streams.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cluster::api::{ChangeRequest, CommitRequest, CommitResponse, WatchEvent};
use cluster::http_client::{ApiClient, Call, Incoming};
use support::{Server, eventually};

/// A running `eccfg watch`.
struct Watch {
    child: Child,
    errors: PathBuf,
}

impl Watch {
    fn start(server: &Server, name: &str, arguments: &[&str]) -> Watch {
        let errors = server.dir.path().join(format!("{name}.err"));
        let mut eccfg = server.eccfg(&server.dir.path().join("nowhere"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&errors).unwrap();
        eccfg
            .env_remove("ECCFG_WC")
            .current_dir(server.dir.path())
            .arg("watch")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log);
        Watch { child: eccfg.spawn().unwrap(), errors }
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.errors.display(), self.errors());
        }
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What the command of a watch writes about a commit.
fn line(commit: &CommitResponse) -> String {
    format!("default {} {}", commit.revision, commit.commit)
}

const WRITE: &str = "echo $EC_REPO $EC_REVISION $EC_COMMIT >> done";

#[test]
fn a_command_runs_once_per_matching_revision_whatever_happens_to_the_server() {
    let mut server = Server::start();
    let done = server.dir.path().join("done");
    let start = server.head("default").revision.to_string();
    let failing = format!("{WRITE}; test -e good || {{ echo 'no good' >&2; exit 3; }}");
    let watch = Watch::start(
        &server,
        "watch",
        &["--repo", "default", "--path", "default/mail/**", "--after", &start, "--exec", &failing],
    );
    let commit = |server: &Server, path: &str| server.commit("default", "Change", &[(path, path)]).unwrap();
    let mut wanted = Vec::new();

    // One that fails is reported, and the next ones follow.
    let first = commit(&server, "default/mail/a");
    wanted.push(line(&first));
    eventually("the failure is reported", || {
        watch.errors().contains(&format!("at revision {}: the command ended with", first.revision)).then_some(())
    });
    assert!(watch.errors().contains("no good"), "{}", watch.errors());
    std::fs::write(server.dir.path().join("good"), "").unwrap();
    commit(&server, "default/web/a");
    wanted.push(line(&commit(&server, "default/mail/deep/b")));
    commit(&server, "default/mail.conf");
    server.commit("global", "Change", &[("default/mail/x", "another repository")]).unwrap();
    wanted.push(line(&commit(&server, "default/mail/c")));
    eventually("all of them", || (lines(&done).len() >= wanted.len()).then_some(()));

    // The server goes: what it acknowledged before and what the next one takes arrives once, in order.
    wanted.push(line(&commit(&server, "default/mail/d")));
    server.kill();
    eventually("the loss is told", || watch.errors().contains("the server is lost").then_some(()));
    server.run();
    for number in 0..10 {
        wanted.push(line(&commit(&server, &format!("default/mail/after-{number}"))));
        commit(&server, &format!("default/other/{number}"));
    }
    eventually("all of them", || (lines(&done).len() >= wanted.len()).then_some(()));
    assert!(watch.errors().contains("a server answers again"), "{}", watch.errors());

    // One that has seen everything by now would have seen a second time too: the end is marked by a last revision.
    wanted.push(line(&commit(&server, "default/mail/last")));
    eventually("the last", || (lines(&done).last() == wanted.last()).then_some(()));
    assert_eq!(lines(&done), wanted);
    assert_eq!(watch.errors().matches("the command ended with").count(), 1);
}

/// kill -9 between a command and the note that it is done repeats that one command; nothing is passed over.
#[test]
fn a_watch_with_a_state_file_goes_on_where_it_was() {
    let server = Server::start();
    let done = server.dir.path().join("done");
    let slow = format!("{WRITE}; touch held; while test -e hold; do sleep 0.01; done");
    let arguments = ["--repo", "default", "--state", "state", "--exec", slow.as_str()];
    let watch = Watch::start(&server, "watch", &arguments);
    let state = server.dir.path().join("state");
    eventually("it has a place", || state.exists().then_some(()));
    let commit = |number: u32| server.commit("default", "Change", &[("default/x", &number.to_string())]).unwrap();
    let first = commit(1);
    eventually("it is done", || {
        let text = std::fs::read_to_string(&state).ok()?;
        text.contains(&format!("\"revision\":{}", first.revision)).then_some(())
    });
    std::fs::write(server.dir.path().join("hold"), "").unwrap();
    std::fs::remove_file(server.dir.path().join("held")).unwrap();
    let cut = commit(2);
    eventually("the second runs", || server.dir.path().join("held").exists().then_some(()));
    watch.kill();
    let while_away = commit(3);
    std::fs::remove_file(server.dir.path().join("hold")).unwrap();
    let _watch = Watch::start(&server, "watch again", &arguments);
    let last = commit(4);
    let wanted = [&first, &cut, &cut, &while_away, &last].map(line);
    eventually("all of them", || (lines(&done).len() >= wanted.len()).then_some(()));
    assert_eq!(lines(&done), wanted);
}

async fn put(client: &ApiClient, path: String, content: String) -> u64 {
    let base: cluster::api::Head = client.get_json("/api/v1/repos/default/head").await.unwrap();
    let changes = vec![ChangeRequest::put(path, content.into_bytes())];
    let request = CommitRequest { base: base.revision.into(), message: "Change".into(), changes };
    let response: CommitResponse = client.post_json("/api/v1/repos/default/commits", &request).await.unwrap();
    response.revision
}

#[test]
fn a_long_poll_ends_with_304_or_with_the_first_match() {
    let server = Server::start();
    let after = server.head("default").revision;
    let client = server.client();
    server.runtime.block_on(async {
        let path = format!("/api/v1/repos/default/watch?after={after}&path=default/mail/**");
        let begun = Instant::now();
        let poll = Call::get(&path).header("prefer", "wait=1").timeout(Duration::from_secs(30));
        let other = put(&client, "default/other".into(), "other".into());
        let (reply, _) = tokio::join!(client.send(poll), other);
        assert_eq!(reply.unwrap().status().as_u16(), 304);
        assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait: {:?}", begun.elapsed());
        // What happened before is answered at once, and what happens meanwhile as soon as it does.
        let first = put(&client, "default/mail/a".into(), "a".into()).await;
        put(&client, "default/mail/b".into(), "b".into()).await;
        let wait = Duration::from_secs(50);
        let event: WatchEvent = client.long_poll(&path, wait).await.unwrap().expect("an event");
        assert_eq!((event.revision, event.paths), (first, vec!["default/mail/a".to_owned()]));
        let path = format!("/api/v1/repos/default/watch?after={}&path=default/mail/**", first + 1);
        let begun = Instant::now();
        let (event, third) = tokio::join!(
            client.long_poll::<WatchEvent>(&path, wait),
            put(&client, "default/mail/c".into(), "c".into())
        );
        assert_eq!(event.unwrap().expect("an event").revision, third);
        assert!(begun.elapsed() < wait, "it was only the end of the wait");
    });
}

/// Streams that are cut and resumed while others commit, and while the server is killed, see every revision once, in order.
#[test]
fn a_stream_resumed_under_concurrent_commits_has_no_gap() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 20;
    let mut server = Server::start();
    let after = server.head("default").revision;
    let client = server.client();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let client = client.clone();
            server.runtime.spawn(async move {
                for number in 0..EACH {
                    let path = format!("default/w/{writer}/{number}");
                    let changes = vec![ChangeRequest::put(path, b"x".to_vec())];
                    let request = CommitRequest { base: after.into(), message: "Change".into(), changes };
                    loop {
                        // The same key until an answer comes: applied once, whatever becomes of the answer.
                        let call = Call::post("/api/v1/repos/default/commits")
                            .json(&request)
                            .unwrap()
                            .idempotency_key(&format!("{writer}-{number}"))
                            .timeout(Duration::from_secs(5));
                        match client.send(call).await {
                            Ok(_) => break,
                            Err(error) => assert!(error.is_temporary(), "{error}"),
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            })
        })
        .collect();
    let last = after + WRITERS * EACH;
    let (sender, seen) = std::sync::mpsc::channel();
    let readers: Vec<_> = (1..=3)
        .map(|cut: usize| {
            let (client, sender) = (client.clone(), sender.clone());
            server.runtime.spawn(async move {
                let mut revisions: Vec<u64> = Vec::new();
                // Each of the readers lets go of its stream after another number of events.
                while revisions.last() != Some(&last) {
                    let id = revisions.last().copied().unwrap_or(after).to_string();
                    let mut stream = client.events("/api/v1/repos/default/watch", Some(id));
                    let mut events = 0;
                    while events < cut * 3 && revisions.last() != Some(&last) {
                        if let Incoming::Event(event) = stream.next().await.unwrap() {
                            let told: WatchEvent = serde_json::from_str(&event.data).unwrap();
                            assert_eq!(event.id, Some(told.revision.to_string()));
                            revisions.push(told.revision);
                            let _ = sender.send(told.revision);
                            events += 1;
                        }
                    }
                }
                revisions
            })
        })
        .collect();
    // In the middle of it, by what the readers have seen.
    let middle = after + WRITERS * EACH / 2;
    while seen.recv_timeout(support::DEADLINE).expect("events go on") < middle {}
    server.kill();
    server.run();
    let wanted: Vec<u64> = (after + 1..=last).collect();
    server.runtime.block_on(async {
        for writer in writers {
            writer.await.unwrap();
        }
        for reader in readers {
            let revisions = tokio::time::timeout(support::DEADLINE, reader).await.expect("in time").unwrap();
            assert_eq!(revisions, wanted);
        }
    });
}
