//! `logd check-mount`.

use std::path::{Path, PathBuf};

use clap::Args;
use cluster::command_line::Failure;
use cluster::control::call;
use cluster::error::Chain;

use super::print;
use crate::daemon::{GlimpseAnswer, GlimpseArgs, PROGRAM};
use crate::mount::{self, Glimpse, MountError, Seen};

/// Prove that a directory's file system can be trusted with data.
///
/// Two processes lock, rename and sync in it. Exit status 1 when it does not keep what it promises. The daemon checks its data directory in the same
/// way at every start, and refuses one that fails.
#[derive(Debug, Args)]
pub struct CheckMount {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// A node whose host has the same mount at the same path: its log daemon looks at the locks that are taken here
    #[arg(long, value_name = "NODE")]
    peer: Option<String>,
    /// Only try to lock the file DIR, and print `held` or `free`; what the second process does. On two hosts without a daemon: `flock FILE sleep 60`
    /// here, `logd check-mount --probe FILE` there
    #[arg(long, conflicts_with = "peer")]
    probe: bool,
}

impl CheckMount {
    /// Runs it.
    pub fn run(self, json: bool) -> Result<(), Failure> {
        let dir = self.dir.display();
        if self.probe {
            let seen = mount::probe(&self.dir).map_err(|error| Failure::new(format!("{dir}: {error}")))?;
            return print(if seen == Seen::Held { "held\n" } else { "free\n" });
        }
        if !self.dir.is_dir() {
            return Err(Failure::new(format!("{dir} is no directory")));
        }
        let checked = mount::check(&self.dir).and_then(|()| match &self.peer {
            Some(peer) => check_with(&self.dir, peer),
            None => Ok(()),
        });
        match checked {
            Ok(()) if json => print(&format!("{}\n", serde_json::json!({ "dir": self.dir, "trusted": true }))),
            Ok(()) => print(&format!("{dir}: locks, renames and syncs behave\n")),
            Err(error) => {
                let failure = Failure::new(Chain(&error).to_string());
                Err(failure.hint("use a file system whose locks work between processes and hosts, or a local disk"))
            }
        }
    }
}

/// Has the daemon of this machine ask the one of the peer.
fn check_with(dir: &Path, peer: &str) -> Result<(), MountError> {
    let failed = |what: String| MountError::Wrong { dir: dir.into(), what };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("{peer} cannot be asked: {error}")))?;
    let dir = std::path::absolute(dir).map_err(|error| failed(error.to_string()))?;
    mount::check_with(&dir, peer, |path| {
        let args = GlimpseArgs { node: peer.into(), path: path.display().to_string() };
        let answer = runtime.block_on(call(PROGRAM, "glimpse", args));
        let answer = answer.map_err(|error| failed(format!("{peer} cannot look at it: {}", Chain(&error))))?;
        let answer = serde_json::from_value::<GlimpseAnswer>(answer);
        let GlimpseAnswer { held, content } = answer.map_err(|error| failed(error.to_string()))?;
        Ok(Glimpse { seen: if held { Seen::Held } else { Seen::Free }, content })
    })
}
