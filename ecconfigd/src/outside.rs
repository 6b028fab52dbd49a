//! What the replicated core needs from outside: clocks, randomness, and threads for what blocks.
//!
//! One seam, so that a simulation can decide all of it and replay a run by its seed. What always holds: nothing in `state/`, `commit/`,
//! `watch/` and `raft/` asks the machine for the time, for random bytes or for a thread in any other way, and nothing of it goes into an
//! apply: the leader's proposal carries the results.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

/// The machine below the core.
pub(crate) trait Outside: Send + Sync + 'static {
    /// Time since an arbitrary point. Never goes back.
    fn monotonic(&self) -> Duration;

    /// The wall clock in milliseconds, which only people read. May be wrong and jump.
    fn wall_ms(&self) -> u64;

    /// Bytes nobody can guess.
    fn random(&self) -> io::Result<[u8; 16]>;

    /// Whether the machine still runs. Of a simulated one that has crashed nothing may reach the disk any more.
    fn is_up(&self) -> bool {
        true
    }

    /// Runs work that blocks, outside the async threads, to its end even if nobody waits for it.
    fn run(&self, work: Work) -> BoxFuture<'static, ()>;

    /// The same for work that is over in less than a millisecond: two changes of threads would take as long. It waits for no lock that
    /// somebody keeps for longer: as long as one async thread is held up, sockets and timers of all of them may be.
    fn run_here(&self, work: Work) -> BoxFuture<'static, ()> {
        self.run(work)
    }
}

/// Up to here, working on the bytes of a request costs less than handing them to another thread.
pub(crate) const HERE_BYTES: usize = 256 << 10;

/// Something to run.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

impl dyn Outside {
    /// Runs work that blocks and answers its result; an error if it panicked or the runtime is going down.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.answered(work, |work| self.run(work)).await
    }

    /// The same for work that is over in less than a millisecond (see [`Outside::run_here`]).
    pub(crate) async fn here<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.answered(work, |work| self.run_here(work)).await
    }

    /// Works on so many bytes: in place if they are few.
    pub(crate) async fn work_on<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if bytes <= HERE_BYTES { Ok(work()) } else { self.blocking(work).await }
    }

    async fn answered<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        run: impl FnOnce(Work) -> BoxFuture<'static, ()> + Send,
    ) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        // Nobody waits any more when the receiver is gone.
        run(Box::new(move || drop(done.send(work())))).await;
        answer.await.map_err(|_| io::Error::other("blocking work panicked, or the runtime is going down"))
    }
}

/// This machine.
pub(crate) struct Machine {
    start: Instant,
}

impl Machine {
    /// This machine, whose monotonic clock starts now.
    pub(crate) fn shared() -> Arc<dyn Outside> {
        Arc::new(Machine { start: Instant::now() })
    }
}

impl Outside for Machine {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(bytes)
    }

    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        let work = tokio::task::spawn_blocking(work);
        // A panic drops the work's sender, which is what its caller sees.
        Box::pin(async move { drop(work.await) })
    }

    fn run_here(&self, work: Work) -> BoxFuture<'static, ()> {
        // As above: a panic drops the work's sender. What it leaves half done, it would leave there, too.
        drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        Box::pin(std::future::ready(()))
    }
}
