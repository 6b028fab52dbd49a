//! Checking a staged tree under its real path.
//!
//! Configuration files include each other by absolute path, so a checker that were merely pointed at another directory would
//! read the files that are in use. A check therefore runs in a mount namespace of its own in which the staged tree is bound
//! over the working copy: every path means what it will mean after the exchange, and nobody else sees it. A namespace
//! can only be entered by a process with one thread, so the command is started through this program (`eccfg agent-isolate`).

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args as _, FromArgMatches as _};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// The first argument of such a call.
pub const NAME: &str = "agent-isolate";
/// The exit status of a check that could not be isolated; `env(1)` and the shell use 125 to 127 for their own failures too.
const CANNOT_ISOLATE: u8 = 125;

/// Internal: run a check with the staged tree bound over the working copy
#[derive(Debug, clap::Args)]
struct Options {
    /// The staged tree
    #[arg(long)]
    staged: PathBuf,
    /// The working copy
    #[arg(long)]
    over: PathBuf,
    /// The check and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the step that `args` ask for, which begin with [`NAME`].
pub fn called(args: &[OsString]) -> u8 {
    let command = Options::augment_args(clap::Command::new(NAME));
    match command.try_get_matches_from(args).and_then(|matches| Options::from_arg_matches(&matches)) {
        Ok(options) => main(&options),
        Err(refusal) => {
            let _ = refusal.print();
            2
        }
    }
}

/// Becomes the check; returns only when that failed, with the exit status.
fn main(options: &Options) -> u8 {
    let error = match isolate(options) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "error: {error}");
    let _ = writeln!(
        io::stderr(),
        "hint: checks need a private mount namespace: run the agent as root, or allow user namespaces"
    );
    CANNOT_ISOLATE
}

/// The arguments that run `command` through this module; they follow the name of this program.
pub(crate) fn arguments(staged: &Path, over: &Path, command: &[String]) -> Vec<OsString> {
    let mut all: Vec<OsString> =
        vec![NAME.into(), "--staged".into(), staged.into(), "--over".into(), over.into(), "--".into()];
    all.extend(command.iter().map(OsString::from));
    all
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot make a private mount namespace: {0}")]
    Namespace(nix::Error),
    #[error("cannot write {0}: {1}")]
    IdMap(&'static str, io::Error),
    #[error("cannot bind {staged} over {over}: {cause}", staged = .staged.display(), over = .over.display())]
    Bind { staged: PathBuf, over: PathBuf, cause: nix::Error },
    #[error("cannot enter {over}: {cause}", over = .0.display(), cause = .1)]
    Enter(PathBuf, io::Error),
    #[error("cannot start {program}: {cause}", program = .0.display(), cause = .1)]
    Start(OsString, io::Error),
}

fn isolate(options: &Options) -> Result<Infallible, Error> {
    private_mounts()?;
    bind(&options.staged, &options.over)?;
    // The directory that was entered before the bind is still the old tree.
    std::env::set_current_dir(&options.over).map_err(|cause| Error::Enter(options.over.clone(), cause))?;
    let (program, arguments) = options.command.split_first().expect("clap requires the command");
    Err(Error::Start(program.clone(), Command::new(program).args(arguments).exec()))
}

/// A mount namespace from which nothing propagates. Who may not make one as it is (also a root without its capabilities) gets it
/// inside a user namespace that maps only the caller.
fn private_mounts() -> Result<(), Error> {
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        let (uid, gid) = (getuid(), getgid());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(Error::Namespace)?;
        let write =
            |path: &'static str, text: String| std::fs::write(path, text).map_err(|cause| Error::IdMap(path, cause));
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(Error::Namespace)
}

fn bind(staged: &Path, over: &Path) -> Result<(), Error> {
    let none: Option<&str> = None;
    mount(Some(staged), over, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(|cause| Error::Bind {
        staged: staged.to_owned(),
        over: over.to_owned(),
        cause,
    })
}
