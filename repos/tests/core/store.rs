//! Installing packs, references, what crashes leave behind.

use repos::{Draft, Error, Oid, PackError, RefMap, RefName, Store};

use crate::support::{Repo, git, new_commit, path, put};

#[test]
fn git_accepts_what_we_store() {
    let repo = Repo::new();
    let first = repo.commit(&[], 1_700_000_000, &[put("a/b", "one\n"), put("c", "two\n")]);
    let second = repo.commit(&[first], 1_700_000_001, &[put("a/b", "three\n")]);
    let refs = RefMap::from([(RefName::main(), second), (RefName::tag("v1").unwrap(), first)]);
    repo.store.project_refs(&refs, &RefName::main()).unwrap();
    repo.store.sync().unwrap();
    repo.git(&["fsck", "--full", "--strict"]);
    assert_eq!(repo.git(&["rev-parse", "HEAD"]).trim(), second.to_string());
    assert_eq!(repo.git(&["rev-parse", "v1"]).trim(), first.to_string());
    assert_eq!(repo.git(&["show", "HEAD:a/b"]), "three\n");
    for info in repo.store.packs().unwrap() {
        git(repo.dir.path(), &["index-pack", "--verify", info.path.to_str().unwrap()]);
    }
    assert_eq!(repo.store.verify(&[second]).unwrap(), []);
    let file = repo.store.reader().unwrap().read(second, &path("a/b"), 100).unwrap().unwrap();
    assert_eq!(file.data, b"three\n");
}

#[test]
fn references_follow_the_map_even_when_git_wrote_its_own() {
    let repo = Repo::new();
    let first = repo.commit(&[], 1, &[put("a", "1")]);
    let second = repo.commit(&[first], 2, &[put("a", "2")]);
    let main = |id| RefMap::from([(RefName::main(), id)]);
    repo.store.project_refs(&main(first), &RefName::main()).unwrap();
    repo.git(&["update-ref", "refs/heads/x/y", &second.to_string()]);
    repo.git(&["update-ref", "refs/heads/main", &first.to_string()]);
    repo.store.project_refs(&main(second), &RefName::main()).unwrap();
    assert_eq!(repo.git(&["for-each-ref", "--format=%(refname) %(objectname)"]), format!("refs/heads/main {second}\n"));
}

#[test]
fn annotated_tags_are_peeled() {
    let repo = Repo::new();
    let commit = repo.commit(&[], 1, &[put("a", "1")]);
    repo.git(&["tag", "-a", "-m", "note", "v1", &commit.to_string()]);
    let tag: Oid = repo.git(&["rev-parse", "v1"]).trim().parse().unwrap();
    assert_ne!(tag, commit);
    assert_eq!(repo.store.reader().unwrap().peel(tag).unwrap().0, commit);
    repo.store.project_refs(&RefMap::from([(RefName::tag("v1").unwrap(), tag)]), &RefName::main()).unwrap();
    assert_eq!(repo.git(&["rev-parse", "v1^{commit}"]).trim(), commit.to_string());
}

#[test]
fn installing_again_is_harmless_and_repairs() {
    let repo = Repo::new();
    let mut draft = Draft::new(&repo.store).unwrap();
    let tree = draft.apply(Oid::EMPTY_TREE, &[put("a", "content")]).unwrap();
    let commit = draft.commit(&new_commit(tree, &[], 1)).unwrap();
    let pack = draft.into_pack().unwrap().unwrap();
    let id = repo.store.install_pack(&pack).unwrap();
    assert_eq!(repo.store.install_pack(&pack).unwrap(), id);
    assert_eq!(repo.store.packs().unwrap().len(), 1);
    // What a power cut can leave of files that were not synced.
    let on_disk = repo.store.packs().unwrap()[0].path.clone();
    for damage in [on_disk.clone(), on_disk.with_extension("idx")] {
        let length = std::fs::metadata(&damage).unwrap().len() as usize;
        std::fs::remove_file(&damage).unwrap();
        std::fs::write(&damage, vec![0; length]).unwrap();
        let store = Store::open(repo.store.path()).unwrap();
        assert_eq!(store.install_pack(&pack).unwrap(), id);
        store.sync().unwrap();
        let fresh = Store::open(repo.store.path()).unwrap();
        assert_eq!(fresh.verify(&[commit]).unwrap(), [], "{}", damage.display());
    }
}

#[test]
fn a_pack_file_is_installed_like_its_bytes() {
    let repo = Repo::new();
    let mut draft = Draft::new(&repo.store).unwrap();
    let tree = draft.apply(Oid::EMPTY_TREE, &[put("a", "content")]).unwrap();
    let pack = draft.into_pack().unwrap().unwrap();
    let file = repo.dir.path().join("some.pack");
    std::fs::write(&file, &pack).unwrap();
    let id = repo.store.install_pack_file(&file).unwrap();
    assert_eq!(repo.store.install_pack_file(&file).unwrap(), id);
    assert!(file.exists());
    assert!(repo.store.reader().unwrap().contains(tree));
}

