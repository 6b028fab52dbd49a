//! Packet lines: the framing of everything in the protocol, except for the pack at the end of a push.
//!
//! `gix-packetline` encodes and decodes single lines; its readers buffer ahead and peek, which loses the first bytes
//! of a pack that follows the lines. So the reader here takes from its source exactly the bytes of the lines it was
//! asked for.

use std::io::{self, Read, Write};

use gix_packetline::blocking_io::encode;
use gix_packetline::decode::{PacketLineOrWantedSize, hex_prefix};
use gix_packetline::{Channel, PacketLineRef};

use super::{Error, Result, printable};

/// The payload of one line at most, as gitprotocol-common(5) has it.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 65516;

/// One packet, without its length and without the newline that may end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Line(&'a [u8]),
    Flush,
    Delim,
    ResponseEnd,
}

/// Reads packet lines up to a number of bytes.
pub(crate) struct PacketReader<R> {
    inner: R,
    buf: Vec<u8>,
    left_bytes: u64,
    limit_bytes: u64,
}

impl<R: Read> PacketReader<R> {
    pub(crate) fn new(inner: R, limit_bytes: u64) -> Self {
        PacketReader { inner, buf: Vec::new(), left_bytes: limit_bytes, limit_bytes }
    }

    /// The next packet; `None` at an end between two packets.
    pub(crate) fn next(&mut self) -> Result<Option<Packet<'_>>> {
        let Some(payload) = self.next_raw()? else { return Ok(None) };
        Ok(Some(match payload {
            Packet::Line(line) => Packet::Line(line.strip_suffix(b"\n").unwrap_or(line)),
            other => other,
        }))
    }

    /// The same with the newline left in place, for lines that carry data rather than text.
    pub(crate) fn next_raw(&mut self) -> Result<Option<Packet<'_>>> {
        let mut prefix = [0; 4];
        match read_up_to(&mut self.inner, &mut prefix)? {
            0 => return Ok(None),
            4 => {}
            _ => return Err(Error::malformed("it ends within the length of a packet line")),
        }
        self.count(4)?;
        match hex_prefix(&prefix) {
            Ok(PacketLineOrWantedSize::Line(PacketLineRef::Flush)) => Ok(Some(Packet::Flush)),
            Ok(PacketLineOrWantedSize::Line(PacketLineRef::Delimiter)) => Ok(Some(Packet::Delim)),
            Ok(PacketLineOrWantedSize::Line(_)) => Ok(Some(Packet::ResponseEnd)),
            Ok(PacketLineOrWantedSize::Wanted(wanted)) => self.payload(usize::from(wanted)),
            Err(_) if prefix == *b"0004" => self.payload(0),
            Err(_) => Err(Error::malformed(format!("“{}” is not the length of a packet line", printable(&prefix)))),
        }
    }

    fn payload(&mut self, wanted: usize) -> Result<Option<Packet<'_>>> {
        if wanted > MAX_PAYLOAD_BYTES {
            return Err(Error::malformed(format!("a packet line of {wanted} bytes; {MAX_PAYLOAD_BYTES} is the most")));
        }
        self.count(wanted as u64)?;
        self.buf.resize(wanted, 0);
        if read_up_to(&mut self.inner, &mut self.buf)? < wanted {
            return Err(Error::malformed("it ends within a packet line"));
        }
        Ok(Some(Packet::Line(&self.buf)))
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        let too_large = Error::TooLarge { what: "the request has too many bytes", limit: self.limit_bytes };
        self.left_bytes = self.left_bytes.checked_sub(bytes).ok_or(too_large)?;
        Ok(())
    }

    /// What follows the lines read so far.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

/// Fills `buf` as far as the source reaches.
fn read_up_to(source: &mut impl Read, buf: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match source.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Error::Refused(err.to_string()));
            }
            Err(source) => return Err(Error::Io { attempt: "reading the request", source }),
        }
    }
    Ok(filled)
}

/// Turns a failed write of the answer into an error.
pub(crate) fn writing(source: io::Error) -> Error {
    Error::Io { attempt: "writing the answer", source }
}

/// Writes packet lines.
pub(crate) struct PacketWriter<W> {
    out: W,
}

impl<W: Write> PacketWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        PacketWriter { out }
    }

    /// One line of text; the newline is added.
    pub(crate) fn text(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        encode::text_to_write(text.as_ref(), &mut self.out).map_err(writing)?;
        Ok(())
    }

    pub(crate) fn flush_packet(&mut self) -> Result<()> {
        encode::flush_to_write(&mut self.out).map_err(writing)?;
        Ok(())
    }

    pub(crate) fn delim(&mut self) -> Result<()> {
        encode::delim_to_write(&mut self.out).map_err(writing)?;
        Ok(())
    }

    /// `ERR <message>`: ends the conversation, in every version.
    pub(crate) fn error(&mut self, message: &str) -> Result<()> {
        encode::error_to_write(clip(message, 4096).as_bytes(), &mut self.out).map_err(writing)?;
        Ok(())
    }

    /// Hands everything to the transport.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(writing)
    }

    pub(crate) fn inner(&mut self) -> &mut W {
        &mut self.out
    }
}

