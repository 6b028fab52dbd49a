//! Requests that no client sends: random bytes, and real requests cut off, changed and spliced. Nothing panics, nothing
//! hangs, nothing is written that is not a sequence of packets.

use std::io::Read;
use std::sync::LazyLock;

use proptest::prelude::*;
use repos::protocol::client::{
    FetchRequest, fetch_request, ls_refs_request, read_fetch_response, read_ls_refs_response,
};
use repos::protocol::receive_pack::{self, Outcome, ReceiveLimits};
use repos::protocol::upload_pack::{self, UploadLimits};
use repos::protocol::{Advertised, Version, decode_body};
use repos::{PackLimits, RefMap, RefName, Store};

use super::git::Sandbox;

struct World {
    _sandbox: Sandbox,
    store: Store,
    refs: RefMap,
    upload_requests: Vec<Vec<u8>>,
    push_requests: Vec<Vec<u8>>,
    answers: Vec<Vec<u8>>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let sandbox = Sandbox::new();
    let source = sandbox.init("source");
    for number in 0..6 {
        source.write(&format!("dir/file{number}"), &"line\n".repeat(number + 1));
        source.commit("Commit", number as u64 * 10);
    }
    source.git(&["tag", "-a", "v1", "-m", "v1"]);
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    let pack = source.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"");
    store.install_pack(&pack).unwrap();
    let (old, new) = (source.id("main~3"), source.id("main"));
    let upload_requests = vec![
        ls_refs_request(&["refs/heads/"]),
        fetch_request(&FetchRequest {
            wants: &[new],
            haves: &[old],
            shallow: &[old],
            depth: Some(2),
            include_tag: true,
        }),
        packets(&[
            &format!("want {new} multi_ack_detailed no-done side-band-64k\n"),
            "",
            &format!("have {old}\n"),
            "done\n",
        ]),
        packets(&[&format!("want {new} side-band\n"), &format!("shallow {old}\n"), "deepen 3\n", "", "done\n"]),
    ];
    let refs = source.refs();
    let zero = "0".repeat(40);
    let mut push = packets(&[
        &format!("{zero} {new} refs/heads/x\0report-status side-band-64k atomic\n"),
        &format!("{old} {zero} refs/heads/y\n"),
        "",
    ]);
    push.extend_from_slice(&pack);
    let deletion = packets(&[&format!("{old} {zero} refs/heads/y\0report-status\n"), ""]);
    let mut world = World {
        _sandbox: sandbox,
        store,
        refs,
        upload_requests,
        push_requests: vec![push, deletion],
        answers: Vec::new(),
    };
    world.answers = world.upload_requests[..2].iter().map(|request| world.upload(Version::V2, request)).collect();
    world
});

fn packets(lines: &[&str]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| {
            if line.is_empty() { "0000".into() } else { format!("{:04x}{line}", line.len() + 4) }.into_bytes()
        })
        .collect()
}

impl World {
    fn upload(&self, version: Version, mut request: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let shown = Advertised { refs: &self.refs, head: &RefName::main() };
        let limits = UploadLimits { max_request_bytes: 1 << 16, ..UploadLimits::default() };
        let _ = upload_pack::serve(&self.store, shown, version, &mut request, &mut out, &limits);
        out
    }

    fn push(&self, mut request: &[u8]) {
        let mut out = Vec::new();
        let limits = ReceiveLimits {
            pack: PackLimits { max_bytes: 1 << 20, ..PackLimits::default() },
            ..ReceiveLimits::default()
        };
        match receive_pack::read(&self.store, &mut request, &limits) {
            Ok(push) => receive_pack::report(&push, &Outcome::all_refused(&push, "no"), &mut out).unwrap(),
            Err(error) => receive_pack::refuse(&error, &mut out).unwrap(),
        }
        check_framing(&out);
    }

    fn fetch_answer(&self, mut answer: &[u8]) {
        let sandbox = tempfile::tempdir().unwrap();
        let node = Store::init(sandbox.path()).unwrap();
        let limits = PackLimits { max_bytes: 1 << 20, max_unpacked_bytes: 1 << 24, ..PackLimits::default() };
        let _ = read_fetch_response(&mut answer, &node, &limits, &mut |_| {});
    }
}

/// Whole packets, until a pack without bands begins.
fn check_framing(mut answer: &[u8]) {
    while !answer.is_empty() && !answer.starts_with(b"PACK") {
        let length = usize::from_str_radix(std::str::from_utf8(&answer[..4]).unwrap(), 16).unwrap();
        assert!(length <= answer.len(), "the last packet is cut off");
        answer = &answer[length.max(4)..];
    }
}

/// What may happen to a request on its way.
#[derive(Debug, Clone)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::sample::Index;
    prop_oneof![
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn apply(mut request: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if request.is_empty() {
            break;
        }
        match damage {
            Damage::Cut(at) => request.truncate(at.index(request.len())),
            Damage::Flip(at, bits) => {
                let at = at.index(request.len());
                request[at] ^= bits;
            }
            Damage::Insert(at, bytes) => {
                let at = at.index(request.len());
                request.splice(at..at, bytes.iter().copied());
            }
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(request.len()), to.index(request.len()));
                let piece = request[from.min(to)..from.max(to)].to_vec();
                request.extend(piece);
            }
        }
    }
    request
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V0), Just(Version::V1), Just(Version::V2)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(version in version(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_framing(&WORLD.upload(version, &bytes));
        WORLD.push(&bytes);
        let _ = read_ls_refs_response(&mut &bytes[..]);
        let mut out = Vec::new();
        let _ = decode_body(Some("gzip"), &bytes[..], 1 << 16).unwrap().read_to_end(&mut out);
    }

    #[test]
    fn random_packets(version in version(), lines in prop::collection::vec("(want|have|shallow|deepen|command|done|peel|ref-prefix)[ =]?[0-9a-f]{0,41}[ -~]{0,10}|", 0..12)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        check_framing(&WORLD.upload(version, &packets(&lines)));
        WORLD.push(&packets(&lines));
    }

    #[test]
    fn damaged_requests(version in version(), which in any::<prop::sample::Index>(), damages in prop::collection::vec(damage(), 0..4)) {
        let request = apply(which.get(&WORLD.upload_requests).clone(), &damages);
        check_framing(&WORLD.upload(version, &request));
    }

    #[test]
    fn damaged_pushes(which in any::<prop::sample::Index>(), damages in prop::collection::vec(damage(), 0..4)) {
        WORLD.push(&apply(which.get(&WORLD.push_requests).clone(), &damages));
    }

    #[test]
    fn damaged_answers(which in any::<prop::sample::Index>(), damages in prop::collection::vec(damage(), 0..4)) {
        let answer = apply(which.get(&WORLD.answers).clone(), &damages);
        WORLD.fetch_answer(&answer);
        let _ = read_ls_refs_response(&mut &answer[..]);
    }
}

#[test]
fn every_beginning_of_a_request() {
    for request in &WORLD.upload_requests {
        for end in 0..request.len() {
            for version in [Version::V0, Version::V1, Version::V2] {
                check_framing(&WORLD.upload(version, &request[..end]));
            }
        }
    }
    for request in &WORLD.push_requests {
        for end in 0..request.len() {
            WORLD.push(&request[..end]);
        }
    }
}
