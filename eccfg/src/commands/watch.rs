//! `eccfg watch`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use cluster::api::WatchEvent;
use cluster::http_client::{EventStream, Incoming};
use serde::{Deserialize, Serialize};

use crate::commands::{Context, Need};
use crate::error::{CommandError, with_causes};
use crate::output::Style;

/// Follow a repository, and run a command at every revision
///
/// Prints an event for every revision from now on, in order and without gaps, also across lost connections. With --exec, `sh -c CMD`
/// runs once per event with EC_REPO, EC_REVISION and EC_COMMIT in its environment; the next one waits for it, and one that fails is
/// reported. With --state, a restart goes on where this run stopped: no revision is missed, and one whose command was cut short runs
/// again.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The repository [default: the one at the working copy's root]
    #[arg(long, value_name = "NAME")]
    repo: Option<String>,
    /// Only revisions that change a path like this, such as 'default/nginx/**'; repeat it for more
    #[arg(long, value_name = "GLOB")]
    path: Vec<String>,
    /// What to run for each event
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Begin after this revision instead of now
    #[arg(long, value_name = "REVISION")]
    after: Option<u64>,
    /// Remember in this file which revisions are done
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What is remembered between runs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    repo: String,
    revision: u64,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    for glob in &args.path {
        globset::Glob::new(glob).map_err(|error| CommandError::usage(error.to_string(), "try 'default/**'"))?;
    }
    let wc = cx.working_copy_if_any()?;
    let repo = cx.repo_or_outer(args.repo.as_deref(), wc.as_ref());
    let server = cx.server(wc.as_ref(), Need::Reader).await?;
    let state_file = args.state.as_ref().map(|file| cx.environment.absolute(file));
    let remembered = state_file.as_deref().map(|file| load(file, &repo)).transpose()?.flatten();
    let after = match remembered.or(args.after) {
        // The server is not needed to know where to begin, so a watch may start before it.
        Some(after) => after,
        None => server.head(&repo).await?.revision,
    };
    if let (Some(file), None) = (&state_file, remembered) {
        // From here on nothing is missed, even if this run ends before the first event.
        store(file, &repo, after)?;
    }
    let mut events = server.repo_events(&repo, after, &args.path);
    let mut seen = 0;
    while args.count.is_none_or(|count| seen < count) {
        let event = next(&mut events, cx).await?;
        show(&event, args, cx)?;
        if let Some(command) = &args.exec {
            execute(command, &event, cx).await?;
        }
        if let Some(file) = &state_file {
            store(file, &repo, event.revision)?;
        }
        seen += 1;
    }
    Ok(0)
}

/// The next event, with a word about every outage. Only a refusal ends it.
async fn next(events: &mut EventStream, cx: &mut Context<'_>) -> Result<WatchEvent, CommandError> {
    let mut outage = false;
    loop {
        match events.next().await? {
            Incoming::Event(event) => {
                return serde_json::from_str(&event.data)
                    .map_err(|error| CommandError::because("an event is not understood", error));
            }
            Incoming::Connected if outage => {
                cx.ui.note("a server answers again");
                outage = false;
            }
            Incoming::Connected => {}
            Incoming::Lost(error) if !outage => {
                cx.ui.note(format!("the server is lost, waiting for one: {}", with_causes(&error)));
                outage = true;
            }
            Incoming::Lost(error) => tracing::debug!(%error, "still no server"),
        }
    }
}

fn show(event: &WatchEvent, args: &Args, cx: &mut Context<'_>) -> Result<(), CommandError> {
    if cx.ui.json() {
        cx.ui.json_line(event)?;
        return Ok(cx.ui.flush()?);
    }
    // What a command prints is the result where there is one.
    if args.exec.is_some() && cx.ui.quiet() {
        return Ok(());
    }
    let revision = cx.ui.styled(Style::Yellow, &format!("r{}", event.revision));
    let short = event.commit.get(..10).unwrap_or(&event.commit);
    let summary = event.message.lines().next().unwrap_or_default();
    cx.ui.line(format!("{revision}  {short}  {}  {}  {summary}", event.time, event.author))?;
    for path in &event.paths {
        cx.ui.line(format!("    {path}"))?;
    }
    if event.paths_truncated {
        cx.ui.line("    and more")?;
    }
    Ok(cx.ui.flush()?)
}

/// Runs the command and waits for it; a failure is reported and does not end the watch.
async fn execute(command: &str, event: &WatchEvent, cx: &mut Context<'_>) -> Result<(), CommandError> {
    let mut child = tokio::process::Command::new("sh");
    child
        .args(["-c", command])
        .env("EC_REPO", &event.repo)
        .env("EC_REVISION", event.revision.to_string())
        .env("EC_COMMIT", &event.commit)
        .stdin(Stdio::null())
        .current_dir(cx.environment.current_dir());
    let status = child.status().await.map_err(|error| CommandError::because("sh cannot be run", error))?;
    if !status.success() {
        cx.ui.warning(format!("at revision {}: the command ended with {status}", event.revision));
    }
    Ok(())
}

fn load(file: &Path, repo: &str) -> Result<Option<u64>, CommandError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CommandError::io("read", file, error)),
    };
    let state: State = serde_json::from_str(&text).map_err(|error| {
        CommandError::because(format!("{} is not a state file of eccfg watch", file.display()), error)
    })?;
    if state.repo != repo {
        let words = format!("{} is about the repository {}, not {repo}", file.display(), state.repo);
        return Err(CommandError::failed(words).or_hint("one state file per watch"));
    }
    Ok(Some(state.revision))
}

fn store(file: &Path, repo: &str, revision: u64) -> Result<(), CommandError> {
    let state = State { repo: repo.to_owned(), revision };
    let text = serde_json::to_string(&state).expect("a name and a number are JSON");
    cluster::files::write_atomic(file, text.as_bytes(), 0o644)
        .map_err(|error| CommandError::because("the state cannot be remembered", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_about_one_repository() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        assert_eq!(load(&file, "default").unwrap(), None);
        store(&file, "default", 47).unwrap();
        assert_eq!(load(&file, "default").unwrap(), Some(47));
        assert!(load(&file, "global").is_err());
        std::fs::write(&file, "47").unwrap();
        assert!(load(&file, "default").is_err());
    }
}
