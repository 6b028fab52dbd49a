//! Bytes to lines, with a limit that is never passed silently.
//!
//! A line that is longer than the limit keeps its beginning and says at its end how long it was. It is never made into two, because nobody
//! could tell the second half from a line.

/// What was found in one piece of input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Lines.
    pub lines: u64,
    /// Those of them that were longer than the limit.
    pub cut: u64,
}

/// Cuts a stream into lines.
#[derive(Debug)]
pub struct Lines {
    max_bytes: usize,
    /// The beginning of a line whose end has not come yet, at most `max_bytes`.
    partial: Vec<u8>,
    /// Bytes of that line that did not fit.
    dropped_bytes: u64,
}

impl Lines {
    /// Lines of at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, partial: Vec::new(), dropped_bytes: 0 }
    }

    /// Takes the next bytes and hands out every line that ends in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) -> Found {
        let mut found = Found::default();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let whole = &bytes[..end];
            bytes = &bytes[end + 1..];
            found.lines += 1;
            if self.partial.is_empty() && self.dropped_bytes == 0 && whole.len() <= self.max_bytes {
                line(whole);
                continue;
            }
            self.keep(whole);
            found.cut += u64::from(self.emit(&mut line));
        }
        self.keep(bytes);
        found
    }

    /// Hands out what has no end, when no more will come.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) -> Found {
        if self.pending_bytes() == 0 {
            return Found::default();
        }
        let cut = self.emit(&mut line);
        Found { lines: 1, cut: cut.into() }
    }

    /// Bytes of the line that has no end yet.
    pub fn pending_bytes(&self) -> u64 {
        self.partial.len() as u64 + self.dropped_bytes
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.max_bytes - self.partial.len();
        let kept = bytes.len().min(room);
        self.partial.extend_from_slice(&bytes[..kept]);
        self.dropped_bytes += (bytes.len() - kept) as u64;
    }

    /// True when the line was cut.
    fn emit(&mut self, line: &mut impl FnMut(&[u8])) -> bool {
        let cut = self.dropped_bytes > 0;
        if cut {
            mark_cut(&mut self.partial, self.dropped_bytes);
        }
        line(&self.partial);
        self.partial.clear();
        // A long line must not hold its memory for ever.
        self.partial.shrink_to(4096);
        self.dropped_bytes = 0;
        cut
    }
}

/// What a line that was cut ends with.
fn mark_cut(line: &mut Vec<u8>, dropped_bytes: u64) {
    let whole = line.len() as u64 + dropped_bytes;
    line.extend_from_slice(format!(" [logd: cut, the line had {whole} bytes]").as_bytes());
}

/// A message that comes whole (a datagram, a framed message) as one line: what breaks lines is replaced as rsyslog does, and the limit holds.
/// True when it was cut.
pub fn one_line(message: &[u8], max_bytes: usize, out: &mut Vec<u8>) -> bool {
    out.clear();
    let end = message.len() - message.iter().rev().take_while(|byte| matches!(byte, b'\n' | b'\r' | 0)).count();
    let kept = end.min(max_bytes);
    for byte in &message[..kept] {
        match byte {
            b'\n' => out.extend_from_slice(b"#012"),
            0 => out.extend_from_slice(b"#000"),
            _ => out.push(*byte),
        }
    }
    if kept < end {
        mark_cut(out, (end - kept) as u64);
    }
    kept < end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn texts(max_bytes: usize, pieces: &[&[u8]]) -> (Vec<String>, u64) {
        let mut lines = Lines::new(max_bytes);
        let (mut out, mut cut) = (Vec::new(), 0);
        for piece in pieces {
            cut += lines.feed(piece, |line| out.push(String::from_utf8_lossy(line).into_owned())).cut;
        }
        cut += lines.finish(|line| out.push(format!("{}…", String::from_utf8_lossy(line)))).cut;
        (out, cut)
    }

    #[test]
    fn long_lines_say_so_and_stay_one() {
        let (lines, cut) = texts(4, &[b"ab\nabcd\nabcde", b"fgh\n\nxy", b"zzz"]);
        assert_eq!(
            lines,
            ["ab", "abcd", "abcd [logd: cut, the line had 8 bytes]", "", "xyzz [logd: cut, the line had 5 bytes]…"]
        );
        assert_eq!(cut, 2);
        let mut out = Vec::new();
        assert!(!one_line(b"a\nb\0\n\n", 9, &mut out));
        assert_eq!(out, b"a#012b");
        assert!(one_line(b"abcdef", 3, &mut out));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let mut places: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(texts(5, &pieces), texts(5, &[text.as_bytes()]));
        }
    }
}
