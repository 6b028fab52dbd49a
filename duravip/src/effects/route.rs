//! Host routes of type local: Linux answers ARP for an address that is in the table `local`, whether an interface has it
//! or not, and the price does not grow with their number. IPv4 only: neighbour discovery asks the interface's own list.

use std::io;
use std::net::IpAddr;

use super::address::{PROTOCOL, family, from_octets, octets};
use super::netlink::{Batch, CREATE, EXCLUSIVE, REQUEST, Received, Socket, number};

const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTMSG_BYTES: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const TABLE_LOCAL: u8 = 255;
const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
}

fn header(address: IpAddr) -> [u8; RTMSG_BYTES] {
    let length = if address.is_ipv4() { 32 } else { 128 };
    [family(address), length, 0, 0, TABLE_LOCAL, PROTOCOL, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0]
}

/// Adds a route to the batch's work.
pub fn add(batch: &mut Batch, index: u32, address: IpAddr) {
    let mut message = batch.message(RTM_NEWROUTE, REQUEST | CREATE | EXCLUSIVE, &header(address));
    message.put(RTA_DST, &octets(address)).number(RTA_OIF, index);
}

/// Adds the removal of a route to the batch's work; one of another protocol is not found, and stays.
pub fn remove(batch: &mut Batch, index: u32, address: IpAddr) {
    let mut message = batch.message(RTM_DELROUTE, REQUEST, &header(address));
    message.put(RTA_DST, &octets(address)).number(RTA_OIF, index);
}

/// All routes of ours.
pub fn dump(socket: &mut Socket) -> io::Result<Vec<Known>> {
    let mut wanted = [0; RTMSG_BYTES];
    wanted[0] = libc::AF_INET as u8;
    wanted[4] = TABLE_LOCAL;
    Ok(socket.dump(RTM_GETROUTE, &wanted)?.iter().filter_map(read).collect())
}

/// Reads a message about a route, from a dump or an event, if the route is ours.
pub fn read(message: &Received) -> Option<Known> {
    let header = message.payload.get(..RTMSG_BYTES)?;
    let ours = header[4] == TABLE_LOCAL && header[5] == PROTOCOL && header[7] == TYPE_LOCAL;
    ours.then_some(())?;
    let attributes = message.attributes(RTMSG_BYTES);
    let address = from_octets(attributes.get(&RTA_DST)?)?;
    Some(Known { index: attributes.get(&RTA_OIF).and_then(|value| number(value))?, address })
}
