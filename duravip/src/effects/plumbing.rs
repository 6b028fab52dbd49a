//! Addresses on and off the machine, in whichever of the ways the configuration asks for, many per call to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::interfaces::{self, Interface};
use super::netlink::{Batch, Socket};
use super::{address, route, spread};

/// Addresses on an interface that go on or off with one call: each costs the kernel time that grows with their number,
/// for IPv6 up to a millisecond with thousands. Routes are cheap.
const PIECE: usize = 8;
/// How often everything is listed and taken off, while somebody else does the same.
const CLEARINGS: usize = 200;

/// How an address is put on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On the LAN interface.
    Address,
    /// On a device that only carries addresses.
    Spread,
    /// As a local route.
    Route,
}

/// Where an address belongs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The LAN interface.
    pub interface: String,
    /// The prefix length it gets.
    pub prefix_length: u8,
    /// How.
    pub mode: Mode,
    /// With [`Mode::Spread`]: the number of the device.
    pub device: usize,
}

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The number of the interface that carries it.
    pub carrier: u32,
    /// The number of the LAN interface.
    pub lan: u32,
    /// The LAN interface's hardware address.
    pub mac: [u8; 6],
    /// Its prefix length there.
    pub prefix_length: u8,
    /// Whether it is a route.
    pub as_route: bool,
}

/// The hands on the machine.
#[derive(Debug)]
pub struct Plumbing {
    socket: Socket,
    interfaces: BTreeMap<String, Interface>,
    /// With no fence: addresses leave by themselves after this long unless renewed.
    pub lifetime: Option<Duration>,
}

