//! Clones and fetches of real git, in every version of the protocol.

use std::sync::atomic::Ordering;

use repos::protocol::Version;
use repos::protocol::upload_pack::ServedKind;
use repos::{Oid, RefName};

use super::git::{Repo, Sandbox, VERSIONS};
use super::server::Server;

/// A history with a merge, tags of both kinds, a tag of a tag, and a file that moves.
fn history(sandbox: &Sandbox) -> Repo {
    let repo = sandbox.init("source");
    for number in 1..=8 {
        repo.write("shared/file.conf", &format!("value = {number}\n").repeat(40));
        repo.write(&format!("dir{number}/own.conf"), &format!("own {number}\n"));
        repo.commit(&format!("Commit {number}"), number * 100);
        match number {
            2 => drop(repo.git(&["tag", "-a", "v1", "-m", "first"])),
            3 => drop(repo.git(&["branch", "topic"])),
            5 => drop(repo.git(&["tag", "light"])),
            _ => {}
        }
    }
    repo.git(&["tag", "-a", "v1-again", "-m", "a tag of a tag", "v1"]);
    repo.git(&["checkout", "-q", "topic"]);
    repo.git(&["mv", "dir1/own.conf", "dir2/moved.conf"]);
    repo.commit("Move a file", 350);
    repo.git(&["checkout", "-q", "main"]);
    repo.git(&["merge", "-q", "--no-ff", "-m", "Merge topic", "topic"]);
    repo
}

fn each_version(test: impl Fn(u8)) {
    for version in VERSIONS {
        println!("protocol.version={version}");
        test(version);
    }
}

#[test]
fn clone_has_everything() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"]);
        clone.fsck();
        assert_eq!(clone.id("HEAD"), source.id("main"));
        assert_eq!(clone.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        assert_eq!(clone.id("v1^{}"), source.id("v1^{}"));
        assert_eq!(
            clone.git(&["rev-list", "--objects", "--all"]).lines().count(),
            source.git(&["rev-list", "--objects", "--all"]).lines().count()
        );
        assert_eq!(clone.git(&["status", "--porcelain"]), "");
        let spoken = server.state.log.lock().unwrap().last().unwrap().0;
        assert_eq!(spoken, [Version::V0, Version::V1, Version::V2][usize::from(version)]);
    });
}

#[test]
fn clone_shows_progress_unless_it_is_quiet() {
    let sandbox = Sandbox::new();
    let server = Server::with(&sandbox, &history(&sandbox));
    each_version(|version| {
        let (_, said) = sandbox.try_clone(version, &server.url(), &format!("loud{version}"), &["--progress"]);
        assert!(said.err.contains("remote: Enumerating objects: "), "{}", said.err);
        let (_, said) = sandbox.try_clone(version, &server.url(), &format!("quiet{version}"), &["-q"]);
        assert_eq!((said.ok, said.err.as_str()), (true, ""));
    });
}

#[test]
fn mirrors_and_single_branches() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let mirror = sandbox.clone(version, &server.url(), &format!("mirror{version}"), &["-q", "--mirror"]);
        mirror.fsck();
        assert_eq!(mirror.refs(), source.refs());
        let options = ["-q", "--single-branch", "--branch", "topic", "--no-tags"];
        let single = sandbox.clone(version, &server.url(), &format!("single{version}"), &options);
        single.fsck();
        assert_eq!(single.id("HEAD"), source.id("topic"));
        assert!(!single.run(&["cat-file", "-e", &source.id("main").to_string()]).ok, "main was sent, too");
        // Tags of what is fetched come along (include-tag), others do not.
        let tagged = sandbox.clone(
            version,
            &server.url(),
            &format!("tagged{version}"),
            &["-q", "--single-branch", "--branch", "topic"],
        );
        assert_eq!(tagged.git(&["tag"]), "v1\nv1-again");
    });
}

