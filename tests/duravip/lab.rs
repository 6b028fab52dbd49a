//! A segment of real machines: a network namespace and a real `duravip run` each, a bridge between them, a host outside that
//! asks who answers, and the faults that machines have.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster::identity::{Ca, KeyRequest, NodeCert, NodeRole};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use crate::wait::eventually;
use crate::wait::{DEADLINE, ECCLUSTER};

/// Who has which address.
pub type Owners = BTreeMap<IpAddr, String>;

/// Whether this process may make namespaces; says so if not.
pub fn possible() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    pub namespace: String,
    port: String,
    dir: PathBuf,
    child: Option<Child>,
    pub mac: [u8; 6],
}

/// The segment.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    id: String,
    pub machines: Vec<Machine>,
    witnesses: BTreeSet<String>,
    /// Who is no member any more.
    dismissed: BTreeSet<String>,
    /// Who has an identity of a cluster; the others have the key.
    certified: BTreeSet<String>,
    /// The subclusters of those that are not of the usual one.
    elsewhere: BTreeMap<String, String>,
    duravip: String,
    /// Where the configuration comes from, if not out of a directory.
    server: Option<Server>,
}

/// An ecconfigd on the host outside.
#[derive(Debug)]
struct Server {
    child: Option<Child>,
}

