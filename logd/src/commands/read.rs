//! `logd cat`, `tail` and `grep`: aggregated files of all nodes in the order of time.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use cluster::control::{ControlError, call};
use cluster::documents::schema::logd::PathPattern;
use cluster::units::HumanDuration;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::daemon::PROGRAM;
use crate::path::{now_us, rfc3339_local};
use crate::read::{Line, OwnedLine, Wanted, files, merge, newest, refuse_unknown};
use cluster::command_line::Failure;

/// How often `tail -f` looks for more, and for new files.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const FIND_EVERY: Duration = Duration::from_secs(1);

/// Which lines, and how they are printed.
#[derive(Debug, Args)]
struct Select {
    /// The log
    #[arg(value_name = "LOG")]
    log: String,
    /// Only of this node; repeat it
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// Only of this subcluster; repeat it
    #[arg(long, value_name = "NAME")]
    subcluster: Vec<String>,
    /// From this time on: 2026-01-31T10:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<u64>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
    /// Print node and time before each line
    #[arg(long, short = 'l')]
    long: bool,
    /// Where the files are, instead of where this node's manager writes: the `logfile` of logd.toml
    #[arg(long, value_name = "PATTERN")]
    logfile: Option<PathPattern>,
}

/// Print a log of all nodes in the order of time
#[derive(Debug, Args)]
pub struct Cat {
    #[command(flatten)]
    select: Select,
}

/// Print the newest lines of a log of all nodes, and with -f what comes
#[derive(Debug, Args)]
pub struct Tail {
    #[command(flatten)]
    select: Select,
    /// Go on with what comes
    #[arg(short = 'f', long)]
    follow: bool,
    /// How many lines to begin with
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 10)]
    lines: usize,
}

/// Print the lines of a log that match a regular expression
///
/// Exit status 1 without a message: nothing matched.
#[derive(Debug, Args)]
pub struct Grep {
    /// The expression
    #[arg(value_name = "REGEX")]
    regex: String,
    #[command(flatten)]
    select: Select,
    /// Upper and lower case are the same
    #[arg(short = 'i', long)]
    ignore_case: bool,
    /// The lines that do not match
    #[arg(short = 'v', long)]
    invert: bool,
}

pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(ago) = text.parse::<HumanDuration>() {
        return Ok(now_us().saturating_sub(u64::try_from(ago.get().as_micros()).unwrap_or(u64::MAX)));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "neither a time such as 2026-01-31T10:00:00Z nor a duration such as 10m".to_owned())?;
    u64::try_from(time.unix_timestamp_nanos() / 1000).map_err(|_| "before 1970".to_owned())
}

impl Select {
    async fn pattern(&self) -> Result<PathPattern, Failure> {
        if let Some(pattern) = &self.logfile {
            return Ok(pattern.clone());
        }
        let answer = call(PROGRAM, "files", Value::Null).await.map_err(|error| {
            Failure::from(error).hint("aggregated files are on managers; --logfile PATTERN reads them without a daemon")
        })?;
        let pattern = answer["pattern"].as_str().unwrap_or_default().parse();
        let pattern = pattern.map_err(|error| Failure::new(format!("the daemon's answer: {error}")))?;
        let configured: Vec<String> = serde_json::from_value(answer["logs"].clone()).unwrap_or_default();
        refuse_unknown(&pattern, &self.log, &configured).map_err(ControlError::Refused)?;
        Ok(pattern)
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            log: self.log.clone(),
            nodes: self.node.clone(),
            subclusters: self.subcluster.clone(),
            since_us: self.since,
            until_us: self.until,
        }
    }

    fn format(&self, json: bool, line: Line<'_>, out: &mut Vec<u8>) {
        out.clear();
        if json {
            let value = serde_json::json!({
                "time": rfc3339_local(line.time_us),
                "node": line.node,
                "line": String::from_utf8_lossy(line.text),
            });
            out.extend_from_slice(value.to_string().as_bytes());
        } else {
            if self.long {
                out.extend_from_slice(format!("{} {} ", rfc3339_local(line.time_us), line.node).as_bytes());
            }
            out.extend_from_slice(line.text);
        }
        out.push(b'\n');
    }

    /// Prints the lines that `takes` takes; answers how many.
    async fn print(&self, json: bool, takes: impl Fn(&[u8]) -> bool) -> Result<u64, Failure> {
        let wanted = self.wanted();
        let found = files(&self.pattern().await?, &wanted);
        let mut out = std::io::BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
        let mut text = Vec::new();
        let mut printed = 0;
        let each = |line: Line<'_>| {
            if takes(line.text) {
                printed += 1;
                self.format(json, line, &mut text);
                out.write_all(&text)?;
            }
            Ok(true)
        };
        let mut unread = 0;
        let trouble = |path: &Path, error| {
            unread += 1;
            tracing::error!(path = %path.display(), %error, "left out");
        };
        gone_is_done(merge(found, &wanted, each, trouble))?;
        gone_is_done(out.flush())?;
        if unread > 0 {
            return Err(Failure::new(format!("{unread} files could not be read")));
        }
        Ok(printed)
    }
}

/// A reader that has gone (`| head`) ends the command in order.
fn gone_is_done(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::from),
    }
}

impl Cat {
    /// Runs it.
    pub async fn run(self, json: bool) -> Result<(), Failure> {
        self.select.print(json, |_| true).await.map(drop)
    }
}

impl Grep {
    /// Runs it.
    pub async fn run(self, json: bool) -> Result<(), Failure> {
        let regex = regex::bytes::RegexBuilder::new(&self.regex).case_insensitive(self.ignore_case).build();
        let regex = regex.map_err(|error| Failure::new(error.to_string()).usage())?;
        let invert = self.invert;
        match self.select.print(json, |text| regex.is_match(text) != invert).await? {
            0 => Err(Failure::new("")),
            _ => Ok(()),
        }
    }
}

impl Tail {
    /// Runs it.
    pub async fn run(self, json: bool) -> Result<(), Failure> {
        let (pattern, wanted) = (self.select.pattern().await?, self.select.wanted());
        let mut found = files(&pattern, &wanted);
        let (lines, mut follow) = newest(found.clone(), self.lines)?;
        self.print(json, &lines)?;
        if !self.follow {
            return Ok(());
        }
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if looked.elapsed() >= FIND_EVERY {
                looked = Instant::now();
                found = files(&pattern, &wanted);
            }
            let fresh = follow.fresh(&found)?;
            self.print(json, &fresh)?;
        }
    }

    fn print(&self, json: bool, lines: &[OwnedLine]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let mut line = Vec::new();
        for OwnedLine { time_us, node, text } in lines {
            self.select.format(json, Line { time_us: *time_us, node, text }, &mut line);
            gone_is_done(out.write_all(&line))?;
        }
        gone_is_done(out.flush())
    }
}
