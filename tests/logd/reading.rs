//! People who read the aggregated files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::lab::{Client, DEADLINE, Lab, check_sources, eventually, text};

/// What comes after its file was compressed is found beside it, counted, and read with it.
#[test]
fn late_lines_stand_beside_the_compressed_file() {
    let conf = "[log.mainlog]\nsubscribers = [\"m1\"]\n[managers.m1]\nlogfile = \"{out}/%{l}\"\nmax_idle = \"1s\"\n";
    let mut lab = Lab::new(&["n1", "m1"], conf);
    fs::create_dir_all(lab.path("out")).unwrap();
    fs::write(lab.path("out/mainlog"), "old 1\nold 2\n").unwrap();
    assert!(Command::new("gzip").arg(lab.path("out/mainlog")).status().unwrap().success());
    lab.start("n1");
    lab.start("m1");
    Client::new(lab.socket("n1", "mainlog"), "late").send_until(40);
    eventually("the late file", || (lab.lines("mainlog.late").len() >= 40).then_some(()));
    // A kill, and more of them: the late file goes on as any other does.
    lab.kill("m1");
    Client::behind(lab.socket("n1", "mainlog"), "late", 40).send_until(80);
    lab.start("m1");
    eventually("the late file goes on", || (lab.lines("mainlog.late").len() >= 80).then_some(()));
    check_sources(&lab.lines("mainlog.late"), &BTreeMap::from([("late".into(), 80)]));
    assert!(!lab.path("out/mainlog").exists(), "the compressed file is the only one of its name");
    let metrics = text(&lab.run("m1", &["metrics"]));
    // What the kill took back from the file counts again.
    let counted = [40, 80].iter().any(|late| metrics.contains(&format!("logd_manager_late_lines_total{{}} {late}\n")));
    assert!(counted, "{metrics}");
    let cat = text(&lab.run("m1", &["cat", "mainlog"]));
    let lines: Vec<String> = cat.lines().map(str::to_owned).collect();
    check_sources(&lines, &BTreeMap::from([("old".into(), 2), ("late".into(), 80)]));
}

/// Lines of two nodes as they come, into files that are new and files that are there, while the manager dies.
#[test]
fn tail_follows_every_node() {
    let conf = "[log.mainlog]\nsubscribers = [\"m1\"]\n[managers.m1]\nlogfile = \"{out}/%{l}/%{n}\"\n";
    let mut lab = Lab::new(&["n1", "n2", "m1"], conf);
    for node in ["n1", "n2", "m1"] {
        lab.start(node);
    }
    let mut one = Client::new(lab.socket("n1", "mainlog"), "one");
    one.send_until(30);
    eventually("the first file", || (lab.lines("mainlog/n1").len() == 30).then_some(()));
    let mut tail = lab.command("m1").args(["tail", "-f", "-n", "5", "mainlog"]).stdout(Stdio::piped()).spawn().unwrap();
    let (lines, seen) = mpsc::channel();
    let output = BufReader::new(tail.stdout.take().unwrap());
    let reading = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let expect = |of: &str, from: u64, to: u64| {
        for number in from..=to {
            let line = seen.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{of} {number} does not come"));
            assert_eq!(line, format!("{of} {number}"));
        }
    };
    expect("one", 26, 30);
    one.send_until(100);
    expect("one", 31, 100);
    // A file that was not there when it began.
    Client::new(lab.socket("n2", "mainlog"), "two").send_until(20);
    expect("two", 1, 20);
    lab.kill("m1");
    one.send_until(200);
    lab.start("m1");
    expect("one", 101, 200);
    assert!(seen.recv_timeout(Duration::from_millis(300)).is_err(), "nothing comes twice");
    tail.kill().unwrap();
    tail.wait().unwrap();
    reading.join().unwrap();
}
