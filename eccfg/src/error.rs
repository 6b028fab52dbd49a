//! From errors to words, exit status and one hint: the only place where that happens.
//!
//! Every command returns a [`CommandError`]; [`report`] prints it as `error: …`, the places it concerns as indented lines, and at most
//! one `hint: …`. The cause chain is printed once, after the message. Nothing here may contain a secret: messages carry paths, names
//! and ids.

use std::error::Error;
use std::path::{Path, PathBuf};

use cluster::api::Problem;
use cluster::documents::{Findings, LocalError};
use cluster::http_client::{ApiError, ClientError};
use repos::worktree::WorktreeError;

use crate::output::{OutputError, Style, Ui};
use crate::settings::SettingsError;
use crate::update::UpdateError;

/// Exit status of a command that failed.
pub const FAILED: u8 = 1;
/// Exit status of wrong usage.
pub const USAGE: u8 = 2;
/// Exit status of a conflict with somebody else's change.
pub const CONFLICT: u8 = 3;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command line makes no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What was probably meant.
        hint: Option<String>,
    },
    /// Something failed that needs no case of its own.
    #[error("{message}")]
    Failed {
        /// What was tried.
        message: String,
        /// What may help.
        hint: Option<String>,
        /// Why it failed.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// Two changes collide.
    #[error("{message}")]
    Conflict {
        /// Which ones.
        message: String,
        /// The paths in question, as the working copy names them, with the reason where one is known.
        paths: Vec<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// The gate refuses the content.
    #[error("{message}")]
    Refused {
        /// Who refuses what.
        message: String,
        /// `file:line: message` for each finding.
        findings: Vec<String>,
        /// What may help.
        hint: Option<String>,
    },
    /// A file or directory could not be used.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// The verb.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Where the servers are or who we are cannot be told.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The result cannot be shown.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Nothing names a server.
    #[error("no server is named")]
    NoServer,
    /// No server gave an answer that could be used; refusals with paths or places are [`CommandError::Conflict`] and
    /// [`CommandError::Refused`].
    #[error(transparent)]
    Server(ClientError),
    /// The working copy cannot be used as was asked.
    #[error(transparent)]
    Worktree(#[from] WorktreeError),
    /// The working copy's object store failed.
    #[error("the working copy's object store failed")]
    Store(#[from] repos::Error),
    /// An update was not made.
    #[error(transparent)]
    Update(UpdateError),
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> CommandError {
        CommandError::of_server(error, |repo, path| format!("{repo}:{path}"))
    }
}

impl From<UpdateError> for CommandError {
    fn from(error: UpdateError) -> CommandError {
        match error {
            UpdateError::Server(error) => error.into(),
            UpdateError::Worktree(error) => error.into(),
            other => CommandError::Update(other),
        }
    }
}

impl CommandError {
    /// A failure that explains itself.
    pub fn failed(message: impl Into<String>) -> CommandError {
        CommandError::Failed { message: message.into(), hint: None, source: None }
    }

    /// A failure with its cause.
    pub fn because(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> CommandError {
        CommandError::Failed { message: message.into(), hint: None, source: Some(source.into()) }
    }

    /// Wrong usage that clap cannot see.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> CommandError {
        CommandError::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// A file or directory could not be used.
    pub fn io(attempt: &'static str, path: &Path, source: std::io::Error) -> CommandError {
        CommandError::Io { attempt, path: path.to_owned(), source }
    }

    /// A server's refusal; `shown` names a path of a repository the way the user sees it.
    pub fn of_server(error: ClientError, shown: impl Fn(&str, &str) -> String) -> CommandError {
        let Some(api) = error.api() else { return CommandError::Server(error) };
        let problem = &api.problem;
        match api.status {
            409 if !problem.paths.is_empty() => CommandError::Conflict {
                message: words(api),
                paths: problem.paths.iter().map(|at| with_reason(shown(&at.repo, &at.path), &at.reason)).collect(),
                hint: problem.hint.clone(),
            },
            409 => CommandError::Conflict { message: words(api), paths: Vec::new(), hint: problem.hint.clone() },
            422 if !problem.findings.is_empty() => refused_by_gate(problem, shown),
            _ => CommandError::Server(error),
        }
    }

    /// True when no server could be asked at all.
    pub fn is_unreachable(&self) -> bool {
        match self {
            CommandError::NoServer => true,
            CommandError::Server(error) => error.api().is_none() && error.is_temporary(),
            _ => false,
        }
    }

    /// The same error with `hint`, where it has none yet and can carry one.
    #[must_use]
    pub fn or_hint(mut self, hint: &str) -> CommandError {
        match &mut self {
            CommandError::Usage { hint: slot, .. }
            | CommandError::Failed { hint: slot, .. }
            | CommandError::Conflict { hint: slot, .. }
            | CommandError::Refused { hint: slot, .. } => {
                slot.get_or_insert_with(|| hint.to_owned());
            }
            _ => {}
        }
        self
    }
}

/// An error in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// The exit status.
    pub status: u8,
    /// After `error: `.
    pub message: String,
    /// Indented below it.
    pub lines: Vec<String>,
    /// After `hint: `.
    pub hint: Option<String>,
}

/// Prints `error` and returns the exit status.
pub fn report(error: &CommandError, ui: &mut Ui) -> u8 {
    if matches!(error, CommandError::Output(OutputError::ReaderGone)) {
        return 0;
    }
    let explained = explain(error);
    // What was printed so far comes first where both streams end in one file.
    let _ = ui.flush();
    ui.diagnostic("error", Style::Red, &explained.message);
    for line in &explained.lines {
        ui.diagnostic_line(&format!("  {line}"));
    }
    if let Some(hint) = &explained.hint {
        ui.diagnostic("hint", Style::Cyan, hint);
    }
    explained.status
}

/// Finds the words for `error`.
pub fn explain(error: &CommandError) -> Explained {
    let (status, lines, hint) = match error {
        CommandError::Usage { hint, .. } => (USAGE, Vec::new(), hint.clone()),
        CommandError::Failed { hint, .. } => (FAILED, Vec::new(), hint.clone()),
        CommandError::Conflict { paths, hint, .. } => (CONFLICT, paths.clone(), hint.clone()),
        CommandError::Refused { findings, hint, .. } => (FAILED, findings.clone(), hint.clone()),
        CommandError::Settings(SettingsError::ServerUrl(_)) => {
            (USAGE, Vec::new(), Some("a server is named like https://n1.example:2027; TLS is always used".to_owned()))
        }
        CommandError::Settings(SettingsError::File(LocalError::Refused(findings))) => {
            return explain_findings(findings);
        }
        CommandError::NoServer => (
            FAILED,
            Vec::new(),
            Some("name one with --server URL, ECCFG_SERVER or in ~/.config/eccluster/eccfg.toml".to_owned()),
        ),
        CommandError::Server(error) => (FAILED, Vec::new(), server_hint(error)),
        CommandError::Worktree(error) => return explain_worktree(error),
        CommandError::Io { .. }
        | CommandError::Settings(_)
        | CommandError::Output(_)
        | CommandError::Store(_)
        | CommandError::Update(_) => (FAILED, Vec::new(), None),
    };
    Explained { status, message: with_causes(error), lines, hint }
}

/// The paths of an overlap stand below the message, every one of them.
fn explain_worktree(error: &WorktreeError) -> Explained {
    let message = match error {
        WorktreeError::Overlap { .. } => "local edits overlap with the update; nothing was changed".to_owned(),
        WorktreeError::Unresolved { .. } => "files are in conflict since the last pull; nothing was changed".to_owned(),
        other => with_causes(other),
    };
    let status = if error.is_conflict() { CONFLICT } else { FAILED };
    Explained { status, message, lines: error.paths().iter().map(ToString::to_string).collect(), hint: error.hint() }
}

/// The user's own configuration file is wrong.
fn explain_findings(findings: &Findings) -> Explained {
    Explained {
        status: FAILED,
        message: "the configuration of eccfg is wrong".to_owned(),
        lines: findings.iter().map(crate::commands::finding_line).collect(),
        hint: findings.iter().find_map(|finding| finding.hint.clone()),
    }
}

fn server_hint(error: &ClientError) -> Option<String> {
    let Some(api) = error.api() else {
        let hint = if let ClientError::Certificate { .. } = error {
            "a node of this cluster has another identity: `eccfg node enroll` makes one with a token of this cluster"
        } else if error.to_string().contains("certificate") {
            "is --ca the CA of this cluster, and the server called by a name that its certificate has?"
        } else if error.is_temporary() {
            "is ecconfigd running there?"
        } else {
            return None;
        };
        return Some(hint.to_owned());
    };
    if let Some(hint) = &api.problem.hint {
        return Some(hint.clone());
    }
    match api.status {
        401 => Some("log in with --username and --password-file, or --token-file".to_owned()),
        403 => Some("log in as somebody who may do that".to_owned()),
        429 | 503 => Some(api.retry_after.map_or_else(
            || "try again a little later".to_owned(),
            |after| format!("try again in {} seconds", after.as_secs().max(1)),
        )),
        _ => api
            .request_id
            .as_ref()
            .filter(|_| api.status >= 500)
            .map(|id| format!("the server's log has more under {id}")),
    }
}

/// What the server said; its own title where there is no detail.
fn words(api: &ApiError) -> String {
    if api.problem.detail.is_empty() { api.to_string() } else { api.problem.detail.clone() }
}

fn with_reason(path: String, reason: &str) -> String {
    if reason.is_empty() { path } else { format!("{path}: {reason}") }
}

/// The gate's findings as `file:line: message`; the first hint stands for all.
fn refused_by_gate(problem: &Problem, shown: impl Fn(&str, &str) -> String) -> CommandError {
    let place = |finding: &cluster::api::Finding| {
        let file = if finding.repo.is_empty() { finding.file.clone() } else { shown(&finding.repo, &finding.file) };
        if finding.line > 0 { format!("{file}:{}", finding.line) } else { file }
    };
    let line = |finding: &cluster::api::Finding| match finding.file.as_str() {
        "" => finding.message.clone(),
        _ => format!("{}: {}", place(finding), finding.message),
    };
    CommandError::Refused {
        message: "the change is refused; nothing was committed".to_owned(),
        findings: problem.findings.iter().map(line).collect(),
        hint: problem.hint.clone().or_else(|| problem.findings.iter().find_map(|finding| finding.hint.clone())),
    }
}

/// The message and its causes on one line.
pub fn with_causes(error: &dyn Error) -> String {
    cluster::error::Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = CommandError::io("read", Path::new("/x"), cause);
        assert_eq!(explain(&error).message, "cannot read /x: disk on fire");
        let twice = CommandError::because("it failed: disk on fire", std::io::Error::other("disk on fire"));
        assert_eq!(explain(&twice).message, "it failed: disk on fire");
    }

    #[test]
    fn the_status_follows_the_kind() {
        assert_eq!(explain(&CommandError::failed("x")).status, FAILED);
        assert_eq!(explain(&CommandError::usage("x", "y")).status, USAGE);
        let conflict =
            CommandError::Conflict { message: "x".into(), paths: vec!["a".into()], hint: None }.or_hint("pull");
        assert_eq!(explain(&conflict).status, CONFLICT);
        assert_eq!(explain(&conflict).hint.as_deref(), Some("pull"));
    }
}
