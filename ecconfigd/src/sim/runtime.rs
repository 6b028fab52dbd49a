//! openraft's simulated runtime, with tasks that belong to a node and end with it.
//!
//! A crash is the end of everything a node has in memory: its [`Scope`] drops all its tasks at once, in the order they were started, and what
//! they would have done next never happens. A paused node keeps its tasks and polls none, which is what SIGSTOP does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, Instant as _, OptionalSend};
use openraft_rt_sim::{SimInstant, SimRuntime};

use crate::raft::{Applied, Command, Group, RaftNode};

openraft::declare_raft_types!(
    /// The product's types on the simulated runtime.
    pub SimConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = RaftNode,
        LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>,
        AsyncRuntime = Scheduler,
);

impl Group for SimConfig {}

thread_local! {
    /// Whose task is being polled.
    static CURRENT: RefCell<Option<Arc<Scope>>> = const { RefCell::new(None) };
}

pub(super) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Virtual time since the run began.
pub(super) fn now() -> Duration {
    SimInstant::now().elapsed_since_start()
}

/// Sleeps in virtual time.
pub(super) async fn sleep_us(us: u64) {
    SimRuntime::sleep(Duration::from_micros(us)).await;
}

/// The tasks of one incarnation of a node.
pub(super) struct Scope {
    inner: Mutex<Inner>,
    /// Parts in a thousand by which the machine's clocks are fast or slow: openraft's waits, too, are longer on a slow one.
    drift_permille: i64,
    /// Told when a task panics.
    panicked: Box<dyn Fn(String) + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    dead: bool,
    paused: bool,
    /// Tasks that were woken while paused.
    stalled: Vec<Waker>,
    next: u64,
    tasks: BTreeMap<u64, Arc<dyn End>>,
}

/// What can be dropped from outside.
trait End: Send + Sync {
    fn end(&self);
}

impl<F: Future + Send> End for Mutex<Option<Pin<Box<F>>>> {
    fn end(&self) {
        let future = locked(self).take();
        drop(future);
    }
}

impl Scope {
    pub(super) fn new(drift_permille: i64, panicked: impl Fn(String) + Send + Sync + 'static) -> Arc<Scope> {
        Arc::new(Scope { inner: Mutex::default(), drift_permille, panicked: Box::new(panicked) })
    }

    /// Starts a task of this scope.
    pub(super) fn spawn<F>(self: &Arc<Self>, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        drop(SimRuntime::spawn(self.own(future)));
    }

    fn own<F: Future + Send + 'static>(self: &Arc<Self>, future: F) -> Owned<F> {
        let future = Arc::new(Mutex::new(Some(Box::pin(future))));
        let mut inner = locked(&self.inner);
        let number = inner.next;
        inner.next += 1;
        if inner.dead {
            locked(&future).take();
        } else {
            inner.tasks.insert(number, future.clone());
        }
        drop(inner);
        Owned { scope: self.clone(), number, future }
    }

    /// Ends all tasks, now and later. Must not be called by one of them.
    pub(super) fn kill(&self) {
        let tasks = {
            let mut inner = locked(&self.inner);
            inner.dead = true;
            inner.stalled.clear();
            std::mem::take(&mut inner.tasks)
        };
        for task in tasks.into_values() {
            task.end();
        }
    }

    /// Stops or resumes all tasks.
    pub(super) fn pause(&self, paused: bool) {
        let woken = {
            let mut inner = locked(&self.inner);
            inner.paused = paused;
            if paused { Vec::new() } else { std::mem::take(&mut inner.stalled) }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether the task may be polled now.
    fn may_run(&self, waker: &Waker) -> bool {
        let mut inner = locked(&self.inner);
        if inner.paused {
            inner.stalled.push(waker.clone());
        }
        !inner.dead && !inner.paused
    }
}

/// A task of a scope.
struct Owned<F: Future> {
    scope: Arc<Scope>,
    number: u64,
    future: Arc<Mutex<Option<Pin<Box<F>>>>>,
}

impl<F: Future> Future for Owned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.scope.may_run(cx.waker()) {
            return Poll::Pending;
        }
        let mut slot = locked(&self.future);
        // A task that was ended never finishes.
        let Some(future) = slot.as_mut() else { return Poll::Pending };
        let before = CURRENT.replace(Some(self.scope.clone()));
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        CURRENT.set(before);
        let polled = polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (self.scope.panicked)(text.unwrap_or_default());
            resume_unwind(panic)
        });
        if polled.is_ready() {
            let done = slot.take();
            drop(slot);
            drop(done);
            locked(&self.scope.inner).tasks.remove(&self.number);
        }
        polled
    }
}

/// How long it really is until the clock of the machine whose task is polled has gone on by this much. Only slow clocks count: instants are
/// the same for all machines here, and who wakes before its instant would sleep again, for less and less.
fn real(duration: Duration) -> Duration {
    let drift = CURRENT.with_borrow(|scope| scope.as_ref().map_or(0, |scope| scope.drift_permille));
    let slow = u32::try_from(drift.saturating_neg()).unwrap_or(0);
    duration.saturating_mul(1000 + slow) / 1000
}

fn real_until(deadline: SimInstant) -> SimInstant {
    let now = SimInstant::now();
    if deadline <= now { deadline } else { now + real(deadline - now) }
}

/// [`SimRuntime`] with scopes: what a task spawns belongs to the scope of that task.
pub struct Scheduler;

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scheduler")
    }
}

impl AsyncRuntime for Scheduler {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = SimInstant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match CURRENT.with_borrow(Clone::clone) {
            Some(scope) => SimRuntime::spawn(scope.own(future)),
            None => SimRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(real(duration))
    }

    fn sleep_until(deadline: SimInstant) -> Self::Sleep {
        SimRuntime::sleep_until(real_until(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout(real(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: SimInstant, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(real_until(deadline), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(_threads: usize) -> Self {
        Scheduler
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, _future: F) -> T {
        unreachable!("a run begins in SimRuntime::block_on")
    }
}
