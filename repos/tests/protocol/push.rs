//! Pushes of real git, in every version of the protocol that it may think it speaks.

use std::sync::atomic::Ordering;

use repos::PackLimits;
use repos::protocol::receive_pack::ReceiveLimits;

use super::git::{Repo, Sandbox, VERSIONS};
use super::server::{Server, State};

fn work(sandbox: &Sandbox, server: &Server, version: u8) -> Repo {
    let repo = Repo { version, ..sandbox.init(&format!("work{version}")) };
    repo.git(&["remote", "add", "origin", &server.url()]);
    repo.write("a.conf", "one\n");
    repo.commit("One", 1);
    repo
}

fn each_version(test: impl Fn(&Sandbox, &Server, Repo)) {
    for version in VERSIONS {
        println!("protocol.version={version}");
        let sandbox = Sandbox::new();
        let server = Server::empty(&sandbox);
        let repo = work(&sandbox, &server, version);
        test(&sandbox, &server, repo);
    }
}

/// What the server has is what the client pushed, whole.
fn compare(sandbox: &Sandbox, server: &Server, repo: &Repo) {
    let copy = sandbox.clone(repo.version, &server.url(), "compared", &["-q", "--mirror"]);
    copy.fsck();
    assert_eq!(copy.refs(), *server.state.refs.lock().unwrap());
    std::fs::remove_dir_all(&copy.dir).unwrap();
}

#[test]
fn create_update_delete() {
    each_version(|sandbox, server, repo| {
        repo.git(&["push", "-q", "-u", "origin", "main"]);
        assert_eq!(server.get("refs/heads/main"), Some(repo.id("main")));
        repo.write("a.conf", &"two\n".repeat(100));
        repo.write("dir/b.conf", "b\n");
        repo.commit("Two", 2);
        repo.git(&["push", "-q", "origin", "main", "main:refs/heads/topic"]);
        assert_eq!(server.get("refs/heads/topic"), Some(repo.id("main")));
        // A thin pack: the new file differs in one line from one that the server has.
        repo.write("a.conf", &format!("{}three\n", "two\n".repeat(100)));
        repo.commit("Three", 3);
        let said = repo.run(&["push", "origin", "main"]);
        assert!(said.ok && said.err.contains("main -> main"), "{}", said.err);
        compare(sandbox, server, &repo);
        repo.git(&["push", "-q", "origin", ":topic"]);
        assert_eq!(server.get("refs/heads/topic"), None);
        repo.git(&["push", "-q", "origin", "main~2:refs/heads/old"]);
        assert_eq!(server.get("refs/heads/old"), Some(repo.id("main~2")));
        repo.git(&["push", "-q", "--force", "origin", "main~1:refs/heads/old", "main~1:refs/heads/main"]);
        assert_eq!(server.get("refs/heads/main"), Some(repo.id("main~1")));
        let up_to_date = repo.run(&["push", "origin", "main~1:main"]);
        assert!(up_to_date.ok && up_to_date.err.contains("up-to-date"), "{}", up_to_date.err);
        compare(sandbox, server, &repo);
    });
}

#[test]
fn tags() {
    each_version(|sandbox, server, repo| {
        repo.git(&["tag", "-a", "v1", "-m", "first"]);
        repo.git(&["tag", "light"]);
        repo.git(&["push", "-q", "origin", "main", "--tags"]);
        assert_eq!(server.get("refs/tags/v1"), Some(repo.id("v1")));
        assert_eq!(server.get("refs/tags/light"), Some(repo.id("main")));
        repo.write("a.conf", "two\n");
        repo.commit("Two", 2);
        repo.git(&["tag", "-a", "v2", "-m", "second"]);
        repo.git(&["push", "-q", "--follow-tags", "origin", "main"]);
        assert_eq!(server.get("refs/tags/v2"), Some(repo.id("v2")));
        compare(sandbox, server, &repo);
    });
}

#[test]
fn a_refusal_is_shown() {
    each_version(|_, server, repo| {
        let said = repo.run(&["push", "origin", "main:refs/heads/locked", "main"]);
        assert!(!said.ok);
        assert!(said.err.contains("remote: the branch is locked"), "{}", said.err);
        assert!(said.err.contains("remote: ask the administrator: ü"), "{}", said.err);
        assert!(said.err.contains("! [remote rejected] main -> locked (this branch is locked)"), "{}", said.err);
        assert!(said.err.contains("[new branch]      main -> main"), "{}", said.err);
        assert_eq!((server.get("refs/heads/locked"), server.get("refs/heads/main")), (None, Some(repo.id("main"))));
    });
}

#[test]
fn atomic_is_all_or_nothing() {
    each_version(|_, server, repo| {
        let said = repo.run(&["push", "--atomic", "origin", "main:refs/heads/locked", "main"]);
        assert!(!said.ok && said.err.contains("main -> main (atomic push failed)"), "{}", said.err);
        assert!(server.state.refs.lock().unwrap().is_empty());
        repo.git(&["push", "-q", "--atomic", "origin", "main", "main:refs/heads/topic"]);
        assert_eq!(server.state.refs.lock().unwrap().len(), 2);
    });
}

