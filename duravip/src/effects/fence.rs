//! The kernel's fence: whatever becomes of this process, the node stops answering for managed addresses when its lease ends.
//!
//! ```text
//! table netdev eccluster-vip {
//!   set lease { type mark; timeout; }          one element, renewed with every lease
//!   set vip4  { type ipv4_addr; }  set vip6 { type ipv6_addr; }      every managed address
//!   chain in-eth1  { hook ingress:  1 in lease: accept;  IP or ARP target, or IPv6 or ND target, in vip: drop }
//!   chain out-eth1 { hook egress:   1 in lease: accept;  IP or ARP sender, or IPv6 or NA target, in vip: drop }
//! }
//! ```
//! The table stays when the process dies: closed is safe, and the next run replaces it. It is removed at a planned end, when
//! no address is left. All packets pass with one look into a set of one element while the lease runs.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::address::octets;
use super::netlink::{ACK, APPEND, Attributes, Batch, CREATE, REQUEST, Socket};

const TABLE: &str = "eccluster-vip";
const LEASE: &str = "lease";
/// The one element of the set of leases.
const LEASE_KEY: [u8; 4] = [1, 0, 0, 0];
/// Elements in one message: their list is an attribute, which holds 64 KiB.
const ELEMENTS: usize = 1024;

const SUBSYSTEM: u16 = 10 << 8;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;

const NETDEV: u8 = 5;
const SET_HAS_TIMEOUTS: u32 = 0x10;
const REGISTER: u32 = 1;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// Types of keys, as `nft list` shows them.
const MARK: u32 = 19;
const IPV4_ADDRESS: u32 = 7;
const IPV6_ADDRESS: u32 = 8;

const META_PROTOCOL: u32 = 1;
const META_L4PROTO: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// A handle on the fence. Several may be open at once: one renews the lease, one fills the sets.
#[derive(Debug)]
pub struct Fence {
    socket: Socket,
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Fence {
    /// A handle. Nothing is changed yet.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkNetFilter, 0)? })
    }

    /// A closed fence in place of whatever an earlier run left, without addresses and interfaces.
    pub fn build(&mut self) -> io::Result<()> {
        self.remove()?;
        let mut batch = begin();
        message(&mut batch, NEW_TABLE, CREATE).text(1, TABLE);
        new_set(&mut batch, LEASE, 1, MARK, 4, SET_HAS_TIMEOUTS);
        new_set(&mut batch, "vip4", 2, IPV4_ADDRESS, 4, 0);
        new_set(&mut batch, "vip6", 3, IPV6_ADDRESS, 16, 0);
        self.commit(batch)
    }

    /// Whether it is there. Whoever flushes all tables of the kernel takes it away as well.
    pub fn is_there(&mut self) -> io::Result<bool> {
        let mut batch = Batch::default();
        message(&mut batch, GET_TABLE, 0).text(1, TABLE);
        match self.socket.run_all(batch) {
            Ok(()) => Ok(true),
            Err(error) => missing_is_fine(Err(error)).map(|()| false),
        }
    }

    /// Takes the fence away.
    pub fn remove(&mut self) -> io::Result<()> {
        let mut batch = begin();
        message(&mut batch, DELETE_TABLE, 0).text(1, TABLE);
        missing_is_fine(self.commit(batch))
    }

    /// Puts the fence around an interface; anew, if it was there.
    pub fn enclose(&mut self, interface: &str) -> io::Result<()> {
        self.release(interface)?;
        let mut batch = begin();
        for way in [Way::In, Way::Out] {
            new_chain(&mut batch, interface, way);
            rules(&mut batch, &chain_name(interface, way), way);
        }
        self.commit(batch)
    }

    /// Takes the fence from an interface.
    pub fn release(&mut self, interface: &str) -> io::Result<()> {
        for way in [Way::In, Way::Out] {
            let mut batch = begin();
            message(&mut batch, DELETE_CHAIN, 0).text(1, TABLE).text(3, &chain_name(interface, way));
            missing_is_fine(self.commit(batch))?;
        }
        Ok(())
    }

    /// Adds addresses that are behind the fence.
    pub fn cover(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        self.change(NEW_ELEMENT, CREATE, addresses)
    }

    /// Takes addresses out from behind the fence; none of them may be on an interface.
    pub fn uncover(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        self.change(DELETE_ELEMENT, 0, addresses)
    }

    fn change(&mut self, kind: u16, flags: u16, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        for (set, addresses) in [("vip4", v4), ("vip6", v6)] {
            for some in addresses.chunks(ELEMENTS) {
                let mut batch = begin();
                message(&mut batch, kind, flags).text(1, TABLE).text(2, set).nest(3, |list| {
                    for address in some {
                        list.nest(1, |element| key(element, &octets(*address)));
                    }
                });
                self.commit(batch)?;
            }
        }
        Ok(())
    }

    /// Opens the fence for so long from now. The old element goes and the new one comes in one step.
    pub fn open_for(&mut self, lease: Duration) -> io::Result<()> {
        let with_old = self.renew(lease, true);
        match with_old {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => self.renew(lease, false),
            result => result,
        }
    }

    fn renew(&mut self, lease: Duration, replace: bool) -> io::Result<()> {
        let mut batch = begin();
        if replace {
            delete_lease(&mut batch);
        }
        // Whole milliseconds, rounded down: never longer than the lease.
        let timeout = (lease.as_millis() as u64).max(1).to_be_bytes();
        message(&mut batch, NEW_ELEMENT, CREATE).text(1, TABLE).text(2, LEASE).nest(3, |list| {
            list.nest(1, |element| {
                key(element, &LEASE_KEY);
                element.put(4, &timeout);
            });
        });
        self.commit(batch)
    }

