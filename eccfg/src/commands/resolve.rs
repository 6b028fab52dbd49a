//! `eccfg resolve`.

use std::path::{Path, PathBuf};

use repos::RepoPath;
use repos::worktree::{ResolveTo, WorkingCopy, WorktreeError};

use crate::commands::{Context, nothing_named};
use crate::error::CommandError;
use crate::place;

/// Clear the conflict state of files after `pull --manual`
///
/// Without --revert the file counts as resolved the way it is now: its markers have been edited away. Edits that an update has put
/// aside (`eccfg status` names them) are kept until --put-aside drops them.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What was resolved
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Take one whole side instead of the edited file: the repository's, or with --revert=mine the local one
    #[arg(long, value_name = "SIDE", num_args = 0..=1, require_equals = true, default_missing_value = "theirs", value_enum)]
    revert: Option<Side>,
    /// Take the file although there are conflict markers in it
    #[arg(long, conflicts_with = "revert")]
    force: bool,
    /// Drop what was put aside of these files, for good, instead of resolving anything
    #[arg(long, conflicts_with_all = ["revert", "force"])]
    put_aside: bool,
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
    if args.put_aside {
        return drop_saved(wc, paths, cx).await;
    }
    if args.revert.is_none() && !args.force {
        refuse_markers(&wc, &paths, cx).await?;
    }
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

/// A file with its markers still inside would be committed as it is; nobody means that.
async fn refuse_markers(wc: &WorkingCopy, paths: &[RepoPath], cx: &mut Context<'_>) -> Result<(), CommandError> {
    let status = cx.blocking({
        let wc = wc.clone();
        move || wc.status()
    });
    let status = status.await?;
    let conflicts = status.mounts.iter().flat_map(|mount| &mount.conflicts);
    let marked: Vec<String> = conflicts
        .filter(|conflict| is_named(&conflict.path, paths) && has_markers(&wc.root().join(conflict.path.as_path())))
        .map(|conflict| conflict.path.to_string())
        .collect();
    if marked.is_empty() {
        return Ok(());
    }
    Err(CommandError::Conflict {
        message: "conflict markers are still in the files; nothing was resolved".into(),
        paths: marked,
        hint: Some("edit them away, or take a whole side with --revert or --revert=mine".into()),
    })
}

/// True if the lines stand there with which `pull --manual` frames both sides.
fn has_markers(file: &Path) -> bool {
    let Ok(data) = std::fs::read(file) else { return false };
    let any = |marker: &[u8]| {
        data.split(|byte| *byte == b'\n').any(|line| line.strip_suffix(b"\r").unwrap_or(line) == marker)
    };
    any(b"<<<<<<< local") && any(b">>>>>>> upstream")
}

/// No path at all stands for the whole working copy.
fn is_named(path: &RepoPath, paths: &[RepoPath]) -> bool {
    paths.is_empty() || paths.iter().any(|named| path.starts_with(named))
}

async fn drop_saved(wc: WorkingCopy, paths: Vec<RepoPath>, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let dropped = cx.blocking(move || -> Result<_, WorktreeError> {
        let edits: Vec<_> = wc.saved()?.into_iter().filter(|edit| is_named(&edit.path, &paths)).collect();
        edits.iter().try_for_each(|edit| wc.forget_saved(edit.id))?;
        Ok(edits)
    });
    let dropped = dropped.await?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "dropped": dropped }))?;
    } else {
        for edit in &dropped {
            cx.ui.line(format!("Dropped what was put aside of {}", edit.path))?;
        }
    }
    if dropped.is_empty() {
        nothing_named(cx, "nothing was put aside there");
    }
    Ok(0)
}
