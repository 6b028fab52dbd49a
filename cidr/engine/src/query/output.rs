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
    first: bool,
}

impl<'a> Output<'a> {
    pub(crate) fn begin(
        format: Format,
        columns: &[String],
        aggregate: Option<Aggregate>,
        out: &'a mut dyn Write,
    ) -> Result<Self, QueryError> {
        let mut output = Self { format, out, buffer: Vec::with_capacity(FLUSH_BYTES + 1024), first: true };
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
            [count] if row.block.family() == Family::V4 => push_lined_up(&mut self.buffer, row.block, *count),
            [count] => {
                let lined_up = self.buffer.len() + BLOCK_V4_BYTES;
                push_block(&mut self.buffer, row.block);
                self.buffer.resize(lined_up.max(self.buffer.len()), b' ');
                self.push(format_args!(" : {count:>9}"));
            }
            counts => {
                push_block(&mut self.buffer, row.block);
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
        push_block(&mut self.buffer, row.block);
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
        push_block(&mut self.buffer, row.block);
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

/// Longest text of an IPv4 block.
const BLOCK_V4_BYTES: usize = 18;

/// Writes an IPv4 block at the beginning of `text`, which stays blank behind it; returns its length.
#[inline]
fn put_block_v4(text: &mut [u8; 64], block: Block) -> usize {
    let [a, b, c, d] = (block.first() as u32).to_be_bytes();
    let mut at = 0;
    for (number, after) in [(a, b'.'), (b, b'.'), (c, b'.'), (d, b'/'), (block.length(), b' ')] {
        let (digits, length) = &OCTETS[usize::from(number)];
        text[at..at + 4].copy_from_slice(digits);
        text[at + length] = after;
        at += length + 1;
    }
    at - 1
}

/// `10.79.18.1/32      :     35217`, made in place: a long list is nothing but these.
fn push_lined_up(buffer: &mut Vec<u8>, block: Block, count: i64) {
    let mut line = [b' '; 64];
    put_block_v4(&mut line, block);
    line[BLOCK_V4_BYTES + 1] = b':';
    let mut digits = [0; 20];
    let digits = decimal(count, &mut digits);
    let start = BLOCK_V4_BYTES + 3 + 9_usize.saturating_sub(digits.len());
    line[start..start + digits.len()].copy_from_slice(digits);
    buffer.extend_from_slice(&line[..start + digits.len()]);
}

fn push_block(buffer: &mut Vec<u8>, block: Block) {
    match block.family() {
        Family::V4 => {
            let mut text = [b' '; 64];
            let length = put_block_v4(&mut text, block);
            buffer.extend_from_slice(&text[..length]);
        }
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
    use super::*;

    #[test]
    fn numbers_print_as_std_does() {
        for number in [0, 1, -1, 9, 10, 35_217, i64::MAX, i64::MIN] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
