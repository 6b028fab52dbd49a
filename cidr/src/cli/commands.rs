//! Commands that ask a daemon. One struct each; its doc comment is its help.

use std::io::{IsTerminal as _, Read as _, Write as _};

use clap::Args;
use cluster::command_line::Failure;
use cluster::control;
use cluster::units::HumanDuration;
use serde_json::{Value, json};

use super::source::SourceOptions;
use crate::daemon::control::{CountArgs, RemoveArgs};
use crate::service::Count as Counted;

/// Lines are sent in pieces of this size, cut between lines.
const PIECE_BYTES: usize = 512 << 10;

/// Ask a question in the query language, such as 'show count for 10.0.0.0/8 in spam since 2h'.
#[derive(Debug, Args)]
pub struct Query {
    /// The question; several words are one question
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV
    #[arg(long)]
    csv: bool,
}

impl Query {
    pub async fn run(self, source: &SourceOptions) -> Result<(), Failure> {
        let format = match (self.json, self.csv) {
            (true, _) => "json",
            (_, true) => "csv",
            _ => "text",
        };
        let mut out = std::io::stdout().lock();
        let mut write = |piece: &str| Ok(out.write_all(piece.as_bytes())?);
        source.open()?.query(&self.words.join(" "), format, &mut write).await?;
        Ok(out.flush()?)
    }
}

/// Count events: one `SERIES ADDRESS [AMOUNT]` as words, or lines of that from standard input with `-`.
#[derive(Debug, Args)]
pub struct Add {
    /// `-`, or SERIES ADDRESS [AMOUNT]
    #[arg(required = true, value_name = "WORDS", allow_negative_numbers = true)]
    words: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Add {
    pub async fn run(self, source: &SourceOptions) -> Result<(), Failure> {
        let source = source.open()?;
        let mut totals = (0, 0, None);
        if self.words == ["-"] {
            let mut stdin = std::io::stdin().lock();
            let mut text = Vec::new();
            loop {
                let read = stdin.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut text);
                let over = read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))? == 0;
                let cut =
                    if over { text.len() } else { text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) };
                if cut > 0 {
                    let lines = String::from_utf8_lossy(&text[..cut]).into_owned();
                    text.drain(..cut);
                    add_up(&mut totals, &source.add(lines).await?);
                }
                if over {
                    break;
                }
                if text.len() > PIECE_BYTES {
                    return Err(Failure::new("a line is too long").usage());
                }
            }
        } else {
            add_up(&mut totals, &source.add(self.words.join(" ") + "\n").await?);
        }
        let (counted, refused, why) = totals;
        if self.json {
            print(&json!({ "counted": counted, "refused": refused, "why": why }))?;
        }
        match why {
            Some(why) if refused > 0 => Err(Failure::new(format!("{refused} lines were not counted: {why}"))),
            _ => Ok(()),
        }
    }
}

fn add_up(totals: &mut (u64, u64, Option<String>), answer: &Value) {
    totals.0 += answer["counted"].as_u64().unwrap_or_default();
    totals.1 += answer["refused"].as_u64().unwrap_or_default();
    if totals.2.is_none() {
        totals.2 = answer["why"].as_str().map(str::to_owned);
    }
}

/// What every node together counted lately: `cidr count 10.79.18.0/24 in spam last 30m`.
#[derive(Debug, Args)]
pub struct Count {
    /// BLOCK in SERIES [last LENGTH]
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    /// This node alone
    #[arg(long)]
    local: bool,
    /// Print what each node counted as JSON
    #[arg(long)]
    json: bool,
}

impl Count {
    pub async fn run(self, source: &SourceOptions) -> Result<(), Failure> {
        let args = count_args(&self.words, self.local)?;
        let counted = source.open()?.count(args).await?;
        print_count(&counted, self.json)
    }
}

/// `10.0.0.0/8 in spam last 30m`
pub fn count_args(words: &[String], local: bool) -> Result<CountArgs, Failure> {
    let wrong = || {
        Failure::new("a count is BLOCK in SERIES [last LENGTH]")
            .usage()
            .hint("cidr count 10.79.18.0/24 in spam last 30m")
    };
    let words: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
    let (block, series, last) = match words.as_slice() {
        [block, is_in, series] if is_in.eq_ignore_ascii_case("in") => (block, series, "30m"),
        [block, is_in, series, last, length]
            if is_in.eq_ignore_ascii_case("in") && last.eq_ignore_ascii_case("last") =>
        {
            (block, series, *length)
        }
        _ => return Err(wrong()),
    };
    let last: HumanDuration = last.parse().map_err(|error| Failure::new(format!("{error}")).usage())?;
    Ok(CountArgs { block: (*block).into(), series: (*series).into(), last, local })
}

/// The sum, and who is missing from it.
pub fn print_count(counted: &Counted, json: bool) -> Result<(), Failure> {
    if json {
        print(&serde_json::to_value(counted).unwrap_or_default())?;
    } else {
        writeln!(std::io::stdout(), "{}", counted.count)?;
    }
    if counted.missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = counted.missing.iter().map(|(node, why)| format!("{node} ({why})")).collect();
    Err(Failure::new(format!("the sum lacks what these nodes counted: {}", names.join(", "))))
}

/// Forget an address in memory, on every node; windows that were written stay.
#[derive(Debug, Args)]
pub struct Remove {
    /// The series
    series: String,
    /// The address
    address: String,
}

impl Remove {
    pub async fn run(self, source: &SourceOptions) -> Result<(), Failure> {
        let answer = source.open()?.remove(RemoveArgs { series: self.series, address: self.address }).await?;
        match answer["missing"].as_object().filter(|missing| !missing.is_empty()) {
            None => Ok(()),
            Some(missing) => {
                let names: Vec<&str> = missing.keys().map(String::as_str).collect();
                Err(Failure::new(format!("these nodes could not be told: {}", names.join(", "))))
            }
        }
    }
}

/// List the series with their first and last windows and their monitors.
#[derive(Debug, Args)]
pub struct Series {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Series {
    pub async fn run(self, source: &SourceOptions) -> Result<(), Failure> {
        let series = source.open()?.series().await?;
        if self.json {
            return print(&series);
        }
        let mut out = std::io::stdout().lock();
        for row in series.as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            writeln!(out, "{:<24} {} {} {}", text("series"), text("first"), text("last"), text("monitor"))?;
        }
        Ok(())
    }
}

/// Show what the daemon on this machine is and what waits for servers.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON on one line
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self) -> Result<(), Failure> {
        let status = control::call("cidr", "status", Value::Null).await?;
        if self.json || !std::io::stdout().is_terminal() {
            return print(&status);
        }
        Ok(writeln!(std::io::stdout(), "{status:#}")?)
    }
}

/// One line of JSON.
pub fn print(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{value}")?)
}
