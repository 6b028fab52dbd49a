//! Stories as golden scripts (`scripts/*.txt`): a command, then everything that happened. In these worlds every packet
//! takes 50 µs, the kernel takes 1 ms, and all clocks agree. `UPDATE_GOLDEN=1` writes down what happens now.
//!
//! ```text
//! > world 3 6          members and addresses; then witnesses, and words such as serve, probe, manual
//! > start 1 2 3        daemons start
//! > run 500            milliseconds pass
//! > crash 1 · kill 1 · guard 1 (kill with a guard) · pause 1 · resume 1 · leave 1
//! > cut 1 2 · oneway 1 2 · mend
//! > prefer 1 n2 · remove 1 · lease 300 (the next revision, given to all) · revision 1 (given to this one only)
//! > move 1 2 · unpin 1 · drain 1 · undrain 1 · announce · take 1
//! > outsider 1         somebody outside answers for the address
//! > failing 1 · passing 1 · sees 1
//! > owners             who answers for what
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::world::{World, address, config, timing};
use crate::*;

struct Story {
    world: World,
    newest: Config,
    from_us: u64,
    seen: usize,
}

#[test]
fn scripts_tell_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 8, "the stories are missing");
    let mut differ = Vec::new();
    for path in scripts {
        let written = std::fs::read_to_string(&path).unwrap();
        let told = tell(&written);
        if told == written {
            continue;
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, told).unwrap();
        } else {
            differ.push(format!("== {} now says:\n{told}", path.display()));
        }
    }
    assert!(differ.is_empty(), "{}\n(UPDATE_GOLDEN=1 writes it down)", differ.join("\n"));
}

/// The script with what happens now.
fn tell(script: &str) -> String {
    let mut story: Option<Story> = None;
    let mut told = String::new();
    for line in script.lines() {
        if line.starts_with('#') {
            writeln!(told, "{line}").unwrap();
        } else if let Some(command) = line.strip_prefix("> ") {
            if !told.is_empty() && !told.ends_with("\n\n") && !told.ends_with("#\n") {
                told.push('\n');
            }
            writeln!(told, "{line}").unwrap();
            let words: Vec<&str> = command.split_whitespace().collect();
            if words[0] == "world" {
                story = Some(Story::new(&words[1..]));
            } else {
                let story = story.as_mut().expect("a story begins with a world");
                let said = story.tell(&words);
                told.push_str(&said);
            }
        }
    }
    told
}

impl Story {
    fn new(words: &[&str]) -> Self {
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        let mut config = config(1, number(0), number(2), number(1), timing(200, 25));
        config.spec.no_quorum = match () {
            () if words.contains(&"serve") => NoQuorum::Serve,
            () if words.contains(&"probe") => NoQuorum::Probe,
            () => NoQuorum::Stop,
        };
        if words.contains(&"manual") {
            config.spec.rebalance = Rebalance::Manual;
        }
        let mut world = World::steady(number(0), Arc::new(config.clone()));
        world.log = Some(Vec::new());
        let from_us = world.now_us;
        Self { world, newest: config, from_us, seen: 0 }
    }

    fn tell(&mut self, words: &[&str]) -> String {
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        let nodes: Vec<usize> =
            words[1..].iter().filter_map(|word| word.parse::<usize>().ok()).map(|n| n - 1).collect();
        let (node, vip) = (number(1).saturating_sub(1), address(number(1) as u8));
        let id = |at: usize| MemberId(number(at) as u64);
        match words[0] {
            "start" => nodes.iter().for_each(|node| self.world.start(*node)),
            "run" => self.world.run_ms(number(1) as u64),
            "crash" => self.world.crash(node),
            "kill" => self.world.kill(node, false),
            "guard" => self.world.kill(node, true),
            "pause" => self.world.pause(node),
            "resume" => self.world.resume(node),
            "leave" => self.world.event(node, Event::Leave),
            "cut" => self.world.net.cut.extend([(nodes[0], nodes[1]), (nodes[1], nodes[0])]),
            "oneway" => {
                self.world.net.cut.insert((nodes[0], nodes[1]));
            }
            "mend" => self.world.net.cut.clear(),
            "prefer" => {
                let member = MemberId(words[2][1..].parse().unwrap());
                let vip = self.newest.spec.vips.get_mut(&vip).unwrap();
                vip.placement = Placement::Preferred(member);
                self.revise();
            }
            "remove" => {
                self.newest.spec.vips.remove(&vip);
                self.revise();
            }
            "lease" => {
                let lease = number(1) as u64;
                self.newest.timing = timing(lease, lease / 8);
                self.revise();
            }
            "members" => {
                let n = number(1);
                self.newest.spec.members = config(1, n, 0, 1, timing(200, 25)).spec.members;
                self.revise();
            }
            "revision" => {
                self.newest.id.revision += 1;
                self.newest.spec.vips.remove(&address(1));
                self.world.configure(node, Arc::new(self.newest.clone()));
            }
            "move" => self.order(Order::Move(vip, id(2))),
            "unpin" => self.order(Order::Unpin(vip)),
            "drain" => self.order(Order::Drain(id(1))),
            "undrain" => self.order(Order::Undrain(id(1))),
            "announce" => self.order(Order::Announce),
            "take" => self.order(Order::Take(vip)),
            "rebalance" => self.order(Order::Rebalance),
            "outsider" => self.world.outsider = Some(vip),
            "failing" => self.world.event(node, Event::Unable([(address(1), Cannot::NoInterface)].into())),
            "passing" => self.world.event(node, Event::Unable(Default::default())),
            "sees" => {
                for _ in 0..number(2).max(1) / 20 + 1 {
                    self.world.event(node, Event::NetworkSeen);
                    self.world.run_ms(20);
                }
            }
            "owners" => return self.owners(),
            other => panic!("{other} is no command"),
        }
        self.news()
    }

    fn order(&mut self, order: Order) {
        let asked = (0..self.world.hosts.len()).find(|node| self.world.hosts[*node].core.is_some()).unwrap();
        self.world.event(asked, Event::Order(1, order));
    }

    /// The next revision, for all.
    fn revise(&mut self) {
        self.newest.id.revision += 1;
        let config = Arc::new(self.newest.clone());
        for node in 0..self.world.hosts.len() {
            self.world.configure(node, config.clone());
        }
    }

    fn owners(&self) -> String {
        let mut text = String::new();
        for address in self.newest.spec.vips.keys() {
            let owners: Vec<String> = self.world.owners(*address).iter().map(|node| format!("n{}", node + 1)).collect();
            let owners = if owners.is_empty() { "nobody".to_owned() } else { owners.join(" and ") };
            writeln!(text, "{address} {owners}").unwrap();
        }
        text
    }

    /// What happened since, without the routine.
    fn news(&mut self) -> String {
        let log = self.world.log.as_ref().unwrap();
        let mut text = String::new();
        for line in &log[self.seen..] {
            let (at, rest) = line.trim_start().split_once(' ').unwrap();
            let routine = [
                "beat ",
                "ack ",
                "<- ",
                "Lease(",
                "report ",
                "Tick",
                "Config(",
                "Persist(",
                "NetworkSeen",
                "Hello(",
                "may I?",
                "you may",
            ];
            if routine.iter().any(|word| rest.contains(word)) {
                continue;
            }
            let us: u64 = at.replace('.', "").parse().unwrap();
            let since = Duration::from_micros(us - self.from_us);
            let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(text, "{:>5}.{} {rest}", since.as_millis(), since.as_micros() / 100 % 10).unwrap();
        }
        self.seen = log.len();
        text
    }
}
