//! What a kernel is told about addresses, and that it is told nothing else: who heard of a change or of a death has its own
//! addresses left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::lab::{Lab, eventually, ip, possible};
use crate::{SETTINGS, of, v4_address, vips};

/// `ip monitor address` on one machine.
struct Monitor {
    namespace: String,
    path: PathBuf,
    child: Child,
    marks: u8,
}

impl Monitor {
    fn start(lab: &Lab, name: &str) -> Monitor {
        let path = lab.file(name, "events");
        let namespace = lab.machine(name).namespace.clone();
        let child = Command::new("ip")
            .args(["-n", &namespace, "-o", "monitor", "address"])
            .stdout(Stdio::from(File::create(&path).unwrap()))
            .spawn()
            .unwrap();
        let mut monitor = Monitor { namespace, path, child, marks: 0 };
        // It listens a moment after it was started.
        eventually("the monitor listens", || {
            monitor.mark();
            fs::read_to_string(&monitor.path).unwrap().contains("10.77.251.").then_some(())
        });
        monitor.take();
        monitor
    }

    /// An address of the test's own, put on and taken off: events that come after all that were before.
    fn mark(&mut self) -> String {
        self.marks = self.marks % 250 + 1;
        let mark = format!("10.77.251.{}/32", self.marks);
        ip(&format!("-n {} addr add {mark} dev eth0", self.namespace));
        ip(&format!("-n {} addr del {mark} dev eth0", self.namespace));
        mark
    }

    /// What the kernel was told since the last call: addresses put on, and taken off.
    fn take(&mut self) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let before = format!("10.77.251.{}/32", self.marks);
        let mark = self.mark();
        let end = |text: &str| text.lines().any(|line| line.starts_with("Deleted") && line.contains(&mark));
        let text = eventually("the events until now", || {
            let text = fs::read_to_string(&self.path).unwrap();
            end(&text).then_some(text)
        });
        let since = text.rfind(&before).unwrap_or_default();
        let (mut on, mut off) = (BTreeSet::new(), BTreeSet::new());
        for line in text[since..].lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let family = words.iter().position(|word| word.starts_with("inet"));
            let address = family.and_then(|at| words.get(at + 1)?.split('/').next()?.parse::<IpAddr>().ok());
            let Some(address) = address.filter(|address| !address.to_string().starts_with("10.77.251.")) else {
                continue;
            };
            let told = if line.starts_with("Deleted") { &mut off } else { &mut on };
            assert!(told.insert(address), "{address} twice on {}: {line}", self.namespace);
        }
        (on, off)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn kernels_are_told_of_what_a_change_or_a_death_asks_for_and_of_nothing_else() {
    const ALL: usize = 1_000;
    const CHANGED: usize = 100;
    if !possible() {
        return;
    }
    let settings = format!("{SETTINGS}rebalance = \"manual\"\nplumb = \"address\"\n");
    let mut lab = Lab::new(3, &format!("{settings}{}", vips(ALL, 6)));
    let owners = lab.start_all_with(ALL / 4);
    let mut monitors: BTreeMap<String, Monitor> =
        lab.names().into_iter().map(|name| (name.clone(), Monitor::start(&lab, &name))).collect();

    // Of a thousand addresses a commit changes every tenth.
    let (mut text, mut old, mut new) = (vips(ALL, 6), BTreeSet::new(), BTreeSet::new());
    for number in 0..CHANGED {
        let (before, after) = (v4_address(number * ALL / CHANGED), v4_address(ALL + number));
        text = text.replace(&format!("[vip.\"{before}\"]\n"), &format!("[vip.\"{after}\"]\n"));
        old.insert(before);
        new.insert(after);
    }
    lab.configure(&format!("{settings}{text}"));
    let changed = lab.settled_with("the change", |after| {
        new.iter().all(|address| after.contains_key(address)) && !old.iter().any(|address| after.contains_key(address))
    });
    let told: BTreeMap<&String, _> = monitors.iter_mut().map(|(name, monitor)| (name, monitor.take())).collect();
    for (name, (on, off)) in told {
        let had: BTreeSet<IpAddr> = of(&owners, name).into_iter().filter(|address| old.contains(address)).collect();
        let has: BTreeSet<IpAddr> = of(&changed, name).into_iter().filter(|address| new.contains(address)).collect();
        assert_eq!((&on, &off), (&has, &had), "{name}, by the change");
    }

    // The leader dies: the others get what it had. It comes back: nobody hears of it.
    let victim = lab.leader();
    lab.kill(&victim);
    let after = lab.settled_with("the death", |after| of(after, &victim).is_empty());
    lab.start(&victim);
    lab.settled_with("the return", |owners| *owners == after);
    let theirs: BTreeSet<IpAddr> = of(&changed, &victim).into_iter().collect();
    assert!(!theirs.is_empty(), "{victim} had nothing");
    for (name, monitor) in monitors.iter_mut().filter(|(name, _)| **name != victim) {
        let (on, off) = monitor.take();
        let got: BTreeSet<IpAddr> = of(&after, name).into_iter().filter(|address| theirs.contains(address)).collect();
        assert_eq!((on, off), (got, BTreeSet::new()), "{name}, by the death of {victim}");
    }
}
