//! The hosts that this node knows on an interface: who is told by name when announcements shall not go to everybody, and
//! who is asked whether the network is still there.

use std::io;
use std::net::IpAddr;

use super::address::from_octets;
use super::announce::Neighbour;
use super::netlink::{Socket, number};

const RTM_GETNEIGH: u16 = 30;
const NDMSG_BYTES: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTM_GETROUTE: u16 = 26;
const RTMSG_BYTES: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// Incomplete, failed, and those that need no resolution are of no use.
const USELESS: u16 = 0x01 | 0x20 | 0x40;

/// All neighbours with a hardware address, with the interface's number.
pub fn all(socket: &mut Socket) -> io::Result<Vec<(u32, Neighbour)>> {
    let answers = socket.dump(RTM_GETNEIGH, &[0; NDMSG_BYTES])?;
    let read = |answer: &super::netlink::Received| {
        let index = number(answer.payload.get(4..)?)?;
        let state = u16::from_ne_bytes(answer.payload.get(8..10)?.try_into().ok()?);
        let attributes = answer.attributes(NDMSG_BYTES);
        let mac = <[u8; 6]>::try_from(*attributes.get(&NDA_LLADDR)?).ok()?;
        let address = from_octets(attributes.get(&NDA_DST)?)?;
        (state & USELESS == 0 && state != 0).then_some((index, Neighbour { address, mac }))
    };
    Ok(answers.iter().filter_map(read).collect())
}

/// The gateways of all routes, with the interface's number.
pub fn gateways(socket: &mut Socket) -> io::Result<Vec<(u32, IpAddr)>> {
    let answers = socket.dump(RTM_GETROUTE, &[0; RTMSG_BYTES])?;
    let read = |answer: &super::netlink::Received| {
        let attributes = answer.attributes(RTMSG_BYTES);
        let index = attributes.get(&RTA_OIF).and_then(|value| number(value))?;
        Some((index, from_octets(attributes.get(&RTA_GATEWAY)?)?))
    };
    Ok(answers.iter().filter_map(read).collect())
}
