//! What the whole-cluster tests stand on: real processes of the real binary, each in a directory of its own.
//!
//! A server's listening socket is opened here and handed over (`LISTEN_FDS`), so that a test knows the port without a race
//! and a restarted server is found at the same address. Nothing sleeps to let something happen: [`eventually`] waits for a
//! condition, with a deadline that is only there to end a hopeless wait.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::print_stderr, missing_docs)]

pub mod transcript;
mod wait;

use std::fmt::Debug;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use cluster::api::{ChangeRequest, CommitRequest, CommitResponse, Head, NodeInfo, NodeReport, ReportState};
use cluster::http_client::{ApiClient, ClientError, Credentials};
use tempfile::TempDir;

pub use wait::{DEADLINE, ECCLUSTER, eventually};

/// A cluster of one node.
pub struct Server {
    pub dir: TempDir,
    pub runtime: tokio::runtime::Runtime,
    socket: TcpListener,
    child: Option<Child>,
}

impl Server {
    /// A new cluster whose server is ready.
    pub fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut server = Server { dir, runtime, socket, child: None };
        let address = server.address().to_string();
        let output = eccluster(server.dir.path())
            .args(["ecconfigd", "init", "--node", "n1", "--listen", "127.0.0.1:0", "--advertise", &address, "--data"])
            .arg(server.data())
            .output()
            .unwrap();
        assert_success(&output);
        server.run();
        server
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    pub fn ca(&self) -> PathBuf {
        self.data().join("ca.pem")
    }

    pub fn password_file(&self) -> PathBuf {
        self.data().join("admin-password")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Starts the server (again) and waits until it is ready.
    pub fn run(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the server without waiting.
    pub fn spawn(&mut self) {
        // A copy without close-on-exec, for the child alone; it is gone again once the child has been started.
        let socket = nix::unistd::dup(&self.socket).unwrap();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("ecconfigd.log")).unwrap();
        let child = eccluster(self.dir.path())
            .args([
                "up-launch",
                "--parent",
                &std::process::id().to_string(),
                "--listen-fd",
                &socket.as_raw_fd().to_string(),
                "--",
            ])
            .args([ECCLUSTER, "ecconfigd", "run", "--data"])
            .arg(self.data())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn wait_ready(&mut self) {
        let client = self.client();
        let begun = Instant::now();
        while self.runtime.block_on(client.get_bytes("/readyz", 1 << 16)).is_err() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("ecconfigd ended: {status}\n{}", self.log());
            }
            assert!(begun.elapsed() < DEADLINE, "ecconfigd is not ready\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ecconfigd.log")).unwrap_or_default()
    }

