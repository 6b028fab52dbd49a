//! `cidr` as it runs: real daemons, real sockets, the real command line.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod member;
mod shell;

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{eccluster, eventually, ok, signal};
use tempfile::TempDir;

/// A machine with a daemon.
struct Node {
    name: String,
    home: PathBuf,
    conf: PathBuf,
    /// Of a cluster's member: options instead of the directory and the cluster key.
    member: Vec<String>,
    child: Option<Child>,
}

impl Node {
    fn start(top: &Path, conf: &Path, name: &str) -> Node {
        Self::start_with(top, conf, name, Vec::new())
    }

    fn start_with(top: &Path, conf: &Path, name: &str, member: Vec<String>) -> Node {
        let home = top.join(name);
        std::fs::create_dir_all(&home).unwrap();
        let mut node = Node { name: name.into(), home, conf: conf.into(), member, child: None };
        node.spawn();
        node
    }

    fn run_command(&self) -> Command {
        let mut command = eccluster(&self.home);
        command.args(["cidr", "run", "--node", &self.name, "--listen", "127.0.0.1:0"]);
        // So little memory that a long sorted answer comes in many passes: a query that somebody can end.
        command.args(["--query-memory-mib", "2"]);
        command.arg("--data").arg(self.home.join("data")).arg("--port-file").arg(self.home.join("ports"));
        if !self.member.is_empty() {
            command.args(&self.member);
            return command;
        }
        command.arg("--conf").arg(&self.conf).arg("--identity").arg(self.home.join("no-identity"));
        command.arg("--logs").arg(self.home.join("logs"));
        let key = self.conf.parent().unwrap().join("key");
        if key.exists() {
            command.arg("--cluster-key").arg(key);
        }
        command
    }

