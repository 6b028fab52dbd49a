//! What was exported, read back by DuckDB from PyPI and compared count by count.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use cidr_engine::{Care, Counts, DAY_S, Owner, StoreOptions, Window};

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
    let read = Command::new(python).args(["-c", READ]).arg(&to).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).unwrap();
    let found: BTreeMap<String, i64> = text
        .lines()
        .map(|line| line.rsplit_once('=').map(|(key, count)| (key.to_owned(), count.parse().unwrap())).unwrap())
        .collect();
    assert!(found == expected, "{} rows read, {} kept", found.len(), expected.len());
}
