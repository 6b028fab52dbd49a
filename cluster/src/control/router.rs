//! Commands by name.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Failure, Request};

type Handler = Arc<dyn Fn(Value, Parts) -> BoxFuture<'static, Result<Value, Failure>> + Send + Sync>;

/// The commands of a daemon. `help` and `version` are there already.
#[derive(Clone, Default)]
pub struct Router {
    commands: BTreeMap<&'static str, Command>,
}

/// What every daemon answers.
const BUILT_IN: [(&str, &str); 2] =
    [("help", "the commands, each with what it does"), ("version", "the daemon's version")];

#[derive(Clone)]
struct Command {
    help: &'static str,
    handler: Handler,
}

/// Where a handler sends pieces of a streaming answer.
#[derive(Debug, Clone)]
pub struct Parts {
    pub(super) sender: mpsc::Sender<Value>,
}

/// The one who asked is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the command that asked is gone")]
pub struct Gone;

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Self {
        Self::new(gone.to_string())
    }
}

impl Parts {
    /// Sends one piece; waits while the other side is slow, fails once it is gone.
    pub async fn send(&self, part: impl Serialize) -> Result<(), Gone> {
        let part = serde_json::to_value(part).unwrap_or_else(|error| json!({ "unprintable": error.to_string() }));
        self.sender.send(part).await.map_err(|_| Gone)
    }

    /// Waits until the one who asked is gone; for handlers that wait for something else meanwhile.
    pub async fn gone(&self) {
        self.sender.closed().await;
    }
}

impl Router {
    /// A router without commands of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command. `help` is one line.
    pub fn command<F, Fut>(mut self, name: &'static str, help: &'static str, handler: F) -> Self
    where
        F: Fn(Value, Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, Failure>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |args, parts| Box::pin(handler(args, parts)));
        self.commands.insert(name, Command { help, handler });
        self
    }

    /// Runs a request.
    pub async fn run(&self, request: Request, parts: Parts) -> Result<Value, Failure> {
        match (self.commands.get(request.command.as_str()), request.command.as_str()) {
            (Some(command), _) => (command.handler)(request.args, parts).await,
            (None, "help") => Ok(self.help()),
            (None, "version") => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
            (None, unknown) => Err(Failure::new(format!("there is no command {unknown:?}"))
                .hint(format!("known are {}", self.names().join(", ")))
                .code("unknown-command")),
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.commands.keys().copied().chain(BUILT_IN.map(|(name, _)| name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn help(&self) -> Value {
        let own = self.commands.iter().map(|(name, command)| (*name, command.help));
        // A daemon's own command of that name takes the place of the one that is there already.
        BUILT_IN.into_iter().chain(own).map(|(name, help)| (name.to_owned(), Value::from(help))).collect()
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Router").field(&self.names()).finish()
    }
}
