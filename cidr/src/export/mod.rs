//! Copies of the store as Parquet: a file per series and day, below `series=NAME/day=YYYY-MM-DD/` as DuckDB, ClickHouse and Spark expect
//! partitions. A file appears whole or not at all.

mod parquet;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use cidr_engine::{Address, Day, Dumped, Store};

use parquet::{Kind, Value, Writer};

/// The columns beside those of the path.
const COLUMNS: [(&str, Kind); 6] = [
    ("window_start", Kind::Moment),
    ("window_end", Kind::Moment),
    ("node", Kind::Text),
    ("address", Kind::Text),
    // In network order, IPv4 mapped: sorts and compares as blocks do.
    ("ip", Kind::Bytes16),
    ("count", Kind::Number),
];

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store.
    #[error(transparent)]
    Store(#[from] cidr_engine::Error),
    /// The copy.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Files written.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
}

/// Copies the chosen series (none named: all) from the first to the last day. A file that is there is replaced.
pub fn export(
    store: &Store,
    to: &Path,
    series: &[String],
    days: (Day, Day),
    stop: &dyn Fn() -> bool,
) -> Result<Exported, ExportError> {
    let mut exported = Exported::default();
    for (name, ..) in store.available() {
        if !series.is_empty() && !series.contains(&name) {
            continue;
        }
        for day in store.days(&name).into_iter().filter(|day| (days.0..=days.1).contains(day)) {
            exported.rows += export_day(store, to, &name, day, stop)?;
            exported.files += 1;
        }
    }
    Ok(exported)
}

fn export_day(store: &Store, to: &Path, series: &str, day: Day, stop: &dyn Fn() -> bool) -> Result<u64, ExportError> {
    let dir = to.join(format!("series={series}")).join(format!("day={day}"));
    let (temporary, path) = (dir.join(".counts.parquet.tmp"), dir.join("counts.parquet"));
    let failed = |source| ExportError::Io { path: path.clone(), source };
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let written = write_day(store, &temporary, series, day, stop, &failed);
    let moved = written.and_then(|rows| std::fs::rename(&temporary, &path).map(|()| rows).map_err(failed));
    moved.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

fn write_day(
    store: &Store,
    path: &Path,
    series: &str,
    day: Day,
    stop: &dyn Fn() -> bool,
    failed: &dyn Fn(std::io::Error) -> ExportError,
) -> Result<u64, ExportError> {
    let file = BufWriter::new(File::create(path).map_err(failed)?);
    let mut writer = Writer::new(file, &COLUMNS).map_err(failed)?;
    store.dump(series, day, stop, &mut |row: Dumped<'_>| {
        let address = row.address.to_string();
        let values = [
            Value::Number(row.start * 1_000),
            Value::Number(row.end * 1_000),
            Value::Text(row.node),
            Value::Text(&address),
            Value::Bytes16(mapped(row.address)),
            Value::Number(row.count),
        ];
        writer.row(&values).map_err(failed)
    })?;
    let (rows, mut file) = writer.finish().map_err(failed)?;
    file.flush().map_err(failed)?;
    file.get_ref().sync_all().map_err(failed)?;
    Ok(rows)
}

fn mapped(address: Address) -> [u8; 16] {
    match IpAddr::from(address) {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
    }
}

#[cfg(test)]
mod tests;
