//! Growing, shrinking, replacing; and who leads.

use cluster::api::{Head, NodeRole};
use nix::sys::signal::Signal;

use crate::lab::{Lab, possible};
use crate::support::eventually;

/// Commits one file through these machines and gives the head.
pub fn commit(lab: &Lab, names: &[&str], text: &str) -> Head {
    commit_file(lab, names, text, text.as_bytes().to_vec())
}

fn commit_file(lab: &Lab, names: &[&str], text: &str, content: Vec<u8>) -> Head {
    let base = lab.client_of(names, |client| async move {
        client.get_json::<Head>("/api/v1/repos/default/head").await.unwrap().revision
    });
    let changes = vec![cluster::api::ChangeRequest::put("default/f.txt", content)];
    let request = cluster::api::CommitRequest { base: base.into(), message: text.to_owned(), changes };
    let (request, key) = (&request, &format!("{text}-{base}"));
    // Again under the same key, where a busy machine has lost its leader for a moment.
    eventually(text, || {
        let asked = lab.client_of(names, |client| async move {
            let path = "/api/v1/repos/default/commits";
            client.post_json_idempotent::<_, cluster::api::CommitResponse>(path, request, key).await
        });
        match asked {
            Ok(answer) => Some(Head { revision: answer.revision, commit: answer.commit }),
            Err(error) if error.api().is_some_and(|api| api.status < 500) => panic!("{text}: {error}"),
            Err(_) => None,
        }
    })
}

/// Waits until a machine has this head.
pub fn has(lab: &Lab, name: &str, head: &Head) {
    eventually(&format!("{name} at r{}", head.revision), || {
        (lab.head_at(name, "default").ok()?.revision >= head.revision).then_some(())
    });
    assert_eq!(&lab.head_at(name, "default").unwrap(), head, "{name}");
}

fn roles(lab: &Lab) -> Vec<(String, NodeRole)> {
    let mut roles: Vec<_> =
        lab.cluster_info().unwrap().members.into_iter().map(|member| (member.node, member.role)).collect();
    roles.sort_by(|a, b| a.0.cmp(&b.0));
    roles
}

#[test]
fn losing_a_minority_loses_nothing_and_a_write_goes_anywhere() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let names = ["n1", "n2", "n3"];
    for name in names {
        let head = commit(&lab, &[name], &format!("through {name}"));
        // What was written through one machine is there on the next read of the same one, and soon everywhere.
        assert_eq!(lab.head_at(name, "default").unwrap(), head);
        names.iter().for_each(|other| has(&lab, other, &head));
    }
    // A push through one machine, a fetch through another: the fetch sees it.
    let repo = lab.scratch("push");
    std::fs::create_dir_all(&repo).unwrap();
    let ok = |args: &[&str]| {
        let command = || {
            let mut git = lab.git(&repo);
            git.args(args);
            git
        };
        crate::lab::done(&args.join(" "), command)
    };
    ok(&["clone", "-q", &lab.repo_url("n1", "default"), "."]);
    for (number, to, from) in [(0, "n1", "n2"), (1, "n2", "n3"), (2, "n3", "n1")] {
        std::fs::write(repo.join("pushed"), format!("{number}")).unwrap();
        ok(&["add", "-A"]);
        ok(&["commit", "-q", "-m", "push"]);
        ok(&["push", "-q", &lab.repo_url(to, "default"), "HEAD:main"]);
        let seen = ok(&["ls-remote", &lab.repo_url(from, "default"), "refs/heads/main"]);
        assert_eq!(seen.split_whitespace().next().unwrap(), ok(&["rev-parse", "HEAD"]).trim(), "{to} then {from}");
    }

    let leader = lab.leader();
    lab.kill(&leader);
    let rest: Vec<String> = lab.running().into_iter().map(str::to_owned).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let head = commit(&lab, &rest, "without the leader");
    eventually("another leader", || (lab.leader() != leader).then_some(()));
    // Two of three gone: nothing is acknowledged, and nothing is answered as if it were linearizable.
    lab.signal(rest[1], Signal::SIGSTOP);
    let refused = lab.client_of(&[rest[0]], |client| async move {
        let request = cluster::api::CommitRequest {
            base: head.revision.into(),
            message: "alone".into(),
            changes: vec![cluster::api::ChangeRequest::put("default/alone.txt", b"x".to_vec())],
        };
        let answer: Result<cluster::api::CommitResponse, _> =
            client.post_json_idempotent("/api/v1/repos/default/commits", &request, "alone").await;
        answer.is_err()
    });
    assert!(refused, "a minority acknowledged a commit");
    lab.signal(rest[1], Signal::SIGCONT);
    lab.start(&leader);
    lab.wait_ready(&leader);
    let head = commit(&lab, &rest, "together again");
    has(&lab, &leader, &head);
}