    /// Ends the server as a power switch would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends the server as init would, and says how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        signal(child.id(), nix::sys::signal::Signal::SIGTERM);
        child.wait().unwrap()
    }

    /// A client that acts as the admin user.
    pub fn client(&self) -> ApiClient {
        let password = std::fs::read_to_string(self.password_file()).unwrap().trim_end().to_owned();
        let credentials = Credentials::Basic { username: "admin".into(), password: password.into() };
        ApiClient::new(vec![self.url().parse().unwrap()], &std::fs::read_to_string(self.ca()).unwrap(), credentials)
            .unwrap()
    }

    pub fn head(&self, repo: &str) -> Head {
        self.runtime.block_on(self.client().get_json(&format!("/api/v1/repos/{repo}/head"))).unwrap()
    }

    /// Commits files to a repository at its head.
    pub fn commit(&self, repo: &str, message: &str, files: &[(&str, &str)]) -> Result<CommitResponse, ClientError> {
        let changes = files.iter().map(|(path, text)| ChangeRequest::put(*path, text.as_bytes().to_vec())).collect();
        let request = CommitRequest { base: self.head(repo).revision.into(), message: message.into(), changes };
        self.runtime.block_on(self.client().post_json(&format!("/api/v1/repos/{repo}/commits"), &request))
    }

    pub fn node(&self, node: &str) -> NodeInfo {
        self.runtime.block_on(self.client().get_json(&format!("/api/v1/nodes/{node}"))).unwrap()
    }

    /// Waits for the agent's report about a revision of `default`.
    pub fn report(&self, node: &str, revision: u64, states: &[ReportState]) -> NodeReport {
        let mut seen = None;
        let begun = Instant::now();
        loop {
            let report = self.node(node).reports.into_iter().find(|report| report.program == "agent");
            if let Some(report) = &report
                && report.repos.get("default").is_some_and(|head| head.revision == revision)
                && states.contains(&report.state)
            {
                return report.clone();
            }
            seen = report.or(seen);
            assert!(begun.elapsed() < DEADLINE, "no report {states:?} about r{revision}; the last: {seen:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `git` with this cluster's CA and the admin user, in `dir`.
    pub fn git(&self, dir: &Path) -> Command {
        let password = std::fs::read_to_string(self.password_file()).unwrap();
        let store = self.dir.path().join("git-credentials");
        std::fs::write(&store, format!("https://admin:{}@{}\n", password.trim_end(), self.address())).unwrap();
        let mut git = git(dir);
        git.arg("-c").arg(format!("http.sslCAInfo={}", self.ca().display()));
        git.arg("-c").arg(format!("credential.helper=store --file {}", store.display()));
        git
    }

    pub fn repo_url(&self, repo: &str) -> String {
        format!("https://admin@{}/{repo}.git", self.address())
    }

    /// `eccfg` as the admin user.
    pub fn eccfg(&self, wc: &Path) -> Command {
        let mut eccfg = eccluster(self.dir.path());
        eccfg.env("ECCFG_SERVER", self.url()).env("ECCFG_CA", self.ca()).env("ECCFG_WC", wc);
        eccfg.arg("eccfg").args(["--username", "admin", "--password-file"]).arg(self.password_file());
        eccfg
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- ecconfigd\n{}", self.log());
        }
    }
}

/// An agent of node n1.
pub struct Agent {
    pub wc: PathBuf,
    pub etc: PathBuf,
    log: PathBuf,
    dir: PathBuf,
    url: String,
    identity: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// An agent with this `agent.toml`, not started yet. `@WC@` in the text stands for the working copy.
    pub fn new(server: &Server, agent_toml: &str) -> Agent {
        let dir = server.dir.path().join("n1");
        let (wc, etc) = (dir.join("conf"), dir.join("etc"));
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("agent.toml"), agent_toml.replace("@WC@", wc.to_str().unwrap())).unwrap();
        let (log, identity) = (dir.join("agent.log"), server.data().join("identity"));
        Agent { wc, etc, log, dir, url: server.url(), identity, child: None }
    }

    pub fn command(&self) -> Command {
        let mut agent = self.command_without_servers();
        agent.args(["--server", &self.url]);
        agent
    }

    /// Its servers are those of `boot.toml`.
    fn command_without_servers(&self) -> Command {
        let mut agent = eccluster(&self.dir);
        agent.args(["eccfg", "agent", "--node", "n1", "--wc"]).arg(&self.wc);
        agent
            .arg("--config")
            .arg(&self.etc)
            .arg("--data")
            .arg(self.dir.join("agent"))
            .arg("--identity")
            .arg(&self.identity);
        agent
    }

    pub fn spawn(&mut self) {
        let command = self.command();
        self.spawn_as(command);
    }

    pub fn spawn_without_servers(&mut self) {
        let command = self.command_without_servers();
        self.spawn_as(command);
    }

    /// Starts an agent that kills itself at this point of its work (`repos::worktree::fault`).
    pub fn spawn_dying(&mut self, point: &str) {
        let mut command = self.command();
        command.env("ECCFG_FAULT", point);
        self.spawn_as(command);
    }

    fn spawn_as(&mut self, mut command: Command) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// The agent's surroundings: its HOME, and `run/` with its control socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// How it ended, once it has.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.take().expect("the agent runs").wait().unwrap()
    }

    /// True when the process ended by itself (or by a fault that a test asked for).
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn hang_up(&self) {
        signal(self.child.as_ref().expect("the agent runs").id(), nix::sys::signal::Signal::SIGHUP);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- agent\n{}", self.log());
        }
    }
}

/// The binary under test, with nothing of the developer's surroundings.
pub fn eccluster(home: &Path) -> Command {
    let mut command = Command::new(ECCLUSTER);
    clean(&mut command, home);
    command.env("ECCLUSTER_RUN", home.join("run"));
    command
}

/// `git` with nothing of the developer's surroundings.
pub fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    clean(&mut git, dir);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "Tester").env(format!("GIT_{who}_EMAIL"), "tester@example.org");
    }
    git.arg("-C").arg(dir);
    git
}

pub fn clean(command: &mut Command, home: &Path) {
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    command.env_clear().env("PATH", path).env("HOME", home).env("LANG", "C.UTF-8").stdin(Stdio::null());
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Runs a command that must succeed; gives what it printed on standard output.
#[track_caller]
pub fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_success(&output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must fail; gives what it printed on standard error.
#[track_caller]
pub fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "it succeeded: {command:?}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub fn assert_success(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// A value's debug form, for messages.
pub fn shown(value: impl Debug) -> String {
    format!("{value:#?}")
}
