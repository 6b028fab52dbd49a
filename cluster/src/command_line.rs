//! Command lines that behave alike: results on standard output, one `error:` and at most one `hint:` on standard error, and an exit status
//! that scripts can rely on.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::control::ControlError;
use crate::error::Chain;
use crate::telemetry;

/// The exit status of what failed.
pub const FAILED: u8 = 1;
/// The exit status of a command line that makes no sense.
pub const USAGE: u8 = 2;
/// The exit status when somebody else has it, or has done it.
pub const CONFLICT: u8 = 3;

/// What ended a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// What happened; empty where everything was said.
    pub message: String,
    /// What may help.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure in words, with status 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { status: FAILED, message: message.into(), hint: None }
    }

    /// Any error, causes included.
    pub fn of(error: &dyn Error) -> Self {
        Self::new(Chain(error).to_string())
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as wrong usage.
    pub fn usage(self) -> Self {
        Self { status: USAGE, ..self }
    }

    /// The same as a conflict.
    pub fn conflict(self) -> Self {
        Self { status: CONFLICT, ..self }
    }

    /// Says it on standard error.
    pub fn print(&self) {
        let mut stderr = io::stderr().lock();
        if !self.message.is_empty() {
            let _ = writeln!(stderr, "error: {}", self.message);
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {hint}");
        }
    }

    /// Says it, and ends a program.
    pub fn tell(&self) -> ExitCode {
        self.print();
        ExitCode::from(self.status)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let words = Self::of(&error);
        match error {
            ControlError::Refused(refused) => {
                let failure = Self { hint: refused.hint, ..Self::new(refused.message) };
                if matches!(refused.code.as_str(), "usage" | "query") { failure.usage() } else { failure }
            }
            ControlError::InUse { .. } | ControlError::Lock(_) => words.conflict(),
            ControlError::NotRunning { program, .. } => {
                words.hint(format!("{program} run starts it; ECCLUSTER_RUN says where its socket is"))
            }
            _ => words,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Also when a reader has seen enough: the work was not done.
        Self::new(format!("cannot read or write: {error}"))
    }
}

/// Runs a program: `args` begin with its name, as a process gets them.
pub fn main<C: Parser>(args: Vec<OsString>, run: impl FnOnce(C) -> Result<(), Failure>) -> ExitCode {
    let outcome = parse(args).and_then(|command| command.map_or(Ok(()), run));
    let heard = telemetry::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if heard => failure.tell(),
        // To say it would wait for whoever does not read the log either.
        Err(failure) => ExitCode::from(failure.status),
    }
}

/// The command line; `None` when help or the version was asked for, and printed.
pub fn parse<C: Parser>(args: Vec<OsString>) -> Result<Option<C>, Failure> {
    let refusal = match C::try_parse_from(args) {
        Ok(command) => return Ok(Some(command)),
        Err(refusal) => refusal,
    };
    if !refusal.use_stderr() {
        // A reader that went away wants no more.
        let _ = refusal.print();
        return Ok(None);
    }
    let program = C::command().get_name().to_owned();
    let hint = match refusal.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => format!("{program} --help shows them"),
        _ => format!("{program} --help, or --help after a command, shows how"),
    };
    Err(Failure::new(words(&refusal)).hint(hint).usage())
}

/// What clap says about wrong usage, in one line.
pub fn words(refusal: &clap::Error) -> String {
    if refusal.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command was given".into();
    }
    let rendered = refusal.render().to_string();
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let line = first.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A program.
    #[derive(Debug, Parser)]
    #[command(name = "program")]
    struct Program {
        /// What to do.
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        /// Starts.
        Start {
            /// Where.
            #[arg(long)]
            data: String,
        },
    }

    fn refused(args: &[&str]) -> Failure {
        parse::<Program>(args.iter().map(OsString::from).collect()).unwrap_err()
    }

    #[test]
    fn wrong_usage_is_one_line_and_status_2() {
        let none = refused(&["program"]);
        assert_eq!((none.status, none.message.as_str()), (USAGE, "no command was given"));
        assert_eq!(none.hint.unwrap(), "program --help shows them");
        let lacking = refused(&["program", "start"]);
        assert_eq!(lacking.status, USAGE);
        assert!(lacking.message.contains("--data") && !lacking.message.contains('\n'), "{lacking:?}");
        assert!(!lacking.message.starts_with("error"), "{lacking:?}");
    }

    #[test]
    fn a_refusal_keeps_its_words_and_becomes_a_status() {
        let refusal = |code| crate::control::Failure::new("no").hint("try").code(code);
        let told = Failure::from(ControlError::Refused(refusal("")));
        assert_eq!(told, Failure::new("no").hint("try"));
        assert_eq!(Failure::from(ControlError::Refused(refusal("query"))), Failure::new("no").hint("try").usage());
    }
}
