//! Looks after what is on the machine: what the kernel tells is acted on at once, and every half minute everything is
//! compared with what should be there, for what nobody told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duravip_core::{Cannot, Event};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::announcer::Announcer;
use super::history::History;
use super::inbox::{Inbox, Input};
use super::lease::Lease;
use super::metrics::Metrics;
use super::plan::Plan;
use super::plumber::{Installed, Plumber};
use crate::effects::events::Events;
use crate::effects::fence::Fence;
use crate::effects::interfaces::Interface;
use crate::effects::plumbing::{Placed, Plumbing};
use crate::effects::probe::Ear;

/// The net below what the kernel tells.
const RECONCILE: Duration = Duration::from_secs(30);
/// The same, after a time in which addresses came or went too fast to be compared.
const LATER: Duration = Duration::from_secs(1);
/// How soon a new configuration, or the end, is seen.
const LOOK: Duration = Duration::from_millis(100);
/// What is told within such a time is looked at together: a segment full of questions, and thousands of addresses that are
/// put on, would otherwise wake this thread for each.
const TOGETHER: Duration = Duration::from_millis(2);
/// Another machine's claim is answered this often at most: two that both insist would otherwise fill the segment.
const CLAIM: Duration = Duration::from_secs(1);

/// What the watcher needs.
#[derive(Debug)]
pub struct Watcher {
    /// Eyes.
    pub plumbing: Plumbing,
    /// To put the fence around interfaces that come back, and around new addresses.
    pub fence: Option<Fence>,
    /// What is there by this program.
    pub installed: Installed,
    /// Who puts on, and has to know where.
    pub plumber: Plumber,
    /// Who announces.
    pub announcer: Announcer,
    /// Whether the fence is still there.
    pub lease: Lease,
    /// Who is told.
    pub inbox: Inbox,
    /// What happened.
    pub history: History,
    /// What is counted.
    pub metrics: Metrics,
    /// The configuration to look after; the daemon puts the next one here.
    pub next: Arc<Mutex<Next>>,
}

/// What the daemon tells the watcher.
#[derive(Debug, Default)]
pub struct Next {
    /// Another configuration.
    pub plan: Option<Arc<Plan>>,
    /// No more.
    pub ended: bool,
}

struct Watch {
    tools: Watcher,
    events: Events,
    plan: Arc<Plan>,
    /// A configuration that is not carried out yet.
    pending: Option<Arc<Plan>>,
    /// What the fence covers and encloses. An interface counts with its number: a new one of its name is another.
    covered: BTreeSet<IpAddr>,
    enclosed: BTreeMap<String, u32>,
    before: BTreeMap<String, Interface>,
    unable: Option<BTreeMap<IpAddr, Cannot>>,
    ears: BTreeMap<u32, Ear>,
    claimed: BTreeMap<IpAddr, Instant>,
    reconcile_at: Instant,
    /// Not before then.
    rebuild_at: Instant,
    /// The last look may have missed something: so many addresses came or went meanwhile.
    look_at: Option<Instant>,
}

impl Watcher {
    /// Covers and encloses what the first configuration names, reports what cannot be served, and starts the thread.
    pub fn start(self, plan: Arc<Plan>) -> io::Result<()> {
        let events = Events::open()?;
        let mut watch = Watch {
            tools: self,
            events,
            plan: plan.clone(),
            pending: None,
            covered: BTreeSet::new(),
            enclosed: BTreeMap::new(),
            before: BTreeMap::new(),
            unable: None,
            ears: BTreeMap::new(),
            claimed: BTreeMap::new(),
            reconcile_at: Instant::now() + RECONCILE,
            rebuild_at: Instant::now(),
            look_at: None,
        };
        watch.configure(plan)?;
        std::thread::Builder::new().name("vip-watcher".into()).spawn(move || watch.run())?;
        Ok(())
    }
}

