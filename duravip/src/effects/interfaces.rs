//! The interfaces of this node and the addresses they have: which of them are ours to touch, and which are its own.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::address;
use super::netlink::{Received, Socket, number};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFINFOMSG_BYTES: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
/// The carrier is there.
const IFF_LOWER_UP: u32 = 0x10000;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it. A new interface of an old name has another one.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// It is up and has a carrier.
    pub up: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// Addresses that the node has there by itself, with their prefix lengths.
    pub own: Vec<(IpAddr, u8)>,
}

impl Interface {
    /// An own address of the family of `address`, the one in the same network first: the sender of what is asked for it.
    pub fn source_for(&self, address: IpAddr) -> Option<IpAddr> {
        let same_family = |own: &&(IpAddr, u8)| own.0.is_ipv4() == address.is_ipv4();
        let near = self.own.iter().filter(same_family).find(|(own, prefix)| share_network(*own, address, *prefix));
        near.or_else(|| self.own.iter().find(same_family)).map(|(own, _)| *own)
    }
}

/// Whether two addresses agree in their first bits.
pub fn share_network(a: IpAddr, b: IpAddr, prefix_length: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let shift = width - u32::from(prefix_length).min(width);
    a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}

/// All interfaces by name.
pub fn all(socket: &mut Socket) -> io::Result<BTreeMap<String, Interface>> {
    let mut interfaces = BTreeMap::new();
    for link in socket.dump(RTM_GETLINK, &[0; IFINFOMSG_BYTES])? {
        if let Some(interface) = read_link(&link) {
            interfaces.insert(interface.name.clone(), interface);
        }
    }
    for known in address::dump(socket)? {
        if !known.ours
            && let Some(interface) = interfaces.values_mut().find(|interface| interface.index == known.index)
        {
            interface.own.push((known.address, known.prefix_length));
        }
    }
    Ok(interfaces)
}

/// The number of an interface that a message says is not up, or has no carrier.
pub(super) fn read_down(link: &Received) -> Option<u32> {
    let index = number(link.payload.get(4..)?)?;
    let flags = number(link.payload.get(8..)?)?;
    (!is_up(flags)).then_some(index)
}

fn is_up(flags: u32) -> bool {
    flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0
}

fn read_link(link: &Received) -> Option<Interface> {
    if link.kind != RTM_NEWLINK {
        return None;
    }
    let index = number(link.payload.get(4..)?)?;
    let flags = number(link.payload.get(8..)?)?;
    let attributes = link.attributes(IFINFOMSG_BYTES);
    let name = attributes.get(&IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
    let mac = attributes.get(&IFLA_ADDRESS).and_then(|bytes| <[u8; 6]>::try_from(*bytes).ok());
    let up = is_up(flags);
    Some(Interface { index, name, mac, up, loopback: flags & IFF_LOOPBACK != 0, own: Vec::new() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_are_compared_by_their_first_bits() {
        let share = |a: &str, b: &str, length| share_network(a.parse().unwrap(), b.parse().unwrap(), length);
        assert!(share("10.1.1.1", "10.1.1.200", 24) && !share("10.1.1.1", "10.1.2.1", 24));
        assert!(share("10.1.1.1", "192.0.2.1", 0));
        assert!(share("fd00::1", "fd00::ffff", 64) && !share("fd00::1", "fd00::2", 128));
        assert!(!share("10.1.1.1", "fd00::1", 0));
    }

    #[test]
    fn the_loopback_interface_is_there() {
        let mut socket = Socket::open(nix::sys::socket::SockProtocol::NetlinkRoute, 0).unwrap();
        let interfaces = all(&mut socket).unwrap();
        assert!(interfaces["lo"].loopback, "{interfaces:?}");
    }
}
