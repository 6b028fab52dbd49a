//! The control socket: how a command on the same machine talks to a running daemon.
//!
//! ```text
//! /run/eccluster/<program>.sock   or   $ECCLUSTER_RUN/<program>.sock      mode 0600: root and the daemon's own user
//! → {"command":"show","args":{"what":"vips"}}\n
//! ← {"part":…}\n        any number, for answers that stream
//! ← {"ok":…}\n          or {"error":{"message":"…","hint":"…","code":"…"}}\n
//! ```
//! One JSON object per line, requests one after the other on a connection. A lock beside the socket decides who owns it: a socket left
//! by a dead process is replaced, a live one is refused with its owner's name.

mod client;
mod router;
mod server;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{Client, call, call_streaming};
pub use router::{Parts, Router};
pub use server::{Server, ServerOptions};

use crate::lock::LockError;

/// The environment variable that moves the sockets' directory.
pub const RUN_DIR_VARIABLE: &str = "ECCLUSTER_RUN";
/// The sockets' directory otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/eccluster";

/// A request; commands are short, the largest real one carries a few addresses.
const REQUEST_LIMIT_BYTES: usize = 1 << 20;
/// One line of an answer; larger answers are streamed in parts.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;

/// The directory of the control sockets.
pub fn run_dir() -> PathBuf {
    std::env::var_os(RUN_DIR_VARIABLE)
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| DEFAULT_RUN_DIR.into(), PathBuf::from)
}

/// The control socket of a program on this machine.
pub fn socket_path(program: &str) -> PathBuf {
    run_dir().join(format!("{program}.sock"))
}

/// A command for a daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The command's name.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub args: Value,
}

/// A daemon's refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub message: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// A stable name for programs; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
}

impl Failure {
    /// A refusal in words.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with a name for programs.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// Any error as a refusal, causes included.
    pub fn of(error: &dyn std::error::Error) -> Self {
        Self::new(crate::error::Chain(error).to_string())
    }
}

/// One line from daemon to command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Part(Value),
    Ok(Value),
    Error(Failure),
}

/// Why a control socket could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process serves it.
    #[error("the control socket {} is served by {owner}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who serves it.
        owner: String,
    },
    /// Nobody serves it.
    #[error("{program} is not running here (nobody answers at {})", path.display())]
    NotRunning {
        /// The program.
        program: String,
        /// The socket.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The other side does not speak the protocol, or said too much.
    #[error("{} answered something that cannot be used: {why}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// The daemon refused the command.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The socket's lock could not be taken.
    #[error(transparent)]
    Lock(LockError),
}

impl ControlError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.into(), source }
    }
}
