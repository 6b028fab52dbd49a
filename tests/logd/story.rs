//! Everything at once, for a while: kills, links that fall silent or break, disks that fill; then every line exactly once, in order per source.
//!
//! `EC_LOGD_STORY_S` is how long, `EC_LOGD_SEED` which story, `EC_LOGD_STORY_KILLS` how many kills there must be at least (it goes on until there are). A
//! long story has chapters: between two of them everything that was sent is looked for, and the managers begin other files. The moments are
//! seeded, the machine's pace is not: a seed gives the same events, not the same interleaving. Two nodes, a manager beside them and one on a
//! node. The whole of it, 20 minutes and at least a thousand kills on either side (see docs/logs.md):
//!
//! ```sh
//! EC_LOGD_STORY_S=1200 EC_LOGD_STORY_KILLS=1000 cargo test --test logd every_line_once_whatever_happens -- --nocapture
//! ```

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

/// `{chapter}` is the chapter's own directory.
const CONF: &str = r#"
[log.mainlog]
subscribers = ["m1", "n2"]
[log.acctlog]
mode = "fast"
subscribers = ["m1", "n2"]
[managers.m1]
logfile = "{out}/{chapter}/m1/%{l}.%{n}"
max_idle = "1s"
[managers.n2]
logfile = "{out}/{chapter}/n2/%{l}"
"#;

/// The longest chapter: what its files and journals need is bounded by it.
const CHAPTER: Duration = Duration::from_secs(60);
/// How long a node is cut off at the beginning of every third chapter that is long enough: longer than leases, silence and patience last.
const LONG_CUT: Duration = Duration::from_secs(45);

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

/// Who sends: a node and one of its logs; each by two clients.
const SOURCES: [(&str, &str); 3] = [("n1", "mainlog"), ("n1", "acctlog"), ("n2", "mainlog")];

/// What happened so far.
#[derive(Debug, Default)]
struct Told {
    lines: u64,
    /// By victim.
    kills: BTreeMap<&'static str, u64>,
    cuts: u64,
    full_disks: u64,
}

impl Told {
    /// Kills of processes with journals, and of processes with aggregated files; `n2` is both.
    fn sides(&self) -> [u64; 2] {
        let of = |victim: &str| self.kills.get(victim).copied().unwrap_or(0);
        [of("n1") + of("n2"), of("m1") + of("n2")]
    }
}

struct Story {
    fillers: Vec<Filler>,
    /// Before the lab, which removes its directory at the end.
    _mounts: Vec<Option<Tmpfs>>,
    lab: Lab,
    random: Random,
    wires: BTreeMap<String, Wire>,
    /// What can be filled.
    disks: Vec<PathBuf>,
    told: Told,
}

type Senders = Vec<(&'static str, &'static str, String, std::thread::JoinHandle<u64>)>;

impl Story {
    fn begin(seed: u64, chapter: Duration) -> Self {
        let lab = Lab::new(&["n1", "n2", "m1"], &CONF.replace("{chapter}", "1"));
        // Twice what the senders can fill in a chapter: a disk is full when the story says so, not before.
        let room = (24 + chapter.as_secs()) << 20;
        let places = ["n1/data", "m1/data", "out"];
        let mounts: Vec<Option<Tmpfs>> = places.iter().map(|name| Tmpfs::mount(&lab.path(name), room)).collect();
        let disks = places.iter().zip(&mounts).filter(|(_, mount)| mount.is_some());
        let disks = disks.map(|(name, _)| lab.path(name)).collect();
        // The same network, a hundred hosts on.
        let through = |node: &str| {
            let (net, host) = lab.address(node).rsplit_once('.').unwrap();
            format!("{net}.{}", host.parse::<u8>().unwrap() + 100)
        };
        let nodes = ["n1", "n2"];
        lab.reach_at(&nodes.map(|node| (node.to_owned(), through(node))).into());
        let wires = nodes.map(|node| (node.to_owned(), Wire::between(&through(node), lab.address(node).to_owned())));
        let wires = wires.into();
        let (fillers, random, told) = (Vec::new(), Random(seed), Told::default());
        Self { fillers, _mounts: mounts, lab, random, wires, disks, told }
    }

