//! The thread that syncs what `Fast` appends wrote.
//!
//! It sleeps until something was written, waits `sync_delay` for more, and syncs. A crash therefore takes at most what was written since then, and a
//! reader sees a record that much later at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::commit::locked;
use crate::journal::Inner;

#[derive(Debug, Default)]
struct Shared {
    dirty: AtomicBool,
    stopped: Mutex<bool>,
    wake: Condvar,
}

#[derive(Debug)]
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Flusher {
    /// Starts the thread, if the options want one. Where no thread can be had, appends stay as fast and are synced with the next segment.
    pub(crate) fn start(inner: &Arc<Inner>) -> Option<Self> {
        let delay = inner.sync_delay()?;
        let shared = Arc::new(Shared::default());
        let (inner, of_thread) = (Arc::clone(inner), Arc::clone(&shared));
        let run = move || run(&inner, &of_thread, delay);
        let thread = std::thread::Builder::new().name("journal-sync".into()).spawn(run).ok()?;
        Some(Self { shared, thread })
    }

    /// Something was written.
    pub(crate) fn dirty(&self) {
        if !self.shared.dirty.swap(true, Ordering::AcqRel) {
            // Under the lock, or the thread could look before and sleep after.
            drop(locked(&self.shared.stopped));
            self.shared.wake.notify_one();
        }
    }

    pub(crate) fn stop(self) {
        *locked(&self.shared.stopped) = true;
        self.shared.wake.notify_all();
        // It panics nowhere; if it did, closing goes on.
        drop(self.thread.join());
    }
}

fn run(inner: &Inner, shared: &Shared, delay: Duration) {
    let mut stopped = locked(&shared.stopped);
    loop {
        while !*stopped && !shared.dirty.load(Ordering::Acquire) {
            stopped = shared.wake.wait(stopped).unwrap_or_else(PoisonError::into_inner);
        }
        if *stopped {
            return;
        }
        stopped = shared.wake.wait_timeout(stopped, delay).unwrap_or_else(PoisonError::into_inner).0;
        drop(stopped);
        shared.dirty.store(false, Ordering::Release);
        // A failure is told to the next append, which has to deal with it.
        drop(inner.sync());
        stopped = locked(&shared.stopped);
    }
}
