//! Merges, against `git merge-tree`, and kind by kind.

use std::collections::BTreeSet;

use proptest::prelude::*;
use repos::{ConflictKind, Draft, Labels, Merge, MergeMode, Mode, Oid, TreeChange};

use crate::support::{Repo, delete, git_try, new_commit, path, put, put_mode, rename};

fn labels() -> Labels {
    Labels { ours: "ours".into(), base: "base".into(), theirs: "theirs".into() }
}

struct Case {
    repo: Repo,
    base: Oid,
    ours: Oid,
    theirs: Oid,
}

impl Case {
    fn new(base: &[TreeChange], ours: &[TreeChange], theirs: &[TreeChange]) -> Case {
        let repo = Repo::new();
        let mut draft = Draft::new(&repo.store).unwrap();
        let base = draft.apply(Oid::EMPTY_TREE, base).unwrap();
        let ours = draft.apply(base, ours).unwrap();
        let theirs = draft.apply(base, theirs).unwrap();
        if let Some(pack) = draft.into_pack().unwrap() {
            repo.store.install_pack(&pack).unwrap();
        }
        Case { repo, base, ours, theirs }
    }

    fn merge(&self, mode: &MergeMode) -> (Draft, Merge) {
        let mut draft = Draft::new(&self.repo.store).unwrap();
        let merge = draft.merge(Some(self.base), self.ours, self.theirs, mode).unwrap();
        (draft, merge)
    }

    fn conflicts(&self) -> Vec<(String, ConflictKind)> {
        let (_, merge) = self.merge(&MergeMode::Refuse);
        assert_eq!(merge.tree.is_none(), !merge.conflicts.is_empty());
        merge.conflicts.iter().map(|conflict| (conflict.path.to_string(), conflict.kind)).collect()
    }

