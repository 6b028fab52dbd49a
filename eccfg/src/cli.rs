//! The command line's shape: which commands and options there are, and what a mistyped one is told.
//!
//! Long options may be shortened while unique. A usage error is told like every other error, one `error:` line and one
//! `hint:`, with exit status 2.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::error::{self, CommandError};
use crate::output::Ui;

/// Change, follow and inspect the configuration of a cluster.
///
/// The configuration lives in git repositories that ecconfigd serves; on a node it is a working copy, by default
/// /etc/eccluster/conf, with the node's own subcluster at its root and the repository `global` below global/.
#[derive(Debug, Parser)]
#[command(
    name = "eccfg",
    bin_name = "eccfg",
    version,
    infer_long_args = true,
    subcommand_required = true,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 conflict."
)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub common: CommonOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Common options")]
pub struct CommonOptions {
    /// A server of the cluster; repeat it for more, tried in order [env: ECCFG_SERVER, comma-separated]
    #[arg(long, value_name = "URL", global = true)]
    pub server: Vec<String>,
    /// The certificate of the cluster's CA [env: ECCFG_CA]
    #[arg(long, value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
    /// Who you are [env: ECCFG_USERNAME]
    #[arg(long, value_name = "NAME", global = true)]
    pub username: Option<String>,
    /// The password; others on this machine can read it here, prefer --password-file [env: ECCFG_PASSWORD]
    #[arg(long, value_name = "PASSWORD", global = true)]
    pub password: Option<String>,
    /// A file whose first line is the password
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "password")]
    pub password_file: Option<PathBuf>,
    /// A token; others on this machine can read it here, prefer --token-file [env: ECCFG_TOKEN]
    #[arg(long, value_name = "TOKEN", global = true)]
    pub token: Option<String>,
    /// A file whose first line is the token
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The working copy [env: ECCFG_WC] [default: the one around the current directory, else /etc/eccluster/conf]
    #[arg(long, value_name = "DIR", global = true)]
    pub wc: Option<PathBuf>,
    /// Leave out notes and progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Tell what is done on the way
    #[arg(long, global = true)]
    pub debug: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The whole command line as clap sees it, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Reads the arguments that follow the program's name. What cannot run was told already: the error is the exit status.
pub fn parse(args: impl IntoIterator<Item = OsString>, ui: &mut Ui) -> Result<Cli, u8> {
    let args: Vec<OsString> = std::iter::once(OsString::from("eccfg")).chain(args).collect();
    // Without a terminal the width is fixed, so that scripts and tests see the same everywhere.
    let command = if ui.coloured() { Cli::command() } else { Cli::command().term_width(100) };
    let parsed = command.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|refusal| tell(&refusal, &args, ui))
}

/// Help and version are results; everything else is a usage error.
fn tell(refusal: &clap::Error, args: &[OsString], ui: &mut Ui) -> u8 {
    match refusal.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = refusal.render();
            let text = if ui.coloured() { text.ansi().to_string() } else { text.to_string() };
            match ui.bytes(text.as_bytes()) {
                Ok(()) => 0,
                Err(error) => error::report(&CommandError::Output(error), ui),
            }
        }
        _ => error::report(&usage_error(refusal, args), ui),
    }
}

/// clap's own words, shortened to one line, with the likeliest remedy as the hint.
fn usage_error(refusal: &clap::Error, args: &[OsString]) -> CommandError {
    let message = cluster::command_line::words(refusal);
    CommandError::Usage { message, hint: Some(suggestion(refusal).unwrap_or_else(|| see_help(args))) }
}

fn suggestion(refusal: &clap::Error) -> Option<String> {
    [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue].into_iter().find_map(
        |kind| match refusal.get(kind)? {
            ContextValue::String(name) => Some(format!("did you mean `{name}`?")),
            ContextValue::Strings(names) => names.first().map(|name| format!("did you mean `{name}`?")),
            _ => None,
        },
    )
}

/// Points to the help of the command that was meant.
fn see_help(args: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut words = vec!["eccfg".to_owned()];
    for arg in args.iter().skip(1) {
        if let Some(below) = arg.to_str().and_then(|name| command.find_subcommand(name)).cloned() {
            words.push(below.get_name().to_owned());
            command = below;
        }
    }
    format!("see `{} --help`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn long_options_may_be_shortened_while_unique() {
        let cli = Cli::try_parse_from(["eccfg", "man", "d", "--serv", "https://a:2027", "--userna", "joe"]).unwrap();
        assert_eq!(cli.common.server, ["https://a:2027"]);
        assert_eq!(cli.common.username.as_deref(), Some("joe"));
        assert!(Cli::try_parse_from(["eccfg", "man", "d", "--pass", "x"]).is_err(), "--password or --password-file?");
    }

    #[test]
    fn common_options_go_anywhere() {
        let before = Cli::try_parse_from(["eccfg", "--wc", "/x", "man", "d"]).unwrap();
        let after = Cli::try_parse_from(["eccfg", "man", "d", "--wc", "/x"]).unwrap();
        assert_eq!(before.common.wc, after.common.wc);
    }
}
