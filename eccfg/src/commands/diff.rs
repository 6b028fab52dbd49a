//! `eccfg diff`.

use std::path::PathBuf;

use repos::PatchOptions;

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::Style;
use crate::place;

/// Show local edits as a patch
///
/// Compares the working copy with the revision it is based on. With --from, compares two revisions of a repository instead.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only these files or directories
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The older revision: 47, r47 or a commit id
    #[arg(long, value_name = "REV", conflicts_with = "files")]
    from: Option<String>,
    /// The newer revision [default: the newest]
    #[arg(long, value_name = "REV", requires = "from")]
    to: Option<String>,
    /// The repository whose revisions are compared [default: the one at the working copy's root]
    #[arg(long, value_name = "NAME", requires = "from")]
    repo: Option<String>,
}

/// More than this is cut; whoever needs it all has plain git.
const PATCH_LIMIT_BYTES: usize = 64 << 20;

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match &args.from {
        Some(from) => between_revisions(from, args, cx).await,
        None => local_edits(args, cx).await,
    }
}

async fn local_edits(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let paths = place::paths(&wc, &cx.environment, &args.files)?;
    let options = PatchOptions { limit_bytes: PATCH_LIMIT_BYTES, ..PatchOptions::default() };
    let patch = cx.blocking(move || wc.diff(&paths, &options)).await?;
    if cx.ui.json() {
        let text = String::from_utf8_lossy(&patch.text);
        cx.ui
            .json_document(&serde_json::json!({ "patch": text, "files": patch.files, "truncated": patch.truncated }))?;
    } else {
        print_patch(&patch.text, cx)?;
    }
    if patch.truncated {
        cx.ui.warning("the patch is too large and was cut; use plain `git diff`");
    }
    Ok(0)
}

async fn between_revisions(from: &str, args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let (from, to) = (super::revision(from)?, args.to.as_deref().map(super::revision).transpose()?);
    let wc = cx.working_copy_if_any()?;
    let repo = cx.repo_or_outer(args.repo.as_deref(), wc.as_ref());
    let server = cx.server(wc.as_ref(), Need::Reader).await?;
    let diff = server.diff(&repo, &from, to.as_ref()).await?;
    if cx.ui.json() {
        cx.ui.json_document(&diff)?;
    } else {
        print_patch(diff.patch.as_bytes(), cx)?;
    }
    if diff.truncated {
        cx.ui.warning("the patch is too large and the server cut it");
    }
    Ok(0)
}

/// Prints a patch, coloured where that is wanted.
pub fn print_patch(patch: &[u8], cx: &mut Context<'_>) -> Result<(), CommandError> {
    if !cx.ui.coloured() {
        return Ok(cx.ui.bytes(patch)?);
    }
    for line in patch.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((text.as_ref(), ""), |text| (text, "\n"));
        let painted = match style_of(text) {
            Some(style) => cx.ui.styled(style, text),
            None => text.to_owned(),
        };
        cx.ui.bytes(format!("{painted}{end}").as_bytes())?;
    }
    Ok(())
}

fn style_of(line: &str) -> Option<Style> {
    let heading = ["diff ", "index ", "--- ", "+++ ", "new file", "deleted file", "old mode", "new mode"];
    match line.as_bytes().first()? {
        _ if heading.iter().any(|start| line.starts_with(start)) => Some(Style::Bold),
        b'+' => Some(Style::Green),
        b'-' => Some(Style::Red),
        b'@' => Some(Style::Cyan),
        _ => None,
    }
}
