//! `eccfg bootstrap`.

use repos::worktree::{StageOptions, WorkingCopy};

use crate::commands::{Context, Need, pull};
use crate::error::CommandError;
use crate::ownership::{self, Owner};
use crate::place::{self, CopyInfo};
use crate::update::{self, Follow};

/// Make the working copy: the first checkout
///
/// The working copy is --wc DIR, by default /etc/eccluster/conf. It remembers its servers and the CA, never a secret. An existing one is
/// left alone.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Args {
    /// The subcluster whose repository is checked out
    #[arg(long, value_name = "NAME", group = "what")]
    clustername: Option<String>,
    /// A machine that is a cluster of its own: the subcluster `default` of the server HOST [default: localhost:2027]
    #[arg(long, value_name = "HOST[:PORT]", group = "what", num_args = 0..=1, default_missing_value = "localhost")]
    singlenode: Option<String>,
    /// The node that this working copy belongs to [default: the name in the node's identity, else the short host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Who owns the files: a user, `user:group` or `:group`; needs root [default: whoever runs this]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = ownership::parse_owner)]
    owner: Option<Owner>,
    /// The permissions that are taken away from everything that is written
    #[arg(long, value_name = "OCTAL", default_value = "022", value_parser = ownership::parse_umask)]
    umask: u32,
}

const DEFAULT_SUBCLUSTER: &str = "default";

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let settings = cx.settings()?.clone();
    let root = place::root_for_new(&settings, &cx.environment);
    if let Ok(wc) = WorkingCopy::open(&root) {
        if wc.mounts().iter().all(|mount| matches!(wc.base(&mount.name), Ok(Some(_)))) {
            return Err(repos::worktree::WorktreeError::AlreadyExists(root).into());
        }
        cx.ui.note("finishing a checkout that was interrupted");
    }
    if let Some(host) = &args.singlenode {
        let url = host.parse()?;
        cx.use_server(url);
    }
    let subcluster = args.clustername.as_deref().unwrap_or(DEFAULT_SUBCLUSTER);
    if subcluster == "global" {
        return Err(CommandError::usage(
            "global is not a subcluster",
            "it is part of every working copy, below global/",
        ));
    }
    cluster::identity::check_subcluster_name(subcluster).map_err(|_| {
        CommandError::usage(format!("{subcluster:?} cannot be a subcluster"), "a name is a single lower-case word")
    })?;
    let server = cx.server(None, Need::Reader).await?;
    // Asked before anything is made: a name that does not exist must leave nothing behind.
    server.head(subcluster).await?;
    let node = match &args.node {
        Some(node) => node.clone(),
        None => cx.node(None)?,
    };
    let info = CopyInfo {
        servers: cx.settings()?.servers.iter().map(ToString::to_string).collect(),
        subcluster: subcluster.to_owned(),
        node: Some(node),
        username: cx.settings()?.username.clone(),
    };
    let ownership = ownership::of(args.owner, args.umask);
    let wc = update::create(&root, &info, server.ca_pem(), ownership).await?;
    let earlier = wc.saved()?;
    let options = StageOptions { server: server.name(), reason: "bootstrap".into(), ..StageOptions::default() };
    let pulled = update::pull(&server, &wc, &Follow::Heads, &options).await?;
    cx.ui.progress(format!("Working copy {}", wc.root().display()))?;
    if !earlier.is_empty() {
        let many = earlier.len();
        cx.ui.note(format!(
            "local edits that an earlier working copy had put aside here are kept ({many}); `eccfg status` lists them"
        ));
    }
    pull::show(&update::Pulled { changes: Vec::new(), directory_replaced: false, ..pulled }, &wc, cx)
}
