//! Puts addresses on and takes them off, a few dozen at a time, on a thread of its own: 10,240 addresses must not delay a
//! heartbeat. What is to go goes first. What came is announced by another thread, while the next ones are put on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duravip_core::{Event, Time};

use super::announcer::Announcer;
use super::history::History;
use super::hooks::Hooks;
use super::inbox::Inbox;
use super::metrics::Metrics;
use super::plan::Plan;
use crate::effects::plumbing::{Placed, Plumbing, Seat};
use crate::sys;

/// Addresses in one request to the kernel: a few milliseconds at worst, for which nobody else can change an address.
const CHUNK: usize = 64;

/// Before a kernel that would not listen is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// What is on the machine now, by this program.
pub type Installed = Arc<Mutex<BTreeMap<IpAddr, Placed>>>;

/// The queue in front of the thread.
#[derive(Debug, Clone)]
pub struct Plumber {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    there: Condvar,
}

// Bounded by the number of addresses: each is in one of these lists at most once, strays by what the machine has.
#[derive(Debug, Default)]
struct Work {
    off: VecDeque<IpAddr>,
    on: VecDeque<IpAddr>,
    plan: Option<Arc<Plan>>,
    /// The interfaces are not what they were.
    look: bool,
    /// What was found on the machine and nobody asked for, at the last look.
    strays: Vec<(IpAddr, Placed)>,
    /// Without a fence: the lease runs until then, and what is on stays for another lifetime.
    renewed_until: Option<Time>,
    ended: bool,
}

/// What the thread needs.
#[derive(Debug)]
pub struct Tools {
    /// The hands.
    pub plumbing: Plumbing,
    /// What is there.
    pub installed: Installed,
    /// Where results go.
    pub inbox: Inbox,
    /// There is no fence, so that addresses have to leave by themselves when nobody renews them.
    pub unfenced: bool,
    /// Who tells the segment.
    pub announcer: Announcer,
    /// Who wants to know of changes.
    pub hooks: Hooks,
    /// What is counted.
    pub metrics: Metrics,
    /// What happened.
    pub history: History,
}

impl Plumber {
    /// Starts the thread.
    pub fn start(tools: Tools) -> std::io::Result<Self> {
        let plumber = Self { shared: Arc::default() };
        let worker = Worker { shared: plumber.shared.clone(), tools, plan: None, renewed: None };
        std::thread::Builder::new().name("vip-plumber".into()).spawn(move || worker.run())?;
        Ok(plumber)
    }

    /// Another configuration: where what comes from here on belongs.
    pub fn configure(&self, plan: Arc<Plan>) {
        self.work().plan = Some(plan);
        self.shared.there.notify_one();
    }

    /// The interfaces changed: what comes from here on is put where they are now, and said with the hardware addresses that
    /// they have now.
    pub fn look(&self) {
        self.work().look = true;
    }

    /// Puts these on.
    pub fn put(&self, addresses: Vec<IpAddr>) {
        self.work().on.extend(addresses);
        self.shared.there.notify_one();
    }

    /// Takes these off.
    pub fn take(&self, addresses: Vec<IpAddr>) {
        let mut work = self.work();
        let leaving: BTreeSet<&IpAddr> = addresses.iter().collect();
        work.on.retain(|address| !leaving.contains(address));
        work.off.extend(addresses);
        drop(work);
        self.shared.there.notify_one();
    }

    /// Takes these off, which were found on the machine, unless they were only just being put on when they were found: who
    /// puts on knows.
    pub fn take_strays(&self, strays: Vec<(IpAddr, Placed)>) {
        self.work().strays = strays;
        self.shared.there.notify_one();
    }

    /// Without a fence: the lease runs until then.
    pub fn renew(&self, until: Time) {
        self.work().renewed_until = Some(until);
        self.shared.there.notify_one();
    }

    /// Ends the thread once nothing is left to do.
    pub fn end(&self) {
        self.work().ended = true;
        self.shared.there.notify_one();
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.shared.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Job {
    Off(Vec<IpAddr>),
    On(Vec<IpAddr>),
    Strays(Vec<(IpAddr, Placed)>),
    Renew(Time),
    End,
}

#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    tools: Tools,
    plan: Option<Arc<Plan>>,
    /// When lifetimes began anew, and which.
    renewed: Option<(Instant, Option<Duration>)>,
}

impl Worker {
    fn run(mut self) {
        sys::be_urgent();
        loop {
            match self.next_job() {
                Job::Off(addresses) => self.take(&addresses),
                Job::On(addresses) => self.put(&addresses),
                Job::Strays(strays) => self.take_strays(strays),
                Job::Renew(until) => self.renew(until),
                Job::End => return,
            }
        }
    }

