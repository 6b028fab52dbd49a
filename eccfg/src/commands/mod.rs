//! The commands, one file each; the doc comment of a file's `Args` is the command's help.

mod agent;
mod bootstrap;
mod commit;
mod completions;
mod delete;
mod diff;
mod doctor;
mod effective;
mod log;
mod man;
mod node;
mod pull;
mod resolve;
mod revert;
mod show;
mod status;
mod subcluster;
mod validate;
mod watch;

use cluster::api::RevisionSpec;
use cluster::error::Chain;
use cluster::http_client::ServerUrl;
use cluster::telemetry::{self, TelemetryOptions};
use repos::worktree::{WorkingCopy, WorktreeError};

use crate::cli::{Cli, CommonOptions};
pub use crate::connect::Need;
use crate::environment::Environment;
use crate::error::CommandError;
use crate::output::Ui;
use crate::place;
use crate::settings::Settings;
pub use validate::finding_line;

/// What `eccfg` can do. The variants carry no words of their own: those stand in the command's file.
#[allow(missing_docs, reason = "a doc comment here would replace the command's help")]
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Bootstrap(bootstrap::Args),
    Pull(pull::Args),
    Commit(commit::Args),
    Status(status::Args),
    Diff(diff::Args),
    Revert(revert::Args),
    Resolve(resolve::Args),
    Delete(delete::Args),
    Log(log::Args),
    Show(show::Args),
    Effective(effective::Args),
    Validate(validate::Args),
    Watch(watch::Args),
    Doctor(doctor::Args),
    Subcluster(subcluster::Args),
    Node(node::Args),
    Agent(agent::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// What every command is given.
pub struct Context<'a> {
    /// The surroundings.
    pub environment: Environment,
    /// The options that every command takes.
    pub options: CommonOptions,
    /// Where words go.
    pub ui: &'a mut Ui,
    settings: Option<Settings>,
}

/// The subcluster of a machine that says nothing else.
const DEFAULT_SUBCLUSTER: &str = "default";

/// Runs the command that was asked for; the exit status if it did not fail.
pub fn dispatch(cli: Cli, environment: Environment, ui: &mut Ui) -> Result<u8, CommandError> {
    let mut cx = Context { environment, options: cli.common, ui, settings: None };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::because("the runtime cannot start", source))?;
    // The agent is a daemon and has a log of its own.
    if cx.options.debug && !matches!(cli.command, Command::Agent(_)) {
        let log = "warn,eccfg=debug,cluster=debug,repos=debug".to_owned();
        // A second run in one process keeps the first one's log.
        let _ = telemetry::init_command(&TelemetryOptions { log, ..TelemetryOptions::default() });
    }
    runtime.block_on(run(cli.command, &mut cx))
}

async fn run(command: Command, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match command {
        Command::Bootstrap(args) => bootstrap::run(&args, cx).await,
        Command::Pull(args) => pull::run(&args, cx).await,
        Command::Commit(args) => commit::run(&args, cx).await,
        Command::Status(args) => status::run(&args, cx).await,
        Command::Diff(args) => diff::run(&args, cx).await,
        Command::Revert(args) => revert::run(&args, cx).await,
        Command::Resolve(args) => resolve::run(&args, cx).await,
        Command::Delete(args) => delete::run(&args, cx).await,
        Command::Log(args) => log::run(&args, cx).await,
        Command::Show(args) => show::run(&args, cx).await,
        Command::Effective(args) => effective::run(&args, cx).await,
        Command::Validate(args) => validate::run(&args, cx).await,
        Command::Watch(args) => watch::run(&args, cx).await,
        Command::Doctor(args) => doctor::run(&args, cx).await,
        Command::Subcluster(args) => subcluster::run(&args, cx).await,
        Command::Node(args) => node::run(&args, cx).await,
        Command::Agent(args) => agent::run(&args, cx).await,
        Command::Completions(args) => completions::run(&args, cx),
        Command::Man(args) => man::run(&args, cx),
    }
}

