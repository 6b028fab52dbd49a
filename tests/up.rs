//! `eccluster up` as a newcomer runs it: what it prints is true, the commands that it prints work as printed, Ctrl-C ends all of it,
//! and the same command resumes it. Once as whoever runs the tests, and as people with fewer rights where the tests run as root.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid};
use support::{ECCLUSTER, eccluster, eventually, ok};

/// `nobody`, by the number that it has everywhere.
const NOBODY: u32 = 65534;

/// Who runs `up`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// Whoever runs the tests.
    Me,
    /// A user without any rights: namespaces only if the machine lets everybody make them.
    Nobody,
    /// root in a container: no CAP_SYS_ADMIN, so no network namespaces.
    Restricted,
    /// The same where user namespaces are forbidden as well, so that not even a check can be isolated.
    Confined,
}

/// A newcomer with a home, a copy of the binary and an empty directory to work in.
struct Newcomer {
    who: Who,
    // Held for its Drop.
    home: tempfile::TempDir,
    binary: PathBuf,
}

impl Newcomer {
    fn new(who: Who) -> Newcomer {
        let home = tempfile::tempdir().unwrap();
        // Others cannot look into the checkout of whoever runs the tests.
        let binary = home.path().join("eccluster");
        if std::fs::hard_link(ECCLUSTER, &binary).is_err() {
            std::fs::copy(ECCLUSTER, &binary).unwrap();
        }
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(home.path().join("work")).unwrap();
        if who == Who::Nobody {
            for path in [home.path().to_owned(), home.path().join("work")] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Newcomer { who, home, binary }
    }

    fn work(&self) -> PathBuf {
        self.home.path().join("work")
    }

    /// A program as this person, in their empty directory.
    fn command(&self, program: &Path) -> Command {
        let mut command = match self.who {
            Who::Me => Command::new(program),
            Who::Nobody => wrapped("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"], program),
            Who::Restricted => wrapped("setpriv", &["--bounding-set=-sys_admin"], program),
            Who::Confined => {
                let confine =
                    "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin \"$@\"";
                wrapped("unshare", &["--user", "--map-root-user", "sh", "-c", confine, "sh"], program)
            }
        };
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        command.env_clear().env("PATH", path).env("HOME", self.home.path()).env("LANG", "C.UTF-8");
        // As on a machine with a certificate bundle of its own, whose git looks nowhere else.
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        command.current_dir(self.work()).stdin(Stdio::null());
        command
    }

    /// Runs a line of what `up` printed, as a shell would.
    fn type_in(&self, line: &str) -> String {
        ok(self.command(Path::new("sh")).args(["-c", line]))
    }

    fn up(&self, options: &[&str]) -> Up {
        let mut command = self.command(&self.binary);
        command.arg("up").args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, as a shell gives to what it runs in the foreground.
        let mut child = command.process_group(0).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let out: Box<dyn std::io::Read + Send> = Box::new(child.stdout.take().unwrap());
        let err: Box<dyn std::io::Read + Send> = Box::new(child.stderr.take().unwrap());
        for stream in [out, err] {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    said.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        Up { child, said, pids: BTreeSet::new() }
    }
}

fn wrapped(wrapper: &str, options: &[&str], program: &Path) -> Command {
    let mut command = Command::new(wrapper);
    command.args(options).arg(program);
    command
}

/// A running `up`.
struct Up {
    child: Child,
    said: Arc<Mutex<String>>,
    pids: BTreeSet<u32>,
}

impl Up {
    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits for a line that contains `words`; gives everything that was said until then.
    fn wait_for(&mut self, words: &str) -> String {
        eventually(&format!("`up` says {words:?}"), || {
            let said = self.said();
            assert!(self.child.try_wait().unwrap().is_none() || said.contains(words), "`up` ended:\n{said}");
            said.lines().any(|line| line.contains(words)).then_some(said)
        })
    }

