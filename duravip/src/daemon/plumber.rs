//! Puts addresses on and takes them off, a few dozen at a time, on a thread of its own: 10,240 addresses must not delay a
//! heartbeat. What is to go goes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duravip_core::Event;

use super::hooks::Hooks;
use super::inbox::Inbox;
use super::lease::Lease;
use super::metrics::Metrics;
use super::plan::Plan;
use crate::effects::announce::{Neighbour, Sender, frames};
use crate::effects::neighbours;
use crate::effects::plumbing::{Placed, Plumbing, Seat};

/// Addresses in one request to the kernel and one burst of announcements: a few milliseconds at worst.
const CHUNK: usize = 64;
/// When an address is announced again after it came: hosts that were deaf, switches that were learning.
const AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];
/// Repeats keep out of the way of what is urgent.
const PACE: Duration = Duration::from_millis(2);

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

// Bounded by the number of addresses: each is in one of these lists at most once, or is announced.
#[derive(Debug, Default)]
struct Work {
    off: VecDeque<IpAddr>,
    on: VecDeque<IpAddr>,
    announce: VecDeque<IpAddr>,
    plan: Option<Arc<Plan>>,
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
    /// The fence.
    pub lease: Lease,
    /// Who wants to know of changes.
    pub hooks: Hooks,
    /// What is counted.
    pub metrics: Metrics,
}

impl Plumber {
    /// Starts the thread.
    pub fn start(tools: Tools) -> std::io::Result<Self> {
        let plumber = Self { shared: Arc::default() };
        let worker = Worker {
            shared: plumber.shared.clone(),
            tools,
            plan: None,
            sender: Sender::default(),
            again: BinaryHeap::new(),
            hosts: (None, Vec::new()),
        };
        std::thread::Builder::new().name("vip-plumber".into()).spawn(move || worker.run())?;
        Ok(plumber)
    }

    /// Another configuration: where what comes from here on belongs.
    pub fn configure(&self, plan: Arc<Plan>) {
        self.work().plan = Some(plan);
        self.shared.there.notify_one();
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

    /// Announces these again, on the whole schedule.
    pub fn announce(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.work().announce.extend(addresses);
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

/// What becomes of the addresses at the head of a queue.
type MakeJob = fn(Vec<IpAddr>) -> Job;

enum Job {
    Off(Vec<IpAddr>),
    On(Vec<IpAddr>),
    Announce(Vec<IpAddr>),
    Again,
    End,
}

#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    tools: Tools,
    plan: Option<Arc<Plan>>,
    sender: Sender,
    /// What is announced again, when, and which repetition that is. Bounded by three entries for each announced chunk.
    again: BinaryHeap<Reverse<(Instant, usize, Vec<IpAddr>)>>,
    /// The hosts of interest, as of a short while ago.
    hosts: (Option<Instant>, Vec<(u32, Neighbour)>),
}

impl Worker {
    fn run(mut self) {
        loop {
            match self.next_job() {
                Job::Off(addresses) => self.take(&addresses),
                Job::On(addresses) => self.put(&addresses),
                Job::Announce(addresses) => self.announce(addresses, 0),
                Job::Again => {
                    if let Some(Reverse((_, round, addresses))) = self.again.pop() {
                        self.announce(addresses, round);
                        std::thread::sleep(PACE);
                    }
                }
                Job::End => return,
            }
        }
    }

    fn next_job(&mut self) -> Job {
        let mut work = self.shared.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(plan) = work.plan.take() {
                self.plan = Some(plan);
            }
            let waiting = &mut *work;
            let queues: [(&mut VecDeque<IpAddr>, MakeJob); 3] =
                [(&mut waiting.off, Job::Off), (&mut waiting.on, Job::On), (&mut waiting.announce, Job::Announce)];
            for (queue, job) in queues {
                if !queue.is_empty() {
                    let count = queue.len().min(CHUNK);
                    return job(queue.drain(..count).collect());
                }
            }
            if work.ended {
                return Job::End;
            }
            let due = self.again.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
            if due.is_some_and(|due| due.is_zero()) {
                return Job::Again;
            }
            let patience = due.unwrap_or(Duration::from_secs(3600));
            let waited = self.shared.there.wait_timeout(work, patience);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
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
                self.tools.inbox.event(Event::PlumbFailed(addresses.to_vec()));
                return;
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
            self.tools.inbox.event(Event::PlumbFailed(failed));
        }
        if !on.is_empty() {
            // The first word on the segment, before anything else: clients wait for it.
            self.tools.lease.wait_open(Duration::from_millis(50));
            self.tools.metrics.acquired.inc_by(on.len() as u64);
            self.announce(on.clone(), 0);
            self.tools.hooks.acquired(&on);
            self.tools.inbox.event(Event::Plumbed(on));
        }
    }

    fn take(&mut self, addresses: &[IpAddr]) {
        // Out of the list first: what the kernel tells about these removals is no news.
        let placed: Vec<(IpAddr, Placed)> = {
            let mut installed = self.installed();
            addresses.iter().filter_map(|address| Some((*address, installed.remove(address)?))).collect()
        };
        while let Err(error) = self.tools.plumbing.take(&placed) {
            // Nobody else may have them before they are off; the fence and the lease's end stand behind this.
            tracing::error!(%error, "the kernel keeps addresses; trying again");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.tools.inbox.event(Event::Unplumbed(addresses.to_vec()));
        self.tools.metrics.released.inc_by(addresses.len() as u64);
        self.tools.hooks.released(addresses);
    }

    /// Announces what of these is still here, and plans the next time.
    fn announce(&mut self, addresses: Vec<IpAddr>, round: usize) {
        let everybody = self.plan.as_ref().is_none_or(|plan| plan.everybody);
        if !everybody {
            self.look_for_hosts();
        }
        let here: Vec<(IpAddr, Placed)> = {
            let installed = self.installed();
            addresses.iter().filter_map(|address| Some((*address, *installed.get(address)?))).collect()
        };
        let mut by_interface: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for (address, placed) in &here {
            let hosts: Vec<Neighbour> =
                self.hosts.1.iter().filter(|(index, _)| *index == placed.lan).map(|(_, host)| *host).collect();
            let to = (!everybody).then_some(hosts.as_slice());
            by_interface.entry(placed.lan).or_default().extend(frames(placed.mac, *address, to));
        }
        for (interface, frames) in by_interface {
            match self.sender.send(interface, &frames) {
                Ok(sent) => {
                    self.tools.metrics.announcements.inc_by(sent as u64);
                }
                Err(error) => tracing::warn!(%error, interface, "announcements not sent"),
            }
        }
        if let Some(wait) = AGAIN.get(round)
            && !here.is_empty()
        {
            let addresses = here.into_iter().map(|(address, _)| address).collect();
            self.again.push(Reverse((Instant::now() + *wait, round + 1, addresses)));
        }
    }

    /// Known neighbours, the gateways among them. A second old is fresh enough.
    fn look_for_hosts(&mut self) {
        if self.hosts.0.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        match neighbours::all(self.tools.plumbing.socket()) {
            Ok(hosts) => self.hosts = (Some(Instant::now()), hosts),
            Err(error) => tracing::warn!(%error, "the neighbours cannot be listed"),
        }
    }
}
