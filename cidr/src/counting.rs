//! What this node counts right now: the window of `as_logger`, windows of events that came late, and the monitors.
//!
//! Reads no clock. The caller passes two: the *wall* clock cuts windows, because files are named by it and may jump; the *steady* clock
//! turns monitors, because a question such as "the last half hour" must survive a wrong wall clock. What always holds: an event counts in
//! exactly one window, and a window that was cut off is handed out exactly once.
//!
//! When the wall clock steps back by less than a window, the present window goes on. When it jumps further, or ahead, the present window
//! ends under its own name and another begins where the clock is now.

use std::collections::{BTreeMap, HashMap};

use cidr_engine::ingest::{BatchError, Fed, LineError, MAX_BATCH_BYTES, feed_batch, feed_text};
use cidr_engine::live::{Held, Limits, LiveWindow, Monitor, Past, Question, Refusal, Sealed, SeriesId, Tally};
use cidr_engine::{Address, Block, Stamp};

/// Windows of late events that are open at a time. An event that would open one more counts in the present window.
const LATE_WINDOWS: usize = 64;
/// Events from further back are somebody's mistake; they count in the present window.
const LATEST_S: i64 = 400 * 86_400;
/// Bytes of text that are counted at a time, half a millisecond's work.
const TEXT_AT_ONCE: usize = 64 << 10;
/// The shortest text line that counts: `a ::` and a newline.
const SHORTEST_LINE: usize = 5;
/// Windows of a series without settings: six of five minutes.
pub const USUAL_MONITOR: (u32, u32) = (300, 6);

/// What time it is, by both clocks, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// May jump.
    pub wall: Stamp,
    /// Never goes back, and began at the wall clock when the program did.
    pub steady: Stamp,
}

/// A window that is over.
pub struct Finished {
    /// Its start.
    pub start: Stamp,
    /// Its end, which names it.
    pub end: Stamp,
    /// What was counted; not sorted yet, which takes a while. Empty in a window that only marks a cut.
    pub counted: LiveWindow,
    /// Cuts that are complete once this window is written: see [`Counting::cuts`].
    pub cut: u64,
}

/// Why a monitor cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the monitor of {series} holds the last {held_s} seconds; for more, ask: show count for … since …")]
pub struct TooFarBack {
    series: String,
    held_s: u64,
}

/// The counters of a node.
pub struct Counting {
    limits: Limits,
    seed: u64,
    interval_s: i64,
    start: Stamp,
    window: LiveWindow,
    /// By start.
    late: BTreeMap<Stamp, LiveWindow>,
    monitors: Monitors,
    finished: Vec<Finished>,
    cuts: u64,
}

/// Monitors, and how to find that of a series of the present window.
struct Monitors {
    all: Vec<Monitor>,
    places: HashMap<Box<str>, usize>,
    by_id: Vec<usize>,
    shapes: BTreeMap<String, (u32, u32)>,
    limits: Limits,
    seed: u64,
    steady: Stamp,
    /// Events that a full monitor could not take.
    refused: u64,
}

impl Monitors {
    fn place(&mut self, name: &str) -> usize {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let (window_s, windows) = self.shapes.get(name).copied().unwrap_or(USUAL_MONITOR);
        let place = self.all.len();
        self.all.push(Monitor::new(window_s, windows, self.limits.addresses, self.seed ^ place as u64));
        self.places.insert(name.into(), place);
        place
    }
}

/// The present window and the monitors as one.
struct Both<'a> {
    window: &'a mut LiveWindow,
    monitors: &'a mut Monitors,
}