    /// Closes the fence now.
    pub fn close(&mut self) -> io::Result<()> {
        let mut batch = begin();
        delete_lease(&mut batch);
        missing_is_fine(self.commit(batch))
    }

    fn commit(&mut self, mut batch: Batch) -> io::Result<()> {
        batch.message(END, REQUEST, &header(0, 10));
        self.socket.run_all(batch)
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        result => result,
    }
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn begin() -> Batch {
    let mut batch = Batch::default();
    batch.message(BEGIN, REQUEST, &header(0, 10));
    batch
}

fn message(batch: &mut Batch, kind: u16, flags: u16) -> Attributes<'_> {
    batch.message(kind, REQUEST | ACK | flags, &header(NETDEV, 0))
}

fn delete_lease(batch: &mut Batch) {
    message(batch, DELETE_ELEMENT, 0).text(1, TABLE).text(2, LEASE).nest(3, |list| {
        list.nest(1, |element| key(element, &LEASE_KEY));
    });
}

fn key(element: &mut Attributes<'_>, bytes: &[u8]) {
    element.nest(1, |key| {
        key.put(1, bytes);
    });
}

fn new_set(batch: &mut Batch, name: &str, id: u32, key_type: u32, key_bytes: u32, flags: u32) {
    let mut message = message(batch, NEW_SET, CREATE);
    message.text(1, TABLE).text(2, name).number_be(3, flags).number_be(4, key_type).number_be(5, key_bytes);
    message.number_be(10, id);
}

fn chain_name(interface: &str, way: Way) -> String {
    match way {
        Way::In => format!("in-{interface}"),
        Way::Out => format!("out-{interface}"),
    }
}

fn new_chain(batch: &mut Batch, interface: &str, way: Way) {
    let hook = if way == Way::In { 0 } else { 1 };
    let mut message = message(batch, NEW_CHAIN, CREATE);
    message.text(1, TABLE).text(3, &chain_name(interface, way)).nest(4, |base| {
        base.number_be(1, hook).number_be(2, 0).text(3, interface);
    });
    message.number_be(5, ACCEPT).text(7, "filter");
}

/// The rules of a chain, in their order.
fn rules(batch: &mut Batch, chain: &str, way: Way) {
    rule(batch, chain, |rule| {
        immediate(rule, &LEASE_KEY);
        lookup(rule, LEASE, 1);
        verdict(rule, ACCEPT);
    });
    // Where the address in question is: of what comes in the target, of what goes out the sender.
    let (ip, arp, ip6) = match way {
        Way::In => (16, 24, 24),
        Way::Out => (12, 14, 8),
    };
    for (protocol, offset, length, set, id) in
        [(0x0800_u16, ip, 4, "vip4", 2), (0x0806, arp, 4, "vip4", 2), (0x86DD, ip6, 16, "vip6", 3)]
    {
        rule(batch, chain, |rule| {
            meta(rule, META_PROTOCOL);
            compare(rule, &protocol.to_be_bytes());
            payload(rule, NETWORK, offset, length);
            lookup(rule, set, id);
            verdict(rule, DROP);
        });
    }
    // A solicitation goes to a group, an advertisement may come from another address: both name the address inside.
    let kind: u8 = if way == Way::In { 135 } else { 136 };
    rule(batch, chain, |rule| {
        meta(rule, META_PROTOCOL);
        compare(rule, &0x86DD_u16.to_be_bytes());
        meta(rule, META_L4PROTO);
        compare(rule, &[58]);
        payload(rule, TRANSPORT, 0, 1);
        compare(rule, &[kind]);
        payload(rule, TRANSPORT, 8, 16);
        lookup(rule, "vip6", 3);
        verdict(rule, DROP);
    });
}

fn rule(batch: &mut Batch, chain: &str, expressions: impl FnOnce(&mut Attributes<'_>)) {
    message(batch, NEW_RULE, CREATE | APPEND).text(1, TABLE).text(2, chain).nest(4, expressions);
}

fn expression(rule: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    rule.nest(1, |expression| {
        expression.text(1, name).nest(2, data);
    });
}

fn immediate(rule: &mut Attributes<'_>, value: &[u8]) {
    expression(rule, "immediate", |data| {
        data.number_be(1, REGISTER).nest(2, |inner| {
            inner.put(1, value);
        });
    });
}

fn verdict(rule: &mut Attributes<'_>, code: u32) {
    expression(rule, "immediate", |data| {
        data.number_be(1, 0).nest(2, |inner| {
            inner.nest(2, |verdict| {
                verdict.number_be(1, code);
            });
        });
    });
}

fn lookup(rule: &mut Attributes<'_>, set: &str, id: u32) {
    expression(rule, "lookup", |data| {
        data.text(1, set).number_be(2, REGISTER).number_be(4, id);
    });
}

fn meta(rule: &mut Attributes<'_>, what: u32) {
    expression(rule, "meta", |data| {
        data.number_be(1, REGISTER).number_be(2, what);
    });
}

fn compare(rule: &mut Attributes<'_>, value: &[u8]) {
    expression(rule, "cmp", |data| {
        data.number_be(1, REGISTER).number_be(2, 0).nest(3, |inner| {
            inner.put(1, value);
        });
    });
}

fn payload(rule: &mut Attributes<'_>, base: u32, offset: u32, length: u32) {
    expression(rule, "payload", |data| {
        data.number_be(1, REGISTER).number_be(2, base).number_be(3, offset).number_be(4, length);
    });
}