#[test]
fn damaged_packs_are_refused_and_leave_nothing() {
    let repo = Repo::new();
    let mut draft = Draft::new(&repo.store).unwrap();
    draft.apply(Oid::EMPTY_TREE, &[put("a", "content"), put("b/c", "more")]).unwrap();
    let pack = draft.into_pack().unwrap().unwrap();
    for at in 0..pack.len() {
        let mut damaged = pack.clone();
        damaged[at] ^= 0x40;
        assert!(matches!(repo.store.install_pack(&damaged), Err(Error::Pack(_))), "byte {at}");
        match repo.store.install_pack(&pack[..at]) {
            Err(Error::Pack(PackError::Truncated { .. } | PackError::Damaged { .. })) => {}
            other => panic!("cut at {at}: {other:?}"),
        }
    }
    let mut longer = pack.clone();
    longer.push(0);
    assert!(repo.store.install_pack(&longer).is_err());
    assert_eq!(repo.store.packs().unwrap(), []);
}

#[test]
fn readers_see_what_is_installed_later() {
    let repo = Repo::new();
    let reader = repo.store.reader().unwrap();
    let commit = repo.commit(&[], 1, &[put("a", "1")]);
    assert_eq!(reader.commit(commit).unwrap().message, "at 1\n");
}

#[test]
fn what_a_crash_left_is_removed_and_what_is_in_use_is_not() {
    let repo = Repo::new();
    let root = repo.store.path().to_owned();
    let quarantine = repo.store.quarantine().unwrap();
    std::fs::create_dir_all(root.join("quarantine/s-dead/received-0")).unwrap();
    let entries = || {
        let names = std::fs::read_dir(root.join("quarantine")).unwrap();
        names.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    assert_eq!(entries(), 2);
    let second = Store::open(&root).unwrap();
    assert_eq!(entries(), 1, "only the dead one goes");
    drop((quarantine, second));
    drop(repo.store);
    assert_eq!(entries(), 0);
    drop(repo.dir);
}

#[test]
fn half_a_pack_is_removed() {
    let repo = Repo::new();
    let commit = repo.commit(&[], 1, &[put("a", "1")]);
    let orphan = repo.store.objects_dir().join(format!("pack/pack-{}.pack", Oid::from_bytes([3; 20])));
    std::fs::write(&orphan, "half").unwrap();
    Store::open(repo.store.path()).unwrap();
    assert!(orphan.exists(), "somebody may be at work on it");
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
    std::fs::File::options().write(true).open(&orphan).unwrap().set_modified(yesterday).unwrap();
    let again = Store::open(repo.store.path()).unwrap();
    assert!(!orphan.exists());
    assert_eq!(again.verify(&[commit]).unwrap(), []);
}

#[test]
fn all_of_it_can_go_to_another_thread() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<repos::Reader>();
    is_send::<Draft>();
    is_send::<repos::Quarantine>();
    is_send::<Store>();
    is_sync::<Store>();
}

#[test]
fn an_object_directory_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "-b", "main", "wc"]);
    let store = Store::open_objects(&dir.path().join("wc/.git/objects")).unwrap();
    let mut draft = Draft::new(&store).unwrap();
    let tree = draft.apply(Oid::EMPTY_TREE, &[put("a", "1")]).unwrap();
    let commit = draft.commit(&new_commit(tree, &[], 1)).unwrap();
    store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    assert_eq!(git(&dir.path().join("wc"), &["show", &format!("{commit}:a")]), "1");
    git(&dir.path().join("wc"), &["fsck", "--strict"]);
}

#[test]
fn loose_objects_of_others_are_read() {
    let repo = Repo::new();
    let file = repo.dir.path().join("x");
    std::fs::write(&file, "x".repeat(5000)).unwrap();
    let id: Oid = repo.git(&["hash-object", "-w", file.to_str().unwrap()]).trim().parse().unwrap();
    assert_eq!(repo.store.reader().unwrap().blob(id, 10_000).unwrap().len(), 5000);
    assert!(matches!(repo.store.reader().unwrap().blob(id, 10), Err(Error::TooLarge { .. })));
}

#[test]
fn verify_finds_what_is_missing() {
    let repo = Repo::new();
    let mut draft = Draft::new(&repo.store).unwrap();
    let lost = Oid::from_bytes([7; 20]);
    let commit = draft.commit(&new_commit(lost, &[], 1)).unwrap();
    repo.store.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    let problems = repo.store.verify(&[commit]).unwrap();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].id, problems[0].referrer), (lost, Some(commit)));
}

#[test]
fn commits_are_found_by_prefix() {
    let repo = Repo::new();
    let commit = repo.commit(&[], 1, &[put("a", "1")]);
    let reader = repo.store.reader().unwrap();
    let hex = commit.to_string();
    assert_eq!(reader.commit_by_prefix(&hex[..8]).unwrap(), Some(commit));
    assert_eq!(reader.commit_by_prefix(&hex).unwrap(), Some(commit));
    assert_eq!(reader.commit_by_prefix("zz").unwrap(), None);
    let tree = reader.tree_of(commit).unwrap().to_string();
    assert_eq!(reader.commit_by_prefix(&tree[..8]).unwrap(), None);
}
