//! Layering and provenance by table: what each layer says, and what a node gets, with the place of every value.
#![allow(clippy::unwrap_used, missing_docs)]

use cluster::documents::effective::{document, effective};
use cluster::documents::{EffectiveError, EffectiveFile, KeyPath, MemoryFiles, SearchPath};
use proptest::prelude::*;

/// Compares the annotated effective document with the expected lines; spaces do not count.
#[track_caller]
fn layers(name: &str, layers: &[(&str, &str)], expected: &str) {
    let files = MemoryFiles::from_texts(layers.iter().map(|(directory, text)| (*directory, *text)));
    let files =
        MemoryFiles(files.0.into_iter().map(|(directory, text)| (format!("{directory}/x.toml"), text)).collect());
    let search_path = SearchPath::of_node("n1", &["near".into(), "far".into()]);
    let shown = match document(&files, &search_path, "x.toml") {
        Ok(document) => document.to_toml(true),
        Err(error) => error.to_string(),
    };
    assert_eq!(normal(&shown), normal(expected), "{name}");
}

fn normal(text: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_more_specific_layer_wins() {
    layers("nothing", &[], "");
    layers("one layer", &[("default", "a = 1")], "a = 1 # default/x.toml:1");
    layers(
        "node, groups in their order, default, global",
        &[
            ("global", "g = 1\nd = 1\nf = 1\nn = 1\no = 1"),
            ("default", "d = 2\nf = 2\nn = 2\no = 2"),
            ("far", "f = 3\nn = 3\no = 3"),
            ("near", "n = 4\no = 4"),
            ("n1", "o = 5"),
        ],
        "g = 1 # global/x.toml:1
         d = 2 # default/x.toml:1
         f = 3 # far/x.toml:1
         n = 4 # near/x.toml:1
         o = 5 # n1/x.toml:1",
    );
    layers(
        "directories off the path do not count",
        &[("n2", "a = 1"), ("default", "b = 2")],
        "b = 2 # default/x.toml:1",
    );
}

#[test]
fn tables_merge_and_the_rest_replaces() {
    layers(
        "tables merge key by key, at any depth",
        &[("default", "[a.b]\nx = 1\ny = 1"), ("n1", "[a.b]\ny = 2\nz = 2\n[a.c]\nw = 2")],
        "[a.b]
         x = 1 # default/x.toml:2
         y = 2 # n1/x.toml:2
         z = 2 # n1/x.toml:3
         [a.c]
         w = 2 # n1/x.toml:5",
    );
    layers("arrays replace", &[("default", "a = [1, 2, 3]"), ("n1", "a = [4]")], "a = [4] # n1/x.toml:1");
    layers(
        "arrays of tables replace as a whole",
        &[("default", "[[s]]\nname = \"one\"\n[[s]]\nname = \"two\""), ("n1", "[[s]]\nname = \"three\"")],
        "[[s]]\nname = \"three\" # n1/x.toml:2",
    );
    layers("a scalar takes the place of a table", &[("default", "[a]\nx = 1"), ("n1", "a = 2")], "a = 2 # n1/x.toml:1");
    layers(
        "a table takes the place of a scalar",
        &[("default", "a = 2"), ("n1", "a.x = 1")],
        "[a]\nx = 1 # n1/x.toml:1",
    );
    layers(
        "dotted keys, headers and inline tables are the same",
        &[("global", "a.b.c = 1"), ("default", "[a.b]\nd = 2"), ("n1", "a = { b = { e = 3 } }")],
        "[a.b]
         c = 1 # global/x.toml:1
         d = 2 # default/x.toml:2
         e = 3 # n1/x.toml:1",
    );
    layers("an empty table stays", &[("default", "[a]"), ("n1", "[b]\n")], "[a] # default/x.toml:1\n[b] # n1/x.toml:1");
}

#[test]
fn unset_removes() {
    layers(
        "a scalar",
        &[("default", "a = 1\nb = 1"), ("n1", "unset = [\"a\"]")],
        "b = 1 # default/x.toml:1".replace(":1", ":2").as_str(),
    );
    layers(
        "in the table where it stands, and only there",
        &[("default", "x = 1\n[t]\nx = 1\ny = 1"), ("n1", "[t]\nunset = [\"x\"]")],
        "x = 1 # default/x.toml:1
         [t]
         y = 1 # default/x.toml:4",
    );
    layers(
        "a table with all that is in it",
        &[("default", "[vip.a]\nx = 1\n[vip.b]\nx = 1"), ("n1", "[vip]\nunset = [\"a\"]")],
        "[vip.b]\nx = 1 # default/x.toml:4",
    );
    layers(
        "together with the same key: replaced instead of merged",
        &[("default", "[t]\nx = 1\ny = 1"), ("n1", "unset = [\"t\"]\n[t]\nz = 2")],
        "[t]\nz = 2 # n1/x.toml:3",
    );
    layers(
        "a more specific layer may set it again",
        &[("global", "a = 1"), ("default", "unset = [\"a\"]"), ("n1", "a = 3")],
        "a = 3 # n1/x.toml:1",
    );
    layers("of what nobody gave does nothing", &[("default", "unset = [\"a\"]\nb = 1")], "b = 1 # default/x.toml:2");
    layers(
        "does not touch more specific layers",
        &[("global", "unset = [\"a\"]"), ("default", "a = 1")],
        "a = 1 # default/x.toml:1",
    );
    layers(
        "inside an array it is an ordinary key",
        &[("default", "s = [{ unset = [\"a\"], a = 1 }]")],
        "[[s]]\nunset = [\"a\"] # default/x.toml:1\na = 1 # default/x.toml:1",
    );
    layers("that is no list of keys is an ordinary key", &[("default", "unset = 3")], "unset = 3 # default/x.toml:1");
}

#[test]
fn a_broken_layer_is_no_document() {
    layers(
        "the place is named",
        &[("default", "a = 1\nb = ["), ("n1", "a = 2")],
        "default/x.toml:2:6: unclosed array, expected `]`",
    );
}

#[test]
fn origins_by_path() {
    let files = MemoryFiles::from_texts([
        ("default/duravip.toml", "[vip.\"10.1.1.1\"]\nservices = [\n  \"smtp\",\n  \"pop\" ]\n"),
        ("n1/duravip.toml", "\n\n[vip.\"10.1.1.1\"]\n  name = \"ä\""),
    ]);
    let document = document(&files, &SearchPath::of_node("n1", &[]), "duravip.toml").unwrap();
    let vip = KeyPath::keys(["vip", "10.1.1.1"]);
    let place = |path: &KeyPath| {
        document.origin(path).map(|place| format!("{}:{}:{}", place.file, place.at.line, place.at.column))
    };
    assert_eq!(place(&vip.key("services")).unwrap(), "default/duravip.toml:2:1");
    assert_eq!(place(&vip.key("services").index(1)).unwrap(), "default/duravip.toml:4:3");
    assert_eq!(place(&vip.key("name")).unwrap(), "n1/duravip.toml:4:3");
    assert_eq!(place(&vip.key("follow")), None);
    assert_eq!(vip.key("services").index(1).to_string(), "vip.\"10.1.1.1\".services[1]");
    let origins: Vec<String> = document.origins().iter().map(|(path, place)| format!("{path} {place}")).collect();
    assert_eq!(
        origins,
        ["vip.\"10.1.1.1\".services default/duravip.toml:2", "vip.\"10.1.1.1\".name n1/duravip.toml:4"]
    );
    assert_eq!(
        document.to_json(),
        serde_json::json!({"vip": {"10.1.1.1": {"services": ["smtp", "pop"], "name": "ä"}}})
    );
}

#[test]
fn other_files_win_as_a_whole() {
    let files = MemoryFiles::from_texts([
        ("default/nginx/nginx.conf", "default"),
        ("n1/nginx/nginx.conf", "own"),
        ("global/app.json", "{\"a\": 1}"),
        ("default/app.json", "{\"b\": 2}"),
    ]);
    let of = |node: &str, file: &str| effective(&files, &SearchPath::of_node(node, &[]), file).unwrap();
    let whole = |path: &str, data: &str| EffectiveFile::Whole { path: path.into(), data: data.into() };
    assert_eq!(of("n1", "nginx/nginx.conf"), whole("n1/nginx/nginx.conf", "own"));
    assert_eq!(of("n2", "nginx/nginx.conf"), whole("default/nginx/nginx.conf", "default"));
    assert_eq!(of("n2", "app.json"), whole("default/app.json", "{\"b\": 2}"));
    assert_eq!(of("n1", "nothing"), EffectiveFile::Missing);
    assert_eq!(of("n1", "nothing.toml"), EffectiveFile::Missing);
    assert!(matches!(
        effective(&MemoryFiles::from_texts([("default/x.toml", "=")]), &SearchPath::shared(), "x.toml"),
        Err(EffectiveError::Refused(_))
    ));
}

/// Small random documents over few keys, so that layers collide.
fn toml_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|boolean| boolean.to_string()),
        any::<f64>().prop_map(|number| if number.is_nan() { "nan".into() } else { toml_float(number) }),
        "[ -~äß\n\t\"\\\\\u{7f}]{0,6}".prop_map(|text| cluster::documents::print::quoted(&text)),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("07:32:00".to_owned()),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof!["[abc]", Just("\"d e\"".to_owned())];
        let unset = proptest::collection::vec("[abc]", 0..3);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            (proptest::collection::btree_map(key, inner, 0..4), proptest::option::of(unset)).prop_map(
                |(entries, unset)| {
                    let mut parts: Vec<String> =
                        entries.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                    parts.extend(unset.map(|keys| format!("unset = {keys:?}")));
                    format!("{{ {} }}", parts.join(", "))
                }
            ),
        ]
    });
    let root_unset = proptest::option::of(proptest::collection::vec("[abc]", 0..3));
    (proptest::collection::btree_map("[abc]", value, 0..4), root_unset).prop_map(|(entries, unset)| {
        let mut lines: Vec<String> = entries.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        lines.extend(unset.map(|keys| format!("unset = {keys:?}\n")));
        lines.concat()
    })
}

