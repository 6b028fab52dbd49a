//! `jlogctl`: a journal's subscribers, segments and records, from beside a running daemon.
//!
//! Every flag of the original, the same as commands, and what it did not have: `tail -f`, `check`, `dump`, `import`. What was wrong there is not
//! copied: a failure has exit status 1, cleaning removes nothing that is unread, looking writes nothing.

mod change;
mod import;
mod show;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use logd_journal::{JournalError, View};

use crate::jlog::{OldError, OldJournal};

/// Look at and change journals
#[derive(Debug, Parser)]
#[command(
    name = "jlogctl",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Positions are sequence numbers. Exit status: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

/// The original's flags. Several are done in the order in which they stand here.
#[derive(Debug, Args)]
struct Flags {
    /// Add a subscriber that gets everything that is there
    #[arg(short = 'a', value_name = "SUBSCRIBER")]
    add: Vec<String>,
    /// Erase a subscriber
    #[arg(short = 'e', value_name = "SUBSCRIBER")]
    erase: Vec<String>,
    /// Set the position of this subscriber, with -C
    #[arg(short = 'u', value_name = "SUBSCRIBER", requires = "position")]
    update: Option<String>,
    /// The first sequence number that it shall read
    #[arg(short = 'C', value_name = "NUMBER", requires = "update")]
    position: Option<u64>,
    /// Show where a subscriber stands, the newest record, and what is next
    #[arg(short = 'p', value_name = "SUBSCRIBER")]
    positions: Option<String>,
    /// List segments, sizes and who still needs them
    #[arg(short = 'l')]
    list: bool,
    /// The same with the sequence numbers in each
    #[arg(short = 'i')]
    index: bool,
    /// List subscribers and how far they are behind
    #[arg(short = 's')]
    subscribers: bool,
    /// Remove segments that every subscriber has passed
    #[arg(short = 'c')]
    clean: bool,
    /// Analyse the records
    #[arg(short = 'd')]
    data: bool,
    /// Repair as a daemon's start does: cut a torn tail, put lost headers back; the journal must not be in use
    #[arg(short = 'r')]
    repair: bool,
    /// Say more
    #[arg(short = 'v')]
    verbose: bool,
    /// The journals
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tail(show::Tail),
    /// Read everything and say what is damaged; exit status 1 when something is
    Check(Dirs),
    Dump(show::Dump),
    Import(import::Import),
    /// List, add or erase subscribers
    #[command(subcommand)]
    Subscriber(change::SubscriberCommand),
    /// Remove segments that every subscriber has passed (-c)
    Clean(Dirs),
    /// Analyse the records (-d)
    Data(Dirs),
    /// Show who a journal is and what it holds
    Meta(Dirs),
    /// Repair as a daemon's start does (-r)
    Repair(Dirs),
    Create(change::Create),
}

#[derive(Debug, Args)]
struct Dirs {
    /// The journals
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Old(#[from] OldError),
    #[error("{} is a directory of the old jlog library", path.display())]
    IsOld { path: PathBuf },
    #[error("{damaged} of {journals} journals are damaged")]
    Damaged { damaged: usize, journals: usize },
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

/// Where words go, and in which form.
struct Ui<'a> {
    out: &'a mut dyn Write,
    json: bool,
}

impl Ui<'_> {
    /// One JSON value per line, or the text.
    fn print(&mut self, value: impl FnOnce() -> serde_json::Value, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.json {
            writeln!(self.out, "{}", value())?;
        } else {
            write!(self.out, "{}", text.as_ref())?;
        }
        Ok(())
    }
}

/// Runs one command line, the program's name first; answers the exit status.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            if !error.use_stderr() {
                // Help and version, which are no errors, and go where they can be piped from.
                let _ = write!(out, "{error}");
                return 0;
            }
            let _ = writeln!(err, "error: {}\nhint: jlogctl --help", cluster::command_line::words(&error));
            return 2;
        }
    };
    let mut ui = Ui { out, json: cli.json };
    let result = match cli.command {
        Some(command) => dispatch(command, &mut ui),
        None => flags(&cli.flags, &mut ui),
    };
    match result.and_then(|()| Ok(ui.out.flush()?)) {
        Ok(()) => 0,
        // Whoever read has gone (`jlogctl dump | head`).
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            report(&failure, err);
            1
        }
    }
}

