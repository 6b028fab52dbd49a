//! Asks the segment: whether an address that is plumbed for the first time is somebody else's, and, for two members without
//! a witness, whether this node still has a network around it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use duravip_core::{Event, NoQuorum};

use super::history::History;
use super::inbox::Inbox;
use super::lease::Lease;
use super::plan::Plan;
use super::watcher::mac_text;
use crate::effects::interfaces::Interface;
use crate::effects::neighbours;
use crate::effects::plumbing::Plumbing;
use crate::effects::probe::{is_anybody_there, probe};

/// Hosts that are asked whether the network is still there.
const WITNESSES: usize = 8;

#[derive(Debug)]
enum Told {
    Plan(Arc<Plan>),
    Probe(Vec<IpAddr>),
}

/// The queue in front of the thread.
#[derive(Debug, Clone)]
pub struct Prober {
    // Not bounded: each address is asked for at most once until it is answered.
    sender: Sender<Told>,
    network: Sender<Arc<Plan>>,
}

impl Prober {
    /// Starts the threads: a probe takes longer than a lease that lives by the network's word may wait.
    pub fn start(lease: Lease, inbox: Inbox, history: History) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let (network, plans) = channel();
        let worker = Worker { plumbing: Plumbing::open()?, lease, inbox: inbox.clone(), history, plan: None };
        std::thread::Builder::new().name("vip-prober".into()).spawn(move || worker.run(&receiver))?;
        let around = Around { plumbing: Plumbing::open()?, inbox, plan: None };
        std::thread::Builder::new().name("vip-network".into()).spawn(move || around.run(&plans))?;
        Ok(Self { sender, network })
    }

    /// Another configuration.
    pub fn configure(&self, plan: Arc<Plan>) {
        let _ = self.sender.send(Told::Plan(plan.clone()));
        let _ = self.network.send(plan);
    }

    /// Asks for these, and tells the loop.
    pub fn probe(&self, addresses: Vec<IpAddr>) {
        let _ = self.sender.send(Told::Probe(addresses));
    }
}

struct Worker {
    plumbing: Plumbing,
    lease: Lease,
    inbox: Inbox,
    history: History,
    plan: Option<Arc<Plan>>,
}

impl Worker {
    fn run(mut self, receiver: &Receiver<Told>) {
        while let Ok(told) = receiver.recv() {
            match told {
                Told::Plan(plan) => self.plan = Some(plan),
                Told::Probe(addresses) => self.probe(&addresses),
            }
        }
    }

    fn interface_of(&mut self, address: IpAddr) -> Option<Interface> {
        let name = &self.plan.as_ref()?.seats.get(&address)?.interface;
        self.plumbing.interfaces().get(name).cloned()
    }

    fn probe(&mut self, addresses: &[IpAddr]) {
        if let Err(error) = self.plumbing.look() {
            tracing::warn!(%error, "the interfaces cannot be listed");
        }
        // Through a closed fence nothing would be heard, and silence would be taken for permission.
        self.lease.wait_open(Duration::from_millis(50));
        let mut by_interface: BTreeMap<String, (Interface, BTreeSet<IpAddr>)> = BTreeMap::new();
        for address in addresses {
            match self.interface_of(*address) {
                Some(interface) => {
                    let entry = by_interface.entry(interface.name.clone());
                    entry.or_insert_with(|| (interface, BTreeSet::new())).1.insert(*address);
                }
                // Nowhere to ask, and nowhere to put it: plumbing will say so.
                None => drop(self.inbox.event(Event::Probed(vec![(*address, false)]))),
            }
        }
        for (interface, asked) in by_interface.values() {
            let answers = probe(interface, asked).unwrap_or_else(|error| {
                tracing::warn!(%error, interface = interface.name, "cannot be probed");
                BTreeMap::new()
            });
            for (address, mac) in &answers {
                self.history.note("conflict", format!("{address} is answered for by {}", mac_text(*mac)));
            }
            let probed = asked.iter().map(|address| (*address, answers.contains_key(address)));
            self.inbox.event(Event::Probed(probed.collect()));
        }
    }
}

/// Looks whether the network around this node is still there, where the configuration lives by that.
struct Around {
    plumbing: Plumbing,
    inbox: Inbox,
    plan: Option<Arc<Plan>>,
}

impl Around {
    fn run(mut self, plans: &Receiver<Arc<Plan>>) {
        loop {
            match plans.recv_timeout(self.patience()) {
                Ok(plan) => self.plan = Some(plan),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn watches(&self) -> Option<Arc<Plan>> {
        self.plan.clone().filter(|plan| plan.config.spec.no_quorum == NoQuorum::Probe)
    }

    fn patience(&self) -> Duration {
        self.watches().map_or(Duration::from_secs(3600), |plan| plan.config.timing.lease() / 6)
    }

    fn look(&mut self) {
        let Some(plan) = self.watches() else { return };
        if let Err(error) = self.ask_network(&plan) {
            tracing::debug!(%error, "the network cannot be asked");
        }
    }

    /// Whether some station that is no member answers.
    fn ask_network(&mut self, plan: &Plan) -> io::Result<()> {
        let members: BTreeSet<String> = plan.peers.values().map(|place| place.host.to_string()).collect();
        let known = neighbours::all(self.plumbing.socket())?.into_iter().map(|(index, host)| (index, host.address));
        let mut hosts: BTreeSet<(u32, IpAddr)> = neighbours::gateways(self.plumbing.socket())?.into_iter().collect();
        hosts.extend(known.take(64));
        hosts.retain(|(_, host)| {
            !members.contains(&host.to_string()) && !plan.seats.contains_key(host) && !host.is_multicast()
        });
        let interfaces: Vec<Interface> = self
            .plumbing
            .look()?
            .values()
            .filter(|interface| plan.interfaces.contains(&interface.name) && interface.up)
            .cloned()
            .collect();
        for interface in interfaces {
            let asked: Vec<IpAddr> = hosts
                .iter()
                .filter(|(index, _)| *index == interface.index)
                .map(|(_, host)| *host)
                .take(WITNESSES)
                .collect();
            if !asked.is_empty() && is_anybody_there(&interface, &asked, plan.config.timing.lease() / 12)? {
                self.inbox.event(Event::NetworkSeen);
                return Ok(());
            }
        }
        Ok(())
    }
}
