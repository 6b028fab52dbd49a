//! `logd logs`: what the journals hold and who is behind.

use clap::Args;
use cluster::control::call;
use cluster::units::HumanSize;
use serde_json::Value;

use super::print;
use crate::daemon::PROGRAM;
use crate::daemon::{LogsArgs, NodeLogs, far_behind};
use cluster::command_line::Failure;

/// Show journals: size, subscribers, and how far each is behind in records, bytes and seconds.
#[derive(Debug, Args)]
pub struct Logs {
    /// Every node of the cluster instead of this one
    #[arg(long, short = 'a')]
    all: bool,
    /// These nodes; repeat it
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
}

impl Logs {
    /// Runs it.
    pub async fn run(self, json: bool) -> Result<(), Failure> {
        let nodes = fetch(LogsArgs { all: self.all, nodes: self.node }).await?;
        if json {
            let text = serde_json::to_string(&nodes).map_err(|error| Failure::new(error.to_string()))?;
            return print(&format!("{text}\n"));
        }
        let mut rows = vec![
            ["NODE", "LOG", "SIZE", "SUBSCRIBER", "RECORDS", "BYTES", "SECONDS", "DROPPED", "READER"].map(String::from),
        ];
        let mut notes = String::new();
        for node in &nodes {
            if let Some(error) = &node.error {
                notes.push_str(&format!("{}: {error}\n", node.node));
            }
            for (log, name, percent) in far_behind(&node.logs) {
                notes.push_str(&format!("{}: {log}: {name} has not read {percent} % of max_backlog\n", node.node));
            }
            for log in &node.logs {
                rows.extend(rows_of(&node.node, log));
                for (is, words) in [
                    (log.full, "the disk is full; its inputs wait"),
                    (log.blocked, "max_backlog is reached; its inputs wait"),
                    (!log.configured, "is no longer configured; what is left is served"),
                ] {
                    if is {
                        notes.push_str(&format!("{}: {}: {words}\n", node.node, log.log));
                    }
                }
                for one in log.subscribers.iter().filter(|one| one.dropped > 0) {
                    let (node, log, name, lost) = (&node.node, &log.log, &one.name, one.dropped);
                    notes.push_str(&format!("{node}: {log}: {name} lost {lost} records at max_backlog\n"));
                }
            }
        }
        print(&table(&rows))?;
        print(&notes)?;
        match nodes.iter().any(|node| node.error.is_some()) {
            true => Err(Failure::new("not every node could be asked")),
            false => Ok(()),
        }
    }
}

/// Asks the daemon.
pub(super) async fn fetch(args: LogsArgs) -> Result<Vec<NodeLogs>, Failure> {
    let answer = call(PROGRAM, "logs", args).await?;
    serde_json::from_value(answer).map_err(|error| Failure::new(format!("the daemon's answer: {error}")))
}

fn rows_of(node: &str, log: &crate::wire::protocol::LogStatus) -> Vec<[String; 9]> {
    let size = size(log.bytes);
    if log.subscribers.is_empty() {
        let dash = || "-".to_owned();
        return vec![[node.into(), log.log.clone(), size, dash(), dash(), dash(), dash(), dash(), dash()]];
    }
    let rows = log.subscribers.iter().map(|one| {
        [
            node.into(),
            log.log.clone(),
            size.clone(),
            one.name.clone(),
            one.records.to_string(),
            self::size(one.bytes),
            one.seconds.to_string(),
            one.dropped.to_string(),
            one.reader.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    rows.collect()
}

/// Rounded to what people read: whole units, at least four digits before the next one.
fn size(bytes: u64) -> String {
    let mut rounded = bytes;
    let mut unit = 1_u64;
    while rounded >= 10_000 {
        rounded /= 1024;
        unit *= 1024;
    }
    HumanSize::from_bytes(rounded * unit).to_string()
}

/// Columns as wide as their longest cell.
fn table(rows: &[[String; 9]]) -> String {
    let mut widths = [0; 9];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// `logd metrics`.
pub async fn metrics() -> Result<(), Failure> {
    match call(PROGRAM, "metrics", Value::Null).await? {
        Value::String(text) => print(&text),
        _ => Err(Failure::new("the daemon's answer is no text")),
    }
}
