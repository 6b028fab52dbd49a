//! The processes of one node: its server, its agent and the agent's web service, started, watched and ended.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::layout::{Layout, Ports, SERVER_PORT, Sockets, node_name};
use super::wires;

/// How long a process may take to end by itself after SIGTERM before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// The node that makes the cluster.
const FIRST: &str = "n1";
/// How long a node may take to join; the first one has to serve before.
const JOIN_DEADLINE: Duration = Duration::from_secs(120);
/// How long to wait before a join is tried again.
const JOIN_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait before a process that ended unasked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Whether nodes get network namespaces of their own, and the reason to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// A namespace for each node.
    Own(&'static str),
    /// Ports on the host's loopback address.
    Host(String),
}

/// What this machine lets the nodes have.
pub(crate) struct Means {
    pub(crate) network: Network,
    /// The process that keeps the bridge between the nodes' namespaces.
    pub(crate) bridge: Option<Child>,
    /// Why the agent cannot run checks here (they need a private mount namespace).
    pub(crate) no_checks: Option<String>,
}

/// What a node needs to know to start its programs.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ports: Ports,
    dir: PathBuf,
    data: PathBuf,
    exe: PathBuf,
    sockets: Sockets,
    holder: Option<Child>,
    /// Where the other nodes reach its server.
    place: SocketAddr,
    /// All servers of the cluster as the host reaches them, the node's own first.
    servers: Vec<SocketAddr>,
    /// The same as the nodes reach them.
    places: Vec<SocketAddr>,
    /// Where the first node keeps what proves an administrator and a cluster.
    first: PathBuf,
    /// True once the node belongs to the cluster: what needs its identity waits for that.
    member: watch::Sender<bool>,
}

/// A running program of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Agent,
    Web,
}

impl Role {
    pub(crate) const ALL: [Role; 3] = [Role::Server, Role::Web, Role::Agent];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Server => "ecconfigd",
            Role::Agent => "agent",
            Role::Web => "web",
        }
    }
}

/// What happened to a program.
pub(crate) enum Event {
    /// It runs under this process id.
    Started(Role, u32),
    /// It ended unasked, in these words, and will be started again.
    Ended(Role, String),
    /// It could not be started at all.
    Failed(Role, anyhow::Error),
}

impl Node {
    /// Opens the node's namespace, and sets up its data directory when this is its first run.
    pub(crate) async fn prepare(
        layout: &Layout,
        number: u8,
        (ports, sockets): (Ports, Sockets),
        servers: &[SocketAddr],
        means: &Means,
    ) -> anyhow::Result<Node> {
        let name = node_name(number);
        let dir = layout.node(&name);
        std::fs::create_dir_all(dir.join("run")).with_context(|| format!("cannot make {}", dir.display()))?;
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let holder = match means.bridge.as_ref().and_then(Child::id) {
            Some(bridge) => Some(hold_network(&exe, Some((bridge, number))).await?),
            None => None,
        };
        let places: Vec<SocketAddr> = match holder {
            Some(_) => (1..).take(servers.len()).map(|number| (wires::address(number), SERVER_PORT).into()).collect(),
            None => servers.to_vec(),
        };
        let mine = usize::from(number) - 1;
        let first_is_mine = |all: &[SocketAddr]| {
            let mut all = all.to_vec();
            all[..=mine].rotate_right(1);
            all
        };
        let (place, data, first) = (places[mine], layout.data(&name), layout.data(FIRST));
        let (servers, places) = (first_is_mine(servers), first_is_mine(&places));
        let member = watch::Sender::new(data.join("ecconfigd.toml").exists());
        let node = Node { name, ports, data, dir, exe, sockets, holder, place, servers, places, first, member };
        if node.name == FIRST {
            node.init().await?;
            node.member.send_replace(true);
        }
        node.write_agent_files(means.no_checks.is_none())?;
        Ok(node)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.ports.server_address()
    }

