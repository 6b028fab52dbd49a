//! Working copies, looked at by real `git`.
#![allow(clippy::unwrap_used)]

mod worktree_support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use repos::worktree::{
    ChangeKind, CreateOptions, OnOverlap, Ownership, ResolveTo, Scan, StageOptions, Targets, WorkingCopy, WorktreeError,
};
use repos::{Mode, PatchOptions};
use worktree_support::*;

fn kinds(world: &World) -> Vec<(String, ChangeKind)> {
    let status = world.wc.status().unwrap();
    status.mounts.iter().flat_map(|m| &m.changes).map(|c| (c.path.to_string(), c.kind)).collect()
}

fn with(on_overlap: OnOverlap) -> StageOptions {
    StageOptions { on_overlap, ..quick() }
}

#[test]
fn a_working_copy_of_a_newer_version_is_refused_with_words_and_left_alone() {
    let mut world = World::new();
    world.commit("default", &[put("a", "a\n")]);
    world.update().unwrap();
    let root = world.root().to_owned();
    let file = root.with_file_name(format!(".{}.eccfg", root.file_name().unwrap().to_str().unwrap())).join("copy.json");
    let newer = std::fs::read_to_string(&file).unwrap().replace("\"version\": 1", "\"version\": 2");
    std::fs::write(&file, &newer).unwrap();
    let words = WorkingCopy::open(&root).err().unwrap().to_string();
    assert!(words.contains("copy.json has version 2") && words.contains("newer"), "{words}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), newer);
}

#[test]
fn first_checkout_is_an_ordinary_clean_working_tree() {
    let mut world = World::new();
    assert_eq!(world.wc.base("default").unwrap(), None);
    assert_eq!(
        git(world.root(), &["status", "--porcelain", "--branch"]),
        "## No commits yet on main...origin/main [gone]\n"
    );
    world.commit(
        "default",
        &[
            put("default/a.conf", "a\n"),
            (b"default/run", Some((Mode::Exec, b"#!/bin/sh\n"))),
            (b"link", Some((Mode::Symlink, b"default/a.conf"))),
            put("empty", ""),
        ],
    );
    world.commit("global", &[put("cluster.toml", "[node.n1]\n")]);
    world.update().unwrap();
    world.assert_git_clean();
    assert_eq!(world.read("link"), "a\n");
    assert_eq!(world.read("global/cluster.toml"), "[node.n1]\n");
    assert!(world.file("default/run").metadata().unwrap().permissions().mode() & 0o111 == 0o111);
    assert_eq!(world.git(&["log", "--format=%s"]), "revision 1\n");
    assert_eq!(world.git(&["rev-parse", "--abbrev-ref", "HEAD"]), "main\n");
    assert_eq!(world.git(&["rev-parse", "origin/main"]), format!("{}\n", world.tips["default"].commit));
    assert_eq!(world.git(&["remote", "get-url", "origin"]), "https://config.test:2027/default.git\n");
    assert_eq!(world.wc.base("default").unwrap().unwrap().revision, 1);
}

#[test]
fn updates_follow_upstream_and_go_back() {
    let mut world = World::filled();
    let first = world.targets();
    world.commit("default", &[put("default/a.conf", "changed\n"), gone("default/b.conf"), put("n1/y/z", "deep\n")]);
    let second = world.targets();
    let staged = world.wc.stage(&second, &quick()).unwrap();
    assert_eq!(staged.changed(), [path("default/a.conf"), path("default/b.conf"), path("n1/y/z")]);
    assert_eq!(std::fs::read_to_string(staged.path().join("default/a.conf")).unwrap(), "changed\n");
    assert_eq!(world.read("default/b.conf"), "b\n");
    let settled = staged.exchange().unwrap().settle().unwrap();
    assert!(settled.is_empty(), "{settled:?}");
    world.assert_git_clean();
    assert!(!world.file("default/b.conf").exists());
    for (targets, a) in
        [(&first, "one\ntwo\nthree\nfour\nfive\n"), (&second, "changed\n"), (&first, "one\ntwo\nthree\nfour\nfive\n")]
    {
        world.wc.stage(targets, &quick()).unwrap().exchange().unwrap().settle().unwrap();
        world.assert_git_clean();
        assert_eq!(world.read("default/a.conf"), a);
        assert_eq!(world.file("n1/y").exists(), a == "changed\n");
    }
}

#[test]
fn nothing_to_do_is_nothing() {
    let world = World::filled();
    let ino = world.root().metadata().unwrap().ino();
    let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
    assert!(staged.is_noop());
    assert!(!staged.exchange().unwrap().directory_replaced());
    assert_eq!(world.root().metadata().unwrap().ino(), ino);
}

#[test]
fn local_edits_survive_updates_that_do_not_overlap() {
    let mut world = World::filled();
    world.write("default/a.conf", "ONE\ntwo\nthree\nfour\nfive\n");
    world.write("n1/x", "my x\n");
    std::fs::remove_file(world.file("default/b.conf")).unwrap();
    world.write("notes/todo", "untracked\n");
    world.write("global/local", "g\n");
    std::fs::create_dir_all(world.file("empty/dir")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", world.file("default/pw")).unwrap();
    for round in 0..3 {
        world.commit(
            "default",
            &[
                put("default/a.conf", &format!("one\ntwo\nthree\nfour\nFIVE {round}\n")),
                put("new", &format!("{round}\n")),
            ],
        );
        world.commit("global", &[put("cluster.toml", &format!("[node.n{round}]\n"))]);
        assert!(world.update().unwrap().is_empty());
        assert_eq!(world.read("default/a.conf"), format!("ONE\ntwo\nthree\nfour\nFIVE {round}\n"));
        assert_eq!(world.read("n1/x"), "my x\n");
        assert!(!world.file("default/b.conf").exists());
        assert_eq!(world.read("notes/todo"), "untracked\n");
        assert_eq!(world.read("global/cluster.toml"), format!("[node.n{round}]\n"));
        assert!(world.file("empty/dir").is_dir());
        assert_eq!(std::fs::read_link(world.file("default/pw")).unwrap().to_str(), Some("/etc/passwd"));
        assert_eq!(
            world.git(&["status", "--porcelain"]),
            " M default/a.conf\n D default/b.conf\n M n1/x\n?? default/pw\n?? notes/\n"
        );
        assert_eq!(git(&world.file("global"), &["status", "--porcelain"]), "?? local\n");
        let expected = [
            ("default/a.conf", ChangeKind::Modified),
            ("default/b.conf", ChangeKind::Missing),
            ("default/pw", ChangeKind::Untracked),
            ("n1/x", ChangeKind::Modified),
            ("notes/todo", ChangeKind::Untracked),
            ("global/local", ChangeKind::Untracked),
        ];
        assert_eq!(kinds(&world), expected.map(|(p, k)| (p.to_owned(), k)));
    }
}

#[test]
fn overlap_is_refused_and_changes_nothing() {
    let mut world = World::filled();
    world.write("default/a.conf", "MINE\ntwo\nthree\nfour\nfive\n");
    world.write("fresh", "local\n");
    std::fs::remove_file(world.file("n1/x")).unwrap();
    let before = world.targets();
    world.commit(
        "default",
        &[
            put("default/a.conf", "THEIRS\ntwo\nthree\nfour\nFIVE\n"),
            put("fresh", "upstream\n"),
            put("n1/x", "x2\n"),
            put("other", "o\n"),
        ],
    );
    let ino = world.root().metadata().unwrap().ino();
    let err = world.update().unwrap_err();
    assert!(err.is_conflict());
    assert_eq!(err.paths(), [path("default/a.conf"), path("fresh"), path("n1/x")]);
    assert_eq!(world.root().metadata().unwrap().ino(), ino);
    assert!(!world.file("other").exists());
    assert_eq!(world.wc.base("default").unwrap().unwrap().commit, before["default"].commit);
    assert_eq!(world.read("default/a.conf"), "MINE\ntwo\nthree\nfour\nfive\n");
}

#[test]
fn mine_and_theirs() {
    for (how, a, fresh, x) in [
        (OnOverlap::Mine, "MINE\ntwo\nthree\nfour\nFIVE\n", "local\n", None),
        (OnOverlap::Theirs, "THEIRS\ntwo\nthree\nfour\nFIVE\n", "upstream\n", Some("x2\n")),
    ] {
        let mut world = World::filled();
        world.write("default/a.conf", "MINE\ntwo\nthree\nfour\nfive\n");
        world.write("fresh", "local\n\0");
        world.write("fresh", if how == OnOverlap::Mine { "local\n" } else { "local\0\n" });
        std::fs::remove_file(world.file("n1/x")).unwrap();
        let upstream_fresh = "upstream\n";
        world.commit(
            "default",
            &[
                put("default/a.conf", "THEIRS\ntwo\nthree\nfour\nFIVE\n"),
                put("fresh", upstream_fresh),
                put("n1/x", "x2\n"),
            ],
        );
        let exchanged = world.wc.stage(&world.targets(), &with(how)).unwrap().exchange().unwrap();
        let saved = exchanged.saved().to_vec();
        assert!(exchanged.settle().unwrap().is_empty());
        assert_eq!(world.read("default/a.conf"), a);
        assert_eq!(world.read("fresh"), fresh);
        assert_eq!(std::fs::read_to_string(world.file("n1/x")).ok().as_deref(), x);
        if how == OnOverlap::Theirs {
            // What lost as a whole is put aside.
            assert_eq!(saved.len(), 1);
            assert_eq!(saved[0].path, path("fresh"));
            assert_eq!(std::fs::read(saved[0].file.as_ref().unwrap()).unwrap(), b"local\0\n");
            assert_eq!(world.wc.status().unwrap().saved, saved);
            world.wc.forget_saved(saved[0].id).unwrap();
            world.assert_git_clean();
        }
        assert_eq!(world.wc.base("default").unwrap().unwrap().revision, 2);
    }
}

#[test]
fn manual_leaves_markers_and_resolve_ends_them() {
    for to in [ResolveTo::Edited, ResolveTo::Mine, ResolveTo::Upstream] {
        let mut world = World::filled();
        world.write("default/a.conf", "MINE\ntwo\nthree\nfour\nfive\n");
        std::fs::remove_file(world.file("n1/x")).unwrap();
        world.commit(
            "default",
            &[put("default/a.conf", "THEIRS\ntwo\nthree\nfour\nfive\n"), put("n1/x", "x2\n"), put("other", "o\n")],
        );
        let exchanged = world.wc.stage(&world.targets(), &with(OnOverlap::Manual)).unwrap().exchange().unwrap();
        assert_eq!(
            exchanged.conflicts().iter().map(|c| c.path.to_string()).collect::<Vec<_>>(),
            ["default/a.conf", "n1/x"]
        );
        exchanged.settle().unwrap();
        let marked = "<<<<<<< local\nMINE\n=======\nTHEIRS\n>>>>>>> upstream\ntwo\nthree\nfour\nfive\n";
        assert_eq!(world.read("default/a.conf"), marked);
        assert_eq!(world.read("other"), "o\n");
        assert_eq!(world.git(&["status", "--porcelain"]), "UU default/a.conf\nDU n1/x\n");
        assert_eq!(world.git(&["show", ":2:default/a.conf"]), "MINE\ntwo\nthree\nfour\nfive\n");
        assert_eq!(world.wc.status().unwrap().mounts[0].conflicts.len(), 2);
        world.git(&["fsck", "--strict"]);

        // Nothing moves while there are conflicts.
        world.commit("default", &[put("other", "o2\n")]);
        assert!(matches!(world.update(), Err(WorktreeError::Unresolved { paths }) if paths.len() == 2));
        assert!(matches!(world.wc.local_changes("default", &mut |_| true), Err(WorktreeError::Unresolved { .. })));

        if to == ResolveTo::Edited {
            world.write("default/a.conf", "BOTH\ntwo\nthree\nfour\nfive\n");
        }
        assert_eq!(world.wc.resolve(&[path("default")], to).unwrap(), [path("default/a.conf")]);
        assert_eq!(world.wc.resolve(&[path("n1/x")], to).unwrap(), [path("n1/x")]);
        let (a, x) = match to {
            ResolveTo::Edited => ("BOTH\ntwo\nthree\nfour\nfive\n", Some("x2\n")),
            ResolveTo::Mine => ("MINE\ntwo\nthree\nfour\nfive\n", None),
            ResolveTo::Upstream => ("THEIRS\ntwo\nthree\nfour\nfive\n", Some("x2\n")),
        };
        assert_eq!(world.read("default/a.conf"), a);
        assert_eq!(std::fs::read_to_string(world.file("n1/x")).ok().as_deref(), x);
        assert!(world.wc.status().unwrap().mounts[0].conflicts.is_empty());
        world.update().unwrap();
        assert_eq!((world.read("other").as_str(), world.read("default/a.conf").as_str()), ("o2\n", a));
        if to == ResolveTo::Upstream {
            world.assert_git_clean();
        }
    }
}

#[test]
fn plain_git_commits_stashes_branches_and_staged_changes_survive() {
    let mut world = World::filled();
    world.write("n1/x", "stashed\n");
    world.git(&["stash"]);
    world.git(&["branch", "topic"]);
    world.write("n1/mine", "committed locally\n");
    world.git(&["add", "n1/mine"]);
    world.git(&["commit", "-m", "local work"]);
    let local = world.git(&["rev-parse", "HEAD"]);
    world.write("default/b.conf", "staged\n");
    world.git(&["add", "default/b.conf"]);
    world.git(&["config", "user.nickname", "me"]);
    std::fs::write(world.file(".git/hooks/post-commit"), "#!/bin/sh\n").unwrap();
    for round in 0..3 {
        world.commit("default", &[put("default/a.conf", &format!("{round}\n"))]);
        world.update().unwrap();
        world.git(&["fsck", "--strict"]);
        assert_eq!(world.git(&["status", "--porcelain"]), "M  default/b.conf\n");
        assert_eq!(world.read("n1/mine"), "committed locally\n");
        assert!(world.git(&["log", "--format=%H"]).contains(local.trim()), "the local commit is in the history");
        assert!(
            world.git(&["log", "--format=%H"]).contains(&world.tips["default"].commit.to_string()),
            "so is upstream"
        );
        assert_eq!(world.git(&["stash", "list"]).lines().count(), 1);
        assert_eq!(world.git(&["branch", "--list", "topic"]).trim(), "topic");
        assert_eq!(world.git(&["config", "user.nickname"]), "me\n");
        assert!(world.file(".git/hooks/post-commit").exists());
        let status = world.wc.status().unwrap();
        assert_eq!(status.mounts[0].local_commits.len(), 2 + round);
        assert_eq!(
            kinds(&world),
            [("default/b.conf".to_owned(), ChangeKind::Modified), ("n1/mine".to_owned(), ChangeKind::Added)]
        );
    }
    world.git(&["stash", "pop"]);
    assert_eq!(world.read("n1/x"), "stashed\n");
    // The server takes all of it as one commit: nothing local remains.
    world.commit(
        "default",
        &[put("default/b.conf", "staged\n"), put("n1/mine", "committed locally\n"), put("n1/x", "stashed\n")],
    );
    let target = world.tips["default"];
    let ino = world.root().metadata().unwrap().ino();
    world.wc.committed("default", target.revision, target.commit).unwrap();
    assert_eq!(world.root().metadata().unwrap().ino(), ino, "equal files stay where they are");
    world.assert_git_clean();
    assert_eq!(world.git(&["rev-parse", "HEAD"]).trim(), target.commit.to_string());
}

#[test]
fn a_branch_other_than_main_is_refused() {
    let mut world = World::filled();
    world.git(&["switch", "-q", "-c", "topic"]);
    world.commit("default", &[put("n1/x", "2\n")]);
    assert!(matches!(world.update(), Err(WorktreeError::NotOnMain { head, .. }) if head == "refs/heads/topic"));
    world.git(&["switch", "-q", "main"]);
    world.update().unwrap();
    world.assert_git_clean();
}

#[test]
fn commit_sends_what_was_wanted() {
    let mut world = World::filled();
    world.write("default/a.conf", "new\n");
    world.write("unknown", "u\n");
    world.write("global/cluster.toml", "[node.n2]\n");
    std::fs::remove_file(world.file("default/b.conf")).unwrap();
    std::fs::set_permissions(world.file("n1/x"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (base, changes) = world.wc.local_changes("default", &mut |c| c.kind != ChangeKind::Untracked).unwrap();
    assert_eq!(base.revision, 1);
    assert_eq!(changes.len(), 3, "{changes:?}");
    let store = world.wc.objects("default").unwrap();
    let mut draft = repos::Draft::new(&store).unwrap();
    let tree = draft.apply(draft.tree_of(base.commit).unwrap(), &changes).unwrap();
    let names: Vec<_> =
        draft.list(tree, None, true).unwrap().into_iter().map(|e| (e.path.to_string(), e.mode)).collect();
    assert_eq!(names, [("default/a.conf".to_owned(), Mode::File), ("n1/x".to_owned(), Mode::Exec)]);
    // Both repositories move together, without exchanging anything.
    world.commit(
        "default",
        &[put("default/a.conf", "new\n"), gone("default/b.conf"), (b"n1/x", Some((Mode::Exec, b"x\n")))],
    );
    world.commit("global", &[put("cluster.toml", "[node.n2]\n")]);
    world.wc.committed_all(&world.targets(), &quick()).unwrap();
    assert_eq!(kinds(&world), [("unknown".to_owned(), ChangeKind::Untracked)]);
    assert_eq!(world.git(&["status", "--porcelain"]), "?? unknown\n");
    // And the next update patches a spare that has none of it.
    world.commit("default", &[put("n1/z", "z\n")]);
    world.update().unwrap();
    assert_eq!(world.git(&["status", "--porcelain"]), "?? unknown\n");
    assert_eq!(world.read("default/a.conf"), "new\n");
    world.git(&["fsck", "--strict"]);
}

#[test]
fn revert_and_delete() {
    let mut world = World::filled();
    world.write("default/a.conf", "edited\n");
    std::fs::remove_dir_all(world.file("n1")).unwrap();
    world.write("added", "new\n");
    world.git(&["add", "added"]);
    world.write("global/cluster.toml", "edited\n");
    assert_eq!(world.wc.revert(&[path("default"), path("n1"), path("added"), path("global")]).unwrap().len(), 4);
    assert_eq!(world.git(&["status", "--porcelain"]), "?? added\n");
    assert_eq!(world.read("n1/x"), "x\n");
    std::fs::remove_file(world.file("added")).unwrap();
    world.assert_git_clean();

    assert_eq!(
        world.wc.schedule_delete(&[path("default")], false).unwrap(),
        [path("default/a.conf"), path("default/b.conf")]
    );
    assert_eq!(world.git(&["status", "--porcelain"]), "D  default/a.conf\nD  default/b.conf\n");
    assert_eq!(
        kinds(&world),
        [("default/a.conf".to_owned(), ChangeKind::Deleted), ("default/b.conf".to_owned(), ChangeKind::Deleted)]
    );
    world.wc.revert(&[path("default/b.conf")]).unwrap();
    world.commit("default", &[put("n1/x", "2\n")]);
    world.update().unwrap();
    assert_eq!(kinds(&world), [("default/a.conf".to_owned(), ChangeKind::Deleted)]);
    world.write("n1/x", "edited\n");
    assert!(world.wc.schedule_delete(&[path("n1/x")], false).is_err());
    assert!(world.wc.schedule_delete(&[path("nothing")], true).is_err());
    world.wc.schedule_delete(&[path("n1/x")], true).unwrap();
    world.wc.revert(&[path("n1"), path("default")]).unwrap();
    world.assert_git_clean();
}

#[test]
fn diff_shows_both_repositories() {
    let world = World::filled();
    world.write("n1/x", "edited\n");
    world.write("global/cluster.toml", "edited\n");
    let all = world.wc.diff(&[], &PatchOptions::default()).unwrap();
    let text = String::from_utf8(all.text).unwrap();
    assert!(text.contains("+++ b/n1/x\n") && text.contains("+++ b/global/cluster.toml\n"), "{text}");
    assert!(text.contains("-[node.n1]\n+edited\n"), "{text}");
    let one = world.wc.diff(&[path("global")], &PatchOptions::default()).unwrap();
    assert_eq!(one.files, 1);
}

#[test]
fn files_and_directories_change_places() {
    let mut world = World::filled();
    world.commit(
        "default",
        &[
            gone("default/a.conf"),
            gone("default/b.conf"),
            put("default", "a file now\n"),
            gone("n1/x"),
            put("n1/x/deep/er", "dir now\n"),
        ],
    );
    world.update().unwrap();
    world.assert_git_clean();
    assert_eq!(world.read("default"), "a file now\n");
    world.commit(
        "default",
        &[
            gone("default"),
            put("default/a.conf", "dir again\n"),
            gone("n1/x"),
            (b"n1/x", Some((Mode::Symlink, b"../default"))),
        ],
    );
    world.update().unwrap();
    world.assert_git_clean();
    assert_eq!(world.read("n1/x/a.conf"), "dir again\n");
}

#[test]
fn a_local_file_where_upstream_has_a_directory() {
    for how in [OnOverlap::Refuse, OnOverlap::Mine, OnOverlap::Theirs, OnOverlap::Manual] {
        let mut world = World::filled();
        world.write("spool", "local file\n");
        world.write("box/inner", "local directory\n");
        world.commit("default", &[put("spool/job", "j\n"), put("box", "b\n")]);
        let result = world.update_with(&with(how));
        match how {
            OnOverlap::Refuse => {
                assert_eq!(result.unwrap_err().paths(), [path("box/inner"), path("spool")]);
            }
            OnOverlap::Theirs => {
                result.unwrap();
                assert_eq!(world.wc.saved().unwrap().len(), 2);
                assert_eq!((world.read("spool/job").as_str(), world.read("box").as_str()), ("j\n", "b\n"));
                world.assert_git_clean();
            }
            OnOverlap::Mine | OnOverlap::Manual => {
                result.unwrap();
                assert_eq!(
                    (world.read("spool").as_str(), world.read("box/inner").as_str()),
                    ("local file\n", "local directory\n")
                );
                assert_eq!(
                    world.wc.status().unwrap().mounts[0].conflicts.len(),
                    if how == OnOverlap::Manual { 2 } else { 0 }
                );
                world.git(&["status"]);
            }
        }
    }
}

#[test]
fn odd_names_modes_and_owners() {
    let mut world = World::filled();
    let long = format!("{}/{}", "d".repeat(250), "f".repeat(255));
    world.commit(
        "default",
        &[
            (b"caf\xe9/\xff\xfe", Some((Mode::File, b"latin\n"))),
            (b"new\nline \"q\"", Some((Mode::File, b"q\n"))),
            (long.as_bytes(), Some((Mode::File, b"long\n"))),
            (b" ", Some((Mode::File, b"space\n"))),
        ],
    );
    world.update().unwrap();
    world.assert_git_clean();
    std::fs::write(world.root().join(os(b"caf\xe9/\xff\xfe")), "edited\n").unwrap();
    std::fs::write(world.root().join(os(b"caf\xe9/unk\xf0wn")), "u\n").unwrap();
    std::fs::set_permissions(world.file("n1/x"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(world.file("n1"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::set_permissions(world.root(), std::fs::Permissions::from_mode(0o711)).unwrap();
    for round in 0..3 {
        world.commit("default", &[put("n1/x", &format!("{round}\n")), put("tick", &format!("{round}\n"))]);
        world.update().unwrap();
        assert_eq!(std::fs::read_to_string(world.root().join(os(b"caf\xe9/\xff\xfe"))).unwrap(), "edited\n");
        let mode = |p: &str| world.file(p).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("n1/x"), mode("n1"), mode("")), (0o600, 0o750, 0o711));
        assert_eq!(kinds(&world).len(), 2);
        assert_eq!(world.git(&["status", "--porcelain"]).lines().count(), 2);
    }
    let text = serde_json::to_string(&world.wc.status().unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<repos::worktree::Status>(&text).unwrap(), world.wc.status().unwrap());
}

#[test]
fn open_log_files_sockets_and_fifos_go_on() {
    use std::io::Write;
    let mut world = World::filled();
    std::fs::write(world.file("global/.gitignore"), "").unwrap();
    world.write(".gitignore", "*.log\n");
    let mut log = std::fs::File::create(world.file("default/daemon.log")).unwrap();
    writeln!(log, "before").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(world.file("n1/socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, world.file("n1/fifo"), rustix::fs::Mode::RWXU).unwrap();
    for round in 0..3 {
        world.commit("default", &[put("n1/x", &format!("{round}\n"))]);
        let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
        writeln!(log, "staged {round}").unwrap();
        let exchanged = staged.exchange().unwrap();
        writeln!(log, "exchanged {round}").unwrap();
        exchanged.settle().unwrap();
        writeln!(log, "settled {round}").unwrap();
    }
    assert_eq!(world.read("default/daemon.log").lines().count(), 10);
    std::os::unix::net::UnixStream::connect(world.file("n1/socket")).unwrap();
    drop(socket);
    assert!(world.file("n1/fifo").symlink_metadata().is_ok());
    assert_eq!(world.wc.status().unwrap().mounts[0].ignored, 1);
}

#[test]
fn the_trees_share_no_inode_of_a_tracked_file() {
    let mut world = World::filled();
    world.write("added", "one\n");
    for round in 0..2 {
        world.commit("default", &[put("n1/x", &format!("{round}\n"))]);
        world.update().unwrap();
    }
    // Untracked: one inode. Tracked by the next commit: its own.
    let spare = world.wc.state_dir().join("spare");
    let ino = |p: &std::path::Path| p.metadata().unwrap().ino();
    assert_eq!(ino(&spare.join("added")), ino(&world.file("added")));
    world.commit("default", &[put("added", "one\n")]);
    world.update().unwrap();
    for round in 0..2 {
        world.commit("default", &[put("n1/x", &format!("again {round}\n"))]);
        world.update().unwrap();
        for file in ["added", "n1/x", "default/a.conf", "global/cluster.toml"] {
            assert_ne!(ino(&spare.join(file)), ino(&world.file(file)), "{file}");
        }
    }
    world.assert_git_clean();
}

#[test]
fn edits_of_the_last_moment_are_carried_or_saved() {
    let mut world = World::filled();
    world.commit("default", &[put("default/a.conf", "one\ntwo\nthree\nfour\nFIVE\n"), gone("default/b.conf")]);
    let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
    world.write("default/a.conf", "ONE\ntwo\nthree\nfour\nfive\n");
    world.write("n1/x", "late\n");
    world.write("default/b.conf", "late, and deleted upstream\n");
    world.write("brand/new", "late\n");
    std::fs::remove_file(world.file("global/cluster.toml")).unwrap();
    world.git(&["config", "user.nickname", "late"]);
    let settled = staged.exchange().unwrap().settle().unwrap();
    assert_eq!(world.read("default/a.conf"), "ONE\ntwo\nthree\nfour\nFIVE\n");
    assert_eq!((world.read("n1/x").as_str(), world.read("brand/new").as_str()), ("late\n", "late\n"));
    assert!(!world.file("global/cluster.toml").exists());
    assert_eq!(world.git(&["config", "user.nickname"]), "late\n");
    assert_eq!(settled.saved.len(), 1);
    assert_eq!(settled.saved[0].path, path("default/b.conf"));
    assert_eq!(
        std::fs::read_to_string(settled.saved[0].file.as_ref().unwrap()).unwrap(),
        "late, and deleted upstream\n"
    );
    assert_eq!(world.git(&["status", "--porcelain"]), " M default/a.conf\n M n1/x\n?? brand/\n");
    // They are local edits like any other from now on.
    world.commit("default", &[put("n1/y", "y\n")]);
    world.update().unwrap();
    assert_eq!((world.read("n1/x").as_str(), world.read("brand/new").as_str()), ("late\n", "late\n"));
}

#[test]
fn writes_through_an_old_handle_are_found_later() {
    use std::io::Write;
    let mut world = World::filled();
    let mut handle = std::fs::OpenOptions::new().append(true).open(world.file("n1/x")).unwrap();
    let mut changed = std::fs::OpenOptions::new().append(true).open(world.file("default/b.conf")).unwrap();
    world.commit("default", &[put("default/b.conf", "other\0binary\n")]);
    world.update().unwrap();
    writeln!(handle, "appended late").unwrap();
    writeln!(changed, "appended to what was replaced").unwrap();
    assert_eq!(world.read("n1/x"), "x\n");
    let swept = world.wc.sweep().unwrap();
    assert_eq!(swept.carried, [path("n1/x")]);
    assert_eq!(world.read("n1/x"), "x\nappended late\n");
    assert_eq!(swept.saved.len(), 1);
    assert_eq!(
        std::fs::read_to_string(swept.saved[0].file.as_ref().unwrap()).unwrap(),
        "b\nappended to what was replaced\n"
    );
    assert!(world.wc.sweep().unwrap().is_empty());
    world.commit("default", &[put("n1/z", "z\n")]);
    world.update().unwrap();
    assert_eq!(world.read("n1/x"), "x\nappended late\n");
}

/// Whoever removes the tree means the tree: what an update had put aside before is not in it.
#[test]
fn what_was_put_aside_outlives_the_tree() {
    let mut world = World::filled();
    world.write("default/b.conf", "mine\0\n");
    world.commit("default", &[put("default/b.conf", "theirs\0\n")]);
    let staged = world.wc.stage(&world.targets(), &with(OnOverlap::Theirs)).unwrap();
    staged.exchange().unwrap().settle().unwrap();
    let saved = world.wc.saved().unwrap();
    assert_eq!(saved.len(), 1);
    let root = world.root().to_owned();
    std::fs::remove_dir_all(&root).unwrap();
    assert!(matches!(WorkingCopy::open(&root), Err(WorktreeError::NotAWorkingCopy(_))));
    for _ in 0..2 {
        let options = CreateOptions { mounts: world.wc.mounts().to_vec(), ownership: Ownership::default() };
        let made = WorkingCopy::create(&root, options).unwrap();
        assert_eq!(made.base("default").unwrap(), None);
        assert_eq!(made.saved().unwrap(), saved);
        assert_eq!(std::fs::read(saved[0].file.as_ref().unwrap()).unwrap(), b"mine\0\n");
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn plain_git_between_staging_and_exchange_is_noticed() {
    let mut world = World::filled();
    world.commit("default", &[put("n1/x", "2\n")]);
    let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
    world.write("fresh", "f\n");
    world.git(&["add", "fresh"]);
    assert!(matches!(staged.exchange(), Err(WorktreeError::ChangedMeanwhile(_))));
    let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
    world.git(&["status"]);
    staged.exchange().unwrap().settle().unwrap();
    assert_eq!(world.git(&["status", "--porcelain"]), "A  fresh\n");
    // A lock that plain git holds, or left.
    std::fs::write(world.file(".git/index.lock"), "").unwrap();
    world.commit("default", &[put("n1/x", "3\n")]);
    let options = StageOptions { git_lock_wait: std::time::Duration::ZERO, ..quick() };
    let err = world.update_with(&options).unwrap_err();
    assert!(matches!(err, WorktreeError::GitBusy(_)) && err.hint().unwrap().contains("index.lock"));
    std::fs::remove_file(world.file(".git/index.lock")).unwrap();
    world.update().unwrap();
}

#[test]
fn an_update_without_a_watch_looks_at_every_file() {
    let mut world = World::filled();
    world.wc.prepare().unwrap();
    world.write("n1/x", "nobody saw this\n");
    world.commit("default", &[put("default/b.conf", "b2\n")]);
    let options = StageOptions { scan: Scan::Watched, ..quick() };
    let settled = world.update_with(&options).unwrap();
    assert!(settled.is_empty());
    assert_eq!(world.read("n1/x"), "nobody saw this\n");
    assert_eq!(world.git(&["status", "--porcelain"]), " M n1/x\n");
}

#[test]
fn places_where_it_cannot_work() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("conf");
    let wc = WorkingCopy::create(&root, options()).unwrap();
    assert!(matches!(WorkingCopy::create(&root, options()), Err(WorktreeError::AlreadyExists(_))));
    let full = temp.path().join("full");
    std::fs::create_dir_all(full.join("x")).unwrap();
    assert!(matches!(WorkingCopy::create(&full, options()), Err(WorktreeError::NotEmpty(_))));
    let link = temp.path().join("link");
    std::fs::create_dir(temp.path().join("target")).unwrap();
    std::os::unix::fs::symlink("target", &link).unwrap();
    let err = WorkingCopy::create(&link, options()).unwrap_err();
    assert!(matches!(err, WorktreeError::CannotExchange { .. }) && err.hint().unwrap().contains("target"), "{err}");
    let err = WorkingCopy::create(std::path::Path::new("/proc/conf"), options());
    assert!(err.is_err());
    let mut with_password = options();
    with_password.mounts[0].remote_url = "https://user:secret@host/default.git".into();
    assert!(matches!(WorkingCopy::create(&temp.path().join("p"), with_password), Err(WorktreeError::BadLayout(_))));

    let inside = root.join("global");
    assert_eq!(WorkingCopy::discover(&inside).unwrap().root(), wc.root());
    assert!(matches!(WorkingCopy::discover(temp.path()), Err(WorktreeError::NotAWorkingCopy(_))));
    assert_eq!(wc.relative(&inside, std::path::Path::new("../default/x")).unwrap(), Some(path("default/x")));
    assert_eq!(wc.relative(&inside, std::path::Path::new("..")).unwrap(), None);
    assert!(wc.relative(&inside, std::path::Path::new("../../y")).is_err());
    assert_eq!(wc.split(&path("global/cluster.toml")).unwrap().1, path("cluster.toml"));
}

#[test]
fn the_lock_names_its_holder() {
    let mut world = World::filled();
    world.commit("default", &[put("n1/x", "2\n")]);
    let staged = world.wc.stage(&world.targets(), &quick()).unwrap();
    let other = WorkingCopy::open(world.root()).unwrap();
    let options = StageOptions { lock_wait: std::time::Duration::ZERO, ..quick() };
    let err = other.stage(&Targets::new(), &options).unwrap_err();
    assert!(
        matches!(&err, WorktreeError::Locked { holder, .. } if holder.contains(&std::process::id().to_string())),
        "{err}"
    );
    staged.exchange().unwrap().settle().unwrap();
    // The other process's memory is stale; it notices by the tree's id.
    world.commit("default", &[put("n1/x", "3\n")]);
    other.stage(&world.targets(), &quick()).unwrap().exchange().unwrap().settle().unwrap();
    world.assert_git_clean();
    world.commit("default", &[put("n1/x", "4\n")]);
    world.update().unwrap();
    world.assert_git_clean();
}

#[test]
fn a_discarded_stage_leaves_a_good_spare() {
    let mut world = World::filled();
    world.commit("default", &[put("n1/x", "2\n"), put("extra", "e\n")]);
    world.wc.stage(&world.targets(), &quick()).unwrap().discard().unwrap();
    drop(world.wc.stage(&world.targets(), &quick()).unwrap());
    assert_eq!(world.read("n1/x"), "x\n");
    assert!(world.wc.is_settled().unwrap());
    world.commit("default", &[gone("extra")]);
    world.update().unwrap();
    world.assert_git_clean();
    assert!(!world.file("extra").exists());
}

#[test]
fn the_second_tree_is_ready_after_a_large_first_checkout() {
    let mut world = World::new();
    let names: Vec<String> = (0..200).map(|i| format!("default/{}/{i}", i % 7)).collect();
    let edits: Vec<_> = names.iter().map(|n| put(n, "text\n")).collect();
    world.commit("default", &edits);
    world.commit("global", &[put("cluster.toml", "")]);
    world.update().unwrap();
    assert!(world.wc.state_dir().join("spare").join(&names[150]).exists());
    assert!(world.wc.is_settled().unwrap());
    world.assert_git_clean();
    world.commit("default", &[gone(&names[3]), put(&names[4], "other\n")]);
    world.update().unwrap();
    world.assert_git_clean();
}

#[test]
fn names_that_vanish_from_the_second_tree_do_not_vanish_from_the_live_one() {
    let mut world = World::filled();
    world.commit("default", &[put("default/b.conf", "b2\n")]);
    world.update().unwrap();
    // Somebody tidies up beside the working copy, or in a shell whose directory was replaced.
    std::fs::remove_file(world.wc.state_dir().join("spare/n1/x")).unwrap();
    std::fs::write(world.wc.state_dir().join("spare/n1/late"), "written in the old directory\n").unwrap();
    world.commit("default", &[put("default/b.conf", "b3\n")]);
    world.update().unwrap();
    assert_eq!(world.read("n1/x"), "x\n");
    assert_eq!(world.read("n1/late"), "written in the old directory\n");
    assert_eq!(world.git(&["status", "--porcelain"]), "?? n1/late\n");
    std::fs::remove_dir_all(world.wc.state_dir().join("spare")).unwrap();
    world.commit("default", &[put("default/b.conf", "b4\n")]);
    world.update().unwrap();
    assert_eq!(world.git(&["status", "--porcelain"]), "?? n1/late\n");
}

#[test]
fn owners_are_set_and_kept() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut settings = options();
    settings.ownership = Ownership { uid: Some(1234), gid: Some(2345), umask: 0o027 };
    let mut world = World::with(settings);
    world.commit(
        "default",
        &[
            put("default/a", "a\n"),
            (b"default/run", Some((Mode::Exec, b"r\n"))),
            (b"link", Some((Mode::Symlink, b"x"))),
        ],
    );
    world.commit("global", &[put("g", "g\n")]);
    world.update().unwrap();
    std::os::unix::fs::chown(world.file("default/run"), Some(77), Some(78)).unwrap();
    for round in 0..3 {
        world.commit(
            "default",
            &[
                put("new/file", &format!("{round}\n")),
                (b"default/run", Some((Mode::Exec, format!("r{round}\n").as_bytes()))),
            ],
        );
        world.update().unwrap();
        for (file, owner, mode) in [
            ("default/a", (1234, 2345), 0o640),
            ("default/run", (77, 78), 0o750),
            ("new", (1234, 2345), 0o750),
            ("new/file", (1234, 2345), 0o640),
            ("global/g", (1234, 2345), 0o640),
            (".git/index", (1234, 2345), 0o640),
        ] {
            let meta = world.file(file).metadata().unwrap();
            assert_eq!(((meta.uid(), meta.gid()), meta.mode() & 0o777), (owner, mode), "{file}");
        }
        assert_eq!(world.file("link").symlink_metadata().unwrap().uid(), 1234);
    }
}

/// As root, in a mount namespace of its own.
#[test]
fn a_mount_point_is_refused() {
    if let Ok(root) = std::env::var("MOUNTED_ROOT") {
        let err = WorkingCopy::create(std::path::Path::new(&root), options()).unwrap_err();
        assert!(
            matches!(&err, WorktreeError::CannotExchange { reason, .. } if reason.contains("mount point")),
            "{err}"
        );
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (target, source) = (temp.path().join("conf"), temp.path().join("source"));
    std::fs::create_dir_all(&target).unwrap();
    std::fs::create_dir_all(&source).unwrap();
    let script =
        "mount --bind \"$1\" \"$2\" || exit 77; MOUNTED_ROOT=\"$2\" exec \"$3\" a_mount_point_is_refused --exact";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([&source, &target, &std::env::current_exe().unwrap()])
        .output();
    match output {
        Ok(output) if output.status.code() != Some(77) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        // No privileges for mounting in this container.
        _ => {}
    }
}

#[test]
fn plain_git_may_clone_collect_garbage_and_merge() {
    let mut world = World::filled();
    world.write("n1/x", "mine\n");
    world.git(&["commit", "-qam", "mine"]);
    world.git(&["gc", "--quiet", "--prune=now"]);
    world.commit("default", &[put("default/b.conf", "b2\n")]);
    world.update().unwrap();
    world.git(&["gc", "--quiet", "--prune=now"]);
    world.git(&["fsck", "--strict"]);
    let clone = world.temp.path().join("clone");
    git(world.temp.path(), &["clone", "-q", "conf", "clone"]);
    assert_eq!(std::fs::read_to_string(clone.join("n1/x")).unwrap(), "mine\n");
    // A conflict of plain git's own making, in one repository, outlives an update of the other.
    world.git(&["switch", "-q", "-c", "topic", "origin/main"]);
    world.write("n1/x", "other\n");
    world.git(&["commit", "-qam", "other"]);
    world.git(&["switch", "-q", "main"]);
    assert!(!git_command(world.root()).args(["merge", "-q", "topic"]).output().unwrap().status.success());
    let before = world.git(&["ls-files", "--stage"]);
    assert_eq!(world.git(&["status", "--porcelain"]), "UU n1/x\n");
    world.commit("global", &[put("g", "g\n")]);
    world.update().unwrap();
    assert_eq!(world.git(&["ls-files", "--stage"]), before);
    assert_eq!(world.read("global/g"), "g\n");
    world.write("n1/x", "resolved\n");
    world.git(&["add", "n1/x"]);
    world.git(&["commit", "-q", "-m", "merged"]);
    world.commit("default", &[put("default/b.conf", "b3\n")]);
    world.update().unwrap();
    assert_eq!((world.read("n1/x"), world.git(&["status", "--porcelain"])), ("resolved\n".into(), String::new()));
    world.git(&["fsck", "--strict"]);
}

#[test]
fn a_file_that_does_not_change_keeps_its_time() {
    let mut world = World::filled();
    let files = ["default/a.conf", "n1/x", "global/cluster.toml"];
    let times = |world: &World| files.map(|f| world.file(f).metadata().unwrap().mtime_nsec());
    let before = times(&world);
    for round in 0..4 {
        world.commit("default", &[put("default/b.conf", &format!("{round}\n"))]);
        world.update().unwrap();
        assert_eq!(times(&world), before);
        world.assert_git_clean();
    }
}

/// Somebody who is not the owner may look.
#[test]
fn status_for_another_user() {
    if let Ok(root) = std::env::var("LOOK_AT") {
        let wc = WorkingCopy::open(std::path::Path::new(&root)).unwrap();
        assert_eq!(wc.status().unwrap().mounts[0].changes.len(), 1);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let world = World::filled();
    world.write("n1/x", "edited\n");
    std::fs::set_permissions(world.temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let test = world.temp.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let mut command = std::process::Command::new(&test);
    command.args(["status_for_another_user", "--exact"]).env("LOOK_AT", world.root());
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    std::os::unix::process::CommandExt::gid(&mut command, 65534);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
