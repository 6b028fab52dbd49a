//! Figures, not assertions: `cargo test -p repos --release --test core -- --ignored --nocapture figures`.

use std::time::{Duration, Instant};

use repos::{ConsolidateOptions, Draft, LogOptions, MergeMode, Oid, PackLimits, TreeRules};

use crate::draft::large_tree;
use crate::support::{Repo, git_with, new_commit, path, put};

fn show(what: &str, count: u32, took: Duration) {
    println!("{what:<44} {:>9.1} µs", took.as_secs_f64() * 1e6 / f64::from(count));
}

#[test]
#[ignore = "prints figures; run it alone, with --release"]
fn figures() {
    const COMMITS: u32 = 5_000;
    let repo = Repo::new();
    let tree = large_tree(&repo.store);
    let (mut drafting, mut installing, mut merging) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut draft = Draft::new(&repo.store).unwrap();
    let mut tip = draft.commit(&new_commit(tree, &[], 0)).unwrap();
    repo.store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    let first = tip;
    for n in 1..=COMMITS {
        let started = Instant::now();
        let mut draft = Draft::new(&repo.store).unwrap();
        let base = draft.tree_of(tip).unwrap();
        let tree =
            draft.apply(base, &[put(&format!("d{:02}/f{:02}", n % 100, n % 97), format!("changed {n}\n"))]).unwrap();
        tip = draft.commit(&new_commit(tree, &[tip], i64::from(n))).unwrap();
        let pack = draft.into_pack().unwrap().unwrap();
        drafting += started.elapsed();
        let started = Instant::now();
        repo.store.install_pack(&pack).unwrap();
        installing += started.elapsed();
        let started = Instant::now();
        repo.store.consolidate(&ConsolidateOptions::default(), &[tip]).unwrap();
        merging += started.elapsed();
    }
    show("commit of one file: draft and pack", COMMITS, drafting);
    show("install", COMMITS, installing);
    show("consolidate, per commit", COMMITS, merging);
    let packs = repo.store.packs().unwrap();
    println!("{} packs, {} bytes", packs.len(), packs.iter().map(|info| info.bytes).sum::<u64>());

    let reader = repo.store.reader().unwrap();
    let timed = |what: &str, count: u32, run: &mut dyn FnMut()| {
        let started = Instant::now();
        (0..count).for_each(|_| run());
        show(what, count, started.elapsed());
    };
    let (old, new) = (reader.tree_of(first).unwrap(), reader.tree_of(tip).unwrap());
    let parent = reader.tree_of(reader.commit(tip).unwrap().parents[0]).unwrap();
    timed("reader", 1000, &mut || drop(repo.store.reader().unwrap()));
    timed("changes of one commit", 1000, &mut || assert_eq!(reader.changes(Some(parent), new).unwrap().len(), 1));
    timed("changes since the first commit", 10, &mut || drop(reader.changes(Some(old), new).unwrap()));
    timed("list of 10,000 files", 10, &mut || assert_eq!(reader.list(new, None, true).unwrap().len(), 10_000));
    timed("read of one file", 1000, &mut || drop(reader.read(tip, &path("d50/f50"), 1000).unwrap()));
    timed("contains, of what is not there", 1000, &mut || assert!(!reader.contains(Oid::from_bytes([1; 20]))));
    timed("log of 100", 10, &mut || drop(reader.log(tip, &LogOptions::default()).unwrap()));
    timed("log of a path, 10 found", 3, &mut || {
        drop(reader.log(tip, &LogOptions { path: Some(path("d50/f50")), limit: 10, ..LogOptions::default() }).unwrap())
    });
    timed("is_ancestor, first of 5,000", 3, &mut || assert!(reader.is_ancestor(first, tip).unwrap()));
    timed("is_ancestor, of the parent", 100, &mut || {
        assert!(reader.is_ancestor(reader.commit(tip).unwrap().parents[0], tip).unwrap());
    });
    let mut draft = Draft::new(&repo.store).unwrap();
    let ours = draft.apply(new, &[put("d10/f10", "ours")]).unwrap();
    let theirs = draft.apply(new, &[put("d20/f20", "theirs")]).unwrap();
    timed("merge of one file on each side", 100, &mut || {
        assert!(draft.merge(Some(new), ours, theirs, &MergeMode::Refuse).unwrap().conflicts.is_empty());
    });
    timed("verify everything", 1, &mut || assert_eq!(repo.store.verify(&[tip]).unwrap(), []));
    repo.store.project_refs(&[(repos::RefName::main(), tip)].into(), &repos::RefName::main()).unwrap();
    let pack =
        git_with(repo.store.path(), &["pack-objects", "--stdout", "--revs", "-q", "--delta-base-offset"], b"main\n");
    println!("git's own pack of it: {} bytes", pack.len());
    let to = Repo::new();
    let mut quarantine = to.store.quarantine().unwrap();
    timed("receive all of it", 1, &mut || {
        drop(quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap())
    });
    timed("check all of it", 1, &mut || quarantine.check_new(&[], &[tip], &TreeRules::default()).unwrap());
    timed("install what was received", 1, &mut || {
        to.store.install_pack_file(quarantine.pack_file().unwrap()).unwrap();
    });
    timed("install a copy", 1, &mut || {
        let file = to.dir.path().join("copy.pack");
        std::fs::copy(quarantine.pack_file().unwrap(), &file).unwrap();
        Repo::new().store.install_pack_file(&file).unwrap();
    });
}
