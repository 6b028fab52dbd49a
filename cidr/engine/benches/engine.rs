//! Measures the engine on seeded synthetic data: thirty days of 96 windows and three series, Zipf-distributed clustered addresses.
//!
//! `cargo bench -p cidr-engine --bench engine -- SCALE [DIR] [ROWS_FILE]`
//!
//! With DIR the data stays there; another run of the same scale asks it again without making it again. The questions are asked of the
//! data with all detail, and again of a condensed copy.
//!
//! SCALE 1 is about 43 M IPv4 and 4 M IPv6 rows. With ROWS_FILE the same rows are written as CSV for `benches/cidr_peers.py`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cidr_engine::ingest::{BatchWriter, feed_batch, feed_text};
use cidr_engine::live::{Limits, LiveWindow};
use cidr_engine::{Address, Care, Counts, DAY_S, Day, Owner, QueryOptions, Store, StoreOptions, Window};

const SERIES: [&str; 3] = ["spam", "virus", "invalid_recipients"];
const DAYS: i64 = 30;
const WINDOW_S: i64 = 900;

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A rank from 0 on with a probability of about 1 / rank.
    fn zipf(&mut self, ranks: usize) -> usize {
        ((ranks as f64).powf(self.unit()) as usize).clamp(1, ranks) - 1
    }
}

/// The world's addresses, in the order of their popularity.
struct Pool {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl Pool {
    /// The pool of a scale, always the same.
    fn of(scale: f64) -> Self {
        Self::new(&mut Random(20_260_401), (2_300_000.0 * scale) as usize, (200_000.0 * scale) as usize)
    }

