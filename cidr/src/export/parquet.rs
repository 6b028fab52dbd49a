//! Parquet as small as it gets: required columns, PLAIN values, one gzip page per column and row group.
//!
//! ```text
//! "PAR1" · row groups: per column a page header and a page · FileMetaData · u32 its length · "PAR1"
//! ```
//!
//! Headers and metadata are Thrift's compact protocol, written by hand below: a dozen structs, against some eighty crates behind `parquet`.
//! Left out on purpose: nulls, nesting, dictionaries, statistics. Readers need none of them.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// Rows of a group: what is held in memory, and what readers give to a thread.
const GROUP_ROWS: usize = 128 << 10;
const MAGIC: &[u8; 4] = b"PAR1";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers of 64 bits.
    Number,
    /// Milliseconds since 1970, UTC.
    Moment,
    /// Text.
    Text,
    /// Sixteen bytes.
    Bytes16,
}

impl Kind {
    /// Parquet's physical type.
    const fn physical(self) -> i64 {
        match self {
            Self::Number | Self::Moment => 2,
            Self::Text => 6,
            Self::Bytes16 => 7,
        }
    }

    /// Parquet's converted type, where the physical one does not say all.
    const fn converted(self) -> Option<i64> {
        match self {
            Self::Text => Some(0),
            Self::Moment => Some(9),
            Self::Number | Self::Bytes16 => None,
        }
    }
}

/// A column's values of the present group.
struct Column {
    name: &'static str,
    kind: Kind,
    values: Vec<u8>,
}

/// A column of a group that was written.
struct Chunk {
    offset: u64,
    plain_bytes: usize,
    packed_bytes: usize,
}

/// A file under construction.
pub struct Writer<W> {
    out: W,
    written: u64,
    columns: Vec<Column>,
    rows: usize,
    groups: Vec<(usize, Vec<Chunk>)>,
}

/// One value, in the order of the columns.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// For numbers and moments.
    Number(i64),
    /// For text.
    Text(&'a str),
    /// For sixteen bytes.
    Bytes16([u8; 16]),
}

