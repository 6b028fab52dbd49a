//! From errors to words, exit status and one hint: the only place where that happens.
//!
//! Every command returns a [`CommandError`]; [`report`] prints it as `error: …`, the places it concerns as indented lines, and at most
//! one `hint: …`. The cause chain is printed once, after the message. Nothing here may contain a secret: messages carry paths, names
//! and ids.

use std::error::Error;
use std::path::{Path, PathBuf};

use crate::output::{OutputError, Style, Ui};
use crate::settings::SettingsError;

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
        CommandError::Settings(SettingsError::ServerUrl { .. }) => {
            (USAGE, Vec::new(), Some("a server is named like https://n1.example:2027; TLS is always used".to_owned()))
        }
        CommandError::Io { .. } | CommandError::Settings(_) | CommandError::Output(_) => (FAILED, Vec::new(), None),
    };
    Explained { status, message: with_causes(error), lines, hint }
}

/// The message and its causes on one line, leaving out causes that the message already ends with.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
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
