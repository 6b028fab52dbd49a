//! Nodes that prove themselves by their certificates, without a cluster key.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use cluster::identity::Ca;

use crate::lab::{Client, Lab, Program, check_at_least_once, check_sources, eventually, free_port, text};

const TWO_MANAGERS: &str = r#"
[log.mainlog]
subscribers = ["m1", "m2"]
[managers.m1]
logfile = "{out}/m1/%{l}"
[managers.m2]
logfile = "{out}/m2/%{l}"
"#;

/// Mutual TLS with node certificates; a manager of another cluster gets nothing; one that is taken out of service leaves nothing behind.
#[test]
fn managers_come_and_go_by_their_certificates() {
    let mut lab = Lab::new(&["n1", "m1", "m2"], TWO_MANAGERS);
    lab.certify();
    lab.certify_by(&Ca::create("another").unwrap(), &["m2".into()]);
    for node in ["n1", "m1", "m2"] {
        lab.start(node);
    }
    let mut client = Client::new(lab.socket("n1", "mainlog"), "one");
    client.send_until(300);
    let complete = |lab: &Lab, manager: &str, lines: u64| {
        let path = format!("{manager}/mainlog");
        eventually(&format!("{lines} lines in {path}"), || (lab.lines(&path).len() as u64 >= lines).then_some(()));
        check_sources(&lab.lines(&path), &BTreeMap::from([("one".into(), lines)]));
    };
    complete(&lab, "m1", 300);
    eventually("m2 is sent away", || lab.log("m2").contains("its logs wait").then_some(()));
    assert!(lab.lines("m2/mainlog").is_empty(), "a stranger has lines");
    let stranger = lab.run("m2", &["logs", "--node", "n1"]);
    assert_eq!(stranger.status.code(), Some(1), "{}", text(&stranger));

    // With a certificate of the cluster it reads everything from the start.
    lab.stop("m2");
    lab.certify();
    for node in ["n1", "m1"] {
        lab.stop(node);
    }
    for node in ["n1", "m1", "m2"] {
        lab.start(node);
    }
    client.send_until(600);
    complete(&lab, "m1", 600);
    complete(&lab, "m2", 600);

    // Out of service, step by step as docs/logs.md says.
    lab.configure(&TWO_MANAGERS.replace("[\"m1\", \"m2\"]", "[\"m1\"]"));
    client.send_until(700);
    let drained = lab.run("m1", &["subscriber", "drain", "m2", "--timeout", "50s"]);
    assert!(drained.status.success(), "{}", text(&drained));
    complete(&lab, "m2", 700);
    lab.configure(TWO_MANAGERS.replace("[\"m1\", \"m2\"]", "[\"m1\"]").split("[managers.m2]").next().unwrap());
    eventually("m2 is removed", || {
        let removed = lab.run("m1", &["subscriber", "remove", "m2"]);
        removed.status.success().then_some(())
    });
    client.send_until(800);
    complete(&lab, "m1", 800);
    let logs = text(&lab.run("m1", &["logs", "--all", "--json"]));
    assert!(logs.contains("\"name\":\"m1\"") && !logs.contains("\"name\":\"m2\""), "{logs}");
    assert_eq!(lab.lines("m2/mainlog").len(), 700, "m2 reads no more");
}

/// From rsyslog, and from a sink of another node, which is the one that waits for the end.
#[test]
fn syslog_over_tls_is_taken() {
    let mut lab = Lab::new(&["n1", "n2"], "");
    lab.certify();
    let address = format!("127.0.0.1:{}", free_port("127.0.0.1"));
    // Documents of a node go before the common ones.
    let of_n1 = format!(
        "[log.tls]\ninput = \"syslog:tls://{address}\"\n[managers.n1]\nlogfile = \"{}/%{{l}}\"\n",
        lab.path("out").display()
    );
    for (dir, text) in [("n1", of_n1), ("n2", format!("[log.a]\n[sinks.n1]\nurl = \"syslog+tls://{address}\"\n"))] {
        fs::create_dir_all(lab.path(&format!("conf/{dir}"))).unwrap();
        fs::write(lab.path(&format!("conf/{dir}/logd.toml")), text).unwrap();
    }
    lab.start("n1");
    lab.start("n2");
    let mut client = Client::new(lab.socket("n2", "a"), "one");
    client.send_until(500);
    let received = |prefix: &str| {
        let lines = lab.lines("tls").into_iter();
        let texts = lines.filter_map(|line| line.split_once(" - - - ").map(|(_, text)| text.trim_start().to_owned()));
        texts.filter(|text| text.starts_with(prefix)).collect::<Vec<String>>()
    };
    eventually("every line", || (received("one ").len() >= 500).then_some(()));
    eventually("the sink knows it", || {
        text(&lab.run("n2", &["metrics"])).contains("logd_sink_records_total{sink=\"n1\",log=\"a\"} 500").then_some(())
    });
    check_at_least_once(&received("one "), &BTreeMap::from([("one".into(), 500)]));
    assert!(
        lab.lines("tls")[0].starts_with("<14>1 ") && lab.lines("tls")[0].contains(" n2 a - - - "),
        "{:?}",
        lab.lines("tls")[0]
    );

    let text: String = (1..=200).map(|number| format!("two {number}\n")).collect();
    fs::write(lab.path("source"), text).unwrap();
    let settings = format!(
        r#"
        global(workDirectory="{dir}" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{identity}/ca.pem"
               defaultNetstreamDriverCertFile="{identity}/cert.pem" defaultNetstreamDriverKeyFile="{identity}/key.pem")
        module(load="imfile" mode="polling" pollingInterval="1")
        input(type="imfile" file="{dir}/source" tag="app")
        action(type="omfwd" protocol="tcp" target="127.0.0.1" port="{port}" template="RSYSLOG_SyslogProtocol23Format"
               tcp_framing="octet-counted" streamDriverMode="1" streamDriverAuthMode="x509/certvalid")
        "#,
        dir = lab.dir.path().display(),
        identity = lab.identity("n2").display(),
        port = address.rsplit_once(':').unwrap().1,
    );
    fs::write(lab.path("rsyslog.conf"), settings).unwrap();
    let mut command = Command::new("/usr/sbin/rsyslogd");
    command.args(["-n", "-i", "NONE", "-f"]).arg(lab.path("rsyslog.conf"));
    let Some(_rsyslog) = Program::start(&mut command) else { return };
    eventually("every line of rsyslog", || (received("two ").len() >= 200).then_some(()));
    check_sources(&received("two "), &BTreeMap::from([("two".into(), 200)]));
}
