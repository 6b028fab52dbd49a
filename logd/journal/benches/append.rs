//! The journal against plain writes and fdatasync of the same bytes, in the same run; figures as ratios.
//!
//! `cargo bench -p logd-journal [-- DIR]`: DIR decides about the disk.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use logd_journal::{Batch, Durability, Item, Journal, Options};

const PAYLOAD: [u8; 100] = [b'x'; 100];
/// A record on disk.
const RECORD_BYTES: usize = 124;
const WRITERS: usize = 32;

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let top = dir.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    println!("records of {} bytes, {RECORD_BYTES} on disk, in {}", PAYLOAD.len(), top.path().display());
    for per_batch in [1, 30, 1000] {
        safe(top.path(), per_batch);
    }
    fast(top.path());
    read(top.path());
}

/// 32 writers that wait for their syncs, against one thread that writes and syncs as much at once as they have together.
fn safe(top: &Path, per_batch: usize) {
    let seconds = Duration::from_secs(4);
    // Alternately and twice, because the disk has moods.
    let mut raw = 0.0;
    let mut journal = 0.0;
    let mut group = 0.0;
    for round in 0..2 {
        raw += raw_rate(top, WRITERS * per_batch, seconds);
        let dir = top.join(format!("safe-{per_batch}-{round}"));
        let (rate, records_per_sync) = safe_rate(&dir, per_batch, seconds);
        journal += rate;
        group += records_per_sync;
    }
    println!(
        "safe, {WRITERS} writers × {per_batch}: {:.0} records/s, {:.0} per sync; raw fdatasync per {}: {:.0} records/s; ratio {:.2}",
        journal / 2.0,
        group / 2.0,
        WRITERS * per_batch,
        raw / 2.0,
        journal / raw
    );
}

fn raw_rate(top: &Path, records: usize, length: Duration) -> f64 {
    let path = top.join("raw");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
    let bytes = vec![b'x'; records * RECORD_BYTES];
    let started = Instant::now();
    let mut written = 0;
    while started.elapsed() < length {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        written += records;
    }
    let rate = written as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}

fn safe_rate(dir: &Path, per_batch: usize, length: Duration) -> (f64, f64) {
    let journal = Journal::open(dir, Options { sync_delay: None, ..Options::default() }).unwrap();
    let start = Barrier::new(WRITERS);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut batch = Batch::new();
                start.wait();
                while begun.elapsed() < length {
                    batch.clear();
                    (0..per_batch).for_each(|_| batch.push(1, &PAYLOAD).unwrap());
                    journal.append_batch(&mut batch).unwrap();
                }
            });
        }
    });
    let (records, _) = journal.stats().written();
    let rate = records as f64 / begun.elapsed().as_secs_f64();
    let per_sync = records as f64 / journal.stats().syncs().0 as f64;
    journal.close().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    (rate, per_sync)
}

/// Batches of 1,000 that are answered after the write; CPU of the whole process, the background sync's included.
fn fast(top: &Path) {
    const RECORDS: usize = 4_000_000;
    let dir = top.join("fast");
    let journal = Journal::open(&dir, Options { durability: Durability::Fast, ..Options::default() }).unwrap();
    journal.subscribe("reader").unwrap();
    let mut batch = Batch::new();
    let (started, cpu) = (Instant::now(), cpu());
    for _ in 0..RECORDS / 1000 {
        batch.clear();
        (0..1000).for_each(|_| batch.push(1, &PAYLOAD).unwrap());
        journal.append_batch(&mut batch).unwrap();
    }
    let wall = started.elapsed();
    journal.sync().unwrap();
    let used = self::cpu() - cpu;
    println!(
        "fast, batches of 1,000: {:.0} records/s, {:.3} µs of CPU per record with all syncs, {:.3} times the payload on disk",
        RECORDS as f64 / wall.as_secs_f64(),
        used.as_secs_f64() * 1e6 / RECORDS as f64,
        journal.status().unwrap().bytes() as f64 / (RECORDS * PAYLOAD.len()) as f64
    );
    journal.close().unwrap();
}

/// Everything again, every checksum taken, from the page cache.
fn read(top: &Path) {
    let journal = Journal::open(&top.join("fast"), Options::default()).unwrap();
    let mut reader = journal.reader_of("reader").unwrap();
    let (started, cpu) = (Instant::now(), cpu());
    let mut records = 0u64;
    while let Some(item) = reader.next_item().unwrap() {
        assert!(matches!(item, Item::Record(record) if record.payload.len() == PAYLOAD.len()));
        records += 1;
    }
    let (wall, used) = (started.elapsed(), self::cpu() - cpu);
    println!(
        "read: {:.0} records/s, {:.3} µs of CPU per record",
        records as f64 / wall.as_secs_f64(),
        used.as_secs_f64() * 1e6 / records as f64
    );
}

/// What this process has used so far, in user and kernel.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
    seconds(usage.user_time()) + seconds(usage.system_time())
}
