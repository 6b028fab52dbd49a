//! Kill -9 at seeded moments, on either side, while lines come; then every line exactly once, in order per source.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lab::{Client, Lab, Random, check_sources, eventually};

const CONF: &str = r#"
[log.mainlog]
subscribers = ["m1", "m2"]
[log.acctlog]
mode = "fast"
subscribers = ["m1", "m2"]
[managers.m1]
logfile = "{out}/m1/%{l}.%{n}"
max_idle = "1s"
[managers.m2]
logfile = "{out}/m2/%{l}"
"#;

/// `EC_LOGD_KILLS` asks for more.
fn kills() -> u64 {
    std::env::var("EC_LOGD_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(16)
}

fn seed() -> u64 {
    std::env::var("EC_LOGD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x10_6D)
}

#[test]
fn every_line_once_whoever_is_killed() {
    let (seed, kills) = (seed(), kills());
    eprintln!("EC_LOGD_SEED={seed} EC_LOGD_KILLS={kills}");
    let mut random = Random(seed);
    let mut lab = Lab::new(&["n1", "n2", "m1", "m2"], CONF);
    for node in ["n1", "n2", "m1"] {
        lab.start(node);
    }
    // m2 is away for nearly all of it, and reads the whole backlog at the end.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut senders = Vec::new();
    for (node, log) in [("n1", "mainlog"), ("n1", "acctlog"), ("n2", "mainlog")] {
        for number in 0..2 {
            let id = format!("{node}-{log}-{number}");
            let (mut client, stop) = (Client::new(lab.socket(node, log), &id), stop.clone());
            senders.push((
                node,
                log,
                id,
                std::thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        last += 200;
                        client.send_until(last);
                    }
                    last
                }),
            ));
        }
    }
    for _ in 0..kills {
        let pause = Duration::from_millis(20 + random.below(180));
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let victim = ["n1", "n2", "m1"][random.below(3) as usize];
        lab.kill(victim);
        // Sometimes a second one before the first is back.
        let other = ["n1", "m1"][random.below(2) as usize];
        if random.below(4) == 0 && other != victim && lab.is_running(other) {
            lab.kill(other);
            lab.start(other);
        }
        lab.start(victim);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut expected: BTreeMap<(&str, &str), BTreeMap<String, u64>> = BTreeMap::new();
    for (node, log, id, sender) in senders {
        expected.entry((node, log)).or_default().insert(id, sender.join().unwrap());
    }
    lab.start("m2");
    let total = |sources: &BTreeMap<String, u64>| usize::try_from(sources.values().sum::<u64>()).unwrap();
    let all: usize = expected.values().map(total).sum();
    eprintln!("{all} lines, {kills} kills");
    for ((node, log), sources) in &expected {
        let path = format!("m1/{log}.{node}");
        eventually(&format!("{path} is complete"), || (lab.lines(&path).len() >= total(sources)).then_some(()));
        check_sources(&lab.lines(&path), sources);
    }
    // Two nodes in one file.
    let both = || [lab.lines("m2/mainlog"), lab.lines("m2/acctlog")].concat();
    eventually("the second manager has everything", || (both().len() >= all).then_some(()));
    let sources = expected.values().flatten().map(|(id, count)| (id.clone(), *count)).collect();
    check_sources(&both(), &sources);
}
