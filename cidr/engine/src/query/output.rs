//! Answers as text, JSON or CSV. Rows are made in a buffer of our own: printing is most of the work of a long list.

use std::fmt;
use std::io::Write;

use super::{Outcome, QueryError, Row, When, iso_stamp};
use crate::address::{Block, Family};
use crate::language::Aggregate;
use crate::time::{Stamp, compact_stamp};

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `10.79.18.1/32      :     35217`
    #[default]
    Text,
    /// One document: `{"columns":[…],"rows":[…]}`.
    Json,
    /// With a line of names.
    Csv,
}

/// The buffer is written when it has grown to this.
const FLUSH_BYTES: usize = 64 << 10;

/// An answer under way.
pub(crate) struct Output<'a> {
    format: Format,
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    line: LineV4,
    first: bool,
}

impl<'a> Output<'a> {
    pub(crate) fn begin(
        format: Format,
        columns: &[String],
        aggregate: Option<Aggregate>,
        out: &'a mut dyn Write,
    ) -> Result<Self, QueryError> {
        let buffer = Vec::with_capacity(FLUSH_BYTES + 1024);
        let mut output = Self { format, out, buffer, line: LineV4::default(), first: true };
        match format {
            Format::Text => {}
            Format::Json => {
                // Names of series have no character that JSON would escape.
                output.push(format_args!("{{\"columns\":["));
                for (index, name) in columns.iter().enumerate() {
                    output.push(format_args!("{}\"{name}\"", if index > 0 { "," } else { "" }));
                }
                output.push(format_args!("],\"rows\":["));
            }
            Format::Csv => {
                let when = match aggregate {
                    Some(Aggregate::Daily) => "day,",
                    Some(Aggregate::Trend) => "start,end,",
                    _ => "",
                };
                output.push(format_args!("{when}block"));
                for name in columns {
                    let quote = if name.contains(',') { "\"" } else { "" };
                    output.push(format_args!(",{quote}{name}{quote}"));
                }
                output.push(format_args!("\n"));
            }
        }
        Ok(output)
    }

