//! What clients notice of what happens to machines: nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster::api::{ChangeRequest, CommitRequest, CommitResponse, CreateRepo, Head, RepoInfo, WatchEvent};
use cluster::http_client::Incoming;

use crate::lab::{Lab, done, passes, possible};
use crate::support::eventually;

const COMMITS: &str = "/api/v1/repos/default/commits";

fn request(base: u64, text: &str) -> CommitRequest {
    let changes = vec![ChangeRequest::put("default/f.txt", text.to_owned().into_bytes())];
    CommitRequest { base: base.into(), message: text.to_owned(), changes }
}

/// Asks one machine under a key until it answers.
fn commit(lab: &Lab, name: &str, request: &CommitRequest, key: &str) -> CommitResponse {
    eventually(&format!("an answer of {name}"), || {
        lab.client_of(&[name], |client| async move { client.post_json_idempotent(COMMITS, request, key).await }).ok()
    })
}

#[test]
fn a_request_under_one_key_is_one_commit_wherever_and_whenever_it_is_repeated() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let names = ["n1", "n2", "n3"];
    let head = lab.head_at("n1", "default").unwrap();
    let first = request(head.revision, "once");
    // At the same moment through all of them …
    let answers: Vec<CommitResponse> = std::thread::scope(|scope| {
        let asked = names.map(|name| {
            scope.spawn({
                let (lab, first) = (&lab, &first);
                move || commit(lab, name, first, "once")
            })
        });
        asked.map(|asked| asked.join().unwrap()).into()
    });
    assert!(answers.iter().all(|answer| answer.revision == head.revision + 1), "{answers:?}");
    // … after the leader has died in the middle of another one, whose fate nobody knows …
    let leader = lab.leader();
    let others: Vec<&str> = names.into_iter().filter(|name| *name != leader).collect();
    let second = request(head.revision + 1, "twice");
    std::thread::scope(|scope| {
        let access = lab.access(&[&leader]);
        let second = &second;
        scope.spawn(move || {
            access.run(|client| async move {
                // The answer, if one comes, is thrown away: the client knows nothing.
                let asked = client.post_json_idempotent::<_, CommitResponse>(COMMITS, second, "twice");
                let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
            });
        });
        lab.kill(&leader);
    });
    let answer = commit(&lab, others[0], &second, "twice");
    assert_eq!(answer.revision, head.revision + 2);
    // … and after everybody was away.
    lab.start(&leader);
    for name in &others {
        lab.kill(name);
        lab.start(name);
    }
    for name in names {
        lab.wait_ready(name);
        assert_eq!(commit(&lab, name, &first, "once"), answers[0]);
        assert_eq!(commit(&lab, name, &second, "twice"), answer);
        assert_eq!(lab.head_at(name, "default").unwrap().revision, head.revision + 2);
    }
}

#[test]
fn who_watches_a_dying_machine_goes_on_at_another() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let first = lab.head_at("n3", "default").unwrap().revision;
    let last = first + 40;
    // Both speak to n3 first; a program runs for each revision, and a stream is read.
    let order = ["n3", "n1", "n2"];
    let seen = lab.scratch("seen");
    let command = format!("echo $EC_REVISION $EC_COMMIT >> {}", seen.display());
    let count = (last - first).to_string();
    let args = ["watch", "--repo", "default", "--after", &first.to_string(), "--count", &count, "--exec", &command];
    let mut watch = lab.eccfg_of(&order, &args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let access = lab.access(&order);
    let stream = std::thread::spawn(move || {
        access.run(|client| async move {
            let mut events =
                client.events(&format!("/api/v1/repos/default/watch?after={first}"), Some(first.to_string()));
            let mut seen = Vec::new();
            while seen.len() < usize::try_from(last - first).unwrap() {
                if let Incoming::Event(event) = events.next().await.unwrap() {
                    let event: WatchEvent = serde_json::from_str(&event.data).unwrap();
                    seen.push((event.revision, event.commit));
                }
            }
            seen
        })
    });
    let mut head = Head { revision: first, commit: String::new() };
    let mut log = BTreeMap::new();
    for number in 0..last - first {
        match number {
            8 => lab.kill("n3"),
            16 => lab.start("n3"),
            // Whoever went on at n1 has to move once more.
            24 => {
                lab.wait_ready("n3");
                lab.kill("n1");
            }
            _ => {}
        }
        let name = if number < 24 { "n1" } else { "n2" };
        let answer = commit(&lab, name, &request(head.revision, &format!("number {number}")), &format!("key {number}"));
        head = Head { revision: answer.revision, commit: answer.commit };
        log.insert(head.revision, head.commit.clone());
    }
    let expected: Vec<(u64, String)> = log.into_iter().collect();
    assert_eq!(expected.len(), 40);
    assert_eq!(stream.join().unwrap(), expected);
    assert!(eventually("the watch has ended", || watch.try_wait().unwrap()).success());
    let lines: String = expected.iter().map(|(revision, commit)| format!("{revision} {commit}\n")).collect();
    assert_eq!(std::fs::read_to_string(seen).unwrap(), lines);
}

