//! Packs from real git, whole and broken.

use proptest::prelude::*;
use repos::{Oid, PackError, PackLimits, RefMap, RefName, Store};

use crate::support::{Repo, git, git_try, git_with, path, put};

/// A history with files similar enough that git makes deltas.
fn source() -> (Repo, Vec<Oid>) {
    let repo = Repo::new();
    let mut commits: Vec<Oid> = Vec::new();
    let text = |n: u64| {
        (0..400)
            .map(
                |line| {
                    if line == n * 7 { format!("changed {n}\n") } else { format!("line number {line} of the file\n") }
                },
            )
            .collect::<String>()
    };
    for n in 0..12 {
        let parents: Vec<Oid> = commits.last().copied().into_iter().collect();
        commits.push(repo.commit(
            &parents,
            1_700_000_000 + n as i64,
            &[put("dir/big", text(n)), put(&format!("dir/f{n}"), format!("{n}\n"))],
        ));
    }
    let refs = RefMap::from([(RefName::main(), commits[11])]);
    repo.store.project_refs(&refs, &RefName::main()).unwrap();
    (repo, commits)
}

fn pack_objects(repo: &Repo, options: &[&str], revs: &str) -> Vec<u8> {
    let args: Vec<&str> = ["pack-objects", "--stdout", "--revs", "-q", "--no-reuse-delta"]
        .into_iter()
        .chain(options.iter().copied())
        .collect();
    git_with(repo.store.path(), &args, revs.as_bytes())
}

#[test]
fn packs_with_deltas_are_received_checked_and_installed() {
    let (from, commits) = source();
    let tip = commits[11];
    for options in [&["--delta-base-offset"][..], &[], &["--window=0"]] {
        let pack = pack_objects(&from, options, "main\n");
        let to = Repo::new();
        let mut quarantine = to.store.quarantine().unwrap();
        let received = quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
        assert!(received.objects > 30);
        assert!(!to.store.reader().unwrap().contains(tip), "not visible yet");
        assert_eq!(quarantine.reader().unwrap().commit(tip).unwrap().id, tip);
        quarantine.check_new(&[], &[tip], &Default::default()).unwrap();
        let file = quarantine.pack_file().unwrap().to_owned();
        git(to.dir.path(), &["index-pack", "--strict", "-o", "x.idx", file.to_str().unwrap()]);
        // Both ways to install: what the leader has checked itself, and what comes as bytes.
        let bytes = std::fs::read(&file).unwrap();
        to.store.install_pack_file(&file).unwrap();
        drop(quarantine);
        assert!(!file.exists());
        let other = Repo::new();
        other.store.install_pack(&bytes).unwrap();
        for store in [&to.store, &other.store] {
            assert_eq!(store.verify(&[tip]).unwrap(), []);
            store.project_refs(&RefMap::from([(RefName::main(), tip)]), &RefName::main()).unwrap();
            git(store.path(), &["fsck", "--full", "--strict"]);
        }
    }
}

#[test]
fn thin_packs_are_completed() {
    let (from, commits) = source();
    for options in [&["--thin", "--delta-base-offset"][..], &["--thin"]] {
        let to = Repo::new();
        to.store.install_pack(&pack_objects(&from, &[], &format!("{}\n", commits[5]))).unwrap();
        let thin = pack_objects(&from, options, &format!("main\n^{}\n", commits[5]));
        let mut quarantine = to.store.quarantine().unwrap();
        let sent = u32::from_be_bytes([thin[8], thin[9], thin[10], thin[11]]);
        let received = quarantine.receive(&mut thin.as_slice(), &PackLimits::default()).unwrap();
        assert!(received.objects > sent, "bases were added");
        quarantine.check_new(&[commits[5]], &[commits[11]], &Default::default()).unwrap();
        let bytes = std::fs::read(quarantine.pack_file().unwrap()).unwrap();
        drop(quarantine);
        to.store.install_pack(&bytes).unwrap();
        assert_eq!(to.store.verify(&[commits[11]]).unwrap(), []);
        // Where the bases are not, a thin pack is refused by name, and it is refused as a log entry anywhere.
        let empty = Repo::new();
        let refused = empty.store.quarantine().unwrap().receive(&mut thin.as_slice(), &PackLimits::default());
        assert!(matches!(refused, Err(PackError::MissingBase { .. })), "{refused:?}");
        assert!(to.store.install_pack(&thin).is_err());
    }
}