impl Context<'_> {
    /// Options, environment and the user's file together; read once, its warnings told once.
    pub fn settings(&mut self) -> Result<&Settings, CommandError> {
        let settings = match self.settings.take() {
            Some(settings) => settings,
            None => {
                let settings = Settings::resolve(&self.options, &self.environment)?;
                settings.warnings.iter().for_each(|warning| self.ui.warning(warning));
                settings
            }
        };
        Ok(self.settings.insert(settings))
    }

    /// The settings for a command whose `--token` is no login.
    pub fn settings_without_login(&self) -> Result<Settings, CommandError> {
        let options = CommonOptions { token: None, token_file: None, ..self.options.clone() };
        Ok(Settings::resolve(&options, &self.environment)?)
    }

    /// Uses `server` alone from here on.
    pub fn use_server(&mut self, server: ServerUrl) {
        if let Some(settings) = &mut self.settings {
            settings.servers = vec![server];
        }
    }

    /// The working copy that the command is about.
    pub fn working_copy(&mut self) -> Result<WorkingCopy, CommandError> {
        let settings = self.settings()?.clone();
        let wc = place::find(&settings, &self.environment)?;
        self.leave_stale_directory(&wc);
        Ok(wc)
    }

    /// A shell (or a script) that an update left behind in the displaced tree edits files that are not the working copy's any more. What was
    /// edited there is carried over, as the next update would do, so that the command sees it.
    fn leave_stale_directory(&mut self, wc: &WorkingCopy) {
        if !place::is_displaced(wc, &self.environment) {
            return;
        }
        self.ui.warning(
            "the current directory was replaced by an update and is not the working copy any more; `cd \"$PWD\"` enters the new one",
        );
        match wc.sweep() {
            Ok(settled) => {
                for path in &settled.carried {
                    self.ui.note(format!("{path} was edited in the old directory; the edit was carried over"));
                }
                pull::show_put_aside(&settled.saved, self);
            }
            Err(error) => {
                let why = Chain(&error);
                self.ui.warning(format!("what was edited in the old directory was not carried over: {why}"));
            }
        }
    }

    /// The same for commands that go without one, unless one was named that does not exist.
    pub fn working_copy_if_any(&mut self) -> Result<Option<WorkingCopy>, CommandError> {
        let settings = self.settings()?.clone();
        match place::find(&settings, &self.environment) {
            Ok(wc) => Ok(Some(wc)),
            Err(WorktreeError::NotAWorkingCopy(_)) if settings.wc.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The one that was named, or that the current directory lies in; not the machine's own.
    pub fn working_copy_here(&mut self) -> Result<Option<WorkingCopy>, CommandError> {
        if self.settings()?.wc.is_some() {
            return self.working_copy().map(Some);
        }
        match WorkingCopy::discover(self.environment.current_dir()) {
            Err(WorktreeError::NotAWorkingCopy(_)) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// The repository that was named, else the working copy's outer one, else `default`.
    pub fn repo_or_outer(&self, named: Option<&str>, wc: Option<&WorkingCopy>) -> String {
        let outer =
            || wc.and_then(|wc| wc.mounts().iter().find(|mount| mount.at.is_empty())).map(|mount| mount.name.clone());
        named.map(str::to_owned).or_else(outer).unwrap_or_else(|| DEFAULT_SUBCLUSTER.to_owned())
    }

    /// Runs disk work on the blocking pool.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        crate::update::blocking(work).await
    }
}

/// A revision as people name it.
fn revision(text: &str) -> Result<RevisionSpec, CommandError> {
    text.parse()
        .map_err(|error: cluster::api::BadRevision| CommandError::usage(error.to_string(), "`eccfg log` lists them"))
}

/// For commands whose files turned out not to concern them.
fn nothing_named(cx: &mut Context<'_>, words: &str) {
    cx.ui.note(words);
}
