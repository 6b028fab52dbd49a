//! The guard: a small process beside the daemon that outlives it. When the daemon dies it closes the fence, tells the other
//! members that this run is over, and takes the addresses off; when the daemon hangs beyond its lease it takes them off,
//! and tells nobody (a run that hangs is not over).
//!
//! ```text
//! daemon ── socket (standard input): u32 bytes · postcard of ToGuard; its end without a Bye is the daemon's death
//!        ── memory file (standard output): u64 nanoseconds at which the lease ends, and the same bits inverted
//! ```
//! The guard trusts the memory file only when both halves agree: the daemon may be stopped in the middle of writing.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::Duration;

use duravip_core::Time;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::effects::fence::Fence;
use crate::effects::plumbing::Plumbing;
use crate::sys;

/// The hidden command that the guard runs as.
pub const COMMAND: &str = "guard";
/// Behind a fence a daemon that is this late is taken for hanging: the fence has long closed, and a busy machine catches up
/// by then. Without one the daemon names a time before its lease's end, and nothing is waited for.
const GRACE: Duration = Duration::from_millis(100);
/// Between two times that the last words are said: one datagram may be lost.
const REPEAT: Duration = Duration::from_millis(20);
/// The longest message: last words to 64 members.
const LIMIT_BYTES: usize = 1 << 20;

/// What the daemon tells its guard.
#[derive(Debug, Serialize, Deserialize)]
enum ToGuard {
    /// There is a fence.
    Fenced(bool),
    /// Where to send what, when the daemon is dead.
    LastWords(Vec<(SocketAddr, Vec<u8>)>),
    /// The daemon ends, and nothing is left to do.
    Bye,
}

/// The daemon's side.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    socket: UnixStream,
    memory: File,
    fenced: bool,
    words: Vec<(SocketAddr, Vec<u8>)>,
}

impl Guard {
    /// Starts the guard.
    pub fn start(fenced: bool) -> io::Result<Self> {
        let memory = File::from(memfd_create("duravip-lease", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(16)?;
        let mut guard = Self::spawn(memory, fenced)?;
        guard.tell(&ToGuard::Fenced(fenced))?;
        Ok(guard)
    }

    fn spawn(memory: File, fenced: bool) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // A guard that does not read must not stop the daemon.
        ours.set_write_timeout(Some(Duration::from_millis(100)))?;
        let child = Command::new("/proc/self/exe")
            .arg0("duravip")
            .args([COMMAND])
            .stdin(OwnedFd::from(theirs))
            .stdout(memory.try_clone()?)
            // A signal to the daemon's group is not for the guard: it is there for what comes after.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, socket: ours, memory, fenced, words: Vec::new() })
    }

    /// The lease ends then.
    pub fn set_lease(&self, until: Time) {
        let nanos = until.since_start().as_nanos() as u64;
        let mut bytes = nanos.to_le_bytes().to_vec();
        bytes.extend((!nanos).to_le_bytes());
        if let Err(error) = self.memory.write_all_at(&bytes, 0) {
            tracing::error!(%error, "the guard does not learn of leases");
        }
    }

    /// What the guard shall say when the daemon is dead.
    pub fn set_last_words(&mut self, words: Vec<(SocketAddr, Vec<u8>)>) {
        if let Err(error) = self.tell(&ToGuard::LastWords(words.clone())) {
            tracing::warn!(%error, "the guard does not listen");
        }
        self.words = words;
    }

    /// Starts another guard if this one is dead.
    pub fn look_after(&mut self) {
        let Ok(Some(status)) = self.child.try_wait() else { return };
        tracing::error!(%status, "the guard died; starting another");
        let again = self.memory.try_clone().and_then(|memory| Self::spawn(memory, self.fenced));
        match again {
            Ok(mut guard) => {
                let _ = guard.tell(&ToGuard::Fenced(self.fenced));
                guard.set_last_words(std::mem::take(&mut self.words));
                *self = guard;
            }
            Err(error) => tracing::error!(%error, "no guard"),
        }
    }

    /// Ends the guard: nothing is left to do.
    pub fn dismiss(mut self) {
        if self.tell(&ToGuard::Bye).is_ok() {
            let _ = self.child.wait();
        }
    }

    fn tell(&mut self, message: &ToGuard) -> io::Result<()> {
        let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(body);
        self.socket.write_all(&bytes).inspect_err(|_| {
            // Half a message may be on its way. The guard would take what comes next for its other half, and nonsense for the
            // end of this process: it would tell the others that this run is over. Another one is started.
            let _ = self.child.kill();
        })
    }
}

/// The guard's own main.
pub fn main() -> io::Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let memory = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    ignore_signals();
    // Where it is not allowed the guard is as slow as everybody else on a busy machine.
    let _ = sys::be_realtime();
    let _ = sys::lock_memory();
    // Opened now: when they are needed there may be no memory left to open anything.
    let watch = Watch {
        socket: UnixStream::from(input),
        memory,
        plumbing: Plumbing::open()?,
        fence: Fence::open().ok(),
        fenced: false,
        words: Vec::new(),
        cleared_for: 0,
    };
    watch.run()
}

