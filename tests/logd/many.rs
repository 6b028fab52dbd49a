//! Many nodes with many logs on one manager: real daemons, every line once, and what the manager takes for it.
//!
//! `EC_LOGD_NODES` and `EC_LOGD_LOGS` ask for more than CI has time for, `ECCLUSTER_BIN` for a build with optimisation:
//!
//! ```sh
//! EC_LOGD_NODES=200 EC_LOGD_LOGS=10 ECCLUSTER_BIN=target/release/eccluster cargo test --test logd many_nodes -- --nocapture
//! ```
//! Each daemon watches its configuration with inotify; a machine for 200 of them needs `fs.inotify.max_user_instances=512`.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Client, Lab, check_sources, eventually};

/// Lines that each log gets at a time.
const LINES: u64 = 25;
/// Files that the manager may have open: fewer than there are.
const MAX_OPEN: usize = 32;

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

struct Many {
    lab: Lab,
    /// Every node and log.
    sources: Vec<(String, String)>,
}

impl Many {
    /// Sends to all logs up to a number, some at once.
    fn send(&self, from: u64, to: u64) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some((node, log)) = self.sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let socket = self.lab.socket(node, log);
                        Client::behind(socket, &format!("{node}-{log}"), from).send_until(to);
                    }
                });
            }
        });
    }

    fn check(&self, lines: u64) {
        for (node, log) in &self.sources {
            let path = format!("{log}/{node}");
            eventually(&format!("{lines} lines in {path}"), || {
                (self.lab.lines(&path).len() as u64 >= lines).then_some(())
            });
            check_sources(&self.lab.lines(&path), &BTreeMap::from([(format!("{node}-{log}"), lines)]));
        }
    }

    /// What the manager's process has: memory now and at most, open files, CPU so far.
    fn manager(&self) -> (String, usize, Duration) {
        let proc = format!("/proc/{}", self.lab.pid("m1"));
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let of =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
        let memory = format!("{} (at most {})", of("VmRSS:"), of("VmHWM:"));
        let stat = fs::read_to_string(format!("{proc}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        (memory, fs::read_dir(format!("{proc}/fd")).unwrap().count(), Duration::from_millis(ticks * 10))
    }

    fn tell(&self, when: &str) {
        let (memory, files, cpu) = self.manager();
        eprintln!("{when}: the manager has {memory}, {files} open files, {cpu:.2?} of CPU");
    }
}

#[test]
fn many_nodes_with_many_logs_on_one_manager() {
    let (nodes, logs) = (number("EC_LOGD_NODES", 6), number("EC_LOGD_LOGS", 8));
    eprintln!("EC_LOGD_NODES={nodes} EC_LOGD_LOGS={logs}");
    let names: Vec<String> = (1..=nodes).map(|node| format!("n{node}")).collect();
    let logs: Vec<String> = (1..=logs).map(|log| format!("l{log}")).collect();
    let mut conf: String = logs.iter().map(|log| format!("[log.{log}]\nsubscribers = [\"m1\"]\n")).collect();
    conf.push_str(&format!("[managers.m1]\nlogfile = \"{{out}}/%{{l}}/%{{n}}\"\nmax_open = {MAX_OPEN}\n"));
    let everybody: Vec<&str> = names.iter().map(String::as_str).chain(["m1"]).collect();
    let mut lab = Lab::new(&everybody, &conf);
    let begun = Instant::now();
    everybody.iter().for_each(|node| lab.spawn(node, &[]));
    everybody.iter().for_each(|node| lab.wait_until_it_answers(node));
    eprintln!("{} daemons answer after {:.1?}", everybody.len(), begun.elapsed());
    let sources = names.iter().flat_map(|node| logs.iter().map(|log| (node.clone(), log.clone()))).collect();
    let mut many = Many { lab, sources };

    many.send(0, LINES);
    many.check(LINES);
    many.tell("after the first lines");
    let (_, _, before) = many.manager();
    let begun = Instant::now();
    // Nobody has anything to say; whoever polled would show here.
    eventually("some quiet seconds", || (begun.elapsed() > Duration::from_secs(3)).then_some(()));
    let (_, files, after) = many.manager();
    eprintln!("idle: {:.1} ms of CPU per second, {files} open files", (after - before).as_secs_f64() * 1e3 / 3.0);
    // Connections, files with their times, and what any daemon with logs of its own has.
    assert!(files < nodes + 2 * MAX_OPEN + 60 + 8 * logs.len(), "{files} open files after quiet seconds");

    many.lab.kill("m1");
    many.send(LINES, 2 * LINES);
    many.lab.start("m1");
    let begun = Instant::now();
    many.check(2 * LINES);
    eprintln!("the backlog of a manager that was away is there after {:.1?}", begun.elapsed());
    many.tell("after the backlog");
    many.lab.stop("m1");
}
