//! A naive model of the store: every count that was ever handed in, in a list; and random data to fill both with.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use cidr_engine::language::{Aggregate, CountQuery, DateRange, Moment, Order, SeriesList};
use cidr_engine::{Address, Block, Counts, DAY_S, Day, Disk, Output, Owner, Stamp, Store, StoreOptions, Window};

/// A small generator with a printed seed, so that a failure can be had again.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

pub const SERIES: [&str; 3] = ["spam", "virus", "invalid_recipients"];
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// 2026-03-27: the days around it cross a month and several eight-day spans.
pub fn first_day() -> Day {
    Day::from_date(2026, 3, 27).unwrap()
}

/// An address of a small, clustered world, so that addresses meet again.
pub fn address(random: &mut Random) -> Address {
    let host = |random: &mut Random| if random.one_in(3) { random.below(256) } else { random.below(4) };
    if random.one_in(4) {
        let net = 0x2001_0db8_u128 << 96 | u128::from(random.below(3)) << 80 | u128::from(random.below(4)) << 64;
        let low = if random.one_in(3) { u128::from(random.next()) } else { u128::from(random.below(8)) };
        return Address::V6(net | low);
    }
    let top = *random.pick(&[10_u64, 10, 10, 11, 192]);
    let bits = top << 24 | random.below(3) << 16 | random.below(8) << 8 | host(random);
    Address::V4(bits as u32)
}

pub fn amount(random: &mut Random) -> i64 {
    match random.below(12) {
        0 => -(random.below(4) as i64),
        1 => random.below(100_000) as i64,
        _ => 1 + random.below(5) as i64,
    }
}

pub fn window(random: &mut Random, series: &str, node: &str, start: Stamp, end: Stamp, rows: u64) -> Window {
    let rows = (0..rows).map(|_| (address(random), amount(random)));
    Window { series: series.into(), node: node.into(), start, end, counts: rows.collect::<Counts>() }
}

/// A disk that is never synced: tests pull no real plug, and thousands of syncs are minutes.
pub struct QuickDisk;

struct QuickFile(File);

