//! A member of a cluster: it follows commits, asks for logins, reads a log that logd carries, and takes lists from its groups.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::{Server, eccluster, eventually, fails, ok, signal};
use super::{Node, SETTINGS};

/// An address of this machine that is not loopback, where it has one.
fn outside() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only says where it would go out.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| ip.to_string())
}

struct Logd(Child);

impl Logd {
    fn start(server: &Server, home: &Path) -> Self {
        let log = std::fs::File::create(home.join("logd.log")).unwrap();
        let child = eccluster(home)
            .args(["logd", "run", "--node", "n1", "--listen", "127.0.0.1:0", "--server", &server.url()])
            .arg("--identity")
            .arg(server.data().join("identity"))
            .arg("--data")
            .arg(home.join("logd"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Logd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_member_follows_commits_and_asks_for_logins() {
    let server = Server::start();
    let home = server.dir.path().join("n1");
    std::fs::create_dir_all(&home).unwrap();
    let socket = home.join("auth.sock");
    let logd_toml = format!("[log.auth]\ninput = \"unix:{}\"\nsubscribers = []\n", socket.display());
    let watched = "[series.ssh_fail]\nlog = \"auth\"\npattern = 'Failed password .* from (?P<ip>\\S+)'\n";
    let cidr_toml = format!("{SETTINGS}{watched}");
    let files = [
        ("default/cidr.toml", cidr_toml.as_str()),
        ("default/logd.toml", &logd_toml),
        ("relays/cidr/lists/dial", "10.0.0.0/8 of the relays\n"),
        ("edge/cidr/lists/dial", "10.0.0.0/8 of the edge\n"),
    ];
    server.commit("global", "Nodes", &[("cluster.toml", "[node.n1]\naddress = \"127.0.0.1\"\n")]).unwrap();
    server.commit("default", "Count", &files).unwrap();

    let logd = Logd::start(&server, &home);
    let mut member = vec!["--server".into(), server.url(), "--identity".into()];
    member.push(server.data().join("identity").display().to_string());
    member.extend(["--logs".into(), home.join("logd/journal").display().to_string()]);
    if let Some(outside) = outside() {
        member.extend(["--listen".into(), format!("{outside}:0")]);
    }
    let mut node = Node::start_with(server.dir.path(), Path::new("/nonexistent"), "n1", member);

    // What logd carries becomes a series.
    let send = |lines: &str| {
        let mut sender = eccluster(&home).args(["logd", "send", "auth"]).stdin(Stdio::piped()).spawn().unwrap();
        sender.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        sender.wait().unwrap().success()
    };
    let lines = "sshd: Failed password for root from 10.7.7.7\nsshd: Accepted password for me from 10.7.7.8\n\
                 sshd: Failed password for x from ::ffff:10.7.7.7\nsshd: Failed password for x from nowhere\n";
    eventually("logd takes lines", || send(lines).then_some(()));
    node.has_sum("ssh_fail", 2);
    assert_eq!(node.query("show count for 10.7.7.0/24 in ssh_fail"), "10.7.7.7/32        :         2\n");

    logins(&server, &node);
    if let Some(address) = node.addresses().get(1) {
        // Away from loopback nothing is said without TLS.
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /series HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{}", String::from_utf8_lossy(&answer));
    }

    // A commit puts the node into a group, whose list counts from then on; another changes what is counted.
    let lookup = || node.get("/lists/lookup?address=10.1.2.3").1;
    assert!(lookup().contains("\"found\":[]"), "{}", lookup());
    let grouped = "[node.n1]\naddress = \"127.0.0.1\"\ngroups = [\"relays\"]\n";
    server.commit("global", "Group", &[("cluster.toml", grouped)]).unwrap();
    eventually("the group's list is there", || lookup().contains("of the relays").then_some(()));
    server.commit("default", "List", &[("relays/cidr/lists/dial", "10.1.0.0/16 changed\n")]).unwrap();
    eventually("the list is exchanged", || lookup().contains("changed").then_some(()));
    let other = format!("{SETTINGS}{}", watched.replace("Failed", "Accepted"));
    server.commit("default", "Count others", &[("default/cidr.toml", &other)]).unwrap();
    eventually("the new pattern counts", || {
        send("sshd: Accepted password for me from 10.7.7.9\n");
        node.query("show count for 10.7.7.9 in ssh_fail").starts_with("10.7.7.9/32").then_some(())
    });
    // What nobody can read is refused, and the one before stays in use; SIGHUP reads again and ends nothing.
    signal(node.child.as_ref().unwrap().id(), Signal::SIGHUP);
    let status = ok(&mut node.cidr(&["status"]));
    assert!(serde_json::from_str::<Value>(&status).unwrap()["lists"]["dial"] == 1, "{status}");
    drop(logd);
    node.end(Signal::SIGTERM);
}

/// With TLS everyone but nodes has to log in, on loopback, too.
fn logins(server: &Server, node: &Node) {
    let url = format!("https://127.0.0.1:{}", node.port());
    let ca = server.ca().display().to_string();
    let remote = |args: &[&str], password: Option<&Path>| {
        let mut command = node.cidr(args);
        command.args(["--server", &url, "--ca", &ca]);
        if let Some(file) = password {
            command.args(["--username", "admin", "--password-file"]).arg(file);
        }
        command
    };
    let password = server.password_file();
    let question = ["query", "show count for 10.7.7.0/24 in ssh_fail"];
    assert_eq!(ok(&mut remote(&question, Some(&password))), "10.7.7.7/32        :         2\n");
    let words = fails(&mut remote(&question, None));
    assert!(words.contains("log in with an account of the cluster"), "{words}");
    let wrong = node.home.join("wrong");
    std::fs::write(&wrong, "wrong\n").unwrap();
    let words = fails(&mut remote(&question, Some(&wrong)));
    assert!(words.contains("does not know this login"), "{words}");
    let words = fails(&mut remote(&["remove", "ssh_fail", "10.7.7.7"], None));
    assert!(words.contains("log in"), "{words}");
    let mut add = remote(&["add", "far", "10.9.9.9", "3"], Some(&password));
    ok(&mut add);
    node.has_sum("far", 3);
    let count = ok(&mut remote(&["count", "10.9.9.9 in far", "--json"], Some(&password)));
    assert_eq!(serde_json::from_str::<Value>(&count).unwrap()["count"], 3, "{count}");
}
