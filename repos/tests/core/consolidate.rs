//! Many packs into few, while others read.

use std::sync::atomic::{AtomicBool, Ordering};

use repos::{ConsolidateOptions, Oid, RefMap, RefName, Store};

use crate::support::{Repo, git, put};

fn many(repo: &Repo, count: i64) -> Vec<Oid> {
    let mut commits: Vec<Oid> = Vec::new();
    for n in 0..count {
        let parents: Vec<Oid> = commits.last().copied().into_iter().collect();
        let lines: String = (0..50).map(|line| format!("{}\n", line * (n % 7))).collect();
        commits.push(repo.commit(&parents, n, &[put(&format!("d/f{}", n % 5), lines), put("n", n.to_string())]));
    }
    commits
}

fn few() -> ConsolidateOptions {
    ConsolidateOptions { min_packs: 2, ..ConsolidateOptions::default() }
}

#[test]
fn small_packs_become_one() {
    let repo = Repo::new();
    let commits = many(&repo, 30);
    let untouched = repo.store.consolidate(&ConsolidateOptions::default(), &[]).unwrap();
    assert_eq!((untouched.packs_before, untouched.packs_after, untouched.objects), (30, 30, 0));
    let done = repo.store.consolidate(&few(), &commits[29..]).unwrap();
    assert_eq!((done.packs_before, done.packs_after), (30, 1));
    assert_eq!(repo.store.packs().unwrap().len(), 1);
    assert_eq!(repo.store.verify(&commits).unwrap(), []);
    repo.store.project_refs(&RefMap::from([(RefName::main(), commits[29])]), &RefName::main()).unwrap();
    git(repo.store.path(), &["fsck", "--full", "--strict"]);
    git(
        repo.store.path(),
        &["index-pack", "--strict", "--verify", repo.store.packs().unwrap()[0].path.to_str().unwrap()],
    );
    // Nothing left to do.
    assert_eq!(repo.store.consolidate(&few(), &[]).unwrap().packs_after, 1);
}

#[test]
fn small_changes_take_little_room() {
    let repo = Repo::new();
    let files: Vec<repos::TreeChange> =
        (0..400).map(|n| put(&format!("d{}/f{n}", n % 4), format!("file {n}\n").repeat(20))).collect();
    let mut commits = vec![repo.commit(&[], 0, &files)];
    for n in 1..150i64 {
        let text = format!("file {n}\n").repeat(20) + &format!("and line {n}\n") + &"more\n".repeat(30);
        commits.push(repo.commit(&commits[commits.len() - 1..], n, &[put(&format!("d{}/f{}", n % 3, n % 9), text)]));
        if n % 40 == 0 {
            repo.store.consolidate(&few(), &commits[commits.len() - 1..]).unwrap();
        }
    }
    let bytes = || repo.store.packs().unwrap().iter().map(|info| info.bytes).sum::<u64>();
    let before = bytes();
    repo.store.consolidate(&ConsolidateOptions { min_packs: 2, factor: 1000 }, &commits[commits.len() - 1..]).unwrap();
    let after = bytes();
    println!("{before} bytes before, {after} after");
    assert!(after < 150 * 700 + 100_000, "{after}");
    assert_eq!(repo.store.verify(&commits).unwrap(), []);
    let pack = repo.store.packs().unwrap()[0].path.clone();
    git(repo.store.path(), &["index-pack", "--strict", "--verify", pack.to_str().unwrap()]);
    // No chain is deeper than git's own.
    let listing = git(repo.store.path(), &["verify-pack", "-v", pack.with_extension("idx").to_str().unwrap()]);
    let depths =
        listing.lines().filter_map(|line| line.strip_prefix("chain length = ")?.split(':').next()?.parse::<u32>().ok());
    assert!((10..=51).contains(&depths.max().unwrap()), "{listing}");
}

#[test]
fn large_packs_are_left_alone() {
    let repo = Repo::new();
    many(&repo, 40);
    repo.store.consolidate(&few(), &[]).unwrap();
    let large = repo.store.packs().unwrap()[0].id;
    let tip = many(&repo, 3).pop().unwrap();
    let after = repo.store.commit_small(tip, 4);
    let done = repo.store.consolidate(&few(), &[]).unwrap();
    assert!(done.objects < 30, "{done:?}");
    assert!(repo.store.packs().unwrap().iter().any(|info| info.id == large));
    assert_eq!(repo.store.verify(&[after]).unwrap(), []);
}

