//! `eccfg subcluster copy`.

use cluster::api::CopyRepo;

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Copy one subcluster onto another
///
/// The newest tree of SRC becomes the newest revision of DST, which is created if it does not exist. With --with-history DST must not
/// exist and gets the whole history: every revision, branch and tag.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Copy the whole history into a new subcluster
    #[arg(long)]
    with_history: bool,
    /// The subcluster that is copied
    #[arg(value_name = "SRC")]
    from: String,
    /// The subcluster that becomes the copy
    #[arg(value_name = "DST")]
    to: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let request = CopyRepo { from: args.from.clone(), with_history: args.with_history };
    let info = super::server(cx, Need::Person).await?.copy_repo(&args.to, &request).await?;
    super::show(&info, format!("Copied {} to {}, which is at revision {} now", args.from, info.name, info.revision), cx)
}