    /// Waits until the cluster is there, and reads what was printed about it.
    fn ready(&mut self) -> Printed {
        let printed = Printed::read(&self.wait_for("Commits appear below as they arrive"));
        self.pids = descendants(self.child.id());
        let own: BTreeSet<u32> = printed.nodes.iter().flat_map(|node| node.pids).collect();
        assert!(own.is_subset(&self.pids), "{own:?} are not all among {:?}", self.pids);
        printed
    }

    /// Ctrl-C, and what is left a moment later: nothing.
    fn interrupt(mut self) {
        killpg(group(&self.child), Signal::SIGINT).unwrap();
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.said());
        assert!(self.said().contains("Ending the cluster; the same command resumes it."), "{}", self.said());
        let left: Vec<_> = self.pids.iter().filter(|pid| !is_gone(**pid)).collect();
        assert!(left.is_empty(), "still there: {left:?}\n{}", self.said());
    }

    /// Ends `up` as a crash would; what it has started ends by itself.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.ended();
        for pid in &self.pids {
            eventually(&format!("process {pid} has ended"), || is_gone(*pid).then_some(()));
        }
    }

    fn ended(&mut self) -> ExitStatus {
        eventually("`up` has ended", || self.child.try_wait().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- eccluster up\n{}", self.said());
        }
    }
}

/// What `up` says about the cluster.
struct Printed {
    first_line: String,
    nodes: Vec<PrintedNode>,
    password: PathBuf,
    ca: PathBuf,
    commands: Vec<String>,
    no_checks: bool,
}

#[derive(Debug, PartialEq)]
struct PrintedNode {
    name: String,
    url: String,
    web: SocketAddr,
    pids: [u32; 3],
}

impl Printed {
    fn read(said: &str) -> Printed {
        let after = |label: &str| {
            let line = said.lines().find_map(|line| line.trim_start().strip_prefix(label));
            line.unwrap_or_else(|| panic!("nothing about {label:?} in:\n{said}")).trim().to_owned()
        };
        let commands = said.lines().skip_while(|line| !line.starts_with("Try, ")).skip(1);
        let commands = commands.take_while(|line| line.is_empty() || line.starts_with("  "));
        Printed {
            first_line: said.lines().next().unwrap_or_default().to_owned(),
            nodes: said.lines().filter_map(PrintedNode::read).collect(),
            password: after("user          admin, password in ").into(),
            ca: after("certificate   ").into(),
            commands: commands.filter(|line| !line.is_empty()).map(|line| line.trim().to_owned()).collect(),
            no_checks: said.contains("Changes are not checked before they are put in place"),
        }
    }
}

impl PrintedNode {
    /// `  n1  https://…  ecconfigd pid 1, agent pid 2, web service http://… pid 3`
    fn read(line: &str) -> Option<PrintedNode> {
        let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
        let [name, url, "ecconfigd", "pid", server, "agent", "pid", agent, "web", "service", web, "pid", own] =
            words[..]
        else {
            return None;
        };
        Some(PrintedNode {
            name: name.to_owned(),
            url: url.to_owned(),
            web: web.strip_prefix("http://")?.parse().ok()?,
            pids: [server.parse().ok()?, agent.parse().ok()?, own.parse().ok()?],
        })
    }

