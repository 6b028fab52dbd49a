//! Logs, ancestry and patches, against git.

use proptest::prelude::*;
use repos::{LogOptions, Mode, Oid, PatchOptions, RepoPath};

use crate::support::{Repo, delete, git_try, git_with, path, put, put_mode};

/// Random histories: each commit has up to two earlier parents and a time that need not be sensible.
fn some_history() -> impl Strategy<Value = Vec<(Vec<prop::sample::Index>, i64, u8, u8)>> {
    let parents = prop::collection::vec(any::<prop::sample::Index>(), 1..3);
    prop::collection::vec((parents, 1_000_000..1_000_030i64, 0..4u8, any::<u8>()), 1..14)
}

fn build(repo: &Repo, history: &[(Vec<prop::sample::Index>, i64, u8, u8)]) -> Vec<Oid> {
    let mut commits: Vec<Oid> = Vec::new();
    for (parents, time_s, file, byte) in history {
        let mut chosen: Vec<Oid> = match commits.len() {
            0 => Vec::new(),
            count => parents.iter().map(|index| commits[index.index(count)]).collect(),
        };
        chosen.dedup();
        let change = put(&format!("dir/f{file}"), vec![*byte]);
        commits.push(repo.commit(&chosen, *time_s, &[change]));
    }
    commits
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn ancestry_is_gits(history in some_history()) {
        let repo = Repo::new();
        let commits = build(&repo, &history);
        let reader = repo.store.reader().unwrap();
        let all: Vec<String> = commits.iter().map(ToString::to_string).collect();
        for a in commits.iter().take(6) {
            for b in commits.iter().rev().take(6) {
                let (yes, _, _) = git_try(repo.store.path(), &["merge-base", "--is-ancestor", &a.to_string(), &b.to_string()], b"");
                prop_assert_eq!(reader.is_ancestor(*a, *b).unwrap(), yes, "{} {} in {:?}", a, b, &all);
                let (_, bases, _) = git_try(repo.store.path(), &["merge-base", "--all", &a.to_string(), &b.to_string()], b"");
                let bases = String::from_utf8(bases).unwrap();
                match reader.merge_base(*a, *b).unwrap() {
                    Some(base) => prop_assert!(bases.contains(&base.to_string()), "{base} not among {bases}"),
                    None => prop_assert_eq!(bases, ""),
                }
            }
        }
        // The same set of commits, with and without something hidden.
        let (tip, hidden) = (commits[commits.len() - 1], commits[0]);
        for (options, spec) in [
            (LogOptions { limit: 1000, ..LogOptions::default() }, vec![tip.to_string()]),
            (LogOptions { limit: 1000, hide: vec![hidden], ..LogOptions::default() }, vec![tip.to_string(), format!("^{hidden}")]),
            (LogOptions { limit: 1000, first_parent: true, ..LogOptions::default() }, vec!["--first-parent".into(), tip.to_string()]),
        ] {
            let mut ours: Vec<String> = reader.log(tip, &options).unwrap().iter().map(|commit| commit.id.to_string()).collect();
            let args: Vec<&str> = ["rev-list"].into_iter().chain(spec.iter().map(String::as_str)).collect();
            let out = repo.git(&args);
            let mut theirs: Vec<String> = out.lines().map(str::to_owned).collect();
            ours.sort();
            theirs.sort();
            prop_assert_eq!(ours, theirs);
        }
    }
}

#[test]
fn log_of_a_path() {
    let repo = Repo::new();
    let first = repo.commit(&[], 1, &[put("a", "1"), put("d/x", "1")]);
    let second = repo.commit(&[first], 2, &[put("a", "2")]);
    let third = repo.commit(&[second], 3, &[put("d/y", "1")]);
    let fourth = repo.commit(&[third], 4, &[delete("a")]);
    let reader = repo.store.reader().unwrap();
    let log = |at: &str, options: LogOptions| -> Vec<Oid> {
        let options = LogOptions { path: Some(path(at)), ..options };
        reader.log(fourth, &options).unwrap().iter().map(|commit| commit.id).collect()
    };
    assert_eq!(log("a", LogOptions::default()), [fourth, second, first]);
    assert_eq!(log("d", LogOptions::default()), [third, first]);
    assert_eq!(log("d/x", LogOptions::default()), [first]);
    assert_eq!(log("a", LogOptions { limit: 1, skip: 1, ..LogOptions::default() }), [second]);
    assert_eq!(log("a", LogOptions { max_visited: 2, ..LogOptions::default() }), [fourth]);
    assert_eq!(log("none", LogOptions::default()), []);
}

