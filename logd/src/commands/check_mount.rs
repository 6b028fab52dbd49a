//! `logd check-mount`.

use std::path::PathBuf;

use clap::Args;
use cluster::error::Chain;

use super::print;
use crate::mount::{self, Seen};
use cluster::command_line::Failure;

/// Prove that a directory's file system can be trusted with data.
///
/// Two processes lock, rename and sync in it. Exit status 1 when it does not keep what it promises. The daemon checks its data directory in the same
/// way at every start, and refuses one that fails.
#[derive(Debug, Args)]
pub struct CheckMount {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only try to lock the file DIR, and print `held` or `free`; what the second process does. On two hosts with one mount: `flock FILE sleep 60`
    /// here, `logd check-mount --probe FILE` there
    #[arg(long)]
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
        match mount::check(&self.dir) {
            Ok(()) if json => print(&format!("{}\n", serde_json::json!({ "dir": self.dir, "trusted": true }))),
            Ok(()) => print(&format!("{dir}: locks, renames and syncs behave\n")),
            Err(error) => {
                let failure = Failure::new(Chain(&error).to_string());
                Err(failure.hint("use a file system whose locks work between processes and hosts, or a local disk"))
            }
        }
    }
}