    pub(crate) fn web_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.web))
    }

    /// Runs a program until `stop` closes; whenever it ends before that, it is started again.
    pub(crate) async fn supervise(&self, role: Role, events: mpsc::Sender<Event>, mut stop: watch::Receiver<bool>) {
        let joined = tokio::select! {
            joined = self.belong(role) => joined,
            _ = stop.changed() => return,
        };
        if let Err(error) = joined {
            let _ = events.send(Event::Failed(role, error)).await;
            return;
        }
        while !*stop.borrow() {
            let mut child = match self.start(role) {
                Ok(child) => child,
                Err(error) => {
                    let _ = events.send(Event::Failed(role, error)).await;
                    return;
                }
            };
            let _ = events.send(Event::Started(role, child.id().unwrap_or_default())).await;
            tokio::select! {
                status = child.wait() => {
                    let words = status.map_or_else(|cause| cause.to_string(), |status| status.to_string());
                    let _ = events.send(Event::Ended(role, words)).await;
                    let _ = tokio::time::timeout(RESTART_PAUSE, stop.changed()).await;
                }
                _ = stop.changed() => end(&mut child).await,
            }
        }
    }

    /// Lets the namespace go, once the node's programs have ended.
    pub(crate) async fn close(mut self) {
        if let Some(holder) = &mut self.holder {
            let _ = holder.kill().await;
        }
    }

    async fn init(&self) -> anyhow::Result<()> {
        // The admin password is the last thing that init writes for people; without it, init is finished first.
        if self.data.join("admin-password").exists() {
            return Ok(());
        }
        let place = self.place.to_string();
        let mut init = self.tool(&["ecconfigd", "init", "--node", &self.name, "--listen", &place]);
        self.run(init.args(["--advertise", &place, "--data"]).arg(&self.data))
            .await
            .with_context(|| format!("ecconfigd init of {}", self.name))?;
        Ok(())
    }

    /// Waits until the node belongs to the cluster; its server is what makes it so.
    async fn belong(&self, role: Role) -> anyhow::Result<()> {
        let mut member = self.member.subscribe();
        if role == Role::Server && !*member.borrow() {
            self.join().await.with_context(|| format!("{} could not join the cluster", self.name))?;
            self.member.send_replace(true);
        }
        member.wait_for(|member| *member).await?;
        Ok(())
    }

    /// Joins as on any other machine: with a one-time token that an administrator makes.
    async fn join(&self) -> anyhow::Result<()> {
        let (others, kept) = (urls(&self.servers[1..]), self.dir.join("join-token"));
        // A join that was interrupted goes on with the token that it began with.
        if !kept.exists() {
            let mut token = self.tool(&["eccfg", "node", "token", "--username", "admin", "--password-file"]);
            token.arg(self.first.join("admin-password")).arg("--ca").arg(self.first.join("ca.pem"));
            token.args(server_options(&others));
            let said = self.run_until_served(&mut token).await?;
            cluster::files::write_atomic(&kept, &said, 0o600)?;
        }
        let token = std::fs::read_to_string(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
        let place = self.place.to_string();
        let mut join = self.tool(&["ecconfigd", "join", "--node", &self.name, "--listen", &place]);
        join.args(["--advertise", &place, "--token", token.trim()]);
        join.args(server_options(&others));
        self.run_until_served(join.arg("--data").arg(&self.data)).await?;
        // What is left is used up, and the node does not read it again.
        let _ = std::fs::remove_file(&kept);
        Ok(())
    }

    /// Runs a command that needs a server until there is one, for as long as that may take.
    async fn run_until_served(&self, command: &mut Command) -> anyhow::Result<Vec<u8>> {
        let begun = tokio::time::Instant::now();
        loop {
            match self.run(command).await {
                Err(_) if begun.elapsed() < JOIN_DEADLINE => tokio::time::sleep(JOIN_PAUSE).await,
                done => return done,
            }
        }
    }

    /// This binary as one of its programs, with nothing of the caller's own cluster.
    fn tool(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(words).env("ECCLUSTER_RUN", self.dir.join("run")).stdin(Stdio::null());
        for name in ["ECCFG_SERVER", "ECCFG_CA", "ECCFG_USERNAME", "ECCFG_PASSWORD", "ECCFG_TOKEN", "ECCFG_WC"] {
            command.env_remove(name);
        }
        command
    }

    /// What a command said, if it succeeded.
    async fn run(&self, command: &mut Command) -> anyhow::Result<Vec<u8>> {
        let output = command.kill_on_drop(true).output().await?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(output.stdout)
    }

    fn start(&self, role: Role) -> anyhow::Result<Child> {
        let log = self.dir.join(format!("{}.log", role.name()));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut command = Command::new(&self.exe);
        command.arg("up-launch").arg("--parent").arg(std::process::id().to_string());
        if let Some(holder) = self.holder.as_ref().and_then(Child::id) {
            command.arg("--join").arg(holder.to_string());
        }
        // Held until the child has been spawned: an inheritable copy of the socket that this role serves.
        let socket = self.inheritable(role)?;
        if let Some(socket) = &socket {
            command.arg("--listen-fd").arg(socket.as_raw_fd().to_string());
        }
        command.arg("--").arg(&self.exe).args(self.arguments(role));
        command.env("ECCLUSTER_RUN", self.dir.join("run")).env_remove("ECCFG_PASSWORD").env_remove("ECCFG_TOKEN");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot start {} of {}", role.name(), self.name))
    }

    /// `dup` gives a copy without close-on-exec, which only the child started next inherits.
    fn inheritable(&self, role: Role) -> anyhow::Result<Option<std::os::fd::OwnedFd>> {
        let socket = match role {
            Role::Server => &self.sockets.server,
            Role::Web => &self.sockets.web,
            Role::Agent => return Ok(None),
        };
        Ok(Some(nix::unistd::dup(socket).context("cannot copy a listening socket")?))
    }

    fn arguments(&self, role: Role) -> Vec<OsString> {
        let listen = self.web_address().to_string();
        let path = |name: &str| self.dir.join(name).into_os_string();
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        match role {
            Role::Server => [words(&["ecconfigd", "run", "--data"]), vec![self.data.clone().into()]].concat(),
            Role::Web => {
                [words(&["up-web", "serve", "--node", &self.name, "--listen", &listen, "--wc"]), vec![path("conf")]]
                    .concat()
            }
            Role::Agent => {
                let mut all = words(&["eccfg", "agent", "--node", &self.name]);
                all.extend(server_options(&urls(&self.places)).map(OsString::from));
                for (option, value) in [
                    ("--wc", path("conf")),
                    ("--config", path("etc")),
                    ("--data", path("agent")),
                    ("--identity", self.data.join("identity").into()),
                ] {
                    all.extend([OsString::from(option), value]);
                }
                all
            }
        }
    }

    /// `agent.toml` ties the files of the web service to its check, reload and verify; it is written anew at each run, because
    /// it names this binary. Where checks cannot be isolated every one would fail, and nothing would ever be put in place;
    /// without them a bad document fails at `reload` and is taken back.
    fn write_agent_files(&self, checks: bool) -> anyhow::Result<()> {
        let etc = self.dir.join("etc");
        std::fs::create_dir_all(&etc).with_context(|| format!("cannot make {}", etc.display()))?;
        let command = |verb: &str, more: &[&OsStr]| -> toml::Value {
            let words = [self.exe.as_os_str(), "up-web".as_ref(), verb.as_ref()];
            words.iter().chain(more).map(|word| toml::Value::from(&*word.to_string_lossy())).collect::<Vec<_>>().into()
        };
        let conf = self.dir.join("conf");
        let wc: [&OsStr; 4] = ["--node".as_ref(), self.name.as_ref(), "--wc".as_ref(), conf.as_ref()];
        let mut service = toml::Table::new();
        service.insert("name".into(), "web".into());
        let globs = ["default/web/**".to_owned(), "global/web/**".to_owned(), format!("{}/web/**", self.name)];
        service.insert("paths".into(), toml::Value::from(globs.to_vec()));
        if checks {
            service.insert("check".into(), command("check", &wc));
        }
        service.insert("reload".into(), command("reload", &[]));
        service.insert("verify".into(), command("verify", &[]));
        service.insert("timeout".into(), "10s".into());
        let mut document = toml::Table::new();
        document.insert("service".into(), vec![toml::Value::Table(service)].into());
        cluster::files::write_atomic(&etc.join("agent.toml"), toml::to_string(&document)?.as_bytes(), 0o600)?;
        Ok(())
    }
}

