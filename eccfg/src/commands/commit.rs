//! `eccfg commit`.

use std::collections::{BTreeMap, BTreeSet};

use cluster::api::{ChangeRequest, MultiCommitRequest, MultiCommitResponse, RepoChanges, RevisionSpec};
use repos::worktree::{Base, ChangeKind, LocalChange, MountStatus, StageOptions, Status, Targets, WorkingCopy};
use repos::{Content, Mode, TreeChange};

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::Style;
use crate::prompt::yes_or_no;
use crate::server::Server;
use crate::{local_agent, place, update};

/// Commit local edits
///
/// Sends every local edit, those below global/ included, as one change: all of it is committed or none. Changes that others made in
/// the meantime are merged by the server where they do not overlap; where they do, nothing is committed and the status is 3.
/// Files that git does not know and files that vanished are asked about on a terminal, and left out without one.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Add every file that git does not know, without asking
    #[arg(long)]
    add_all: bool,
    /// Delete every file that vanished, without asking
    #[arg(long)]
    delete_all: bool,
    /// Why; without it $EDITOR asks on a terminal
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let status = cx.blocking({
        let wc = wc.clone();
        move || wc.status()
    });
    let status = status.await?;
    refuse_conflicts(&status)?;
    let left_out = choose(args, &status, cx)?;
    let request = collect(&wc, &status, &left_out)?;
    if request.is_empty() {
        return nothing_to_commit(cx);
    }
    // The files of another branch would be committed to main, and the working copy could not follow.
    wc.require_main()?;
    let message = message(args, &request, cx)?;
    let server = cx.server(Some(&wc), Need::Person).await?;
    if !cx.ui.json() {
        announce(&request, cx)?;
    }
    let answer = server.commit_all(&request.into_api(message)).await.map_err(|error| refused(&wc, error))?;
    if answer.repos.values().all(|repo| repo.unchanged) {
        follow(&server, &wc, &answer, cx).await?;
        return nothing_to_commit(cx);
    }
    show(&wc, &answer, cx)?;
    follow(&server, &wc, &answer, cx).await?;
    Ok(0)
}

fn refuse_conflicts(status: &Status) -> Result<(), CommandError> {
    let paths: Vec<String> = status
        .mounts
        .iter()
        .flat_map(|mount| &mount.conflicts)
        .map(|conflict| format!("{}: {}", conflict.path, conflict.what))
        .collect();
    if paths.is_empty() {
        return Ok(());
    }
    Err(CommandError::Conflict {
        message: "files are in conflict since the last pull".into(),
        paths,
        hint: Some("edit them and run `eccfg resolve FILE…`, then commit".into()),
    })
}

/// Decides about unknown and vanished files; returns those that stay out.
fn choose(args: &Args, status: &Status, cx: &mut Context<'_>) -> Result<BTreeSet<repos::RepoPath>, CommandError> {
    let mut left_out = BTreeSet::new();
    for change in status.mounts.iter().flat_map(|mount| &mount.changes) {
        let (decided, question) = match change.kind {
            ChangeKind::Untracked => (args.add_all, format!("Add {}?", change.path)),
            ChangeKind::Missing => {
                (args.delete_all, format!("{} vanished; delete it from the repository?", change.path))
            }
            _ => continue,
        };
        if !decided && !ask(&question, cx)? {
            left_out.insert(change.path.clone());
            tell_left_out(change, cx);
        }
    }
    Ok(left_out)
}

fn ask(question: &str, cx: &mut Context<'_>) -> Result<bool, CommandError> {
    match cx.ui.terminal() {
        Some(terminal) => {
            yes_or_no(terminal, question, false).map_err(|error| CommandError::because("no answer", error))
        }
        None => Ok(false),
    }
}

fn tell_left_out(change: &LocalChange, cx: &mut Context<'_>) {
    let words = match change.kind {
        ChangeKind::Missing => format!("{} vanished and is not committed; --delete-all deletes it", change.path),
        _ => format!("{} is unknown and is not committed; --add-all adds it", change.path),
    };
    cx.ui.note(words);
}

