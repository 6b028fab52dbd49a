//! Trees that could harm a checkout.

use repos::{CheckError, Draft, Mode, Oid, PackLimits, Reader, TreeRules};

use crate::support::{Repo, git_with, new_commit, put, put_mode, raw_pack, sha1};

/// Writes a tree with git's own `hash-object --literally`, which takes anything.
fn tree(repo: &Repo, entries: &[(&str, &[u8], Oid)]) -> Oid {
    let mut data = Vec::new();
    for (mode, name, id) in entries {
        data.extend_from_slice(mode.as_bytes());
        data.push(b' ');
        data.extend_from_slice(name);
        data.push(0);
        data.extend_from_slice(id.as_bytes());
    }
    hash_object(repo, "tree", &data)
}

fn hash_object(repo: &Repo, kind: &str, data: &[u8]) -> Oid {
    let out = git_with(repo.store.path(), &["hash-object", "-w", "--stdin", "--literally", "-t", kind], data);
    String::from_utf8(out).unwrap().trim().parse().unwrap()
}

fn check(reader: &Reader, repo: &Repo, tree: Oid, rules: &TreeRules) -> Vec<(String, String)> {
    let commit = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nm\n");
    let commit = hash_object(repo, "commit", commit.as_bytes());
    match reader.check_new(&[], &[commit], rules) {
        Ok(()) => Vec::new(),
        Err(CheckError::Refused(refusals)) => {
            refusals.into_iter().map(|refusal| (refusal.path, refusal.reason)).collect()
        }
        Err(err) => panic!("{err}"),
    }
}

fn refused(entries: &[(&str, &[u8], Oid)]) -> bool {
    let repo = Repo::new();
    let reader = repo.store.reader().unwrap();
    hash_object(&repo, "blob", b"content");
    let tree = tree(&repo, entries);
    !check(&reader, &repo, tree, &TreeRules::default()).is_empty()
}

fn content() -> Oid {
    "6b584e8ece562ebffc15d38808cd6b98fc3d97ea".parse().unwrap()
}

#[test]
fn names_that_could_harm_a_checkout() {
    assert!(!refused(&[("100644", b"ordinary", content())]));
    for name in [
        &b".git"[..],
        b".GIT",
        b".Git",
        b"..",
        b".",
        b"",
        b"a/b",
        b".git ",
        b".git.",
        b".git. .",
        b"git~1",
        b"GIT~1",
        b".git::$INDEX_ALLOCATION",
        ".g\u{200c}it".as_bytes(),
        "\u{feff}.git".as_bytes(),
    ] {
        assert!(refused(&[("100644", name, content())]), "{}", name.escape_ascii());
        assert!(refused(&[("40000", name, Oid::EMPTY_TREE)]), "{}", name.escape_ascii());
    }
    assert!(refused(&[("100644", &[b'x'; 256], content())]));
}

#[test]
fn malformed_trees() {
    let id = content();
    assert!(refused(&[("100644", b"b", id), ("100644", b"a", id)]), "unsorted");
    assert!(refused(&[("100644", b"a", id), ("100644", b"a", id)]), "twice");
    assert!(
        refused(&[("100644", b"a", id), ("100644", b"a.b", id), ("40000", b"a", Oid::EMPTY_TREE)]),
        "as a file and as a directory"
    );
    assert!(
        !refused(&[("100644", b"a.b", id), ("40000", b"a", Oid::EMPTY_TREE), ("100644", b"a0", id)]),
        "the order of git"
    );
    assert!(refused(&[("160000", b"sub", id)]), "submodule");
    assert!(refused(&[("0100644", b"a", id)]), "leading zero");
    assert!(refused(&[("777", b"a", id)]), "no such mode");
    assert!(!refused(&[("100664", b"a", id)]), "what old versions of git wrote");
}

#[test]
fn links_stay_in_the_tree() {
    let repo = Repo::new();
    let refusals = |at: &str, target: &str| {
        let mut draft = Draft::new(&repo.store).unwrap();
        let tree = draft.apply(Oid::EMPTY_TREE, &[put_mode(at, Mode::Symlink, target)]).unwrap();
        match draft.check_tree(None, tree, &TreeRules::default()) {
            Ok(()) => 0,
            Err(CheckError::Refused(refusals)) => refusals.len(),
            Err(err) => panic!("{err}"),
        }
    };
    for (at, target) in
        [("l", "a/b"), ("d/l", "../a"), ("d/e/l", "../../x/y"), ("l", "./a"), ("l", "a//b"), ("l", "missing")]
    {
        assert_eq!(refusals(at, target), 0, "{at} -> {target}");
    }
    for (at, target) in [
        ("l", "/etc/passwd"),
        ("l", ".."),
        ("l", "../x"),
        ("d/l", "../../x"),
        ("l", "a/../../x"),
        ("d/l", "x/../.."),
        ("l", ""),
        ("l", ".git/hooks"),
        ("d/l", "../.GIT"),
        (".gitmodules", "a"),
        (".gitattributes", "a"),
        ("d/.gitignore", "a"),
    ] {
        assert_eq!(refusals(at, target), 1, "{at} -> {target}");
    }
    assert_eq!(refusals("l", &"x/".repeat(3000)), 1);
}

