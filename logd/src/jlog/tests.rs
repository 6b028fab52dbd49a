#![allow(clippy::unwrap_used)]
//! Directories made from the description of the bytes, whole and damaged, and what an import makes of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use logd_journal::{Item, Journal, Options, View};
use proptest::prelude::*;

use super::*;

const PLAIN: u32 = 0x663A_7318;
const LZ4: u32 = 0x1510_6A01;

/// Writes a jlog directory.
pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    big_endian: bool,
    magic: u32,
}

impl Fixture {
    pub(crate) fn new(dir: &Path) -> Self {
        Self::of(dir, false, PLAIN)
    }

    fn of(dir: &Path, big_endian: bool, magic: u32) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let fixture = Self { dir: dir.into(), big_endian, magic };
        fixture.metastore(0);
        fixture
    }

    fn u32(&self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(crate) fn metastore(&self, current: u32) {
        let words = [current, 4 << 20, 1, self.magic].map(|word| self.u32(word)).concat();
        std::fs::write(self.dir.join("metastore"), words).unwrap();
    }

    pub(crate) fn record(&self, seconds: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = [self.magic, seconds, 250_000].map(|word| self.u32(word)).concat();
        out.extend(self.u32(payload.len() as u32));
        if self.magic == PLAIN {
            out.extend(payload);
        } else {
            let packed = literal_lz4(payload);
            out.extend(self.u32(packed.len() as u32));
            out.extend(packed);
        }
        out
    }

    /// A segment of these payloads; answers where each begins.
    pub(crate) fn segment(&self, number: u32, payloads: &[&str]) -> Vec<u64> {
        let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
        for (i, payload) in payloads.iter().enumerate() {
            offsets.push(bytes.len() as u64);
            bytes.extend(self.record(1_700_000_000 + i as u32, payload.as_bytes()));
        }
        std::fs::write(self.path(number), bytes).unwrap();
        offsets
    }

    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08x}"))
    }

    fn index(&self, number: u32, offsets: &[u64], complete: bool) {
        let mut all = offsets.to_vec();
        all.extend(complete.then_some(0));
        let bytes = |offset: &u64| if self.big_endian { offset.to_be_bytes() } else { offset.to_le_bytes() };
        let bytes: Vec<u8> = all.iter().flat_map(bytes).collect();
        std::fs::write(self.dir.join(format!("{number:08x}.idx")), bytes).unwrap();
    }

    pub(crate) fn checkpoint(&self, name: &str, segment: u32, marker: u32) {
        let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        std::fs::write(self.dir.join(format!("cp.{hex}")), [self.u32(segment), self.u32(marker)].concat()).unwrap();
    }

    pub(crate) fn damage(&self, number: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(number)).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(number), bytes).unwrap();
    }
}

/// An LZ4 block of literals only: allowed by the format, and needs no compressor.
fn literal_lz4(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if payload.len() < 15 {
        out.push((payload.len() as u8) << 4);
    } else {
        out.push(0xF0);
        let mut rest = payload.len() - 15;
        while rest >= 255 {
            out.push(255);
            rest -= 255;
        }
        out.push(rest as u8);
    }
    out.extend(payload);
    out
}

struct Imported {
    report: ImportReport,
    records: Vec<(u64, u64, String)>,
    unread: BTreeMap<String, Vec<String>>,
}

fn import(fixture: &Fixture) -> Imported {
    let new = fixture.dir.with_extension("new");
    let report = import_into(&fixture.dir, &new, Options { sync_delay: None, ..Options::default() }).unwrap();
    let journal = Journal::open(&new, Options { sync_delay: None, ..Options::default() }).unwrap();
    let read = |mut reader: logd_journal::Reader| {
        let mut records = Vec::new();
        while let Some(item) = reader.next_item().unwrap() {
            let Item::Record(record) = item else { panic!("{item:?}") };
            let text = String::from_utf8_lossy(record.payload).into_owned();
            records.push((record.sequence, record.time_us, text));
        }
        records
    };
    let records = read(journal.reader(0));
    let unread = journal.subscribers().unwrap().into_iter().map(|one| {
        let texts = read(journal.reader_of(&one.name).unwrap()).into_iter().map(|record| record.2).collect();
        (one.name, texts)
    });
    let unread = unread.collect();
    drop(journal);
    std::fs::remove_dir_all(&new).unwrap();
    Imported { report, records, unread }
}

fn texts(imported: &Imported) -> Vec<&str> {
    imported.records.iter().map(|record| record.2.as_str()).collect()
}

