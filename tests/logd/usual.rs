//! What an operator does on an ordinary day.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lab::{Client, Lab, check_sources, eventually, text};

const TWO_NODES: &str = r#"
[log.mainlog]
subscribers = ["master", "m1"]
text = "{dir}/%{n}.text"
[managers.m1]
logfile = "{out}/m1/%{l}/%{s}.%{n}"
max_idle = "1s"
"#;

#[test]
fn lines_go_from_standard_input_to_the_managers_file_and_back_to_people() {
    let mut lab = Lab::new(&["n1", "m1"], TWO_NODES);
    // The daemon is not there yet: the sender waits.
    let mut sender = lab.spawn_send("n1", "mainlog");
    sender.stdin.take().unwrap().write_all(b"first\nsecond\n\nwithout an end").unwrap();
    lab.start("m1");
    lab.start("n1");
    let sent = eventually("the sender ends", || sender.try_wait().unwrap());
    assert!(sent.success());
    let whole = ["first", "second", "", "without an end"];
    eventually("the manager's file", || (lab.lines("m1/mainlog/default.n1") == whole).then_some(()));
    let copy = std::fs::read_to_string(lab.path("n1.text")).unwrap();
    assert_eq!(copy.lines().collect::<Vec<_>>(), whole);

    for (args, expected) in [
        (&["cat", "mainlog"][..], "first\nsecond\n\nwithout an end\n"),
        (&["cat", "mainlog", "--node", "nobody"], ""),
        (&["cat", "mainlog", "--since", "1h", "--until", "30m"], ""),
        (&["grep", "-i", "^FIR", "mainlog"], "first\n"),
        (&["tail", "-n", "1", "mainlog"], "without an end\n"),
    ] {
        let output = lab.run("m1", args);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{args:?}: {}", text(&output));
        assert!(output.status.success(), "{args:?}");
    }
    let nothing = lab.run("m1", &["grep", "nowhere", "mainlog"]);
    assert_eq!((nothing.status.code(), text(&nothing)), (Some(1), String::new()));
    let unknown = lab.run("m1", &["cat", "mianlog"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("there is no log mianlog\nhint: logd.toml has mainlog"), "{}", text(&unknown));
    let elsewhere = lab.run("n1", &["cat", "mainlog"]);
    assert_eq!(elsewhere.status.code(), Some(1), "n1 is no manager");

    let logs = lab.run("m1", &["logs", "--all", "--json"]);
    assert!(logs.status.success(), "{}", text(&logs));
    let logs: serde_json::Value = serde_json::from_slice(&logs.stdout).unwrap();
    let n1 = logs.as_array().unwrap().iter().find(|node| node["node"] == "n1").unwrap();
    let names: Vec<&str> =
        n1["logs"][0]["subscribers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["m1", "master"]);
    assert_eq!(n1["logs"][0]["subscribers"][1]["records"], 4, "nobody reads as master: {n1}");
    let metrics = text(&lab.run("m1", &["metrics"]));
    assert!(metrics.contains("logd_manager_lines_total{} 4\n") && metrics.ends_with("# EOF\n"), "{metrics}");

    let drained = lab.run("m1", &["subscriber", "drain", "m1", "--timeout", "50s"]);
    assert!(drained.status.success(), "{}", text(&drained));
    let refused = lab.run("m1", &["subscriber", "remove", "m1"]);
    assert_eq!(refused.status.code(), Some(1), "logd.toml names it: {}", text(&refused));
    let removed = lab.run("m1", &["subscriber", "add", "late", "--at-end", "--node", "n1"]);
    assert!(text(&removed).contains("n1: 1 logs changed"), "{}", text(&removed));
    let removed = lab.run("m1", &["subscriber", "remove", "late"]);
    assert!(text(&removed).contains("n1: 1 logs changed"), "{}", text(&removed));
    lab.stop("n1");
    lab.stop("m1");
}

#[test]
fn a_change_of_the_configuration_loses_and_repeats_nothing() {
    let conf = |extra: &str, subscribers: &str, path: &str| {
        format!(
            "[log.mainlog]\nsubscribers = [{subscribers}]\n{extra}\n[managers.m1]\nlogfile = \"{{out}}/{path}\"\nmax_idle = \"1s\"\n"
        )
    };
    let mut lab = Lab::new(&["n1", "m1"], &conf("", "\"master\"", "a"));
    lab.start("n1");
    lab.start("m1");
    let mut client = Client::new(lab.socket("n1", "mainlog"), "one");
    client.send_until(2_000);
    eventually("the first file", || (lab.lines("a").len() == 2_000).then_some(()));
    // A subscriber of its own for the manager, another file, a second log; lines come all the while.
    let (socket, stop) = (lab.socket("n1", "mainlog"), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let sending = std::thread::spawn(move || {
        let mut client = Client::behind(socket, "one", 2_000);
        let mut last = 2_000;
        while !stopped.load(Ordering::Relaxed) {
            last += 50;
            client.send_until(last);
        }
        last
    });
    lab.configure(&conf("mode = \"fast\"\nmax_backlog = \"64MiB\"", "\"master\", \"m1\"", "b"));
    eventually("the second file", || lab.path("out/b").exists().then_some(()));
    lab.configure(&conf("[log.other]\nsubscribers = [\"m1\"]", "\"m1\"", "%{l}"));
    eventually("the third file", || lab.path("out/mainlog").exists().then_some(()));
    stop.store(true, Ordering::Relaxed);
    let last = sending.join().unwrap();
    Client::new(lab.socket("n1", "other"), "two").send_until(10);
    eventually("the second log", || (lab.lines("other").len() == 10).then_some(()));
    let all = || [lab.lines("a"), lab.lines("b"), lab.lines("mainlog")].concat();
    eventually("every line", || (all().len() as u64 >= last).then_some(()));
    check_sources(&all(), &BTreeMap::from([("one".into(), last)]));
}

/// Named at half of `max_backlog`, dropped at the limit, counted, and the log goes on.
#[test]
fn a_subscriber_that_never_reads_is_seen_before_it_costs() {
    let mut lab = Lab::new(&["n1"], "[log.mainlog]\nsubscribers = [\"master\"]\nmax_backlog = \"1MiB\"\n");
    lab.start("n1");
    let mut client = Client::new(lab.socket("n1", "mainlog"), "one");
    client.send_until(1_000);
    let logs = |lab: &Lab| text(&lab.run("n1", &["logs"]));
    assert!(!logs(&lab).contains("has not read"), "{}", logs(&lab));
    client.send_until(20_000);
    assert!(logs(&lab).contains("mainlog: master has not read ") && !logs(&lab).contains("lost"), "{}", logs(&lab));
    client.send_until(60_000);
    assert!(logs(&lab).contains("mainlog: master lost "), "{}", logs(&lab));
    let metrics = text(&lab.run("n1", &["metrics"]));
    assert!(metrics.contains("logd_max_backlog_bytes{log=\"mainlog\"} 1048576"), "{metrics}");
    lab.stop("n1");
}
