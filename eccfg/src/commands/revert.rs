//! `eccfg revert`.

use std::path::PathBuf;

use repos::worktree::WorktreeError;

use crate::commands::{Context, nothing_named};
use crate::error::CommandError;
use crate::place;

/// Undo local edits and deletions
///
/// The files, or everything below a directory, become what the last update brought. Files that git does not know stay.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to undo
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let paths = place::paths(&wc, &cx.environment, &args.files)?;
    let reverted = cx.blocking(move || -> Result<_, WorktreeError> { wc.revert(&paths) }).await?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "reverted": reverted }))?;
    } else {
        for path in &reverted {
            cx.ui.line(format!("Reverted {path}"))?;
        }
    }
    if reverted.is_empty() {
        nothing_named(cx, "nothing to revert there");
    }
    Ok(0)
}
