//! Damage anywhere: everything that is still whole is read, and what is not is counted exactly.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::fs::Fs;
use crate::layout::{self, SEGMENT_HEADER_BYTES};
use crate::record::Kind;
use crate::walker::{Step, Walker};

/// Where each record lies: segment, first and last byte, number.
fn places(fs: &Simulation, uuid: crate::Uuid) -> Vec<(u64, u64, u64, Option<u64>)> {
    let mut places = Vec::new();
    for first in layout::segments(fs, dir()).unwrap() {
        let path = layout::segment_path(dir(), first);
        let file = fs.open(&path, false).unwrap();
        let mut walker = Walker::new(Arc::clone(&file), &path, first, layout::salt(uuid, first));
        let mut start = SEGMENT_HEADER_BYTES as u64;
        while let Step::Record { kind, sequence, .. } = walker.step(file.length().unwrap()).unwrap() {
            places.push((first, start, walker.offset(), (kind == Kind::Data).then_some(sequence)));
            start = walker.offset();
        }
    }
    places
}

#[derive(Debug, Clone)]
enum Damage {
    Zero,
    Flip,
    Noise(u8),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn everything_whole_is_read_and_everything_else_is_counted(
        lengths in proptest::collection::vec(0usize..200, 5..60),
        segment in any::<proptest::sample::Index>(),
        place in any::<proptest::sample::Index>(),
        length in 1usize..120,
        damage in prop_oneof![Just(Damage::Zero), Just(Damage::Flip), any::<u8>().prop_map(Damage::Noise)],
        reopen: bool,
    ) {
        let fs = Simulation::new();
        let journal = open(&fs, small());
        journal.subscribe("a").unwrap();
        for (i, length) in lengths.iter().enumerate() {
            journal.append(format!("{i}{}", ".".repeat(*length)).as_bytes()).unwrap();
        }
        let uuid = journal.uuid();
        let mut journal = Some(journal);
        if reopen {
            journal.take().unwrap().close().unwrap();
        }
        let places = places(&fs, uuid);
        let segments = layout::segments(&fs, dir()).unwrap();
        let first = *segment.get(&segments);
        let path = layout::segment_path(dir(), first);
        let mut range = 0..0;
        fs.rot(&path, |bytes| {
            let from = place.index(bytes.len());
            range = from..(from + length).min(bytes.len());
            for byte in &mut bytes[range.clone()] {
                *byte = match damage {
                    Damage::Zero => 0,
                    Damage::Flip => !*byte,
                    Damage::Noise(noise) => byte.wrapping_add(noise | 1),
                };
            }
        });
        let hit = |&&(segment, start, end, _): &&(u64, u64, u64, Option<u64>)| {
            segment == first && start < range.end as u64 && (range.start as u64) < end
        };
        let damaged: BTreeSet<u64> = places.iter().filter(hit).filter_map(|place| place.3).collect();
        let end_was_hit = places.iter().filter(hit).any(|place| place.3.is_none() && Some(place) == places.last());

        let journal = journal.unwrap_or_else(|| open(&fs, small()));
        let mut reader = journal.reader_of("a").unwrap();
        let (mut read, mut missing) = (BTreeSet::new(), BTreeSet::new());
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                Item::Record(record) => {
                    let text = String::from_utf8(record.payload.to_vec()).unwrap();
                    let i = record.sequence as usize - 1;
                    prop_assert_eq!(text, format!("{i}{}", ".".repeat(lengths[i])));
                    prop_assert!(read.insert(record.sequence));
                }
                Item::Gap(gap) => missing.extend(gap.from..gap.to),
            }
        }
        // Zeroing what was zero damages nothing; so what was damaged is at most what was hit.
        prop_assert!(missing.is_subset(&damaged), "{missing:?} of {damaged:?}");
        let all: BTreeSet<u64> = (1..=lengths.len() as u64).collect();
        if !(reopen && end_was_hit) {
            prop_assert_eq!(&read | &missing, all);
        } else {
            // Without the mark of a clean end, damage at the very end is a torn tail. It is cut, and said.
            prop_assert!((&read | &missing).is_subset(&all) && read.is_superset(&(&all - &damaged)));
        }
        prop_assert!(read.is_disjoint(&missing));
    }
}

/// A line that holds a copy of the journal's own bytes is a line, also where the search behind damage comes across it.
#[test]
fn records_inside_a_record_are_not_records() {
    let fs = Simulation::new();
    let journal = open(&fs, Options { segment_bytes: 1 << 20, ..small() });
    journal.append(b"one").unwrap();
    let path = layout::segment_path(dir(), 1);
    let file = fs.open(&path, false).unwrap();
    let mut copy = vec![0; file.length().unwrap() as usize];
    crate::fs::read_full_at(&*file, &mut copy, 0).unwrap();
    journal.append(&copy).unwrap();
    journal.append(b"three").unwrap();
    fs.rot(&path, |bytes| bytes[SEGMENT_HEADER_BYTES + 25] ^= 1);
    let read = read_all(&mut journal.reader(0));
    assert_eq!(read.len(), 3, "{read:?}");
    // The first record is damaged; its copy inside the second has its number, its bytes and its checksum, but is older than what is expected next
    // only once the second was read. It must not be taken for the first.
    assert!(read[0].contains("lost to damage") && read[1].starts_with("2=") && read[2] == "3=three", "{read:?}");
}
