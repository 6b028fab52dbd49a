//! Packs that are held in memory until they are written together.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use repos::{Content, Draft, Error, Oid, PackError, Reader, Store, TreeChange, WholePack};

use crate::support::{Repo, git, new_commit, path, put, raw_pack, sha1};

/// A commit of one more file on top of another, and its pack.
fn next(store: &Store, parent: Option<Oid>, number: usize) -> (Oid, Bytes) {
    let mut draft = Draft::new(store).unwrap();
    let tree = parent.map_or(Oid::EMPTY_TREE, |parent| draft.tree_of(parent).unwrap());
    let tree = draft.apply(tree, &[put(&format!("d/{number}"), format!("content {number}\n"))]).unwrap();
    let parents: Vec<Oid> = parent.into_iter().collect();
    let commit = draft.commit(&new_commit(tree, &parents, number as i64)).unwrap();
    (commit, draft.into_pack().unwrap().unwrap().into())
}

fn content(reader: &Reader, commit: Oid, number: usize) -> Option<Vec<u8>> {
    reader.read(commit, &path(&format!("d/{number}")), 1000).ok().flatten().map(|file| file.data)
}

#[test]
fn what_is_held_is_seen_by_readers_that_were_there_and_becomes_one_sound_pack() {
    let repo = Repo::new();
    let early = repo.store.reader().unwrap();
    let mut head = None;
    for number in 0..20 {
        let (commit, pack) = next(&repo.store, head, number);
        repo.store.hold_pack(&pack).unwrap();
        repo.store.hold_pack(&pack).unwrap();
        head = Some(commit);
        assert_eq!(content(&early, commit, number).unwrap(), format!("content {number}\n").into_bytes());
    }
    let head = head.unwrap();
    let prefix = &head.to_string()[..12];
    assert_eq!(early.commit_by_prefix(prefix).unwrap(), Some(head));
    assert_eq!(repo.store.packs().unwrap(), [], "nothing is written before somebody asks");
    assert!(!Store::open(repo.store.path()).unwrap().reader().unwrap().contains(head));

    repo.store.sync().unwrap();
    let packs = repo.store.packs().unwrap();
    assert_eq!(packs.len(), 1);
    git(repo.dir.path(), &["index-pack", "--verify", packs[0].path.to_str().unwrap()]);
    for store in [&repo.store, &Store::open(repo.store.path()).unwrap()] {
        assert_eq!(store.verify(&[head]).unwrap(), []);
        assert_eq!(store.reader().unwrap().commit_by_prefix(prefix).unwrap(), Some(head));
    }
    assert_eq!(content(&early, head, 7).unwrap(), b"content 7\n");
    repo.store.sync().unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 1, "nothing is left to write");
}

/// Objects move from memory to packs under the eyes of readers.
#[test]
fn readers_find_everything_at_every_instant() {
    let repo = Repo::new();
    let mut all = Vec::new();
    for number in 0..200 {
        all.push(next(&repo.store, None, number));
    }
    let (over, store) = (AtomicBool::new(false), &repo.store);
    for (_, pack) in &all[..20] {
        store.hold_pack(pack).unwrap();
    }
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let old = store.reader().unwrap();
            let mut looks = 0;
            while !over.load(Ordering::Acquire) || looks == 0 {
                for (number, (commit, _)) in all.iter().enumerate().take(20) {
                    for reader in [&old, &store.reader().unwrap()] {
                        assert!(content(reader, *commit, number).is_some(), "file {number} is gone");
                        assert!(reader.header(*commit).unwrap().is_some() && reader.contains(*commit));
                    }
                }
                looks += 1;
            }
        });
        // What is looked for moves to the disk, and comes again.
        for (_, pack) in all.iter().chain(&all[..20]) {
            store.hold_pack(pack).unwrap();
            store.write_held().unwrap();
        }
        over.store(true, Ordering::Release);
        reading.join().unwrap();
    });
}

#[test]
fn what_cannot_be_held_is_installed_or_refused() {
    let repo = Repo::new();
    // Too large to be held.
    let mut draft = Draft::new(&repo.store).unwrap();
    let noise: Vec<u8> =
        (0..600_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(600_000).collect();
    let large = TreeChange::Put { path: path("large"), mode: None, content: Content::Bytes(noise.into()) };
    let tree = draft.apply(Oid::EMPTY_TREE, &[large]).unwrap();
    let commit = draft.commit(&new_commit(tree, &[], 1)).unwrap();
    repo.store.hold_pack(&draft.into_pack().unwrap().unwrap().into()).unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 1);
    assert_eq!(repo.store.verify(&[commit]).unwrap(), []);
    // Small, and large once it is unpacked.
    let mut draft = Draft::new(&repo.store).unwrap();
    draft.write_blob(&vec![b'x'; 3 << 20]).unwrap();
    repo.store.hold_pack(&draft.into_pack().unwrap().unwrap().into()).unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 2);

    // Small, and with a delta, as a push brings it.
    let base = b"one line, and another\n";
    let (header, delta) = (format!("blob {}\0", base.len()), vec![base.len() as u8, 8, 0x90, 8]);
    let id = sha1(&[header.as_bytes(), base].concat());
    let pack: Bytes = raw_pack(&[(3, vec![], base.to_vec()), (7, id, delta)]).into();
    assert!(WholePack::scan(&pack).unwrap().is_none());
    repo.store.hold_pack(&pack).unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 3);

    // A pack that is none is refused in the same words, whichever way it would have gone.
    let (_, sound) = next(&repo.store, None, 1);
    for at in 0..sound.len() {
        let mut damaged = sound.to_vec();
        damaged[at] ^= 1;
        let words = |result: Result<_, Error>| match result {
            Err(Error::Pack(error)) if !matches!(error, PackError::Io { .. }) => error.to_string(),
            other => panic!("byte {at}: {other:?}"),
        };
        let held = words(repo.store.hold_pack(&damaged.clone().into()));
        assert_eq!(held, words(repo.store.install_pack(&damaged)));
    }
    repo.store.sync().unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 3, "nothing of them is held");
}
