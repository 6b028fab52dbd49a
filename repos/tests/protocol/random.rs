//! Random histories: a node that has one commit and fetches another ends up with all of it, and is sent nothing that it
//! did not ask for.
//!
//! Few names and few contents, so that files come back, move, and turn into directories; commit times that lie.

use proptest::prelude::*;
use repos::protocol::client::{FetchRequest, fetch_request, read_fetch_response};
use repos::protocol::upload_pack::{self, UploadLimits};
use repos::protocol::{Advertised, Version};
use repos::{
    Content, Draft, NewCommit, Oid, PackLimits, Reader, RefMap, RefName, RepoPath, Signature, Store, TreeChange,
};
use std::collections::BTreeSet;

const PATHS: [&str; 7] = ["a", "b", "d/a", "d/b", "d/e/a", "e/a", "f/d/e/a"];

/// One commit: how far back its parents are, what it changes, and its time.
#[derive(Debug, Clone)]
struct Step {
    parents: Vec<usize>,
    changes: Vec<(usize, Option<u8>)>,
    time_s: i64,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((0..PATHS.len(), prop::option::of(0u8..4)), 0..4);
    (prop::collection::vec(1usize..6, 0..3), changes, 0i64..1000).prop_map(|(parents, changes, time_s)| Step {
        parents,
        changes,
        time_s,
    })
}

struct World {
    _dir: tempfile::TempDir,
    server: Store,
    node: Store,
    commits: Vec<Oid>,
    refs: RefMap,
}

fn build(steps: &[Step]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let server = Store::init(&dir.path().join("server.git")).unwrap();
    let node = Store::init(&dir.path().join("node.git")).unwrap();
    let mut draft = Draft::new(&server).unwrap();
    let mut commits: Vec<(Oid, Oid)> = Vec::new();
    for step in steps {
        let parents: BTreeSet<usize> =
            step.parents.iter().filter_map(|back| commits.len().checked_sub(*back)).collect();
        let mut tree = parents.last().map_or(Oid::EMPTY_TREE, |parent| commits[*parent].1);
        for (path, content) in &step.changes {
            let path = RepoPath::new(PATHS[*path]).unwrap();
            let change = match content {
                Some(byte) => TreeChange::Put { path, mode: None, content: Content::Bytes(vec![b'0' + byte].into()) },
                None => TreeChange::Delete { path },
            };
            // A change that does not fit is left out.
            tree = draft.apply(tree, &[change]).unwrap_or(tree);
        }
        let who =
            Signature { name: "T".into(), email: "t@e".into(), time_s: 1_600_000_000 + step.time_s, offset_min: 0 };
        let parents = parents.iter().map(|parent| commits[*parent].0).collect();
        let message = format!("Commit {}", commits.len());
        let commit = NewCommit { tree, parents, author: who.clone(), committer: who, message };
        commits.push((draft.commit(&commit).unwrap(), tree));
    }
    server.install_pack(&draft.into_pack().unwrap().unwrap()).unwrap();
    let commits: Vec<Oid> = commits.into_iter().map(|(commit, _)| commit).collect();
    let refs = (0..)
        .zip(&commits)
        .map(|(number, id): (usize, _)| (RefName::branch(&format!("b{number}")).unwrap(), *id))
        .collect();
    World { _dir: dir, server, node, commits, refs }
}

/// Everything that a commit reaches; with `depth` 1 without its parents.
fn objects(reader: &Reader, commit: Oid, with_parents: bool, found: &mut BTreeSet<Oid>) {
    let mut pending = vec![commit];
    while let Some(id) = pending.pop() {
        if found.insert(id) {
            let info = reader.commit(id).unwrap();
            found.insert(info.tree);
            trees(reader, info.tree, found);
            if with_parents {
                pending.extend(info.parents);
            }
        }
    }
}

fn trees(reader: &Reader, tree: Oid, found: &mut BTreeSet<Oid>) {
    for entry in reader.list(tree, None, false).unwrap() {
        if found.insert(entry.id) && entry.mode == repos::Mode::Dir {
            trees(reader, entry.id, found);
        }
    }
}

impl World {
    /// The number of objects that were sent.
    fn fetch(&self, request: &FetchRequest<'_>) -> u32 {
        let body = fetch_request(request);
        let mut answer = Vec::new();
        let shown = Advertised { refs: &self.refs, head: &RefName::main() };
        upload_pack::serve(&self.server, shown, Version::V2, &mut &body[..], &mut answer, &UploadLimits::default())
            .unwrap();
        read_fetch_response(&mut &answer[..], &self.node, &PackLimits::default(), &mut |_| {}).unwrap().objects
    }

    fn reach(&self, commits: &[Oid], with_parents: bool) -> BTreeSet<Oid> {
        let reader = self.server.reader().unwrap();
        let mut found = BTreeSet::new();
        for commit in commits {
            objects(&reader, *commit, with_parents, &mut found);
        }
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_fetch_completes_what_is_there(
        steps in prop::collection::vec(step(), 1..14),
        want in any::<prop::sample::Index>(),
        have in any::<prop::sample::Index>(),
    ) {
        let world = build(&steps);
        let (want, have) = (*want.get(&world.commits), *have.get(&world.commits));
        let first = world.fetch(&FetchRequest { wants: &[have], ..FetchRequest::default() });
        prop_assert_eq!(first as usize, world.reach(&[have], true).len());
        prop_assert_eq!(world.node.verify(&[have]).unwrap(), []);
        let second = world.fetch(&FetchRequest { wants: &[want], haves: &[have], ..FetchRequest::default() });
        prop_assert_eq!(world.node.verify(&[want, have]).unwrap(), []);
        prop_assert!(second as usize <= world.reach(&[want], true).len());
        if want == have {
            prop_assert_eq!(second, 0);
        }
    }

    #[test]
    fn so_does_a_shallow_one(
        steps in prop::collection::vec(step(), 1..14),
        chain in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let world = build(&steps);
        let mut have: Option<Oid> = None;
        for want in chain {
            let want = *want.get(&world.commits);
            let haves = Vec::from_iter(have);
            world.fetch(&FetchRequest { wants: &[want], haves: &haves, shallow: &haves, depth: Some(1), include_tag: false });
            let reader = world.node.reader().unwrap();
            let mut there = BTreeSet::new();
            objects(&reader, want, false, &mut there);
            for id in there {
                prop_assert!(reader.contains(id), "{} lacks {}", want, id);
            }
            have = Some(want);
        }
    }
}