#[test]
fn reserved_names_hold_at_the_root_only() {
    let repo = Repo::new();
    let rules = TreeRules { reserved_root_names: vec!["global".into()], ..TreeRules::default() };
    let mut draft = Draft::new(&repo.store).unwrap();
    let below = draft.apply(Oid::EMPTY_TREE, &[put("d/global/x", "1")]).unwrap();
    draft.check_tree(None, below, &rules).unwrap();
    let root = draft.apply(below, &[put("global/x", "1")]).unwrap();
    let err = draft.check_tree(Some(below), root, &rules).unwrap_err();
    assert!(err.to_string().starts_with("global: "), "{err}");
}

#[test]
fn what_a_parent_had_is_not_looked_at_again() {
    let repo = Repo::new();
    hash_object(&repo, "blob", b"content");
    let bad = tree(&repo, &[("100644", b".git", content())]);
    let mut draft = Draft::new(&repo.store).unwrap();
    let old = draft.commit(&new_commit(bad, &[], 1)).unwrap();
    let tree = tree(&repo, &[("100644", b".git", content()), ("100644", b"new", content())]);
    let new = draft.commit(&new_commit(tree, &[old], 2)).unwrap();
    draft.check_new(&[old], &[new], &TreeRules::default()).unwrap();
    assert!(draft.check_new(&[], &[new], &TreeRules::default()).is_err());
    // And a commit is checked for everything it brings, also in the middle of a push.
    let fixed = draft.apply(Oid::EMPTY_TREE, &[put("fine", "1")]).unwrap();
    let first = draft.commit(&new_commit(fixed, &[], 1)).unwrap();
    let middle = draft.commit(&new_commit(bad, &[first], 2)).unwrap();
    let last = draft.commit(&new_commit(fixed, &[middle], 3)).unwrap();
    assert!(draft.check_new(&[first], &[last], &TreeRules::default()).is_err());
}

#[test]
fn a_bomb_of_trees_is_refused_quickly() {
    let repo = Repo::new();
    hash_object(&repo, "blob", b"content");
    let mut level = tree(&repo, &[("100644", b"f", content())]);
    for _ in 0..10 {
        let names: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
        let entries: Vec<(&str, &[u8], Oid)> = names.iter().map(|name| ("40000", name.as_bytes(), level)).collect();
        level = tree(&repo, &entries);
    }
    let refusals = check(&repo.store.reader().unwrap(), &repo, level, &TreeRules::default());
    assert!(refusals.iter().any(|(_, reason)| reason.contains("unfolds")), "{refusals:?}");
}

#[test]
fn a_deep_tree_is_refused_not_overflowed() {
    let repo = Repo::new();
    let mut draft = Draft::new(&repo.store).unwrap();
    // Deeper than any path may be: built from packs, as a stranger would.
    let mut data = Vec::new();
    let blob = draft.write_blob(b"x").unwrap();
    let mut id = draft
        .apply(
            Oid::EMPTY_TREE,
            &[repos::TreeChange::Put {
                path: crate::support::path("a"),
                mode: None,
                content: repos::Content::Blob(blob),
            }],
        )
        .unwrap();
    let mut packed = vec![];
    for _ in 0..5_000 {
        data.clear();
        data.extend_from_slice(b"40000 a\0");
        data.extend_from_slice(id.as_bytes());
        packed.push(data.clone());
        id = sha1_tree(&data);
    }
    repo.store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    let mut fast_import = Vec::new();
    for data in &packed {
        fast_import.push(data.clone());
    }
    let pack = pack_of_trees(&fast_import);
    let mut quarantine = repo.store.quarantine().unwrap();
    quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    let commit = draft_commit(&repo, &quarantine.reader().unwrap(), id);
    let err = quarantine.check_new(&[], &[commit], &TreeRules::default()).unwrap_err();
    assert!(err.to_string().contains("directories deep"), "{}", &err.to_string()[..200.min(err.to_string().len())]);
}

fn draft_commit(repo: &Repo, _reader: &Reader, tree: Oid) -> Oid {
    let commit = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nm\n");
    hash_object(repo, "commit", commit.as_bytes())
}

fn sha1_tree(data: &[u8]) -> Oid {
    let mut bytes = format!("tree {}\0", data.len()).into_bytes();
    bytes.extend_from_slice(data);
    Oid::from_slice(&sha1(&bytes)).unwrap()
}

fn pack_of_trees(trees: &[Vec<u8>]) -> Vec<u8> {
    let entries: Vec<(u8, Vec<u8>, Vec<u8>)> = trees.iter().map(|tree| (2, Vec::new(), tree.clone())).collect();
    raw_pack(&entries)
}