#[test]
fn a_cluster_grows_shrinks_and_replaces_its_machines() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(1);
    let first = commit(&lab, &["n1"], "alone");
    for (count, name) in [(2, "n2"), (3, "n3"), (4, "n4"), (5, "n5")] {
        lab.join(name, &[]);
        lab.wait_voters(count);
        has(&lab, name, &first);
    }
    lab.done(&["node", "demote", "n5"]);
    lab.done(&["node", "demote", "n5"]);
    lab.wait_voters(4);
    assert_eq!(roles(&lab).iter().filter(|(_, role)| *role == NodeRole::Learner).count(), 1);
    let head = commit(&lab, &["n5"], "through the learner");
    has(&lab, "n5", &head);
    lab.done(&["node", "promote", "n5"]);
    lab.wait_voters(5);

    // A machine burns down; a new one takes its name.
    lab.scrap("n2");
    let list = String::from_utf8(lab.eccfg(&["node", "list"]).stdout).unwrap();
    assert!(list.lines().any(|line| line.starts_with("n2") && line.contains("does not answer")), "{list}");
    lab.done(&["node", "remove", "n2"]);
    let again = lab.eccfg(&["node", "remove", "n2"]);
    assert_eq!(again.status.code(), Some(1), "said again, it harms nothing");
    lab.join("n2", &[]);
    lab.wait_voters(5);
    has(&lab, "n2", &head);
    // The same without sending it away first.
    lab.burn("n3");
    let token = lab.replacement("n3");
    lab.join_with("n3", &token, &[]);
    lab.start("n3");
    lab.wait_ready("n3");
    lab.wait_vote("n3");
    has(&lab, "n3", &head);

    for (left, name) in [(4, "n5"), (3, "n4"), (2, "n3"), (1, "n2")] {
        // One is away when it is removed, and comes back.
        let away = name == "n4";
        if away {
            lab.kill(name);
        }
        lab.done(&["node", "remove", name]);
        lab.wait_voters(left);
        if away {
            lab.start(name);
        }
        eventually("whoever is removed says so", || {
            let ready = lab.client_of(&[name], |client| async move { client.get_bytes("/readyz", 1 << 16).await });
            ready.err().filter(|error| error.to_string().contains("no member of the cluster any more"))
        });
        assert!(lab.head_at(name, "default").is_err(), "it serves nothing");
        crate::support::assert_success(&lab.eccfg_of(&[name, "n1"], &["log", "--repo", "default"]).output().unwrap());
        lab.scrap(name);
        commit(&lab, &["n1"], &format!("without {name}"));
    }
    assert_eq!(roles(&lab), [("n1".to_owned(), NodeRole::Voter)]);
}

#[test]
fn a_token_is_good_for_one_node_and_a_join_can_be_repeated() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(1);
    let token = lab.token();
    lab.add("n2");
    lab.join_with("n2", &token, &["--learner"]);
    // Said again, it is refused and harms nothing: the directory holds a member already.
    let again = lab.try_join("n2", &token, &["--learner"]);
    assert_eq!(again.status.code(), Some(3), "{}", String::from_utf8_lossy(&again.stderr));
    lab.add("n3");
    let refused = lab.try_join("n3", &token, &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    lab.start("n2");
    lab.wait_ready("n2");
    let members = roles(&lab);
    assert_eq!(members, [("n1".to_owned(), NodeRole::Voter), ("n2".to_owned(), NodeRole::Learner)]);
}