#[test]
fn an_empty_pack_is_fine() {
    let (from, _) = source();
    let pack = pack_objects(&from, &[], "main\n^main\n");
    let to = Repo::new();
    let mut quarantine = to.store.quarantine().unwrap();
    let received = quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    assert_eq!((received.objects, received.pack_path), (0, None));
    assert_eq!(quarantine.pack_file(), None);
    to.store.install_pack(&pack).unwrap();
    assert_eq!(to.store.packs().unwrap(), []);
}

#[test]
fn limits_stop_a_pack() {
    let (from, _) = source();
    let pack = pack_objects(&from, &["--delta-base-offset"], "main\n");
    let refused = |limits: PackLimits| {
        let to = Repo::new();
        match to.store.quarantine().unwrap().receive(&mut pack.as_slice(), &limits) {
            Err(PackError::Limit { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(PackLimits { max_bytes: 1000, ..Default::default() }), "size of the pack");
    assert_eq!(refused(PackLimits { max_objects: 5, ..Default::default() }), "number of objects");
    assert_eq!(refused(PackLimits { max_object_bytes: 5000, ..Default::default() }), "size of an object");
    assert_eq!(refused(PackLimits { max_unpacked_bytes: 20_000, ..Default::default() }), "unpacked size");
    assert_eq!(refused(PackLimits { max_delta_depth: 0, ..Default::default() }), "depth of deltas");
}

#[test]
fn incomplete_histories_are_refused() {
    let (from, commits) = source();
    // Everything but the blobs.
    let pack = pack_objects(&from, &["--filter=blob:none"], "main\n");
    let to = Repo::new();
    let mut quarantine = to.store.quarantine().unwrap();
    quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    let refused = quarantine.check_new(&[], &[commits[11]], &Default::default());
    assert!(matches!(refused, Err(repos::CheckError::Failed(repos::Error::Missing { .. }))), "{refused:?}");
    // History that ends in nothing.
    let pack = pack_objects(&from, &[], &format!("main\n^{}\n", commits[8]));
    let mut quarantine = to.store.quarantine().unwrap();
    quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    assert!(quarantine.check_new(&[], &[commits[11]], &Default::default()).is_err());
    // A tip that never came.
    assert!(quarantine.check_new(&[], &[Oid::from_bytes([5; 20])], &Default::default()).is_err());
}

#[test]
fn a_reader_of_a_quarantine_sees_both() {
    let (from, commits) = source();
    let to = Repo::new();
    to.store.install_pack(&pack_objects(&from, &[], &format!("{}\n", commits[5]))).unwrap();
    let mut quarantine = to.store.quarantine().unwrap();
    quarantine
        .receive(&mut pack_objects(&from, &[], &format!("main\n^{}\n", commits[5])).as_slice(), &PackLimits::default())
        .unwrap();
    let reader = quarantine.reader().unwrap();
    assert!(reader.is_ancestor(commits[0], commits[11]).unwrap());
    assert_eq!(reader.read(commits[11], &path("dir/f3"), 100).unwrap().unwrap().data, b"3\n");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// However a pack is broken: refused, or (where the change was in bytes that do not count) taken as git takes it.
    #[test]
    fn broken_packs_never_do_harm(at in any::<prop::sample::Index>(), flip in 1..=255u8, fix_checksum in any::<bool>(), cut in prop::option::weighted(0.2, any::<prop::sample::Index>())) {
        thread_local! {
            static PACK: Vec<u8> = {
                let (from, commits) = source();
                pack_objects(&from, &["--delta-base-offset"], &format!("{}\n", commits[3]))
            };
        }
        let mut pack = PACK.with(Clone::clone);
        let at = at.index(pack.len());
        pack[at] ^= flip;
        if let Some(cut) = cut {
            pack.truncate(cut.index(pack.len()));
        }
        if fix_checksum && pack.len() > 20 {
            let body = pack.len() - 20;
            let mut hasher = gix_hash(&pack[..body]);
            pack.truncate(body);
            pack.append(&mut hasher);
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::init(&dir.path().join("r.git")).unwrap();
        let received = store.quarantine().unwrap().receive(&mut pack.as_slice(), &PackLimits::default());
        if received.is_ok() {
            let (ok, _, err) = git_try(store.path(), &["index-pack", "--stdin"], &pack);
            prop_assert!(ok, "we took what git refuses: {err}");
        }
    }
}

/// SHA-1 by way of git, which everything here is compared with anyway.
fn gix_hash(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("sha1sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    (0..20).map(|n| u8::from_str_radix(std::str::from_utf8(&out[2 * n..2 * n + 2]).unwrap(), 16).unwrap()).collect()
}