const SERVER: &str = "10.77.0.1:2027";

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A segment with machines `n1`, `n2`, … that are off, and this in `duravip.toml` behind the topologies.
    pub fn new(machines: usize, duravip: &str) -> Lab {
        let id = format!("dv{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Lab {
            dir,
            id,
            machines: Vec::new(),
            witnesses: BTreeSet::new(),
            dismissed: BTreeSet::new(),
            certified: BTreeSet::new(),
            elsewhere: BTreeMap::new(),
            duravip: String::new(),
            server: None,
        };
        let switch = lab.switch();
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge forward_delay 0 mcast_snooping 0"));
        ip(&format!("-n {switch} link set br0 up"));
        lab.plug(&lab.outside(), "outside", 1);
        for number in 1..=machines {
            let (namespace, port) = (format!("{}-m{number}", lab.id), format!("p{number}"));
            let mac = lab.plug(&namespace, &port, number + 10);
            let (name, dir) = (format!("n{number}"), lab.dir.path().join(format!("n{number}")));
            fs::create_dir_all(dir.join("run")).unwrap();
            lab.machines.push(Machine { name, namespace, port, dir, child: None, mac });
        }
        fs::write(lab.dir.path().join("key"), "5a".repeat(32)).unwrap();
        lab.configure(duravip);
        lab
    }

    /// Makes a machine one that votes only.
    pub fn witness(&mut self, name: &str) {
        self.witnesses.insert(name.to_owned());
        self.configure(&self.duravip.clone());
    }

    /// Takes a machine out of the configuration.
    pub fn dismiss(&mut self, name: &str) {
        self.dismissed.insert(name.to_owned());
        self.configure(&self.duravip.clone());
    }

    /// Makes a machine a witness that belongs to another subcluster and votes here.
    pub fn stranger(&mut self, name: &str) {
        self.elsewhere.insert(name.to_owned(), "east".to_owned());
        self.witness(name);
    }

    // ── an ecconfigd ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Puts an ecconfigd on the host outside, enrols all machines there, and makes the configuration its first commit. From
    /// here on daemons are started as its subscribers, and `configure` writes into a working copy.
    pub fn serve(&mut self) {
        let data = self.dir.path().join("ecconfigd");
        let mut init = self.outside_command(&["ecconfigd", "init", "--node", "c1", "--listen", SERVER, "--data"]);
        succeeds(init.arg(data));
        self.server = Some(Server { child: None });
        self.start_server();
        for name in self.names() {
            let token = succeeds(&mut self.eccfg(&["node", "token"]));
            let words = ["eccfg", "node", "enroll", "--node", &name, "--token", token.trim(), "--server"];
            let mut enroll = self.outside_command(&words);
            succeeds(enroll.arg(format!("https://{SERVER}")).arg("--identity").arg(self.file(&name, "identity")));
            self.certified.insert(name);
        }
        fs::remove_dir_all(self.conf()).unwrap();
        succeeds(self.eccfg(&["bootstrap", "--clustername", "default", "--wc"]).arg(self.conf()));
        self.configure(&self.duravip.clone());
        self.commit();
    }

    /// Starts the ecconfigd, and waits until it answers.
    pub fn start_server(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("ecconfigd.log")).unwrap();
        let mut run = self.outside_command(&["ecconfigd", "run", "--data"]);
        run.arg(self.dir.path().join("ecconfigd")).stdout(log.try_clone().unwrap()).stderr(log);
        self.server.as_mut().expect("a server").child = Some(run.spawn().unwrap());
        eventually("ecconfigd answers", || {
            self.eccfg(&["node", "list"]).output().unwrap().status.success().then_some(())
        });
    }

    /// Ends the ecconfigd without a word.
    pub fn kill_server(&mut self) {
        let mut child = self.server.as_mut().and_then(|server| server.child.take()).expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Commits what the working copy says.
    pub fn commit(&self) {
        let words = ["commit", "--add-all", "--delete-all", "-m", "Change", "--wc"];
        succeeds(self.eccfg(&words).arg(self.conf()));
    }

    /// `eccfg` on the host outside, as the administrator.
    fn eccfg(&self, arguments: &[&str]) -> Command {
        let data = self.dir.path().join("ecconfigd");
        let mut eccfg = self.outside_command(&["eccfg", "--username", "admin", "--password-file"]);
        eccfg.arg(data.join("admin-password")).args(arguments);
        eccfg.env("ECCFG_SERVER", format!("https://{SERVER}")).env("ECCFG_CA", data.join("ca.pem"));
        eccfg
    }

    fn outside_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.outside(), ECCLUSTER]).args(arguments).stdin(Stdio::null());
        command.env("HOME", self.dir.path()).env("ECCLUSTER_RUN", self.dir.path().join("run"));
        command
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("conf")
    }

    // ── machines ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Gives these identities of a new cluster; their next starts use them instead of the key.
    pub fn certify(&mut self, names: &[&str]) {
        let ca = Ca::create("lab").unwrap();
        for name in names {
            let request = KeyRequest::generate(name).unwrap();
            let number =
                self.machines.iter().position(|machine| machine.name == **name).expect("a machine of this name");
            let node = NodeCert::new(name, "default", NodeRole::Client).reached_at(&format!("10.77.0.{}", number + 11));
            let chain = ca.issue(request.csr_pem(), &node, Duration::from_secs(3600)).unwrap();
            let identity = request.certified(&chain.pem, ca.certificate_pem()).unwrap();
            identity.store(&self.file(name, "identity")).unwrap();
            self.certified.insert((*name).to_owned());
        }
    }

    /// What one machine's configuration says besides.
    pub fn layer(&self, name: &str, duravip: &str) {
        let dir = self.conf().join(name);
        fs::create_dir_all(&dir).unwrap();
        let next = self.dir.path().join("layer.next");
        fs::write(&next, duravip).unwrap();
        fs::rename(next, dir.join("duravip.toml")).unwrap();
    }

    /// What a machine's daemon has logged.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.file(name, "log")).unwrap_or_default()
    }

    /// Puts another configuration in place, for all machines in one step.
    pub fn configure(&mut self, duravip: &str) {
        duravip.clone_into(&mut self.duravip);
        let topologies =
            "[topology.\"10.77.0.0/16\"]\ninterface = \"eth0\"\n[topology.\"fd77::/64\"]\ninterface = \"eth0\"\n";
        let mut cluster = String::new();
        for (number, machine) in self.machines.iter().enumerate() {
            if self.dismissed.contains(&machine.name) {
                continue;
            }
            let witness = self.witnesses.contains(&machine.name);
            let subcluster = self.elsewhere.get(&machine.name).map_or("default", String::as_str);
            let _ = writeln!(
                cluster,
                "[node.{}]\naddress = \"10.77.0.{}\"\nwitness = {witness}\nsubcluster = \"{subcluster}\"",
                machine.name,
                number + 11
            );
        }
        let next = self.dir.path().join("conf.next");
        for (path, text) in
            [("global/cluster.toml", cluster), ("default/duravip.toml", insert_topologies(duravip, topologies))]
        {
            let path = next.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let conf = self.conf();
        if conf.exists() {
            fs::create_dir_all(conf.join("default")).unwrap();
            // Each file is replaced whole; a reader between the two sees a configuration that means something.
            for path in ["global/cluster.toml", "default/duravip.toml"] {
                fs::rename(next.join(path), conf.join(path)).unwrap();
            }
        } else {
            fs::rename(next, conf).unwrap();
        }
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    /// The namespace of the host outside.
    pub fn outside(&self) -> String {
        format!("{}-out", self.id)
    }

    fn plug(&self, namespace: &str, port: &str, number: usize) -> [u8; 6] {
        ip(&format!("netns add {namespace}"));
        ip(&format!("-n {namespace} link set lo up"));
        self.connect(namespace, port, number)
    }

    fn connect(&self, namespace: &str, port: &str, number: usize) -> [u8; 6] {
        let switch = self.switch();
        let mac = [2, 0x77, 0, 0, 0, number as u8];
        let mac_text = mac.map(|byte: u8| format!("{byte:02x}")).join(":");
        ip(&format!("-n {namespace} link add eth0 address {mac_text} type veth peer name {port} netns {switch}"));
        ip(&format!("-n {switch} link set {port} master br0 up"));
        ip(&format!("-n {namespace} addr add 10.77.0.{number}/16 dev eth0"));
        ip(&format!("-n {namespace} addr add fd77::{number}/64 dev eth0 nodad"));
        ip(&format!("-n {namespace} link set eth0 up"));
        mac
    }

    pub fn names(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.name.clone()).collect()
    }

    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).expect("a machine of this name")
    }

    fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines.iter_mut().find(|machine| machine.name == name).expect("a machine of this name")
    }

    /// Starts the daemon of a machine.
    pub fn start(&mut self, name: &str) {
        let log = File::options().create(true).append(true).open(self.file(name, "log")).unwrap();
        self.start_with_log(name, log.into());
    }

    /// The same, with its log somewhere else.
    pub fn start_with_log(&mut self, name: &str, log: Stdio) {
        let (conf, key) = (self.conf(), self.dir.path().join("key"));
        let certified = self.certified.contains(name);
        let source = match &self.server {
            Some(_) => ["--server".into(), PathBuf::from(format!("https://{SERVER}"))],
            None => ["--conf".into(), conf],
        };
        let votes_in: &[&str] = if self.elsewhere.contains_key(name) { &["--votes-in", "default"] } else { &[] };
        let machine = self.machine_mut(name);
        let identity = machine.dir.join("identity");
        let known = match certified {
            true => vec![PathBuf::from("--identity"), identity],
            false => {
                ["--identity", "/nonexistent", "--cluster-key"].map(PathBuf::from).into_iter().chain([key]).collect()
            }
        };
        let child = Command::new("ip")
            .args(["netns", "exec", &machine.namespace, ECCLUSTER, "duravip", "run", "--node", name])
            .args(source)
            .args(votes_in)
            .arg("--data")
            .arg(machine.dir.join("data"))
            .args(known)
            .env("ECCLUSTER_RUN", machine.dir.join("run"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        machine.child = Some(child);
    }

    /// Starts all, and waits until every address has an owner that has it.
    pub fn start_all(&mut self) {
        for name in self.names() {
            self.start(&name);
        }
        self.settled();
    }

    pub fn signal(&self, name: &str, signal: Signal) {
        let child = self.machine(name).child.as_ref().expect("the daemon runs");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    /// Ends the daemon without a word.
    pub fn kill(&mut self, name: &str) {
        self.signal(name, Signal::SIGKILL);
        self.wait_end(name);
    }

    /// Ends the daemon as a service manager does.
    pub fn stop(&mut self, name: &str) {
        self.signal(name, Signal::SIGTERM);
        let status = self.wait_end(name);
        assert!(status.success(), "{name}: {status}");
    }

    fn wait_end(&mut self, name: &str) -> std::process::ExitStatus {
        self.machine_mut(name).child.take().expect("the daemon runs").wait().unwrap()
    }

    /// Takes a machine's interface away.
    pub fn remove_interface(&self, name: &str) {
        ip(&format!("-n {} link del eth0", self.machine(name).namespace));
    }

    /// Makes it anew.
    pub fn make_interface(&self, name: &str) {
        let number = self.machines.iter().position(|machine| machine.name == name).expect("a machine of this name");
        let machine = &self.machines[number];
        self.connect(&machine.namespace, &machine.port, number + 11);
    }

    /// Does something on a machine.
    pub fn on<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/var/run/netns/{}", self.machine(name).namespace)).unwrap();
        // A thread of its own: a namespace is a thread's.
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            there.join().unwrap()
        })
    }

    /// Takes a machine's cable out, at the switch's end, or puts it in.
    pub fn cable(&self, name: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("-n {} link set {} {state}", self.switch(), self.machine(name).port));
    }

    /// Members whose ports are isolated reach the host outside and each other no more: the worst cut there is, since
    /// clients reach both sides.
    pub fn isolate(&self, names: &[&str], isolated: bool) {
        for name in names {
            let state = if isolated { "on" } else { "off" };
            let port = &self.machine(name).port;
            ip(&format!("-n {} link set {port} type bridge_slave isolated {state}", self.switch()));
        }
    }

    /// What `from` sends to the others is lost; it goes on hearing them.
    pub fn mute(&self, from: &str, muted: bool) {
        let others = (0..self.machines.len()).filter(|number| self.machines[*number].name != from);
        for number in others {
            let verb = if muted { "replace" } else { "del" };
            ip(&format!("-n {} route {verb} blackhole 10.77.0.{}/32", self.machine(from).namespace, number + 11));
        }
    }

    /// The guard of a machine's daemon.
    pub fn guard(&self, name: &str) -> Pid {
        let daemon = self.machine(name).child.as_ref().expect("the daemon runs").id();
        let children = fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten().flat_map(|task| {
            let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            listed.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        });
        let is_guard =
            |pid: &String| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().ends_with(b"\0guard\0");
        let guards: Vec<String> = children.filter(is_guard).collect();
        Pid::from_raw(guards.first().expect("a guard").parse().unwrap())
    }

    /// A file of a machine's own.
    pub fn file(&self, name: &str, file: &str) -> PathBuf {
        self.machine(name).dir.join(file)
    }

    /// Who leads, as a running member sees it.
    pub fn leader(&self) -> String {
        eventually("a leader", || {
            let asked = self.machines.iter().find(|machine| machine.child.is_some())?;
            Some(self.ask(&asked.name, "members")?["leader"].as_str()?.to_owned())
        })
    }

    /// Runs a `duravip` command at a machine.
    pub fn duravip(&self, name: &str, arguments: &str) -> Output {
        let machine = self.machine(name);
        Command::new(ECCLUSTER)
            .arg("duravip")
            .args(arguments.split(' '))
            .env("ECCLUSTER_RUN", machine.dir.join("run"))
            .output()
            .unwrap()
    }

    /// The same, with its result as JSON; nothing where it failed.
    pub fn ask(&self, name: &str, arguments: &str) -> Option<Value> {
        let output = self.duravip(name, &format!("{arguments} --json"));
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// A command that has to succeed; repeated while there is no leader.
    #[track_caller]
    pub fn order(&self, name: &str, arguments: &str) {
        eventually(arguments, || {
            let output = self.duravip(name, arguments);
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || words.contains("leader"), "duravip {arguments}: {words}");
            output.status.success().then_some(())
        });
    }

    /// Starts all, and waits until each machine has at least this many addresses. With `rebalance = "manual"` the first ones
    /// keep what they took, should another have come up a little later.
    pub fn start_all_with(&mut self, share: usize) -> Owners {
        self.start_all();
        for name in self.names() {
            self.give_back(&name, share);
        }
        self.settled_with("shares for all", |owners| {
            self.names().iter().all(|name| owners.values().filter(|owner| *owner == name).count() >= share)
        })
    }

    /// How often a machine's lease has ended without renewal since its daemon started.
    pub fn lapses(&self, name: &str) -> u64 {
        let output = self.duravip(name, "metrics");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("duravip_lapses_total")).expect("the count of lapses");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Leaves addresses on a machine that look like another run's, so many that taking them off takes a while.
    pub fn litter(&self, name: &str) {
        let file = self.file(name, "litter");
        let route = |n: usize| {
            format!("route add local 10.77.{}.{}/32 dev eth0 table local proto 236\n", 100 + n / 250, n % 250)
        };
        fs::write(&file, (0..5000).map(route).collect::<String>()).unwrap();
        ip(&format!("-n {} -batch {}", self.machine(name).namespace, file.display()));
    }

    /// Gives addresses back to a machine that returned, as soon as it has been there long enough.
    #[track_caller]
    pub fn give_back(&self, name: &str, share: usize) -> Owners {
        eventually("addresses given back", || {
            self.order(name, "rebalance");
            let shown = self.ask(name, "members")?;
            let member = shown["members"].as_array()?.iter().find(|member| member["name"] == name)?;
            (member["addresses"].as_u64()? >= share as u64).then_some(())
        });
        self.settled_with("addresses given back", |owners| {
            owners.values().filter(|owner| *owner == name).count() >= share
        })
    }

    /// Who owns what, as this machine shows it.
    pub fn owners(&self, name: &str) -> Option<BTreeMap<IpAddr, Option<String>>> {
        owners_in(&self.ask(name, "show")?)
    }

    /// Waits until every running daemon shows the same owners, nothing is on its way any more, each address is on exactly
    /// its owner's machine, and `wanted` holds. What is seen while the members still move addresses is gone a moment later.
    #[track_caller]
    pub fn settled_with(&self, what: &str, wanted: impl Fn(&Owners) -> bool) -> Owners {
        self.settled_and(what, wanted, |_| Ok(()))
    }

    /// The same, and `check` finds nothing about those owners to wait for. It is asked again with the owners of that
    /// moment each time, so that nobody waits for what was true once.
    #[track_caller]
    pub fn settled_and(
        &self,
        what: &str,
        wanted: impl Fn(&Owners) -> bool,
        check: impl Fn(&Owners) -> Result<(), String>,
    ) -> Owners {
        let begun = Instant::now();
        loop {
            let looked_at = Instant::now();
            let missing = match self.at_rest(&wanted) {
                Ok(owners) => match check(&owners) {
                    Ok(()) => return owners,
                    Err(missing) => format!("{missing}\nowners {owners:?}"),
                },
                Err(missing) => missing,
            };
            if begun.elapsed() > DEADLINE {
                let logs = self.logs();
                let (missing, held) = (shortened(&missing), shortened(&format!("{:?}", self.held())));
                panic!("not settled within {DEADLINE:?}: {what}\n{missing}\nheld {held}\n{logs}");
            }
            // A look at thousands of addresses takes a while: what is looked at gets as much time.
            std::thread::sleep(looked_at.elapsed().max(Duration::from_millis(50)));
        }
    }

    /// The owners, if they are agreed, as wanted, at rest, and on the machines.
    fn at_rest(&self, wanted: impl Fn(&Owners) -> bool) -> Result<Owners, String> {
        let owners = self.agreed()?;
        if !wanted(&owners) {
            return Err(format!("not these owners: {owners:?}"));
        }
        let held = self.held();
        let wrong = |(address, owner): &(&IpAddr, &String)| {
            held.get(*address).is_none_or(|holders| holders.len() != 1 || !holders.contains(*owner))
        };
        match owners.iter().find(wrong) {
            Some((address, owner)) => Err(format!("{address} is not on {owner} alone: {owners:?}")),
            None => Ok(owners),
        }
    }

    #[track_caller]
    pub fn settled(&self) -> Owners {
        self.settled_with("every address on its owner", |_| true)
    }

    /// The owners, if every running daemon has the same table, a majority has it, and the leader has nothing left to move.
    /// A version names one table: that of each daemon is asked for, the thousands of addresses in it only once.
    fn agreed(&self) -> Result<Owners, String> {
        let running = self.machines.iter().filter(|machine| machine.child.is_some());
        let mut agreed: Option<(Value, String)> = None;
        for Machine { name, .. } in running {
            let members = self.ask(name, "members").ok_or_else(|| format!("{name} shows nothing"))?;
            let leader = members["leader"].as_str().ok_or_else(|| format!("{name} has no leader"))?.to_owned();
            let seen = (members["version"].clone(), leader);
            let same =
                agreed.as_ref().is_none_or(|agreed| *agreed == seen) && members["committed"] == members["version"];
            if !same {
                return Err(format!("{name} has {seen:?}, committed {}, another {agreed:?}", members["committed"]));
            }
            agreed = Some(seen);
        }
        let (version, leader) = agreed.ok_or("nothing runs")?;
        if self.machine(&leader).child.is_none() {
            return Err(format!("{leader} leads and is gone"));
        }
        let shown = self.ask(&leader, "show").ok_or_else(|| format!("{leader} shows nothing"))?;
        let owners = owners_in(&shown).filter(|owners| !owners.is_empty()).ok_or("there are no addresses")?;
        if shown["at_rest"] != true || shown["version"] != version {
            return Err(format!("{leader} knows of addresses on their way: {owners:?}"));
        }
        let owned = |(address, owner): (&IpAddr, &Option<String>)| Some((*address, owner.clone()?));
        owners.iter().map(owned).collect::<Option<_>>().ok_or_else(|| format!("some have no owner: {owners:?}"))
    }

    /// Which managed addresses which machines really have, whoever runs there: as addresses or as local routes.
    pub fn held(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut held: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for machine in &self.machines {
            for arguments in ["-j addr show", "-j route show table local proto 236"] {
                let output =
                    Command::new("ip").args(["-n", &machine.namespace]).args(arguments.split(' ')).output().unwrap();
                let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                for address in addresses_in(&listed) {
                    if is_managed(address) {
                        held.entry(address).or_default().insert(machine.name.clone());
                    }
                }
            }
        }
        held
    }

    pub fn logs(&self) -> String {
        let mut all = String::new();
        for machine in &self.machines {
            let log = fs::read_to_string(machine.dir.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            let _ = writeln!(all, "── {}", machine.name);
            for line in tail.iter().rev() {
                let _ = writeln!(all, "{line}");
            }
        }
        all
    }
}