#[test]
fn the_leadership_returns_to_the_node_that_it_is_pinned_to() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let leader = lab.leader();
    let pinned = ["n1", "n2", "n3"].into_iter().find(|name| *name != leader).unwrap();
    lab.done(&["subcluster", "override", "default", pinned]);
    eventually("the leadership moves", || (lab.leader() == pinned).then_some(()));
    let other = lab.eccfg(&["subcluster", "override", "default", &leader]);
    assert_eq!(other.status.code(), Some(3), "{}", String::from_utf8_lossy(&other.stderr));

    lab.kill(pinned);
    eventually("another leader", || (lab.leader() != pinned).then_some(()));
    lab.start(pinned);
    lab.wait_ready(pinned);
    eventually("the leadership returns", || (lab.leader() == pinned).then_some(()));

    // All machines go off and on: the pin is remembered.
    for name in ["n1", "n2", "n3"] {
        lab.kill(name);
    }
    for name in ["n1", "n2", "n3"] {
        lab.start(name);
    }
    // Somebody else may be elected first, and be asked before the leadership has returned.
    eventually("the leadership is where it is pinned", || {
        let master = lab.eccfg(&["subcluster", "master", "default"]);
        (String::from_utf8_lossy(&master.stdout).trim() == pinned).then_some(())
    });
    lab.done(&["subcluster", "resume", "default", pinned]);
}

#[test]
fn a_machine_that_moved_is_found_by_the_others() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    lab.join("n4", &["--learner"]);
    // A voter, the leader among them, and a learner: each comes back at an address that nobody was told.
    let leader = lab.leader();
    for name in [leader.as_str(), "n4"] {
        lab.terminate(name);
        lab.renumber(name);
        lab.start(name);
        lab.wait_ready(name);
        let address = format!("{}:2027", lab.machine(name).address);
        eventually("the cluster knows the address", || {
            let info = lab.cluster_info().ok()?;
            info.members.iter().any(|member| member.node == name && member.address == address).then_some(())
        });
        // Clients check names: the certificate was renewed for this one.
        let head = commit(&lab, &[name], &format!("through {name} where it is now"));
        for other in ["n1", "n2", "n3", "n4"] {
            has(&lab, other, &head);
        }
    }
}

/// All machines are carried elsewhere: none finds another where it was, until one of them is told.
#[test]
fn machines_that_all_moved_find_each_other_when_one_is_told() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let head = commit(&lab, &["n1"], "before the move");
    let names = ["n1", "n2", "n3"];
    // The one that is told shall not be the one that leads, and has to hand on what it knows.
    lab.done(&["subcluster", "override", "default", "n1"]);
    names.iter().for_each(|name| lab.kill(name));
    names.iter().for_each(|name| lab.renumber(name));
    let peers = ["n1", "n2"].map(|name| format!("{name}={}:2027", lab.machine(name).address));
    let options: Vec<&str> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
    lab.start("n1");
    lab.start_with("n3", &options);
    eventually("n1 leads", || (lab.cluster_info().ok()?.leader? == "n1").then_some(()));
    // It comes when the others have a leader already, who looks for it where it was.
    lab.start("n2");
    names.iter().for_each(|name| lab.wait_ready(name));
    let known = |lab: &Lab| {
        let info = lab.cluster_info().ok()?;
        let is = |name: &str| format!("{}:2027", lab.machine(name).address);
        info.members.iter().all(|member| member.address == is(&member.node)).then_some(())
    };
    eventually("the cluster knows all addresses", || known(&lab));
    // It is remembered: the next time nobody has to be told.
    names.iter().for_each(|name| lab.kill(name));
    names.iter().for_each(|name| lab.start(name));
    names.iter().for_each(|name| lab.wait_ready(name));
    assert_eq!(lab.head_at("n3", "default").unwrap().revision, head.revision);
    let head = commit(&lab, &["n3"], "after the move");
    names.iter().for_each(|name| has(&lab, name, &head));
    lab.done(&["subcluster", "resume", "default", "n1"]);
    // The last voter stays, and the words say why.
    for name in ["n2", "n3"] {
        lab.done(&["node", "demote", name]);
        lab.wait_role(name, NodeRole::Learner);
    }
    let refused = lab.eccfg(&["node", "demote", "n1"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{words}");
    assert!(words.starts_with("error: n1 is the last voter"), "{words}");
}

#[test]
fn a_full_disk_makes_a_node_read_only_and_keeps_the_leadership_away() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(2);
    let token = lab.token();
    lab.add("n3");
    lab.mount("n3", 320);
    lab.join_with("n3", &token, &[]);
    lab.start("n3");
    lab.wait_ready("n3");
    lab.wait_voters(3);
    lab.done(&["subcluster", "override", "default", "n3"]);
    eventually("the leadership moves", || (lab.leader() == "n3").then_some(()));

    lab.fill("n3");
    let others = ["n1", "n2"];
    eventually("the leadership leaves", || (lab.cluster_info().ok()?.leader? != "n3").then_some(()));
    let term = lab.cluster_info().unwrap().term;
    // Commits go on, and nobody hands the leadership back: the term would tell.
    let heads: Vec<Head> = (0..30).map(|number| commit(&lab, &others, &format!("while full {number}"))).collect();
    let info = lab.client_of(&others, |client| async move {
        client.get_json::<cluster::api::ClusterInfo>("/api/v1/cluster").await.unwrap()
    });
    assert_eq!((info.term, info.leader.as_deref() == Some("n3")), (term, false));
    let said = lab.client_of(&["n3"], |client| async move {
        client.get_json::<cluster::api::ClusterInfo>("/api/v1/cluster").await.unwrap().read_only
    });
    assert!(said.is_some_and(|why| why.contains("the disk is full")));
    assert!(!lab.is_ready("n3") && lab.runs("n3"));
    let list = String::from_utf8(lab.eccfg_of(&others, &["node", "list"]).output().unwrap().stdout).unwrap();
    let line = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("n3").contains("read-only: the disk is full") && list.contains("leads"), "{list}");

    lab.free("n3");
    lab.wait_ready("n3");
    has(&lab, "n3", &heads[29]);
    eventually("the leadership returns", || (lab.leader() == "n3").then_some(()));

    // With hardly a reserve the disk is full before anybody has looked: a write fails.
    lab.done(&["subcluster", "resume", "default", "n3"]);
    lab.terminate("n3");
    let path = lab.machine("n3").data().join("ecconfigd.toml");
    let settings = std::fs::read_to_string(&path).unwrap() + "\n[limits]\nmin_free_bytes = \"1MiB\"\n";
    std::fs::write(&path, settings).unwrap();
    lab.start("n3");
    lab.wait_ready("n3");
    lab.fill_but("n3", 2 << 20);
    // It does not compress.
    let mut seed = 88_172_645_463_325_252_u64;
    let noise: String = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        format!("{seed:016x}")
    })
    .take(1 << 19)
    .collect();
    let head = commit_file(&lab, &others, "more than there is room for", noise.into_bytes());
    eventually("n3 notices", || lab.machine("n3").log().contains("a write failed").then_some(()));
    let before = lab.head_at("n3", "default").unwrap();
    assert!(before.revision < head.revision && !lab.is_ready("n3") && lab.runs("n3"));
    lab.free("n3");
    lab.wait_ready("n3");
    has(&lab, "n3", &head);
    assert!(lab.runs("n3"), "the same process");
}