trait CommitSmall {
    fn commit_small(&self, parent: Oid, count: i64) -> Oid;
}

impl CommitSmall for Store {
    fn commit_small(&self, parent: Oid, count: i64) -> Oid {
        let mut tip = parent;
        for n in 0..count {
            let mut draft = repos::Draft::new(self).unwrap();
            let tree = draft.apply(draft.tree_of(tip).unwrap(), &[put("small", format!("small {n}"))]).unwrap();
            tip = draft.commit(&crate::support::new_commit(tree, &[tip], 1000 + n)).unwrap();
            self.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
        }
        tip
    }
}

#[test]
fn packs_with_deltas_and_duplicates_are_glued() {
    let from = Repo::new();
    let commits = many(&from, 20);
    let to = Repo::new();
    // Overlapping packs with deltas of both sorts, as pushes bring them.
    for (at, options) in [(5, &["--delta-base-offset"][..]), (12, &[]), (19, &["--delta-base-offset"]), (8, &[])] {
        let args: Vec<&str> =
            ["pack-objects", "--stdout", "--revs", "-q"].into_iter().chain(options.iter().copied()).collect();
        let pack = crate::support::git_with(from.store.path(), &args, format!("{}\n", commits[at]).as_bytes());
        to.store.install_pack(&pack).unwrap();
    }
    let before = to.store.packs().unwrap();
    assert_eq!(before.len(), 4);
    let done = to.store.consolidate(&ConsolidateOptions { min_packs: 2, factor: 100 }, &[]).unwrap();
    assert_eq!(done.packs_after, 1);
    assert!(done.bytes < before.iter().map(|info| info.bytes).sum());
    assert_eq!(to.store.verify(&commits).unwrap(), []);
    git(to.store.path(), &["index-pack", "--strict", "--verify", to.store.packs().unwrap()[0].path.to_str().unwrap()]);
}

#[test]
fn readers_never_miss_an_object() {
    let repo = Repo::new();
    let commits = many(&repo, 60);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|n| {
                let (store, commits, stop) = (repo.store.clone(), &commits, &stop);
                scope.spawn(move || {
                    let mut rounds = 0;
                    // Old readers that have opened few packs, and new ones.
                    let old = store.reader().unwrap();
                    while !stop.load(Ordering::Relaxed) || rounds < 2 {
                        let fresh = store.reader().unwrap();
                        for commit in commits.iter().skip(n) {
                            for reader in [&old, &fresh] {
                                let tree = reader.tree_of(*commit).unwrap();
                                assert!(
                                    reader
                                        .list(tree, None, true)
                                        .unwrap()
                                        .iter()
                                        .all(|entry| reader.blob(entry.id, 10_000).is_ok())
                                );
                            }
                        }
                        rounds += 1;
                    }
                })
            })
            .collect();
        let mut tip = commits[59];
        for _ in 0..6 {
            repo.store.consolidate(&few(), &[]).unwrap();
            tip = repo.store.commit_small(tip, 5);
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(repo.store.verify(&[tip]).unwrap(), []);
    });
}

#[test]
fn a_new_pack_with_the_name_of_an_old_one_is_kept() {
    let repo = Repo::new();
    many(&repo, 3);
    repo.store.consolidate(&few(), &[]).unwrap();
    let only = repo.store.packs().unwrap();
    assert_eq!(repo.store.consolidate(&ConsolidateOptions { min_packs: 1, factor: 1000 }, &[]).unwrap().packs_after, 1);
    assert_eq!(repo.store.packs().unwrap(), only);
}

/// Freeing a removed file's blocks can take milliseconds; no reader shall be the one that has to wait for it.
#[test]
#[cfg(target_os = "linux")]
fn removed_packs_are_mapped_by_nobody() {
    let repo = Repo::new();
    let commits = many(&repo, 30);
    let reader = repo.store.reader().unwrap();
    assert!(commits.iter().all(|commit| reader.commit(*commit).is_ok()));
    drop(reader);
    let maps = || {
        let all = std::fs::read_to_string("/proc/self/maps").unwrap();
        let root = repo.store.path().to_str().unwrap().to_owned();
        all.lines().filter(|line| line.contains(&root)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(maps().len() >= 30, "all packs were read");
    repo.store.consolidate(&few(), &commits[29..]).unwrap();
    let left = maps();
    assert!(left.len() <= 2 && !left.iter().any(|line| line.contains("(deleted)")), "{left:#?}");
    assert_eq!(repo.store.verify(&commits).unwrap(), []);
}