fn toml_float(number: f64) -> String {
    if number.is_infinite() { if number > 0.0 { "inf".into() } else { "-inf".into() } } else { format!("{number:?}") }
}

proptest! {
    /// Whoever merges the upper layers first gets the same as whoever starts at the bottom.
    #[test]
    fn merging_is_associative(texts in proptest::collection::vec(toml_text(), 3)) {
        use cluster::documents::layers::merge;
        let parse = |text: &String| cluster::documents::Document::parse("x.toml", text.as_bytes()).unwrap().root;
        let [a, b, c] = [parse(&texts[0]), parse(&texts[1]), parse(&texts[2])];
        let mut from_below = a.clone();
        merge(&mut from_below, &b);
        merge(&mut from_below, &c);
        let mut upper = b;
        merge(&mut upper, &c);
        let mut from_above = a;
        merge(&mut from_above, &upper);
        let json = cluster::documents::print::json;
        prop_assert_eq!(sorted(json(&from_below)), sorted(json(&from_above)));
    }

    /// An effective document, printed with its origins, is the same document again.
    #[test]
    fn printing_and_parsing(texts in proptest::collection::vec(toml_text(), 2), origins in any::<bool>()) {
        let files = MemoryFiles::from_texts([("default/x.toml", texts[0].as_str()), ("n1/x.toml", texts[1].as_str())]);
        let document = document(&files, &SearchPath::of_node("n1", &[]), "x.toml").unwrap();
        let printed = document.to_toml(origins);
        let again = cluster::documents::Document::parse("again.toml", printed.as_bytes());
        let again = again.unwrap_or_else(|findings| panic!("{findings}\n{printed}"));
        let again = cluster::documents::Effective::from_document(again);
        prop_assert_eq!(sorted(again.to_json()), sorted(document.to_json()), "{}", printed);
    }
}

/// Without order of keys; text, because NaN is not equal to itself.
fn sorted(value: serde_json::Value) -> String {
    fn sort(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(entries) => {
                let entries: std::collections::BTreeMap<_, _> =
                    entries.into_iter().map(|(key, value)| (key, sort(value))).collect();
                serde_json::Value::Object(entries.into_iter().collect())
            }
            serde_json::Value::Array(items) => items.into_iter().map(sort).collect(),
            other => other,
        }
    }
    sort(value).to_string()
}
