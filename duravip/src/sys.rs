//! What the kernel offers and no safe crate of the workspace does: the clock that the protocol counts by, real-time
//! scheduling, memory that stays in memory, and packet sockets bound to an interface. The only unsafe code of DuraVIP.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use duravip_core::Time;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Priority among real-time threads: above ordinary ones, below what the kernel and watchdogs use.
const REALTIME_PRIORITY: i32 = 40;

/// The time, on the clock that leases count by. It goes on while the machine sleeps.
#[allow(
    unsafe_code,
    reason = "CLOCK_BOOTTIME has no safe wrapper here; the call only writes the struct that it is given"
)]
pub fn now() -> Time {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(failed, 0, "CLOCK_BOOTTIME is there since Linux 2.6.39");
    Time::from_start(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
}

/// Gives the calling thread a real-time priority, where that is allowed.
#[allow(
    unsafe_code,
    reason = "no safe wrapper here; the call reads one struct and changes this thread's scheduling only"
)]
pub fn be_realtime() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: REALTIME_PRIORITY };
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the calling thread run before ordinary ones, where that is allowed. Not real-time: a thread that puts thousands of
/// addresses on would use up what the kernel grants real-time threads in a second, heartbeats included.
#[allow(unsafe_code, reason = "no safe wrapper here; the call takes numbers and changes this thread's scheduling only")]
pub fn be_urgent() {
    const LEAST_NICE: libc::c_int = -20;
    // Where it is refused, this thread waits its turn like all others.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST_NICE) };
}

/// Keeps what this process has in memory there: a page fault at the wrong moment is a missed heartbeat. Only pages that
/// are touched count, so that reserved stacks cost nothing.
#[allow(unsafe_code, reason = "no safe wrapper here; the call takes flags only")]
pub fn lock_memory() -> io::Result<()> {
    // MCL_ONFAULT
    const ON_FAULT: libc::c_int = 4;
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | ON_FAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A raw packet socket on one interface. It receives frames of one protocol (an Ethernet type), or with 0 none at all.
#[allow(unsafe_code, reason = "nix cannot make a sockaddr_ll; bind reads the struct within its given length")]
pub fn packet_socket(interface: u32, protocol: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward() {
        let (first, second) = (now(), now());
        assert!(second >= first && first > Time::ZERO);
    }
}
