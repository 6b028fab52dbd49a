//! Nodes with logd on this machine: the real binary, each with a loopback address, a directory and a control socket of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster::identity::{Ca, KeyRequest, NodeCert, NodeRole};
use tempfile::TempDir;

pub use crate::support::{DEADLINE, ECCLUSTER, eventually};

/// A seeded sequence; the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// A configuration, a key, and the daemons that follow it.
pub struct Lab {
    pub dir: TempDir,
    addresses: BTreeMap<String, String>,
    daemons: BTreeMap<String, Child>,
    logd: String,
    /// The certificates that nodes show, in place of the cluster's key.
    identities: BTreeMap<String, PathBuf>,
    /// Nodes that follow servers instead of the directory.
    servers: BTreeMap<String, String>,
}

impl Lab {
    /// Nodes with one configuration; nobody runs yet. `{out}` in it is a directory for managers' files, `{dir}` the lab's own.
    pub fn new(nodes: &[&str], logd: &str) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(1);
        let dir = tempfile::tempdir().unwrap();
        let (process, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        // Addresses of this process alone: the port is always the usual one, also after a restart.
        let net = format!("127.{}.{}", 100 + lab % 100, process % 250);
        let addresses = (1..).zip(nodes).map(|(host, node)| ((*node).to_owned(), format!("{net}.{host}"))).collect();
        let mut lab = Self {
            dir,
            addresses,
            daemons: BTreeMap::new(),
            logd: String::new(),
            identities: BTreeMap::new(),
            servers: BTreeMap::new(),
        };
        fs::create_dir_all(lab.path("conf/global")).unwrap();
        fs::create_dir_all(lab.path("conf/default")).unwrap();
        fs::write(lab.path("key"), "5a".repeat(32)).unwrap();
        lab.reach_at(&BTreeMap::new());
        lab.configure(logd);
        lab
    }

    /// Gives every node an identity of one cluster; the next starts use them instead of the key.
    pub fn certify(&mut self) {
        let nodes: Vec<String> = self.addresses.keys().cloned().collect();
        self.certify_by(&Ca::create("lab").unwrap(), &nodes);
    }

    /// The same for some nodes by a CA.
    pub fn certify_by(&mut self, ca: &Ca, nodes: &[String]) {
        for node in nodes {
            let address = &self.addresses[node];
            let request = KeyRequest::generate(node).unwrap();
            let mut names = NodeCert::new(node, "default", NodeRole::Client);
            for reached in [address.as_str(), "localhost", "127.0.0.1"] {
                names = names.reached_at(reached);
            }
            let chain = ca.issue(request.csr_pem(), &names, Duration::from_secs(3600)).unwrap();
            let identity = request.certified(&chain.pem, ca.certificate_pem()).unwrap();
            let dir = self.dir.path().join(node).join("identity");
            identity.store(&dir).unwrap();
            self.identities.insert(node.clone(), dir);
        }
    }

    /// Writes `cluster.toml` anew, with other addresses for some nodes than the ones that they listen on.
    pub fn reach_at(&self, others: &BTreeMap<String, String>) {
        let mut cluster = String::new();
        for (node, address) in &self.addresses {
            let address = others.get(node).unwrap_or(address);
            cluster.push_str(&format!("[node.{node}]\naddress = \"{address}\"\n"));
        }
        fs::write(self.path("conf/global/cluster.toml"), cluster).unwrap();
    }

    /// Has a node follow a server from its next start on.
    pub fn follow(&mut self, node: &str, url: &str, identity: &Path) {
        self.servers.insert(node.into(), url.into());
        self.identities.insert(node.into(), identity.into());
    }

    pub fn identity(&self, node: &str) -> &Path {
        &self.identities[node]
    }

