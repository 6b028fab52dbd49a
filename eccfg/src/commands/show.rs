//! `eccfg show`.

use crate::commands::{Context, Need, diff, log, revision};
use crate::error::CommandError;

/// Show one revision: who, when, why, and the patch
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The revision: 47, r47 or a commit id of at least seven digits
    #[arg(value_name = "REV")]
    revision: String,
    /// The repository [default: the one at the working copy's root]
    #[arg(long, value_name = "NAME")]
    repo: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wanted = revision(&args.revision)?;
    let wc = cx.working_copy_if_any()?;
    let repo = cx.repo_or_outer(args.repo.as_deref(), wc.as_ref());
    let server = cx.server(wc.as_ref(), Need::Reader).await?;
    let detail = server.commit(&repo, &wanted).await?;
    if cx.ui.json() {
        cx.ui.json_document(&detail)?;
        return Ok(0);
    }
    log::print_entry(&detail.commit, cx)?;
    cx.ui.line("")?;
    diff::print_patch(detail.diff.patch.as_bytes(), cx)?;
    if detail.diff.truncated {
        cx.ui.warning("the patch is too large and the server cut it");
    }
    Ok(0)
}
