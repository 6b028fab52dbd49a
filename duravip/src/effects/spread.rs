//! Devices that only carry addresses. Adding an address costs time that grows with what its device already has; a LAN
//! interface answers ARP for the addresses of every device of the machine, so they may lie on bridges without ports,
//! 512 on each. IPv4 only: neighbour discovery asks the interface's own list.

use std::io;

use super::netlink::{ACK, Batch, CREATE, EXCLUSIVE, REQUEST, Socket};
use nix::errno::Errno;

/// Addresses on one device: the square root of what is to be carried would be best for adding, and few devices for
/// people who look at them.
pub const PER_DEVICE: usize = 512;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;

/// The name of a device.
pub fn name(number: usize) -> String {
    format!("ecvip{number}")
}

/// Whether a name is one of ours.
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix("ecvip")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Makes a device and brings it up. One that is there already is fine.
pub fn create(socket: &mut Socket, number: usize) -> io::Result<()> {
    let mut header = [0; 16];
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let mut batch = Batch::default();
    let name = name(number);
    let mut message = batch.message(RTM_NEWLINK, REQUEST | ACK | CREATE | EXCLUSIVE, &header);
    message.text(IFLA_IFNAME, &name).nest(IFLA_LINKINFO, |info| {
        info.put(IFLA_INFO_KIND, b"bridge");
    });
    drop(message);
    match socket.run(batch)?.into_iter().next() {
        Some(Err(Errno::EEXIST)) | Some(Ok(())) | None => Ok(()),
        Some(Err(error)) => Err(error.into()),
    }
}

/// Removes a device with everything on it.
pub fn remove(batch: &mut Batch, index: u32) {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.message(RTM_DELLINK, REQUEST | ACK, &header);
}