    /// Clusters: some /8, in them some /16, in them some /24 with a few to many hosts.
    fn new(random: &mut Random, v4: usize, v6: usize) -> Self {
        let tops: Vec<u32> = (0..60).map(|_| 1 + (random.next() % 222) as u32).chain([10]).collect();
        let middle: Vec<u32> =
            (0..2_000).map(|_| tops[random.zipf(tops.len())] << 8 | random.next() as u32 & 255).collect();
        let mut nets: Vec<u32> = Vec::new();
        while nets.len() < (v4 / 20).max(16) {
            nets.push(middle[random.zipf(middle.len())] << 8 | random.next() as u32 & 255);
        }
        nets.sort_unstable();
        nets.dedup();
        let mut pool: Vec<u32> = (0..v4 * 5 / 4)
            .map(|_| nets[random.next() as usize % nets.len()] << 8 | (random.unit().powi(2) * 256.0) as u32)
            .collect();
        pool.sort_unstable();
        pool.dedup();
        shuffle(&mut pool, random);
        pool.truncate(v4);
        let sites: Vec<u128> = (0..(v6 / 30).max(8))
            .map(|_| {
                0x2001_0000_u128 << 96 | u128::from(random.next() % 400) << 96 | u128::from(random.next() as u16) << 80
            })
            .collect();
        let mut six: Vec<u128> = (0..v6)
            .map(|_| {
                sites[random.zipf(sites.len())]
                    | u128::from(random.next() % 8) << 64
                    | u128::from(random.next() >> (random.next() % 60))
            })
            .collect();
        six.sort_unstable();
        six.dedup();
        shuffle(&mut six, random);
        Self { v4: pool, v6: six }
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for at in (1..items.len()).rev() {
        items.swap(at, (random.next() % (at as u64 + 1)) as usize);
    }
}

fn draw<K: std::hash::Hash + Eq + Copy>(random: &mut Random, pool: &[K], events: usize) -> Vec<(K, i64)> {
    let mut counts: HashMap<K, i64> = HashMap::with_capacity(events);
    for _ in 0..events {
        *counts.entry(pool[random.zipf(pool.len())]).or_default() += 1;
    }
    counts.into_iter().collect()
}

fn first_day() -> Day {
    Day::from_date(2026, 4, 1).unwrap()
}

fn generate(store: &Store, scale: f64, rows_file: Option<&Path>) -> (u64, u64) {
    let mut random = Random(20_260_401);
    let pool = Pool::new(&mut random, (2_300_000.0 * scale) as usize, (200_000.0 * scale) as usize);
    let mut rows_out = rows_file.map(|path| BufWriter::new(fs::File::create(path).unwrap()));
    let (mut v4_rows, mut v6_rows) = (0, 0);
    let mut writing = Duration::ZERO;
    let windows = DAYS * DAY_S / WINDOW_S;
    for window in 0..windows {
        let start = first_day().start() + window * WINDOW_S;
        for (index, series) in SERIES.iter().enumerate() {
            let v4 = draw(&mut random, &pool.v4, (7_900.0 * scale).ceil() as usize);
            let v6 = draw(&mut random, &pool.v6, (1_000.0 * scale).ceil() as usize);
            if let Some(out) = &mut rows_out {
                let end = start + WINDOW_S;
                v4.iter().for_each(|(key, count)| writeln!(out, "{index},{end},4,{key},{count}").unwrap());
                v6.iter().for_each(|(key, count)| writeln!(out, "{index},{end},6,{key},{count}").unwrap());
            }
            (v4_rows, v6_rows) = (v4_rows + v4.len() as u64, v6_rows + v6.len() as u64);
            let counts = Counts::from_rows(v4, v6);
            let window = Window { series: (*series).into(), node: "n1".into(), start, end: start + WINDOW_S, counts };
            let began = Instant::now();
            store.commit(None, &[window]).unwrap();
            writing += began.elapsed();
        }
    }
    println!("windows written in {:.1} s ({} files)", writing.as_secs_f64(), windows * SERIES.len() as i64);
    (v4_rows, v6_rows)
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                bytes_below(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}

/// The best and the median of some runs, after one that warms up.
fn time(mut run: impl FnMut() -> u64) -> (Duration, Duration, u64) {
    let rows = run();
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (began.elapsed() < Duration::from_secs(1) && times.len() < 2_000) {
        let one = Instant::now();
        assert_eq!(run(), rows);
        times.push(one.elapsed());
    }
    times.sort_unstable();
    (times[0], times[times.len() / 2], rows)
}

fn ask(store: &Store, name: &str, goal_ms: f64, text: &str) {
    let now = first_day().start() + DAYS * DAY_S;
    let (mut memory, mut blocks) = (0, 0);
    let (best, median, rows) = time(|| {
        let outcome = store.query(text, &QueryOptions::at(now), &mut std::io::sink()).unwrap();
        (memory, blocks) = (outcome.memory_bytes, outcome.blocks);
        outcome.rows
    });
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{name:<46} median {:>9.3} ms  best {:>9.3} ms  goal {goal_ms:>7} ms  {rows} rows, {blocks} blocks, {} KiB",
        ms(median),
        ms(best),
        memory >> 10
    );
}

fn questions(store: &Store, pool: &Pool, detail: bool) {
    let address = |bits: u32| Address::V4(bits).to_string();
    let (frequent, rare) = (address(pool.v4[3]), address(pool.v4[pool.v4.len() - 5]));
    let mut tops = HashMap::new();
    pool.v4.iter().for_each(|bits| *tops.entry(bits >> 24).or_insert(0) += 1);
    let top = tops.iter().max_by_key(|(_, hosts)| **hosts).unwrap().0;
    let range = "from 20260401 to 20260430";
    let all = "union(spam,virus,invalid_recipients)";
    ask(
        store,
        "top-10 addresses, one series, 30 days",
        4.0,
        &format!("show count for 0.0.0.0/0 in spam {range} order by count limit 10"),
    );
    let odd = "from 20260402 to 20260429";
    ask(
        store,
        "the same over 28 days that are no month",
        4.0,
        &format!("show count for 0.0.0.0/0 in spam {odd} order by count limit 10"),
    );
    ask(
        store,
        "top-10 /24 of a union, one day",
        1.0,
        &format!("show count for 0.0.0.0/0 in {all} on 20260415 cidrsize 24 order by count limit 10"),
    );
    ask(
        store,
        "all levels /8 to /24 of one /8, 7 days",
        2.0,
        &format!("show count for {top}.0.0.0/8 in spam from 20260406 to 20260412 cidrsize 8 to 24"),
    );
    let net = address(pool.v4[3] & 0xFFFF_0000);
    ask(
        store,
        "daily sums of one /16, 30 days",
        0.1,
        &format!("show count for {net}/16 in spam {range} cidrsize 16 aggregate daily"),
    );
    ask(store, "one frequent address, 30 days", 0.02, &format!("show count for {frequent} in spam {range}"));
    ask(store, "one rare address, 30 days", 0.02, &format!("show count for {rare} in spam {range}"));
    ask(store, "all addresses as text, union, 30 days", 250.0, &format!("show count for 0.0.0.0/0 in {all} {range}"));
    if detail {
        ask(
            store,
            "trend of one /16 over one day (96 windows)",
            0.0,
            &format!("show count for {net}/16 in spam on 20260415 trend"),
        );
    }
    ask(
        store,
        "top-10 /48, one series, 30 days",
        0.0,
        &format!("show count for ::/0 in spam {range} cidrsize 48 order by count limit 10"),
    );
}

fn ingest(pool: &Pool) {
    let mut random = Random(7);
    let events: Vec<u32> = (0..4_000_000).map(|_| pool.v4[random.zipf(pool.v4.len())]).collect();
    let batches: Vec<Vec<u8>> = events
        .chunks(8_192)
        .map(|chunk| {
            let mut writer = BatchWriter::default();
            let addresses: Vec<Address> = chunk.iter().map(|bits| Address::V4(*bits)).collect();
            assert!(writer.section("spam", &addresses, None));
            writer.finish()
        })
        .collect();
    let mut text = Vec::new();
    events.iter().for_each(|bits| writeln!(text, "spam {} 1", Address::V4(*bits)).unwrap());
    for (name, goal, run) in [
        (
            "events/s in binary batches",
            18.0,
            &(|window: &mut LiveWindow| {
                batches.iter().for_each(|batch| assert!(feed_batch(window, batch).unwrap().is_some()))
            }) as &dyn Fn(&mut LiveWindow),
        ),
        ("text lines/s", 5.0, &|window: &mut LiveWindow| {
            assert_eq!(feed_text(window, &text, true, &mut |_, _| {}).refused, 0)
        }),
    ] {
        let mut best = f64::MAX;
        for _ in 0..7 {
            let mut window = LiveWindow::new(Limits::default(), 42);
            // A window in its course: the table has its size.
            run(&mut window);
            let began = Instant::now();
            run(&mut window);
            best = best.min(began.elapsed().as_secs_f64());
        }
        println!(
            "{name:<46} {:>6.1} M  goal {goal} M  ({} addresses)",
            events.len() as f64 / best / 1e6,
            pool.v4.len()
        );
    }
}

/// Condenses a copy, says what is left, and asks that, too.
fn condensed(dir: &Path, now: i64, rows: u64, pool: &Pool) {
    let copy = dir.with_extension("condensed");
    for folder in ["", "condensed"] {
        fs::create_dir_all(copy.join(folder)).unwrap();
        let files = fs::read_dir(dir.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|path| path.is_file() && !path.ends_with("lock")) {
            fs::copy(&file, copy.join(folder).join(file.file_name().unwrap())).unwrap();
        }
    }
    let store = Store::open(&copy, StoreOptions::owned_by(Owner::current("bench", "n1"))).unwrap();
    let care = Care { retention_days: None, condense_days: Some(1) };
    let began = Instant::now();
    let done = store.maintain(now, |_| care, &|| false).unwrap();
    println!("condensing everything at once                   {:.1} s  {done:?}", began.elapsed().as_secs_f64());
    let bytes = bytes_below(&copy) as f64 / rows as f64;
    println!("disk, condensed to days, with nodes over more   {bytes:.3} bytes per row  goal 1");
    println!("the questions again, of condensed days:");
    questions(&store, pool, false);
    drop(store);
    fs::remove_dir_all(&copy).unwrap();
}

/// Rows of the directory, noted beside it for the next run.
fn rows_of(dir: &Path, made: Option<(u64, u64)>) -> (u64, u64) {
    let note = dir.with_extension("rows");
    if let Some((v4, v6)) = made {
        fs::write(&note, format!("{v4} {v6}")).unwrap();
    }
    let text = fs::read_to_string(&note).unwrap_or_default();
    let mut numbers = text.split(' ').filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let scale: f64 = arguments.first().map_or(0.01, |scale| scale.parse().expect("SCALE is a number"));
    let dir = arguments
        .get(1)
        .map_or_else(|| std::env::temp_dir().join(format!("cidr-bench-{}", std::process::id())), PathBuf::from);
    let store = Store::open(&dir, StoreOptions::owned_by(Owner::current("bench", "n1"))).unwrap();
    let rows_file = arguments.get(2).map(Path::new);
    let known = !store.available().is_empty();
    let pool = Pool::of(scale);
    let made = if known { None } else { Some(generate(&store, scale, rows_file)) };
    let (v4_rows, v6_rows) = rows_of(&dir, made);
    let rows = (v4_rows + v6_rows).max(1);
    println!(
        "scale {scale}: {v4_rows} IPv4 and {v6_rows} IPv6 rows; {} and {} addresses",
        pool.v4.len(),
        pool.v6.len()
    );
    let per_row = |dir: &Path| bytes_below(dir) as f64 / rows as f64;
    if !known {
        println!("disk, windows alone                             {:.2} bytes per row", per_row(&dir));
    }
    let now = first_day().start() + DAYS * DAY_S + 3_600;
    let began = Instant::now();
    let done = store.maintain(now, |_| Care::default(), &|| false).unwrap();
    println!("maintenance of everything at once               {:.1} s  {done:?}", began.elapsed().as_secs_f64());
    println!("disk, all detail and all nodes                  {:.2} bytes per row  goal 5", per_row(&dir));
    questions(&store, &pool, true);
    condensed(&dir, now, rows, &pool);
    ingest(&pool);
    drop(store);
    if arguments.get(1).is_none() {
        fs::remove_dir_all(&dir).unwrap();
        fs::remove_file(dir.with_extension("rows")).unwrap();
    }
}
