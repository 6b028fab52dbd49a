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
    /// The newest that was wanted.
    newest: Option<Time>,
    /// The kernel lets packets through until then.
    open_until: Option<Time>,
    /// The kernel does not know it.
    missing: bool,
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
        state.newest = Some(until);
        if !self.shared.fenced {
            state.open_until = Some(until);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The kernel has a fence that it did not have before: opens it for the lease that runs.
    pub fn set_again(&self) {
        let mut state = self.state();
        state.wanted = state.wanted.or(state.newest);
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

    /// Whether the kernel did not know the fence when it was to be opened last.
    pub fn is_fence_missing(&self) -> bool {
        self.state().missing
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
            let opened = open(&mut fence, until);
            let mut state = self.state();
            if let Err(error) = &opened
                && !state.missing
            {
                tracing::error!(%error, "the fence cannot be opened");
            }
            state.missing = opened.is_err();
            state.open_until = opened.ok().flatten();
            drop(state);
            self.shared.changed.notify_all();
        }
    }
}

/// What the kernel may take longer than this thread reckoned with when it is asked to open the fence: well within what others
/// wait beyond the lease.
const GRAIN: Duration = Duration::from_millis(5);

/// Who opens and closes.
trait Gate {
    fn open_for(&mut self, left: Duration) -> io::Result<()>;
    fn close(&mut self) -> io::Result<()>;
    fn now(&self) -> Time;
}

impl Gate for Fence {
    fn open_for(&mut self, left: Duration) -> io::Result<()> {
        Self::open_for(self, left)
    }

    fn close(&mut self) -> io::Result<()> {
        Self::close(self)
    }

    fn now(&self) -> Time {
        sys::now()
    }
}

/// Opens the fence until then. The kernel counts from when it takes the request: where that was later than reckoned with, the
/// fence would stay open for as much longer than the lease, so it is told again, with as much time less as it took; where it
/// was too late, the fence is closed. Says until when the fence is open for sure.
fn open(gate: &mut impl Gate, until: Time) -> io::Result<Option<Time>> {
    let mut late = Duration::ZERO;
    loop {
        let asked_at = gate.now();
        let left = until.since(asked_at).saturating_sub(late);
        if left.is_zero() {
            break;
        }
        gate.open_for(left)?;
        let took = gate.now().since(asked_at);
        if took <= late + GRAIN {
            return Ok(Some(until - late));
        }
        late = took;
    }
    if let Err(error) = gate.close() {
        tracing::error!(%error, "the fence cannot be closed");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A kernel that takes its time: it counts from when it comes to a request.
    struct Slow {
        now: Time,
        delays: Vec<Duration>,
        open_until: Time,
    }

    impl Gate for Slow {
        fn open_for(&mut self, left: Duration) -> io::Result<()> {
            self.now = self.now + self.delays.pop().unwrap_or_default();
            self.open_until = self.now + left;
            Ok(())
        }

        fn close(&mut self) -> io::Result<()> {
            self.open_until = self.now;
            Ok(())
        }

        fn now(&self) -> Time {
            self.now
        }
    }

    #[test]
    fn the_fence_is_never_open_for_longer_than_the_lease_however_late_the_kernel_is() {
        let ms = Duration::from_millis;
        let delays =
            [vec![], vec![ms(4)], vec![ms(100)], vec![ms(100); 2], vec![ms(6); 50], vec![ms(290)], vec![ms(400)]];
        for delays in delays {
            let begun = Time::from_millis(1000);
            let until = begun + ms(300);
            let mut gate = Slow { now: begun, delays: delays.clone(), open_until: Time::ZERO };
            let opened = open(&mut gate, until).unwrap();
            assert!(gate.open_until <= (until + GRAIN).max(gate.now), "{delays:?}: until {}", gate.open_until);
            assert!(
                opened.is_none_or(|opened| gate.now <= opened && opened <= gate.open_until),
                "{delays:?}: {opened:?}"
            );
            // A kernel that is always a little late keeps nobody busy and nothing closed.
            assert!(opened.is_some() || delays.iter().any(|delay| *delay > ms(200)), "{delays:?}");
            assert!(delays.len() < 20 || gate.delays.len() > 40, "{delays:?}: asked {} times", 50 - gate.delays.len());
            assert_eq!(open(&mut gate, Time::ZERO).unwrap(), None, "a lease that is over");
            assert!(gate.open_until <= gate.now, "{delays:?}: open without a lease");
        }
    }
}