fn urls(servers: &[SocketAddr]) -> Vec<String> {
    servers.iter().map(|server| format!("https://{server}")).collect()
}

/// `--server URL` for each.
fn server_options(urls: &[String]) -> impl Iterator<Item = &str> {
    urls.iter().flat_map(|url| ["--server", url.as_str()])
}

/// Finds out what this machine allows, by trying it, and makes the bridge where it may. A cluster goes on as it was made: its nodes know each
/// other by their addresses.
pub(crate) async fn means(layout: &Layout) -> anyhow::Result<Means> {
    let wired = layout.remembered_wires()?;
    let (network, bridge) = match wired {
        Some(false) => (Network::Host("as this cluster was made".into()), None),
        _ => match bridge().await {
            Ok(bridge) => (Network::Own(own_because()), Some(bridge)),
            Err(error) if wired.is_some() => bail!(
                "the nodes of this cluster reach each other through network namespaces, which cannot be had now: {error:#}\n\
                 hint: run it as it was run before, or name another directory with --dir"
            ),
            Err(error) => (Network::Host(format!("{error:#}")), None),
        },
    };
    Ok(Means { network, bridge, no_checks: try_check(layout.dir()).await.err().map(|error| format!("{error:#}")) })
}

impl Means {
    /// Lets the bridge go, once the nodes have.
    pub(crate) async fn close(mut self) {
        if let Some(bridge) = &mut self.bridge {
            let _ = bridge.kill().await;
        }
    }
}

