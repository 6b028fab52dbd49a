//! Whether somebody else answers for an address: asked before it is taken for the first time, and never in a failover.
//!
//! The ARP probe of RFC 5227 (a request without a sender) and the solicitation of IPv6's duplicate address detection, with
//! shorter waits than theirs: those are for networks that may just have been plugged together, and an operator waits here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use super::announce::{ARP, Arp, IPV6, Neighbour, Sender, icmpv6_frame, multicast_mac};
use super::interfaces::Interface;
use crate::sys::packet_socket;

/// How often it is asked: a lost frame or two must not make an owner of two.
const ROUNDS: u32 = 3;
/// Between two rounds, and after the last. Hosts answer ARP in their interrupt handlers.
const WAIT: Duration = Duration::from_millis(100);

/// Frames that are read of a socket before anything else is looked at: a segment that never falls silent must not hold up
/// who listens.
const FRAMES: usize = 128;

/// Who answers for these addresses on an interface, other than the interface itself.
pub fn probe(interface: &Interface, addresses: &BTreeSet<IpAddr>) -> io::Result<BTreeMap<IpAddr, [u8; 6]>> {
    let frames: Vec<Vec<u8>> =
        addresses.iter().map(|address| question(interface.mac.unwrap_or_default(), *address)).collect();
    let mut ear = Ear::open(interface)?;
    let mut sender = Sender::default();
    let mut answers = BTreeMap::new();
    for _ in 0..ROUNDS {
        sender.send(interface.index, &frames)?;
        ear.listen(Instant::now() + WAIT, |claim| {
            if addresses.contains(&claim.address) {
                answers.insert(claim.address, claim.mac);
            }
            true
        })?;
    }
    Ok(answers)
}

/// Whether any of these hosts answers: this node is not cut off. Asked for the address of the first of its own.
pub fn is_anybody_there(interface: &Interface, hosts: &[IpAddr], patience: Duration) -> io::Result<bool> {
    let mac = interface.mac.unwrap_or_default();
    let frames: Vec<Vec<u8>> = hosts
        .iter()
        .map(|host| match (*host, interface.source_for(*host)) {
            (IpAddr::V4(target), Some(IpAddr::V4(sender))) => {
                Arp { reply: false, sender_mac: mac, sender, target_mac: [0; 6], target }.frame([0xFF; 6])
            }
            _ => question(mac, *host),
        })
        .collect();
    let mut ear = Ear::open(interface)?;
    Sender::default().send(interface.index, &frames)?;
    let mut heard = false;
    ear.listen(Instant::now() + patience, |claim| {
        heard |= hosts.contains(&claim.address);
        !heard
    })?;
    Ok(heard)
}

/// The frame that asks who has an address, from nobody.
fn question(mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(target) => {
            let packet =
                Arp { reply: false, sender_mac: mac, sender: Ipv4Addr::UNSPECIFIED, target_mac: [0; 6], target };
            packet.frame([0xFF; 6])
        }
        IpAddr::V6(target) => {
            let [.., a, b, c] = target.octets();
            let group = Ipv6Addr::from([0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, a, b, c]);
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend(target.octets());
            icmpv6_frame(multicast_mac(group), mac, Ipv6Addr::UNSPECIFIED, group, &message)
        }
    }
}

/// What somebody says is its own.
pub type Claim = Neighbour;

/// Hears claims on an interface.
#[derive(Debug)]
pub struct Ear {
    sockets: Vec<OwnedFd>,
    own: Option<[u8; 6]>,
}

impl Ear {
    /// For ARP and advertisements. The latter costs a copy of every IPv6 packet while it is open.
    pub fn open(interface: &Interface) -> io::Result<Self> {
        let sockets = vec![packet_socket(interface.index, ARP)?, packet_socket(interface.index, IPV6)?];
        Ok(Self { sockets, own: interface.mac })
    }

    /// For ARP only: cheap enough to stay open.
    pub fn open_for_arp(interface: &Interface) -> io::Result<Self> {
        Ok(Self { sockets: vec![packet_socket(interface.index, ARP)?], own: interface.mac })
    }

    /// Whose own words are left out.
    pub fn own(&self) -> Option<[u8; 6]> {
        self.own
    }

    /// The sockets, to wait for.
    pub fn fds(&self) -> impl Iterator<Item = impl AsFd> {
        self.sockets.iter()
    }

    /// Hands over every claim until the deadline, or until `heard` wants no more.
    pub fn listen(&mut self, deadline: Instant, mut heard: impl FnMut(Claim) -> bool) -> io::Result<()> {
        loop {
            for claim in self.claims()? {
                if !heard(claim) {
                    return Ok(());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let mut fds: Vec<PollFd<'_>> =
                self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What has been heard by now, without what the interface itself said; of very much a part.
    pub fn claims(&mut self) -> io::Result<Vec<Claim>> {
        let mut claims = Vec::new();
        let mut frame = [0; 2048];
        for socket in &self.sockets {
            for _ in 0..FRAMES {
                match recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => claims.extend(claim_in(&frame[..length])),
                    Err(Errno::EAGAIN | Errno::ENETDOWN) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        claims.retain(|claim| Some(claim.mac) != self.own);
        Ok(claims)
    }
}

/// What a frame claims, if it claims anything.
fn claim_in(frame: &[u8]) -> Option<Claim> {
    if let Some(packet) = Arp::read(frame) {
        let claims = !packet.sender.is_unspecified();
        return claims.then_some(Claim { address: packet.sender.into(), mac: packet.sender_mac });
    }
    let mac = <[u8; 6]>::try_from(frame.get(6..12)?).ok()?;
    let packet = frame.get(14..)?;
    let advertisement =
        frame[12..14] == IPV6.to_be_bytes() && packet.get(6) == Some(&58) && packet.get(40) == Some(&136);
    advertisement.then_some(())?;
    let target = <[u8; 16]>::try_from(packet.get(48..64)?).ok()?;
    Some(Claim { address: Ipv6Addr::from(target).into(), mac })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::announce::frames;
    use super::*;

    #[test]
    fn announcements_are_claims_and_questions_are_not() {
        let mac = [2, 0, 0, 0, 0, 1];
        for address in ["10.1.1.1", "fd00::7"] {
            let address: IpAddr = address.parse().unwrap();
            for frame in frames(mac, address, None) {
                assert_eq!(claim_in(&frame), Some(Claim { address, mac }));
            }
            assert_eq!(claim_in(&question(mac, address)), None);
        }
        assert_eq!(claim_in(&[0; 20]), None);
    }
}