    fn next_job(&mut self) -> Job {
        let mut work = self.shared.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(plan) = work.plan.take() {
                self.tools.plumbing.lifetime = plan.lifetime().filter(|_| self.tools.unfenced);
                self.plan = Some(plan);
            }
            if std::mem::take(&mut work.look) {
                drop(work);
                if let Err(error) = self.tools.plumbing.look() {
                    tracing::warn!(%error, "the interfaces cannot be listed");
                }
                work = self.shared.work.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let next = |queue: &mut VecDeque<IpAddr>| queue.drain(..queue.len().min(CHUNK)).collect::<Vec<_>>();
            if !work.off.is_empty() {
                return Job::Off(next(&mut work.off));
            }
            if !work.on.is_empty() {
                return Job::On(next(&mut work.on));
            }
            if !work.strays.is_empty() {
                return Job::Strays(std::mem::take(&mut work.strays));
            }
            if let Some(until) = work.renewed_until.take() {
                return Job::Renew(until);
            }
            if work.ended {
                return Job::End;
            }
            work = self.shared.there.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn installed(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Placed>> {
        self.tools.installed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, addresses: &[IpAddr]) {
        let seats = self.plan.as_ref().map(|plan| &plan.seats);
        let wanted: Vec<(IpAddr, Seat)> =
            addresses.iter().filter_map(|address| Some((*address, seats?.get(address)?.clone()))).collect();
        let results = match self.tools.plumbing.put(&wanted) {
            Ok(results) => results,
            Err(error) => {
                tracing::error!(%error, "the kernel takes no addresses");
                return self.fail(addresses);
            }
        };
        let mut on: Vec<IpAddr> = Vec::new();
        let mut failed: Vec<IpAddr> =
            addresses.iter().filter(|address| !wanted.iter().any(|(other, _)| other == *address)).copied().collect();
        for ((address, seat), result) in wanted.iter().zip(results) {
            match result {
                Ok(placed) => {
                    self.installed().insert(*address, placed);
                    on.push(*address);
                }
                Err(error) => {
                    tracing::warn!(%address, interface = seat.interface, %error, "the kernel refused an address");
                    failed.push(*address);
                }
            }
        }
        if !failed.is_empty() {
            self.fail(&failed);
        }
        if !on.is_empty() {
            // The first word on the segment, before anything else: clients wait for it.
            self.tools.announcer.announce(on.iter().copied());
            self.tools.metrics.acquired.inc_by(on.len() as u64);
            self.tools.hooks.acquired(&on);
            self.tools.inbox.event(Event::Plumbed(on));
        }
    }

    /// These are not on, and may be given to somebody else: which is not said before it is true.
    fn fail(&mut self, addresses: &[IpAddr]) {
        while let Err(error) = self.tools.plumbing.take_ours(addresses) {
            tracing::error!(%error, "what the kernel refused may be on all the same; looking again");
            std::thread::sleep(AGAIN);
        }
        self.tools.inbox.event(Event::PlumbFailed(addresses.to_vec()));
    }

    fn take_strays(&mut self, mut strays: Vec<(IpAddr, Placed)>) {
        let installed = self.installed();
        strays.retain(|(address, _)| !installed.contains_key(address));
        drop(installed);
        if strays.is_empty() {
            return;
        }
        self.tools.history.note("stray", format!("{} addresses of ours that nobody asked for", strays.len()));
        if let Err(error) = self.tools.plumbing.take(&strays) {
            // Found again by the next look.
            tracing::warn!(%error, "addresses that nobody asked for stay");
        }
    }

    /// Four times in a lifetime; and once more where another configuration has another.
    fn renew(&mut self, until: Time) {
        let lifetime = self.tools.plumbing.lifetime;
        let fresh = |(at, of): (Instant, Option<Duration>)| {
            of == lifetime && lifetime.is_none_or(|lifetime| at.elapsed() < lifetime / 4)
        };
        if self.renewed.is_some_and(fresh) || until <= sys::now() {
            return;
        }
        let placed: Vec<(IpAddr, Placed)> =
            self.installed().iter().map(|(address, placed)| (*address, *placed)).collect();
        for some in placed.chunks(CHUNK) {
            if let Err(error) = self.tools.plumbing.renew(some) {
                tracing::error!(%error, "addresses are not renewed and will leave");
                return;
            }
        }
        self.renewed = Some((Instant::now(), lifetime));
    }

    fn take(&mut self, addresses: &[IpAddr]) {
        // Out of the list first: what the kernel tells about these removals is no news.
        let placed: Vec<(IpAddr, Placed)> = {
            let mut installed = self.installed();
            addresses.iter().filter_map(|address| Some((*address, installed.remove(address)?))).collect()
        };
        self.tools.announcer.wait_silent();
        while let Err(error) = self.tools.plumbing.take(&placed) {
            // Nobody else may have them before they are off; the fence and the lease's end stand behind this.
            tracing::error!(%error, "the kernel keeps addresses; trying again");
            std::thread::sleep(AGAIN);
        }
        self.tools.inbox.event(Event::Unplumbed(addresses.to_vec()));
        self.tools.metrics.released.inc_by(addresses.len() as u64);
        self.tools.hooks.released(addresses);
    }
}
