//! `eccfg delete`.

use std::path::PathBuf;

use repos::worktree::WorktreeError;

use crate::commands::{Context, nothing_named};
use crate::error::CommandError;
use crate::place;

/// Schedule files for removal
///
/// They leave the working copy now and the repository at the next commit; `eccfg revert` brings them back. A directory is removed
/// with everything in it. A file with local edits is refused without --force.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to remove
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Remove files with local edits too; the edits are lost
    #[arg(long, short)]
    force: bool,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let paths = place::paths(&wc, &cx.environment, &args.files)?;
    if paths.is_empty() {
        return Err(CommandError::usage(
            "the working copy itself cannot be deleted",
            "name the files or directories to remove",
        ));
    }
    let force = args.force;
    let deleted = cx.blocking(move || -> Result<_, WorktreeError> { wc.schedule_delete(&paths, force) }).await?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "deleted": deleted }))?;
    } else {
        for path in &deleted {
            cx.ui.line(format!("D  {path}"))?;
        }
    }
    if deleted.is_empty() {
        nothing_named(cx, "git knows no file there");
    }
    Ok(0)
}