    fn files(&self, mode: &MergeMode) -> Vec<(String, String)> {
        let (draft, merge) = self.merge(mode);
        let entries = draft.list(merge.tree.unwrap(), None, true).unwrap();
        entries
            .iter()
            .map(|entry| (entry.path.to_string(), String::from_utf8(draft.blob(entry.id, 1 << 20).unwrap()).unwrap()))
            .collect()
    }
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn both_edits_of_one_file_are_kept() {
    let case =
        Case::new(&[put("f", "1\n2\n3\n4\n5\n")], &[put("f", "one\n2\n3\n4\n5\n")], &[put("f", "1\n2\n3\n4\nfive\n")]);
    assert_eq!(case.conflicts(), []);
    assert_eq!(case.files(&MergeMode::Refuse), owned(&[("f", "one\n2\n3\n4\nfive\n")]));
}

#[test]
fn edits_of_the_same_line() {
    let case = Case::new(
        &[put("f", "1\n2\n3\n")],
        &[put("f", "1\nours\n3\n")],
        &[put("f", "1\ntheirs\n3\n"), put("g", "new")],
    );
    assert_eq!(case.conflicts(), [("f".into(), ConflictKind::Content)]);
    assert_eq!(case.files(&MergeMode::Ours), owned(&[("f", "1\nours\n3\n"), ("g", "new")]));
    assert_eq!(case.files(&MergeMode::Theirs), owned(&[("f", "1\ntheirs\n3\n"), ("g", "new")]));
    let marked = "1\n<<<<<<< ours\nours\n=======\ntheirs\n>>>>>>> theirs\n3\n";
    assert_eq!(case.files(&MergeMode::Markers { labels: labels() }), owned(&[("f", marked), ("g", "new")]));
}

#[test]
fn modified_here_and_deleted_there() {
    let case = Case::new(&[put("f", "1"), put("k", "k")], &[put("f", "2")], &[delete("f")]);
    assert_eq!(case.conflicts(), [("f".into(), ConflictKind::ModifyDelete)]);
    assert_eq!(case.files(&MergeMode::Ours), owned(&[("f", "2"), ("k", "k")]));
    assert_eq!(case.files(&MergeMode::Theirs), owned(&[("k", "k")]));
    assert_eq!(case.files(&MergeMode::Markers { labels: labels() }), owned(&[("f", "2"), ("k", "k")]));
}

#[test]
fn a_rename_is_not_followed() {
    let case = Case::new(&[put("f", "1\n2\n3\n"), put("k", "k")], &[rename("f", "g")], &[put("f", "1\n2\nthree\n")]);
    assert_eq!(case.conflicts(), [("f".into(), ConflictKind::DeleteModify)]);
    let case = Case::new(&[put("d/f", "1\n2\n3\n"), put("k", "k")], &[rename("d", "e")], &[put("d/new", "x")]);
    assert_eq!(case.conflicts(), []);
    assert_eq!(case.files(&MergeMode::Refuse), owned(&[("d/new", "x"), ("e/f", "1\n2\n3\n"), ("k", "k")]));
}

#[test]
fn added_on_both_sides() {
    let case = Case::new(&[put("k", "k")], &[put("f", "1\n")], &[put("f", "2\n")]);
    assert_eq!(case.conflicts(), [("f".into(), ConflictKind::AddAdd)]);
    let same = Case::new(&[put("k", "k")], &[put("f", "1\n")], &[put("f", "1\n")]);
    assert_eq!(same.conflicts(), []);
    let modes = Case::new(&[put("k", "k")], &[put("f", "1\n")], &[put_mode("f", Mode::Exec, "1\n")]);
    assert_eq!(modes.conflicts(), [("f".into(), ConflictKind::Mode)]);
}

#[test]
fn binary_files_and_links_are_never_mixed() {
    let case = Case::new(&[put("f", "\u{0}1")], &[put("f", "\u{0}2")], &[put("f", "\u{0}3")]);
    assert_eq!(case.conflicts(), [("f".into(), ConflictKind::Binary)]);
    assert_eq!(case.files(&MergeMode::Theirs), owned(&[("f", "\u{0}3")]));
    let links = Case::new(
        &[put_mode("l", Mode::Symlink, "a")],
        &[put_mode("l", Mode::Symlink, "b")],
        &[put_mode("l", Mode::Symlink, "c")],
    );
    assert_eq!(links.conflicts(), [("l".into(), ConflictKind::Binary)]);
    let types = Case::new(&[put("l", "a")], &[put("l", "b")], &[put_mode("l", Mode::Symlink, "c")]);
    assert_eq!(types.conflicts(), [("l".into(), ConflictKind::Type)]);
    assert_eq!(types.files(&MergeMode::Markers { labels: labels() }), owned(&[("l", "b"), ("l~theirs", "c")]));
}

#[test]
fn a_directory_against_a_file() {
    let case = Case::new(&[put("k", "k")], &[put("x", "file")], &[put("x/y", "inside")]);
    assert_eq!(case.conflicts(), [("x".into(), ConflictKind::DirectoryFile)]);
    assert_eq!(case.files(&MergeMode::Ours), owned(&[("k", "k"), ("x", "file")]));
    assert_eq!(case.files(&MergeMode::Theirs), owned(&[("k", "k"), ("x/y", "inside")]));
    assert_eq!(
        case.files(&MergeMode::Markers { labels: labels() }),
        owned(&[("k", "k"), ("x/y", "inside"), ("x~ours", "file")])
    );
}

#[test]
fn what_steps_aside_takes_no_other_name() {
    let case = Case::new(&[put("x~ours", "k"), put("x~ours_1", "k")], &[put("x", "file")], &[put("x/y", "inside")]);
    let files = case.files(&MergeMode::Markers { labels: labels() });
    assert_eq!(files, owned(&[("x/y", "inside"), ("x~ours", "k"), ("x~ours_1", "k"), ("x~ours_2", "file")]));
}

#[test]
fn a_mode_and_an_edit_go_together() {
    let case = Case::new(&[put("f", "1\n")], &[put_mode("f", Mode::Exec, "1\n")], &[put("f", "2\n")]);
    assert_eq!(case.conflicts(), []);
    let (draft, merge) = case.merge(&MergeMode::Refuse);
    let entry = draft.entry(merge.tree.unwrap(), &path("f")).unwrap().unwrap();
    assert_eq!((entry.mode, draft.blob(entry.id, 10).unwrap().as_slice()), (Mode::Exec, &b"2\n"[..]));
}

#[test]
fn deleting_on_both_sides_can_leave_nothing() {
    let case = Case::new(&[put("d/a", "1"), put("d/b", "2")], &[delete("d/a")], &[delete("d/b")]);
    let (_, merge) = case.merge(&MergeMode::Refuse);
    assert_eq!(merge.tree, Some(Oid::EMPTY_TREE));
}

fn some_lines() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..6u8, 0..7)
}

/// A small set of files with few, similar lines, so that merges are often interesting. `None`: not there.
fn some_side() -> impl Strategy<Value = Vec<Option<(bool, Vec<u8>)>>> {
    prop::collection::vec(prop::option::weighted(0.8, (prop::bool::weighted(0.2), some_lines())), NAMES.len())
}

const NAMES: [&str; 5] = ["a", "d/b", "d/e/c", "d0", "z"];

/// Lines around so that there is context to agree on, and different in each file: git 2.47 looks for renames
/// even when it is told not to, and must find none.
fn text(name: &str, lines: &[u8]) -> String {
    let middle: String = lines.iter().map(|line| format!("key{line} = {line}\n")).collect();
    let around = |n: u8| (0..n).map(|line| format!("{} {line}\n", name.repeat(40 / name.len()))).collect::<String>();
    format!("{}{middle}{}", around(9), around(3))
}