#[test]
fn ls_remote() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    let outside = sandbox.init("outside");
    let mut answers = Vec::new();
    each_version(|version| {
        let outside = Repo { version, ..outside.clone() };
        let text = outside.git(&["ls-remote", "--symref", &server.url()]);
        assert!(text.starts_with("ref: refs/heads/main\tHEAD\n"), "{text}");
        assert!(text.contains(&format!("{}\trefs/tags/v1^{{}}", source.id("v1^{}"))), "{text}");
        assert!(text.contains(&format!("{}\trefs/tags/v1-again^{{}}", source.id("v1^{}"))), "{text}");
        assert!(!text.contains("light^{}"), "{text}");
        let branches = outside.git(&["ls-remote", "--heads", &server.url()]);
        assert_eq!(branches.lines().count(), 2, "{branches}");
    });
    for version in VERSIONS {
        answers.push(Repo { version, ..outside.clone() }.git(&["ls-remote", &server.url()]));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[test]
fn fetch_brings_what_is_new() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    let clones: Vec<_> =
        VERSIONS.map(|version| sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"])).into();
    source.write("shared/file.conf", "new\n");
    source.commit("New", 2000);
    source.git(&["tag", "-a", "v2", "-m", "second"]);
    source.git(&["branch", "another", "HEAD~3"]);
    server.import(&source);
    for clone in clones {
        // Local commits that the server does not know make the negotiation longer.
        for number in 0..40 {
            clone.commit(&format!("Local {number}"), 3000 + number);
        }
        server.state.log.lock().unwrap().clear();
        clone.git(&["fetch", "-q", "origin"]);
        clone.fsck();
        assert_eq!(clone.id("origin/main"), source.id("main"));
        assert_eq!(clone.id("v2"), source.id("v2"));
        let log = server.state.log.lock().unwrap();
        let packs: Vec<_> = log.iter().filter(|(_, served)| served.kind == ServedKind::Pack).collect();
        // Commit, tag, root tree, directory, file. The tag is followed within the same request.
        assert_eq!(packs.iter().map(|(_, served)| served.objects).collect::<Vec<_>>(), [5], "{log:?}");
        drop(log);
        clone.git(&["fetch", "-q", "origin"]);
        let nothing = clone.run(&["fetch", "--dry-run", "origin"]);
        assert_eq!((nothing.ok, nothing.err.as_str()), (true, ""));
    }
}

#[test]
fn fetch_of_diverged_histories_negotiates_in_rounds() {
    let sandbox = Sandbox::new();
    let source = sandbox.init("source");
    for number in 0..300 {
        source.write("file", &format!("{number}\n"));
        source.commit(&format!("Commit {number}"), number * 10);
    }
    let server = Server::with(&sandbox, &source);
    let clones: Vec<_> =
        VERSIONS.map(|version| sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"])).into();
    for number in 0..20 {
        source.write("file", &format!("theirs {number}\n"));
        source.commit(&format!("Theirs {number}"), 10_000 + number);
    }
    server.import(&source);
    for clone in clones {
        for number in 0..400 {
            clone.commit(&format!("Ours {number}"), 9_000 + number);
        }
        server.state.log.lock().unwrap().clear();
        clone.git(&["fetch", "-q", "origin"]);
        clone.fsck();
        let log = server.state.log.lock().unwrap();
        assert!(log.iter().filter(|(_, served)| served.kind == ServedKind::Negotiation).count() > 1, "{log:?}");
        assert_eq!(log.last().unwrap().1.objects, 60, "{log:?}");
    }
    assert!(server.state.saw_gzip.load(Ordering::SeqCst), "git compresses long requests; none was seen");
}

#[test]
fn fetch_of_a_commit_by_its_id() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let hidden = source.git(&["commit-tree", "-m", "unreachable", "HEAD^{tree}"]);
    let server = Server::with(&sandbox, &source);
    let pack = source.git_with_input(&["pack-objects", "--stdout", "-q"], format!("{hidden}\n").as_bytes());
    server.state.store.install_pack(&pack).unwrap();
    each_version(|version| {
        let repo = Repo { version, ..sandbox.init(&format!("by-id{version}")) };
        let id = source.id("main~3").to_string();
        repo.git(&["fetch", "-q", &server.url(), &id]);
        repo.fsck();
        assert_eq!(repo.id("FETCH_HEAD").to_string(), id);
        for refused in [hidden.as_str(), "1234567890123456789012345678901234567890"] {
            let said = repo.run(&["fetch", "-q", &server.url(), refused]);
            assert!(!said.ok && said.err.contains(&format!("not our ref {refused}")), "{}", said.err);
        }
    });
}

/// What is not offered is not used, and does no harm.
#[test]
fn filters_are_ignored_with_a_warning() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let options = ["--filter=blob:none", "--bare"];
        let (clone, said) = sandbox.try_clone(version, &server.url(), &format!("clone{version}"), &options);
        assert!(said.ok && said.err.contains("filtering not recognized by server"), "{}", said.err);
        assert_eq!(clone.count("main"), source.count("main"));
    });
}

