//! `eccfg validate`.

use std::path::{Path, PathBuf};

use cluster::documents::{DirFiles, Finding};
use cluster::gate::check_tree;

use crate::commands::Context;
use crate::error::CommandError;
use crate::place::CopyInfo;

/// Check a directory as the server would, without a server
///
/// Runs the gate that every commit passes over a directory that is laid out like a working copy: the syntax of every file that
/// has one, and the schemas of our documents on the effective document of every node.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to check [default: the working copy around the current directory, else the current directory]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The subcluster that it belongs to [default: the working copy's, else `default`]
    #[arg(long, value_name = "NAME")]
    subcluster: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let (dir, subcluster) = subject(args, cx)?;
    if !dir.is_dir() {
        return Err(CommandError::failed(format!("{} is not a directory", dir.display())));
    }
    let report = cx.blocking(move || check_tree(&DirFiles::new(dir), &subcluster)).await;
    let report = report.map_err(|error| CommandError::because("the directory cannot be read", error))?;
    let count = report.findings.len() + report.more;
    if cx.ui.json() {
        let findings: Vec<cluster::api::Finding> = report.findings.into_iter().map(Into::into).collect();
        cx.ui.json_document(&serde_json::json!({ "valid": count == 0, "findings": findings, "more": report.more }))?;
    } else {
        for finding in &report.findings {
            cx.ui.line(finding_line(finding))?;
            if let Some(hint) = &finding.hint {
                cx.ui.line(format!("    {hint}"))?;
            }
        }
    }
    match count {
        0 => {
            cx.ui.progress("Nothing is wrong")?;
            Ok(0)
        }
        1 => Err(CommandError::failed("one thing is wrong")),
        _ => Err(CommandError::failed(format!("{count} things are wrong"))),
    }
}

fn subject(args: &Args, cx: &mut Context<'_>) -> Result<(PathBuf, String), CommandError> {
    let named = args.dir.as_deref().map(|dir| cx.environment.absolute(dir));
    let wc = match &named {
        Some(dir) => repos::worktree::WorkingCopy::open(dir).ok(),
        None => cx.working_copy_here()?,
    };
    let remembered =
        wc.as_ref().map(CopyInfo::load).transpose()?.map(|info| info.subcluster).filter(|name| !name.is_empty());
    let subcluster = args.subcluster.clone().or(remembered).unwrap_or_else(|| super::DEFAULT_SUBCLUSTER.to_owned());
    let here = || wc.as_ref().map_or(cx.environment.current_dir(), |wc| wc.root()).to_owned();
    Ok((named.unwrap_or_else(here), subcluster))
}

/// `file:line: message`, as everywhere.
pub fn finding_line(finding: &Finding) -> String {
    let file = Path::new(&finding.file).display();
    let finding_shown = cluster::api::Finding::from(finding.clone());
    match finding.line {
        0 => format!("{file}: {}", finding_shown.message),
        line => format!("{file}:{line}: {}", finding_shown.message),
    }
}
