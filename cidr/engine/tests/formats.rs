//! Files as they were written once: those of every version must open for ever, and the same data must give the same bytes as those of the
//! newest.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use cidr_engine::{
    Address, Care, Counts, DAY_S, Day, Error, Origin, Owner, QueryError, QueryOptions, Store, StoreOptions, Window,
};

/// Version 1 was written by a build that kept a day's windows beside its sum, version 2 by one that kept condensed days alone.
const VERSIONS: [u32; 3] = [1, 2, 3];
const NEWEST: u32 = 3;

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v{version}"))
}

fn open(dir: &Path) -> cidr_engine::Result<Store> {
    Store::open(dir, StoreOptions::owned_by(Owner::current("test", "n1")))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
    files.sort();
    files
}

fn copy(version: u32, dir: &Path) {
    fs::create_dir_all(dir.join("condensed")).unwrap();
    for path in files(&fixture(version)) {
        fs::copy(&path, dir.join(path.strip_prefix(fixture(version)).unwrap())).unwrap();
    }
}

/// Everything that the format has: two nodes, IPv6, exceptions, lowered counts, several blocks, a day, eight days, a late file.
fn write(dir: &Path) {
    let store = open(dir).unwrap();
    let day = Day::from_date(2008, 4, 23).unwrap().start();
    let many =
        (0..600_u32).map(|n| (Address::V4((10 << 24) + n * n), i64::from(n % 7) + i64::from(n == 99) * 1_000_000));
    let few = ["10.79.18.1", "2001:db8::1", "2001:db8:0:1::1", "0.0.0.0", "255.255.255.255"];
    let few: Vec<(Address, i64)> = few.iter().zip([5, 7, -2, 1, 1]).map(|(a, n)| (a.parse().unwrap(), n)).collect();
    let windows = [
        (many.collect::<Counts>(), "n1", 0),
        (few.iter().copied().collect(), "n2", 0),
        (few.into_iter().collect(), "n1", 1),
    ];
    for (sequence, (counts, node, days)) in windows.into_iter().enumerate() {
        let start = day + days * DAY_S;
        let window = Window { series: "spam".into(), node: node.into(), start, end: start + 900, counts };
        let origin = Origin { node: node.into(), sequence: sequence as u64 + 40 };
        store.commit(Some(&origin), &[window]).unwrap();
    }
    // Condensed days of a series of its own: two months, and an address whose counts add up to zero.
    for n in 0..16 {
        let start = Day::from_date(2008, 3, 24).unwrap().start() + n * DAY_S;
        let hosts =
            (0..500_u32).map(|host| (Address::V4((10 << 24) + host * (3 + n as u32 % 2)), 1 + i64::from(host % 5)));
        let six =
            ["2001:db8::1", "2001:db8:0:1::1"].map(|text| (text.parse().unwrap(), if n % 2 == 0 { 4 } else { -4 }));
        let counts = hosts.chain(six).collect();
        let window = Window { series: "virus".into(), node: "n1".into(), start, end: start + 900, counts };
        store.commit(None, &[window]).unwrap();
    }
    let care = |series: &str| Care { retention_days: None, condense_days: (series == "virus").then_some(1) };
    let done = store.maintain(day + 20 * DAY_S, care, &|| false).unwrap();
    assert_eq!(done.months, 2, "{done:?}");
    let counts = [(Address::V4(10 << 24), 3)].into_iter().collect();
    store
        .commit(None, &[Window { series: "spam".into(), node: "n2".into(), start: day, end: day + 900, counts }])
        .unwrap();
}

#[test]
#[ignore = "writes the fixture: once per version of the format"]
fn write_the_fixture() {
    fs::remove_dir_all(fixture(NEWEST)).ok();
    fs::create_dir_all(fixture(NEWEST)).unwrap();
    write(&fixture(NEWEST));
    fs::remove_file(fixture(NEWEST).join("lock")).unwrap();
}