#[test]
fn negotiation_alone() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    let clone = sandbox.clone(2, &server.url(), "clone", &["-q"]);
    let common = clone.id("HEAD");
    let ours = clone.commit("Ours", 9000).to_string();
    let said = clone.git(&["fetch", "-q", "--negotiate-only", "--negotiation-tip=HEAD", "origin"]);
    assert!(said.lines().any(|id| id == common.to_string()) && !said.contains(&ours), "{said}");
}

#[test]
fn pruning_and_forced_updates() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        server.import(&source);
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"]);
        {
            let mut refs = server.state.refs.lock().unwrap();
            refs.remove("refs/heads/topic");
            refs.insert("refs/heads/main".try_into().unwrap(), source.id("main~2"));
        }
        clone.git(&["fetch", "-q", "--prune", "origin"]);
        clone.fsck();
        assert_eq!(clone.id("origin/main"), source.id("main~2"));
        assert!(!clone.run(&["rev-parse", "--verify", "origin/topic"]).ok);
    });
}

#[test]
fn shallow_clone_and_deepening() {
    let sandbox = Sandbox::new();
    let source = sandbox.init("source");
    for number in 1..=10 {
        source.write("file", &format!("{number}\n"));
        source.commit(&format!("Commit {number}"), number * 86_400);
        source.git(&["tag", &format!("t{number}")]);
    }
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q", "--depth", "2"]);
        clone.fsck();
        assert_eq!((clone.count("HEAD"), clone.is_shallow()), (2, true));
        clone.git(&["fetch", "-q", "--depth", "4"]);
        clone.fsck();
        assert_eq!(clone.count("HEAD"), 4);
        clone.git(&["fetch", "-q", "--deepen", "2"]);
        clone.fsck();
        assert_eq!(clone.count("HEAD"), 6);
        clone.git(&["fetch", "-q", "--depth", "1"]);
        assert_eq!(clone.count("HEAD"), 1);
        clone.git(&["fetch", "-q", "--shallow-exclude", "t5"]);
        clone.fsck();
        assert_eq!(clone.count("HEAD"), 5);
        clone.git(&["fetch", "-q", "--shallow-since", "2020-01-03T12:00:00Z"]);
        clone.fsck();
        assert_eq!(clone.count("HEAD"), 8);
        clone.git(&["fetch", "-q", "--unshallow"]);
        clone.fsck();
        assert_eq!((clone.count("HEAD"), clone.is_shallow()), (10, false));
    });
}

/// Where a history ends is git's rule, so git itself is asked: a clone from us and one from a local repository go
/// through the same steps and must have the same commits and the same edges.
#[test]
fn shallow_histories_end_where_git_ends_them() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    let local = format!("file://{}", source.dir.display());
    let since = "2020-01-01T00:05:00Z";
    let stories: &[&[&[&str]]] = &[
        &[&["--depth", "1"], &["--depth", "2"], &["--deepen", "1"], &["--unshallow"]],
        &[&["--depth", "3"], &["--deepen", "1"], &["--deepen", "3"], &["--depth", "2"], &["--unshallow"]],
        &[&["--depth", "100"], &["--deepen", "1"]],
        &[&["--shallow-since", since], &["--deepen", "1"], &["--unshallow"]],
        &[&["--shallow-exclude", "v1"], &["--depth", "2147483647"]],
        &[&["--shallow-since", since, "--shallow-exclude", "light"], &["--shallow-since", "2020-01-01T00:01:00Z"]],
        &[&["--depth", "2", "--no-single-branch"], &["--deepen", "2"], &["--depth", "1"], &["--unshallow"]],
        &[
            &["--depth", "1", "--branch", "v1"],
            &["--depth", "1", "origin", "topic"],
            &["--depth", "2", "origin", "main"],
        ],
        &[&["--depth", "1", "--mirror"], &["--deepen", "3"]],
    ];
    each_version(|version| {
        for (number, story) in stories.iter().enumerate() {
            let clone = |url: &str, name: &str| {
                sandbox.clone(version, url, &format!("{name}{version}-{number}"), &[&["-q"], story[0]].concat())
            };
            let (ours, theirs) = (clone(&server.url(), "ours"), clone(&local, "theirs"));
            for (step, options) in story.iter().enumerate() {
                if step > 0 {
                    for repo in [&ours, &theirs] {
                        repo.git(&[&["fetch", "-q"], *options].concat());
                    }
                }
                ours.fsck();
                let edges = |repo: &Repo| {
                    let dir = repo.git(&["rev-parse", "--absolute-git-dir"]);
                    let text = std::fs::read_to_string(format!("{dir}/shallow")).unwrap_or_default();
                    text.lines().map(String::from).collect::<std::collections::BTreeSet<_>>()
                };
                assert_eq!(edges(&ours), edges(&theirs), "story {number}, after {options:?}");
                assert_eq!(ours.refs(), theirs.refs(), "story {number}, after {options:?}");
                let commits = |repo: &Repo| repo.git(&["rev-list", "--all"]);
                assert_eq!(commits(&ours), commits(&theirs), "story {number}, after {options:?}");
            }
        }
    });
}

