//! Lists of blocks, and the most specific block around an address.
//!
//! A list is sorted by first address, and every entry knows the next larger one around it. So a lookup is a binary search and a short climb:
//! blocks are nested or apart, and the last entry that begins at or before the address is inside every block that holds the address. An
//! entry takes 16 bytes for IPv4 and 32 for IPv6; texts are kept once.
//!
//! The files are those of rbldnsd: one block per line and perhaps a text.
//!
//! ```text
//! # a comment            ; another
//! :127.0.0.2:Listed      the text of entries below that have none of their own (the value before it is skipped)
//! 192.0.2.0/24 a text    10.1.2.3    10.1    2001:db8::/32    192.0.2.1-192.0.2.9
//! !192.0.2.7             not listed, although a larger block is
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::address::{Address, Block, Family};
use crate::key::Key;

/// Most lines of a file that are reported; the rest is only counted.
const MAX_REPORTED: usize = 100;
/// Longest text of an entry.
const MAX_TEXT_BYTES: usize = 255;

/// No entry around this one.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    first: K,
    /// The nearest larger block's place.
    around: u32,
    /// Place of the text, times two, plus one when the block is *not* listed.
    text: u32,
    length: u8,
}

/// Entries of one family.
#[derive(Debug)]
struct Table<K> {
    entries: Vec<Entry<K>>,
}

impl<K: Key> Table<K> {
    /// From entries in any order; of the same block the last counts.
    fn new(mut entries: Vec<Entry<K>>) -> Self {
        entries.sort_by_key(|entry| (entry.first, entry.length));
        entries.reverse();
        entries.dedup_by_key(|entry| (entry.first, entry.length));
        entries.reverse();
        // What is open around the place that the sweep has reached, largest first.
        let mut open: Vec<u32> = Vec::new();
        for at in 0..entries.len() {
            let first = entries[at].first;
            while open.last().is_some_and(|around| !holds(&entries[*around as usize], first)) {
                open.pop();
            }
            entries[at].around = open.last().copied().unwrap_or(NONE);
            open.push(at as u32);
        }
        entries.shrink_to_fit();
        Self { entries }
    }

    fn find(&self, key: K) -> Option<&Entry<K>> {
        let mut at = self.entries.partition_point(|entry| entry.first <= key).checked_sub(1)?;
        loop {
            let entry = &self.entries[at];
            if holds(entry, key) {
                return Some(entry);
            }
            at = Some(entry.around).filter(|around| *around != NONE)? as usize;
        }
    }
}

fn holds<K: Key>(entry: &Entry<K>, key: K) -> bool {
    let host = K::BITS - entry.length;
    entry.first.shift_right(host) == key.shift_right(host)
}

/// A list, ready for lookups.
#[derive(Debug)]
pub struct List {
    v4: Table<u32>,
    v6: Table<u128>,
    texts: Vec<Box<str>>,
    source: u64,
}

/// A line that is no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// A list and what could not be read of it.
#[derive(Debug)]
pub struct ParsedList {
    /// The entries that could.
    pub list: List,
    /// The first lines that could not.
    pub errors: Vec<ListError>,
    /// How many there were.
    pub refused: usize,
}

/// The most specific block around an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    /// The block.
    pub block: Block,
    /// Its text; empty without one.
    pub text: &'a str,
}

impl List {
    /// Reads a file of blocks.
    pub fn parse(content: &str) -> ParsedList {
        let mut builder = Builder::default();
        let (mut errors, mut refused) = (Vec::new(), 0);
        for (index, line) in content.lines().enumerate() {
            if let Err(message) = builder.line(line) {
                refused += 1;
                if errors.len() < MAX_REPORTED {
                    errors.push(ListError { line: index + 1, message });
                }
            }
        }
        let (v4, v6) = (Table::new(builder.v4), Table::new(builder.v6));
        let list = Self { v4, v6, texts: builder.texts, source: Self::digest(content.as_bytes()) };
        ParsedList { list, errors, refused }
    }

    /// The most specific block around an address; none when there is none, or it says that the address is not listed.
    pub fn lookup(&self, address: Address) -> Option<Match<'_>> {
        let (text, first, length) = match address {
            Address::V4(bits) => self.v4.find(bits).map(|entry| (entry.text, entry.first.to_u128(), entry.length))?,
            Address::V6(bits) => self.v6.find(bits).map(|entry| (entry.text, entry.first, entry.length))?,
        };
        let listed = text & 1 == 0;
        let block = Block::new(address.family(), first, length);
        listed.then(|| Match { block, text: &self.texts[(text >> 1) as usize] })
    }

    /// What tells two contents apart, but for malice: equal contents need not be read twice.
    pub fn digest(content: &[u8]) -> u64 {
        let (front, back) = content.split_at(content.len() / 2);
        u64::from(crc32c::crc32c(front)) << 32 | u64::from(crc32c::crc32c(back)) ^ content.len() as u64
    }

    /// The digest of what it was read from.
    pub const fn source(&self) -> u64 {
        self.source
    }

    /// Blocks of both families, exceptions included.
    pub fn len(&self) -> usize {
        self.v4.entries.len() + self.v6.entries.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All lists by name. Cheap to clone and to replace as a whole.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    lists: BTreeMap<String, Arc<List>>,
}

