//! The wires between the nodes of `eccluster up`: a bridge in a network namespace of its own, and a cable from it into each node's.
//!
//! Spoken to the kernel over netlink, because a machine need not have the program `ip`. Everything is made inside namespaces that end with
//! their last process, so nothing has to be taken down, and the host's network is never touched.
//!
//! ```text
//! message    u32 length  u16 type  u16 flags  u32 sequence  u32 port   then a fixed head, then attributes
//! attribute  u16 length  u16 type  value, padded to 4 bytes; attributes may hold attributes
//! ```

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// The bridge's name in its namespace, and the cable's in a node's.
const BRIDGE: &str = "br0";
const CABLE: &str = "eth0";
/// All nodes are on one network, which exists nowhere else.
const PREFIX_LENGTH: u8 = 24;
/// An answer is an error number and the head of what it answers.
const ANSWER_BYTES: usize = 8 << 10;
/// From linux/veth.h, which libc does not carry.
const VETH_INFO_PEER: u16 = 1;

/// Where a node is on the wires.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

/// Brings the loopback interface of this namespace up: a new one starts with it down.
pub(crate) fn loopback_up() -> io::Result<()> {
    Netlink::open()?.up("lo", None)
}

/// Makes the bridge in this namespace.
pub(crate) fn make_bridge() -> io::Result<()> {
    let netlink = Netlink::open()?;
    let mut bridge = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    bridge.interface(0, false);
    bridge.text(libc::IFLA_IFNAME, BRIDGE);
    bridge.nested(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "bridge"));
    netlink.ask(bridge)?;
    netlink.up(BRIDGE, None)
}

/// Plugs a cable into the bridge of this namespace; its other end is in the namespace behind `node`.
pub(crate) fn plug_in(number: u8, node: BorrowedFd<'_>) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let port = format!("n{number}");
    let mut cable = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    cable.interface(0, false);
    cable.text(libc::IFLA_IFNAME, &port);
    cable.nested(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "veth");
        info.nested(libc::IFLA_INFO_DATA, |data| {
            data.nested(VETH_INFO_PEER, |peer| {
                peer.interface(0, false);
                peer.text(libc::IFLA_IFNAME, CABLE);
                peer.number(libc::IFLA_NET_NS_FD, node.as_raw_fd().unsigned_abs());
            });
        });
    });
    netlink.ask(cable)?;
    netlink.up(&port, Some(BRIDGE))
}

/// Gives this namespace's end of the cable the node's address.
pub(crate) fn take_address(number: u8) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let mut place = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    // struct ifaddrmsg: family, prefix length, flags, scope, index
    place.bytes(&[libc::AF_INET as u8, PREFIX_LENGTH, 0, 0]);
    place.bytes(&index(CABLE)?.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        place.attribute(kind, &address(number).octets());
    }
    netlink.ask(place)?;
    netlink.up(CABLE, None)
}

fn index(interface: &str) -> io::Result<u32> {
    if_nametoindex(interface).map_err(io::Error::from)
}

/// A conversation with the kernel about this namespace's network.
struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Netlink> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        Ok(Netlink(socket(kind.0, kind.1, kind.2, kind.3)?))
    }

    /// Sets an interface up, as a port of another one if that is named.
    fn up(&self, interface: &str, master: Option<&str>) -> io::Result<()> {
        let mut change = Message::new(libc::RTM_NEWLINK, 0);
        change.interface(index(interface)?, true);
        if let Some(master) = master {
            change.number(libc::IFLA_MASTER, index(master)?);
        }
        self.ask(change)
    }

    /// Sends a message and waits for what the kernel says to it.
    fn ask(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0; ANSWER_BYTES];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        match (kind, error) {
            (Some(kind), Some(0)) if length >= 20 && i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
            (Some(kind), Some(error)) if length >= 20 && i32::from(kind) == libc::NLMSG_ERROR => {
                Err(io::Error::from_raw_os_error(-error))
            }
            _ => Err(io::Error::other("netlink answered something else")),
        }
    }
}

/// A message, or the inside of an attribute, while it is being written.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Message {
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags).expect("flags have 16 bits");
        let mut message = Message(vec![0; 4]);
        message.bytes(&kind.to_ne_bytes());
        message.bytes(&flags.to_ne_bytes());
        message.bytes(&[0; 8]);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct ifinfomsg`: family, type, index, flags, which flags change.
    fn interface(&mut self, index: u32, up: bool) {
        let flags = if up { libc::IFF_UP.unsigned_abs() } else { 0 };
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("names and numbers are short");
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat());
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.attribute(kind, &number.to_ne_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let mut inside = Message(Vec::new());
        fill(&mut inside);
        self.attribute(kind, &inside.0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a message is short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_kernel_reads() {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE);
        message.interface(7, true);
        message.nested(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "veth"));
        let bytes = message.finish();
        // The head, ifinfomsg, the outer attribute, and the inner one padded to twelve.
        assert_eq!(bytes.len(), 16 + 16 + 4 + 12);
        assert_eq!(bytes[..4], 48_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 7_u32.to_ne_bytes());
        assert_eq!(bytes[32..34], 16_u16.to_ne_bytes());
        assert_eq!(&bytes[40..48], b"veth\0\0\0\0");
    }
}