#[test]
fn every_version_opens_and_answers_and_goes_on() {
    for version in VERSIONS {
        let dir = tempfile::tempdir().unwrap();
        copy(version, dir.path());
        let store = open(dir.path()).unwrap();
        answers_rightly(&store, version);
        // Maintenance brings everything to the newest version; afterwards it has nothing to do.
        let now = Day::from_date(2008, 5, 13).unwrap().start();
        let done = store.maintain(now, |_| Care::default(), &|| false).unwrap();
        assert!(done.days > 0, "version {version}: {done:?}");
        answers_rightly(&store, version);
        assert_eq!(store.maintain(now, |_| Care::default(), &|| false).unwrap(), cidr_engine::Maintained::default());
        assert_eq!(files(dir.path()).iter().filter(|path| path.parent() == Some(dir.path())).count(), 1, "a manifest");
        drop(store);
        answers_rightly(&open(dir.path()).unwrap(), version);
    }
}

fn answers_rightly(store: &Store, version: u32) {
    let verified = store.verify(&|| false).unwrap();
    assert!(verified.damage.is_empty() && verified.files >= 2, "{verified:?}");
    let ask = |text: &str| {
        let mut out = Vec::new();
        store.query(text, &QueryOptions::at(0), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let available = ask("show available");
    assert!(available.starts_with("spam : 20080423T001500 => 20080424T001500\n"), "{available}");
    assert_eq!(
        ask("show count for 10.79.18.1 in spam aggregate daily"),
        "20080423 10.79.18.1/32      :         5\n20080424 10.79.18.1/32      :         5\n"
    );
    assert_eq!(ask("show count for 10.0.38.73 in spam node n1"), "10.0.38.73/32      :   1000001\n");
    assert_eq!(ask("show count for 10.0.0.0 in spam"), "10.0.0.0/32        :         3\n");
    assert_eq!(ask("show count for ::/0 in spam cidrsize 48"), "2001:db8::/48      :        10\n");
    assert_eq!(store.taken("n2"), Some(41));
    if version < 3 {
        return;
    }
    assert_eq!(available.lines().nth(1), Some("virus : 20080324T001500 => 20080408T001500"));
    // Of 24 to 31 March and 1 to 8 April: host 12 is there every day, as the fifth or the fourth of its day.
    assert_eq!(ask("show count for 10.0.0.12 in virus"), "10.0.0.12/32       :        72\n");
    assert_eq!(
        ask("show count for 10.0.0.12 in virus from 20080331 to 20080401 aggregate daily"),
        "20080331 10.0.0.12/32       :         4\n20080401 10.0.0.12/32       :         5\n"
    );
    assert_eq!(ask("show count for 2001:db8::/32 in virus cidrsize 48"), "");
    assert_eq!(ask("show count for 2001:db8::1 in virus on 20080402"), "2001:db8::1/128    :        -4\n");
}

#[test]
fn the_same_data_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let names = |root: &Path| files(root).iter().map(|p| p.strip_prefix(root).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(dir.path()), names(&fixture(NEWEST)));
    for name in names(dir.path()) {
        assert_eq!(
            fs::read(dir.path().join(&name)).unwrap(),
            fs::read(fixture(NEWEST).join(&name)).unwrap(),
            "{name:?}"
        );
    }
}

#[test]
fn a_later_version_is_refused_with_words_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    copy(NEWEST, dir.path());
    let window = dir.path().join("spam.20080423T001500");
    let mut bytes = fs::read(&window).unwrap();
    bytes[8] = 4;
    fs::write(&window, &bytes).unwrap();
    let asked = open(dir.path()).unwrap().query(
        "show count for 0.0.0.0/0 in spam trend",
        &QueryOptions::at(0),
        &mut Vec::new(),
    );
    let Err(QueryError::Store(Error::Version { found: 4, known: NEWEST, .. })) = asked else { panic!("{asked:?}") };
    let manifest = dir.path().join("manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[8] = 4;
    fs::write(&manifest, &bytes).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Version { found: 4, .. })));
    assert_eq!(fs::read(&manifest).unwrap(), bytes);
}
