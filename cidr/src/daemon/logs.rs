//! Series out of logs: a pattern over the lines of a journal of logd.
//!
//! Any journal directory will do: it is looked at from beside, as a subscriber of its own, so that lines wait while this daemon is away.
//! A line counts in the window in which it was logged, however late it is read. The position is noted once the cut with its counts is in the
//! journal of windows: a crash between the two counts the lines of a window again, and loses none.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cidr_engine::Address;
use cluster::documents::schema::cidr::Cidr;
use cluster::error::Chain;
use logd_journal::{Item, JournalError, Reader, View};
use tokio_util::sync::CancellationToken;

use crate::service::Service;

/// The subscriber's name in every journal.
pub const SUBSCRIBER: &str = "cidr";
/// How long a reader waits before it looks whether it shall end.
const WAIT: Duration = Duration::from_millis(500);
/// A journal that is not there yet, or cannot be read, is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// At the end: how long to wait for the last windows to be written.
const LAST_CUT: Duration = Duration::from_secs(10);
/// Lines that are matched before the counters are locked for their addresses.
const AT_ONCE: usize = 1_024;

/// A pattern and the series that it feeds.
struct Rule {
    series: String,
    pattern: regex::Regex,
}

/// A line's worth.
struct Hit {
    rule: usize,
    address: Address,
    time: i64,
}

/// Keeps a thread for every log that a series is made of.
pub async fn follow(service: Arc<Service>, logs: PathBuf, stop: CancellationToken) {
    let mut running: Option<(Cidr, Arc<AtomicBool>)> = None;
    loop {
        let reconfigured = service.reconfigured.notified();
        let settings = service.settings();
        if running.as_ref().is_none_or(|(cidr, _)| cidr.series != settings.cidr.series) {
            if let Some((_, over)) = &running {
                over.store(true, Ordering::Relaxed);
            }
            let over = Arc::new(AtomicBool::new(false));
            for (log, rules) in rules(&settings.cidr) {
                let (service, over, dir) = (service.clone(), over.clone(), logs.join(&log));
                std::thread::Builder::new()
                    .name(format!("log {log}"))
                    .spawn(move || follow_one(&service, &dir, &rules, &over))
                    .map_or_else(|error| tracing::error!(log, %error, "cannot follow a log"), drop);
            }
            running = Some((settings.cidr.clone(), over));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = reconfigured => {}
        }
    }
    if let Some((_, over)) = running {
        over.store(true, Ordering::Relaxed);
    }
}

fn rules(cidr: &Cidr) -> BTreeMap<String, Vec<Rule>> {
    let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    for (series, settings) in &cidr.series {
        if let Some(source) = &settings.source {
            let rule = Rule { series: series.clone(), pattern: source.pattern.regex().clone() };
            rules.entry(source.log.clone()).or_default().push(rule);
        }
    }
    rules
}