impl Plumbing {
    /// Opens the connection to the kernel.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::open(SockProtocol::NetlinkRoute, 0)?;
        let interfaces = interfaces::all(&mut socket)?;
        Ok(Self { socket, interfaces, lifetime: None })
    }

    /// Looks at the interfaces again.
    pub fn look(&mut self) -> io::Result<&BTreeMap<String, Interface>> {
        let mut now = interfaces::all(&mut self.socket)?;
        if self.socket.is_torn() {
            // What may be missing from the list is still there, as far as anybody knows. It is looked at again.
            for interface in now.values_mut() {
                let before = self.interfaces.get(&interface.name).filter(|before| before.index == interface.index);
                let known = before.into_iter().flat_map(|before| &before.own);
                let missing: Vec<_> = known.filter(|own| !interface.own.contains(own)).copied().collect();
                interface.own.extend(missing);
            }
        }
        self.interfaces = now;
        Ok(&self.interfaces)
    }

    /// Whether the last list that the kernel gave changed while it was made.
    pub fn is_torn(&self) -> bool {
        self.socket.is_torn()
    }

    /// The interfaces, as of the last look.
    pub fn interfaces(&self) -> &BTreeMap<String, Interface> {
        &self.interfaces
    }

    /// Puts addresses on; says of each what became of it. Ours that are there already count as put on; somebody else's do
    /// not, for they would be taken off with ours one day. After an error some may be on ([`Plumbing::take_ours`]).
    pub fn put(&mut self, wanted: &[(IpAddr, Seat)]) -> io::Result<Vec<Result<Placed, Errno>>> {
        let mut outcome = self.put_once(wanted)?;
        let gone = |outcome: &Result<Placed, Errno>| matches!(outcome, Err(Errno::ENODEV));
        let missed: Vec<usize> = (0..outcome.len()).filter(|index| gone(&outcome[*index])).collect();
        if !missed.is_empty() {
            // An interface that was made anew has its old name and another number.
            self.look()?;
            let again: Vec<(IpAddr, Seat)> = missed.iter().map(|index| wanted[*index].clone()).collect();
            for (index, outcome_again) in missed.into_iter().zip(self.put_once(&again)?) {
                outcome[index] = outcome_again;
            }
        }
        Ok(outcome)
    }

    fn put_once(&mut self, wanted: &[(IpAddr, Seat)]) -> io::Result<Vec<Result<Placed, Errno>>> {
        let lacks = |plumbing: &Self, seat: &Seat| !plumbing.interfaces.contains_key(&seat.interface);
        if wanted.iter().any(|(_, seat)| lacks(self, seat)) {
            self.look()?;
        }
        self.make_devices(wanted)?;
        let places: Vec<Result<Placed, Errno>> =
            wanted.iter().map(|(address, seat)| self.place_for(*address, seat)).collect();
        let mut batch = batch_for(places.iter().flatten());
        for ((address, _), placed) in wanted.iter().zip(&places) {
            match placed {
                Ok(placed) if placed.as_route => route::add(&mut batch, placed.carrier, *address),
                Ok(placed) => {
                    address::add(&mut batch, placed.carrier, *address, placed.prefix_length, self.lifetime);
                }
                Err(_) => {}
            }
        }
        let mut results = self.socket.run(batch)?.into_iter();
        let mut outcome = places;
        let mut there = Vec::new();
        for (index, placed) in outcome.iter_mut().enumerate().filter(|(_, placed)| placed.is_ok()) {
            match results.next() {
                Some(Ok(())) | None => {}
                Some(Err(Errno::EEXIST)) => there.push(index),
                Some(Err(error)) => *placed = Err(error),
            }
        }
        if !there.is_empty() {
            let (ours, _) = self.list()?;
            let ours: BTreeSet<(IpAddr, u32, bool)> =
                ours.into_iter().map(|(address, at)| (address, at.carrier, at.as_route)).collect();
            for index in there {
                let is_ours = |placed: &Placed| ours.contains(&(wanted[index].0, placed.carrier, placed.as_route));
                if !outcome[index].as_ref().is_ok_and(is_ours) {
                    outcome[index] = Err(Errno::EADDRINUSE);
                }
            }
        }
        Ok(outcome)
    }

    /// Takes off whatever is on of these and ours, wherever it is.
    pub fn take_ours(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        for _ in 0..CLEARINGS {
            let (ours, torn) = self.list()?;
            let these: Vec<_> = ours.into_iter().filter(|(address, _)| addresses.contains(address)).collect();
            self.take(&these)?;
            if !torn {
                return Ok(());
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// Takes addresses off. What is off already is fine; an error is a kernel that does not listen.
    pub fn take(&mut self, placed: &[(IpAddr, Placed)]) -> io::Result<()> {
        let mut batch = batch_for(placed.iter().map(|(_, placed)| placed));
        for (address, placed) in placed {
            if placed.as_route {
                route::remove(&mut batch, placed.carrier, *address);
            } else {
                address::remove(&mut batch, placed.carrier, *address, placed.prefix_length);
            }
        }
        for result in self.socket.run(batch)? {
            match result {
                Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENODEV | Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What is on as an address stays for another lifetime. A failure is found by who looks what is missing.
    pub fn renew(&mut self, placed: &[(IpAddr, Placed)]) -> io::Result<()> {
        let mut batch = batch_for(placed.iter().map(|(_, placed)| placed));
        for (address, placed) in placed.iter().filter(|(_, placed)| !placed.as_route) {
            address::renew(&mut batch, placed.carrier, *address, placed.prefix_length, self.lifetime);
        }
        self.socket.run(batch).map(drop)
    }

    /// Everything of ours that is on the machine: address and carrier, whether it is a route, the prefix length. Nothing, if
    /// that changed faster than it could be listed.
    pub fn ours(&mut self) -> io::Result<Option<Vec<(IpAddr, Placed)>>> {
        let (ours, torn) = self.list()?;
        Ok((!torn).then_some(ours))
    }

    /// The same as far as it could be listed, and whether something may be missing.
    fn list(&mut self) -> io::Result<(Vec<(IpAddr, Placed)>, bool)> {
        let known = address::dump(&mut self.socket)?.into_iter().filter(|known| known.ours);
        let mut torn = self.socket.is_torn();
        let mut ours: Vec<(IpAddr, Placed)> =
            known.map(|known| (known.address, placed(known.index, known.prefix_length, false))).collect();
        let routes = route::dump(&mut self.socket)?;
        torn |= self.socket.is_torn();
        ours.extend(routes.into_iter().map(|known| (known.address, placed(known.index, 32, true))));
        Ok((ours, torn))
    }

    /// Takes off everything of ours, whoever put it there: leftovers of an earlier run, or all at the end.
    pub fn clear(&mut self) -> io::Result<usize> {
        let mut cleared = 0;
        for _ in 0..CLEARINGS {
            let (ours, torn) = self.list()?;
            for some in ours.chunks(256) {
                self.take(some)?;
            }
            cleared += ours.len();
            if !torn {
                break;
            }
        }
        self.look()?;
        let mut batch = Batch::default();
        for device in self.interfaces.values().filter(|interface| spread::is_ours(&interface.name)) {
            spread::remove(&mut batch, device.index);
        }
        self.socket.run(batch)?;
        Ok(cleared)
    }

    /// The kernel's other tables, for who asks rarely.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn make_devices(&mut self, wanted: &[(IpAddr, Seat)]) -> io::Result<()> {
        let numbers: BTreeSet<usize> = wanted
            .iter()
            .filter(|(_, seat)| seat.mode == Mode::Spread)
            .map(|(_, seat)| seat.device)
            .filter(|number| !self.interfaces.contains_key(&spread::name(*number)))
            .collect();
        for number in &numbers {
            spread::create(&mut self.socket, *number)?;
        }
        if !numbers.is_empty() {
            self.look()?;
        }
        Ok(())
    }

    fn place_for(&self, address: IpAddr, seat: &Seat) -> Result<Placed, Errno> {
        let lan = self.interfaces.get(&seat.interface).ok_or(Errno::ENODEV)?;
        if self.interfaces.values().any(|interface| interface.own.iter().any(|(own, _)| *own == address)) {
            return Err(Errno::EADDRINUSE);
        }
        let mode = if address.is_ipv6() { Mode::Address } else { seat.mode };
        let carrier = match mode {
            Mode::Spread => self.interfaces.get(&spread::name(seat.device)).ok_or(Errno::ENODEV)?.index,
            Mode::Address | Mode::Route => lan.index,
        };
        Ok(Placed {
            carrier,
            lan: lan.index,
            mac: lan.mac.unwrap_or_default(),
            prefix_length: seat.prefix_length,
            as_route: mode == Mode::Route,
        })
    }
}

/// A batch for work on these.
fn batch_for<'a>(mut placed: impl Iterator<Item = &'a Placed>) -> Batch {
    let mut batch = Batch::default();
    if placed.any(|placed| !placed.as_route) {
        batch.in_pieces(PIECE);
    }
    batch
}

fn placed(carrier: u32, prefix_length: u8, as_route: bool) -> Placed {
    Placed { carrier, lan: carrier, mac: [0; 6], prefix_length, as_route }
}