impl Tally for Both<'_> {
    fn series(&mut self, name: &[u8]) -> Result<SeriesId, Refusal> {
        let id = self.window.series(name)?;
        if id.index() == self.monitors.by_id.len() {
            // The window has checked the name.
            let place = self.monitors.place(&String::from_utf8_lossy(name));
            self.monitors.by_id.push(place);
        }
        Ok(id)
    }

    #[inline]
    fn add(&mut self, series: SeriesId, address: Address, amount: i64) -> Result<(), Refusal> {
        self.window.add(series, address, amount)?;
        let monitors = &mut *self.monitors;
        let monitor = &mut monitors.all[monitors.by_id[series.index()]];
        monitors.refused += u64::from(monitor.add(address, amount, monitors.steady).is_err());
        Ok(())
    }

    fn add_v4(&mut self, series: SeriesId, events: &[(u32, i64)]) -> Result<(), (usize, Refusal)> {
        let counted = self.window.add_v4(series, events);
        let number = counted.map_or_else(|(number, _)| number, |()| events.len());
        let monitors = &mut *self.monitors;
        let monitor = &mut monitors.all[monitors.by_id[series.index()]];
        monitors.refused += monitor.add_v4(&events[..number], monitors.steady);
        counted
    }
}

impl Counting {
    /// Counters that begin now. The seed is secret: see the engine's tables.
    pub fn new(limits: Limits, seed: u64, interval_s: u32, now: Now) -> Self {
        let interval_s = i64::from(interval_s.max(1));
        let monitors = Monitors {
            all: Vec::new(),
            places: HashMap::new(),
            by_id: Vec::new(),
            shapes: BTreeMap::new(),
            limits,
            seed: seed.rotate_left(32),
            steady: now.steady,
            refused: 0,
        };
        let (start, window) = (aligned(now.wall, interval_s), LiveWindow::new(limits, seed));
        Self { limits, seed, interval_s, start, window, late: BTreeMap::new(), monitors, finished: Vec::new(), cuts: 0 }
    }

    /// Uses another configuration. Windows of another length begin at once; a monitor that changes its shape begins anew.
    pub fn configure(&mut self, interval_s: u32, shapes: BTreeMap<String, (u32, u32)>, now: Now) {
        let interval_s = i64::from(interval_s.max(1));
        if interval_s != self.interval_s {
            self.end_all();
            (self.interval_s, self.start) = (interval_s, aligned(now.wall, interval_s));
        }
        self.monitors.shapes = shapes;
        let Monitors { all, places, shapes, limits, seed, .. } = &mut self.monitors;
        for (name, place) in places.iter() {
            let wanted = shapes.get(&**name).copied().unwrap_or(USUAL_MONITOR);
            if all[*place].shape() != wanted {
                all[*place] = Monitor::new(wanted.0, wanted.1, limits.addresses, *seed ^ *place as u64);
            }
        }
    }

    /// Ends windows that are over.
    pub fn turn(&mut self, now: Now) {
        self.monitors.steady = now.steady;
        let start = aligned(now.wall, self.interval_s);
        let stepped_back = start < self.start && self.start - now.wall <= self.interval_s;
        if start == self.start || stepped_back {
            return;
        }
        self.end_all();
        self.start = start;
    }

    /// Ends the present window and the late ones, whatever time it is: to hand in what was counted before the program stops. What is
    /// counted until the window's real end becomes a second part of it.
    pub fn end_all(&mut self) {
        for (start, counted) in std::mem::take(&mut self.late) {
            self.push_finished(start, counted);
        }
        self.end_present();
        self.cuts += 1;
        // The last one says that the cut is complete, whether anything was counted or not.
        let (start, marked) = (self.start, LiveWindow::new(self.limits, self.seed));
        self.push_finished(start, marked);
    }