    /// The network namespaces of its programs, where one may look.
    fn networks(&self) -> BTreeSet<PathBuf> {
        self.pids.iter().map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()).collect()
    }

    /// The page of the node's web service; nothing while it is not there.
    fn page(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.web).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    fn shows(&self, words: &str) {
        let what = format!("the page of {} shows {words:?}", self.name);
        eventually(&what, || self.page().filter(|page| page.contains(words)));
    }
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A zombie runs no more; who has to reap it is not our business.
fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// `of` and every process that it has started, directly or not.
fn descendants(of: u32) -> BTreeSet<u32> {
    let all: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1)))
        .collect();
    let mut found = BTreeSet::from([of]);
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Whether this person can make a namespace of this kind.
fn may_unshare(newcomer: &Newcomer, kind: &str) -> bool {
    let output = newcomer.command(Path::new("unshare")).args(["--user", kind, "true"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// The whole story, for a cluster of any number of nodes.
fn story(who: Who, options: &[&str]) {
    let newcomer = Newcomer::new(who);
    let mut up = newcomer.up(options);
    let printed = up.ready();

    // What it says about itself is true.
    let count = printed.nodes.len();
    let network = match who {
        Who::Me if Uid::effective().is_root() => "(running as root)",
        Who::Me | Who::Nobody if may_unshare(&newcomer, "--net") => "(user namespaces are allowed)",
        _ => "on loopback ports (",
    };
    assert!(printed.first_line.starts_with(&format!("A cluster of {count} node")), "{}", printed.first_line);
    assert!(printed.first_line.contains(network), "{} in {}", network, printed.first_line);
    assert_eq!(printed.no_checks, who == Who::Confined, "{}", up.said());
    let password = std::fs::read_to_string(&printed.password).unwrap();
    assert!(password.trim_end().chars().all(|c| c.is_ascii_alphanumeric()) && password.len() > 16, "not plain");
    assert_eq!(std::fs::metadata(&printed.password).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&printed.ca).unwrap().contains("BEGIN CERTIFICATE"));
    for node in &printed.nodes {
        node.shows("Change default/web/site.toml");
    }
    // A node's programs share one network, and no two nodes do.
    let networks: Vec<BTreeSet<PathBuf>> = printed.nodes.iter().map(PrintedNode::networks).collect();
    let wanted = if network.contains("loopback") { 1 } else { count };
    assert!(networks.iter().all(|of_node| of_node.len() == 1), "{networks:?}");
    assert_eq!(networks.into_iter().flatten().collect::<BTreeSet<_>>().len(), wanted);

    // The three commands, as they are printed.
    let [clone, eccfg, curl] = &printed.commands[..] else { panic!("not three commands: {:?}", printed.commands) };
    newcomer.type_in(clone);
    assert!(newcomer.work().join("default/default/web/site.toml").exists());
    let log = newcomer.type_in(eccfg);
    assert!(log.contains("Show a first page") && log.contains("Create default"), "{log}");
    let answer: serde_json::Value = serde_json::from_str(&newcomer.type_in(curl)).unwrap();
    assert_eq!(answer["revision"], 3, "{answer}");

    // The commit appears in the output and on the page.
    let said = up.wait_for("admin: Say hello");
    assert!(said.contains("default r3  admin: Say hello  (n1/web/site.toml)"), "{said}");
    printed.nodes[0].shows("Hello from curl");

    // A push from the clone is a matter of plain git.
    let push = "cd default && git pull -q && git config user.name N && git config user.email n@example.org && \
                echo 'message = \"Hello from git\"' > n1/web/site.toml && git commit -qam 'By git' && git push -q";
    newcomer.type_in(push);
    up.wait_for("admin: By git");
    printed.nodes[0].shows("Hello from git");

    // A second one in the same place is told who is there; the first is not disturbed.
    let second = newcomer.command(&newcomer.binary).arg("up").output().unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains("is in use by eccluster up"), "{words}");
    assert!(words.contains("hint: "), "{words}");

    // Ctrl-C ends all of it, and the same command resumes the same cluster.
    up.interrupt();
    let mut up = newcomer.up(&[]);
    let resumed = up.ready();
    let places = |printed: &Printed| -> Vec<(String, String, SocketAddr)> {
        printed.nodes.iter().map(|node| (node.name.clone(), node.url.clone(), node.web)).collect()
    };
    assert_eq!(places(&resumed), places(&printed));
    assert_eq!(resumed.commands, printed.commands);
    assert_eq!(std::fs::read_to_string(&resumed.password).unwrap(), password);
    let log = newcomer.type_in(eccfg);
    assert!(log.contains("r4  ") && log.contains("By git") && log.contains("Say hello"), "{log}");
    resumed.nodes[0].shows("Hello from git");
    newcomer.type_in("cd default && git pull -q && git push -q");

    // A program that dies is started again, and where there are others its death changes nothing for a client.
    let [server, ..] = resumed.nodes[0].pids;
    support::signal(server, Signal::SIGKILL);
    if count > 2 {
        newcomer.type_in(eccfg);
        let again = curl.replace("Say hello", "Say it again").replace("n1/web", "n2/web");
        newcomer.type_in(&again.replace(&resumed.nodes[0].url, &resumed.nodes[1].url));
        up.wait_for("admin: Say it again");
        resumed.nodes[1].shows("Hello from curl");
    }
    up.wait_for("n1  ecconfigd ended");
    up.wait_for("n1  ecconfigd runs again");
    eventually("the server serves again", || {
        let output = newcomer.command(Path::new("sh")).args(["-c", eccfg]).output().unwrap();
        output.status.success().then_some(())
    });
    up.pids = descendants(up.child.id());
    up.kill();
}

/// True, and said, where the story of others cannot be played.
fn not_root() -> bool {
    let not_root = !Uid::effective().is_root();
    if not_root {
        eprintln!("left out: only root can become somebody else");
    }
    not_root
}

#[test]
fn three_nodes_as_whoever_runs_the_tests() {
    story(Who::Me, &[]);
}

#[test]
fn one_node_in_a_namespace_of_its_own() {
    story(Who::Me, &["--nodes", "1"]);
}

#[test]
fn a_cluster_is_not_started_with_fewer_nodes_than_it_has() {
    let newcomer = Newcomer::new(Who::Me);
    let mut up = newcomer.up(&["--nodes", "2"]);
    assert_eq!(up.ready().nodes.len(), 2);
    up.interrupt();
    let fewer = newcomer.command(&newcomer.binary).args(["up", "--nodes", "1"]).output().unwrap();
    let words = String::from_utf8_lossy(&fewer.stderr).into_owned();
    assert!(!fewer.status.success() && words.contains("has 2 nodes") && words.contains("hint: "), "{words}");
    let mut up = newcomer.up(&["--nodes", "3"]);
    assert_eq!(up.ready().nodes.len(), 3, "one more joins");
    up.interrupt();
}

#[test]
fn as_a_user_without_rights() {
    if !not_root() {
        story(Who::Nobody, &[]);
    }
}

#[test]
fn as_root_without_the_right_to_make_namespaces() {
    if !not_root() {
        story(Who::Restricted, &[]);
    }
}

#[test]
fn where_no_namespace_of_any_kind_is_allowed() {
    let confined = Newcomer::new(Who::Confined);
    if not_root() || !confined.command(Path::new("true")).status().is_ok_and(|status| status.success()) {
        eprintln!("left out: user namespaces are not allowed, so none can be made in which they are forbidden");
        return;
    }
    story(Who::Confined, &["--nodes", "1"]);
}

#[test]
fn wrong_usage_and_other_peoples_files() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = eccluster(home.path()).args(args).current_dir(home.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for args in [&["up", "--dri", "x"][..], &[], &["nosuch"], &["install-links"], &["up", "--nodes", "many"]] {
        let (status, out, err) = run(args);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 2, "{args:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains("\nhint: eccluster --help"), "{args:?}: {err}");
    }
    for args in [["--help"], ["--version"]] {
        let (status, out, err) = run(&args);
        assert_eq!((status, err.as_str()), (Some(0), ""));
        assert!(out.contains("eccluster"), "{out}");
    }

    let (status, out, _) = run(&["install-links", "bin", "--json"]);
    let links: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status, Some(0));
    assert!(links["links"].as_array().unwrap().contains(&"bin/eccfg".into()), "{links}");
    assert!(ok(Command::new(home.path().join("bin/eccfg")).arg("--version")).starts_with("eccfg "));
    std::fs::create_dir(home.path().join("other")).unwrap();
    std::fs::write(home.path().join("other/eccfg"), "somebody's own").unwrap();
    let (status, _, err) = run(&["install-links", "other"]);
    assert_eq!(status, Some(1));
    assert!(err.contains("other/eccfg") && err.contains("hint: "), "{err}");
    assert_eq!(std::fs::read_to_string(home.path().join("other/eccfg")).unwrap(), "somebody's own");
}
