//! The objects that are sent, compared with what real git would enumerate.

use std::collections::BTreeSet;

use repos::protocol::Advertised;
use repos::protocol::Version;
use repos::protocol::client::{FetchRequest, fetch_request};
use repos::protocol::upload_pack::{self, UploadLimits};
use repos::{Oid, RefName, Store};

use super::git::{Repo, Sandbox, ids_in_pack};

/// The pack that answers a request, taken out of the side-band.
pub fn pack_for(store: &Store, source: &Repo, request: &FetchRequest<'_>) -> Vec<u8> {
    let body = fetch_request(request);
    let mut answer = Vec::new();
    let refs = source.refs();
    let shown = Advertised { refs: &refs, head: &RefName::main() };
    upload_pack::serve(store, shown, Version::V2, &mut &body[..], &mut answer, &UploadLimits::default()).unwrap();
    let mut pack = Vec::new();
    let mut rest = &answer[..];
    let mut in_pack = false;
    while rest.len() >= 4 {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..4]).unwrap(), 16).unwrap();
        let payload = if length < 4 { &[][..] } else { &rest[4..length] };
        if in_pack && payload.first() == Some(&1) {
            pack.extend_from_slice(&payload[1..]);
        }
        in_pack |= payload == b"packfile\n";
        rest = &rest[length.max(4)..];
    }
    assert!(rest.is_empty());
    pack
}

fn git_lists(source: &Repo, arguments: &[&str]) -> BTreeSet<Oid> {
    let text = source.git(&[&["rev-list", "--objects"], arguments].concat());
    text.lines().map(|line| line[..40].parse().unwrap()).collect()
}

/// Several generations of a tree with changes, deletions, renames of files and directories, reverts, a file that becomes
/// a directory, a link to a commit of another repository (whose object is nowhere) and a merge.
fn varied(sandbox: &Sandbox) -> Repo {
    let repo = sandbox.init("varied");
    for number in 0..20 {
        repo.write(&format!("d{}/sub/f{number}", number % 4), &format!("{number}\n"));
    }
    repo.commit("Base", 10);
    repo.write("d0/sub/f0", "changed\n");
    repo.commit("Change", 20);
    repo.git(&["mv", "d1", "moved"]);
    repo.commit("Move a directory", 30);
    repo.git(&["mv", "d0/sub/f4", "d2/f4"]);
    repo.commit("Move a file", 40);
    repo.git(&["checkout", "-q", "-b", "side", "HEAD~2"]);
    repo.write("side/only", "side\n");
    repo.commit("Side", 45);
    repo.git(&["checkout", "-q", "main"]);
    repo.git(&["rm", "-q", "d3/sub/f3"]);
    repo.write("d3/sub/f3/now-a-directory", "x\n");
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},d2/module", "1".repeat(40))]);
    repo.commit("File to directory", 50);
    repo.git(&["merge", "-q", "--no-ff", "-m", "Merge", "side"]);
    repo.write("d0/sub/f0", "0\n");
    repo.commit("Revert", 1_000_000_000);
    repo
}

