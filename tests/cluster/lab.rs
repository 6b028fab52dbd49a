//! Machines on one segment: a namespace and a real ecconfigd each, a bridge between them, and the faults that machines have.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use cluster::api::{ClusterInfo, Head};
use cluster::http_client::{ApiClient, ClientError, Credentials, ServerUrl};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{DEADLINE, ECCLUSTER, assert_success, clean, eventually, git};

const PORT: u16 = 2027;

/// Whether this process may make namespaces; says so if not.
pub fn possible() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// One machine.
pub struct Machine {
    pub name: String,
    pub address: Ipv4Addr,
    namespace: String,
    dir: PathBuf,
    child: Option<Child>,
    /// Shifts the wall clock of what runs here, as faketime writes it.
    pub clock: Option<&'static str>,
    /// Its data lies on a file system of its own.
    mounted: bool,
}

/// The segment with its machines.
pub struct Lab {
    dir: TempDir,
    id: String,
    pub machines: Vec<Machine>,
    /// Goes up with every machine ever made, so that a replacement has an address of its own.
    made: u8,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A segment without machines.
    pub fn new() -> Lab {
        let id = format!("ec{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { dir: tempfile::tempdir().unwrap(), id, machines: Vec::new(), made: 0 };
        let switch = lab.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        lab.plug(&lab.clients(), "clients", Ipv4Addr::new(10, 77, 0, 1));
        lab
    }

    /// A cluster of this many voters.
    pub fn cluster(voters: usize) -> Lab {
        let mut lab = Lab::new();
        lab.add("n1");
        lab.init("n1");
        lab.start("n1");
        lab.wait_ready("n1");
        for number in 2..=voters {
            lab.join(&format!("n{number}"), &[]);
        }
        lab.wait_voters(voters);
        lab
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    fn clients(&self) -> String {
        format!("{}-cl", self.id)
    }

    /// A namespace on the segment.
    fn plug(&self, namespace: &str, port: &str, address: Ipv4Addr) {
        let switch = self.switch();
        ip(&["netns", "add", namespace]);
        ip(&["-n", namespace, "link", "set", "lo", "up"]);
        ip(&["-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", &switch]);
        ip(&["-n", &switch, "link", "set", port, "master", "br0", "up"]);
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", namespace, "link", "set", "eth0", "up"]);
    }

    // ── machines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A machine with nothing on it.
    pub fn add(&mut self, name: &str) {
        self.made += 1;
        let address = Ipv4Addr::new(10, 77, 0, 10 + self.made);
        let namespace = format!("{}-m{}", self.id, self.made);
        self.plug(&namespace, &format!("p{}", self.made), address);
        let dir = self.dir.path().join(format!("m{}", self.made));
        fs::create_dir_all(&dir).unwrap();
        self.machines.push(Machine {
            name: name.to_owned(),
            address,
            namespace,
            dir,
            child: None,
            clock: None,
            mounted: false,
        });
    }

    /// The newest machine of this name.
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().rev().find(|machine| machine.name == name).expect("a machine of this name")
    }

    pub fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines.iter_mut().rev().find(|machine| machine.name == name).expect("a machine of this name")
    }