    pub(crate) fn row(&mut self, row: &Row<'_>) -> Result<(), QueryError> {
        match self.format {
            Format::Text => self.text(row),
            Format::Json => self.json(row),
            Format::Csv => self.csv(row),
        }
        self.first = false;
        if self.buffer.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    pub(crate) fn end(mut self) -> Result<(), QueryError> {
        if self.format == Format::Json {
            self.push(format_args!("{}]}}\n", if self.first { "" } else { "\n" }));
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), QueryError> {
        self.out.write_all(&self.buffer).map_err(QueryError::Output)?;
        self.buffer.clear();
        Ok(())
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        self.buffer.write_fmt(text).expect("a vector takes everything");
    }

    /// One column is lined up; several are separated by commas.
    fn text(&mut self, row: &Row<'_>) {
        match row.when {
            When::Range => {}
            When::Day(day) => self.push(format_args!("{} ", day.compact())),
            When::Window { end, .. } => self.push(format_args!("{} ", compact_stamp(end))),
        }
        match row.counts {
            [count] if row.block.family() == Family::V4 => {
                self.line.push(&mut self.buffer, row.block, *count);
                return;
            }
            [count] => {
                let lined_up = self.buffer.len() + BLOCK_V4_BYTES;
                push_block(&mut self.buffer, &mut self.line, row.block);
                self.buffer.resize(lined_up.max(self.buffer.len()), b' ');
                self.push(format_args!(" : {count:>9}"));
            }
            counts => {
                push_block(&mut self.buffer, &mut self.line, row.block);
                self.buffer.extend_from_slice(b" : ");
                push_counts(&mut self.buffer, counts);
            }
        }
        self.buffer.push(b'\n');
    }

    fn json(&mut self, row: &Row<'_>) {
        self.push(format_args!("{}\n{{", if self.first { "" } else { "," }));
        match row.when {
            When::Range => {}
            When::Day(day) => self.push(format_args!("\"day\":\"{day}\",")),
            When::Window { end, start } => {
                self.push(format_args!("\"start\":\"{}\",\"end\":\"{}\",", iso_stamp(start), iso_stamp(end)));
            }
        }
        self.buffer.extend_from_slice(b"\"block\":\"");
        push_block(&mut self.buffer, &mut self.line, row.block);
        self.buffer.extend_from_slice(b"\",\"counts\":[");
        push_counts(&mut self.buffer, row.counts);
        self.buffer.extend_from_slice(b"]}");
    }

    fn csv(&mut self, row: &Row<'_>) {
        match row.when {
            When::Range => {}
            When::Day(day) => self.push(format_args!("{day},")),
            When::Window { end, start } => self.push(format_args!("{},{},", iso_stamp(start), iso_stamp(end))),
        }
        push_block(&mut self.buffer, &mut self.line, row.block);
        self.buffer.push(b',');
        push_counts(&mut self.buffer, row.counts);
        self.buffer.push(b'\n');
    }
}

/// The numbers 0 to 255 in decimal, and their lengths: four copied bytes are faster than a division per digit.
static OCTETS: [([u8; 4], usize); 256] = octets();

const fn octets() -> [([u8; 4], usize); 256] {
    let mut all = [([b' '; 4], 0); 256];
    let mut number = 0;
    while number < 256 {
        let digits = [b'0' + (number / 100) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
        all[number] = match number {
            0..10 => ([digits[2], b' ', b' ', b' '], 1),
            10..100 => ([digits[1], digits[2], b' ', b' '], 2),
            _ => ([digits[0], digits[1], digits[2], b' '], 3),
        };
        number += 1;
    }
    all
}

/// `/0` to `/32`, and their lengths.
static LENGTHS: [([u8; 4], usize); 33] = lengths();

const fn lengths() -> [([u8; 4], usize); 33] {
    let mut all = [([b' '; 4], 0); 33];
    let mut number = 0;
    while number < 33 {
        let (digits, length) = OCTETS[number];
        all[number] = ([b'/', digits[0], digits[1], b' '], length + 1);
        number += 1;
    }
    all
}

/// Longest text of an IPv4 block.
const BLOCK_V4_BYTES: usize = 18;
/// Where a count begins, and the width in which it is set.
const COUNT_AT: usize = BLOCK_V4_BYTES + 3;
const COUNT_BYTES: usize = 9;

/// A line about an IPv4 block: `10.79.18.1/32      :     35217`. A long list is nothing but these, and neighbours mostly share the text of
/// their first three numbers, so it is kept from one to the next.
struct LineV4 {
    text: [u8; 64],
    /// The upper 24 bits of the address in the text.
    net: u32,
    net_bytes: usize,
}

impl Default for LineV4 {
    fn default() -> Self {
        let mut line = Self { text: [b' '; 64], net: 0, net_bytes: 0 };
        line.set_net(0);
        line
    }
}

impl LineV4 {
    #[inline]
    fn set_net(&mut self, net: u32) {
        self.net = net;
        self.net_bytes = 0;
        for number in [net >> 16, net >> 8, net] {
            let (digits, length) = &OCTETS[(number & 255) as usize];
            self.text[self.net_bytes..self.net_bytes + 4].copy_from_slice(digits);
            self.text[self.net_bytes + length] = b'.';
            self.net_bytes += length + 1;
        }
    }

    /// Sets the block's text; returns its length. What is behind it, up to the count, is blank.
    #[inline]
    fn set_block(&mut self, block: Block) -> usize {
        let first = block.first() as u32;
        if first >> 8 != self.net {
            self.set_net(first >> 8);
        }
        let at = self.net_bytes;
        self.text[at..at + 16].fill(b' ');
        let (digits, length) = &OCTETS[(first & 255) as usize];
        self.text[at..at + 4].copy_from_slice(digits);
        let (slash, slash_length) = &LENGTHS[usize::from(block.length())];
        self.text[at + length..at + length + 4].copy_from_slice(slash);
        at + length + slash_length
    }

    /// Appends the block.
    fn push_block(&mut self, buffer: &mut Vec<u8>, block: Block) {
        let length = self.set_block(block);
        buffer.extend_from_slice(&self.text[..length]);
    }

    /// Appends the line.
    #[inline]
    fn push(&mut self, buffer: &mut Vec<u8>, block: Block, count: i64) {
        self.set_block(block);
        self.text[BLOCK_V4_BYTES..COUNT_AT + COUNT_BYTES].copy_from_slice(b" :          ");
        let mut end = COUNT_AT + COUNT_BYTES;
        if (0..1_000_000_000).contains(&count) {
            let (mut rest, mut at) = (count as u32, end);
            loop {
                at -= 1;
                self.text[at] = b'0' + (rest % 10) as u8;
                rest /= 10;
                if rest == 0 {
                    break;
                }
            }
        } else {
            let mut digits = [0; 20];
            let digits = decimal(count, &mut digits);
            let start = COUNT_AT + COUNT_BYTES.saturating_sub(digits.len());
            end = start + digits.len();
            self.text[start..end].copy_from_slice(digits);
        }
        self.text[end] = b'\n';
        // A copy of fixed length and a cut are faster than a copy of some length.
        let before = buffer.len();
        buffer.extend_from_slice(&self.text);
        buffer.truncate(before + end + 1);
    }
}

fn push_block(buffer: &mut Vec<u8>, line: &mut LineV4, block: Block) {
    match block.family() {
        Family::V4 => line.push_block(buffer, block),
        Family::V6 => write!(buffer, "{block}").expect("a vector takes everything"),
    }
}

fn push_counts(buffer: &mut Vec<u8>, counts: &[i64]) {
    let mut digits = [0; 20];
    for (index, count) in counts.iter().enumerate() {
        if index > 0 {
            buffer.push(b',');
        }
        buffer.extend_from_slice(decimal(*count, &mut digits));
    }
}

/// A number in decimal, at the end of `digits`.
fn decimal(number: i64, digits: &mut [u8; 20]) -> &[u8] {
    let (mut rest, mut at) = (number.unsigned_abs(), digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    &digits[at..]
}

/// The answer to `show available`.
pub(crate) fn available(
    series: &[(String, Stamp, Stamp)],
    format: Format,
    out: &mut dyn Write,
) -> Result<Outcome, QueryError> {
    let mut text = String::new();
    for (index, (name, first, last)) in series.iter().enumerate() {
        match format {
            Format::Text => text += &format!("{name} : {} => {}\n", compact_stamp(*first), compact_stamp(*last)),
            Format::Json => {
                let (comma, first, last) = (if index > 0 { "," } else { "" }, iso_stamp(*first), iso_stamp(*last));
                text += &format!("{comma}\n{{\"series\":\"{name}\",\"first\":\"{first}\",\"last\":\"{last}\"}}");
            }
            Format::Csv => text += &format!("{name},{},{}\n", iso_stamp(*first), iso_stamp(*last)),
        }
    }
    let text = match format {
        Format::Text => text,
        Format::Json => format!("[{text}\n]\n"),
        Format::Csv => format!("series,first,last\n{text}"),
    };
    out.write_all(text.as_bytes()).map_err(QueryError::Output)?;
    Ok(Outcome { rows: series.len() as u64, ..Outcome::default() })
}

/// The answer to `cache details`: number and bytes of open files and of merged days.
pub(crate) fn cache(
    (files, file_bytes): (usize, usize),
    (days, day_bytes): (usize, usize),
    format: Format,
    out: &mut dyn Write,
) -> Result<Outcome, QueryError> {
    let text = match format {
        Format::Text => {
            format!("open files  : {files} ({file_bytes} bytes mapped)\nmerged days : {days} ({day_bytes} bytes)\n")
        }
        Format::Json => format!(
            "{{\"open_files\":{files},\"mapped_bytes\":{file_bytes},\"merged_days\":{days},\"merged_bytes\":{day_bytes}}}\n"
        ),
        Format::Csv => format!("what,number,bytes\nopen files,{files},{file_bytes}\nmerged days,{days},{day_bytes}\n"),
    };
    out.write_all(text.as_bytes()).map_err(QueryError::Output)?;
    Ok(Outcome::default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_look_as_they_shall_whatever_was_before_them() {
        let (mut line, mut text, mut expected) = (LineV4::default(), Vec::new(), String::new());
        for block in ["255.255.255.255/32", "1.2.3.4/32", "1.2.3.200/32", "0.0.0.0/0", "10.79.18.0/24", "10.79.18.1/32"]
        {
            for count in [0, 7, -7, 35_217, 999_999_999, 1_000_000_000, i64::MIN, i64::MAX] {
                line.push(&mut text, block.parse().unwrap(), count);
                expected += &format!("{block:<18} : {count:>9}\n");
            }
            line.push_block(&mut text, block.parse().unwrap());
            expected += block;
        }
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn numbers_print_as_std_does() {
        for number in [0, 1, -1, 9, 10, 35_217, i64::MAX, i64::MIN] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