impl<W: Write> Writer<W> {
    /// Begins a file with these columns.
    pub fn new(mut out: W, columns: &[(&'static str, Kind)]) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        let columns = columns.iter().map(|(name, kind)| Column { name, kind: *kind, values: Vec::new() });
        Ok(Self { out, written: 4, columns: columns.collect(), rows: 0, groups: Vec::new() })
    }

    /// Adds a row.
    pub fn row(&mut self, values: &[Value<'_>]) -> io::Result<()> {
        debug_assert_eq!(values.len(), self.columns.len());
        for (column, value) in self.columns.iter_mut().zip(values) {
            match value {
                Value::Number(number) => column.values.extend_from_slice(&number.to_le_bytes()),
                Value::Text(text) => {
                    column.values.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    column.values.extend_from_slice(text.as_bytes());
                }
                Value::Bytes16(bytes) => column.values.extend_from_slice(bytes),
            }
        }
        self.rows += 1;
        if self.rows == GROUP_ROWS { self.end_group() } else { Ok(()) }
    }

    fn end_group(&mut self) -> io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut chunks = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
            packer.write_all(&column.values)?;
            let page = packer.finish()?;
            let header = page_header(self.rows, column.values.len(), page.len());
            self.out.write_all(&header)?;
            self.out.write_all(&page)?;
            let (plain_bytes, packed_bytes) = (header.len() + column.values.len(), header.len() + page.len());
            chunks.push(Chunk { offset: self.written, plain_bytes, packed_bytes });
            self.written += packed_bytes as u64;
            column.values.clear();
        }
        self.groups.push((std::mem::take(&mut self.rows), chunks));
        Ok(())
    }

    /// Writes what is left and the metadata; the rows and the output.
    pub fn finish(mut self) -> io::Result<(u64, W)> {
        self.end_group()?;
        let metadata = self.metadata();
        self.out.write_all(&metadata)?;
        self.out.write_all(&(metadata.len() as u32).to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        Ok((self.groups.iter().map(|(rows, _)| *rows as u64).sum(), self.out))
    }

    fn metadata(&self) -> Vec<u8> {
        let mut thrift = Thrift::default();
        thrift.number(1, I32, 2);
        thrift.list(2, STRUCT, self.columns.len() + 1);
        thrift.inside(|root| {
            root.text(4, "counts");
            root.number(5, I32, self.columns.len() as i64);
        });
        for column in &self.columns {
            thrift.inside(|element| {
                element.number(1, I32, column.kind.physical());
                if column.kind == Kind::Bytes16 {
                    element.number(2, I32, 16);
                }
                element.number(3, I32, 0);
                element.text(4, column.name);
                if let Some(converted) = column.kind.converted() {
                    element.number(6, I32, converted);
                }
            });
        }
        thrift.number(3, I64, self.groups.iter().map(|(rows, _)| *rows as i64).sum());
        thrift.list(4, STRUCT, self.groups.len());
        for (rows, chunks) in &self.groups {
            thrift.inside(|group| self.group(group, *rows, chunks));
        }
        thrift.text(6, concat!("eccluster cidr ", env!("CARGO_PKG_VERSION")));
        thrift.end()
    }

    fn group(&self, group: &mut Thrift, rows: usize, chunks: &[Chunk]) {
        group.list(1, STRUCT, chunks.len());
        for (column, chunk) in self.columns.iter().zip(chunks) {
            group.inside(|entry| {
                entry.number(2, I64, chunk.offset as i64);
                entry.field(3, STRUCT);
                entry.inside(|meta| {
                    meta.number(1, I32, column.kind.physical());
                    // PLAIN.
                    meta.list(2, I32, 1);
                    meta.varint(0);
                    meta.list(3, BINARY, 1);
                    meta.bytes(column.name.as_bytes());
                    // GZIP.
                    meta.number(4, I32, 2);
                    meta.number(5, I64, rows as i64);
                    meta.number(6, I64, chunk.plain_bytes as i64);
                    meta.number(7, I64, chunk.packed_bytes as i64);
                    meta.number(9, I64, chunk.offset as i64);
                });
            });
        }
        group.number(2, I64, chunks.iter().map(|chunk| chunk.plain_bytes as i64).sum());
        group.number(3, I64, rows as i64);
    }
}

fn page_header(rows: usize, plain_bytes: usize, packed_bytes: usize) -> Vec<u8> {
    let mut thrift = Thrift::default();
    // A data page, version 1.
    thrift.number(1, I32, 0);
    thrift.number(2, I32, plain_bytes as i64);
    thrift.number(3, I32, packed_bytes as i64);
    thrift.field(5, STRUCT);
    thrift.inside(|page| {
        page.number(1, I32, rows as i64);
        page.number(2, I32, 0);
        // How levels would be written; required columns have none.
        page.number(3, I32, 3);
        page.number(4, I32, 3);
    });
    thrift.end()
}

const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Thrift's compact protocol, as far as it is needed.
#[derive(Default)]
struct Thrift {
    out: Vec<u8>,
    /// The number of the last field of the struct being written.
    last: i16,
}

impl Thrift {
    fn field(&mut self, id: i16, kind: u8) {
        // Fields come in ascending order and never 16 apart.
        self.out.push(((id - self.last) as u8) << 4 | kind);
        self.last = id;
    }

    fn number(&mut self, id: i16, kind: u8, value: i64) {
        self.field(id, kind);
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    fn text(&mut self, id: i16, text: &str) {
        self.field(id, BINARY);
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn list(&mut self, id: i16, kind: u8, number: usize) {
        self.field(id, LIST);
        if number < 15 {
            self.out.push((number as u8) << 4 | kind);
        } else {
            self.out.push(0xf0 | kind);
            self.varint(number as u64);
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    /// A struct in a list, or after its field's head.
    fn inside(&mut self, write: impl FnOnce(&mut Self)) {
        let outer = std::mem::take(&mut self.last);
        write(self);
        self.out.push(0);
        self.last = outer;
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push(0);
        self.out
    }
}
