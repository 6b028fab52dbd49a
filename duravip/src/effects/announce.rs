//! Announcements: whose an address is now, told to everybody on the segment (gratuitous ARP as request and as reply, since
//! some listen to one only; unsolicited neighbour advertisements), or to hosts of interest by name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use crate::sys::packet_socket;

/// Frames in one call to the kernel.
const BURST: usize = 128;
const BROADCAST: [u8; 6] = [0xFF; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);
/// Frames are padded to what Ethernet carries at least.
const SHORTEST_FRAME: usize = 60;

/// The Ethernet type of ARP.
pub const ARP: u16 = 0x0806;
/// The Ethernet type of IPv6.
pub const IPV6: u16 = 0x86DD;

/// What an ARP packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// A reply, else a request.
    pub reply: bool,
    /// Who speaks.
    pub sender_mac: [u8; 6],
    /// Whose address that is; zero in a probe.
    pub sender: Ipv4Addr,
    /// Who is asked.
    pub target_mac: [u8; 6],
    /// Which address is asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// The frame, to this hardware address.
    pub fn frame(&self, to: [u8; 6]) -> Vec<u8> {
        let mut frame = ethernet(to, self.sender_mac, ARP);
        frame.extend([0, 1, 8, 0, 6, 4, 0, if self.reply { 2 } else { 1 }]);
        frame.extend(self.sender_mac);
        frame.extend(self.sender.octets());
        frame.extend(self.target_mac);
        frame.extend(self.target.octets());
        frame.resize(SHORTEST_FRAME, 0);
        frame
    }

    /// Reads a frame.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..42)?;
        if frame[12..14] != ARP.to_be_bytes() || packet[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let mac = |at: usize| <[u8; 6]>::try_from(&packet[at..at + 6]).ok();
        let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).ok().map(Ipv4Addr::from);
        Some(Self {
            reply: packet[7] == 2,
            sender_mac: mac(8)?,
            sender: address(14)?,
            target_mac: mac(18)?,
            target: address(24)?,
        })
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The hardware address that a multicast IPv6 address goes to.
pub fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// An ICMPv6 message in its Ethernet frame.
pub fn icmpv6_frame(to_mac: [u8; 6], mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&message);
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut frame = ethernet(to_mac, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // Next header ICMPv6; a hop limit of 255 proves that no router passed it on.
    frame.extend([58, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr, to_mac: [u8; 6], to: Ipv6Addr) -> Vec<u8> {
    // Override, unsolicited; then the target and its hardware address.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    icmpv6_frame(to_mac, mac, address, to, &message)
}

/// A host that is told by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// The frames that announce an address: to everybody, or to these.
pub fn frames(mac: [u8; 6], address: IpAddr, to: Option<&[Neighbour]>) -> Vec<Vec<u8>> {
    let arp = |reply, target_mac| match address {
        IpAddr::V4(address) => Some(Arp { reply, sender_mac: mac, sender: address, target_mac, target: address }),
        IpAddr::V6(_) => None,
    };
    match (address, to) {
        (IpAddr::V4(_), None) => [arp(false, [0; 6]), arp(true, BROADCAST)]
            .into_iter()
            .flatten()
            .map(|packet| packet.frame(BROADCAST))
            .collect(),
        (IpAddr::V6(address), None) => vec![advertisement(mac, address, multicast_mac(ALL_NODES), ALL_NODES)],
        (_, Some(hosts)) => hosts
            .iter()
            .filter_map(|host| match (address, host.address) {
                // A request with the address as its sender makes the host refresh what it has.
                (IpAddr::V4(address), IpAddr::V4(theirs)) => {
                    let packet =
                        Arp { reply: false, sender_mac: mac, sender: address, target_mac: [0; 6], target: theirs };
                    Some(packet.frame(host.mac))
                }
                (IpAddr::V6(address), IpAddr::V6(theirs)) => Some(advertisement(mac, address, host.mac, theirs)),
                _ => None,
            })
            .collect(),
    }
}

/// Sends frames, with a socket per interface.
#[derive(Debug, Default)]
pub struct Sender {
    sockets: BTreeMap<u32, OwnedFd>,
}

impl Sender {
    /// Sends frames on an interface; returns how many went out.
    pub fn send(&mut self, interface: u32, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut sent = 0;
        for burst in frames.chunks(BURST) {
            match self.send_burst(interface, burst) {
                Ok(count) => sent += count,
                Err(error) => {
                    // A socket of an interface that is gone stays dead; the next one is a new one.
                    self.sockets.remove(&interface);
                    return Err(error);
                }
            }
        }
        Ok(sent)
    }

    fn send_burst(&mut self, interface: u32, burst: &[Vec<u8>]) -> io::Result<usize> {
        let socket = match self.sockets.entry(interface) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(packet_socket(interface, 0)?),
        };
        let slices: Vec<[IoSlice<'_>; 1]> = burst.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut done = 0;
        while done < burst.len() {
            let rest = &slices[done..];
            let mut headers = MultiHeaders::<()>::preallocate(rest.len(), None);
            let addresses = vec![None; rest.len()];
            match sendmmsg(socket.as_raw_fd(), &mut headers, rest, addresses, [], MsgFlags::MSG_DONTWAIT) {
                Ok(results) => done += results.count().max(1),
                // The queue of the device is full: what does not fit is sent again with the repeats.
                Err(Errno::ENOBUFS | Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done.min(burst.len()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn arp_is_read_as_it_is_written() {
        let frames = frames(MAC, "10.1.1.1".parse().unwrap(), None);
        let packets: Vec<Arp> = frames.iter().map(|frame| Arp::read(frame).unwrap()).collect();
        assert_eq!(packets.iter().map(|packet| packet.reply).collect::<Vec<_>>(), [false, true]);
        assert!(packets.iter().all(|packet| packet.sender == packet.target && packet.sender_mac == MAC));
        assert!(frames.iter().all(|frame| frame.len() == SHORTEST_FRAME && frame[..6] == BROADCAST));
        assert_eq!(Arp::read(&frames[0][..30]), None);
    }

    #[test]
    fn advertisements_carry_a_sound_checksum() {
        let address: Ipv6Addr = "fd00::7".parse().unwrap();
        let frame = &frames(MAC, address.into(), None)[0];
        assert_eq!((frame.len(), &frame[..6]), (14 + 40 + 32, &[0x33, 0x33, 0, 0, 0, 1][..]));
        let mut pseudo = frame[14 + 8..14 + 40].to_vec();
        pseudo.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        pseudo.extend(&frame[14 + 40..]);
        assert_eq!(checksum(&pseudo), 0, "a checksum over a message with its checksum is zero");
    }

    #[test]
    fn hosts_of_interest_are_told_alone() {
        let host = |text: &str| Neighbour { address: text.parse().unwrap(), mac: [2, 9, 9, 9, 9, 9] };
        let hosts = [host("10.1.1.200"), host("fd00::200")];
        for address in ["10.1.1.1", "fd00::1"] {
            let frames = frames(MAC, address.parse().unwrap(), Some(&hosts));
            assert!(matches!(&frames[..], [frame] if frame[..6] == hosts[0].mac), "{address}");
        }
    }
}