impl Watch {
    fn run(mut self) {
        loop {
            let next = std::mem::take(&mut *self.tools.next.lock().unwrap_or_else(PoisonError::into_inner));
            if next.ended {
                return;
            }
            self.pending = next.plan.or(self.pending.take());
            if let Err(error) = self.turn() {
                tracing::warn!(%error, "the machine's addresses could not be looked at");
                std::thread::sleep(LOOK);
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        if let Some(plan) = self.pending.take() {
            if let Err(error) = self.configure(plan.clone()) {
                // Not covered is not handed on: tried again with the next turn.
                self.pending = Some(plan);
                return Err(error);
            }
            self.tools.inbox.send(Input::Plan(plan));
        }
        let happened = self.events.take()?;
        // Interfaces first: what was removed may come back on another one of the same name.
        if happened.look_again || self.look_at.is_some_and(|at| at <= Instant::now()) {
            self.look(&happened.down)?;
        }
        if !happened.removed.is_empty() {
            self.removed(&happened.removed);
        }
        if happened.lost || Instant::now() >= self.reconcile_at {
            self.reconcile_at = Instant::now() + RECONCILE;
            self.look(&happened.down)?;
            self.reconcile()?;
        }
        if self.tools.lease.is_fence_missing() {
            self.rebuild_fence()?;
        }
        self.listen();
        let mut fds = vec![PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        let ears: Vec<_> = self.ears.values().flat_map(Ear::fds).collect();
        fds.extend(ears.iter().map(|ear| PollFd::new(ear.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => {
                std::thread::sleep(TOGETHER);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn installed(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Placed>> {
        self.tools.installed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fence first: nothing is put on that is not covered. What is no longer managed is uncovered once it is off.
    fn configure(&mut self, plan: Arc<Plan>) -> io::Result<()> {
        self.plan = plan;
        let wanted: BTreeSet<IpAddr> = self.plan.seats.keys().copied().collect();
        let more: BTreeSet<IpAddr> = wanted.difference(&self.covered).copied().collect();
        let held: BTreeSet<IpAddr> = self.installed().keys().copied().collect();
        let less: BTreeSet<IpAddr> = &(&self.covered - &wanted) - &held;
        if let Some(fence) = &mut self.tools.fence {
            fence.cover(&more)?;
            fence.uncover(&less)?;
        }
        self.covered = &(&self.covered - &less) | &more;
        self.unable = None;
        self.look(&BTreeSet::new())?;
        self.tools.plumber.configure(self.plan.clone());
        self.tools.announcer.configure(self.plan.clone());
        Ok(())
    }

    /// Somebody took the fence away, with all other tables of the kernel most likely.
    fn rebuild_fence(&mut self) -> io::Result<()> {
        let Some(fence) = self.tools.fence.as_mut().filter(|_| Instant::now() >= self.rebuild_at) else {
            return Ok(());
        };
        self.rebuild_at = Instant::now() + LATER;
        if fence.is_there()? {
            return Ok(());
        }
        if let Err(error) = fence.build().and_then(|()| fence.cover(&self.covered)) {
            // Not half of it: tried again as a whole.
            fence.remove()?;
            return Err(error);
        }
        // Around the interfaces once it is open: nothing that answers has to fall silent.
        self.tools.lease.set_again();
        self.tools.lease.wait_open(LOOK);
        self.enclosed.clear();
        self.enclose(&self.before.clone());
        self.tools.history.note("fence", "the kernel's fence had been taken away, and is built again");
        Ok(())
    }

    /// Looks at the interfaces: what can be served, what came up (or was down for a moment), what is a new one.
    fn look(&mut self, down: &BTreeSet<u32>) -> io::Result<()> {
        let now = self.tools.plumbing.look()?.clone();
        self.look_at = self.tools.plumbing.is_torn().then(|| Instant::now() + LOOK);
        if now != self.before {
            self.tools.plumber.look();
        }
        self.enclose(&now);
        let unable = unable(&self.plan, &now);
        if self.unable.as_ref() != Some(&unable) {
            for (address, why) in unable.iter().take(3) {
                tracing::warn!(%address, ?why, "cannot be served here ({} in all)", unable.len());
            }
            self.tools.inbox.event(Event::Unable(unable.clone()));
            self.unable = Some(unable);
        }
        let came_up: BTreeSet<u32> = now
            .values()
            .filter(|interface| interface.up)
            .filter(|interface| {
                self.before.get(&interface.name).is_some_and(|before| !before.up || down.contains(&before.index))
            })
            .map(|interface| interface.index)
            .collect();
        self.rename(&now);
        self.before = now;
        self.open_ears();
        if !came_up.is_empty() {
            // Routes are gone after a link was down, and switches have forgotten: everything there again.
            self.reconcile()?;
            let back: Vec<IpAddr> = self
                .installed()
                .iter()
                .filter(|(_, placed)| came_up.contains(&placed.lan))
                .map(|(address, _)| *address)
                .collect();
            self.tools.history.note("link-up", format!("{} addresses announced again", back.len()));
            self.tools.announcer.announce(back);
        }
        Ok(())
    }

    /// Interfaces with another hardware address than before: the segment has to learn it.
    fn rename(&self, now: &BTreeMap<String, Interface>) {
        let renamed = |interface: &&Interface| {
            let before = self.before.get(&interface.name);
            before.is_some_and(|before| before.index == interface.index && before.mac != interface.mac)
        };
        let macs: BTreeMap<u32, [u8; 6]> =
            now.values().filter(renamed).filter_map(|interface| Some((interface.index, interface.mac?))).collect();
        if macs.is_empty() {
            return;
        }
        let mut here = Vec::new();
        for (address, placed) in self.installed().iter_mut() {
            if let Some(mac) = macs.get(&placed.lan) {
                placed.mac = *mac;
                here.push(*address);
            }
        }
        self.tools.history.note("hardware-address", format!("another one; {} addresses announced again", here.len()));
        self.tools.announcer.announce(here);
    }

    fn enclose(&mut self, now: &BTreeMap<String, Interface>) {
        let Some(fence) = &mut self.tools.fence else { return };
        for name in &self.plan.interfaces {
            let Some(interface) = now.get(name) else {
                self.enclosed.remove(name);
                continue;
            };
            if self.enclosed.get(name) != Some(&interface.index) {
                match fence.enclose(name) {
                    Ok(()) => drop(self.enclosed.insert(name.clone(), interface.index)),
                    Err(error) => tracing::error!(%error, interface = name, "no fence around the interface"),
                }
            }
        }
        let unused: Vec<String> =
            self.enclosed.keys().filter(|name| !self.plan.interfaces.contains(*name)).cloned().collect();
        for name in unused {
            if let Err(error) = fence.release(&name) {
                tracing::warn!(%error, interface = name, "the fence stays around the interface");
            }
            self.enclosed.remove(&name);
        }
    }

    /// Somebody took addresses off: those that belong here come back.
    fn removed(&mut self, removed: &[(IpAddr, u32)]) {
        // It stays in the list: should the core not hear of it in time, the next comparison finds it missing again.
        let installed = self.installed();
        let here = |address: &IpAddr, carrier| installed.get(address).is_some_and(|placed| placed.carrier == carrier);
        let lost =
            removed.iter().filter(|(address, carrier)| here(address, *carrier)).map(|(address, _)| *address).collect();
        drop(installed);
        self.lost(lost);
    }

    fn lost(&self, lost: Vec<IpAddr>) {
        if lost.is_empty() {
            return;
        }
        self.tools.metrics.lost.inc_by(lost.len() as u64);
        self.tools.history.note("lost", format!("{} taken off by somebody else", list(&lost)));
        self.tools.inbox.event(Event::Lost(lost));
    }

    /// Compares what is there with what should be.
    fn reconcile(&mut self) -> io::Result<()> {
        // What the plumber does meanwhile is neither missing nor too much: only what both looks agree on counts.
        let before: BTreeMap<IpAddr, Placed> = self.installed().clone();
        let Some(there) = self.tools.plumbing.ours()? else {
            self.reconcile_at = Instant::now() + LATER;
            return Ok(());
        };
        let there: BTreeMap<IpAddr, Placed> = there.into_iter().collect();
        let installed = self.installed();
        let missing: Vec<IpAddr> = before
            .keys()
            .filter(|address| !there.contains_key(*address) && installed.contains_key(*address))
            .copied()
            .collect();
        let extra: Vec<(IpAddr, Placed)> = there
            .into_iter()
            .filter(|(address, _)| !before.contains_key(address) && !installed.contains_key(address))
            .collect();
        drop(installed);
        self.lost(missing);
        // An address that the plumber is putting on right now is in the kernel before it is in the list.
        self.tools.plumber.take_strays(extra);
        Ok(())
    }

    fn open_ears(&mut self) {
        let wanted: BTreeMap<u32, Interface> = self
            .before
            .values()
            .filter(|interface| interface.up && self.plan.interfaces.contains(&interface.name))
            .map(|interface| (interface.index, interface.clone()))
            .collect();
        self.ears.retain(|index, ear| wanted.get(index).is_some_and(|interface| interface.mac == ear.own()));
        for (index, interface) in wanted {
            if let std::collections::btree_map::Entry::Vacant(place) = self.ears.entry(index) {
                match Ear::open_for_arp(&interface) {
                    Ok(ear) => drop(place.insert(ear)),
                    Err(error) => tracing::warn!(%error, interface = interface.name, "claims are not heard there"),
                }
            }
        }
    }

    /// Who claims an address that is here is contradicted: the last word on the segment must be the owner's.
    fn listen(&mut self) {
        let mut claims = Vec::new();
        for ear in self.ears.values_mut() {
            claims.extend(ear.claims().unwrap_or_default());
        }
        let now = Instant::now();
        self.claimed.retain(|_, at| now.duration_since(*at) < CLAIM);
        for claim in claims {
            let here = self.installed().contains_key(&claim.address);
            if here && self.claimed.insert(claim.address, now).is_none() {
                self.tools.metrics.claims.inc();
                self.tools.history.note("claim", format!("{} claimed by {}", claim.address, mac_text(claim.mac)));
                self.tools.announcer.announce([claim.address]);
            }
        }
    }
}

/// A hardware address as people write it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A few addresses, and how many more.
pub fn list(addresses: &[IpAddr]) -> String {
    let some: Vec<String> = addresses.iter().take(4).map(IpAddr::to_string).collect();
    match addresses.len() {
        0..=4 => some.join(", "),
        more => format!("{} and {} more", some.join(", "), more - 4),
    }
}

/// What cannot be served with these interfaces, and why.
fn unable(plan: &Plan, interfaces: &BTreeMap<String, Interface>) -> BTreeMap<IpAddr, Cannot> {
    let own: BTreeSet<IpAddr> =
        interfaces.values().flat_map(|interface| interface.own.iter().map(|(own, _)| *own)).collect();
    let why = |address: &IpAddr| {
        if own.contains(address) {
            return Some(Cannot::OwnAddress);
        }
        let interface = interfaces.get(&plan.seats.get(address)?.interface).filter(|interface| interface.up);
        match interface {
            None => Some(Cannot::NoInterface),
            // Without an address of its own family an interface does not speak that family (IPv6 switched off).
            Some(interface) if address.is_ipv6() && !interface.own.iter().any(|(own, _)| own.is_ipv6()) => {
                Some(Cannot::NoSubnet)
            }
            Some(_) => None,
        }
    };
    plan.seats.keys().filter_map(|address| Some((*address, why(address)?))).collect()
}