/// With a dead machine beside it, one that is removed is needed until the dead one is back: who removes it has to know before it is switched off.
#[test]
fn a_removal_ends_when_the_machine_may_be_switched_off() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    let leader = lab.leader();
    let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|name| *name != leader).collect();
    let (dead, leaving) = (others[0], others[1]);
    lab.kill(dead);
    let remove = |wait: &str| lab.eccfg_of(&[&leader], &["node", "remove", leaving, "--wait", wait]).output().unwrap();
    for again in ["1s", "2s"] {
        let output = remove(again);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("cannot go on without this node's vote"), "{words}");
    }
    let shows = |lab: &Lab| lab.cluster_info().unwrap().members.iter().any(|member| member.node == leaving);
    assert!(shows(&lab));
    lab.start(dead);
    lab.wait_voters(2);
    assert!(!shows(&lab));
    lab.kill(leaving);
    lab.wait_ready(dead);
    let head = commit(&lab, &[&leader], "without it");
    has(&lab, dead, &head);
}

#[test]
fn a_copy_with_history_is_on_every_machine() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    for number in 0..5 {
        commit(&lab, &["n2"], &format!("number {number}"));
    }
    lab.done(&["subcluster", "copy", "--with-history", "default", "east"]);
    let head = lab.head_at("n1", "east").unwrap();
    for name in ["n1", "n2", "n3"] {
        eventually("east everywhere", || lab.head_at(name, "east").ok().filter(|seen| *seen == head));
        let clone = lab.scratch(&format!("east-{name}"));
        std::fs::create_dir_all(&clone).unwrap();
        crate::support::ok(lab.git(&clone).args(["clone", "-q", &lab.repo_url(name, "east"), "."]));
        let log = crate::support::ok(lab.git(&clone).args(["log", "--format=%H"]));
        assert_eq!(log.lines().count() as u64, head.revision);
    }
    // One that joins later gets it as well.
    lab.join("n4", &["--learner"]);
    eventually("east on n4", || lab.head_at("n4", "east").ok().filter(|seen| *seen == head));
}
