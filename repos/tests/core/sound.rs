//! What a disk spoiled must be found, must never be read as something else, and must never end the process.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use repos::{ConsolidateOptions, ObjectKind, Oid, Store};

use crate::support::{Repo, put};

/// Objects with kind and content.
type Objects = Vec<(Oid, ObjectKind, Vec<u8>)>;

/// Three commits whose packs were merged into one, which then has deltas; and everything that is in it.
fn merged() -> (Repo, Oid, Objects) {
    let repo = Repo::new();
    let mut tip = Oid::NULL;
    let text = |n: i64| (0..60).map(|line| format!("line {} of {n}\n", line * (n % 2 + 1))).collect::<String>();
    for number in 1..=3 {
        let parents: Vec<Oid> = Some(tip).filter(|tip| !tip.is_null()).into_iter().collect();
        tip = repo.commit(&parents, number, &[put("a/file", text(number)), put("b", format!("{number}"))]);
        repo.store.sync().unwrap();
    }
    let options = ConsolidateOptions { min_packs: 2, factor: 2 };
    repo.store.consolidate(&options, &[tip]).unwrap();
    assert_eq!(repo.store.packs().unwrap().len(), 1);
    let list = repo.git(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let reader = repo.store.reader().unwrap();
    let objects = list.lines().map(|line| {
        let id: Oid = line.parse().unwrap();
        let object = reader.object(id, u64::MAX).unwrap();
        (id, object.kind, object.data)
    });
    let objects = objects.collect();
    (repo, tip, objects)
}

fn files(repo: &Repo) -> (PathBuf, PathBuf) {
    let pack = repo.store.packs().unwrap().remove(0).path;
    (pack.clone(), pack.with_extension("idx"))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Every object is what it was, or an error.
fn reads_nothing_wrong(store: &Store, objects: &Objects, what: &str) {
    let reader = store.reader().unwrap();
    for (id, kind, data) in objects.iter() {
        if let Ok(found) = reader.object(*id, u64::MAX) {
            assert_eq!((found.kind, &found.data), (*kind, data), "{what}: object {id}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_reads_as_nothing_else() {
    let (repo, tip, objects) = merged();
    let (pack, index) = files(&repo);
    for path in [&pack, &index] {
        let sound = fs::read(path).unwrap();
        // Every bit position comes up, though not at every byte.
        let step = if path == &index { 11 } else { 3 };
        for at in (0..sound.len()).step_by(step) {
            let what = format!("{} byte {at}", path.display());
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            write(path, &bytes);
            let store = Store::open(repo.store.path()).unwrap();
            assert_eq!(store.check_packs(&mut |_| true).unwrap().len(), 1, "{what}");
            reads_nothing_wrong(&store, &objects, &what);
            assert!(store.verify(&[tip]).is_ok());
        }
        write(path, &sound);
    }
    assert_eq!(Store::open(repo.store.path()).unwrap().check_packs(&mut |_| true).unwrap(), []);
}

#[test]
fn a_cut_pack_is_found_and_ends_nothing() {
    let (repo, tip, objects) = merged();
    let (pack, index) = files(&repo);
    for path in [&pack, &index] {
        let sound = fs::read(path).unwrap();
        for length in (0..sound.len()).step_by(97) {
            let what = format!("{} cut at {length}", path.display());
            write(path, &sound[..length]);
            let store = Store::open(repo.store.path()).unwrap();
            assert_eq!(store.check_packs(&mut |_| true).unwrap().len(), 1, "{what}");
            reads_nothing_wrong(&store, &objects, &what);
            // What is cut off may be no more than a checksum.
            let lacks = path == &pack && length + 20 < sound.len();
            assert!(!lacks || !store.verify(&[tip]).unwrap().is_empty(), "{what}");
        }
        write(path, &sound);
    }
}

/// A store that has mapped a torn pack goes on with the sound one that takes its place, and with what is left when it is set aside.
#[test]
fn a_spoiled_pack_is_exchanged_under_an_open_store() {
    let (repo, tip, objects) = merged();
    let (pack, index) = files(&repo);
    let (sound, sound_index) = (fs::read(&pack).unwrap(), fs::read(&index).unwrap());
    let mut bad = sound.clone();
    bad[sound.len() / 2..].fill(0);
    write(&pack, &bad);
    let mut bad_index = sound_index.clone();
    bad_index[1100] ^= 0x10;
    write(&index, &bad_index);

    let store = Store::open(repo.store.path()).unwrap();
    assert!(!store.verify(&[tip]).unwrap().is_empty());
    assert!(store.damaged_reads() > 0);
    store.install_pack(&sound).unwrap();
    assert_eq!(store.verify(&[tip]).unwrap(), []);

    write(&pack, &bad);
    let found = store.check_packs(&mut |_| true).unwrap();
    let aside = repo.dir.path().join("aside");
    store.set_aside(&found, &aside).unwrap();
    assert_eq!(fs::read_dir(&aside).unwrap().count(), 2);
    assert!(!store.reader().unwrap().contains(tip));
    store.install_pack(&sound).unwrap();
    store.sync().unwrap();
    reads_nothing_wrong(&store, &objects, "after it was set aside");
    assert_eq!(store.verify(&[tip]).unwrap(), []);
    assert_eq!(repo.git(&["fsck", "--strict", "--no-dangling"]).trim(), "");
}

#[test]
fn a_check_can_be_ended() {
    let (repo, tip, _) = merged();
    let mut objects = 0;
    let found = repo.store.verify_while(&[tip], &mut |verified| {
        objects = verified.objects;
        verified.objects < 2
    });
    assert_eq!((found.unwrap(), objects), (Vec::new(), 2));
    assert_eq!(repo.store.check_packs(&mut |_| false).unwrap(), []);
}