    pub fn address(&self, node: &str) -> &str {
        &self.addresses[node]
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `logd.toml`, whole, as a working copy's exchange does.
    pub fn configure(&mut self, logd: &str) {
        self.logd = logd.replace("{out}", &self.path("out").display().to_string());
        self.logd = self.logd.replace("{dir}", &self.dir.path().display().to_string());
        fs::write(self.path("conf/default/.new"), &self.logd).unwrap();
        fs::rename(self.path("conf/default/.new"), self.path("conf/default/logd.toml")).unwrap();
    }

    pub fn command(&self, node: &str) -> Command {
        // Another build, for long or large runs by hand.
        let program = std::env::var_os("ECCLUSTER_BIN").unwrap_or_else(|| ECCLUSTER.into());
        let mut command = Command::new(program);
        command.env("ECCLUSTER_RUN", self.path(node).join("run")).env_remove("EC_CONF_SEARCH_PATH").arg("logd");
        command
    }

    /// Starts a node's daemon and waits until it serves.
    pub fn start(&mut self, node: &str) {
        self.start_with(node, &[]);
    }

    /// The same with some of the environment.
    pub fn start_with(&mut self, node: &str, environment: &[(&str, &str)]) {
        self.spawn(node, environment);
        self.wait_until_it_answers(node);
    }

    pub fn wait_until_it_answers(&mut self, node: &str) {
        eventually("the daemon answers", || {
            if let Some(status) = self.daemons.get_mut(node).unwrap().try_wait().unwrap() {
                panic!("{node} ended: {status}\n{}", self.log(node));
            }
            self.run(node, &["logs"]).status.success().then_some(())
        });
    }

    pub fn spawn(&mut self, node: &str, environment: &[(&str, &str)]) {
        fs::create_dir_all(self.path(node)).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{node}/log"))).unwrap();
        let child = self
            .command(node)
            .envs(environment.iter().copied())
            .args(["run", "--node", node])
            .args(match self.servers.get(node) {
                Some(url) => ["--server".into(), PathBuf::from(url)],
                None => ["--conf".into(), self.path("conf")],
            })
            .arg("--data")
            .arg(self.path(&format!("{node}/data")))
            .arg("--sinks")
            .arg(self.path("sinks"))
            .args(match self.identities.get(node) {
                Some(identity) => ["--identity".into(), identity.clone()].to_vec(),
                None => vec!["--identity".into(), "/nonexistent".into(), "--cluster-key".into(), self.path("key")],
            })
            .args(["--listen", &format!("{}:4802", self.addresses[node])])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        assert!(self.daemons.insert(node.into(), child).is_none(), "{node} runs already");
    }

    /// Ends a daemon with SIGKILL.
    pub fn kill(&mut self, node: &str) {
        let mut child = self.daemons.remove(node).expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends a daemon in order.
    pub fn stop(&mut self, node: &str) {
        let mut child = self.daemons.remove(node).expect("it runs");
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = eventually("the daemon ends", || child.try_wait().unwrap());
        assert!(status.success(), "{node}: {status}\n{}", self.log(node));
    }

    pub fn pid(&self, node: &str) -> u32 {
        self.daemons[node].id()
    }

    pub fn is_running(&self, node: &str) -> bool {
        self.daemons.contains_key(node)
    }

    /// A status, when the daemon has ended by itself.
    pub fn ended(&mut self, node: &str) -> Option<std::process::ExitStatus> {
        let ended = self.daemons.get_mut(node)?.try_wait().unwrap()?;
        self.daemons.remove(node);
        Some(ended)
    }

    pub fn log(&self, node: &str) -> String {
        fs::read_to_string(self.path(&format!("{node}/log"))).unwrap_or_default()
    }

    /// Runs `logd` for a node.
    pub fn run(&self, node: &str, args: &[&str]) -> Output {
        self.command(node).args(args).output().unwrap()
    }

    /// Runs `logd` for a node with lines on its standard input.
    pub fn spawn_send(&self, node: &str, log: &str) -> Child {
        self.command(node).args(["send", log]).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// The lines of all of a log's aggregated files, file after file, with a manager's layout of `{out}/MANAGER/LOG/NODE`.
    pub fn lines(&self, path: &str) -> Vec<String> {
        let text = fs::read(self.path("out").join(path)).unwrap_or_default();
        let mut lines: Vec<String> =
            text.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into()).collect();
        // What is behind the last line break: nothing, or a line that is being written.
        lines.pop();
        lines
    }

    pub fn socket(&self, node: &str, log: &str) -> PathBuf {
        self.path(&format!("{node}/run/log/{log}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.daemons.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for node in self.addresses.keys() {
                let log = self.log(node);
                let from = log.len().saturating_sub(6000);
                eprintln!("--- {node}\n{}", &log[from..]);
            }
        }
    }
}

/// A service that must not lose a line: numbers them, waits for acknowledgements, sends again.
pub struct Client {
    socket: PathBuf,
    id: String,
    pub acknowledged: u64,
}

impl Client {
    pub fn new(socket: PathBuf, id: &str) -> Self {
        Self::behind(socket, id, 0)
    }

    /// One that sent some before.
    pub fn behind(socket: PathBuf, id: &str, acknowledged: u64) -> Self {
        Self { socket, id: id.into(), acknowledged }
    }

    /// Sends `ID NUMBER` up to a number, over as many connections as it takes.
    pub fn send_until(&mut self, last: u64) {
        let begun = Instant::now();
        while self.acknowledged < last {
            assert!(begun.elapsed() < DEADLINE, "{}: {} of {last} acknowledged", self.id, self.acknowledged);
            if self.attempt(last).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn attempt(&mut self, last: u64) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        writeln!(stream, "ECLOG 1 {}", self.id)?;
        let mut answers = BufReader::new(stream.try_clone()?);
        // Always from a little before: what is sent again has to be dropped.
        let from = self.acknowledged.saturating_sub(5).max(1);
        let lines: String = (from..=last).map(|number| format!("{number} {} {number}\n", self.id)).collect();
        let writer = std::thread::spawn(move || stream.write_all(lines.as_bytes()));
        let result = self.read_answers(&mut answers, last);
        drop(answers);
        let _ = writer.join();
        result
    }

    fn read_answers(&mut self, answers: &mut BufReader<UnixStream>, last: u64) -> std::io::Result<()> {
        while self.acknowledged < last {
            let mut answer = String::new();
            if answers.read_line(&mut answer)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let number = answer.trim_end().strip_prefix("ack ").expect("an acknowledgement").parse().unwrap();
            self.acknowledged = self.acknowledged.max(number);
        }
        Ok(())
    }
}

/// Every line of each source exactly once and in order; `expected` says how many.
#[track_caller]
pub fn check_sources(lines: &[String], expected: &BTreeMap<String, u64>) {
    let mut next: BTreeMap<&str, u64> = BTreeMap::new();
    for (place, line) in lines.iter().enumerate() {
        let (source, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("line {place} is {line:?}"));
        let number: u64 = number.parse().unwrap_or_else(|_| panic!("line {place} is {line:?}"));
        let expected = next.entry(source).or_insert(1);
        assert_eq!(number, *expected, "line {place} of {}: {source} goes on with {number}", lines.len());
        *expected += 1;
    }
    for (source, count) in expected {
        assert_eq!(next.get(source.as_str()).map_or(0, |next| next - 1), *count, "lines of {source}");
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A compiled shim for `LD_PRELOAD`.
pub fn compile_shim(dir: &Path, source: &str) -> PathBuf {
    let (c, so) = (dir.join("shim.c"), dir.join("shim.so"));
    fs::write(&c, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&so).arg(&c).output().unwrap();
    assert!(built.status.success(), "{}", text(&built));
    so
}

/// A program that runs beside the daemons; ended with the test.
pub struct Program(Child);

impl Program {
    /// `None`, with words, where it is not installed.
    pub fn start(command: &mut Command) -> Option<Self> {
        match command.stdin(Stdio::null()).spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: {:?} is not installed", command.get_program());
                None
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// Every line of each source at least once, and in order where it comes first.
#[track_caller]
pub fn check_at_least_once(lines: &[String], expected: &BTreeMap<String, u64>) {
    let mut seen = std::collections::BTreeSet::new();
    let first: Vec<String> = lines.iter().filter(|line| seen.insert(line.as_str())).cloned().collect();
    check_sources(&first, expected);
}

/// A port that nobody has at the moment, on an address of this process alone.
pub fn free_port(ip: &str) -> u16 {
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port()
}