    /// How often everything that had been counted was handed out. What is counted now is part of the next cut.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    fn push_finished(&mut self, start: Stamp, counted: LiveWindow) {
        self.finished.push(Finished { start, end: start + self.interval_s, counted, cut: self.cuts });
    }

    fn end_present(&mut self) {
        self.seed = self.seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        let counted = std::mem::replace(&mut self.window, LiveWindow::new(self.limits, self.seed));
        self.monitors.by_id.clear();
        if !counted.is_empty() {
            self.push_finished(self.start, counted);
        }
    }

    /// The windows that are over; each is given out once.
    pub fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Before so many addresses come: a window that could not take them all ends early.
    fn make_room(&mut self, addresses: usize) {
        if self.window.room() < addresses.min(self.limits.addresses) {
            self.end_present();
        }
    }

    fn both(&mut self) -> Both<'_> {
        Both { window: &mut self.window, monitors: &mut self.monitors }
    }

    /// Counts lines of the text protocol; see [`feed_text`]. Of a long text only the beginning: whoever has more gives the rest again, and others
    /// count in between.
    pub fn text(&mut self, text: &[u8], complete: bool, now: Now, refused: &mut dyn FnMut(&[u8], LineError)) -> Fed {
        self.turn(now);
        let piece = &text[..text.len().min(TEXT_AT_ONCE)];
        self.make_room(piece.len() / SHORTEST_LINE + 1);
        feed_text(&mut self.both(), piece, complete && piece.len() == text.len(), refused)
    }

    /// Counts a binary batch; see [`feed_batch`].
    pub fn batch(&mut self, data: &[u8], now: Now) -> Result<Option<(usize, u64)>, BatchError> {
        self.turn(now);
        self.make_room(data.len().min(MAX_BATCH_BYTES) / 4);
        feed_batch(&mut self.both(), data)
    }

    /// Counts one event, which may have happened earlier.
    pub fn event(
        &mut self,
        series: &str,
        address: Address,
        amount: i64,
        time: Option<Stamp>,
        now: Now,
    ) -> Result<(), Refusal> {
        self.turn(now);
        self.make_room(1);
        let start = time.map(|time| aligned(time, self.interval_s)).filter(|start| self.is_late(*start, now));
        let Some(start) = start else {
            let mut both = self.both();
            let id = both.series(series.as_bytes())?;
            return both.add(id, address, amount);
        };
        let seed = self.seed ^ start as u64;
        let late = self.late.entry(start).or_insert_with(|| LiveWindow::new(self.limits, seed));
        // The window has checked the name.
        let id = late.series(series.as_bytes())?;
        late.add(id, address, amount)?;
        self.monitor_late(series, address, amount, now.wall - time.unwrap_or(now.wall));
        Ok(())
    }

    /// An event that is late by less than a monitor's window is still news to it: logs are read with a delay.
    fn monitor_late(&mut self, series: &str, address: Address, amount: i64, late_s: i64) {
        let place = self.monitors.place(series);
        let monitors = &mut self.monitors;
        if late_s <= i64::from(monitors.all[place].shape().0) {
            monitors.refused += u64::from(monitors.all[place].add(address, amount, monitors.steady).is_err());
        }
    }

    fn is_late(&self, start: Stamp, now: Now) -> bool {
        let earlier = start < self.start && start > now.wall - LATEST_S && start >= 0;
        earlier && (self.late.len() < LATE_WINDOWS || self.late.contains_key(&start))
    }

    /// What the monitor of a series counted for a block in the windows that reach `last_s` back; none without such a series. The answer is
    /// worked out without the counters.
    pub fn ask(&mut self, series: &str, block: &Block, last_s: u64, now: Now) -> Result<Option<Question>, TooFarBack> {
        let Some(place) = self.monitors.places.get(series) else { return Ok(None) };
        let monitor = &mut self.monitors.all[*place];
        let (window_s, windows) = monitor.shape();
        let wanted = last_s.div_ceil(u64::from(window_s)).max(1);
        if wanted > u64::from(windows) {
            let held_s = u64::from(window_s) * u64::from(windows);
            return Err(TooFarBack { series: series.into(), held_s });
        }
        Ok(Some(monitor.ask(block, 0, wanted as u32 - 1, now.steady)))
    }

    /// Forgets an address: in the monitor, and in windows that were not handed in yet.
    pub fn remove(&mut self, series: &str, address: Address, now: Now) {
        self.turn(now);
        if let Some(place) = self.monitors.places.get(series) {
            self.monitors.all[*place].remove(address, now.steady);
        }
        self.window.remove(series, address);
        self.late.values_mut().for_each(|window| window.remove(series, address));
    }

    /// The series that have monitors, with their shapes.
    pub fn monitored(&self) -> BTreeMap<String, (u32, u32)> {
        let shape = |place: usize| self.monitors.all[place].shape();
        self.monitors.places.iter().map(|(name, place)| (String::from(name.clone()), shape(*place))).collect()
    }

    /// Windows of monitors that ended since the last call: to be sorted before somebody asks.
    pub fn take_ended(&mut self) -> Vec<Past> {
        self.monitors.all.iter_mut().flat_map(Monitor::take_ended).collect()
    }

    /// What a monitor holds; its windows have their starts by the steady clock.
    pub fn export(&self, series: &str) -> Option<Held> {
        self.monitors.places.get(series).map(|place| self.monitors.all[*place].export())
    }

    /// Gives a monitor back what it held in an earlier run; nothing happens once it has counted.
    pub fn import(&mut self, series: &str, windows: Vec<(Stamp, Sealed)>, now: Now) {
        if !self.monitors.places.contains_key(series) {
            let place = self.monitors.place(series);
            self.monitors.all[place].import(windows, now.steady);
        }
    }

    /// Addresses of the present window, and events that full monitors could not take.
    pub fn usage(&self) -> (usize, u64) {
        (self.window.len(), self.monitors.refused)
    }
}