    pub fn names(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.name.clone()).collect()
    }

    /// Switches a machine off and forgets it.
    pub fn scrap(&mut self, name: &str) {
        self.kill(name);
        let at = self.machines.iter().rposition(|machine| machine.name == name).unwrap();
        drop(self.machines.remove(at));
    }

    /// A machine burns down, and an empty one stands at its place.
    pub fn burn(&mut self, name: &str) {
        self.kill(name);
        for entry in fs::read_dir(self.machine(name).data()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    }

    /// Makes the first node of a cluster.
    pub fn init(&mut self, name: &str) {
        let machine = self.machine(name);
        let listen = format!("{}:{PORT}", machine.address);
        let mut init = machine.command(&["ecconfigd", "init", "--node", name, "--listen", &listen, "--data"]);
        assert_success(&init.arg(machine.data()).output().unwrap());
        fs::copy(machine.data().join("ca.pem"), self.ca()).unwrap();
        fs::copy(machine.data().join("admin-password"), self.password_file()).unwrap();
    }

    /// A new machine that becomes a node; it runs, and has everything once this returns.
    pub fn join(&mut self, name: &str, options: &[&str]) {
        self.add(name);
        let token = self.token();
        self.join_with(name, &token, options);
        self.start(name);
        self.wait_ready(name);
    }

    /// The join alone.
    pub fn join_with(&self, name: &str, token: &str, options: &[&str]) {
        let turn = std::cell::Cell::new(0);
        done("a join", || self.joining(name, token, options, turn.replace(turn.get() + 1)));
    }

    pub fn try_join(&self, name: &str, token: &str, options: &[&str]) -> Output {
        self.joining(name, token, options, 0).output().unwrap()
    }

    fn joining(&self, name: &str, token: &str, options: &[&str], turn: usize) -> Command {
        let machine = self.machine(name);
        let listen = format!("{}:{PORT}", machine.address);
        let mut join = machine.command(&["ecconfigd", "join", "--node", name, "--listen", &listen, "--token", token]);
        let mut others = self.running();
        let first = turn % others.len().max(1);
        others.rotate_left(first);
        for other in others {
            join.args(["--server", &self.machine(other).url()]);
        }
        join.args(options).arg("--data").arg(machine.data());
        join
    }

    pub fn token(&self) -> String {
        self.token_by(&["node", "token"])
    }

    /// A token for a machine that takes a name over.
    pub fn replacement(&self, name: &str) -> String {
        self.token_by(&["node", "replace", name])
    }

    fn token_by(&self, args: &[&str]) -> String {
        self.done(args).trim().to_owned()
    }

    /// Starts a machine's ecconfigd without waiting for it.
    pub fn start(&mut self, name: &str) {
        self.start_with(name, &[]);
    }

    /// The same with further options.
    pub fn start_with(&mut self, name: &str, options: &[&str]) {
        let machine = self.machine_mut(name);
        let mut run = machine.command(&["ecconfigd", "run", "--data"]);
        run.arg(machine.data()).args(options);
        let log = fs::OpenOptions::new().create(true).append(true).open(machine.dir.join("log")).unwrap();
        machine.child = Some(run.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).spawn().unwrap());
    }

    pub fn wait_ready(&mut self, name: &str) {
        let begun = Instant::now();
        while !self.is_ready(name) {
            let machine = self.machine_mut(name);
            if let Some(status) = machine.child.as_mut().expect("it runs").try_wait().unwrap() {
                panic!("ecconfigd of {name} ended: {status}");
            }
            assert!(begun.elapsed() < DEADLINE, "{name} is not ready");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.client_of(&[name], |client| async move { client.get_bytes("/readyz", 1 << 16).await }).is_ok()
    }

    pub fn wait_voters(&self, voters: usize) {
        eventually(&format!("{voters} voters"), || {
            let info = self.cluster_info().ok()?;
            (info.members.iter().filter(|m| m.role == cluster::api::NodeRole::Voter).count() == voters).then_some(())
        });
    }

    /// Waits until the machine that has this name now, and no earlier one, votes.
    pub fn wait_vote(&self, name: &str) {
        self.wait_role(name, cluster::api::NodeRole::Voter);
    }

    /// Waits until the machine that has this name now is this, and there is no earlier one.
    pub fn wait_role(&self, name: &str, role: cluster::api::NodeRole) {
        eventually(&format!("{name} is a {role}"), || {
            // Asked of the machine itself once it has caught up: another one may not have heard yet that it took the name over.
            if !self.is_ready(name) {
                return None;
            }
            let members = self.cluster_info_of(name).ok()?.members;
            let mut of_name = members.iter().filter(|member| member.node == name);
            (of_name.next()?.role == role && of_name.next().is_none()).then_some(())
        });
    }

    // ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Ends a machine's ecconfigd as a power switch would. Harmless if it does not run.
    pub fn kill(&mut self, name: &str) {
        if let Some(mut child) = self.machine_mut(name).child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Ends it as init would. One whose disk was full may be ending badly by itself at that moment.
    pub fn terminate(&mut self, name: &str) {
        let machine = self.machine_mut(name);
        let mut child = machine.child.take().expect("it runs");
        crate::support::signal(child.id(), Signal::SIGTERM);
        let status = child.wait().unwrap();
        assert!(status.success() || machine.mounted, "ecconfigd of {name} ended badly: {status}");
    }

    pub fn signal(&self, name: &str, signal: Signal) {
        if let Some(child) = &self.machine(name).child {
            crate::support::signal(child.id(), signal);
        }
    }

    /// Whether a machine's ecconfigd, which was started, still runs.
    pub fn runs(&mut self, name: &str) -> bool {
        self.machine_mut(name).child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Starts what ended by itself again, as an init system does. A node whose log or state cannot be written ends.
    pub fn restart_what_ended(&mut self) {
        for name in self.names() {
            let child = &mut self.machine_mut(&name).child;
            if child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                eprintln!("{name}: ended, and is started again");
                self.start(&name);
            }
        }
    }

    /// Pulls the cable, or plugs it in again.
    pub fn link(&self, name: &str, up: bool) {
        let machine = self.machine(name);
        ip(&["-n", &machine.namespace, "link", "set", "eth0", if up { "up" } else { "down" }]);
    }

    /// What `from` sends to `to` is lost; the other direction is not touched.
    pub fn cut(&self, from: &str, to: &str) {
        let (from, to) = (self.machine(from), self.machine(to));
        let args = ["-n", &from.namespace, "route", "replace", "blackhole", &format!("{}/32", to.address)];
        ip(&args);
    }

    pub fn heal(&self, from: &str, to: &str) {
        let (from, to) = (self.machine(from), self.machine(to));
        // It may be healed already: link down takes routes with it.
        let _ = Command::new("ip")
            .args(["-n", &from.namespace, "route", "del", "blackhole", &format!("{}/32", to.address)])
            .output();
    }

    /// Gives a machine a small disk of its own, before it has anything on it.
    pub fn mount(&mut self, name: &str, megabytes: u32) {
        let machine = self.machine_mut(name);
        fs::create_dir_all(machine.data()).unwrap();
        let options = format!("size={megabytes}m,mode=0700");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(machine.data()).status().unwrap();
        assert!(status.success());
        machine.mounted = true;
    }

    /// Fills the small disk to the last byte.
    pub fn fill(&self, name: &str) {
        self.fill_but(name, 0);
    }

    /// Fills the small disk, and leaves so many bytes.
    pub fn fill_but(&self, name: &str, left: u64) {
        use std::io::Write as _;
        let machine = self.machine(name);
        assert!(machine.mounted, "only a disk of its own is filled");
        let mut file = fs::File::create(machine.data().join("filler")).unwrap();
        let free = || {
            let found = nix::sys::statvfs::statvfs(&machine.data()).unwrap();
            found.blocks_available() * found.fragment_size()
        };
        let block = vec![0; 4096];
        while free() > left && file.write_all(&block).is_ok() {}
    }

    /// Gives a machine another address, which its ecconfigd is told with the next start.
    pub fn renumber(&mut self, name: &str) {
        self.made += 1;
        let address = Ipv4Addr::new(10, 77, 0, 10 + self.made);
        let machine = self.machine_mut(name);
        ip(&["-n", &machine.namespace, "addr", "flush", "dev", "eth0"]);
        ip(&["-n", &machine.namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        let path = machine.data().join("ecconfigd.toml");
        let text = fs::read_to_string(&path).unwrap().replace(&machine.address.to_string(), &address.to_string());
        fs::write(&path, text).unwrap();
        machine.address = address;
    }

    pub fn free(&self, name: &str) {
        let _ = fs::remove_file(self.machine(name).data().join("filler"));
    }

    // ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn password_file(&self) -> PathBuf {
        self.dir.path().join("admin-password")
    }

    /// Who speaks to these machines, in this order, as the administrator.
    pub fn access(&self, names: &[&str]) -> Access {
        let servers = names.iter().map(|name| self.machine(name).url().parse().unwrap()).collect();
        let password = fs::read_to_string(self.password_file()).unwrap().trim_end().to_owned();
        Access {
            servers,
            ca_pem: fs::read_to_string(self.ca()).unwrap(),
            password,
            namespace: Arc::new(PathBuf::from(format!("/run/netns/{}", self.clients()))),
        }
    }

    /// Runs one conversation with these machines.
    pub fn client_of<T, F>(&self, names: &[&str], talk: impl FnOnce(ApiClient) -> F + Send) -> T
    where
        F: Future<Output = T>,
        T: Send,
    {
        let access = self.access(names);
        std::thread::scope(|scope| scope.spawn(move || access.run(talk)).join().unwrap())
    }

    /// The machines that run.
    pub fn running(&self) -> Vec<&str> {
        self.machines.iter().filter(|machine| machine.child.is_some()).map(|machine| machine.name.as_str()).collect()
    }

    fn cluster_info_of(&self, name: &str) -> Result<ClusterInfo, ClientError> {
        self.client_of(&[name], |client| async move { client.get_json("/api/v1/cluster").await })
    }

    pub fn cluster_info(&self) -> Result<ClusterInfo, ClientError> {
        self.client_of(&self.running(), |client| async move { client.get_json("/api/v1/cluster").await })
    }

    /// The leader, once there is one.
    pub fn leader(&self) -> String {
        eventually("a leader", || self.cluster_info().ok()?.leader)
    }

    pub fn head_at(&self, name: &str, repo: &str) -> Result<Head, ClientError> {
        let path = format!("/api/v1/repos/{repo}/head");
        self.client_of(&[name], |client| async move { client.get_json(&path).await })
    }

    /// `eccfg` as the administrator, speaking to every machine that runs.
    pub fn eccfg(&self, args: &[&str]) -> Output {
        self.eccfg_of(&self.running(), args).output().unwrap()
    }

    /// The same, as often as a machine that is so busy that the leadership moves makes it fail.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let turn = std::cell::Cell::new(0);
        done(&args.join(" "), || self.eccfg_in_turn(turn.replace(turn.get() + 1), args))
    }

    /// The same, speaking to another machine first at each turn: one that is cut off while it works on a request may not know what became of
    /// it, after which `eccfg` asks nobody else where there is no key.
    pub fn eccfg_in_turn(&self, turn: usize, args: &[&str]) -> Command {
        let mut names = self.running();
        let first = turn % names.len().max(1);
        names.rotate_left(first);
        self.eccfg_of(&names, args)
    }

    /// The same, speaking to these machines in this order.
    pub fn eccfg_of(&self, names: &[&str], args: &[&str]) -> Command {
        let urls: Vec<String> = names.iter().map(|name| self.machine(name).url()).collect();
        let mut eccfg = within(&self.clients(), Path::new(ECCLUSTER), self.dir.path());
        eccfg.args(["eccfg", "--username", "admin", "--password-file"]).arg(self.password_file());
        eccfg.env("ECCFG_SERVER", urls.join(",")).env("ECCFG_CA", self.ca()).args(args).stdin(Stdio::null());
        eccfg
    }

    /// A real git in the clients' namespace, trusting the cluster and logged in.
    pub fn git(&self, dir: &Path) -> Command {
        let password = fs::read_to_string(self.password_file()).unwrap();
        let store = self.dir.path().join("git-credentials");
        let hosts = self.machines.iter().fold(String::new(), |mut text, machine| {
            let _ = writeln!(text, "https://admin:{}@{}:{PORT}", password.trim_end(), machine.address);
            text
        });
        fs::write(&store, hosts).unwrap();
        let plain = git(dir);
        let mut command = within(&self.clients(), Path::new("git"), dir);
        for (key, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.current_dir(dir).args(plain.get_args());
        command.arg("-c").arg(format!("http.sslCAInfo={}", self.ca().display()));
        command.arg("-c").arg(format!("credential.helper=store --file {}", store.display()));
        command
    }

    pub fn repo_url(&self, name: &str, repo: &str) -> String {
        format!("https://admin@{}:{PORT}/{repo}.git", self.machine(name).address)
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Machine {
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = within(&self.namespace, Path::new(ECCLUSTER), &self.dir);
        if let Some(shift) = self.clock {
            // The monotonic clock stays right, as it does on a machine whose wall clock is wrong.
            command.env("LD_PRELOAD", faketime()).env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.args(args);
        command
    }
}

/// Debian's libfaketime. Its wrapper program is a process of its own and would keep our signals.
fn faketime() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap();
    let mut places = places.map(|entry| entry.unwrap().path().join("faketime/libfaketime.so.1"));
    places.find(|place| place.exists()).expect("libfaketime is installed: apt-get install libfaketime")
}

/// Runs a command until it succeeds. Only what may pass by itself is repeated. Answers what it printed.
#[track_caller]
pub fn done(what: &str, command: impl Fn() -> Command) -> String {
    eventually(what, || {
        let output = command().output().unwrap();
        if output.status.success() {
            return Some(String::from_utf8(output.stdout).unwrap());
        }
        assert!(passes(&output), "{what}: {output:?}");
        // Shown if it never succeeds.
        eprintln!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        None
    })
}

/// Whether a refusal was for want of a leader, or of an answer in time.
pub fn passes(output: &Output) -> bool {
    const WORDS: [&str; 6] =
        ["not available", "no server can be used", "cannot connect", "was lost", "did not answer", "error: 503"];
    let words = String::from_utf8_lossy(&output.stderr);
    WORDS.iter().any(|known| words.contains(known))
}

/// A command inside a namespace, with nothing of the developer's surroundings. `ip` becomes the command: its id is the process's.
fn within(namespace: &str, program: &Path, home: &Path) -> Command {
    let mut command = Command::new("ip");
    clean(&mut command, home);
    command.env("ECCLUSTER_RUN", home.join("run")).args(["netns", "exec", namespace]).arg(program);
    command
}

/// What a client needs to speak to machines, from any thread.
#[derive(Clone)]
pub struct Access {
    pub servers: Vec<ServerUrl>,
    ca_pem: String,
    password: String,
    namespace: Arc<PathBuf>,
}

impl Access {
    /// Moves this thread into the clients' namespace for good and talks.
    pub fn run<T, F: Future<Output = T>>(self, talk: impl FnOnce(ApiClient) -> F) -> T {
        let namespace = fs::File::open(self.namespace.as_path()).unwrap();
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let credentials = Credentials::Basic { username: "admin".into(), password: self.password.into() };
        let client = ApiClient::new(self.servers, &self.ca_pem, credentials).unwrap();
        runtime.block_on(talk(client))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            if let Some(mut child) = machine.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                eprintln!("--- {} ({})\n{}", machine.name, machine.address, machine.log());
            }
        }
        // A mount can only go when nothing runs on it any more; a lab that leaves one behind says so by failing to remove its directory.
        for number in 1..=self.made {
            let data = self.dir.path().join(format!("m{number}/data"));
            let _ = Command::new("umount").arg(data).stderr(Stdio::null()).status();
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-m{number}", self.id)]).status();
        }
        for namespace in [self.clients(), self.switch()] {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}
