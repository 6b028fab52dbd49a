//! The system's journal, through `journalctl`.
//!
//! Its files have a format of their own, which systemd changes; `journalctl -o json` is its public interface. The cursor of the newest entry is
//! noted in the journal together with its line, so a restart goes on behind it, exactly.

use std::process::Stdio;
use std::time::Duration;

use logd_journal::Batch;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::Feed;
use super::lines::{Lines, one_line};
use crate::node::Closed;
use crate::node::log::SourceNote;
use crate::path::{now_us, rfc3339_local};

const KEY: &[u8] = b"journald";
const READ_BYTES: usize = 64 << 10;
/// An entry as JSON is larger than its message; beyond this it is cut and counted as unreadable.
const MAX_ENTRY_BYTES: usize = 1 << 20;
/// How long to wait before journalctl is started again.
const RETRY: Duration = Duration::from_secs(2);

pub(super) fn start(feed: &Feed) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let mut said = false;
        loop {
            match spawn(&feed) {
                Ok(child) => {
                    said = false;
                    if follow(&feed, child).await.is_err() {
                        return;
                    }
                }
                Err(error) if !std::mem::replace(&mut said, true) => {
                    tracing::error!(log = feed.log.name(), %error, "journalctl cannot be started; trying again");
                }
                Err(_) => {}
            }
            if feed.stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    });
}

fn spawn(feed: &Feed) -> std::io::Result<Child> {
    let mut command = Command::new("journalctl");
    command.args(["--follow", "--output=json", "--all", "--no-pager"]);
    match feed.log.journal().note(KEY) {
        Some(note) => {
            let cursor = String::from_utf8_lossy(note.get(16..).unwrap_or_default()).into_owned();
            command.arg(format!("--after-cursor={cursor}"))
        }
        None => command.arg("--no-tail"),
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()
}

async fn follow(feed: &Feed, mut child: Child) -> Result<(), Closed> {
    let Some(mut output) = child.stdout.take() else { return Ok(()) };
    let mut lines = Lines::new(MAX_ENTRY_BYTES);
    let mut buffer = vec![0; READ_BYTES];
    while let Some(Ok(bytes)) = feed.stop.run_until_cancelled(output.read(&mut buffer)).await {
        if bytes == 0 {
            break;
        }
        let mut batch = Batch::new();
        let mut cursor = None;
        let mut line = Vec::new();
        lines.feed(&buffer[..bytes], |entry| {
            let Some((at, text, time_us)) = parse(entry) else {
                tracing::warn!(log = feed.log.name(), "an entry of journald cannot be read");
                return;
            };
            let cut = one_line(text.as_bytes(), feed.max_line_bytes, &mut line);
            feed.count_cut(cut.into());
            feed.push(&mut batch, time_us, &line);
            cursor = Some(at);
        });
        let Some(cursor) = cursor else { continue };
        // A cursor has some 150 bytes.
        let _ = batch.note(KEY, &SourceNote::now(0).encode(cursor.as_bytes()));
        feed.log.write(batch, false).await?.wait().await?;
    }
    let _ = child.kill().await;
    Ok(())
}

/// Cursor, line of RFC 5424, and time of an entry.
fn parse(entry: &[u8]) -> Option<(String, String, u64)> {
    let entry: Value = serde_json::from_slice(entry).ok()?;
    let field = |name: &str| text_of(entry.get(name)?);
    let cursor = field("__CURSOR")?;
    let time_us = field("__REALTIME_TIMESTAMP").and_then(|text| text.parse().ok()).unwrap_or_else(now_us);
    let number = |name: &str, otherwise: u32| field(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let priority = number("SYSLOG_FACILITY", 1) * 8 + number("PRIORITY", 6);
    let word = |names: &[&str]| {
        let found = names.iter().find_map(|name| field(name)).unwrap_or_default();
        let word: String = found.chars().filter(char::is_ascii_graphic).collect();
        if word.is_empty() { "-".to_owned() } else { word }
    };
    let (host, app) = (word(&["_HOSTNAME"]), word(&["SYSLOG_IDENTIFIER", "_COMM"]));
    let process = word(&["SYSLOG_PID", "_PID"]);
    let message = field("MESSAGE").unwrap_or_default();
    let line = format!("<{priority}>1 {} {host} {app} {process} - - {message}", rfc3339_local(time_us));
    Some((cursor, line, time_us))
}

/// Fields are texts, or arrays of bytes where they are no UTF-8.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_as_a_line() {
        let entry =
            br#"{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1800000000123456","PRIORITY":"3","SYSLOG_FACILITY":"10",
            "_HOSTNAME":"n1","SYSLOG_IDENTIFIER":"sshd","_PID":"42","MESSAGE":[72,105,255]}"#;
        let (cursor, line, time_us) = parse(entry).unwrap();
        assert_eq!((cursor.as_str(), time_us), ("s=1;i=2", 1_800_000_000_123_456));
        assert!(line.starts_with("<83>1 2027-01-"), "{line}");
        assert!(line.ends_with(" n1 sshd 42 - - Hi\u{fffd}"), "{line}");
        assert!(parse(b"{}").is_none());
    }
}