/// What a command printed, which has to succeed.
#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a person still reads.
fn shortened(text: &str) -> String {
    text.chars().take(4000).collect()
}

fn owners_in(shown: &Value) -> Option<BTreeMap<IpAddr, Option<String>>> {
    let pair = |vip: &Value| Some((vip["address"].as_str()?.parse().ok()?, vip["owner"].as_str().map(str::to_owned)));
    shown["vips"].as_array()?.iter().map(pair).collect()
}

/// Settings first, then the topologies, then whatever tables there are.
fn insert_topologies(duravip: &str, topologies: &str) -> String {
    let at = duravip.find("\n[").map_or(duravip.len(), |at| at + 1);
    let (settings, tables) = duravip.split_at(at);
    format!("{settings}\n{topologies}{tables}")
}

/// The machines' own addresses end in small numbers; managed ones are `10.77.1.0` and above, and `fd77::1:…`.
fn is_managed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.octets()[..2] == [10, 77] && address >= Ipv4Addr::new(10, 77, 1, 0) && address.octets()[2] != 255
        }
        IpAddr::V6(address) => address.segments()[0] == 0xFD77 && address.segments()[6] != 0,
    }
}

fn addresses_in(listed: &Value) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for item in listed.as_array().into_iter().flatten() {
        found.extend(item["dst"].as_str().and_then(|address| address.parse::<IpAddr>().ok()));
        let infos = item["addr_info"].as_array().into_iter().flatten();
        found.extend(infos.filter_map(|info| info["local"].as_str()?.parse::<IpAddr>().ok()));
    }
    found
}

impl Drop for Lab {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            if let Some(child) = &mut machine.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if let Some(mut child) = self.server.as_mut().and_then(|server| server.child.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The guards of those that were killed end by themselves; their namespaces may go before.
        let mut namespaces: Vec<String> = self.machines.iter().map(|machine| machine.namespace.clone()).collect();
        namespaces.extend([self.outside(), self.switch()]);
        for namespace in namespaces {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
}