impl Write for QuickFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for QuickFile {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for QuickDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(QuickFile(File::create(path)?)))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(QuickFile(File::options().append(true).open(path)?)))
    }

    fn truncate(&self, path: &Path, bytes: u64) -> io::Result<()> {
        File::options().write(true).open(path)?.set_len(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Options of a test's own store.
pub fn options() -> StoreOptions {
    StoreOptions::owned_by(Owner::current("test", "n1"))
}

/// Opens a store.
pub fn open(dir: &Path) -> Store {
    let disk: Arc<dyn Disk> = Arc::new(QuickDisk);
    Store::open(dir, StoreOptions { disk, ..options() }).unwrap()
}

/// Every count, by series, window and node.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Model {
    pub windows: Vec<ModelWindow>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelWindow {
    pub series: String,
    pub node: String,
    pub start: Stamp,
    pub end: Stamp,
    pub counts: Vec<(Address, i64)>,
}

impl Model {
    pub fn add(&mut self, window: &Window) {
        let v4 = window.counts.v4().iter().map(|(bits, count)| (Address::V4(*bits), *count));
        let v6 = window.counts.v6().iter().map(|(bits, count)| (Address::V6(*bits), *count));
        let counts: Vec<_> = v4.chain(v6).collect();
        if !counts.is_empty() {
            let Window { series, node, start, end, .. } = window.clone();
            self.windows.push(ModelWindow { series, node, start, end, counts });
        }
    }

    /// The text that the store must answer.
    pub fn answer(&self, query: &CountQuery, now: Stamp) -> String {
        let (after, until) = period(query.range.as_ref(), now);
        let names: Vec<&str> = query.series.names().iter().map(|name| name.value.as_str()).collect();
        let union = matches!(query.series, SeriesList::Union(_));
        let columns = if union { 1 } else { names.len() };
        let bits = query.block.value.family().bits();
        let (from, to) = query.sizes.unwrap_or((bits, bits));
        let mut rows: BTreeMap<(String, Block), Vec<i64>> = BTreeMap::new();
        for window in &self.windows {
            let Some(index) = names.iter().position(|name| *name == window.series) else { continue };
            let node_fits = query.node.as_ref().is_none_or(|node| node.value == window.node);
            if window.end <= after || window.end > until || !node_fits {
                continue;
            }
            let column = if union { 0 } else { index };
            let when = match query.aggregate {
                Some(Aggregate::Daily) => format!("{} ", Day::of_end(window.end).compact()),
                Some(Aggregate::Trend) => format!("{} ", cidr_engine::compact_stamp(window.end)),
                _ => String::new(),
            };
            if query.aggregate == Some(Aggregate::Trend) {
                rows.entry((when.clone(), query.block.value)).or_insert_with(|| vec![0; columns]);
            }
            for (address, count) in &window.counts {
                let single = Block::from(*address);
                if !query.block.value.contains(&single) || query.exclude.iter().any(|hole| hole.contains(&single)) {
                    continue;
                }
                let lengths = match query.aggregate {
                    Some(Aggregate::Trend) => query.block.value.length()..=query.block.value.length(),
                    _ => from..=to,
                };
                for length in lengths {
                    let block = Block::new(address.family(), address.number(), length);
                    let row = rows.entry((when.clone(), block)).or_insert_with(|| vec![0; columns]);
                    row[column] += count;
                }
            }
        }
        let zeros = query.aggregate == Some(Aggregate::Trend);
        let mut rows: Vec<_> = rows
            .into_iter()
            .filter(|(_, counts)| zeros || counts.iter().any(|count| *count != 0))
            .filter(|(_, counts)| query.threshold.is_none_or(|threshold| counts[0] >= threshold))
            .collect();
        if query.order == Some(Order::Count) {
            rows.sort_by_key(|((when, block), counts)| (std::cmp::Reverse(counts[0]), when.clone(), *block));
        }
        let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
        rows.into_iter().take(limit).map(|((when, block), counts)| line(&when, block, &counts)).collect()
    }
}

fn line(when: &str, block: Block, counts: &[i64]) -> String {
    let block = block.to_string();
    match counts {
        [count] => format!("{when}{block:<18} : {count:>9}\n"),
        _ => {
            let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            format!("{when}{block} : {}\n", counts.join(","))
        }
    }
}

fn period(range: Option<&DateRange>, now: Stamp) -> (Stamp, Stamp) {
    let start = |moment: &Moment| match moment {
        Moment::Day(day) => day.start(),
        Moment::At(stamp) => *stamp,
        Moment::Ago(seconds) => now - seconds,
    };
    match range {
        None => (i64::MIN, i64::MAX),
        Some(DateRange::Since(from)) => (start(from), i64::MAX),
        Some(DateRange::On(moment)) => {
            let day = Day::of_moment(start(moment));
            (day.start(), day.end())
        }
        Some(DateRange::FromTo(from, to)) => {
            let until = if let Moment::Day(day) = to { day.end() } else { start(to) };
            (start(from), until)
        }
    }
}

/// Questions of all kinds about the model's world.
pub fn question(random: &mut Random, days: i64, detail: bool) -> String {
    let day = |random: &mut Random| Day(first_day().0 + random.below(days as u64 + 2) as i64 - 1);
    let v6 = random.one_in(4);
    let (block, bits) = if v6 {
        (*random.pick(&["::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:2::/64", "2001:db8::1"]), 128)
    } else {
        let blocks =
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.0.3.1", "192.0.0.0/9", "172.16.0.0/12"];
        (*random.pick(&blocks), 32)
    };
    let parsed: Block = block.parse().unwrap();
    let mut names: Vec<&str> = SERIES.to_vec();
    names.truncate(1 + random.below(3) as usize);
    let rotate = random.below(names.len() as u64) as usize;
    names.rotate_left(rotate);
    let names = if random.one_in(2) { format!("union({})", names.join(",")) } else { names.join(", ") };
    let mut text = format!("show count for {block} in {names}");
    match random.below(if detail { 7 } else { 4 }) {
        0 => {}
        1 => text += &format!(" on {}", day(random).compact()),
        2 => text += &format!(" since {}", day(random).compact()),
        3 => {
            let (a, b) = (day(random), day(random));
            text += &format!(" from {} to {}", a.min(b).compact(), a.max(b).compact());
        }
        4 => text += &format!(" since {}h", 1 + random.below(60)),
        _ => {
            let stamp = |random: &mut Random| {
                cidr_engine::compact_stamp(first_day().start() + random.below((days * DAY_S) as u64) as i64)
            };
            let (a, b) = (stamp(random), stamp(random));
            text += &format!(" from {} to {}", a.clone().min(b.clone()), a.max(b));
        }
    }
    let trend = random.one_in(6) && detail;
    if trend {
        text += " trend";
    } else {
        match random.below(4) {
            0 => {}
            1 => {
                let natural = [8, 16, 24, 32, 48, 64, 128].into_iter().filter(|n| *n >= parsed.length() && *n <= bits);
                text += &format!(" cidrsize {}", random.pick(&natural.collect::<Vec<u8>>()));
            }
            _ => {
                let room = u64::from(bits - parsed.length()) + 1;
                let a = parsed.length() + random.below(room) as u8;
                let b = a + random.below(u64::from(bits - a) + 1).min(10) as u8;
                text += &if random.one_in(2) { format!(" cidrsize {a}") } else { format!(" cidrsize {a} to {b}") };
            }
        }
        if random.one_in(4) {
            text += " aggregate daily";
        }
        if random.one_in(2) {
            text += *random.pick::<&str>(&[" order by count", " order by count", " ORDER BY CIDR"]);
        }
    }
    if random.one_in(4) {
        let number = if random.one_in(3) { -3 } else { random.below(2_000) as i64 };
        text += &format!(" threshold {number}");
    }
    if random.one_in(3) {
        text += &format!(" limit {}", random.below(12));
    }
    while random.one_in(4) {
        let holes = if v6 {
            ["2001:db8:1::/48", "2001:db8::3/128", "2001:db8:0:1::/64", "ff00::/8"]
        } else {
            ["10.1.0.0/16", "10.0.3.0/24", "10.1.2.3", "11.0.0.0/8"]
        };
        text += &format!(" exclude {}", random.pick(&holes));
    }
    if detail && random.one_in(6) {
        text += &format!(" node {}", random.pick(&["n1", "n2", "n9"]));
    }
    text
}