fn aligned(moment: Stamp, interval_s: i64) -> Stamp {
    moment - moment.rem_euclid(interval_s)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn at(wall: Stamp, steady: Stamp) -> Now {
        Now { wall, steady }
    }

    fn counting(limits: Limits) -> Counting {
        Counting::new(limits, 1, 60, at(600, 600))
    }

    fn sums(counting: &mut Counting) -> Vec<(Stamp, i64)> {
        let sum = |finished: &mut Finished| {
            let rows = finished.counted.seal();
            let sum = rows.iter().flat_map(|(_, counts)| counts.v4().iter().map(|row| row.1)).sum();
            (finished.end, sum)
        };
        let mut finished = counting.take_finished();
        finished.iter_mut().filter(|window| !window.counted.is_empty()).map(sum).collect()
    }

    fn event(counting: &mut Counting, amount: i64, time: Option<Stamp>, now: Now) {
        counting.event("spam", "10.0.0.1".parse().unwrap(), amount, time, now).unwrap();
    }

    fn count(counting: &mut Counting, series: &str, last_s: u64, now: Now) -> Result<Option<i64>, TooFarBack> {
        let asked = counting.ask(series, &"10.0.0.0/8".parse().unwrap(), last_s, now)?;
        Ok(asked.map(|question| question.answer()))
    }

    #[test]
    fn windows_follow_the_wall_clock_through_jumps() {
        let mut counting = counting(Limits::default());
        event(&mut counting, 1, None, at(601, 601));
        event(&mut counting, 2, None, at(659, 659));
        event(&mut counting, 4, None, at(660, 660));
        assert_eq!(sums(&mut counting), [(660, 3)]);
        // A small step back: the window goes on.
        event(&mut counting, 8, None, at(630, 661));
        assert_eq!(sums(&mut counting), []);
        // A jump back by hours, and one ahead by years.
        event(&mut counting, 16, None, at(100, 662));
        assert_eq!(sums(&mut counting), [(720, 12)]);
        event(&mut counting, 32, None, at(900_000_000, 663));
        assert_eq!(sums(&mut counting), [(120, 16)]);
        event(&mut counting, 64, None, at(664, 664));
        assert_eq!(sums(&mut counting), [(900_000_060, 32)]);
        counting.end_all();
        assert_eq!(sums(&mut counting), [(720, 64)]);
        // The monitor saw ten seconds or so.
        assert_eq!(count(&mut counting, "spam", 1_800, at(5, 670)), Ok(Some(127)));
    }

    #[test]
    fn late_events_go_to_their_own_windows() {
        let mut counting = counting(Limits::default());
        let now = at(100_000, 600);
        event(&mut counting, 1, Some(99_990), now);
        event(&mut counting, 2, Some(90_000), now);
        event(&mut counting, 4, Some(90_059), now);
        // The future, and what is too far back, count now.
        event(&mut counting, 8, Some(200_000), now);
        event(&mut counting, 16, Some(-5), now);
        counting.end_all();
        assert_eq!(sums(&mut counting), [(90_060, 6), (100_020, 25)]);
    }

    #[test]
    fn late_windows_are_bounded() {
        let mut counting = counting(Limits::default());
        let now = at(1_000_000, 600);
        for window in 0..200 {
            event(&mut counting, 1, Some(window * 60), now);
        }
        counting.end_all();
        let sums = sums(&mut counting);
        assert_eq!((sums.len(), sums.iter().map(|sum| sum.1).sum::<i64>()), (LATE_WINDOWS + 1, 200));
    }

    #[test]
    fn a_full_window_ends_early_and_nothing_is_lost() {
        let mut counting = counting(Limits { series: 4, addresses: 100_000 });
        let mut text = String::new();
        for number in 0..300_000_u32 {
            text += &format!("spam {}\n", Address::V4(number << 3));
        }
        let (mut consumed, mut counted) = (0, 0);
        while consumed < text.len() {
            let fed = counting.text(&text.as_bytes()[consumed..], true, at(601, 601), &mut |line, error| {
                panic!("{error}: {}", String::from_utf8_lossy(line));
            });
            assert!(fed.consumed > 0 && fed.consumed <= TEXT_AT_ONCE, "others wait meanwhile");
            (consumed, counted) = (consumed + fed.consumed, counted + fed.counted);
        }
        assert_eq!(counted, 300_000);
        counting.end_all();
        let sums = sums(&mut counting);
        assert!(sums.len() >= 3, "{sums:?}");
        assert_eq!(sums.iter().map(|sum| sum.1).sum::<i64>(), 300_000);
    }

    #[test]
    fn removing_and_shapes() {
        let mut counting = counting(Limits::default());
        let now = at(601, 601);
        event(&mut counting, 5, None, now);
        counting.remove("spam", "10.0.0.1".parse().unwrap(), now);
        assert_eq!(count(&mut counting, "spam", 300, now), Ok(Some(0)));
        assert_eq!(count(&mut counting, "ham", 300, now), Ok(None));
        let error = count(&mut counting, "spam", 7_200, now).unwrap_err();
        assert!(error.to_string().contains("1800 seconds"), "{error}");
        event(&mut counting, 7, None, now);
        counting.configure(60, BTreeMap::from([("spam".into(), (10, 100))]), now);
        assert_eq!(count(&mut counting, "spam", 60, now), Ok(Some(0)));
        event(&mut counting, 9, None, now);
        assert_eq!(count(&mut counting, "spam", 10, now), Ok(Some(9)));
        counting.configure(10, BTreeMap::new(), now);
        assert_eq!(sums(&mut counting), [(660, 16)]);
        assert_eq!(counting.start + counting.interval_s, 610);
    }

    proptest! {
        #[test]
        fn whatever_the_clock_does_every_event_counts_once(
            events in proptest::collection::vec((1_i64..100, -4_000_i64..4_000, proptest::option::of(0_i64..20_000)), 1..200),
        ) {
            let mut counting = counting(Limits::default());
            let (mut wall, mut expected) = (10_000, 0);
            for (number, (amount, step, time)) in events.into_iter().enumerate() {
                wall = (wall + if step % 3 == 0 { step } else { step.rem_euclid(7) }).max(0);
                event(&mut counting, amount, time, at(wall, 600 + number as i64));
                expected += amount;
            }
            counting.end_all();
            let sums = sums(&mut counting);
            prop_assert!(sums.iter().all(|(end, _)| end % 60 == 0));
            prop_assert_eq!(sums.iter().map(|sum| sum.1).sum::<i64>(), expected);
        }
    }
}