    /// Lines all the while, and something that goes wrong every tenth of a second.
    fn chapter(&mut self, chapter: u64, length: Duration) {
        self.lab.configure(&CONF.replace("{chapter}", &chapter.to_string()));
        for node in ["n1", "n2", "m1"] {
            if !self.lab.is_running(node) {
                self.lab.start(node);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let senders = self.senders(chapter, &stop);
        let begun = Instant::now();
        let cut_off = (chapter % 3 == 2 && length >= CHAPTER).then(|| ["n1", "n2"][self.random.below(2) as usize]);
        while begun.elapsed() < length {
            let pause = Instant::now() + Duration::from_millis(10 + self.random.below(150));
            while Instant::now() < pause {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.event();
            if let Some(node) = cut_off {
                let silent = begun.elapsed() < LONG_CUT;
                self.wires[node].silent.store(silent, Ordering::Relaxed);
            }
        }
        self.fillers.clear();
        self.wires.values().for_each(|wire| wire.silent.store(false, Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        self.check(chapter, senders);
    }

    fn senders(&self, chapter: u64, stop: &Arc<AtomicBool>) -> Senders {
        let mut senders = Vec::new();
        for (node, log) in SOURCES {
            for number in 0..2 {
                let id = format!("{node}-{log}-{chapter}-{number}");
                let (mut client, stop) = (Client::new(self.lab.socket(node, log), &id), stop.clone());
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
        senders
    }

    fn event(&mut self) {
        let node = ["n1", "n2"][self.random.below(2) as usize];
        match self.random.below(8) {
            0 | 1 => {
                let victim = ["n1", "n2", "m1"][self.random.below(3) as usize];
                self.kill(victim);
            }
            2 => {
                self.wires[node].silent.store(true, Ordering::Relaxed);
                self.told.cuts += 1;
            }
            3 => {
                self.wires[node].break_all();
                self.told.cuts += 1;
            }
            4 if !self.disks.is_empty() && self.fillers.is_empty() => {
                let disk = &self.disks[self.random.below(self.disks.len() as u64) as usize];
                self.fillers.push(Filler::fill(disk.join(".filler")));
                self.told.full_disks += 1;
            }
            5 => self.fillers.clear(),
            _ => self.wires[node].silent.store(false, Ordering::Relaxed),
        }
    }

    /// Ends a process with SIGKILL and starts it again; now and then it dies again while it starts.
    fn kill(&mut self, victim: &'static str) {
        self.end(victim);
        let mut kills = 1;
        // A start needs room for its locks and its state; a full disk is for those that run.
        self.fillers.clear();
        while self.random.below(3) == 0 {
            self.lab.spawn(victim, &[]);
            std::thread::sleep(Duration::from_millis(self.random.below(120)));
            self.end(victim);
            kills += 1;
        }
        self.lab.start(victim);
        *self.told.kills.entry(victim).or_default() += kills;
    }

    fn end(&mut self, victim: &str) {
        let ended = self.lab.ended(victim);
        assert!(ended.is_none(), "{victim} ended by itself: {ended:?}\n{}", self.lab.log(victim));
        self.lab.kill(victim);
    }

    /// Every line of the chapter once, in order per source, at both managers. Then its files go.
    fn check(&mut self, chapter: u64, senders: Senders) {
        let mut expected: BTreeMap<(&str, &str), BTreeMap<String, u64>> = BTreeMap::new();
        for (node, log, id, sender) in senders {
            expected.entry((node, log)).or_default().insert(id, sender.join().unwrap());
        }
        let total = |sources: &BTreeMap<String, u64>| sources.values().sum::<u64>();
        let all: u64 = expected.values().map(total).sum();
        for ((node, log), sources) in &expected {
            let path = format!("{chapter}/m1/{log}.{node}");
            check_sources(&self.complete(&[&path], total(sources)), sources);
        }
        let both = [format!("{chapter}/n2/mainlog"), format!("{chapter}/n2/acctlog")];
        let lines = self.complete(&[&both[0], &both[1]], all);
        check_sources(&lines, &expected.values().flatten().map(|(id, count)| (id.clone(), *count)).collect());
        self.told.lines += all;
        for manager in ["m1", "n2"] {
            self.lab.stop(manager);
        }
        fs::remove_dir_all(self.lab.path("out").join(chapter.to_string())).unwrap();
    }

    /// The lines of files that have come to so many; nothing is torn at their ends.
    fn complete(&self, paths: &[&str], lines: u64) -> Vec<String> {
        let found = || paths.iter().flat_map(|path| self.lab.lines(path)).collect::<Vec<String>>();
        let found = eventually(&format!("{lines} lines in {paths:?}"), || {
            let found = found();
            (found.len() as u64 >= lines).then_some(found)
        });
        for path in paths {
            let text = fs::read(self.lab.path("out").join(path)).unwrap();
            assert_eq!(text.last(), Some(&b'\n'), "{path} ends with a torn line");
        }
        found
    }
}

#[test]
fn every_line_once_whatever_happens() {
    let seed = number("EC_LOGD_SEED", 0x57_0E1);
    let length = Duration::from_secs(number("EC_LOGD_STORY_S", 12));
    let wanted_kills = number("EC_LOGD_STORY_KILLS", 1);
    eprintln!("EC_LOGD_SEED={seed} EC_LOGD_STORY_S={} EC_LOGD_STORY_KILLS={wanted_kills}", length.as_secs());
    let chapter = length.min(CHAPTER);
    let mut story = Story::begin(seed, chapter);
    let (begun, mut chapters) = (Instant::now(), 0);
    while begun.elapsed() < length || story.told.sides().into_iter().any(|kills| kills < wanted_kills) {
        chapters += 1;
        story.chapter(chapters, chapter);
        eprintln!("{:.0} s, chapter {chapters}: {:?}", begun.elapsed().as_secs_f64(), story.told);
    }
    let [nodes, managers] = story.told.sides();
    eprintln!("every line once: {nodes} kills of nodes, {managers} of managers, {:?}", story.told);
    let carried = story.wires.values().all(|wire| wire.bytes.load(Ordering::Relaxed) > 0);
    assert!(carried, "nothing went through the wires");
}
