//! A month in which everything happens: three nodes hand in, one server is dead for a week, answers get lost, nodes and servers restart,
//! windows come late, clocks jump, and maintenance runs in between. At the end both servers hold exactly what was counted.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cidr_engine::{Address, Care, Counts, DAY_S, Owner, QueryOptions, Stamp, Store, StoreOptions};

use crate::hand_in::{Portion, merge};
use crate::outbox::Outbox;

const SERVERS: [&str; 2] = ["n1", "n2"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const DAYS: i64 = 30;
const WINDOWS: i64 = 8;
/// 2026-01-01.
const BEGIN: Stamp = 20_454 * DAY_S;

/// xorshift64*, seeded.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

struct Month {
    top: PathBuf,
    outboxes: Vec<Option<Outbox>>,
    stores: Vec<Option<Store>>,
    /// What was counted, by series, day and address.
    expected: BTreeMap<(String, i64, Address), i64>,
    dice: Dice,
    lost_answers: u32,
    repeated: u64,
}

fn open_outbox(top: &Path, node: &str) -> Outbox {
    let outbox = Outbox::open(&top.join(format!("outbox-{node}")), node).unwrap();
    outbox.set_servers(&SERVERS.map(str::to_owned)).unwrap();
    outbox
}

fn open_store(top: &Path, server: &str) -> Store {
    Store::open(&top.join(format!("store-{server}")), StoreOptions::owned_by(Owner::current("cidr", server))).unwrap()
}

impl Month {
    fn new(top: &Path, seed: u64) -> Self {
        Self {
            top: top.into(),
            outboxes: NODES.iter().map(|node| Some(open_outbox(top, node))).collect(),
            stores: SERVERS.iter().map(|server| Some(open_store(top, server))).collect(),
            expected: BTreeMap::new(),
            dice: Dice(seed),
            lost_answers: 0,
            repeated: 0,
        }
    }

    fn portion(&mut self, series: &str, end: Stamp) -> Portion {
        let mut rows = Vec::new();
        for _ in 0..1 + self.dice.below(20) {
            // Few addresses, so that nodes and windows share them; lowered counts, too.
            let address = match self.dice.below(8) {
                0 => Address::V6((0x2001_0db8 << 96) + u128::from(self.dice.below(40))),
                _ => Address::V4(0x0a4f_0000 + self.dice.below(300) as u32),
            };
            let count = self.dice.below(1_000) as i64 - 100;
            rows.push((address, count));
            *self.expected.entry((series.into(), (end - 1).div_euclid(DAY_S), address)).or_default() += count;
        }
        let counts: Counts = rows.into_iter().collect();
        Portion { series: series.into(), start: end - DAY_S / WINDOWS, end, counts }
    }

    /// Every node hands in a window; now and then one that is days late.
    fn count(&mut self, end: Stamp) {
        for node in 0..NODES.len() {
            // On one day a node's clock is five days behind: what it counts belongs to days that are condensed.
            let is_behind = node == 2 && (end - 1 - BEGIN).div_euclid(DAY_S) == 13;
            let end = if is_behind { end - 5 * DAY_S } else { end };
            let mut portions = vec![self.portion("spam", end)];
            if self.dice.below(2) == 0 {
                portions.push(self.portion("virus", end));
            }
            if self.dice.below(10) == 0 {
                let back = self.dice.below(4) as i64 * DAY_S;
                let late = (end - back).max(BEGIN + DAY_S / WINDOWS);
                portions.push(self.portion("spam", late));
            }
            self.outboxes[node].as_ref().unwrap().put(&portions).unwrap();
        }
    }

    /// Delivers what waits for the servers that live. One answer in four is lost after the server has merged.
    fn deliver(&mut self) {
        for (node, server) in (0..NODES.len()).flat_map(|node| (0..SERVERS.len()).map(move |server| (node, server))) {
            let Some(store) = &self.stores[server] else { continue };
            let outbox = self.outboxes[node].as_ref().unwrap();
            let mut courier = outbox.courier(SERVERS[server]).unwrap();
            while let Some(message) = courier.next().unwrap() {
                let merged = merge(store, NODES[node], &message).unwrap();
                assert_eq!(merged.malformed, 0);
                self.repeated += merged.repeated;
                if self.dice.below(4) == 0 {
                    self.lost_answers += 1;
                    break;
                }
                courier.acknowledge(message.next).unwrap();
            }
        }
    }

    fn restart_something(&mut self) {
        let node = self.dice.below(NODES.len() as u64) as usize;
        self.outboxes[node] = None;
        self.outboxes[node] = Some(open_outbox(&self.top, NODES[node]));
        let server = self.dice.below(SERVERS.len() as u64) as usize;
        if self.stores[server].take().is_some() {
            self.stores[server] = Some(open_store(&self.top, SERVERS[server]));
        }
    }

    fn maintain(&self, now: Stamp) {
        // Detail is given up after two days: most of what the dead server missed, and some late windows, come for condensed days.
        let care = Care { retention_days: Some(45), condense_days: Some(2) };
        for store in self.stores.iter().flatten() {
            store.maintain(now, |_| care, &|| false).unwrap();
        }
    }
}

fn answer(store: &Store, query: &str) -> String {
    let mut out = Vec::new();
    store.query(query, &QueryOptions::at(BEGIN + 40 * DAY_S), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn three_nodes_two_servers_and_one_of_them_dead_for_a_week() {
    let seed = 0x5eed_0006;
    println!("seed {seed:#x}");
    let dir = tempfile::tempdir().unwrap();
    let mut month = Month::new(dir.path(), seed);
    for day in 0..DAYS {
        match day {
            10 => month.stores[1] = None,
            17 => month.stores[1] = Some(open_store(dir.path(), SERVERS[1])),
            _ => {}
        }
        for window in 1..=WINDOWS {
            month.count(BEGIN + day * DAY_S + window * DAY_S / WINDOWS);
            if month.dice.below(3) > 0 {
                month.deliver();
            }
        }
        month.restart_something();
        // On two days the servers' clocks are ten years ahead, which must not empty them.
        let jump = if matches!(day, 6 | 21) { 3_650 * DAY_S } else { 0 };
        if jump > 0 || day % 2 == 1 {
            month.maintain(BEGIN + (day + 1) * DAY_S + 60 + jump);
        }
    }
    // The last answers may be lost, too: until nothing waits.
    for _ in 0..100 {
        month.deliver();
    }
    month.maintain(BEGIN + DAYS * DAY_S + 60);
    assert!(month.lost_answers > 50 && month.repeated > 50, "the month was too quiet");
    for outbox in month.outboxes.iter().flatten() {
        assert_eq!(outbox.waiting().unwrap(), SERVERS.map(|server| (server.to_owned(), 0)));
    }

    let mut naive: BTreeMap<&str, String> = BTreeMap::new();
    for ((series, day, address), count) in &month.expected {
        if *count != 0 && matches!(address, Address::V4(_)) {
            let day = cidr_engine::Day(*day).compact();
            *naive.entry(series).or_default() += &format!("{day} {:<18} : {count:>9}\n", format!("{address}/32"));
        }
    }
    for (server, store) in month.stores.iter().flatten().enumerate() {
        for (series, expected) in &naive {
            let found = answer(store, &format!("show count for 0.0.0.0/0 in {series} aggregate daily"));
            assert!(found == *expected, "server {server}, {series}");
        }
        assert!(store.verify(&|| false).unwrap().damage.is_empty());
    }
    let whole = |store: &Option<Store>, query: &str| answer(store.as_ref().unwrap(), query);
    for query in
        ["show count for ::/0 in spam, virus", "show count for 0.0.0.0/0 in union(spam, virus) cidrsize 8 to 30"]
    {
        assert!(whole(&month.stores[0], query) == whole(&month.stores[1], query), "{query}");
    }
}