/// Both parents of the merge are excluded or followed by something excluded. (git's own server names an edge here that
/// it does not send, and the second fetch fails.)
#[test]
fn edges_behind_edges_are_not_named() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let options = ["-q", "--shallow-exclude", "topic"];
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &options);
        clone.fsck();
        assert_eq!(clone.count("HEAD"), 1);
        clone.git(&["fetch", "-q", "--shallow-exclude", "v1"]);
        clone.fsck();
        assert_eq!(clone.count("HEAD").to_string(), source.git(&["rev-list", "--count", "main", "^v1"]));
        clone.git(&["fetch", "-q", "--unshallow"]);
        clone.fsck();
        assert_eq!((clone.count("HEAD"), clone.is_shallow()), (source.count("main"), false));
    });
}

#[test]
fn shallow_requests_that_make_no_sense() {
    let sandbox = Sandbox::new();
    let server = Server::with(&sandbox, &history(&sandbox));
    each_version(|version| {
        let attempt =
            |option: &str, value: &str| sandbox.try_clone(version, &server.url(), "none", &["-q", option, value]).1;
        let said = attempt("--shallow-exclude", "main");
        assert!(!said.ok && said.err.contains("no commits selected for shallow requests"), "{}", said.err);
        let said = attempt("--shallow-exclude", "nowhere");
        assert!(!said.ok && said.err.contains("ambiguous deepen-not: nowhere"), "{}", said.err);
    });
}

#[test]
fn shallow_clones_follow() {
    each_version(|version| {
        let sandbox = Sandbox::new();
        let source = history(&sandbox);
        let server = Server::with(&sandbox, &source);
        let sent = || server.state.log.lock().unwrap().last().unwrap().1.objects;
        let clone = sandbox.clone(version, &server.url(), "clone", &["-q", "--depth", "1"]);
        source.write("dir1/new", "x\n");
        source.commit("New", 5000);
        server.import(&source);
        clone.git(&["pull", "-q", "--ff-only"]);
        clone.fsck();
        assert_eq!((clone.count("HEAD"), clone.id("HEAD"), sent()), (2, source.id("main"), 4));
        // The other branch begins before the edge: its whole history is needed.
        clone.git(&["fetch", "-q", "origin", "topic"]);
        clone.fsck();
        // A fetch that stays shallow needs nothing of what is here already.
        source.write("dir1/new", "y\n");
        source.commit("Newer", 6000);
        server.import(&source);
        clone.git(&["fetch", "-q", "--no-tags", "--depth", "1"]);
        clone.fsck();
        assert_eq!(sent(), 4);
    });
}

#[test]
fn empty_repositories_can_be_cloned() {
    let sandbox = Sandbox::new();
    let server = Server::empty(&sandbox);
    each_version(|version| {
        let (clone, said) = sandbox.try_clone(version, &server.url(), &format!("clone{version}"), &[]);
        assert!(said.ok && said.err.contains("empty repository"), "{}", said.err);
        if version == 2 {
            assert_eq!(clone.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        }
        assert_eq!(clone.git(&["ls-remote", "origin"]), "");
    });
}

#[test]
fn unborn_head_and_other_branches() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let server = Server::with(&sandbox, &source);
    server.state.refs.lock().unwrap().remove("refs/heads/main");
    each_version(|version| {
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"]);
        clone.fsck();
        assert_eq!(clone.id("origin/topic"), source.id("topic"));
    });
}

