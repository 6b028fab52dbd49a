//! Starting a node's programs where they belong: in the node's own network namespace, with the sockets that the host must
//! reach already open, and bound to the life of `eccluster up`.
//!
//! A namespace can only be entered by a process with one thread, so each program is started through this same binary
//! (`eccluster up-launch`), which enters the namespace, hands the sockets on in the way of systemd (`LISTEN_FDS`) and
//! then becomes the program. The namespace itself is kept by a process that only sleeps (`--hold`), so that any program
//! of the node can end and start again without the network of the others going away. One more such process keeps the
//! namespace with the bridge that the nodes are wired through (`--hold` alone; a node's has `--wired-to` it).

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

use super::wires;

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
    /// With --hold: be a node of this number, with a cable to the bridge that this process holds
    #[arg(long, value_names = ["PID", "NUMBER"], num_args = 2)]
    wired_to: Vec<i32>,
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
        hold(options).map(|never| match never {})
    } else {
        launch(options).map(|never| match never {})
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Makes the namespace, prints `ready`, and sleeps until a signal or the end of the parent.
fn hold(options: &Options) -> anyhow::Result<Infallible> {
    end_with(options.parent)?;
    match options.wired_to[..] {
        [bridge, number] => hold_node(bridge, number.try_into().context("a node's number")?)?,
        _ => hold_bridge()?,
    }
    writeln!(io::stdout(), "ready")?;
    io::stdout().flush()?;
    loop {
        nix::unistd::pause();
    }
}

fn hold_bridge() -> anyhow::Result<()> {
    new_network().context("cannot make a network namespace")?;
    wires::make_bridge().context("cannot make a bridge in a new network namespace")
}

/// The node's namespace belongs to the same user namespace as the bridge's, or nobody could plug a cable into both.
fn hold_node(bridge: i32, number: u8) -> anyhow::Result<()> {
    let of_bridge = File::open(format!("/proc/{bridge}/ns/net")).context("cannot find the bridge")?;
    if !Uid::effective().is_root() {
        join_user(bridge)?;
    }
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let own = File::open("/proc/self/ns/net").context("cannot open the new network namespace")?;
    wires::loopback_up().context("cannot bring up the loopback interface of a new network namespace")?;
    let enter = |namespace: &File| setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET);
    enter(&of_bridge).context("cannot enter the bridge's network namespace")?;
    wires::plug_in(number, own.as_fd()).context("cannot plug a cable into the bridge")?;
    enter(&own).context("cannot return to the new network namespace")?;
    wires::take_address(number).context("cannot give the node its address")
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
    let path = format!("/proc/{holder}/ns/net");
    let network = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    if !Uid::effective().is_root() {
        join_user(holder)?;
    }
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the node's network namespace")
}

fn join_user(holder: i32) -> anyhow::Result<()> {
    let path = format!("/proc/{holder}/ns/user");
    let user = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(user.as_fd(), CloneFlags::CLONE_NEWUSER).context("cannot enter the nodes' user namespace")
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