fn change_to(base: &[Option<(bool, Vec<u8>)>], side: &[Option<(bool, Vec<u8>)>], keep: &[bool]) -> Vec<TreeChange> {
    let mut changes = Vec::new();
    for at in 0..NAMES.len() {
        match (&base[at], &side[at]) {
            _ if keep[at] => {}
            (_, Some((exec, lines))) => {
                changes.push(put_mode(NAMES[at], if *exec { Mode::Exec } else { Mode::File }, text(NAMES[at], lines)))
            }
            (Some(_), None) => changes.push(delete(NAMES[at])),
            (None, None) => {}
        }
    }
    changes
}

fn keeps() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(prop::bool::weighted(0.4), NAMES.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn merges_are_gits(base in some_side(), ours in some_side(), theirs in some_side(), keep in (keeps(), keeps())) {
        let none: Vec<Option<(bool, Vec<u8>)>> = vec![None; NAMES.len()];
        let case = Case::new(&change_to(&none, &base, &[false; 5]), &change_to(&base, &ours, &keep.0), &change_to(&base, &theirs, &keep.1));
        let mut draft = Draft::new(&case.repo.store).unwrap();
        let base = draft.commit(&new_commit(case.base, &[], 1)).unwrap();
        let ours = draft.commit(&new_commit(case.ours, &[base], 2)).unwrap();
        let theirs = draft.commit(&new_commit(case.theirs, &[base], 3)).unwrap();
        case.repo.store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();

        let run = |extra: &[&str]| {
            let (ours, theirs) = (ours.to_string(), theirs.to_string());
            let mut args = vec!["-c", "merge.directoryRenames=false", "-c", "diff.algorithm=histogram"];
            args.extend(["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z"]);
            args.extend(extra);
            args.extend([ours.as_str(), theirs.as_str()]);
            let (clean, out, err) = git_try(case.repo.store.path(), &args, b"");
            assert_eq!(err, "");
            let mut fields = out.split(|byte| *byte == 0).map(|field| String::from_utf8(field.to_vec()).unwrap()).filter(|field| !field.is_empty());
            let tree = fields.next().unwrap();
            (clean, tree, fields.collect::<BTreeSet<String>>())
        };
        let (clean, tree, conflicted) = run(&["-Xdiff-algorithm=histogram"]);
        let (_, merge) = case.merge(&MergeMode::Refuse);
        prop_assert_eq!(merge.conflicts.is_empty(), clean, "{:?} against {:?}", merge.conflicts, conflicted);
        let paths: BTreeSet<String> = merge.conflicts.iter().map(|conflict| conflict.path.to_string()).collect();
        prop_assert_eq!(paths, conflicted);
        if clean {
            prop_assert_eq!(merge.tree.unwrap().to_string(), tree);
        } else {
            let marked = case.merge(&MergeMode::Markers { labels: Labels { ours: ours.to_string(), base: base.to_string(), theirs: theirs.to_string() } });
            // Where exactly the markers go is a matter of taste: git joins conflicts that are close to each other.
            let in_doubt = |line: &String| merge.conflicts.iter().any(|conflict| line[7..].starts_with(&format!("{}\n", conflict.path)));
            let mut ours = listing(&marked.0, marked.1.tree.unwrap());
            let mut theirs = git_listing(&case, &tree);
            prop_assert_eq!(ours.len(), theirs.len());
            ours.retain(|line| !in_doubt(line));
            theirs.retain(|line| !in_doubt(line));
            prop_assert_eq!(ours, theirs);
        }
        // "Theirs" is "ours" with the sides swapped.
        let swapped = Case { repo: Repo::new(), base: case.base, ours: case.theirs, theirs: case.ours };
        for info in case.repo.store.packs().unwrap() {
            swapped.repo.store.install_pack_file(&info.path).unwrap();
        }
        prop_assert_eq!(case.merge(&MergeMode::Theirs).1.tree, swapped.merge(&MergeMode::Ours).1.tree);
    }
}

fn listing(draft: &Draft, tree: Oid) -> Vec<String> {
    let text = |id| String::from_utf8(draft.blob(id, 1 << 20).unwrap()).unwrap();
    draft
        .list(tree, None, true)
        .unwrap()
        .iter()
        .map(|entry| format!("{} {}\n{}", entry.mode, entry.path, text(entry.id)))
        .collect()
}

fn git_listing(case: &Case, tree: &str) -> Vec<String> {
    let reader = case.repo.store.reader().unwrap();
    let text = |id| String::from_utf8(reader.blob(id, 1 << 20).unwrap()).unwrap();
    let entries = reader.list(tree.parse().unwrap(), None, true).unwrap();
    entries.iter().map(|entry| format!("{} {}\n{}", entry.mode, entry.path, text(entry.id))).collect()
}
