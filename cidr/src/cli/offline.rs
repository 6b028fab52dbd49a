//! Care of a store: of the running daemon's, or with `--dir` of one that no daemon has open.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use cidr_engine::{Care, Owner, RealDisk, Store, StoreOptions};
use clap::Args;
use cluster::command_line::Failure;
use cluster::control;
use serde_json::{Value, json};

use super::commands::print;
use crate::daemon::control::{ExportArgs, maintained};
use crate::export::export;

fn open(dir: &std::path::Path) -> Result<Store, Failure> {
    if !dir.is_dir() {
        return Err(Failure::new(format!("{} is no directory", dir.display())));
    }
    Store::open(dir, StoreOptions::owned_by(Owner::current("cidr", ""))).map_err(|error| of_engine(&error))
}

fn of_engine(error: &cidr_engine::Error) -> Failure {
    let failure = Failure::of(error);
    match error {
        cidr_engine::Error::NoManifest { dir } => failure.hint(format!("cidr repair --dir {}", dir.display())),
        cidr_engine::Error::Locked(_) => failure.conflict().hint("without --dir the running daemon is asked"),
        _ => failure,
    }
}

/// Build days, merge late windows, condense and expire now, as the daemon does by itself every quarter of an hour.
#[derive(Debug, Args)]
pub struct Maintain {
    /// A store that no daemon has open
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// With --dir: days that are kept
    #[arg(long, value_name = "DAYS", requires = "dir")]
    retention: Option<u32>,
    /// With --dir: age in days at which windows become days
    #[arg(long, value_name = "DAYS", requires = "dir")]
    condense: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Maintain {
    pub async fn run(self) -> Result<(), Failure> {
        let done = match &self.dir {
            None => control::call("cidr", "maintain", Value::Null).await?,
            Some(dir) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
                let care = Care { retention_days: self.retention, condense_days: self.condense };
                let done = open(dir)?.maintain(now, |_| care, &|| false).map_err(|error| of_engine(&error))?;
                maintained(done)
            }
        };
        if self.json {
            return print(&done);
        }
        let number = |key: &str| done[key].as_u64().unwrap_or_default();
        Ok(writeln!(
            std::io::stdout(),
            "{} days, {} longer spans and {} months built, {} windows merged, {} condensed, {} days expired",
            number("days"),
            number("spans"),
            number("months"),
            number("merged"),
            number("condensed"),
            number("expired"),
        )?)
    }
}

/// Read every byte of the store and compare checksums and sums; exit status 1 when something is damaged.
#[derive(Debug, Args)]
pub struct Verify {
    /// A store that no daemon has open
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub async fn run(self) -> Result<(), Failure> {
        let found = match &self.dir {
            None => control::call("cidr", "verify", Value::Null).await?,
            Some(dir) => {
                let verified = open(dir)?.verify(&|| false).map_err(|error| of_engine(&error))?;
                let damage = verified.damage.iter().map(|(path, what)| json!({ "file": path, "what": what }));
                json!({ "files": verified.files, "rows": verified.rows, "damage": damage.collect::<Value>() })
            }
        };
        let damage = found["damage"].as_array().map_or(&[][..], Vec::as_slice);
        if self.json {
            print(&found)?;
        } else {
            let mut out = std::io::stdout().lock();
            for one in damage {
                writeln!(out, "{}", one["what"].as_str().unwrap_or_default())?;
            }
            writeln!(out, "{} files with {} rows, {} damaged", found["files"], found["rows"], damage.len())?;
        }
        match damage.len() {
            0 => Ok(()),
            number => Err(Failure::new(format!("{number} files are damaged"))
                .hint("stop the daemon; cidr repair --dir DIR sets them aside and goes on with what is sound")),
        }
    }
}

/// Copy counts as Parquet, a file per series and day, for DuckDB, ClickHouse and Spark.
#[derive(Debug, Args)]
pub struct Export {
    /// Where to; series=NAME/day=DAY/counts.parquet come below it, and are replaced
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// This series; repeat it for more [default: all]
    #[arg(long, value_name = "NAME")]
    series: Vec<String>,
    /// The first day, such as 2008-04-23
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// The last day
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// A store that no daemon has open
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub async fn run(self) -> Result<(), Failure> {
        let to = std::path::absolute(&self.to).map_err(|error| Failure::new(error.to_string()))?;
        let args = ExportArgs { to, series: self.series, from: self.from, until: self.until };
        let done = match &self.dir {
            None => control::call("cidr", "export", args).await?,
            Some(dir) => {
                let days = args.days().map_err(control::ControlError::Refused)?;
                let exported = export(&open(dir)?, &args.to, &args.series, days, &|| false);
                let exported = exported.map_err(|error| Failure::of(&error))?;
                json!({ "files": exported.files, "rows": exported.rows })
            }
        };
        if self.json {
            return print(&done);
        }
        Ok(writeln!(std::io::stdout(), "{} files with {} rows", done["files"], done["rows"])?)
    }
}

/// Make a new manifest from the files of a store that no daemon has open; damaged files go to `damaged/`.
#[derive(Debug, Args)]
pub struct Repair {
    /// The store
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub fn run(self) -> Result<(), Failure> {
        let owner = Owner::current("cidr", "");
        let repaired = Store::repair(&self.dir, &RealDisk, &owner).map_err(|error| of_engine(&error))?;
        if self.json {
            let damaged = repaired.damaged.iter().map(|(path, what)| json!({ "file": path, "what": what }));
            return print(&json!({
                "kept": repaired.kept,
                "superseded": repaired.superseded,
                "damaged": damaged.collect::<Value>(),
            }));
        }
        let mut out = std::io::stdout().lock();
        for (path, what) in &repaired.damaged {
            writeln!(out, "{}: {what}", path.display())?;
        }
        let (kept, superseded, damaged) = (repaired.kept, repaired.superseded, repaired.damaged.len());
        Ok(writeln!(out, "{kept} files kept, {superseded} superseded, {damaged} set aside in damaged/")?)
    }
}