impl Lists {
    /// Adds or replaces a list.
    pub fn insert(&mut self, name: impl Into<String>, list: Arc<List>) {
        self.lists.insert(name.into(), list);
    }

    /// The names with their lists.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<List>)> {
        self.lists.iter().map(|(name, list)| (name.as_str(), list))
    }

    /// The list of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<List>> {
        self.lists.get(name)
    }

    /// Every list that has the address, in the order of their names.
    pub fn lookup(&self, address: Address) -> impl Iterator<Item = (&str, Match<'_>)> {
        self.lists.iter().filter_map(move |(name, list)| Some((name.as_str(), list.lookup(address)?)))
    }
}

/// A list under construction.
struct Builder {
    v4: Vec<Entry<u32>>,
    v6: Vec<Entry<u128>>,
    texts: Vec<Box<str>>,
    places: HashMap<Box<str>, u32>,
    /// The text of entries without their own.
    default: u32,
}

impl Default for Builder {
    fn default() -> Self {
        let (texts, places) = (vec![Box::default()], HashMap::from([(Box::default(), 0)]));
        Self { v4: Vec::new(), v6: Vec::new(), texts, places, default: 0 }
    }
}

impl Builder {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';', '$']) {
            return Ok(());
        }
        // An IPv6 address may begin with a colon, but then with two.
        if let Some(rest) = line.strip_prefix(':')
            && !rest.starts_with(':')
        {
            let (_, text) = rest.split_once(':').ok_or("a default is :VALUE:TEXT")?;
            self.default = self.text(text)?;
            return Ok(());
        }
        let (not, rest) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim_start()));
        let (what, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let text = text.trim_start();
        // A text may be commented, and may begin with a value that only DNS needs.
        let text = text.strip_prefix(':').and_then(|text| text.split_once(':')).map_or(text, |(_, text)| text);
        let place = if text.is_empty() || text.starts_with(['#', ';']) { self.default } else { self.text(text)? };
        for (family, first, length) in blocks(what)? {
            let text = place << 1 | u32::from(not);
            match family {
                Family::V4 => self.v4.push(Entry { first: first as u32, around: NONE, text, length }),
                Family::V6 => self.v6.push(Entry { first, around: NONE, text, length }),
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<u32, String> {
        let text = text.trim();
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!("a text has at most {MAX_TEXT_BYTES} bytes"));
        }
        if let Some(place) = self.places.get(text) {
            return Ok(*place);
        }
        let place = self.texts.len() as u32;
        self.texts.push(text.into());
        self.places.insert(text.into(), place);
        Ok(place)
    }
}

/// `10.1.2.3`, `10.1` (a /16), `10.0.0.0/8`, `2001:db8::/32` or `FIRST-LAST`, as the blocks that make it up.
fn blocks(text: &str) -> Result<Vec<(Family, u128, u8)>, String> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (address(first)?, address(last)?);
        if first.family() != last.family() || first.number() > last.number() {
            return Err(format!("\"{text}\" does not go from a lower to a higher address"));
        }
        return Ok(cut(first.family(), first.number(), last.number()));
    }
    let dots = text.bytes().filter(|byte| *byte == b'.').count();
    let (numbers, length) = text.split_once('/').map_or((text, None), |(numbers, length)| (numbers, Some(length)));
    let completed = match dots {
        0..=2 if !text.contains(':') => {
            let length = length.map_or_else(|| (8 * (dots + 1)).to_string(), str::to_owned);
            format!("{numbers}{}/{length}", ".0".repeat(3 - dots))
        }
        _ => text.to_owned(),
    };
    let block: Block = completed.parse().map_err(|error: crate::address::BlockError| error.to_string())?;
    Ok(vec![(block.family(), block.first(), block.length())])
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| format!("\"{}\" is not an address", text.chars().take(48).collect::<String>()))
}

