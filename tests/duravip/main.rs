//! DuraVIP on real kernels: a namespace for each machine, a real daemon on it, a real network between them, and a host outside
//! that asks for every address all the time. What is asserted is who answers, never when.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod configured;
mod crashes;
mod dismissed;
mod flapping;
mod identities;
mod lab;
mod layers;
mod meddled;
mod network;
mod orders;
mod prober;
mod services;
mod size;
mod stranger;
mod told;
mod two;
mod unfenced;
mod untouched;
#[path = "../support/wait.rs"]
mod wait;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

/// A lease that a busy machine does not miss, and waits that keep the tests short.
pub const SETTINGS: &str = "dead_after = \"1500ms\"\nmature = \"500ms\"\n";

/// So many IPv4 addresses and so many IPv6 ones.
pub fn vips(v4: usize, v6: usize) -> String {
    let mut text = String::new();
    for number in 0..v4 {
        let _ = writeln!(text, "[vip.\"{}\"]", v4_address(number));
    }
    for number in 0..v6 {
        let _ = writeln!(text, "[vip.\"fd77::1:{:x}\"]", number + 1);
    }
    text
}

pub fn v4_address(number: usize) -> IpAddr {
    IpAddr::from([10, 77, 1 + (number / 250) as u8, 1 + (number % 250) as u8])
}

/// The addresses of a machine.
pub fn of(owners: &BTreeMap<IpAddr, String>, name: &str) -> Vec<IpAddr> {
    owners.iter().filter(|(_, owner)| *owner == name).map(|(address, _)| *address).collect()
}

/// What moved although its owner stayed.
pub fn moved_needlessly(
    before: &BTreeMap<IpAddr, String>,
    after: &BTreeMap<IpAddr, String>,
    gone: &str,
) -> Vec<IpAddr> {
    let needless = before.iter().filter(|(address, owner)| *owner != gone && after.get(address) != Some(owner));
    needless.map(|(address, _)| *address).collect()
}

/// Nothing moved.
pub const NONE: [IpAddr; 0] = [];