/// The start of a text, cut between characters.
pub(crate) fn clip(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// How an answer is divided into data, progress and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bands {
    /// Data alone: neither progress nor errors can be told.
    None,
    /// `side-band`: packets of up to 1000 bytes.
    Small,
    /// `side-band-64k`.
    Large,
}

impl Bands {
    fn chunk_bytes(self) -> usize {
        match self {
            Bands::None => usize::MAX,
            // 1000 and 65520 less the length of the line and the number of the band.
            Bands::Small => 995,
            Bands::Large => 65515,
        }
    }
}

/// Multiplexes data, progress and errors. As a [`Write`] it takes the data, gathered into full packets.
pub(crate) struct BandWriter<W: Write> {
    out: W,
    bands: Bands,
    pending: Vec<u8>,
    written_bytes: u64,
}

impl<W: Write> BandWriter<W> {
    pub(crate) fn new(out: W, bands: Bands) -> Self {
        BandWriter { out, bands, pending: Vec::new(), written_bytes: 0 }
    }

    /// A text for the person at the other end, shown as `remote: …`; each line ends in `\n` or `\r`.
    pub(crate) fn progress(&mut self, text: &str) -> Result<()> {
        self.side(Channel::Progress, text)
    }

    /// A text that ends the conversation as failed.
    pub(crate) fn error(&mut self, text: &str) -> Result<()> {
        self.side(Channel::Error, text)
    }

    fn side(&mut self, channel: Channel, text: &str) -> Result<()> {
        if self.bands == Bands::None || text.is_empty() {
            return Ok(());
        }
        self.push_pending().map_err(writing)?;
        let mut rest = text;
        while !rest.is_empty() {
            let piece = clip(rest, self.bands.chunk_bytes());
            encode::band_to_write(channel, piece.as_bytes(), &mut self.out).map_err(writing)?;
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    fn push_pending(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            encode::band_to_write(Channel::Data, &self.pending, &mut self.out)?;
            self.pending.clear();
        }
        Ok(())
    }

    /// The bytes of data so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Ends the data, and the conversation with a flush if there are bands.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.push_pending().map_err(writing)?;
        if self.bands != Bands::None {
            encode::flush_to_write(&mut self.out).map_err(writing)?;
        }
        self.out.flush().map_err(writing)
    }
}

impl<W: Write> Write for BandWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.written_bytes += data.len() as u64;
        if self.bands == Bands::None {
            self.out.write_all(data)?;
            return Ok(data.len());
        }
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.bands.chunk_bytes() - self.pending.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() == self.bands.chunk_bytes() {
                self.push_pending()?;
            }
        }
        Ok(data.len())
    }

    /// Keeps what does not fill a packet: a pack writer flushes more often than packets should end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(input: &[u8]) -> Result<Vec<String>> {
        let mut reader = PacketReader::new(input, 1 << 20);
        let mut out = Vec::new();
        while let Some(packet) = reader.next()? {
            out.push(match packet {
                Packet::Line(line) => printable(line),
                other => format!("{other:?}"),
            });
        }
        Ok(out)
    }

    #[test]
    fn reads_every_kind() {
        assert_eq!(all(b"0006a\n0005b0004000000010002").unwrap(), ["a", "b", "", "Flush", "Delim", "ResponseEnd"]);
        assert!(all(b"").unwrap().is_empty());
    }

    #[test]
    fn leaves_what_follows() {
        let mut reader = PacketReader::new(&b"0006a\n0000PACK"[..], 100);
        while reader.next().unwrap() != Some(Packet::Flush) {}
        assert_eq!(reader.into_inner(), b"PACK");
    }

    #[test]
    fn names_what_is_wrong() {
        for (input, words) in [
            (&b"00"[..], "within the length"),
            (b"0010abc", "within a packet line"),
            (b"zzzz", "not the length"),
            (b"0003", "not the length"),
            (b"fff5", "65516 is the most"),
        ] {
            let text = all(input).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        }
        let mut small = PacketReader::new(&b"0006a\n0006b\n"[..], 10);
        small.next().unwrap();
        assert!(matches!(small.next(), Err(Error::TooLarge { limit: 10, .. })));
    }

    #[test]
    fn bands_fill_their_packets() {
        let mut out = Vec::new();
        let mut bands = BandWriter::new(&mut out, Bands::Small);
        bands.write_all(&[b'x'; 1000]).unwrap();
        bands.progress("ü\n").unwrap();
        bands.finish().unwrap();
        let mut reader = PacketReader::new(&out[..], 1 << 20);
        let mut sizes = Vec::new();
        while let Some(Packet::Line(line)) = reader.next_raw().unwrap() {
            sizes.push((line[0], line.len() - 1));
        }
        assert_eq!(sizes, [(1, 995), (1, 5), (2, 3)]);
    }

    #[test]
    fn clips_between_characters() {
        assert_eq!(clip("aüb", 2), "a");
        assert_eq!(clip("aüb", 3), "aü");
        assert_eq!(clip("a", 3), "a");
    }
}