/// A range as the fewest blocks.
fn cut(family: Family, mut first: u128, last: u128) -> Vec<(Family, u128, u8)> {
    let bits = u32::from(family.bits());
    let mut blocks = Vec::new();
    loop {
        let aligned = first.trailing_zeros().min(bits);
        let size = last - first;
        // The largest power of two that is aligned and fits; the whole space is 2^128 and needs care.
        let fits = if size == u128::MAX { 128 } else { 127 - (size + 1).leading_zeros() };
        let host = aligned.min(fits);
        blocks.push((family, first, (bits - host) as u8));
        let end = if host == 128 { u128::MAX } else { first + ((1 << host) - 1) };
        if end >= last {
            return blocks;
        }
        first = end + 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn found(list: &List, address: &str) -> Option<(String, String)> {
        list.lookup(address.parse().unwrap()).map(|found| (found.block.to_string(), found.text.to_owned()))
    }

    #[test]
    fn a_file_as_rbldnsd_has_it() {
        let parsed = List::parse(
            "# comment\n; another\n$SOA 0 0 0\n10.0.0.1 before the default\n:127.0.0.2:Listed\n10.1.2.0/24\n10.1 a /16\n!10.1.2.7\n\
             192.0.2.1-192.0.2.9 :127.0.0.9:range\n2001:db8::/32 six\n::ffff:10.9.9.9\n11.0.0.0/8 ; why\nnonsense\n10.0.0.0/33\n10.0.0.9-10.0.0.1\n",
        );
        let lines: Vec<usize> = parsed.errors.iter().map(|error| error.line).collect();
        assert_eq!((lines, parsed.refused), (vec![13, 14, 15], 3));
        let list = parsed.list;
        let pair = |block: &str, text: &str| Some((block.to_owned(), text.to_owned()));
        assert_eq!(found(&list, "10.0.0.1"), pair("10.0.0.1/32", "before the default"));
        assert_eq!(found(&list, "10.1.2.3"), pair("10.1.2.0/24", "Listed"));
        assert_eq!(found(&list, "10.1.3.3"), pair("10.1.0.0/16", "a /16"));
        assert_eq!(found(&list, "10.1.2.7"), None);
        assert_eq!(found(&list, "192.0.2.5"), pair("192.0.2.4/30", "range"));
        assert_eq!(found(&list, "192.0.2.10"), None);
        assert_eq!(found(&list, "2001:db8::7"), pair("2001:db8::/32", "six"));
        assert_eq!(found(&list, "10.9.9.9"), pair("10.9.9.9/32", "Listed"));
        assert_eq!(found(&list, "11.2.3.4"), pair("11.0.0.0/8", "Listed"));
        assert_eq!(found(&list, "9.9.9.9"), None);
        let mut lists = Lists::default();
        lists.insert("a", Arc::new(list));
        lists.insert("b", Arc::new(List::parse("10.0.0.0/8").list));
        let names: Vec<&str> = lists.lookup("10.1.2.7".parse().unwrap()).map(|(name, _)| name).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn the_whole_space_is_a_range_too() {
        assert_eq!(cut(Family::V6, 0, u128::MAX), [(Family::V6, 0, 0)]);
        assert_eq!(cut(Family::V4, 0, u128::from(u32::MAX)), [(Family::V4, 0, 0)]);
        assert_eq!(cut(Family::V4, 1, 6).len(), 4);
        assert_eq!(cut(Family::V6, u128::MAX, u128::MAX), [(Family::V6, u128::MAX, 128)]);
    }

    proptest! {
        #[test]
        fn lookups_find_what_a_scan_finds(
            entries in proptest::collection::vec((0_u32..4_096, 20_u8..=32, any::<bool>()), 0..60),
            ranges in proptest::collection::vec((0_u32..4_096, 0_u32..200), 0..5),
            asked in proptest::collection::vec(0_u32..4_200, 40),
        ) {
            let mut text = String::new();
            let mut blocks: Vec<(Block, bool)> = Vec::new();
            for (bits, length, not) in entries {
                let block = Block::new(Family::V4, bits.into(), length);
                text += &format!("{}{block} {block}\n", if not { "!" } else { "" });
                blocks.retain(|(known, _)| *known != block);
                blocks.push((block, not));
            }
            for (first, more) in ranges {
                text += &format!("{}-{}\n", Address::V4(first), Address::V4(first + more));
                for (family, first, length) in cut(Family::V4, first.into(), (first + more).into()) {
                    let block = Block::new(family, first, length);
                    blocks.retain(|(known, _)| *known != block);
                    blocks.push((block, false));
                }
            }
            let parsed = List::parse(&text);
            prop_assert_eq!(parsed.refused, 0);
            prop_assert_eq!(parsed.list.len(), blocks.len());
            for bits in asked {
                let around = blocks.iter().filter(|(block, _)| block.contains(&Address::V4(bits).into()));
                let expected = around.max_by_key(|(block, _)| block.length()).filter(|(_, not)| !not).map(|(block, _)| *block);
                prop_assert_eq!(parsed.list.lookup(Address::V4(bits)).map(|found| found.block), expected);
            }
        }

        #[test]
        fn any_text_is_answered(text in "([!:;#0-9a-f./ -]{0,20}\n){0,6}|.{0,80}") {
            let _ = List::parse(&text);
        }
    }
}
