//! What the addresses are for: a service behind them goes on answering, and moves away from a node where it fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::lab::{Lab, eventually, possible};
use crate::{SETTINGS, of, v4_address};

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A web server that says where it runs.
fn nginx(lab: &Lab, name: &str) -> Nginx {
    let dir = lab.file(name, "nginx");
    fs::create_dir_all(&dir).unwrap();
    let dir_text = dir.display();
    let conf = format!(
        "daemon off; master_process off; pid {dir_text}/pid; error_log {dir_text}/error.log;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {dir_text}/b; proxy_temp_path {dir_text}/p; fastcgi_temp_path {dir_text}/f; uwsgi_temp_path {dir_text}/u; \
         scgi_temp_path {dir_text}/s;\nserver {{ listen 80; return 200 '{name}'; }} }}\n"
    );
    fs::write(dir.join("nginx.conf"), conf).unwrap();
    let program = if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let child = Command::new("ip")
        .args(["netns", "exec", &lab.machine(name).namespace, program, "-c"])
        .arg(dir.join("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Nginx(child)
}

/// Who answers a client outside, if anybody does.
fn asked(lab: &Lab) -> Option<String> {
    let namespace = fs::File::open(format!("/var/run/netns/{}", lab.outside())).unwrap();
    let ask = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let place = SocketAddr::new(v4_address(0), 80);
        let mut stream = TcpStream::connect_timeout(&place, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.rsplit("\r\n").next().map(str::to_owned).filter(|name| !name.is_empty())
    };
    // A thread of its own: a namespace is a thread's.
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn a_web_server_goes_on_answering_and_is_left_where_it_fails() {
    if !possible() {
        return;
    }
    let vip = v4_address(0);
    let check = "[check.web]\nhttp = \"http://127.0.0.1/\"\ninterval = \"50ms\"\ntimeout = \"2s\"\n";
    let mut lab = Lab::new(
        3,
        &format!("{SETTINGS}[vip.\"{vip}\"]\nname = \"web\"\npreference = \"n1\"\nchecks = [\"web\"]\n{check}"),
    );
    let mut servers: std::collections::BTreeMap<String, Nginx> =
        lab.names().into_iter().map(|name| (name.clone(), nginx(&lab, &name))).collect();
    lab.start_all();
    let at = |lab: &Lab, name: &str| {
        lab.settled_with(&format!("web on {name}"), |owners| of(owners, name) == [vip]);
        eventually(&format!("the answer of {name}"), || (asked(lab)? == name).then_some(()));
    };
    at(&lab, "n1");
    lab.kill("n1");
    let heir = lab.settled_with("an heir", |owners| owners[&vip] != "n1")[&vip].clone();
    at(&lab, &heir);
    lab.start("n1");
    at(&lab, "n1");
    // The service fails, the node lives.
    drop(servers.remove("n1"));
    eventually("another owner", || (lab.owners("n2")?[&vip].as_deref() != Some("n1")).then_some(()));
    let heir = lab.settled_with("an heir whose service is well", |owners| owners[&vip] != "n1")[&vip].clone();
    at(&lab, &heir);
    let why = eventually("the reason", || {
        lab.ask("n2", "explain web")?["members"]["n1"].as_str().filter(|why| why.contains("check")).map(str::to_owned)
    });
    assert_eq!(why, "fails the check web");
    servers.insert("n1".into(), nginx(&lab, "n1"));
    at(&lab, "n1");
}