    fn spawn(&mut self) {
        let _ = std::fs::remove_file(self.home.join("ports"));
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("log")).unwrap();
        self.child = Some(self.run_command().stdin(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the daemon listens", || std::fs::read_to_string(self.home.join("ports")).ok());
        eventually("a configuration is in use", || {
            let status = self.cidr(&["status"]).output().unwrap();
            let status: Value = serde_json::from_slice(&status.stdout).ok()?;
            (status["version"] != "").then_some(())
        });
    }

    fn address(&self, prefix: &str) -> String {
        let ports = std::fs::read_to_string(self.home.join("ports")).unwrap();
        let line = ports.lines().find(|line| line.starts_with("udp:") != prefix.is_empty()).unwrap();
        line.trim_start_matches("udp:").to_owned()
    }

    /// Where HTTP is served.
    fn addresses(&self) -> Vec<String> {
        let ports = std::fs::read_to_string(self.home.join("ports")).unwrap();
        ports.lines().filter(|line| !line.starts_with("udp:")).map(str::to_owned).collect()
    }

    fn port(&self) -> u16 {
        self.address("").rsplit(':').next().unwrap().parse().unwrap()
    }

    fn cidr(&self, args: &[&str]) -> Command {
        let mut command = eccluster(&self.home);
        command.arg("cidr").args(args);
        command
    }

    fn add(&self, lines: &str) {
        let mut child = self.cidr(&["add", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn query(&self, query: &str) -> String {
        let output = self.cidr(&["query", query]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The sum of a series over everything that was handed in.
    fn sum(&self, series: &str) -> Option<i64> {
        let answer = self.query(&format!("show count for 0.0.0.0/0 in {series} cidrsize 0"));
        answer.trim().rsplit(' ').next()?.parse().ok()
    }

    fn has_sum(&self, series: &str, expected: i64) {
        eventually(&format!("{} has {expected} in {series}", self.name), || {
            (self.sum(series) == Some(expected)).then_some(())
        });
    }

    fn http(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("")).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.http("GET", path, "text/plain", "")
    }

    fn end(&mut self, how: Signal) {
        let Some(mut child) = self.child.take() else { return };
        signal(child.id(), how);
        let status = child.wait().unwrap();
        assert!(how == Signal::SIGKILL || status.success(), "{status}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("log of {}:\n{}", self.name, self.log());
        }
    }
}

const SETTINGS: &str =
    "[as_logger]\nlog_interval = \"1s\"\nseries_include_default = \"all\"\nseries_exclude = [\"^test-\"]\n";

/// A directory laid out like a working copy.
fn conf(top: &TempDir, files: &[(&str, &str)]) -> PathBuf {
    let conf = top.path().join("conf");
    for (path, text) in files {
        write(&conf, path, text);
    }
    conf
}

fn write(conf: &Path, path: &str, text: &str) {
    let path = conf.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn events_of_every_input_are_kept_and_answered() {
    let top = tempfile::tempdir().unwrap();
    let conf =
        conf(&top, &[("default/cidr.toml", SETTINGS), ("default/cidr/lists/bad", "10.0.0.0/8 ten\n!10.9.0.0/16\n")]);
    let mut node = Node::start(top.path(), &conf, "n1");

    node.add("spam 10.79.18.1 3\nspam 2001:db8::1\ntest-x 10.0.0.1\n");
    let mut unix = UnixStream::connect(node.home.join("run/cidr-events.sock")).unwrap();
    unix.write_all(b"spam 10.79.18.1 4\nnonsense\nspam ::ffff:10.79.18.2").unwrap();
    unix.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("counted 2 refused 1: a line is SERIES ADDRESS [AMOUNT] in \"nonsense\""), "{answer}");
    let mut unix = UnixStream::connect(node.home.join("run/cidr-events.sock")).unwrap();
    unix.write_all(b"ECB1\x12\0\0\0\0\x04spam\x02\0\0\0\x0a\x4f\x12\x01\x0a\x4f\x12\x03").unwrap();
    unix.shutdown(std::net::Shutdown::Write).unwrap();
    answer.clear();
    unix.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "counted 2\n");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"spam 10.79.18.1 100", node.address("udp")).unwrap();
    udp.send_to(&[0xff; 900], node.address("udp")).unwrap();
    let two_days_ago =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - 2 * 86_400;
    let lines = format!(
        "{{\"series\":\"spam\",\"address\":\"10.79.18.1\",\"amount\":10}}\n{{\"series\":\"spam\"}}\n\
         {{\"series\":\"old\",\"address\":\"10.79.18.1\",\"time\":{two_days_ago}}}\n"
    );
    let (status, answer) = node.http("POST", "/events", "application/x-ndjson", &lines);
    assert!(
        status == 200 && answer.contains("\"counted\":2,\"refused\":1,\"why\":\"line 2: missing field"),
        "{answer}"
    );

    node.has_sum("spam", 3 + 4 + 1 + 2 + 100 + 10);
    assert_eq!(
        node.query("show count for 10.79.18.0/24 in spam order by count"),
        "10.79.18.1/32      :       118\n10.79.18.2/32      :         1\n10.79.18.3/32      :         1\n"
    );
    assert_eq!(node.query("show count for ::/0 in spam"), "2001:db8::1/128    :         1\n");
    // What is late is in its own window, and what is excluded nowhere.
    node.has_sum("old", 1);
    assert_eq!(node.query("show count for 10.0.0.0/8 in old since 3d"), "10.79.18.1/32      :         1\n");
    assert_eq!(node.query("show count for 10.0.0.0/8 in old since 1d"), "");
    assert!(!node.query("show available").contains("test-x"));
    // Live, over HTTP and the command line.
    assert_eq!(ok(&mut node.cidr(&["count", "10.79.18.0/24", "in", "spam", "last", "30m"])), "120\n");
    let (status, answer) = node.get("/count?series=spam&block=10.79.18.1&last=5m");
    assert!(status == 200 && answer.contains("\"count\":118"), "{answer}");
    ok(&mut node.cidr(&["remove", "spam", "10.79.18.1"]));
    assert_eq!(ok(&mut node.cidr(&["count", "10.79.18.0/24 in spam"])), "2\n");

    let (status, answer) = node.get("/query?q=show+count+for+10.79.18.0/24+in+spam+cidrsize+24&format=json");
    let json: Value = serde_json::from_str(
        answer
            .split_once("\r\n")
            .map_or(&*answer, |(_, rest)| rest.rsplit_once("\r\n0").map_or(rest, |(json, _)| json)),
    )
    .unwrap();
    assert_eq!((status, &json["rows"][0]["counts"][0]), (200, &Value::from(120)));
    let (status, answer) = node.get("/query?q=show+cuont");
    assert!(status == 400 && answer.contains("did you mean"), "{status} {answer}");
    assert_eq!(node.get("/healthz").0, 200);
    assert!(node.get("/metrics").1.contains("cidr_events_total{input=\"udp\"} 1"), "{}", node.get("/metrics").1);
    assert!(node.get("/series").1.contains("\"series\":\"spam\""));
    assert_eq!(node.get("/cluster/count?series=spam&block=10.0.0.0/8&last=5m").0, 403);
    let wrong = node.cidr(&["query", "show cuont for 10.0.0.0/8 in spam"]).output().unwrap();
    let words = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && words.contains("^^^^^") && words.contains("count"), "{words}");

    // Lists, swapped on change.
    let lookup = |address: &str| node.get(&format!("/lists/lookup?address={address}")).1;
    assert!(lookup("10.1.2.3").contains("\"block\":\"10.0.0.0/8\",\"text\":\"ten\""), "{}", lookup("10.1.2.3"));
    assert!(lookup("10.9.2.3").contains("\"found\":[]"));
    write(&conf, "default/cidr/lists/bad", "10.1.2.0/24 closer\n");
    eventually("the list is exchanged", || lookup("10.1.2.3").contains("closer").then_some(()));
    let (_, bulk) = node.http("POST", "/lists/lookup", "text/plain", "10.1.2.3\nx\n10.9.2.3\n");
    assert!(bulk.lines().filter(|line| line.contains("address")).count() == 3, "{bulk}");

    // A second daemon is told who has the directory, and a stop loses nothing.
    let second = node.run_command().output().unwrap();
    assert_eq!(second.status.code(), Some(3), "{}", String::from_utf8_lossy(&second.stderr));
    node.add("spam 10.79.18.9 1000\n");
    node.end(Signal::SIGTERM);
    node.spawn();
    node.has_sum("spam", 1120);
    assert!(ok(&mut node.cidr(&["verify"])).contains(" 0 damaged"));
    assert!(ok(&mut node.cidr(&["maintain", "--json"])).contains("\"days\":"));
    let mut shell = node.cidr(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"show count for 10.79.18.9 in spam\ncache details\nquit\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"10.79.18.9/32      :      1000\n"), "{output:?}");
    node.end(Signal::SIGTERM);
}

#[test]
fn servers_that_were_away_get_everything_once() {
    let top = tempfile::tempdir().unwrap();
    std::fs::write(top.path().join("key"), "5a".repeat(32)).unwrap();
    let settings = format!("[servers]\nnodes = [\"n1\", \"n2\"]\n{SETTINGS}");
    let names = ["n1", "n2", "n3"];
    let nodes_toml = |ports: &[u16]| -> String {
        let node = |(name, port): (&&str, &u16)| {
            format!("[node.{name}]\naddress = \"127.0.0.1\"\nports = {{ cidr = {port} }}\n")
        };
        names.iter().zip(ports).map(node).collect()
    };
    let conf = conf(&top, &[("default/cidr.toml", &settings), ("global/cluster.toml", &nodes_toml(&[1, 2, 3]))]);
    let mut nodes: Vec<Node> = names.iter().map(|name| Node::start(top.path(), &conf, name)).collect();
    let tell = |nodes: &[Node]| {
        let ports: Vec<u16> = nodes.iter().map(Node::port).collect();
        write(&conf, "global/cluster.toml", &nodes_toml(&ports));
    };
    tell(&nodes);
    nodes[2].add("spam 10.0.0.1 1\n");
    nodes[0].has_sum("spam", 1);
    nodes[1].has_sum("spam", 1);
    // A node that is no server says who is.
    let refused = nodes[2].cidr(&["query", "show available"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ask n1, n2"), "{refused:?}");

    nodes[1].end(Signal::SIGKILL);
    for node in [0, 2] {
        nodes[node].add("spam 10.0.0.1 10\nspam 10.0.0.2 100\n");
    }
    nodes[0].has_sum("spam", 221);
    // The live sum says who is missing from it.
    let count = nodes[0].cidr(&["count", "10.0.0.1/32", "in", "spam", "--json"]).output().unwrap();
    let answer: Value = serde_json::from_slice(&count.stdout).unwrap();
    assert_eq!((count.status.code(), &answer["count"], &answer["nodes"]["n3"]), (Some(1), &21.into(), &11.into()));
    assert!(answer["missing"]["n2"].is_string(), "{answer}");
    // A sender that dies and comes back hands in what it has, once.
    nodes[2].end(Signal::SIGTERM);
    nodes[2].spawn();
    nodes[1].spawn();
    tell(&nodes);
    nodes[1].has_sum("spam", 221);
    nodes[2].add("spam 10.0.0.3 1000\n");
    nodes[0].has_sum("spam", 1221);
    nodes[1].has_sum("spam", 1221);
    let query = "show count for 10.0.0.0/8 in spam";
    assert_eq!(nodes[0].query(query), nodes[1].query(query));
    assert_eq!(
        nodes[0].query("show count for 10.0.0.0/8 in spam node n1 order by count limit 1"),
        "10.0.0.2/32        :       100\n"
    );
    let count = ok(&mut nodes[1].cidr(&["count", "10.0.0.3 in spam"]));
    assert_eq!(count, "1000\n");
    nodes.iter_mut().for_each(|node| node.end(Signal::SIGTERM));
}
