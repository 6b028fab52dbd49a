//! The command line of `ecconfigd`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use cluster::command_line::{self, Failure};
use cluster::control;
use cluster::documents::schema::values::HostPort;
use cluster::documents::{Findings, LocalError};
use cluster::error::Chain;
use cluster::http_client::{ClientError, ServerUrl};
use cluster::identity::{IdentityError, JoinToken};
use cluster::shutdown::{Reason, Shutdown};
use cluster::telemetry::{self, TelemetryOptions};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::init::{self, InitError};
use crate::join::{self, JoinError};
use crate::server::{self, Reread, Server, StartError};

/// How often a server that a full disk has stopped looks for room.
const ROOM_CHECK: Duration = Duration::from_secs(1);
/// How long it tries to start again in the same process, and how often.
const RESTART_TIME: Duration = Duration::from_secs(30);
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// The configuration server: git repositories, JSON API and watch streams for a cluster of nodes.
#[derive(Debug, Parser)]
#[command(
    name = "ecconfigd",
    bin_name = "ecconfigd",
    version,
    infer_long_args = true,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 conflict."
)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
    Join(Join),
    Run(Run),
}

/// Make a new cluster of one node.
///
/// Writes the cluster's certificate authority, the node's identity, the password of the first user (admin) and the repositories
/// `default` (or the subcluster that is named) and `global` below the data directory. An init that was interrupted can be repeated.
#[derive(Debug, Args)]
struct Init {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// This node's name: one lower-case word
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    listen: HostPort,
    /// Where others reach this server, when not where it listens
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,
    /// The subcluster this node belongs to
    #[arg(long, value_name = "NAME", default_value = "default")]
    subcluster: String,
    /// The cluster's name, for people
    #[arg(long, value_name = "NAME", default_value = "eccluster")]
    cluster_name: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Become a member of a cluster that exists.
///
/// Exchanges a token of `eccfg node token` for a certificate. The token leaves this machine only after the server has proved to belong
/// to the cluster that made it. Then `ecconfigd run` is all it takes: the node learns everything first, and votes when it has caught up.
/// A join that was interrupted can be repeated with the same token.
#[derive(Debug, Args)]
struct Join {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// This node's name: one lower-case word
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    listen: HostPort,
    /// Where others reach this server, when not where it listens
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,
    /// A server of the cluster; repeat it for more
    #[arg(long, value_name = "URL", required = true)]
    server: Vec<ServerUrl>,
    /// The one-time token of `eccfg node token`
    #[arg(long, value_name = "TOKEN")]
    token: JoinToken,
    /// Hold everything, but never vote
    #[arg(long)]
    learner: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Run the server until it is told to stop.
///
/// SIGTERM and SIGINT drain and end it. Sockets that were opened before (LISTEN_FDS, as systemd does it) are served besides the
/// addresses in `ecconfigd.toml`.
#[derive(Debug, Args)]
struct Run {
    /// The data directory that init or join made
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where to listen, instead of where ecconfigd.toml says; repeat it for more
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<HostPort>,
    /// Where another server is now, when all have moved at once; repeat it for more. The cluster remembers the new place
    #[arg(long, value_name = "NODE=HOST:PORT", value_parser = peer)]
    peer: Vec<(String, HostPort)>,
    /// A file that gets one line per address once the server listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

/// A node and where it is.
fn peer(text: &str) -> Result<(String, HostPort), String> {
    let (node, address) = text.split_once('=').ok_or("it is NODE=HOST:PORT")?;
    cluster::identity::check_node_name(node).map_err(|error| error.to_string())?;
    Ok((node.to_owned(), address.parse().map_err(|error| format!("{address}: {error}"))?))
}

/// Runs `ecconfigd` as a program. `args` are what follows the program's name; the name itself in front does no harm.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let named = args.first().is_some_and(|first| Path::new(first).file_name().is_some_and(|name| name == "ecconfigd"));
    if !named {
        args.insert(0, "ecconfigd".into());
    }
    command_line::main(args, dispatch)
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    telemetry::init(&cli.telemetry).map_err(|error| Failure::new(Chain(&error).to_string()).usage())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    match cli.command {
        Command::Init(options) => runtime.block_on(run_init(options)),
        Command::Join(options) => runtime.block_on(run_join(options)),
        Command::Run(options) => runtime.block_on(run(options, &cli.telemetry.log)),
    }
}

async fn run_init(options: Init) -> Result<(), Failure> {
    let root = nix::unistd::geteuid().is_root();
    let wanted = init::Options {
        data: options.data,
        node: options.node,
        listen: options.listen,
        advertise: options.advertise,
        subcluster: options.subcluster,
        cluster: options.cluster_name,
        link: root.then(|| cluster::identity::DEFAULT_DIR.into()),
    };
    let report = init::init(&wanted).await.map_err(init_failure)?;
    if options.json {
        print(&serde_json::to_string(&report).map_err(|error| Failure::new(error.to_string()))?);
    } else {
        print(&format!(
            "Made cluster {} with node {}\n  server:   {}\n  CA:       {}\n  user:     {}\n  password: in {}",
            report.cluster,
            report.node,
            report.url,
            report.ca.display(),
            init::ADMIN,
            report.admin_password_file.display(),
        ));
    }
    Ok(())
}

fn init_failure(error: InitError) -> Failure {
    let words = Chain(&error).to_string();
    match error {
        InitError::Done { data } => Failure::new(words).conflict().hint(format!(
            "ecconfigd run --data {} starts it; another cluster needs another directory",
            data.display()
        )),
        InitError::Name(_) => Failure::new(words).usage(),
        InitError::Lock(_) => Failure::new(words).conflict(),
        _ => Failure::new(words).hint("repeat the command once the cause is gone; it goes on where it stopped"),
    }
}

async fn run_join(options: Join) -> Result<(), Failure> {
    let root = nix::unistd::geteuid().is_root();
    let wanted = join::Options {
        data: options.data,
        node: options.node,
        listen: options.listen,
        advertise: options.advertise,
        servers: options.server,
        token: options.token,
        learner: options.learner,
        link: root.then(|| cluster::identity::DEFAULT_DIR.into()),
    };
    let report = join::join(&wanted).await.map_err(join_failure)?;
    if options.json {
        print(&serde_json::to_string(&report).map_err(|error| Failure::new(error.to_string()))?);
    } else {
        print(&format!(
            "Joined cluster {} as node {} of subcluster {}\n  server:   {}\n  CA:       {}\n  SHA-256:  {}",
            report.cluster,
            report.node,
            report.subcluster,
            report.url,
            report.ca.display(),
            report.ca_fingerprint,
        ));
    }
    Ok(())
}

fn join_failure(error: JoinError) -> Failure {
    let words = Chain(&error).to_string();
    match error {
        JoinError::Done { data } => Failure::new(words).conflict().hint(format!(
            "ecconfigd run --data {} starts it; another cluster needs another directory",
            data.display()
        )),
        JoinError::Name(_) => Failure::new(words).usage(),
        JoinError::Lock(_) => Failure::new(words).conflict(),
        JoinError::Request(ClientError::Api(_)) => Failure::new(words)
            .hint("eccfg node token makes a fresh token, eccfg node replace one for a name that is taken"),
        _ => Failure::new(words).hint("repeat the command once the cause is gone; it goes on where it stopped"),
    }
}

async fn run(options: Run, log: &str) -> Result<(), Failure> {
    raise_file_limit();
    give_large_blocks_back();
    let failed = |words: String| Failure::new(words);
    let shutdown = Shutdown::on_signals().map_err(|error| failed(format!("cannot wait for signals: {error}")))?;
    let inherited = cluster::listen::inherited().map_err(|error| failed(format!("inherited sockets: {error}")))?;
    // From before the file is read for the first time: who changes it while the server starts is heard, too.
    let mut reloads = shutdown.reloads();
    let mut restarting: Option<Instant> = None;
    loop {
        // Copies, so that the sockets live on when the server has to be started anew.
        let sockets: std::io::Result<Vec<_>> = inherited.iter().map(std::net::TcpListener::try_clone).collect();
        let sockets = sockets.map_err(|error| failed(format!("inherited sockets: {error}")))?;
        let listen = options.listen.clone();
        let peers = options.peer.iter().map(|(node, address)| (node.clone(), address.to_string())).collect();
        let wanted = server::Options { data: options.data.clone(), listen, peers, inherited: sockets, settings: None };
        let server = match Server::start(wanted).await {
            Ok(server) => server,
            Err(error) if error.is_for_want_of_room() && !server::has_room(&options.data).await => {
                tracing::error!(error = %Chain(&error), "the disk is full: the server starts when there is room");
                if wait_for_room(&options.data, &shutdown).await { continue } else { return Ok(()) }
            }
            // What the last run was still reading when its time was up may hold the state open for a moment.
            Err(error) if restarting.is_some_and(|since| since.elapsed() < RESTART_TIME) => {
                tracing::warn!(error = %Chain(&error), "the server does not start again yet");
                tokio::time::sleep(RESTART_PAUSE).await;
                continue;
            }
            Err(error) => return Err(start_failure(error)),
        };
        if let Some(path) = &options.port_file {
            let lines: String = server.addresses().iter().map(|address| format!("{address}\n")).collect();
            let written = cluster::files::write_atomic(path, lines.as_bytes(), 0o644);
            written.map_err(|error| failed(Chain(&error).to_string()))?;
        }
        let control = serve_control(&server, &shutdown);
        use_filter(&server, log);
        let (mut failure, mut again) = (None, false);
        tokio::select! {
            () = reread_when_told(&server, &mut reloads, log) => {}
            reason = shutdown.requested() => tracing::info!(%reason, "stopping"),
            why = server.failed() => match why {
                server::Failure::ForGood(why) => failure = Some(why),
                // Until then it answers what it has.
                server::Failure::OutOfRoom(_) => again = wait_for_room(&options.data, &shutdown).await,
            },
        }
        tokio::select! {
            _ = server.shutdown() => {}
            // A second signal: whoever presses Ctrl-C twice means it.
            () = hurried(&shutdown) => again = false,
        }
        if let Some((stop, task)) = control {
            stop.cancel();
            let _ = task.await;
        }
        match failure {
            None if again => {
                tracing::info!("there is room on the disk again: starting anew");
                restarting = Some(Instant::now());
            }
            None => return Ok(()),
            Some(why) => {
                shutdown.trigger(Reason::Asked);
                return Err(Failure::new(why));
            }
        }
    }
}

/// Reads `ecconfigd.toml` again at every SIGHUP, for as long as the server runs.
async fn reread_when_told(server: &Server, reloads: &mut watch::Receiver<u64>, log: &str) {
    while reloads.changed().await.is_ok() {
        match server.reread() {
            Ok(Reread { changed, at_start }) => {
                use_filter(server, log);
                tracing::info!(?changed, "read ecconfigd.toml again");
                if !at_start.is_empty() {
                    tracing::warn!(keys = ?at_start, "what ecconfigd.toml says about these counts from the next start");
                }
            }
            Err(error) => tracing::error!(error = %Chain(&error), "ecconfigd.toml is wrong; everything stays as it is"),
        }
    }
    std::future::pending().await
}

/// Logs as `ecconfigd.toml` says, else as the command line did.
fn use_filter(server: &Server, log: &str) {
    if let Err(error) = telemetry::set_filter(server.log().as_deref().unwrap_or(log)) {
        tracing::error!(error = %Chain(&error), "the log stays as it is");
    }
}

/// Waits until there is room to begin again; false when the program shall end before.
async fn wait_for_room(data: &Path, shutdown: &Shutdown) -> bool {
    while !server::has_room(data).await {
        tokio::select! {
            _ = shutdown.requested() => return false,
            () = tokio::time::sleep(ROOM_CHECK) => {}
        }
    }
    true
}

async fn hurried(shutdown: &Shutdown) {
    shutdown.hurried().await;
    tracing::warn!("told to hurry: not waiting any longer");
}

fn start_failure(error: StartError) -> Failure {
    let words = Chain(&error).to_string();
    match error {
        StartError::NoCluster { .. } => {
            Failure::new(words).hint("ecconfigd init makes a cluster there, ecconfigd join makes it part of one")
        }
        StartError::Lock(_) => Failure::new(words).conflict(),
        StartError::Identity(IdentityError::Missing { .. }) => Failure::new(words)
            .hint("the cluster's state is here, the node's key is not: put DIR/identity back from a backup"),
        StartError::Core(Error::Internal(why)) => Failure::new(format!("the replicated state cannot be opened: {why}")),
        StartError::Config(LocalError::Refused(findings)) => refused(&findings),
        _ => Failure::new(words),
    }
}

/// What is wrong with a file, one line each; the first hint has a line of its own.
fn refused(findings: &Findings) -> Failure {
    let mut findings: Vec<_> = findings.iter().cloned().collect();
    let hint = findings.first_mut().and_then(|first| first.hint.take());
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Failure { hint, ..Failure::new(lines.join("\n")) }
}

/// Every watcher is a file descriptor; the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The working memory of a password check goes back to the kernel when it is freed. The C library would raise its own bound after the first
/// such block, and keep all later ones for itself.
fn give_large_blocks_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)] // Neither nix nor the standard library has this call; it takes plain numbers.
    // SAFETY: it changes a setting of the allocator and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// The control socket, and how to end it. Without one the server serves all the same: several may run on a machine.
fn serve_control(server: &Server, shutdown: &Shutdown) -> Option<(CancellationToken, JoinHandle<()>)> {
    let app = server.app().clone();
    let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
    let router = control::Router::new().command("status", "addresses, leader and readiness", move |_, _| {
        let group = app.core.group();
        let status = json!({
            "node": app.core.node_name().as_str(),
            "cluster": app.cluster(),
            "addresses": addresses,
            "leader": group.leader,
            "term": group.term,
            "applied": group.applied,
            "readiness": format!("{:?}", app.core.readiness()),
        });
        async move { Ok(status) }
    });
    let options = control::ServerOptions::new("ecconfigd", server.app().core.node_name().as_str());
    match control::Server::bind(&options) {
        Ok(socket) => {
            let stop = shutdown.token().child_token();
            let task = shutdown.spawn(socket.serve(router, stop.clone()));
            Some((stop, task))
        }
        Err(error) => {
            tracing::info!(error = %Chain(&error), "no control socket");
            None
        }
    }
}

fn print(text: &str) {
    // A reader that went away is no failure of what was done.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