fn follow_one(service: &Service, dir: &Path, rules: &[Rule], over: &AtomicBool) {
    let mut complaint = String::new();
    while !over.load(Ordering::Relaxed) {
        if let Err(error) = read(service, dir, rules, over) {
            let words = Chain(&error).to_string();
            if words != complaint {
                tracing::warn!(dir = %dir.display(), error = words, "this log cannot be read yet; trying again");
                complaint = words;
            }
            let until = Instant::now() + AGAIN_AFTER;
            while Instant::now() < until && !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Reads a journal until told to end.
fn read(service: &Service, dir: &Path, rules: &[Rule], over: &AtomicBool) -> Result<(), JournalError> {
    let mut view = View::open(dir)?;
    match view.subscribe(SUBSCRIBER) {
        Ok(()) | Err(JournalError::SubscriberExists { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut reader = view.reader(view.subscriber(SUBSCRIBER)?.next)?;
    tracing::info!(dir = %dir.display(), "following a log");
    let mut marks = Marks::default();
    while !over.load(Ordering::Relaxed) {
        let (lines, cut) = read_some(service, &mut reader, rules)?;
        marks.read(cut, reader.position().next);
        marks.note(service.written_cuts(), &mut view)?;
        if lines == 0 {
            reader.wait(Some(WAIT))?;
        }
    }
    let until = Instant::now() + LAST_CUT;
    while !marks.0.is_empty() && Instant::now() < until {
        marks.note(service.written_cuts(), &mut view)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// How far was read before which cut.
#[derive(Default)]
struct Marks(VecDeque<(u64, u64)>);

impl Marks {
    fn read(&mut self, cut: u64, next: u64) {
        match self.0.back_mut() {
            Some(last) if last.0 == cut => last.1 = next,
            Some(last) if last.1 == next => {}
            _ => self.0.push_back((cut, next)),
        }
    }

    /// Notes the position up to which all counts are written.
    fn note(&mut self, written: u64, view: &mut View) -> Result<(), JournalError> {
        let durable = self.0.iter().take_while(|(cut, _)| *cut < written).count();
        if let Some((_, next)) = self.0.drain(..durable).next_back() {
            view.set_position(SUBSCRIBER, next)?;
            view.collect()?;
        }
        Ok(())
    }
}

/// Matches a few lines and counts their addresses; how many lines, and after how many cuts.
fn read_some(service: &Service, reader: &mut Reader, rules: &[Rule]) -> Result<(usize, u64), JournalError> {
    let (mut hits, mut lines, mut unmatched) = (Vec::new(), 0, 0);
    while lines < AT_ONCE {
        match reader.next_item()? {
            None => break,
            Some(Item::Gap(gap)) => tracing::warn!(%gap, "a log has a gap"),
            Some(Item::Record(record)) => {
                let time = (record.time_us / 1_000_000) as i64;
                unmatched += match_line(&String::from_utf8_lossy(record.payload), time, rules, &mut hits);
            }
        }
        lines += 1;
    }
    let mut refused = unmatched;
    let cut = service.counted(|counting, now| {
        for hit in &hits {
            let counted = counting.event(&rules[hit.rule].series, hit.address, 1, Some(hit.time), now);
            refused += u64::from(counted.is_err());
        }
        counting.cuts()
    });
    service.meters.brought("log", hits.len() as u64 + unmatched - refused, refused);
    Ok((lines, cut))
}

/// Adds what the rules find in a line; how many found something that is no address.
fn match_line(line: &str, time: i64, rules: &[Rule], hits: &mut Vec<Hit>) -> u64 {
    let mut wrong = 0;
    for (rule, Rule { pattern, .. }) in rules.iter().enumerate() {
        let Some(found) = pattern.captures(line).and_then(|captures| captures.name("ip")) else { continue };
        // Logs write `[2001:db8::1]`, `10.0.0.1,` and `10.0.0.1]:25`.
        let text = found.as_str().trim_matches(|c: char| !c.is_ascii_hexdigit() && c != ':');
        match text.parse().or_else(|_| text.split(']').next().unwrap_or_default().parse()) {
            Ok(address) => hits.push(Hit { rule, address, time }),
            Err(_) => wrong += 1,
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_found_as_logs_write_them() {
        let rules = [Rule { series: "fail".into(), pattern: regex::Regex::new(r"from (?P<ip>\S+)").unwrap() }];
        let mut hits = Vec::new();
        let mut wrong = 0;
        for line in ["x from 10.0.0.1 port", "from [2001:db8::1]:25", "from 10.0.0.2,", "from mail.example", "none"] {
            wrong += match_line(line, 7, &rules, &mut hits);
        }
        let found: Vec<String> = hits.iter().map(|hit| hit.address.to_string()).collect();
        assert_eq!((found, wrong), (vec!["10.0.0.1".into(), "2001:db8::1".into(), "10.0.0.2".into()], 1));
    }

    #[test]
    fn lines_become_counts_and_the_position_follows_the_windows() {
        use crate::hand_in::Portion;
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("auth");
        let journal = logd_journal::Journal::open(&logs, logd_journal::Options::default()).unwrap();
        let outbox = crate::outbox::Outbox::open(&dir.path().join("outbox"), "n1").unwrap();
        outbox.set_servers(&["n1".into()]).unwrap();
        let limits =
            crate::service::QueryLimits { max_queries: 1, query_seconds: 1, query_rows: 1, query_memory_mib: 1 };
        let (peers, meters) = (crate::peers::Peers::new(None), crate::metrics::Meters::new("n1"));
        let (service, finished) = Service::new("n1".into(), dir.path().into(), limits, outbox, peers, meters);
        let (now, old) = (service.wall(), service.wall() - 7_200);
        let mut batch = logd_journal::Batch::new();
        for (time, line) in [(old, "a from 10.0.0.1"), (old, "b from 10.0.0.2"), (now, "c"), (now, "d from 10.0.0.1")] {
            batch.push(time as u64 * 1_000_000, line.as_bytes()).unwrap();
        }
        journal.append_batch(&mut batch).unwrap();
        let rules = [Rule { series: "fail".into(), pattern: regex::Regex::new(r"from (?P<ip>\S+)").unwrap() }];
        let (over, block) = (AtomicBool::new(false), "10.0.0.0/8".parse().unwrap());
        let position = || View::open(&logs).unwrap().subscriber(SUBSCRIBER).unwrap().next;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| follow_one(&service, &logs, &rules, &over));
            let begun = Instant::now();
            while service.count_here("fail", &block, 300).unwrap() != 1 {
                assert!(begun.elapsed() < Duration::from_secs(60), "the lines are not counted");
                std::thread::sleep(Duration::from_millis(5));
            }
            // Nothing was handed in yet, so nothing was passed.
            assert_eq!(position(), 1);
            service.finish();
            crate::daemon::windows::write(&service, &finished, &CancellationToken::new());
            over.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(position(), journal.synced());
        let message = service.outbox.courier("n1").unwrap().next().unwrap().unwrap();
        let portions = message.records.iter().map(|(_, record)| Portion::decode(record).unwrap());
        let mut windows: Vec<(i64, usize)> = portions.map(|portion| (portion.end, portion.counts.len())).collect();
        windows.sort_unstable();
        assert_eq!((windows[0], windows[1].1), ((old - old.rem_euclid(60) + 60, 2), 1), "{windows:?}");
    }
}
