//! Lines of 200 bytes from a service on a node into a file on a manager, end to end: logd, and beside it rsyslog with RELP and a disk-assisted queue.
//!
//!     cargo bench --bench logd [-- LINES]          rsyslogd from $RSYSLOGD and its modules from $RSYSLOG_MODULES, or the installed ones
//!
//! Both get the same lines over unix or loopback sockets as fast as they take them, and both are measured until the manager's file has the last one. CPU is
//! user and system time of both processes. logd is asked for acknowledgements after fsync at both ends; rsyslog runs as people run it, and
//! once more with every queue file and output synced. At the end either side of both is killed under load, and what is missing is counted.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod logd;
mod loss;
mod rsyslog;

use std::path::Path;
use std::time::{Duration, Instant};

/// One line without its end: a number, and what logs are made of.
fn line(number: u64) -> String {
    let status = [200, 200, 200, 304, 404][(number % 5) as usize];
    let mut line = format!(
        "{number:010} 10.{}.{}.{} GET /static/{:x}/asset.js HTTP/1.1 {status} {} \"Mozilla/5.0 (X11; Linux x86_64)\" rt=",
        number % 7,
        number % 251,
        number % 97,
        number.wrapping_mul(2_654_435_761) % 1_000_003,
        number % 9973,
    );
    while line.len() < 199 {
        line.push(char::from(b'a' + (number.wrapping_mul(line.len() as u64 + 31) % 26) as u8));
    }
    line.truncate(199);
    line
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // Hundredths of a second on every Linux that this runs on.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The most memory that a process has had.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Bytes below a directory.
fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => disk_bytes(&entry.path()),
        _ => entry.metadata().map_or(0, |found| found.len()),
    });
    each.sum()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(600), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What one run came to.
struct Outcome {
    name: String,
    lines: u64,
    took: Duration,
    /// Node and manager.
    cpu: [Duration; 2],
    peak_kib: [u64; 2],
    idle: Option<Duration>,
    note: String,
}

impl Outcome {
    fn print(&self) {
        let per_line = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.lines as f64;
        let rate = self.lines as f64 / self.took.as_secs_f64();
        println!(
            "{:<26} {:>9.0} lines/s   CPU per line {:>5.2} µs (node {:.2}, manager {:.2})   memory {} and {} MiB   {}{}",
            self.name,
            rate,
            per_line(self.cpu[0] + self.cpu[1]),
            per_line(self.cpu[0]),
            per_line(self.cpu[1]),
            self.peak_kib[0] / 1024,
            self.peak_kib[1] / 1024,
            self.idle.map(|idle| format!("idle line after {:.1} ms   ", idle.as_secs_f64() * 1e3)).unwrap_or_default(),
            self.note,
        );
    }
}

fn main() {
    let lines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    // The peer before, between and after would be the same machine at other moments; so they take turns.
    for _ in 0..2 {
        logd::run(lines).print();
        match rsyslog::Rsyslog::find() {
            Some(rsyslog) => {
                rsyslog.run(lines.min(500_000), false).print();
                rsyslog.run(5_000, true).print();
            }
            None => println!("rsyslog: not here (RSYSLOGD, RSYSLOG_MODULES)"),
        }
    }
    for victim in loss::Victim::BOTH {
        logd::loss(victim).print();
        if let Some(rsyslog) = rsyslog::Rsyslog::find() {
            rsyslog.loss(victim).print();
        }
    }
}