#[test]
fn tags_of_files_and_trees() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    source.git(&["tag", "-a", "a-tree", "-m", "tree", "HEAD:shared"]);
    source.git(&["tag", "-a", "a-blob", "-m", "blob", "HEAD:shared/file.conf"]);
    source.git(&["tag", "plain-blob", "HEAD:dir3/own.conf"]);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q", "--mirror"]);
        clone.fsck();
        let only = Repo { version, ..sandbox.init(&format!("only{version}")) };
        only.git(&[
            "fetch",
            "-q",
            &server.url(),
            "refs/tags/a-tree:refs/tags/a-tree",
            "refs/tags/plain-blob:refs/tags/plain-blob",
        ]);
        only.fsck();
        assert!(only.git(&["cat-file", "-p", "a-tree^{tree}"]).contains("file.conf"));
    });
}

#[test]
fn limits_are_told() {
    let sandbox = Sandbox::new();
    let source = history(&sandbox);
    let mut server = Server::with(&sandbox, &source);
    let state = std::sync::Arc::get_mut(&mut server.state);
    assert!(state.is_none(), "the server's thread shares the state");
    let small = Server::start(super::server::State {
        store: server.state.store.clone(),
        refs: std::sync::Mutex::new(source.refs()),
        head: RefName::main(),
        upload: repos::protocol::upload_pack::UploadLimits { max_objects: 5, ..Default::default() },
        receive: Default::default(),
        log: Default::default(),
        saw_gzip: false.into(),
        saw_chunks: false.into(),
    });
    each_version(|version| {
        let (_, said) = sandbox.try_clone(version, &small.url(), &format!("clone{version}"), &["-q"]);
        assert!(!said.ok && said.err.contains("too many objects (limit 5)"), "{}", said.err);
    });
}

#[test]
fn a_large_repository() {
    let sandbox = Sandbox::new();
    let source = large(&sandbox, 200, 4000);
    let server = Server::with(&sandbox, &source);
    each_version(|version| {
        let clone = sandbox.clone(version, &server.url(), &format!("clone{version}"), &["-q"]);
        clone.fsck();
        assert_eq!(clone.git(&["rev-parse", "HEAD^{tree}"]), source.git(&["rev-parse", "main^{tree}"]));
        let shallow = sandbox.clone(version, &server.url(), &format!("shallow{version}"), &["-q", "--depth", "20"]);
        shallow.fsck();
        shallow.git(&["fetch", "-q", "--unshallow"]);
        shallow.fsck();
        assert_eq!(shallow.count("HEAD"), 200);
    });
}

/// `commits` commits over a tree of `files` files, made by `git fast-import`.
pub fn large(sandbox: &Sandbox, commits: usize, files: usize) -> Repo {
    let repo = sandbox.init("large");
    let mut stream = Vec::new();
    let blob = |path: usize, text: &str| {
        format!("M 100644 inline d{:02}/f{path:05}.conf\ndata {}\n{text}\n", path % 50, text.len())
    };
    for number in 0..commits {
        let message = format!("Commit {number}");
        let time_s = 1_600_000_000 + number;
        stream.extend_from_slice(
            format!("commit refs/heads/main\ncommitter T <t@e> {time_s} +0000\ndata {}\n{message}\n", message.len())
                .as_bytes(),
        );
        if number == 0 {
            for path in 0..files {
                stream.extend_from_slice(blob(path, &format!("file = {path}\nvalue = \"initial\"\n")).as_bytes());
            }
        } else {
            stream.extend_from_slice(blob(number * 7 % files, &format!("changed in {number}\n")).as_bytes());
        }
        stream.push(b'\n');
    }
    repo.git_with_input(&["fast-import", "--quiet"], &stream);
    repo
}

#[test]
fn references_to_nowhere_are_reported() {
    let sandbox = Sandbox::new();
    let server = Server::with(&sandbox, &history(&sandbox));
    let nowhere: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    server.state.refs.lock().unwrap().insert("refs/heads/nowhere".try_into().unwrap(), nowhere);
    each_version(|version| {
        let (_, said) = sandbox.try_clone(version, &server.url(), &format!("clone{version}"), &["-q"]);
        assert!(!said.ok && said.err.contains("reading the repository failed"), "{}", said.err);
    });
}
