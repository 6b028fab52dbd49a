//! Tells the segment whose addresses are here, on a thread of its own: at once when they come, and again on a schedule for
//! hosts that were deaf and switches that were learning. What is new goes before what is repeated.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::SockProtocol;

use super::lease::Lease;
use super::metrics::Metrics;
use super::plan::Plan;
use super::plumber::Installed;
use crate::effects::announce::{Neighbour, Sender, frames};
use crate::effects::neighbours;
use crate::effects::netlink::Socket;
use crate::effects::plumbing::Placed;
use crate::sys;

/// Addresses in one burst.
const CHUNK: usize = 64;
/// When an address is announced again after it came.
const AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];
/// Repeats keep out of the way of what is urgent.
const PACE: Duration = Duration::from_millis(2);
/// Bursts that wait to be repeated. All addresses there may be take 160; what is more is somebody who makes this machine
/// contradict it all the time, and gets no repetitions.
const REPEATS: usize = 4096;
/// The longest that the first word waits for the fence to open: through a closed one it would be lost.
const OPENING: Duration = Duration::from_millis(50);

/// The queue in front of the thread.
#[derive(Debug, Clone, Default)]
pub struct Announcer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    there: Condvar,
    burst: Mutex<Burst>,
    silent: Condvar,
}

/// What is being said, from the look at what is here until it is out. Not one mutex held meanwhile: who speaks without a
/// pause would take it again before anybody who waits for it wakes up.
#[derive(Debug, Default)]
struct Burst {
    speaking: bool,
    /// How many are out.
    done: u64,
}

#[derive(Debug, Default)]
struct Work {
    // Bounded by what is here: who asks again before the last time was done adds each address once more.
    new: VecDeque<IpAddr>,
    plan: Option<Arc<Plan>>,
    ended: bool,
}

enum Job {
    New(Vec<IpAddr>),
    Again(usize, Vec<IpAddr>),
    End,
}

impl Announcer {
    /// Starts the thread. It speaks of what is in the list at that moment.
    pub fn start(installed: Installed, lease: Lease, metrics: Metrics) -> std::io::Result<Self> {
        let announcer = Self::default();
        let worker = Worker {
            shared: announcer.shared.clone(),
            installed,
            lease,
            metrics,
            plan: None,
            socket: Socket::open(SockProtocol::NetlinkRoute, 0)?,
            sender: Sender::default(),
            again: BinaryHeap::new(),
            hosts: (None, Vec::new()),
        };
        std::thread::Builder::new().name("vip-announcer".into()).spawn(move || worker.run())?;
        Ok(announcer)
    }

    /// Another configuration: who is told.
    pub fn configure(&self, plan: Arc<Plan>) {
        self.work().plan = Some(plan);
        self.shared.there.notify_one();
    }

    /// Announces these, on the whole schedule.
    pub fn announce(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.work().new.extend(addresses);
        self.shared.there.notify_one();
    }

    /// Waits until a burst that is on its way is out. What was taken from the list of what is here before this is said no
    /// more after it: the last word on the segment has to be the next owner's.
    pub fn wait_silent(&self) {
        let under_way = self.shared.burst().under_way();
        self.shared.wait_out(under_way);
    }

    /// Ends the thread; nothing is here any more.
    pub fn end(&self) {
        self.work().ended = true;
        self.shared.there.notify_one();
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.shared.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Burst {
    /// The number of the burst that is on its way.
    fn under_way(&self) -> Option<u64> {
        self.speaking.then_some(self.done)
    }
}

impl Shared {
    fn burst(&self) -> MutexGuard<'_, Burst> {
        self.burst.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this burst is out, whether another has begun since or not.
    fn wait_out(&self, burst: Option<u64>) {
        if let Some(number) = burst {
            drop(self.silent.wait_while(self.burst(), |burst| burst.done == number));
        }
    }
}

/// A burst is on its way, until this is dropped.
struct Speaking<'a>(&'a Shared);

impl<'a> Speaking<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.burst().speaking = true;
        Self(shared)
    }
}

impl Drop for Speaking<'_> {
    fn drop(&mut self) {
        let mut burst = self.0.burst();
        burst.speaking = false;
        burst.done += 1;
        self.0.silent.notify_all();
    }
}

struct Worker {
    shared: Arc<Shared>,
    installed: Installed,
    lease: Lease,
    metrics: Metrics,
    plan: Option<Arc<Plan>>,
    socket: Socket,
    sender: Sender,
    /// What is announced again, when, and which repetition that is. Bounded by REPEATS.
    again: BinaryHeap<Reverse<(Instant, usize, Vec<IpAddr>)>>,
    /// The hosts of interest, as of a short while ago.
    hosts: (Option<Instant>, Vec<(u32, Neighbour)>),
}

impl Worker {
    fn run(mut self) {
        sys::be_urgent();
        loop {
            match self.next_job() {
                Job::New(addresses) => {
                    self.lease.wait_open(OPENING);
                    self.announce(addresses, 0);
                }
                Job::Again(round, addresses) => {
                    self.announce(addresses, round);
                    std::thread::sleep(PACE);
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
            if work.ended {
                return Job::End;
            }
            if !work.new.is_empty() {
                let count = work.new.len().min(CHUNK);
                return Job::New(work.new.drain(..count).collect());
            }
            let due = self.again.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
            if due.is_some_and(|due| due.is_zero())
                && let Some(Reverse((_, round, addresses))) = self.again.pop()
            {
                return Job::Again(round, addresses);
            }
            let patience = due.unwrap_or(Duration::from_secs(3600));
            let waited = self.shared.there.wait_timeout(work, patience);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Announces what of these is still here, and plans the next time.
    fn announce(&mut self, addresses: Vec<IpAddr>, round: usize) {
        let everybody = self.plan.as_ref().is_none_or(|plan| plan.everybody);
        if !everybody {
            self.look_for_hosts();
        }
        let shared = self.shared.clone();
        let speaking = Speaking::begin(&shared);
        let here: Vec<(IpAddr, Placed)> = {
            let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
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
                    self.metrics.announcements.inc_by(sent as u64);
                }
                Err(error) => tracing::warn!(%error, interface, "announcements not sent"),
            }
        }
        drop(speaking);
        if let Some(wait) = AGAIN.get(round)
            && !here.is_empty()
            && self.again.len() < REPEATS
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
        match neighbours::all(&mut self.socket) {
            Ok(hosts) => self.hosts = (Some(Instant::now()), hosts),
            Err(error) => tracing::warn!(%error, "the neighbours cannot be listed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_silence_waits_for_the_burst_that_is_on_its_way_and_for_no_later_one() {
        let shared = Shared::default();
        assert_eq!(shared.burst().under_way(), None);
        let first = Speaking::begin(&shared);
        let under_way = shared.burst().under_way();
        assert_eq!(under_way, Some(0));
        let waits = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| shared.wait_out(under_way));
            let waits = !waiter.is_finished();
            drop(first);
            // The speaker goes on at once.
            let _second = Speaking::begin(&shared);
            let _ = waiter.join();
            waits
        });
        assert!(waits);
        shared.wait_out(under_way);
    }
}