#[test]
fn a_shallow_history_ends_where_it_is_told_to() {
    let repo = Repo::new();
    let mut draft = repos::Draft::new(&repo.store).unwrap();
    let absent = Oid::from_bytes([9; 20]);
    let oldest = draft.commit(&crate::support::new_commit(Oid::EMPTY_TREE, &[absent], 1)).unwrap();
    let tip = draft.commit(&crate::support::new_commit(Oid::EMPTY_TREE, &[oldest], 2)).unwrap();
    repo.store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    assert!(repo.store.reader().unwrap().log(tip, &LogOptions::default()).is_err());
    let reader = repo.store.reader().unwrap().with_shallow([oldest]);
    assert_eq!(reader.log(tip, &LogOptions::default()).unwrap().len(), 2);
}

fn some_text() -> impl Strategy<Value = String> {
    (prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "", "  x", "y y"]), 0..30), any::<bool>())
        .prop_map(|(lines, end)| format!("{}{}", lines.join("\n"), if end { "\n" } else { "" }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    // Without context even git does not get back what it wrote, where a file ends without a newline.
    #[test]
    fn git_applies_our_patches(old in prop::collection::vec(prop::option::of(some_text()), 3), new in prop::collection::vec(prop::option::of(some_text()), 3), context in 1..4u32) {
        let names = ["plain", "dir/with space", "ü\"\t"];
        let repo = Repo::new();
        let files = |texts: &[Option<String>]| -> Vec<repos::TreeChange> {
            texts.iter().zip(names).filter_map(|(text, name)| Some(put_mode(name, if text.as_ref()?.len() % 5 == 0 { Mode::Exec } else { Mode::File }, text.clone()?))).collect()
        };
        let mut draft = repos::Draft::new(&repo.store).unwrap();
        let old_tree = draft.apply(Oid::EMPTY_TREE, &files(&old)).unwrap();
        let new_tree = draft.apply(Oid::EMPTY_TREE, &files(&new)).unwrap();
        if let Some(pack) = draft.into_pack().unwrap() {
            repo.store.install_pack(&pack).unwrap();
        }
        let reader = repo.store.reader().unwrap();
        let patch = reader.patch(Some(old_tree), new_tree, &PatchOptions { context, ..PatchOptions::default() }).unwrap();
        prop_assert_eq!(patch.text.is_empty(), old_tree == new_tree);
        if old_tree != new_tree {
            repo.git(&["read-tree", &old_tree.to_string()]);
            let (ok, _, err) = git_try(repo.store.path(), &["apply", "--cached", "--unidiff-zero"], &patch.text);
            prop_assert!(ok, "{err}\n{}", String::from_utf8_lossy(&patch.text));
            prop_assert_eq!(repo.git(&["write-tree"]).trim().to_owned(), new_tree.to_string(), "{}", String::from_utf8_lossy(&patch.text));
        }
    }
}

#[test]
fn patches_look_like_gits() {
    let repo = Repo::new();
    let long: String = (1..40).map(|n| format!("line {n}\n")).collect();
    let first = repo.commit(
        &[],
        1,
        &[put("text", long.clone()), put("gone", "x\n"), put("bin", vec![0, 1]), put("same", "s"), put("run", "r\n")],
    );
    let changed = long.replace("line 7\n", "line seven\n").replace("line 30\n", "");
    let second = repo.commit(
        &[first],
        2,
        &[
            put("text", changed),
            delete("gone"),
            put("bin", vec![0, 2]),
            put("new dir/file", "no newline"),
            put_mode("run", Mode::Exec, "r\n"),
            put("empty", ""),
        ],
    );
    let reader = repo.store.reader().unwrap();
    let (old, new) = (reader.tree_of(first).unwrap(), reader.tree_of(second).unwrap());
    let ours = reader.patch(Some(old), new, &PatchOptions::default()).unwrap();
    let theirs = git_with(
        repo.store.path(),
        &["diff", "--no-renames", "--abbrev=12", "--diff-algorithm=histogram", &old.to_string(), &new.to_string()],
        b"",
    );
    // git adds the nearest line that looks like a function to "@@"; we do not.
    let theirs: String = String::from_utf8(theirs)
        .unwrap()
        .lines()
        .map(|line| match line.strip_prefix("@@").and_then(|rest| rest.find("@@")) {
            Some(end) => format!("{}\n", &line[..end + 4]),
            None => format!("{line}\n"),
        })
        .collect();
    assert_eq!(String::from_utf8(ours.text).unwrap(), theirs);
    assert_eq!(ours.files, 6);
    let bounded = reader.patch(Some(old), new, &PatchOptions { limit_bytes: 200, ..PatchOptions::default() }).unwrap();
    assert!(bounded.truncated && bounded.text.len() <= 200);
    let narrowed = reader
        .patch(
            Some(old),
            new,
            &PatchOptions { path: Some(RepoPath::new("new dir").unwrap()), ..PatchOptions::default() },
        )
        .unwrap();
    assert_eq!(narrowed.files, 1);
}
