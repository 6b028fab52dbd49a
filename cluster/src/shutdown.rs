//! Leaving in good order: a signal arrives, nothing new is accepted, what runs is finished within a deadline, and the log says which
//! of the two happened.
//!
//! A second SIGTERM or SIGINT while draining ends the patience: who presses Ctrl-C twice means it.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why the process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// SIGTERM.
    Terminate,
    /// SIGINT, usually Ctrl-C.
    Interrupt,
    /// The program itself asked.
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Asked => "asked to stop",
        })
    }
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Every tracked task finished.
    Clean,
    /// The deadline passed.
    DeadlinePassed {
        /// How many tasks still ran.
        unfinished: usize,
    },
    /// A second signal came.
    Hurried {
        /// How many tasks still ran.
        unfinished: usize,
    },
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("everything finished"),
            Self::DeadlinePassed { unfinished } => write!(f, "the deadline passed with {unfinished} unfinished"),
            Self::Hurried { unfinished } => write!(f, "told to hurry with {unfinished} unfinished"),
        }
    }
}

/// The life of a process, shared by all its parts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stop: CancellationToken,
    hurry: CancellationToken,
    reason: OnceLock<Reason>,
    reloads: watch::Sender<u64>,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A life that ends only by [`Shutdown::trigger`]: for tests and for parts of a bigger process.
    pub fn new() -> Self {
        let inner = Inner {
            stop: CancellationToken::new(),
            hurry: CancellationToken::new(),
            reason: OnceLock::new(),
            reloads: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A life that ends with SIGTERM or SIGINT, and counts SIGHUPs. Must be called on a tokio runtime, once per process.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        tokio::spawn(signals.serve(shutdown.clone()));
        Ok(shutdown)
    }

    /// Cancelled when the process shall stop.
    pub fn token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Changes with every SIGHUP (or [`Shutdown::reload`]).
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.inner.reloads.subscribe()
    }

    /// Asks everybody to read their configuration again, as SIGHUP does.
    pub fn reload(&self) {
        self.inner.reloads.send_modify(|count| *count += 1);
    }

    /// Runs a task that draining waits for. The task itself must watch [`Shutdown::token`] if it would not end otherwise.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.tasks.spawn(task)
    }

    /// For tasks that are spawned elsewhere.
    pub fn tracker(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// Begins to stop. The first reason counts; a second call hurries.
    pub fn trigger(&self, reason: Reason) {
        if self.inner.reason.set(reason).is_ok() {
            self.inner.stop.cancel();
        } else {
            self.inner.hurry.cancel();
        }
    }

    /// Waits until the process shall stop.
    pub async fn requested(&self) -> Reason {
        self.inner.stop.cancelled().await;
        *self.inner.reason.get().unwrap_or(&Reason::Asked)
    }

    /// Waits until a second signal says that even draining takes too long.
    pub async fn hurried(&self) {
        self.inner.hurry.cancelled().await;
    }

    /// Waits for every tracked task, at most `deadline`. Call it after everything that accepts new work has stopped.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.inner.tasks.close();
        let drained = tokio::select! {
            biased;
            () = self.inner.tasks.wait() => Drained::Clean,
            () = self.inner.hurry.cancelled() => Drained::Hurried { unfinished: self.inner.tasks.len() },
            () = tokio::time::sleep(deadline) => Drained::DeadlinePassed { unfinished: self.inner.tasks.len() },
        };
        match drained {
            Drained::Clean => tracing::info!(outcome = %drained, "stopped"),
            _ => tracing::warn!(outcome = %drained, "stopped"),
        }
        drained
    }

    /// The usual end of a `main`: waits for the reason, then drains.
    pub async fn run(&self, deadline: Duration) -> Drained {
        let reason = self.requested().await;
        tracing::info!(%reason, deadline_s = deadline.as_secs_f64(), "stopping");
        self.drain(deadline).await
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    async fn serve(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                Some(()) = self.terminate.recv() => shutdown.trigger(Reason::Terminate),
                Some(()) = self.interrupt.recv() => shutdown.trigger(Reason::Interrupt),
                Some(()) = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading the configuration again");
                    shutdown.reload();
                }
                else => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn waits_for_what_runs() {
        let shutdown = Shutdown::new();
        let stop = shutdown.token();
        let task = shutdown.spawn(async move { stop.cancelled().await });
        shutdown.trigger(Reason::Asked);
        assert_eq!(shutdown.run(LONG).await, Drained::Clean);
        assert!(task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_kept_and_named() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        assert_eq!(shutdown.drain(LONG).await, Drained::DeadlinePassed { unfinished: 1 });
    }

    #[tokio::test]
    async fn a_second_signal_hurries_and_the_first_reason_stays() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        shutdown.trigger(Reason::Terminate);
        shutdown.trigger(Reason::Interrupt);
        assert_eq!(shutdown.requested().await, Reason::Terminate);
        assert_eq!(shutdown.drain(LONG).await, Drained::Hurried { unfinished: 1 });
    }

    #[tokio::test]
    async fn real_signals_arrive() {
        let shutdown = Shutdown::on_signals().unwrap();
        let mut reloads = shutdown.reloads();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        reloads.changed().await.unwrap();
        assert!(!shutdown.token().is_cancelled());
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(shutdown.requested().await, Reason::Terminate);
    }
}
