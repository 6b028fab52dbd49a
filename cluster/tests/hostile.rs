//! Whatever somebody pushes: the answer comes soon, is short, and nothing panics.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use cluster::documents::{Document, DocumentKind, Effective};
use cluster::gate::check_syntax;
use proptest::prelude::*;

/// A thread with the stack that server threads have, so that deep recursion shows up here and not there.
fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap()
}

/// Everything that is done to a document, in bearable time even in a debug build.
fn judge(name: &str, bytes: Vec<u8>) -> String {
    let name = name.to_owned();
    let started = Instant::now();
    let answer = on_a_small_stack(move || {
        let document = match Document::parse("duravip.toml", &bytes) {
            Err(findings) => return findings.to_string(),
            Ok(document) => document,
        };
        let answer = DocumentKind::Duravip.check_layer(&document).to_string();
        assert!(DocumentKind::Agent.check_layer(&document).len() <= 100);
        let effective = Effective::from_document(document);
        let _ = (effective.to_toml(true), effective.to_json(), effective.origins());
        answer
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    assert!(answer.len() < 40_000, "{name}: an answer of {} bytes", answer.len());
    answer
}

const MIB: usize = 1 << 20;

#[test]
fn deep_nesting() {
    for (name, text) in [
        ("arrays", format!("a = {}", "[".repeat(MIB))),
        ("closed arrays", format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000))),
        ("inline tables", format!("a = {}", "{a=".repeat(MIB / 3))),
        ("dotted keys", format!("{}a = 1", "a.".repeat(MIB / 2))),
        ("a dotted header", format!("[{}a]", "a.".repeat(MIB / 2))),
        (
            "dotted keys in inline tables",
            format!("x = {}1{}", format!("{{ {}a = ", "a.".repeat(70)).repeat(70), "}".repeat(70)),
        ),
        ("headers, each below the last", (1..79).map(|depth| format!("[{}x]\n", "a.".repeat(depth))).collect()),
    ] {
        let answer = judge(name, text.into_bytes());
        assert!(!answer.is_empty(), "{name}");
    }
    let at_the_limit = format!("a = {}{}", "[".repeat(47), "]".repeat(47));
    assert!(Document::parse("x.toml", at_the_limit.as_bytes()).is_ok());
    let over_it = format!("a = {}{}", "[".repeat(60), "]".repeat(60));
    assert!(Document::parse("x.toml", over_it.as_bytes()).unwrap_err().to_string().contains("nested deeper than 48"));
}

#[test]
fn much_of_everything() {
    let one_line: String = format!("a = [{}]", "1,".repeat(MIB / 2));
    for (name, text) in [
        ("one line", one_line),
        ("a long key", format!("{} = 1", "k".repeat(MIB))),
        ("a long string", format!("dead_after = \"{}\"", "9".repeat(MIB))),
        ("a long number", format!("weight = {}", "9".repeat(MIB))),
        ("many keys", (0..80_000).map(|n| format!("key{n} = 1\n")).collect()),
        ("many wrong lines", "= 1\n".repeat(MIB / 4)),
        ("one key, often", "a = 1\n".repeat(100_000)),
        ("many tables", (0..60_000).map(|n| format!("[vip.\"x{n}\"]\n")).collect()),
        ("many array tables", "[[service]]\n".repeat(80_000)),
        ("a long comment", format!("#{}", "x".repeat(MIB))),
        ("quotes", "\"".repeat(MIB)),
        ("many names to take away", format!("unset = [{}]", "\"a\",".repeat(MIB / 4))),
    ] {
        judge(name, text.into_bytes());
    }
}

#[test]
fn not_text() {
    for (name, bytes, expected) in [
        ("a lone byte", b"a = 1\nb = \"\xc3\x28\"".to_vec(), "duravip.toml:2:6: not UTF-8: byte 0xc3"),
        ("NUL", b"a = \"\0\"".to_vec(), "duravip.toml:1:"),
        ("too large", vec![b'#'; (8 << 20) + 1], "duravip.toml: the file is larger than 8 MiB"),
    ] {
        let answer = Document::parse("duravip.toml", &bytes).unwrap_err().to_string();
        assert!(answer.starts_with(expected), "{name}: {answer}");
    }
    assert!(Document::parse("x.toml", b"\xef\xbb\xbfa = 1").is_ok(), "a byte order mark is no mistake");
    assert!(Document::parse("x.toml", b"a = 1\r\nb = 2\r\n").is_ok());
}

#[test]
fn hostile_yaml_and_json() {
    let bomb: String = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned())
        .chain(
            (1..40).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1)),
        )
        .collect();
    for (name, text) in [
        ("x.yaml", "[".repeat(MIB)),
        ("x.yaml", "{a: ".repeat(MIB / 4)),
        ("x.yaml", "- ".repeat(MIB / 2)),
        ("x.yaml", "a: ".repeat(20_000)),
        ("x.yaml", "? ".repeat(100_000)),
        ("x.yaml", (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect()),
        ("x.yaml", bomb),
        ("x.yaml", format!("\"{}", "x".repeat(MIB))),
        ("x.yaml", "!".repeat(MIB)),
        ("x.yaml", "&".repeat(MIB)),
        ("x.yaml", format!("a: |\n{}", " x\n".repeat(MIB / 3))),
        ("x.yaml", "---\n".repeat(MIB / 4)),
        ("x.json", "[".repeat(MIB)),
        ("x.json", "{\"a\":".repeat(MIB / 5)),
        ("x.json", format!("[{}1]", "1,".repeat(MIB / 2))),
        ("x.json", format!("\"{}", "\\u0000".repeat(MIB / 6))),
    ] {
        let started = Instant::now();
        let shown = format!("{name} {:?}…", &text[..text.len().min(20)]);
        let answer = on_a_small_stack(move || check_syntax(name, text.as_bytes()).to_string());
        assert!(started.elapsed() < Duration::from_secs(20), "{shown}: {:?}", started.elapsed());
        assert!(answer.len() < 1_000, "{shown}");
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for name in ["x.toml", "x.json", "x.yaml"] {
            let _ = check_syntax(name, &bytes);
        }
    }

    /// Words of TOML in any order come closer to being a document than bytes do.
    #[test]
    fn any_words(words in proptest::collection::vec(prop_oneof![
        Just("a"), Just("vip"), Just("\"10.1.1.1\""), Just("."), Just("="), Just("["), Just("]"), Just("[["), Just("]]"),
        Just("{"), Just("}"), Just(","), Just("\n"), Just("1"), Just("true"), Just("\"x\""), Just("unset"), Just("[\"a\"]"),
        Just("check"), Just("follow"), Just("'''"), Just("#"), Just("1e9"), Just("0x"), Just("1979-05-27"),
    ], 0..30)) {
        let text = words.join(" ");
        for kind in DocumentKind::ALL {
            if let Ok(document) = Document::parse(kind.file_name(), text.as_bytes()) {
                kind.check_layer(&document);
                let effective = Effective::from_document(document);
                let cluster = cluster::documents::schema::cluster::Cluster::default();
                let context = cluster::documents::schema::Context { cluster: &cluster, subcluster: "default", node: Some("n1") };
                kind.check_effective(&effective, &context);
            }
        }
        let _ = (check_syntax("x.yaml", text.as_bytes()), check_syntax("x.json", text.as_bytes()));
    }
}
