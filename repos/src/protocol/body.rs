//! Request bodies as HTTP carries them: git compresses the larger ones.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;

/// The request's body without its `Content-Encoding`: `gzip` and `x-gzip` are unpacked, `identity` or nothing is
/// handed through, anything else is an error (HTTP 415).
///
/// Reading more than `limit_bytes` of unpacked data fails with [`io::ErrorKind::FileTooLarge`]: a few kilobytes of gzip
/// can unpack to gigabytes.
pub fn decode_body<'a>(
    content_encoding: Option<&str>,
    body: impl Read + 'a,
    limit_bytes: u64,
) -> io::Result<Box<dyn Read + 'a>> {
    let encoding = content_encoding.unwrap_or_default().trim();
    if ["gzip", "x-gzip"].iter().any(|name| encoding.eq_ignore_ascii_case(name)) {
        Ok(Box::new(Limited { inner: MultiGzDecoder::new(body), left_bytes: limit_bytes }))
    } else if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
        Ok(Box::new(Limited { inner: body, left_bytes: limit_bytes }))
    } else {
        let text: String = encoding.escape_debug().take(60).collect();
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the content encoding “{text}” is not supported; use gzip or none"),
        ))
    }
}

/// Like [`Read::take`], but says that something was cut off instead of ending.
struct Limited<R> {
    inner: R,
    left_bytes: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        // One byte more than what is left tells "exactly at the limit" from "beyond it".
        let room = buf.len().min(usize::try_from(self.left_bytes.saturating_add(1)).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buf[..room])?;
        match self.left_bytes.checked_sub(count as u64) {
            Some(left_bytes) => {
                self.left_bytes = left_bytes;
                Ok(count)
            }
            None => Err(io::Error::new(io::ErrorKind::FileTooLarge, "the request's body is larger than allowed")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(encoding: Option<&str>, body: &[u8], limit_bytes: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decode_body(encoding, body, limit_bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn plain_and_gzip() {
        assert_eq!(read(None, b"0000", 4).unwrap(), b"0000");
        assert_eq!(read(Some("identity"), b"0000", 4).unwrap(), b"0000");
        assert_eq!(read(Some("gzip"), &gzip(b"0000"), 4).unwrap(), b"0000");
        assert_eq!(read(Some(" X-GZIP"), &gzip(b"0000"), 4).unwrap(), b"0000");
    }

    #[test]
    fn bombs_and_strangers_are_refused() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert!(bomb.len() < 4096);
        assert_eq!(read(Some("gzip"), &bomb, 65536).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(None, b"00000", 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(Some("br"), b"0000", 4).unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert!(read(Some("gzip"), &bomb[..bomb.len() / 2], 1 << 30).is_err());
    }
}