/// A machine that clients reach and the other machines do not.
#[test]
fn a_machine_that_is_cut_off_sends_its_clients_on() {
    if !possible() {
        return;
    }
    let lab = Lab::cluster(3);
    let leader = lab.leader();
    let alone = ["n1", "n2", "n3"].into_iter().find(|name| *name != leader).unwrap();
    let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|name| *name != alone).collect();
    let order = [alone, others[0], others[1]];
    let first = lab.head_at(alone, "default").unwrap().revision;
    let access = lab.access(&order);
    let (connected, is_connected) = std::sync::mpsc::channel();
    let stream = std::thread::spawn(move || {
        access.run(|client| async move {
            let mut events = client.events("/api/v1/repos/default/watch", Some(first.to_string()));
            loop {
                match events.next().await.unwrap() {
                    Incoming::Connected => connected.send(()).unwrap(),
                    Incoming::Event(event) => return serde_json::from_str::<WatchEvent>(&event.data).unwrap(),
                    Incoming::Lost(_) => {}
                }
            }
        })
    });
    is_connected.recv().unwrap();

    for other in &others {
        lab.cut(alone, other);
        lab.cut(other, alone);
    }
    // At once, before anybody has noticed. The request has a key, so others may be asked whatever the first one knows.
    let create = ["subcluster", "create", "east"];
    // On a machine under load the others may be electing at that moment.
    let created = eventually("a creation", || {
        Some(lab.eccfg_of(&order, &create).output().unwrap()).filter(|output| !passes(output))
    });
    assert!(matches!(created.status.code(), Some(0 | 3)), "{created:?}");
    let again = lab.eccfg_of(&others, &create).output().unwrap();
    assert_eq!(again.status.code(), Some(3), "it was created once: {again:?}");
    // Later it knows that nobody has got the request: without a key, too, the next one is asked.
    let wanted = CreateRepo { name: "west".into() };
    let plain = |names: &[&str]| {
        lab.client_of(names, |client| {
            let wanted = &wanted;
            async move { client.post_json::<_, RepoInfo>("/api/v1/repos", wanted).await }
        })
    };
    eventually("it says that nothing was done", || {
        let error = plain(&[alone]).unwrap_err();
        (error.status() == Some(503) && error.is_certainly_not_done()).then_some(())
    });
    assert_eq!(plain(&order).unwrap().revision, 1);
    assert!(!lab.is_ready(alone));
    // It does not say no to what it cannot know.
    let token = done("a token", || lab.eccfg_of(&others, &["node", "token"]));
    let mut enroll = lab.eccfg_of(&order, &["node", "enroll", "--node", "web1", "--token", token.trim(), "--identity"]);
    enroll.arg(lab.scratch("identity-web1"));
    let enrolled = eventually("an enrolment", || Some(enroll.output().unwrap()).filter(|output| !passes(output)));
    assert!(enrolled.status.success(), "{enrolled:?}");

    // Who waits there for news gets it elsewhere.
    let head = commit(&lab, others[0], &request(first, "news"), "news");
    let event = stream.join().unwrap();
    assert_eq!((event.revision, event.commit), (head.revision, head.commit));
    for other in &others {
        lab.heal(alone, other);
        lab.heal(other, alone);
    }
    eventually("it is back", || lab.head_at(alone, "west").ok().filter(|_| lab.is_ready(alone)));
}

#[test]
fn wrong_clocks_decide_nothing() {
    if !possible() {
        return;
    }
    // A month ahead, right, and twenty hours behind: certificates still hold, nothing else looks at these clocks.
    let mut lab = Lab::cluster(1);
    for (name, clock) in [("n2", "+30d"), ("n3", "-20h")] {
        let token = lab.token();
        lab.add(name);
        lab.machine_mut(name).clock = Some(clock);
        lab.join_with(name, &token, &[]);
        lab.start(name);
        lab.wait_ready(name);
    }
    lab.wait_voters(3);
    let token_of = |name: &str, ttl: &str| {
        let token = || lab.eccfg_of(&[name], &["node", "token", "--ttl", ttl]);
        done("a token", token).trim().to_owned()
    };
    let enroll = |server: &str, token: &str, node: &str| {
        let identity = lab.scratch(&format!("identity-{node}"));
        let args = ["node", "enroll", "--node", node, "--token", token, "--identity"];
        let mut command = lab.eccfg_of(&[server], &args);
        command.arg(identity);
        command
    };
    for leader in ["n2", "n3"] {
        lab.done(&["subcluster", "override", "default", leader]);
        eventually("the leadership moves", || (lab.leader() == leader).then_some(()));
        // Made where it is next month, used where it is yesterday, and the other way round.
        let (long, short) = (token_of("n2", "1h"), token_of("n3", "2s"));
        let made = Instant::now();
        done("an enrolment", || enroll("n3", &long, &format!("late-{leader}")));
        let key = format!("key {leader}");
        let head = lab.head_at("n1", "default").unwrap();
        let answer = commit(&lab, "n2", &request(head.revision, &key), &key);
        assert_eq!(commit(&lab, "n3", &request(head.revision, &key), &key), answer);
        // What ends does so by the cluster's own clock, at every machine, and not before.
        eventually("two seconds are over", || (made.elapsed() > Duration::from_secs(3)).then_some(()));
        for server in ["n1", "n2", "n3"] {
            let refused = eventually("an answer", || {
                Some(enroll(server, &short, "nobody").output().unwrap()).filter(|output| !passes(output))
            });
            let words = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && words.contains("has ended"), "{server}: {words}");
        }
        lab.done(&["subcluster", "resume", "default", leader]);
    }
}
