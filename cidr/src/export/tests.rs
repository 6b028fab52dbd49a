//! What was exported, read back by DuckDB from PyPI and compared count by count; and questions that both answer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use cidr_engine::{Care, Counts, DAY_S, Owner, QueryOptions, StoreOptions, Window};

use super::*;

const BEGIN: i64 = 20_454 * DAY_S;

/// A store with detail, a condensed day, late files, and more rows than a group holds.
fn sample(dir: &Path) -> Store {
    let store = Store::open(dir, StoreOptions::owned_by(Owner::current("cidr", "n1"))).unwrap();
    let window = |series: &str, node: &str, end: i64, v4: Vec<(u32, i64)>| {
        let v6 = vec![((0x2001_0db8_u128 << 96) + end as u128, -5)];
        let counts = Counts::from_rows(v4, v6);
        Window { series: series.into(), node: node.into(), start: end - 3_600, end, counts }
    };
    for day in 0..3 {
        for hour in 1..=4 {
            let end = BEGIN + day * DAY_S + hour * 3_600;
            let rows = |seed: u32| (0..50).map(|n| (0x0a00_0000 + n * seed, i64::from(n * seed) + hour)).collect();
            store.commit(None, &[window("spam", "n1", end, rows(7)), window("virus", "n2", end, rows(11))]).unwrap();
            store.commit(None, &[window("spam", "n2", end, rows(13))]).unwrap();
        }
    }
    let many = (0..150_000_u32).map(|n| (n * 97, i64::from(n) << 20)).collect();
    store.commit(None, &[window("spam", "n1", BEGIN + 2 * DAY_S + 9_000, many)]).unwrap();
    let care = Care { retention_days: None, condense_days: Some(2) };
    store.maintain(BEGIN + 2 * DAY_S + 80_000, |_| care, &|| false).unwrap();
    // After its day was condensed.
    store.commit(None, &[window("spam", "n3", BEGIN + 7_200, vec![(0x0a00_0001, 1_000)])]).unwrap();
    store
}

fn expected(store: &Store) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for (series, ..) in store.available() {
        for day in store.days(&series) {
            let each = &mut |row: Dumped<'_>| {
                let key = format!("{series},{day},{},{},{},{}", row.start, row.end, row.node, row.address);
                assert_eq!(rows.insert(key, row.count), None);
                Ok::<(), cidr_engine::Error>(())
            };
            store.dump(&series, day, &|| false, each).unwrap();
        }
    }
    rows
}

/// A Python that has DuckDB, in a directory of the test's own.
fn python(dir: &Path) -> Option<std::path::PathBuf> {
    let venv = dir.join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("not compared with DuckDB: python3 cannot make a virtual environment here (python3-venv)");
        return None;
    }
    let python = venv.join("bin/python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "duckdb"];
    let installed = Command::new(&python).args(pip).output().unwrap();
    if !installed.status.success() {
        println!("not compared with DuckDB: {}", String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(python)
}

const READ: &str = r"
import duckdb, sys
rows = duckdb.execute('''
  select series, day::varchar, epoch_ms(window_start) // 1000, epoch_ms(window_end) // 1000, node, address, count, hex(ip)
  from read_parquet(? || '/**/*.parquet', hive_partitioning = true)''', [sys.argv[1]]).fetchall()
import ipaddress
for *key, address, count, ip in rows:
    full = ipaddress.ip_address(bytes.fromhex(ip))
    assert str(full.ipv4_mapped or full) == address, (address, ip)
    print(','.join(map(str, key)) + ',' + address + '=' + str(count))
";

#[test]
fn duckdb_reads_every_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = sample(&dir.path().join("store"));
    let expected = expected(&store);
    let days = (Day(0), Day(100_000));
    let to = dir.path().join("parquet");
    let exported = export(&store, &to, &[], days, &|| false).unwrap();
    assert_eq!(exported, Exported { files: 6, rows: expected.len() as u64 });
    assert_eq!(export(&store, &to, &["virus".into()], (Day(20_455), Day(20_455)), &|| false).unwrap().files, 1);
    let Some(python) = python(dir.path()) else { return };
    let read = Command::new(&python).args(["-c", READ]).arg(&to).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).unwrap();
    let found: BTreeMap<String, i64> = text
        .lines()
        .map(|line| line.rsplit_once('=').map(|(key, count)| (key.to_owned(), count.parse().unwrap())).unwrap())
        .collect();
    assert!(found == expected, "{} rows read, {} kept", found.len(), expected.len());
    drop(store);
    same_answers(&dir.path().join("large"), &python);
}

