//! Packs from real git, whole and broken.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use repos::{Draft, Oid, PackError, PackLimits, RefMap, RefName, Store};

use crate::support::{Repo, git, git_try, git_with, path, put, raw_pack, sha1};

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
            let checksum = sha1(&pack[..body]);
            pack.truncate(body);
            pack.extend(checksum);
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

#[test]
fn hostile_deltas_are_refused() {
    // A base of 100 bytes at offset 12; then a delta that refers to it by distance.
    let base = (3u8, Vec::new(), vec![b'x'; 100]);
    let distance = |pack_with_base: usize| vec![(pack_with_base - 20 - 12) as u8];
    let at = raw_pack(std::slice::from_ref(&base)).len();
    let good = [&[100u8, 100][..], &[0x90, 100]].concat();
    let delta = |head: Vec<u8>, body: Vec<u8>| raw_pack(&[base.clone(), (6, head, body)]);
    let receive = |pack: Vec<u8>| {
        let to = Repo::new();
        let mut quarantine = to.store.quarantine().unwrap();
        quarantine.receive(&mut pack.as_slice(), &PackLimits { max_object_bytes: 1 << 20, ..PackLimits::default() })
    };
    assert!(receive(delta(distance(at), good.clone())).is_ok());
    let bodies: [(&str, Vec<u8>); 9] = [
        ("a base of another size", [&[99u8, 100][..], &[0x90, 100]].concat()),
        ("a result of another size", [&[100u8, 101][..], &[0x90, 100]].concat()),
        ("copies beyond the base", [&[100u8, 100][..], &[0x91, 50, 100]].concat()),
        ("copies more than it says", [&[100u8, 10][..], &[0x90, 100]].concat()),
        ("inserts more than there is", [&[100u8, 100][..], &[0x7f, 1, 2]].concat()),
        ("a reserved instruction", [&[100u8, 100][..], &[0x00]].concat()),
        ("no result", vec![100]),
        ("empty", vec![]),
        ("a huge result", [&[100u8, 0xff, 0xff, 0xff, 0xff, 0x7f][..], &[0x90, 100]].concat()),
    ];
    for (what, body) in bodies {
        let refused = receive(delta(distance(at), body));
        assert!(matches!(refused, Err(PackError::Damaged { .. } | PackError::Limit { .. })), "{what}: {refused:?}");
    }
    for (what, head) in [
        ("itself", vec![0u8]),
        ("before the pack", vec![0xff, 0x7f]),
        ("the middle of an entry", vec![(at - 20 - 12 - 1) as u8]),
    ] {
        let refused = receive(delta(head, good.clone()));
        assert!(matches!(refused, Err(PackError::Damaged { .. })), "{what}: {refused:?}");
    }
    // Two that stand on each other by name: no name can be known.
    let circle = raw_pack(&[(7, vec![1; 20], good.clone()), (7, vec![2; 20], good)]);
    assert!(matches!(receive(circle), Err(PackError::MissingBase { .. })));
    // The same object twice is odd, and harmless.
    let twice = raw_pack(&[base.clone(), base.clone()]);
    assert!(receive(twice).is_ok());
    // A bomb: much out of little.
    let zeros = vec![0u8; 2000];
    let bomb = raw_pack(&(0..600).map(|_| (3, Vec::new(), zeros.clone())).collect::<Vec<_>>());
    let to = Repo::new();
    let limits = PackLimits { max_unpacked_bytes: 1_000_000, ..PackLimits::default() };
    assert!(matches!(
        to.store.quarantine().unwrap().receive(&mut bomb.as_slice(), &limits),
        Err(PackError::Limit { .. })
    ));
}

/// The larger ones are removed by somebody else, and the next quarantine does not see them.
#[test]
fn a_large_quarantine_goes_as_well() {
    let to = Repo::new();
    let mut draft = Draft::new(&to.store).unwrap();
    let noise: Vec<u8> = (0..500_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    draft.write_blob(&noise).unwrap();
    let pack = draft.into_pack().unwrap().unwrap();
    let mut quarantine = to.store.quarantine().unwrap();
    quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    let file = quarantine.pack_file().unwrap().to_owned();
    assert!(file.metadata().unwrap().len() > 1 << 20);
    drop(quarantine);
    let next = to.store.quarantine().unwrap();
    assert!(next.pack_file().is_none());
    let deadline = Instant::now() + Duration::from_secs(20);
    while file.exists() {
        assert!(Instant::now() < deadline, "it stays");
        std::thread::yield_now();
    }
}