fn report(failure: &Failure, err: &mut dyn Write) {
    let mut text = failure.to_string();
    let mut source = std::error::Error::source(failure);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let _ = writeln!(err, "error: {text}");
    if let Some(hint) = hint(failure) {
        let _ = writeln!(err, "hint: {hint}");
    }
}

fn hint(failure: &Failure) -> Option<String> {
    match failure {
        Failure::IsOld { path } => Some(format!("`jlogctl import {}` takes it over", path.display())),
        Failure::Journal(JournalError::Lock(_)) => Some("what is asked for needs the journal for itself".into()),
        Failure::Journal(JournalError::NoSubscriber { path, .. }) => {
            Some(format!("`jlogctl -s {}` lists the subscribers", path.display()))
        }
        Failure::Damaged { .. } => Some("what is damaged is skipped by readers, who are told what is missing".into()),
        _ => None,
    }
}

fn dispatch(command: Command, ui: &mut Ui<'_>) -> Result<(), Failure> {
    match command {
        Command::Tail(tail) => show::tail(&tail, ui),
        Command::Check(Dirs { dirs }) => show::check(&dirs, ui),
        Command::Dump(dump) => show::dump(&dump, ui),
        Command::Import(import) => import::import(&import, ui),
        Command::Subscriber(command) => change::subscriber(&command, ui),
        Command::Clean(Dirs { dirs }) => dirs.iter().try_for_each(|dir| change::clean(&mut view(dir)?, true, ui)),
        Command::Data(Dirs { dirs }) => dirs.iter().try_for_each(|dir| show::data(&mut view(dir)?, ui)),
        Command::Meta(Dirs { dirs }) => dirs.iter().try_for_each(|dir| show::meta(&mut view(dir)?, ui)),
        Command::Repair(Dirs { dirs }) => dirs.iter().try_for_each(|dir| change::repair(dir, ui)),
        Command::Create(create) => change::create(&create, ui),
    }
}

fn flags(flags: &Flags, ui: &mut Ui<'_>) -> Result<(), Failure> {
    for dir in &flags.dirs {
        if flags.repair {
            change::repair(dir, ui)?;
        }
        let mut view = view(dir)?;
        if flags.dirs.len() > 1 && !ui.json {
            writeln!(ui.out, "{}:", dir.display())?;
        }
        flags.add.iter().try_for_each(|name| change::add(&view, name, flags.verbose, ui))?;
        flags.erase.iter().try_for_each(|name| change::erase(&view, name, flags.verbose, ui))?;
        if let (Some(name), Some(position)) = (&flags.update, flags.position) {
            change::set(&mut view, name, position, flags.verbose, ui)?;
        }
        if flags.clean {
            change::clean(&mut view, flags.verbose, ui)?;
        }
        if let Some(name) = &flags.positions {
            show::positions(&mut view, name, ui)?;
        }
        if flags.subscribers {
            show::subscribers(&mut view, ui)?;
        }
        if flags.list || flags.index {
            show::segments(&mut view, flags.index || flags.verbose, ui)?;
        }
        if flags.data {
            show::data(&mut view, ui)?;
        }
        if flags.names_nothing() {
            show::meta(&mut view, ui)?;
        }
    }
    Ok(())
}

impl Flags {
    fn names_nothing(&self) -> bool {
        let changes =
            !self.add.is_empty() || !self.erase.is_empty() || self.update.is_some() || self.clean || self.repair;
        let shows = self.positions.is_some() || self.list || self.index || self.subscribers || self.data;
        !changes && !shows
    }
}

/// Opens a journal to look at; a directory of the old format is named as such.
fn view(dir: &Path) -> Result<View, Failure> {
    View::open(dir).map_err(|error| match error {
        JournalError::NotAJournal { .. } if OldJournal::open(dir).is_ok() => Failure::IsOld { path: dir.into() },
        error => error.into(),
    })
}

/// A time in microseconds as people read it.
fn time_text(us: u64) -> String {
    let nanos = i128::from(us) * 1000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{us} µs"))
}

#[cfg(test)]
mod tests;
