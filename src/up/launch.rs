//! Starting a node's programs where they belong: in the node's own network namespace, with the sockets that the host must
//! reach already open, and bound to the life of `eccluster up`.
//!
//! A namespace can only be entered by a process with one thread, so each program is started through this same binary
//! (`eccluster up-launch`), which enters the namespace, hands the sockets on in the way of systemd (`LISTEN_FDS`) and
//! then becomes the program. The namespace itself is kept by a process that only sleeps (`--hold`), so that any program
//! of the node can end and start again without the network of the others going away.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, getgid, getpid, getuid};

/// What systemd calls the first inherited socket (sd_listen_fds(3)).
const FIRST_LISTEN_FD: RawFd = 3;

/// Internal: start a program of a node in the node's network
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The process id of `eccluster up`, with which the program ends
    #[arg(long, value_name = "PID")]
    parent: i32,
    /// Make a network namespace, say so on standard output, and keep it until `eccluster up` ends
    #[arg(long)]
    hold: bool,
    /// Enter the network namespace that this process holds
    #[arg(long, value_name = "PID")]
    join: Option<i32>,
    /// An inherited listening socket to hand on
    #[arg(long, value_name = "FD")]
    listen_fd: Vec<RawFd>,
    /// The program and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Runs the step; it returns only when it failed or when the held namespace is no longer wanted.
pub(crate) fn main(options: &Options) -> ExitCode {
    let outcome = if options.hold {
        hold(options.parent).map(|()| ExitCode::SUCCESS)
    } else {
        launch(options).map(|never| match never {})
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Makes the namespace, prints `ready`, and sleeps until a signal or the end of the parent.
fn hold(parent: i32) -> anyhow::Result<()> {
    end_with(parent)?;
    new_network().context("cannot make a network namespace")?;
    loopback_up().context("cannot bring up the loopback interface of a new network namespace")?;
    writeln!(io::stdout(), "ready")?;
    io::stdout().flush()?;
    loop {
        nix::unistd::pause();
    }
}

fn launch(options: &Options) -> anyhow::Result<Infallible> {
    let Some((program, arguments)) = options.command.split_first() else { bail!("no program named") };
    end_with(options.parent)?;
    if let Some(holder) = options.join {
        join_network(holder)?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if !options.listen_fd.is_empty() {
        place_sockets(&options.listen_fd)?;
        command.env("LISTEN_FDS", options.listen_fd.len().to_string()).env("LISTEN_PID", getpid().to_string());
    }
    Err(command.exec()).with_context(|| format!("cannot start {}", program.display()))
}

/// A program must not outlive `eccluster up`, however that ends.
fn end_with(parent: i32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask for a signal at the parent's death")?;
    // The parent may have gone before the request stood.
    anyhow::ensure!(nix::unistd::getppid().as_raw() == parent, "eccluster up has ended");
    Ok(())
}

/// Root makes a network namespace as it is; others get one inside a user namespace in which they are root.
fn new_network() -> anyhow::Result<()> {
    if Uid::effective().is_root() {
        return Ok(unshare(CloneFlags::CLONE_NEWNET)?);
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(())
}

fn join_network(holder: i32) -> anyhow::Result<()> {
    let open = |kind: &str| {
        let path = format!("/proc/{holder}/ns/{kind}");
        File::open(&path).with_context(|| format!("cannot open {path}"))
    };
    let network = open("net")?;
    if !Uid::effective().is_root() {
        setns(open("user")?.as_fd(), CloneFlags::CLONE_NEWUSER).context("cannot enter the node's user namespace")?;
    }
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the node's network namespace")
}

/// Moves the sockets to 3, 4, … , which is where LISTEN_FDS promises them, and lets them survive the exec.
#[expect(
    unsafe_code,
    reason = "dup2 onto a fixed number is what the LISTEN_FDS protocol asks for; this process has one thread"
)]
fn place_sockets(sockets: &[RawFd]) -> anyhow::Result<()> {
    for (wanted, &socket) in (FIRST_LISTEN_FD..).zip(sockets) {
        anyhow::ensure!(socket >= wanted, "socket {socket} stands where {wanted} must go");
        // SAFETY: both are plain descriptor numbers that nothing in this process owns; dup2 checks `socket` itself.
        let done = if socket == wanted {
            unsafe { libc::fcntl(socket, libc::F_SETFD, 0) }
        } else {
            unsafe { libc::dup2(socket, wanted) }
        };
        if done < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot hand on the inherited socket {socket}"));
        }
    }
    Ok(())
}

/// A new network namespace starts with its loopback interface down.
#[expect(unsafe_code, reason = "interface flags are set by ioctl; netlink would be a dependency for one flag")]
fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain old data for which all zeroes is a value (netdevice(7)).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: the kernel reads one ifreq from the pointer, which is valid for the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
