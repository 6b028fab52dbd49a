//! The lease, as the kernel and the guard see it. Renewed on a thread of its own: another program that changes nftables may
//! hold the kernel's lock for long, and the loop has heartbeats to send.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use duravip_core::Time;

use crate::effects::fence::Fence;
use crate::sys;

/// Shared by the loop, the thread that renews, and who waits for the fence to be open.
#[derive(Debug, Clone)]
pub struct Lease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    fenced: bool,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Time>,
    /// The kernel lets packets through until then.
    open_until: Option<Time>,
    ended: bool,
}

impl Lease {
    /// Starts the thread, where there is a fence.
    pub fn start(fence: Option<Fence>) -> io::Result<Self> {
        let fenced = fence.is_some();
        let lease = Self { shared: Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), fenced }) };
        if let Some(fence) = fence {
            let lease = lease.clone();
            std::thread::Builder::new().name("vip-fence".into()).spawn(move || lease.renew(fence))?;
        }
        Ok(lease)
    }

    /// Whether the kernel keeps the lease's end.
    pub fn is_fenced(&self) -> bool {
        self.shared.fenced
    }

    /// The newest lease. The one before is forgotten, if the kernel has not got it yet.
    pub fn set(&self, until: Time) {
        let mut state = self.state();
        state.wanted = Some(until);
        if !self.shared.fenced {
            state.open_until = Some(until);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until packets pass, or for this long: an announcement through a closed fence is lost.
    pub fn wait_open(&self, patience: Duration) {
        let open = |state: &mut State| !state.ended && state.open_until.is_none_or(|until| until <= sys::now());
        drop(self.shared.changed.wait_timeout_while(self.state(), patience, open));
    }

    /// Until when the fence is open now.
    pub fn open_until(&self) -> Option<Time> {
        self.state().open_until
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.state().ended = true;
        self.shared.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, mut fence: Fence) {
        let _ = sys::be_realtime();
        loop {
            let idle = |state: &mut State| state.wanted.is_none() && !state.ended;
            let state = self.shared.changed.wait_while(self.state(), idle);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            let Some(until) = state.wanted.take() else { continue };
            drop(state);
            let open = open(&mut fence, until);
            self.state().open_until = open;
            self.shared.changed.notify_all();
        }
    }
}

/// Opens the fence until then. The kernel counts from when it takes the request: if that was too late, the fence is closed
/// again.
fn open(fence: &mut Fence, until: Time) -> Option<Time> {
    let left = until.since(sys::now());
    if left.is_zero() {
        return None;
    }
    if let Err(error) = fence.open_for(left) {
        tracing::error!(%error, "the fence cannot be opened: nothing answers from here");
        return None;
    }
    if sys::now() < until {
        return Some(until);
    }
    if let Err(error) = fence.close() {
        tracing::error!(%error, "the fence cannot be closed");
    }
    None
}
