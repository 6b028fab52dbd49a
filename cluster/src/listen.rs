//! Sockets that were opened before the program started: by systemd, or by whoever started it inside a network namespace.
//!
//! The protocol is `sd_listen_fds(3)`: `LISTEN_PID` names the process they are meant for, `LISTEN_FDS` how many there are, from
//! descriptor 3 on. A program serves them besides the addresses that it binds itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::Mutex;

/// The first inherited descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More than any program here is handed; a larger number is a mistake, and closing what is not ours would be worse.
const MOST: RawFd = 64;

/// Takes the listening TCP sockets that this process was started with, non-blocking and closed on exec.
///
/// The first call takes them; later ones get none. An inherited descriptor that is no TCP socket in the listening state is
/// an error.
pub fn inherited() -> io::Result<Vec<TcpListener>> {
    static TAKEN: Mutex<bool> = Mutex::new(false);
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if std::mem::replace(&mut *taken, true) {
        return Ok(Vec::new());
    }
    let count = announced(std::env::var("LISTEN_PID").ok().as_deref(), std::env::var("LISTEN_FDS").ok().as_deref())?;
    (FIRST..FIRST + count).map(take).collect()
}

/// How many sockets the variables announce to this process.
fn announced(pid: Option<&str>, count: Option<&str>) -> io::Result<RawFd> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    if pid.parse() != Ok(std::process::id()) {
        return Ok(0);
    }
    let count: RawFd = count.parse().map_err(|_| invalid(format!("LISTEN_FDS={count:?} is not a number")))?;
    if (0..=MOST).contains(&count) { Ok(count) } else { Err(invalid(format!("LISTEN_FDS={count} is out of range"))) }
}

#[expect(unsafe_code, reason = "inherited descriptors have no owner in Rust's types before this")]
fn take(fd: RawFd) -> io::Result<TcpListener> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{getsockopt, sockopt};
    // SAFETY: only `inherited` calls this, once per process and descriptor, for descriptors that the parent handed over; nothing else
    // in this process opened or owns them.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let listening = getsockopt(&socket, sockopt::AcceptConn).unwrap_or(false);
    if !listening {
        // Not ours to close: it may be anything.
        std::mem::forget(socket);
        return Err(invalid(format!("inherited descriptor {fd} is not a listening socket")));
    }
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_announced_to_this_process_counts() {
        let me = std::process::id().to_string();
        assert_eq!(announced(Some(&me), Some("2")).unwrap(), 2);
        assert_eq!(announced(Some("1"), Some("2")).unwrap(), 0);
        assert_eq!(announced(None, Some("2")).unwrap(), 0);
        assert!(announced(Some(&me), Some("many")).is_err());
        assert!(announced(Some(&me), Some("100000")).is_err());
    }
}
