//! `eccfg log`.

use std::path::PathBuf;

use cluster::api::LogEntry;
use repos::LogOptions;
use repos::worktree::WorkingCopy;

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::Style;
use crate::place;

/// Show the history, newest first
///
/// Of the repository at the working copy's root, or of the file's. Without a server it is the history up to the revision that the working
/// copy is based on.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only commits that changed this file or directory
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The repository
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    repo: Option<String>,
    /// At most so many commits
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let (repo, path) = subject(args, wc.as_ref(), cx)?;
    let entries = match from_server(&repo, path.as_deref(), args.limit, wc.as_ref(), cx).await {
        Err(error) if error.is_unreachable() => match &wc {
            Some(wc) => {
                cx.ui.note(format!("no server: this is the history that the working copy has ({error})"));
                from_working_copy(&repo, path.as_deref(), args.limit, wc, cx).await?
            }
            None => return Err(error),
        },
        other => other?,
    };
    if cx.ui.json() {
        cx.ui.json_document(&entries)?;
        return Ok(0);
    }
    for entry in &entries {
        print_entry(entry, cx)?;
    }
    if entries.is_empty() {
        cx.ui.note("no commit changed that");
    }
    Ok(0)
}

/// The repository, and the path inside it.
fn subject(
    args: &Args,
    wc: Option<&WorkingCopy>,
    cx: &mut Context<'_>,
) -> Result<(String, Option<String>), CommandError> {
    let Some(file) = &args.file else {
        return Ok((cx.repo_or_outer(args.repo.as_deref(), wc), None));
    };
    let wc = match wc {
        Some(wc) => wc.clone(),
        None => cx.working_copy()?,
    };
    match place::paths(&wc, &cx.environment, std::slice::from_ref(file))?.first() {
        // A mount's own directory stands for its whole repository.
        Some(path) => match wc.mounts().iter().find(|mount| mount.at.as_bytes() == path.as_bytes()) {
            Some(mount) => Ok((mount.name.clone(), None)),
            None => place::split(&wc, path).map(|(repo, inside)| (repo, Some(inside.to_string()))),
        },
        None => Ok((cx.repo_or_outer(None, Some(&wc)), None)),
    }
}

async fn from_server(
    repo: &str,
    path: Option<&str>,
    limit: u32,
    wc: Option<&WorkingCopy>,
    cx: &mut Context<'_>,
) -> Result<Vec<LogEntry>, CommandError> {
    let server = cx.server(wc, Need::Reader).await?;
    Ok(server.log(repo, path, limit).await?)
}

async fn from_working_copy(
    repo: &str,
    path: Option<&str>,
    limit: u32,
    wc: &WorkingCopy,
    cx: &Context<'_>,
) -> Result<Vec<LogEntry>, CommandError> {
    let Some(base) = wc.base(repo)? else { return Ok(Vec::new()) };
    let path = path
        .map(repos::RepoPath::new)
        .transpose()
        .map_err(|error| CommandError::because("the path cannot be used", error))?;
    let store = wc.objects(repo)?;
    let commits = cx
        .blocking(move || {
            store.reader()?.log(base.commit, &LogOptions { path, limit: limit as usize, ..LogOptions::default() })
        })
        .await
        .map_err(|error| CommandError::because("the history cannot be read", error))?;
    Ok(commits.iter().map(|commit| local_entry(commit, (commit.id == base.commit).then_some(base.revision))).collect())
}

fn local_entry(commit: &repos::CommitInfo, revision: Option<u64>) -> LogEntry {
    let person = |who: &repos::Signature| format!("{} <{}>", who.name, who.email);
    let time = time::OffsetDateTime::from_unix_timestamp(commit.committer.time_s).ok();
    LogEntry {
        revision,
        commit: commit.id.to_string(),
        parents: commit.parents.iter().map(ToString::to_string).collect(),
        author: person(&commit.author),
        committer: person(&commit.committer),
        time: time
            .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
            .unwrap_or_default(),
        message: commit.message.clone(),
    }
}

/// One commit: who, when, and the indented message.
pub fn print_entry(entry: &LogEntry, cx: &mut Context<'_>) -> Result<(), CommandError> {
    let short = entry.commit.get(..10).unwrap_or(&entry.commit);
    let revision = entry.revision.map_or_else(|| "-".to_owned(), |revision| format!("r{revision}"));
    let revision = cx.ui.styled(Style::Yellow, &revision);
    cx.ui.line(format!("{revision}  {short}  {}  {}", entry.time, entry.author))?;
    for line in entry.message.trim_end().lines() {
        cx.ui.line(format!("    {line}").trim_end())?;
    }
    Ok(())
}
