//! Everything at once, for a while: kills, links that fall silent or break, disks that fill; then every line exactly once, in order per source.
//!
//! `EC_LOGD_STORY_S` is how long, `EC_LOGD_SEED` which story. The moments are seeded, the machine's pace is not: a seed gives the same events, not the same
//! interleaving. Two nodes, a manager beside them and one on a node.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::{Client, Lab, Random, check_sources, eventually};
use crate::mounts::Tmpfs;

const CONF: &str = r#"
[log.mainlog]
subscribers = ["m1", "n2"]
[log.acctlog]
mode = "fast"
subscribers = ["m1", "n2"]
[managers.m1]
logfile = "{out}/m1/%{l}.%{n}"
max_idle = "1s"
[managers.n2]
logfile = "{out}/n2/%{l}"
"#;

/// Between two groups of lines of a sender.
const PACE: Duration = Duration::from_millis(10);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// A wire between managers and a node, which can be cut.
#[derive(Clone)]
struct Wire {
    /// Nothing comes through, nobody is told.
    silent: Arc<AtomicBool>,
    /// What is connected now, to be broken.
    ends: Arc<Mutex<Vec<TcpStream>>>,
    bytes: Arc<AtomicU64>,
}

impl Wire {
    /// From one address to another, both with the usual port.
    fn between(from: &str, to: String) -> Self {
        let wire = Self { silent: Arc::default(), ends: Arc::default(), bytes: Arc::default() };
        let listener = TcpListener::bind((from, 4802)).unwrap();
        let taking = wire.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect((to.as_str(), 4802)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let wire = taking.clone();
                    std::thread::spawn(move || wire.carry(from, to));
                }
                taking.ends.lock().unwrap().extend([near, far]);
            }
        });
        wire
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(bytes) = from.read(&mut buffer) {
            while self.silent.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if bytes == 0 || to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }

    fn break_all(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Writes what it takes of a file system, and gives it back.
struct Filler(PathBuf);

impl Filler {
    fn fill(path: PathBuf) -> Self {
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[b'x'; 64 << 10]).is_ok() {}
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn every_line_once_whatever_happens() {
    let (seed, seconds) = (number("EC_LOGD_SEED", 0x57_0E1), number("EC_LOGD_STORY_S", 12));
    eprintln!("EC_LOGD_SEED={seed} EC_LOGD_STORY_S={seconds}");
    let mut random = Random(seed);
    let mut lab = Lab::new(&["n1", "n2", "m1"], CONF);
    // Twice what the senders below can fill in that time: a disk is full when the story says so, not before.
    let room = (24 + seconds) << 20;
    let mounts = ["n1/data", "m1/data", "out"].map(|name| Tmpfs::mount(&lab.path(name), room));
    let disks: Vec<PathBuf> = ["n1/data", "out"]
        .iter()
        .zip(&mounts)
        .filter(|(_, mount)| mount.is_some())
        .map(|(name, _)| lab.path(name))
        .collect();
    // The same network, a hundred hosts on.
    let through = |node: &str| {
        let (net, host) = lab.address(node).rsplit_once('.').unwrap();
        format!("{net}.{}", host.parse::<u8>().unwrap() + 100)
    };
    let wires: BTreeMap<String, (String, Wire)> = ["n1", "n2"]
        .map(|node| {
            let at = through(node);
            (node.to_owned(), (at.clone(), Wire::between(&at, lab.address(node).to_owned())))
        })
        .into();
    lab.reach_at(&wires.iter().map(|(node, (at, _))| (node.clone(), at.clone())).collect());
    for node in ["n1", "n2", "m1"] {
        lab.start(node);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for (node, log) in [("n1", "mainlog"), ("n1", "acctlog"), ("n2", "mainlog")] {
        for number in 0..2 {
            let id = format!("{node}-{log}-{number}");
            let (mut client, stop) = (Client::new(lab.socket(node, log), &id), stop.clone());
            let sender = std::thread::spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    last += 20;
                    client.send_until(last);
                    // Not for the sake of order: for that of the disks.
                    std::thread::sleep(PACE);
                }
                last
            });
            senders.push((node, log, id, sender));
        }
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut fillers: Vec<Filler> = Vec::new();
    let (mut kills, mut cuts, mut fills) = (0, 0, 0);
    while Instant::now() < until {
        let pause = Instant::now() + Duration::from_millis(10 + random.below(150));
        while Instant::now() < pause {
            std::thread::sleep(Duration::from_millis(1));
        }
        let wire = &wires[["n1", "n2"][random.below(2) as usize]].1;
        match random.below(8) {
            0 | 1 => {
                let victim = ["n1", "n2", "m1"][random.below(3) as usize];
                lab.kill(victim);
                // A start needs room for its locks and its state; a full disk is for those that run.
                fillers.clear();
                lab.start(victim);
                kills += 1;
            }
            2 => {
                wire.silent.store(true, Ordering::Relaxed);
                cuts += 1;
            }
            3 => {
                wire.break_all();
                cuts += 1;
            }
            4 if !disks.is_empty() && fillers.is_empty() => {
                fillers.push(Filler::fill(disks[random.below(disks.len() as u64) as usize].join(".filler")));
                fills += 1;
            }
            5 => fillers.clear(),
            _ => wire.silent.store(false, Ordering::Relaxed),
        }
    }
    fillers.clear();
    wires.values().for_each(|(_, wire)| wire.silent.store(false, Ordering::Relaxed));
    stop.store(true, Ordering::Relaxed);
    let mut expected: BTreeMap<(&str, &str), BTreeMap<String, u64>> = BTreeMap::new();
    for (node, log, id, sender) in senders {
        expected.entry((node, log)).or_default().insert(id, sender.join().unwrap());
    }
    let all: u64 = expected.values().flat_map(|sources| sources.values()).sum();
    eprintln!("{all} lines, {kills} kills, {cuts} cuts, {fills} full disks");
    for ((node, log), sources) in &expected {
        let path = format!("m1/{log}.{node}");
        let total: u64 = sources.values().sum();
        eventually(&format!("{path} is complete"), || (lab.lines(&path).len() as u64 >= total).then_some(()));
        check_sources(&lab.lines(&path), sources);
    }
    let both = || [lab.lines("n2/mainlog"), lab.lines("n2/acctlog")].concat();
    eventually("the second manager has everything", || (both().len() as u64 >= all).then_some(()));
    check_sources(&both(), &expected.values().flatten().map(|(id, count)| (id.clone(), *count)).collect());
    assert!(wires.values().all(|(_, wire)| wire.bytes.load(Ordering::Relaxed) > 0), "nothing went through the wires");
}