fn own_because() -> &'static str {
    if nix::unistd::Uid::effective().is_root() { "running as root" } else { "user namespaces are allowed" }
}

/// Runs a check that does nothing, the way the agent runs its checks.
async fn try_check(dir: &Path) -> anyhow::Result<()> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(&exe);
    command.args(["eccfg", "agent-isolate", "--staged"]).arg(dir).arg("--over").arg(dir).arg("--");
    let output = command.arg(&exe).arg("--version").stdin(Stdio::null()).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    bail!("{}", words.lines().next().unwrap_or_default().trim_start_matches("error: "))
}

/// Makes the bridge, and finds out whether a node can be wired to it, by wiring one that nobody has.
async fn bridge() -> anyhow::Result<Child> {
    let exe = std::env::current_exe().context("this program's own file cannot be found")?;
    let bridge = hold_network(&exe, None).await?;
    let number = bridge.id().context("the process that holds the bridge has ended")?;
    let mut tried = hold_network(&exe, Some((number, u8::MAX))).await?;
    let _ = tried.kill().await;
    Ok(bridge)
}

/// Starts the process that keeps a namespace (the bridge's, or that of a node wired to it), and waits until it says that it is there.
async fn hold_network(exe: &Path, wired_to: Option<(u32, u8)>) -> anyhow::Result<Child> {
    let mut command = Command::new(exe);
    command.args(["up-launch", "--hold", "--parent"]).arg(std::process::id().to_string());
    if let Some((bridge, number)) = wired_to {
        command.arg("--wired-to").args([bridge.to_string(), number.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut holder = command.spawn().context("cannot start the process that holds a network namespace")?;
    let mut said = String::new();
    if let Some(output) = holder.stdout.take() {
        BufReader::new(output).read_line(&mut said).await?;
    }
    if said.trim_end() == "ready" {
        return Ok(holder);
    }
    let output = holder.wait_with_output().await?;
    bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: "))
}

/// Asks a program to end, and kills it when it does not.
async fn end(child: &mut Child) {
    let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    if tokio::time::timeout(END_DEADLINE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
