//! Protocol stories: what a client sends, and everything that it is answered.
//!
//! A file in `golden/` has requests, each begun by a line such as `--- v2 upload-pack`. Lines with `>` are sent, lines with
//! `<` are what came back; `{c1}` and the like stand for object ids. With `UPDATE_GOLDEN=1` the answers are written anew.

use std::collections::BTreeMap;
use std::path::Path;

use repos::protocol::receive_pack::{self, Outcome, ReceiveLimits};
use repos::protocol::upload_pack::{self, UploadLimits};
use repos::protocol::{Advertised, Version};
use repos::{RefMap, RefName, Store};

use super::git::Sandbox;

struct Story {
    store: Store,
    refs: RefMap,
    names: BTreeMap<String, String>,
}

/// c1 to c4 on main, t1 on a branch that leaves it at c2, the annotated tag v1 at c2.
fn story(sandbox: &Sandbox) -> Story {
    let repo = sandbox.init("source");
    let mut names = BTreeMap::new();
    let mut name = |name: &str, id: String| drop(names.insert(id, format!("{{{name}}}")));
    for number in 1..=4 {
        repo.write("file", &format!("{number}\n"));
        name(&format!("c{number}"), repo.commit(&format!("Commit {number}"), number * 1000).to_string());
        if number == 2 {
            repo.git(&["tag", "-a", "v1", "-m", "first"]);
            name("v1", repo.id("v1").to_string());
        }
    }
    repo.git(&["checkout", "-q", "-b", "topic", "main~2"]);
    repo.write("topic", "1\n");
    name("t1", repo.commit("Topic 1", 2500).to_string());
    name("null", "0".repeat(40));
    name("nowhere", "1".repeat(40));
    let store = Store::init(&sandbox.path("server.git")).unwrap();
    store.install_pack(&repo.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"")).unwrap();
    Story { store, refs: repo.refs(), names }
}

impl Story {
    fn answer(&self, what: &str, request: &[u8]) -> Vec<u8> {
        let (version, what) = what.split_once(' ').unwrap();
        let version = match version {
            "v0" => Version::V0,
            "v1" => Version::V1,
            "v2" => Version::V2,
            other => panic!("no version: {other}"),
        };
        let empty = RefMap::new();
        let (what, refs) = match what.strip_suffix(" empty") {
            Some(what) => (what, &empty),
            None => (what, &self.refs),
        };
        let shown = Advertised { refs, head: &RefName::main() };
        let mut out = Vec::new();
        match what {
            "advertise upload-pack" => upload_pack::advertise(&self.store, version, shown, &mut out).unwrap(),
            "advertise receive-pack" => receive_pack::advertise(version, shown, &mut out).unwrap(),
            "upload-pack" => {
                let mut body = request;
                // The answer tells of errors, too.
                let _ = upload_pack::serve(&self.store, shown, version, &mut body, &mut out, &UploadLimits::default());
            }
            "receive-pack" => {
                let mut body = request;
                match receive_pack::read(&self.store, &mut body, &ReceiveLimits::default()) {
                    Ok(push) => {
                        let outcome = match &push.received {
                            Ok(_) => Outcome::all_done(&push).with_message("taken"),
                            Err(reason) => Outcome::unpack_failed(&push, reason.clone()),
                        };
                        receive_pack::report(&push, &outcome, &mut out).unwrap();
                    }
                    Err(error) => receive_pack::refuse(&error, &mut out).unwrap(),
                }
            }
            other => panic!("no service: {other}"),
        }
        out
    }

    fn packet(&self, text: &str) -> Vec<u8> {
        let mut text = text.replace("\\0", "\0");
        for (id, name) in &self.names {
            text = text.replace(name.as_str(), id);
        }
        match text.as_str() {
            "[flush]" => b"0000".to_vec(),
            "[delim]" => b"0001".to_vec(),
            "[empty pack]" => {
                let mut pack = b"PACK\0\0\0\x02\0\0\0\0".to_vec();
                pack.extend_from_slice(&hex("029d08823bd8a8eab510ad6ac75c823cfd3ed31e"));
                pack
            }
            "[no pack]" => b"KCAP".to_vec(),
            _ => format!("{:04x}{text}\n", text.len() + 5).into_bytes(),
        }
    }

    /// An answer as lines.
    fn render(&self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut data = Vec::new();
        while !bytes.is_empty() {
            if bytes.starts_with(b"PACK") {
                data = bytes.to_vec();
                break;
            }
            let length = usize::from_str_radix(std::str::from_utf8(&bytes[..4]).unwrap(), 16).unwrap();
            match (length, bytes.get(4..length)) {
                (0, _) => lines.push("[flush]".into()),
                (1, _) => lines.push("[delim]".into()),
                (_, Some([1, payload @ ..])) => data.extend_from_slice(payload),
                (_, Some([band @ (2 | 3), payload @ ..])) => {
                    lines.push(format!("[band {band}] {}", payload.escape_ascii()))
                }
                (_, Some(payload)) => lines.push(String::from_utf8_lossy(payload).trim_end().replace('\0', "\\0")),
                (_, None) => panic!("cut off"),
            }
            bytes = &bytes[length.max(4)..];
        }
        if data.starts_with(b"PACK") {
            lines.push(format!("[pack of {} objects]", u32::from_be_bytes(data[8..12].try_into().unwrap())));
        } else if !data.is_empty() {
            lines.push(format!("[band 1] {}", data.escape_ascii()));
        }
        for line in &mut lines {
            for (id, name) in &self.names {
                *line = line.replace(id.as_str(), name);
            }
            *line = line.replace(concat!("eccluster/", env!("CARGO_PKG_VERSION")), "{agent}");
        }
        lines
    }

    fn replay(&self, script: &str) -> String {
        let mut out = String::new();
        let mut request = Vec::new();
        let mut what = None;
        let finish = |what: &mut Option<String>, request: &mut Vec<u8>, out: &mut String| {
            if let Some(what) = what.take() {
                for line in self.render(&self.answer(&what, request)) {
                    out.push_str(&format!("< {line}\n"));
                }
            }
            request.clear();
        };
        for line in script.lines().filter(|line| !line.starts_with("< ")) {
            // The answer comes before the empty line or comment that ends a request.
            if line.is_empty() || line.starts_with('#') {
                finish(&mut what, &mut request, &mut out);
            } else if let Some(next) = line.strip_prefix("--- ") {
                finish(&mut what, &mut request, &mut out);
                what = Some(next.to_owned());
            } else if let Some(text) = line.strip_prefix("> ") {
                request.extend(self.packet(text));
            } else {
                panic!("not understood: {line}");
            }
            out.push_str(line);
            out.push('\n');
        }
        finish(&mut what, &mut request, &mut out);
        out
    }
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn stories_end_as_they_did() {
    let sandbox = Sandbox::new();
    let story = story(&sandbox);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocol/golden");
    let mut count = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let expected = std::fs::read_to_string(&path).unwrap();
        let actual = story.replay(&expected);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &actual).unwrap();
        } else {
            let differing = expected.lines().zip(actual.lines()).position(|(a, b)| a != b);
            assert!(expected == actual, "{}: from line {:?} on:\n{actual}", path.display(), differing.map(|at| at + 1));
        }
        count += 1;
    }
    assert!(count >= 4);
}