/// Whoever ends the daemon's service politely means the daemon: it will say goodbye.
fn ignore_signals() {
    use nix::sys::signal::{SigSet, Signal};
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        ignored.add(signal);
    }
    let _ = ignored.thread_block();
}

struct Watch {
    socket: UnixStream,
    memory: File,
    plumbing: Plumbing,
    fence: Option<Fence>,
    fenced: bool,
    words: Vec<(SocketAddr, Vec<u8>)>,
    /// The lease after whose end everything was taken off already.
    cleared_for: u64,
}

impl Watch {
    fn run(mut self) -> io::Result<()> {
        loop {
            match self.wait()? {
                Woken::Said(ToGuard::Fenced(fenced)) => self.fenced = fenced,
                Woken::Said(ToGuard::LastWords(words)) => self.words = words,
                Woken::Said(ToGuard::Bye) => return Ok(()),
                Woken::Late => self.clear_after_hanging(),
                Woken::Dead => return self.bury(),
            }
        }
    }

    /// The end of the lease in nanoseconds; nothing before the first, or in the middle of a change.
    fn lease(&self) -> Option<u64> {
        let mut bytes = [0; 16];
        self.memory.read_exact_at(&mut bytes, 0).ok()?;
        let (until, inverted) = bytes.split_at(8);
        let until = u64::from_le_bytes(until.try_into().ok()?);
        let sound = inverted == (!until).to_le_bytes();
        (sound && until != 0).then_some(until)
    }

    fn wait(&mut self) -> io::Result<Woken> {
        loop {
            let lease = self.lease().filter(|lease| *lease != self.cleared_for);
            let grace = if self.fenced { GRACE } else { Duration::ZERO };
            let late = lease.map(|lease| {
                let end = Time::from_start(Duration::from_nanos(lease)) + grace;
                end.since(sys::now())
            });
            if late.is_some_and(|left| left.is_zero()) {
                return Ok(Woken::Late);
            }
            let patience = late.unwrap_or(Duration::from_secs(1)) + Duration::from_millis(1);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(self.hear().map_or(Woken::Dead, Woken::Said)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message; nothing at the end, and where a message was cut off by it.
    fn hear(&mut self) -> Option<ToGuard> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).ok()?;
        let length = u32::from_le_bytes(length) as usize;
        let mut body = vec![0; Some(length).filter(|length| *length <= LIMIT_BYTES)?];
        self.socket.read_exact(&mut body).ok()?;
        postcard::from_bytes(&body).ok()
    }

    /// The daemon hangs, or has no lease any more and is busy with that itself. What it holds is off either way.
    fn clear_after_hanging(&mut self) {
        let Some(lease) = self.lease() else { return };
        self.cleared_for = lease;
        if let Err(error) = self.plumbing.clear() {
            report(&format!("the addresses of a daemon that hangs stay: {error}"));
        }
    }

    /// The daemon is dead. Silence first: with a fence one request does it, and the others need not wait for the rest.
    fn bury(mut self) -> io::Result<()> {
        let closed = |fence: &mut Fence| fence.is_there().is_ok_and(|there| there) && fence.close().is_ok();
        let silenced = self.fenced && self.fence.as_mut().is_some_and(closed);
        if silenced {
            self.say_last_words();
        }
        let cleared = self.plumbing.clear();
        if cleared.is_ok() && !silenced {
            self.say_last_words();
        }
        for _ in 0..2 {
            std::thread::sleep(REPEAT);
            self.say_last_words_if(silenced || cleared.is_ok());
        }
        match cleared {
            Ok(count) => report(&format!("the daemon died; {count} addresses taken off")),
            Err(error) => report(&format!("the daemon died, and its addresses stay: {error}")),
        }
        Ok(())
    }

    fn say_last_words_if(&self, silent: bool) {
        if silent {
            self.say_last_words();
        }
    }

    fn say_last_words(&self) {
        for (place, words) in &self.words {
            let any: SocketAddr = match place {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            if let Err(error) = UdpSocket::bind(any).and_then(|socket| socket.send_to(words, place)) {
                report(&format!("{place} does not learn that this run is over: {error}"));
            }
        }
    }
}

enum Woken {
    Said(ToGuard),
    /// The lease has ended some time ago, and nobody renewed it.
    Late,
    Dead,
}

fn report(words: &str) {
    let _ = writeln!(io::stderr(), "duravip guard: {words}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn a_guard_that_does_not_listen_is_ended_before_it_can_misunderstand() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let memory = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        let mut guard = Guard { child, socket: ours, memory, fenced: true, words: Vec::new() };
        let place: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let words = || vec![(place, vec![7; 60_000])];
        // Until the socket holds no more.
        let told = (0..100).take_while(|_| guard.tell(&ToGuard::LastWords(words())).is_ok()).count();
        assert!(told < 100, "a socket without an end");
        assert_eq!(guard.child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