#[test]
fn records_times_and_positions_are_taken_over_in_every_spelling_of_the_format() {
    for (big_endian, magic) in [(false, PLAIN), (true, PLAIN), (false, LZ4), (true, LZ4)] {
        let top = tempfile::tempdir().unwrap();
        let fixture = Fixture::of(&top.path().join("j"), big_endian, magic);
        let offsets = fixture.segment(0, &["a0", "", "a2"]);
        fixture.index(0, &offsets, true);
        fixture.segment(1, &["b0", &"long ".repeat(200)]);
        fixture.metastore(1);
        fixture.checkpoint("master", 0, 0);
        fixture.checkpoint("mgr/1", 0, 2);
        fixture.checkpoint("end-of-0", 0, 3);
        fixture.checkpoint("all", 1, 2);
        fixture.checkpoint("ahead", 2, 0);
        let imported = import(&fixture);
        assert_eq!(texts(&imported), ["a0", "", "a2", "b0", &"long ".repeat(200)]);
        assert_eq!(imported.records[2].1, 1_700_000_002_250_000);
        assert_eq!(imported.records[2].0, 3);
        let unread: BTreeMap<&str, usize> =
            imported.unread.iter().map(|(name, all)| (name.as_str(), all.len())).collect();
        assert_eq!(unread, BTreeMap::from([("master", 5), ("mgr/1", 3), ("end-of-0", 2), ("all", 0), ("ahead", 0)]));
        assert!(
            imported.report.skipped.is_empty() && imported.report.subscribers.iter().all(|one| one.doubt.is_none())
        );
    }
}

#[test]
fn what_is_missing_is_not_needed() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("j"));
    fixture.segment(7, &["a", "b"]);
    fixture.checkpoint("older", 3, 9);
    std::fs::remove_file(fixture.dir.join("metastore")).unwrap();
    let imported = import(&fixture);
    assert_eq!(texts(&imported), ["a", "b"]);
    assert_eq!(imported.unread["older"], ["a", "b"], "a checkpoint before the oldest segment reads on from the oldest");
    // A metastore of the old kind, without the magic.
    std::fs::write(fixture.dir.join("metastore"), [7u32, 4 << 20, 1].map(u32::to_le_bytes).concat()).unwrap();
    assert_eq!(texts(&import(&fixture)), ["a", "b"]);
}

#[test]
fn finished_records_that_were_not_appended_are_taken_once() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("j"));
    fixture.segment(0, &["a", "b"]);
    fixture.checkpoint("s", 0, 2);
    let late = [fixture.record(1, b"c"), fixture.record(2, b"d")].concat();
    let mut bytes = (late.len() as u32).to_le_bytes().to_vec();
    bytes.extend(&late);
    // Behind what is in use may lie what was.
    bytes.extend(b"old rubbish");
    std::fs::write(fixture.dir.join("pre_commit"), bytes).unwrap();
    let imported = import(&fixture);
    assert_eq!(texts(&imported), ["a", "b", "c", "d"]);
    assert_eq!(imported.unread["s"], ["c", "d"]);
    // The writer died between appending them and saying so.
    fixture.damage(0, |bytes| bytes.extend(&late));
    assert_eq!(texts(&import(&fixture)), ["a", "b", "c", "d"]);
    std::fs::write(fixture.dir.join("pre_commit"), 0u32.to_le_bytes()).unwrap();
    assert_eq!(texts(&import(&fixture)), ["a", "b", "c", "d"]);
}

#[test]
fn a_torn_record_with_whole_ones_behind_it_costs_itself_alone() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("j"));
    let offsets = fixture.segment(0, &["first", "second", "third", "fourth"]);
    fixture.index(0, &offsets, true);
    // The middle of the second is gone, and what follows moved up: a write that stopped.
    let at = offsets[1] as usize + 18;
    fixture.damage(0, |bytes| drop(bytes.drain(at..at + 2)));
    fixture.checkpoint("s", 0, 3);
    fixture.checkpoint("t", 0, 1);
    let imported = import(&fixture);
    assert_eq!(texts(&imported), ["first", "third", "fourth"]);
    assert_eq!(imported.report.skipped.len(), 1);
    assert_eq!(imported.unread["t"], ["third", "fourth"]);
    assert!(imported.unread["s"].contains(&"fourth".into()));
    assert!(imported.report.subscribers[0].doubt.is_some(), "{:?}", imported.report.subscribers);
}

