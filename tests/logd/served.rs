//! logd that follows the cluster's servers instead of a directory.

use std::collections::BTreeMap;

use crate::http::{answer, curl};
use crate::lab::{Client, Lab, check_sources, eventually};
use crate::support::Server;

/// A commit adds a log; the server dies and logd starts from what it knows.
#[test]
fn a_commit_reaches_logd() {
    let mut server = Server::start();
    let mut lab = Lab::new(&["n1"], "");
    let out = lab.path("out").display().to_string();
    let manager = format!("[managers.n1]\nlogfile = \"{out}/%{{l}}\"\n");
    let cluster = format!("[node.n1]\naddress = \"{}\"\n", lab.address("n1"));
    server.commit("global", "name the node", &[("cluster.toml", &cluster)]).unwrap();
    server.commit("default", "a log", &[("default/logd.toml", &format!("[log.a]\n{manager}"))]).unwrap();
    lab.follow("n1", &server.url(), &server.data().join("identity"));
    lab.start("n1");
    let send = |lab: &Lab, log: &str, id: &str, lines: u64| {
        eventually("the log's socket", || lab.socket("n1", log).exists().then_some(()));
        Client::new(lab.socket("n1", log), id).send_until(lines);
        eventually(&format!("the lines of {log}"), || (lab.lines(log).len() as u64 == lines).then_some(()));
        check_sources(&lab.lines(log), &BTreeMap::from([(id.into(), lines)]));
    };
    send(&lab, "a", "one", 100);
    server.commit("default", "another", &[("default/logd.toml", &format!("[log.a]\n[log.b]\n{manager}"))]).unwrap();
    send(&lab, "b", "two", 50);
    // People read by their account.
    let password = std::fs::read_to_string(server.password_file()).unwrap();
    let ask = |login: &str| answer(curl(&lab, "n1", &server.ca(), "/logs/b/lines").args(["-u", login]));
    let (status, page) = ask(&format!("admin:{}", password.trim()));
    assert_eq!((status.as_str(), page["lines"].as_array().map(Vec::len)), ("200", Some(50)), "{page}");
    assert_eq!(ask("admin:wrong").0, "401");
    server.kill();
    lab.kill("n1");
    lab.start("n1");
    Client::new(lab.socket("n1", "b"), "three").send_until(10);
    eventually("lines without a server", || (lab.lines("b").len() == 60).then_some(()));
}