#[test]
fn force_and_stale() {
    each_version(|sandbox, server, repo| {
        repo.git(&["push", "-q", "origin", "main"]);
        let other = sandbox.clone(repo.version, &server.url(), "other", &["-q"]);
        other.commit("Theirs", 10);
        other.git(&["push", "-q", "origin", "main"]);
        repo.commit("Ours", 11);
        let said = repo.run(&["push", "origin", "main"]);
        assert!(!said.ok && said.err.contains("[rejected]"), "{}", said.err);
        assert_eq!(server.get("refs/heads/main"), Some(other.id("main")));
        repo.git(&["push", "-q", "--force", "origin", "main"]);
        assert_eq!(server.get("refs/heads/main"), Some(repo.id("main")));
        compare(sandbox, server, &repo);
    });
}

#[test]
fn what_harms_a_checkout_is_refused() {
    each_version(|_, server, repo| {
        let blob = repo.git(&["hash-object", "-w", "a.conf"]);
        let input = format!("100644 blob {blob}\t.git\n");
        let tree = String::from_utf8(repo.git_with_input(&["mktree"], input.as_bytes())).unwrap();
        let commit = repo.git(&["commit-tree", "-m", "harm", tree.trim()]);
        let said = repo.run(&["push", "origin", &format!("{commit}:refs/heads/harm")]);
        assert!(!said.ok && said.err.contains("remote: .git"), "{}", said.err);
        assert!(server.state.refs.lock().unwrap().is_empty());
    });
}

#[test]
fn pushes_from_shallow_clones() {
    each_version(|sandbox, server, repo| {
        for number in 0..5 {
            repo.write("a.conf", &format!("{number}\n"));
            repo.commit("More", 100 + number);
        }
        repo.git(&["push", "-q", "origin", "main"]);
        let shallow = sandbox.clone(repo.version, &server.url(), "shallow", &["-q", "--depth", "1"]);
        shallow.write("a.conf", "shallow\n");
        shallow.commit("From a shallow clone", 1000);
        shallow.git(&["push", "-q", "origin", "main"]);
        assert_eq!(server.get("refs/heads/main"), Some(shallow.id("main")));
        compare(sandbox, server, &repo);
    });
}

#[test]
fn large_pushes_come_in_chunks() {
    each_version(|sandbox, server, repo| {
        // Nothing that compresses, and more than git's http.postBuffer of 1 MiB: the request is tried out with a lone
        // flush first and then sent in chunks.
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for number in 0..30 {
            let noise: String = (0..6000).map(|_| format!("{:016x}", next())).collect();
            repo.write(&format!("noise/{number}"), &noise);
        }
        repo.commit("Noise", 50);
        repo.git(&["push", "-q", "origin", "main"]);
        assert!(server.state.saw_chunks.load(Ordering::SeqCst));
        assert_eq!(server.get("refs/heads/main"), Some(repo.id("main")));
        compare(sandbox, server, &repo);
    });
}

#[test]
fn a_large_history() {
    let sandbox = Sandbox::new();
    let source = super::fetch::large(&sandbox, 300, 3000);
    for version in VERSIONS {
        let sandbox = Sandbox::new();
        let server = Server::empty(&sandbox);
        let source = Repo { version, ..source.clone() };
        source.git(&["push", "-q", &server.url(), "main"]);
        assert_eq!(server.get("refs/heads/main"), Some(source.id("main")));
        compare(&sandbox, &server, &source);
    }
}

#[test]
fn packs_beyond_the_limits_are_refused_in_words() {
    for version in VERSIONS {
        let sandbox = Sandbox::new();
        let server = Server::empty(&sandbox);
        let small = |pack: PackLimits| {
            Server::start(State {
                store: server.state.store.clone(),
                refs: Default::default(),
                head: repos::RefName::main(),
                upload: Default::default(),
                receive: ReceiveLimits { pack, max_commands: 2, ..Default::default() },
                log: Default::default(),
                saw_gzip: false.into(),
                saw_chunks: false.into(),
            })
        };
        let few_objects = small(PackLimits { max_objects: 2, ..PackLimits::default() });
        let repo = work(&sandbox, &few_objects, version);
        let said = repo.run(&["push", "origin", "main"]);
        assert!(!said.ok && said.err.contains("unpacker error"), "{}", said.err);
        assert!(said.err.contains("limit of 2"), "{}", said.err);
        assert!(few_objects.state.refs.lock().unwrap().is_empty());
        let said = repo.run(&["push", "origin", "main:a", "main:b", "main:c"]);
        assert!(!said.ok && said.err.contains("too many references in one push (limit 2)"), "{}", said.err);
    }
}
