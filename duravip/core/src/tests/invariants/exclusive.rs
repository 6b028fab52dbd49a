//! At no instant two owners. An owner is a host whose kernel answers: the address is on and the fence is open, whether
//! or not a daemon lives there.

use std::net::IpAddr;

use super::Watch;

impl Watch {
    pub(crate) fn overlap(&mut self, now_us: u64, address: IpAddr, owners: &[usize]) {
        self.overlaps += 1;
        if !self.overlap_allowed {
            let names: Vec<String> = owners.iter().map(|node| format!("n{}", node + 1)).collect();
            self.violated(now_us, format!("{address} has two owners: {}", names.join(", ")));
        }
    }
}
