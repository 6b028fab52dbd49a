//! One TOML file into a tree that knows where everything stands.
//!
//! Bounded whatever the input: length, depth and the number of mistakes reported. The TOML parser bounds nesting and
//! dotted keys; the limit here is ours and lower, and is what the recursion elsewhere relies on.

use std::sync::Arc;

use indexmap::IndexMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files::MAX_DOCUMENT_BYTES;
use super::finding::{Finding, Findings};
use super::place::{Place, Position, shortened};
use super::tree::{Item, Table, Value};

/// No document of ours nests deeper than five; foreign ones may.
pub const MAX_DEPTH: usize = 48;

/// Mistakes of syntax reported per file: later ones are mostly echoes of the first.
const MAX_SYNTAX_FINDINGS: usize = 8;

/// One file, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The file, as the tree of files names it.
    pub file: Arc<str>,
    /// Its content.
    pub root: Table,
}

impl Document {
    /// Parses a TOML file. The findings name the file as given here.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, Findings> {
        let text = text_of(file, bytes)?;
        let lines = Lines::new(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        let findings = syntax_findings(file, &lines, &errors);
        if !findings.is_empty() {
            return Err(findings);
        }
        let file: Arc<str> = file.into();
        let mut converter = Converter { file: &file, lines: &lines, findings: Findings::new() };
        let root = converter.table(root.get_ref(), 0, true);
        converter.findings.or(Self { file: file.clone(), root })
    }
}

/// The text of a file that must be UTF-8 and of bearable length.
pub(crate) fn text_of<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Findings> {
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        let message = format!("the file is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20);
        return Err(Finding::whole(file, message).into());
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let good = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let at = Lines::new(good).position(good.len());
        Finding::at(file, at, format!("not UTF-8: byte 0x{:02x}", bytes[error.valid_up_to()])).into()
    })
}

fn syntax_findings(file: &str, lines: &Lines<'_>, errors: &[toml::de::Error]) -> Findings {
    let mut findings: Vec<Finding> = errors
        .iter()
        .map(|error| {
            let at = error.span().map_or(Position::START, |span| lines.position(span.start));
            let message: Vec<&str> = error.message().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Finding::at(file, at, shortened_message(&message.join(", ")))
        })
        .collect();
    findings.sort();
    findings.dedup_by_key(|finding| finding.line);
    findings.truncate(MAX_SYNTAX_FINDINGS);
    findings.into()
}

fn shortened_message(message: &str) -> String {
    match message.char_indices().nth(300) {
        Some((cut, _)) => format!("{}…", &message[..cut]),
        None => message.to_owned(),
    }
}

/// Turns the parser's tree into ours.
struct Converter<'a> {
    file: &'a Arc<str>,
    lines: &'a Lines<'a>,
    findings: Findings,
}

impl Converter<'_> {
    /// `layered`: false inside arrays, where `unset` means nothing because arrays are replaced as a whole.
    fn table(&mut self, table: &DeTable<'_>, depth: usize, layered: bool) -> Table {
        let mut entries = IndexMap::with_capacity(table.len());
        let mut unset = Vec::new();
        for (key, value) in table {
            let key_at = self.lines.position(key.span().start);
            if layered && key.get_ref() == "unset" && self.read_unset(value, &mut unset) {
                continue;
            }
            let item = self.item(key_at, value, depth, layered);
            entries.insert(key.get_ref().to_string(), item);
        }
        Table { entries, unset }
    }

    /// Takes `unset = ["key", …]`. Anything else under that name is an ordinary value: the schemas of our documents
    /// refuse it, and a foreign document may have such a key.
    fn read_unset(&self, value: &Spanned<DeValue<'_>>, unset: &mut Vec<(String, Place)>) -> bool {
        let Some(names) = value.get_ref().as_array() else { return false };
        if !names.iter().all(|name| name.get_ref().is_str()) {
            return false;
        }
        for name in names.iter() {
            let at = self.lines.position(name.span().start);
            unset.push((name.get_ref().as_str().unwrap_or_default().to_owned(), Place { file: self.file.clone(), at }));
        }
        true
    }

    fn item(&mut self, key_at: Position, value: &Spanned<DeValue<'_>>, depth: usize, layered: bool) -> Item {
        let at = self.lines.position(value.span().start);
        let value = if depth >= MAX_DEPTH {
            self.refuse(key_at, format!("nested deeper than {MAX_DEPTH} levels"))
        } else {
            self.value(at, value.get_ref(), depth, layered)
        };
        Item { file: self.file.clone(), key_at, at, value }
    }

    fn value(&mut self, at: Position, value: &DeValue<'_>, depth: usize, layered: bool) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => {
                let digits = number.as_str().replace('_', "");
                match i64::from_str_radix(&digits, number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => self.refuse(at, format!("the number {} does not fit into 64 bits", shortened(&digits))),
                }
            }
            DeValue::Float(number) => match number.as_str().replace('_', "").parse() {
                Ok(number) => Value::Float(number),
                Err(_) => self.refuse(at, format!("{} is not a number", shortened(number.as_str()))),
            },
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
            DeValue::Array(items) => {
                let item = |item: &Spanned<DeValue<'_>>| {
                    let at = self.lines.position(item.span().start);
                    self.item(at, item, depth + 1, false)
                };
                Value::Array(items.iter().map(item).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table, depth + 1, layered)),
        }
    }

    fn refuse(&mut self, at: Position, message: String) -> Value {
        self.findings.push(Finding::at(self.file, at, message));
        Value::Boolean(false)
    }
}

/// Byte offsets to lines and columns, in constant time per question even when the file is one long line.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
    /// Characters before each block of [`BLOCK_BYTES`] bytes.
    characters: Vec<u32>,
}

const BLOCK_BYTES: usize = 256;

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut starts = vec![0];
        let mut characters = Vec::with_capacity(text.len() / BLOCK_BYTES + 1);
        let mut count = 0;
        for (offset, byte) in text.bytes().enumerate() {
            if offset % BLOCK_BYTES == 0 {
                characters.push(count);
            }
            count += u32::from(starts_character(byte));
            if byte == b'\n' {
                starts.push(offset + 1);
            }
        }
        Self { text, starts, characters }
    }

    pub(crate) fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = self.characters_before(offset) - self.characters_before(start) + 1;
        Position { line: u32::try_from(line).unwrap_or(u32::MAX), column }
    }

    fn characters_before(&self, offset: usize) -> u32 {
        let block = offset / BLOCK_BYTES;
        let Some(before) = self.characters.get(block) else {
            return self.characters.last().map_or(0, |last| {
                let start = (self.characters.len() - 1) * BLOCK_BYTES;
                last + self.count(start, offset)
            });
        };
        before + self.count(block * BLOCK_BYTES, offset)
    }

    fn count(&self, from: usize, to: usize) -> u32 {
        self.text.as_bytes()[from..to].iter().map(|byte| u32::from(starts_character(*byte))).sum()
    }
}

fn starts_character(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_agree_with_counting(text in "[aä\u{1f600}\n]{0,700}") {
            let lines = Lines::new(&text);
            for (offset, _) in text.char_indices().chain([(text.len(), ' ')]) {
                let before = &text[..offset];
                let line = before.matches('\n').count() as u32 + 1;
                let column = before.rsplit('\n').next().unwrap().chars().count() as u32 + 1;
                prop_assert_eq!(lines.position(offset), Position { line, column });
            }
        }
    }
}
