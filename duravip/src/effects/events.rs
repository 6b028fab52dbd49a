//! What the kernel tells by itself: addresses and routes that were taken away, interfaces that came, went, or lost their
//! carrier.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{Received, Socket};
use super::{address, interfaces, route};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// Links, IPv4 addresses, IPv4 routes, IPv6 addresses: a bit each.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 8;

/// What happened since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Addresses of ours that are off an interface, and the interface.
    pub removed: Vec<(IpAddr, u32)>,
    /// Interfaces that were down, or without a carrier, at some moment since the last look; by now they may be up again.
    pub down: BTreeSet<u32>,
    /// Some interface or some node's own address changed: look at all of them again.
    pub look_again: bool,
    /// Events were lost: look at everything again.
    pub lost: bool,
}

/// The subscription.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkRoute, GROUPS)? })
    }

    /// What has happened by now.
    pub fn take(&mut self) -> io::Result<Happened> {
        match self.socket.events() {
            Ok(messages) => Ok(read(&messages)),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                Ok(Happened { look_again: true, lost: true, ..Happened::default() })
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(messages: &[Received]) -> Happened {
    let mut happened = Happened::default();
    for message in messages {
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => {
                happened.look_again = true;
                happened.down.extend(interfaces::read_down(message));
            }
            address::RTM_DELADDR | address::RTM_NEWADDR => match address::read(message) {
                Some(known) if known.ours && message.kind == address::RTM_DELADDR => {
                    happened.removed.push((known.address, known.index));
                }
                Some(known) if !known.ours => happened.look_again = true,
                _ => {}
            },
            route::RTM_DELROUTE => {
                happened.removed.extend(route::read(message).map(|known| (known.address, known.index)));
            }
            _ => {}
        }
    }
    happened
}