#[test]
fn with_an_index_damage_does_not_shift_a_marker() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("j"));
    let offsets = fixture.segment(0, &["first", "second", "third", "fourth"]);
    fixture.index(0, &offsets, false);
    fixture.damage(0, |bytes| bytes[offsets[1] as usize..offsets[2] as usize].fill(0));
    fixture.checkpoint("s", 0, 3);
    let imported = import(&fixture);
    assert_eq!(imported.unread["s"], ["fourth"]);
    assert_eq!(imported.report.subscribers[0].doubt, None);
    // Without one nobody knows how many records the zeros were; nothing that may be unread is left out.
    std::fs::remove_file(fixture.dir.join("00000000.idx")).unwrap();
    let imported = import(&fixture);
    assert_eq!(imported.unread["s"], ["third", "fourth"]);
    assert!(imported.report.subscribers[0].doubt.as_ref().unwrap().contains("damage"));
}

#[test]
fn a_marker_of_before_a_repair_reads_the_segment_again() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("j"));
    fixture.segment(0, &["a", "b"]);
    fixture.segment(1, &["c"]);
    fixture.checkpoint("s", 0, 3);
    let imported = import(&fixture);
    assert_eq!(imported.unread["s"], ["a", "b", "c"]);
    assert!(imported.report.subscribers[0].doubt.as_ref().unwrap().contains("repaired in place"));
}

#[test]
fn an_import_in_place_keeps_the_old_directory_and_survives_a_killed_one() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("mainlog"));
    fixture.segment(0, &["a", "b"]);
    fixture.checkpoint("master", 0, 1);
    std::fs::create_dir(top.path().join("mainlog.importing")).unwrap();
    std::fs::write(top.path().join("mainlog.importing/journal"), b"half").unwrap();
    let (report, kept) = import_in_place(&fixture.dir, Options::default()).unwrap();
    assert_eq!((report.records, report.subscribers[0].next), (2, 2));
    assert_eq!(View::open(&fixture.dir).unwrap().synced().unwrap(), 3);
    assert!(kept.join("00000000").exists() && !top.path().join("mainlog.importing").exists());
    assert!(matches!(
        import_in_place(&fixture.dir, Options::default()),
        Err(OldError::Exists { .. } | OldError::NotOld { .. })
    ));
}

#[test]
fn other_directories_are_refused() {
    let top = tempfile::tempdir().unwrap();
    assert!(matches!(OldJournal::open(top.path()), Err(OldError::NotOld { .. })));
    assert!(matches!(OldJournal::open(&top.path().join("none")), Err(OldError::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    /// Zeroes anywhere: every record that was not touched comes over, in order, and whoever had not read it still has it before it.
    #[test]
    fn nothing_untouched_is_lost_and_nothing_unread_becomes_read(
        lengths in proptest::collection::vec(0usize..40, 1..25),
        marker in any::<proptest::sample::Index>(),
        place in any::<proptest::sample::Index>(),
        length in 1usize..60,
        indexed: bool,
    ) {
        let top = tempfile::tempdir().unwrap();
        let fixture = Fixture::new(&top.path().join("j"));
        let payloads: Vec<String> = lengths.iter().enumerate().map(|(i, n)| format!("{i}:{}", "x".repeat(*n))).collect();
        let offsets = fixture.segment(0, &payloads.iter().map(String::as_str).collect::<Vec<_>>());
        fixture.segment(1, &["next segment"]);
        if indexed {
            fixture.index(0, &offsets, true);
        }
        let marker = marker.index(payloads.len() + 1);
        fixture.checkpoint("s", 0, marker as u32);
        let mut hit = 0..0;
        fixture.damage(0, |bytes| {
            let from = place.index(bytes.len());
            hit = from..(from + length).min(bytes.len());
            bytes[hit.clone()].fill(0);
        });
        let ends = offsets.iter().skip(1).copied().chain([std::fs::metadata(fixture.path(0)).unwrap().len()]);
        let touched: Vec<bool> =
            offsets.iter().zip(ends).map(|(start, end)| (*start as usize) < hit.end && hit.start < end as usize).collect();
        let imported = import(&fixture);
        let came: Vec<&str> = texts(&imported);
        let unread = &imported.unread["s"];
        for (i, payload) in payloads.iter().enumerate().filter(|(i, _)| !touched[*i]) {
            prop_assert!(came.contains(&payload.as_str()), "{payload} of {came:?}");
            prop_assert!(i < marker || unread.contains(payload), "{payload} was unread: {unread:?}");
        }
        prop_assert!(came.contains(&"next segment"));
    }
}
