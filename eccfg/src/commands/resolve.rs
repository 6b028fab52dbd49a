//! `eccfg resolve`.

use std::path::PathBuf;

use repos::worktree::{ResolveTo, WorktreeError};

use crate::commands::{Context, nothing_named};
use crate::error::CommandError;
use crate::place;

/// Clear the conflict state of files after `pull --manual`
///
/// Without --revert the file counts as resolved the way it is now: its markers have been edited away.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What was resolved
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Take one whole side instead of the edited file: the repository's, or with --revert=mine the local one
    #[arg(long, value_name = "SIDE", num_args = 0..=1, require_equals = true, default_missing_value = "theirs", value_enum)]
    revert: Option<Side>,
}

/// Which side a conflict is given to.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Side {
    /// What the repository has; the local edit is given up
    Theirs,
    /// What was here before the update; the repository's change is given up
    Mine,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let paths = place::paths(&wc, &cx.environment, &args.files)?;
    let to = match args.revert {
        None => ResolveTo::Edited,
        Some(Side::Theirs) => ResolveTo::Upstream,
        Some(Side::Mine) => ResolveTo::Mine,
    };
    let resolved = cx.blocking(move || -> Result<_, WorktreeError> { wc.resolve(&paths, to) }).await?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "resolved": resolved }))?;
    } else {
        for path in &resolved {
            cx.ui.line(format!("Resolved {path}"))?;
        }
    }
    if resolved.is_empty() {
        nothing_named(cx, "no conflict there");
    }
    Ok(0)
}