/// Half a million counts: a series with all detail, one whose days are condensed into their month, one in between.
fn large(dir: &Path) -> Store {
    let store = Store::open(dir, StoreOptions::owned_by(Owner::current("cidr", "n1"))).unwrap();
    let mut state = 0x5eed_u64;
    let mut random = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for window in 1..=48 {
        for series in ["spam", "virus", "rbl"] {
            let rows = (0..4_000).map(|_| {
                // Some nets and hosts are much more frequent than others.
                let net = [random(20), random(400), random(4_000)][random(3) as usize] as u32;
                let host = random(256).min(random(256)) as u32;
                ((10 << 24) + (net << 8) + host, 1 + random(9) as i64 * random(2) as i64)
            });
            let end = BEGIN + 19 * DAY_S + window * DAY_S / 4;
            let counts = Counts::from_rows(rows.collect(), Vec::new());
            let window = Window { series: series.into(), node: "n1".into(), start: end - 3_600, end, counts };
            store.commit(None, &[window]).unwrap();
        }
    }
    let care = |series: &str| {
        let condense_days = match series {
            "virus" => Some(1),
            "rbl" => Some(9),
            _ => None,
        };
        Care { retention_days: None, condense_days }
    };
    let done = store.maintain(BEGIN + 33 * DAY_S, care, &|| false).unwrap();
    assert!(done.months == 1 && done.condensed > 48, "{done:?}");
    store
}

/// Questions in both languages. Ours gives lines of a block and a count, with the day in front where there is one.
const BOTH: [(&str, &str); 7] = [
    (
        "show count for 0.0.0.0/0 in union(spam, virus, rbl)",
        "select ip, 32, sum(count) from t group by 1, 2 order by 1",
    ),
    (
        "show count for 0.0.0.0/0 in virus order by count limit 100",
        "select ip, 32, sum(count) n from t where series = 'virus' group by 1, 2 order by n desc, 1 limit 100",
    ),
    (
        "show count for 0.0.0.0/0 in union(spam, virus) on 20260125 cidrsize 24 order by count limit 50",
        "select ip // 256 * 256, 24, sum(count) n from t where series != 'rbl' and day = '2026-01-25'
         group by 1, 2 order by n desc, 1 limit 50",
    ),
    (
        "show count for 10.0.0.0/12 in rbl from 20260123 to 20260129 cidrsize 12 to 24",
        "select ip >> (32 - b) << (32 - b), b, sum(count) from t, range(12, 25) s(b)
         where series = 'rbl' and day between '2026-01-23' and '2026-01-29' and ip < 168820736
         group by 1, 2 order by 1, 2",
    ),
    (
        "show count for 10.1.0.0/16 in virus cidrsize 16 aggregate daily",
        "select strftime(day::date, '%Y%m%d'), 167837696, 16, sum(count) from t
         where series = 'virus' and ip >> 16 = 2561 group by 1 order by 1",
    ),
    (
        "show count for 0.0.0.0/0 in spam cidrsize 28 threshold 40",
        "select ip >> 4 << 4, 28, sum(count) n from t where series = 'spam' group by 1, 2 having n >= 40 order by 1",
    ),
    (
        "show count for 10.0.0.7 in union(virus, spam) from 20260122 to 20260130",
        "select ip, 32, sum(count) from t where series != 'rbl' and ip = 167772167
         and day between '2026-01-22' and '2026-01-30' group by 1",
    ),
];

const ASK: &str = r"
import duckdb, sys, ipaddress
duckdb.execute('''create table t as select series, day::varchar as day, count,
  list_sum([split_part(address, '.', n)::bigint << (32 - 8 * n) for n in range(1, 5)])::bigint as ip
  from read_parquet(? || '/**/*.parquet', hive_partitioning = true)''', [sys.argv[1]])
for sql in sys.argv[2:]:
    for *day, ip, bits, count in duckdb.execute(sql).fetchall():
        print(' '.join([*day, f'{ipaddress.ip_address(ip)}/{bits}', str(count)]))
    print('.')
";

fn same_answers(dir: &Path, python: &Path) {
    let store = large(&dir.join("store"));
    let to = dir.join("parquet");
    let exported = export(&store, &to, &[], (Day(0), Day(100_000)), &|| false).unwrap();
    assert!(exported.rows > 400_000, "{exported:?}");
    let mut command = Command::new(python);
    command.args(["-c", ASK]).arg(&to).args(BOTH.map(|(_, sql)| sql));
    let asked = command.output().unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let text = String::from_utf8(asked.stdout).unwrap();
    let mut answers = text.split_inclusive("\n.\n");
    for (question, _) in BOTH {
        let mut ours = Vec::new();
        store.query(question, &QueryOptions::at(0), &mut ours).unwrap();
        let ours: Vec<String> = String::from_utf8(ours).unwrap().lines().map(words).collect();
        let theirs = answers.next().unwrap().lines().filter(|line| *line != ".").collect::<Vec<_>>();
        assert!(!ours.is_empty() && ours == theirs, "{question}: {} rows, DuckDB {}", ours.len(), theirs.len());
    }
}

/// A line without what lines it up.
fn words(line: &str) -> String {
    line.split_whitespace().filter(|word| *word != ":").collect::<Vec<_>>().join(" ")
}
