//! `jlogctl import`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Failure, Ui, change};
use crate::jlog::{self, ImportReport};

/// Take over a directory of the old jlog library, with its subscribers where they were. Stop the program that writes it first
#[derive(Debug, Args)]
pub(super) struct Import {
    /// Make the journal here and leave the old directory alone; otherwise it takes the old one's place, which stays as DIR.jlog
    #[arg(long, value_name = "NEW")]
    into: Option<PathBuf>,
    /// The old directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn import(import: &Import, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let (report, kept) = match &import.into {
        Some(new) => (jlog::import_into(&import.dir, new, change::options())?, None),
        None => {
            let (report, kept) = jlog::import_in_place(&import.dir, change::options())?;
            (report, Some(kept))
        }
    };
    let value = || {
        let skipped: Vec<_> = report
            .skipped
            .iter()
            .map(|one| json!({ "file": one.path, "offset": one.offset, "bytes": one.bytes }))
            .collect();
        json!({
            "segments": report.segments, "records": report.records, "skipped": skipped,
            "bad_checkpoints": report.bad_checkpoints, "subscribers": report.subscribers, "old": kept,
        })
    };
    ui.print(value, text(&report, kept.as_deref()))
}

fn text(report: &ImportReport, kept: Option<&std::path::Path>) -> String {
    let mut lines = vec![format!("{} records of {} segments", report.records, report.segments)];
    for one in &report.skipped {
        lines.push(format!(
            "skipped: {} bytes at offset {} of {} are no whole record",
            one.bytes,
            one.offset,
            one.path.display()
        ));
    }
    for path in &report.bad_checkpoints {
        lines.push(format!("skipped: {} says no position", path.display()));
    }
    for one in &report.subscribers {
        let (name, segment, marker) = (&one.name, one.segment, one.marker);
        lines.push(format!("{name}: {segment:08x}:{marker:08x} is now {}, {} unread", one.next, one.unread));
        if let Some(doubt) = &one.doubt {
            lines.push(format!("  it may read some twice: {doubt}"));
        }
    }
    if let Some(kept) = kept {
        lines.push(format!("the old directory is {}", kept.display()));
    }
    lines.join("\n") + "\n"
}
