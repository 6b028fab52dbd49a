//! Our own client against our own server, and against the store it fills.

use repos::protocol::client::{self, ClientError, FetchRequest, fetch_request, ls_refs_request, read_fetch_response};
use repos::protocol::upload_pack::{self, UploadLimits, WantPolicy};
use repos::protocol::{Advertised, Version};
use repos::{Oid, PackLimits, RefName, Store};

use super::git::{Repo, Sandbox};

fn serve(store: &Store, source: &Repo, body: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let refs = source.refs();
    let shown = Advertised { refs: &refs, head: &RefName::main() };
    let _ = upload_pack::serve(store, shown, Version::V2, &mut &body[..], &mut answer, &UploadLimits::default());
    answer
}

fn fetch(
    server: &Store,
    source: &Repo,
    to: &Store,
    request: &FetchRequest<'_>,
) -> Result<client::Fetched, ClientError> {
    let answer = serve(server, source, &fetch_request(request));
    read_fetch_response(&mut &answer[..], to, &PackLimits::default(), &mut |_| {})
}

fn setup(sandbox: &Sandbox) -> (Repo, Store, Store) {
    let source = sandbox.init("source");
    for number in 0..30 {
        source.write(&format!("dir{}/file{number}", number % 3), &format!("{number}\n"));
        source.commit(&format!("Commit {number}"), number * 10);
    }
    source.git(&["tag", "-a", "v1", "-m", "v1"]);
    let server = Store::init(&sandbox.path("server.git")).unwrap();
    server.install_pack(&source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    let node = Store::init(&sandbox.path("node.git")).unwrap();
    (source, server, node)
}

#[test]
fn lists_references() {
    let sandbox = Sandbox::new();
    let (source, server, _) = setup(&sandbox);
    let answer = serve(&server, &source, &ls_refs_request(&[]));
    let found = client::read_ls_refs_response(&mut &answer[..]).unwrap();
    assert_eq!(found.refs, source.refs());
    assert_eq!(found.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(found.peeled.values().copied().collect::<Vec<_>>(), [source.id("main")]);
    let answer = serve(&server, &source, &ls_refs_request(&["refs/heads/"]));
    let found = client::read_ls_refs_response(&mut &answer[..]).unwrap();
    assert_eq!((found.refs.len(), found.head), (1, None));
}

#[test]
fn fetches_all_then_what_is_new() {
    let sandbox = Sandbox::new();
    let (source, server, node) = setup(&sandbox);
    let (old, new) = (source.id("main~5"), source.id("main"));
    let fetched = fetch(&server, &source, &node, &FetchRequest { wants: &[old], ..FetchRequest::default() }).unwrap();
    assert!(fetched.pack.is_some() && fetched.shallow.is_empty());
    assert_eq!(node.verify(&[old]).unwrap(), []);
    let request = FetchRequest { wants: &[new], haves: &[old], ..FetchRequest::default() };
    let fetched = fetch(&server, &source, &node, &request).unwrap();
    assert_eq!(fetched.objects, 5 * 4, "a commit, two trees and a file each: {fetched:?}");
    assert_eq!(node.verify(&[new]).unwrap(), []);
    let request = FetchRequest { wants: &[new], haves: &[new], ..FetchRequest::default() };
    let fetched = fetch(&server, &source, &node, &request).unwrap();
    assert_eq!((fetched.pack, fetched.objects), (None, 0));
}

#[test]
fn follows_with_one_commit_of_history() {
    let sandbox = Sandbox::new();
    let (source, server, node) = setup(&sandbox);
    let (old, new) = (source.id("main~1"), source.id("main"));
    let fetched =
        fetch(&server, &source, &node, &FetchRequest { wants: &[old], depth: Some(1), ..FetchRequest::default() })
            .unwrap();
    assert_eq!((fetched.shallow.as_slice(), fetched.unshallow.len()), (&[old][..], 0));
    let request = FetchRequest { wants: &[new], haves: &[old], shallow: &[old], depth: Some(1), include_tag: false };
    let fetched = fetch(&server, &source, &node, &request).unwrap();
    assert_eq!((fetched.shallow.as_slice(), fetched.objects), (&[new][..], 4));
    let reader = node.reader().unwrap();
    assert_eq!(reader.list(reader.tree_of(new).unwrap(), None, true).unwrap().len(), 30);
}

#[test]
fn only_what_is_reachable_unless_all_is_open() {
    let sandbox = Sandbox::new();
    let (source, server, _) = setup(&sandbox);
    let commit: Oid = source.git(&["commit-tree", "-m", "loose", "HEAD^{tree}"]).parse().unwrap();
    let pack = source.git_with_input(&["pack-objects", "--stdout", "-q"], format!("{commit}\n").as_bytes());
    server.install_pack(&pack).unwrap();
    let refs = source.refs();
    let shown = Advertised { refs: &refs, head: &RefName::main() };
    let allowed = |want: Oid, wants: WantPolicy| {
        let body = fetch_request(&FetchRequest { wants: &[want], ..FetchRequest::default() });
        let limits = UploadLimits { wants, ..UploadLimits::default() };
        upload_pack::serve(&server, shown, Version::V2, &mut &body[..], &mut Vec::new(), &limits).is_ok()
    };
    for (want, reachable) in [
        (source.id("main"), true),
        (source.id("main~29"), true),
        (source.id("v1"), true),
        (commit, false),
        (source.id("HEAD^{tree}"), false),
        (source.id("HEAD:dir1/file1"), false),
    ] {
        assert_eq!(allowed(want, WantPolicy::Reachable), reachable, "{want}");
        assert!(allowed(want, WantPolicy::Any), "{want}");
    }
    assert!(!allowed(Oid::NULL, WantPolicy::Any));
}

#[test]
fn failures_are_told_apart() {
    let sandbox = Sandbox::new();
    let (source, server, node) = setup(&sandbox);
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    let error =
        fetch(&server, &source, &node, &FetchRequest { wants: &[unknown], ..FetchRequest::default() }).unwrap_err();
    assert!(matches!(&error, ClientError::Refused(text) if text.contains("not our ref 1234567890")), "{error:?}");

    let body = fetch_request(&FetchRequest { wants: &[source.id("main")], ..FetchRequest::default() });
    let answer = serve(&server, &source, &body);
    for cut in [0, 3, 10, 40, answer.len() / 2, answer.len() - 4] {
        let error = read_fetch_response(&mut &answer[..cut], &node, &PackLimits::default(), &mut |_| {}).unwrap_err();
        assert!(matches!(error, ClientError::Malformed(_)), "cut at {cut}: {error:?}");
    }
    let mut damaged = answer.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    let error = read_fetch_response(&mut &damaged[..], &node, &PackLimits::default(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ClientError::Store(_) | ClientError::Malformed(_)), "{error:?}");
    assert!(node.packs().unwrap().is_empty(), "nothing of a failed fetch is left");
}

/// Readers never wait, and never find less than there is, while packs are merged and the old ones removed.
#[test]
fn fetches_go_on_while_packs_are_merged() {
    let sandbox = Sandbox::new();
    let source = sandbox.init("source");
    let server = Store::init(&sandbox.path("server.git")).unwrap();
    let mut tips: Vec<Oid> = Vec::new();
    for number in 0..60 {
        source.write(&format!("dir{}/file{number}", number % 5), &"line\n".repeat(number + 1));
        tips.push(source.commit(&format!("Commit {number}"), number as u64 * 10));
        let range = if number == 0 { "HEAD\n".to_owned() } else { "HEAD\n^HEAD~1\n".to_owned() };
        let pack = source.git_with_input(&["pack-objects", "--revs", "--stdout", "-q"], range.as_bytes());
        server.install_pack(&pack).unwrap();
    }
    let small = source.git_with_input(&["pack-objects", "--stdout", "-q"], format!("{}\n", tips[0]).as_bytes());
    let done = std::sync::atomic::AtomicBool::new(false);
    let (server, source, tips, done) = (&server, &source, &tips, &done);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let options = repos::ConsolidateOptions { min_packs: 2, factor: 1 };
            for _ in 0..10 {
                server.consolidate(&options, tips).unwrap();
                server.install_pack(&small).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        for thread in 0..2 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for round in 0.. {
                    let node = Store::init(&sandbox.path(&format!("node{thread}-{round}"))).unwrap();
                    let last = tips[59];
                    fetch(server, source, &node, &FetchRequest { wants: &[tips[20]], ..FetchRequest::default() })
                        .unwrap();
                    let request = FetchRequest { wants: &[last], haves: &[tips[20]], ..FetchRequest::default() };
                    let fetched = fetch(server, source, &node, &request).unwrap();
                    assert_eq!(fetched.objects, 39 * 4);
                    assert_eq!(node.verify(&[last]).unwrap(), []);
                    std::fs::remove_dir_all(node.path()).unwrap();
                    if done.load(std::sync::atomic::Ordering::SeqCst) {
                        break;
                    }
                }
            });
        }
    });
}