/// What will be sent.
#[derive(Debug, Default)]
struct Request {
    repos: BTreeMap<String, Part>,
}

/// One repository's part.
#[derive(Debug)]
struct Part {
    base: Base,
    changes: Vec<ChangeRequest>,
    /// Verb and path as the working copy names it, one per change.
    lines: Vec<(&'static str, String)>,
}

impl Request {
    fn is_empty(&self) -> bool {
        self.repos.is_empty()
    }

    fn into_api(self, message: String) -> MultiCommitRequest {
        let part = |(repo, part): (String, Part)| {
            (repo, RepoChanges { base: RevisionSpec::Number(part.base.revision), changes: part.changes })
        };
        MultiCommitRequest { message, repos: self.repos.into_iter().map(part).collect() }
    }
}

fn collect(wc: &WorkingCopy, status: &Status, left_out: &BTreeSet<repos::RepoPath>) -> Result<Request, CommandError> {
    let mut request = Request::default();
    for mount in status.mounts.iter().filter(|mount| !mount.changes.is_empty()) {
        let (base, changes) = wc.local_changes(&mount.name, &mut |change| !left_out.contains(&change.path))?;
        if changes.is_empty() {
            continue;
        }
        let store = wc.objects(&mount.name)?;
        let mut part = Part { base, changes: Vec::new(), lines: Vec::new() };
        for change in changes {
            part.lines.push(line_of(wc, mount, &change));
            part.changes.push(api_change(&store, change)?);
        }
        request.repos.insert(mount.name.clone(), part);
    }
    Ok(request)
}

/// How a change is announced.
fn line_of(wc: &WorkingCopy, mount: &MountStatus, change: &TreeChange) -> (&'static str, String) {
    let shown = |path: &repos::RepoPath| place::shown(wc, &mount.name, &path.to_string());
    let is_new = |path: &repos::RepoPath| {
        let shown = shown(path);
        mount.changes.iter().any(|local| {
            local.path.to_string() == shown && matches!(local.kind, ChangeKind::Added | ChangeKind::Untracked)
        })
    };
    match change {
        TreeChange::Put { path, .. } if is_new(path) => ("Adding", shown(path)),
        TreeChange::Put { path, .. } | TreeChange::Chmod { path, .. } => ("Sending", shown(path)),
        TreeChange::Delete { path } => ("Deleting", shown(path)),
        TreeChange::Rename { from, to } => ("Renaming", format!("{} to {}", shown(from), shown(to))),
    }
}

/// The same change in the API's words, which are those of `RepoPath`'s `Display` for names that are not UTF-8.
fn api_change(store: &repos::Store, change: TreeChange) -> Result<ChangeRequest, CommandError> {
    Ok(match change {
        TreeChange::Put { path, mode, content } => {
            let data = match content {
                Content::Bytes(bytes) => bytes.to_vec(),
                Content::Blob(id) => store.reader()?.blob(id, u64::MAX)?,
            };
            ChangeRequest::put(path.to_string(), data).with_mode(mode.unwrap_or(Mode::File).to_string())
        }
        TreeChange::Delete { path } => ChangeRequest::delete(path.to_string()),
        TreeChange::Rename { from, to } => ChangeRequest::rename(from.to_string(), to.to_string()),
        TreeChange::Chmod { path, mode } => {
            ChangeRequest { path: path.to_string(), mode: Some(mode.to_string()), ..ChangeRequest::default() }
        }
    })
}

fn announce(request: &Request, cx: &mut Context<'_>) -> Result<(), CommandError> {
    for (verb, path) in request.repos.values().flat_map(|part| &part.lines) {
        let style = match *verb {
            "Adding" => Style::Green,
            "Deleting" => Style::Red,
            _ => Style::Cyan,
        };
        let verb = cx.ui.styled(style, &format!("{verb:<8}"));
        cx.ui.progress(format!("{verb}  {path}"))?;
    }
    Ok(())
}

/// From the option, else from the editor, else an error: a script must say why.
fn message(args: &Args, request: &Request, cx: &mut Context<'_>) -> Result<String, CommandError> {
    if let Some(message) = &args.message {
        return if message.trim().is_empty() { Err(empty_message()) } else { Ok(message.clone()) };
    }
    let Some(terminal) = cx.ui.terminal() else {
        return Err(CommandError::usage("a commit needs a message", "say why with -m TEXT"));
    };
    let written = terminal
        .edit(&template(request))
        .map_err(|error| CommandError::because("the editor gave no message", error))?;
    let message: Vec<&str> = written.lines().filter(|line| !line.starts_with('#')).collect();
    let message = message.join("\n").trim().to_owned();
    if message.is_empty() { Err(empty_message()) } else { Ok(message) }
}

fn empty_message() -> CommandError {
    CommandError::failed("the message is empty; nothing was committed")
}

fn template(request: &Request) -> String {
    let mut text =
        "\n# Why? Lines that begin with # are left out; an empty message gives the commit up.\n#\n".to_owned();
    for (verb, path) in request.repos.values().flat_map(|part| &part.lines) {
        text.push_str(&format!("# {verb:<8}  {path}\n"));
    }
    text
}

fn nothing_to_commit(cx: &mut Context<'_>) -> Result<u8, CommandError> {
    if cx.ui.json() {
        cx.ui.json_document(&MultiCommitResponse { repos: BTreeMap::new() })?;
    } else {
        cx.ui.line("Nothing to commit")?;
    }
    Ok(0)
}

fn show(wc: &WorkingCopy, answer: &MultiCommitResponse, cx: &mut Context<'_>) -> Result<(), CommandError> {
    if cx.ui.json() {
        return Ok(cx.ui.json_document(answer)?);
    }
    // The outer repository first: its revision is the one that people count.
    for mount in wc.mounts() {
        let Some(committed) = answer.repos.get(&mount.name).filter(|repo| !repo.unchanged) else { continue };
        let of = if mount.at.is_empty() { String::new() } else { format!(" of {}", mount.name) };
        cx.ui.line(format!("Committed revision {}{of}", committed.revision))?;
    }
    Ok(())
}

/// Moves the working copy to what was committed. The commit stands whatever happens here, so a failure is a warning.
async fn follow(
    server: &Server,
    wc: &WorkingCopy,
    answer: &MultiCommitResponse,
    cx: &mut Context<'_>,
) -> Result<(), CommandError> {
    let heads = answer.repos.iter().map(|(repo, done)| {
        (repo.clone(), cluster::api::Head { revision: done.revision, commit: done.commit.clone() })
    });
    let targets = update::targets_of(wc, &heads.collect())?;
    if let Err(error) = move_base(server, wc, targets, cx).await {
        let words = crate::error::explain(&error);
        cx.ui.warning(format!("the working copy was not moved to the committed revision: {}", words.message));
        cx.ui.note("`eccfg pull` does it");
    }
    Ok(())
}

async fn move_base(
    server: &Server,
    wc: &WorkingCopy,
    targets: Targets,
    cx: &mut Context<'_>,
) -> Result<(), CommandError> {
    let options = StageOptions { server: server.name(), reason: "commit".into(), ..StageOptions::default() };
    let moved = update::advance_to(server, wc, &targets, &options).await?;
    local_agent::wake().await;
    super::pull::show_side_effects(&moved, wc, cx);
    Ok(())
}

/// The server's refusal with the paths as this working copy shows them.
fn refused(wc: &WorkingCopy, error: cluster::http_client::ClientError) -> CommandError {
    let error = CommandError::of_server(error, |repo, path| place::shown(wc, repo, path));
    match error {
        CommandError::Conflict { paths, .. } if !paths.is_empty() => CommandError::Conflict {
            message: "others changed the same lines since the last pull; nothing was committed".into(),
            paths,
            hint: Some(
                "`eccfg pull` with --mine, --theirs or --manual brings the other change here; then commit again".into(),
            ),
        },
        other => other,
    }
}
