//! Addresses on an interface. Ours carry our protocol number (IFA_PROTO, Linux 5.18), so that only what this program
//! added is ever taken off, also by another run of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::netlink::{Batch, CREATE, EXCLUSIVE, REPLACE, REQUEST, Received, Socket, number};

/// Our protocol number, for addresses and for routes; the kernel gives meaning to those below 16 only.
pub const PROTOCOL: u8 = 0xEC;

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFADDRMSG_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
/// No duplicate address detection: the protocol has decided whose it is, and the wait would be a second of darkness.
const IFA_F_NODAD: u32 = 2;
/// No route for the prefix of a single IPv6 address.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const FOR_EVER: u32 = u32::MAX;

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix_length: u8,
    /// This program added it.
    pub ours: bool,
}

/// The bytes of an address in network order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address from its bytes in network order.
pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// The kernel's number for the family of an address.
pub(super) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// Adds an address to the batch's work; one that is there is an error. With a lifetime the kernel takes it off by itself
/// unless it is renewed in time (whole seconds): the net below where there is no fence.
pub fn add(batch: &mut Batch, index: u32, address: IpAddr, prefix_length: u8, lifetime: Option<Duration>) {
    put(batch, EXCLUSIVE, index, address, prefix_length, lifetime);
}

/// Adds the renewal of an address to the batch's work: from now on it stays for so long, or for ever.
pub fn renew(batch: &mut Batch, index: u32, address: IpAddr, prefix_length: u8, lifetime: Option<Duration>) {
    put(batch, REPLACE, index, address, prefix_length, lifetime);
}

fn put(batch: &mut Batch, how: u16, index: u32, address: IpAddr, prefix_length: u8, lifetime: Option<Duration>) {
    let mut header = vec![family(address), prefix_length, 0, 0];
    header.extend(index.to_ne_bytes());
    // Only failures are answered.
    let mut message = batch.message(RTM_NEWADDR, REQUEST | CREATE | how, &header);
    let bytes = octets(address);
    message.put(IFA_LOCAL, &bytes).put(IFA_ADDRESS, &bytes).put(IFA_PROTO, &[PROTOCOL]);
    let valid = lifetime.map_or(FOR_EVER, |lifetime| lifetime.as_secs().max(1) as u32);
    if address.is_ipv6() {
        let single = if prefix_length == 128 { IFA_F_NOPREFIXROUTE } else { 0 };
        message.number(IFA_FLAGS, IFA_F_NODAD | single);
        // Deprecated from the start: it answers, and is never chosen as the sender of what the node says by itself.
        message.put(IFA_CACHEINFO, &lifetimes(0, valid));
    } else {
        message.put(IFA_CACHEINFO, &lifetimes(valid, valid));
    }
}

fn lifetimes(preferred: u32, valid: u32) -> Vec<u8> {
    [preferred, valid, 0, 0].iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Adds the removal of an address to the batch's work.
pub fn remove(batch: &mut Batch, index: u32, address: IpAddr, prefix_length: u8) {
    let mut header = vec![family(address), prefix_length, 0, 0];
    header.extend(index.to_ne_bytes());
    let bytes = octets(address);
    batch.message(RTM_DELADDR, REQUEST, &header).put(IFA_LOCAL, &bytes).put(IFA_ADDRESS, &bytes);
}

/// All addresses of all interfaces.
pub fn dump(socket: &mut Socket) -> io::Result<Vec<Known>> {
    let answers = socket.dump(RTM_GETADDR, &[0; IFADDRMSG_BYTES])?;
    Ok(answers.iter().filter_map(read).collect())
}

/// Reads a message about an address, from a dump or an event.
pub fn read(message: &Received) -> Option<Known> {
    let prefix_length = *message.payload.get(1)?;
    let index = number(message.payload.get(4..)?)?;
    let attributes = message.attributes(IFADDRMSG_BYTES);
    let bytes = attributes.get(&IFA_LOCAL).or_else(|| attributes.get(&IFA_ADDRESS))?;
    let ours = attributes.get(&IFA_PROTO).is_some_and(|protocol| **protocol == [PROTOCOL]);
    Some(Known { index, address: from_octets(bytes)?, prefix_length, ours })
}