#[test]
fn a_clone_gets_exactly_what_git_lists() {
    let sandbox = Sandbox::new();
    let source = varied(&sandbox);
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    store.install_pack(&source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    let request = FetchRequest { wants: &[source.id("main")], ..FetchRequest::default() };
    let sent = ids_in_pack(&sandbox, &pack_for(&store, &source, &request));
    assert_eq!(sent, git_lists(&source, &["main"]));
}

/// For every pair of commits: nothing is lacking, and nothing is sent that git would not send, but for objects that an
/// older commit had and this one has again.
#[test]
fn every_fetch_gets_what_it_lacks() {
    let sandbox = Sandbox::new();
    let source = varied(&sandbox);
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    store.install_pack(&source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    let commits: Vec<Oid> = source.git(&["rev-list", "--all"]).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(commits.len(), 8);
    for want in &commits {
        for have in &commits {
            let request = FetchRequest { wants: &[*want], haves: &[*have], ..FetchRequest::default() };
            let sent = ids_in_pack(&sandbox, &pack_for(&store, &source, &request));
            let (want, have) = (want.to_string(), have.to_string());
            let complete = git_lists(&source, &[&want]);
            let there = git_lists(&source, &[&have]);
            let lacking: BTreeSet<Oid> = complete.difference(&there).copied().collect();
            assert!(lacking.is_subset(&sent), "{have}..{want} lacks {:?}", lacking.difference(&sent));
            let git_sends = git_lists(&source, &[&want, "--not", &have]);
            let too_many: Vec<_> = sent.difference(&git_sends).collect();
            assert!(
                too_many.is_empty(),
                "{have}..{want} has too many: {too_many:?}\n{}",
                source.git(&["log", "--graph", "--oneline", "--all"])
            );
        }
    }
}

/// The same where parents are withheld: with `depth`, the want must be complete by itself.
#[test]
fn every_shallow_fetch_gets_what_it_lacks() {
    let sandbox = Sandbox::new();
    let source = varied(&sandbox);
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    store.install_pack(&source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    let commits: Vec<Oid> = source.git(&["rev-list", "--all"]).lines().map(|line| line.parse().unwrap()).collect();
    for want in &commits {
        for have in &commits {
            let request = FetchRequest {
                wants: &[*want],
                haves: &[*have],
                shallow: &[*have],
                depth: Some(1),
                include_tag: false,
            };
            let sent = ids_in_pack(&sandbox, &pack_for(&store, &source, &request));
            let needed = |commit: &Oid| git_lists(&source, &["--no-walk", &commit.to_string()]);
            let lacking: BTreeSet<Oid> = needed(want).difference(&needed(have)).copied().collect();
            assert!(lacking.is_subset(&sent), "{have}..{want} lacks {:?}", lacking.difference(&sent));
            assert!(sent.is_subset(&needed(want)), "{have}..{want}");
        }
    }
}

/// Deltas are copied where their base is sent, too, and replaced where it is not, however they name it.
#[test]
fn deltas_survive() {
    let sandbox = Sandbox::new();
    let source = super::fetch::large(&sandbox, 120, 1500);
    source.git(&["repack", "-adfq", "--depth=50"]);
    for naming in ["--delta-base-offset", "--no-reuse-object"] {
        let store = Store::init(&sandbox.path(&format!("server{naming}.git"))).unwrap();
        let ours = source.git_with_input(&["pack-objects", "--all", "--stdout", "-q", naming], b"");
        store.install_pack(&ours).unwrap();
        let request = FetchRequest { wants: &[source.id("main")], ..FetchRequest::default() };
        assert!(pack_for(&store, &source, &request) == ours, "a pack that has just what is wanted is sent as it is");

        let request = FetchRequest { wants: &[source.id("main~1")], ..FetchRequest::default() };
        let most = pack_for(&store, &source, &request);
        assert_eq!(ids_in_pack(&sandbox, &most), git_lists(&source, &["main~1"]));
        assert!(
            most.len() < ours.len() * 11 / 10,
            "{naming}: {} bytes; git's pack of more has {}",
            most.len(),
            ours.len()
        );

        let have = source.id("main~100");
        let request = FetchRequest { wants: &[source.id("main")], haves: &[have], ..FetchRequest::default() };
        let pack = pack_for(&store, &source, &request);
        assert_eq!(ids_in_pack(&sandbox, &pack), git_lists(&source, &["main", "--not", &have.to_string()]));
    }
}

/// Figures, not a verdict: what one commit over 10,000 files costs the server. With optimisation:
/// `cargo test -p repos --config 'profile.dev.package.repos.opt-level=3' --test protocol -- --ignored --nocapture figures`
#[test]
#[ignore = "a measurement"]
fn figures() {
    let sandbox = Sandbox::new();
    let source = super::fetch::large(&sandbox, 1000, 10_000);
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    store.install_pack(&source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    let ids: Vec<Oid> = source.git(&["rev-list", "main"]).lines().map(|line| line.parse().unwrap()).collect();
    let refs = source.refs();
    let time = |what: &str, rounds: u32, request: &FetchRequest<'_>| {
        let body = fetch_request(request);
        let shown = Advertised { refs: &refs, head: &RefName::main() };
        let mut served = Default::default();
        let mut times: Vec<_> = (0..rounds)
            .map(|_| {
                let begin = std::time::Instant::now();
                let mut answer = Vec::new();
                let limits = UploadLimits::default();
                served = upload_pack::serve(&store, shown, Version::V2, &mut &body[..], &mut answer, &limits).unwrap();
                begin.elapsed()
            })
            .collect();
        times.sort();
        println!("{what}: median {:?}, worst {:?}, {served:?}", times[times.len() / 2], times[times.len() - 1]);
    };
    let incremental =
        |have: usize| FetchRequest { wants: &ids[..1], haves: &ids[have..=have], ..FetchRequest::default() };
    time("one commit", 200, &incremental(1));
    time("ten commits", 100, &incremental(10));
    let shallow = FetchRequest { depth: Some(1), shallow: &ids[1..2], ..incremental(1) };
    time("one commit, depth 1", 200, &shallow);
    time(
        "an old commit by id",
        100,
        &FetchRequest { wants: &ids[500..501], haves: &ids[501..502], ..FetchRequest::default() },
    );
    time("clone", 5, &FetchRequest { wants: &ids[..1], ..FetchRequest::default() });
    time("clone, depth 1", 5, &FetchRequest { wants: &ids[..1], depth: Some(1), ..FetchRequest::default() });

    // The other side: what taking the answer costs a node.
    let node = Store::init(&sandbox.path("node.git")).unwrap();
    let answer_for = |wants: &[Oid], haves: &[Oid]| {
        let mut answer = Vec::new();
        let shown = Advertised { refs: &refs, head: &RefName::main() };
        let body = fetch_request(&FetchRequest { wants, haves, ..FetchRequest::default() });
        upload_pack::serve(&store, shown, Version::V2, &mut &body[..], &mut answer, &UploadLimits::default()).unwrap();
        let begin = std::time::Instant::now();
        let limits = repos::PackLimits::default();
        repos::protocol::client::read_fetch_response(&mut &answer[..], &node, &limits, &mut |_| {}).unwrap();
        begin.elapsed()
    };
    println!("node, clone: {:?}", answer_for(&ids[100..101], &[]));
    let mut times: Vec<_> = (0..100).rev().map(|at| answer_for(&ids[at..=at], &ids[at + 1..at + 2])).collect();
    times.sort();
    println!("node, one commit: median {:?}, worst {:?}", times[50], times[99]);
}
