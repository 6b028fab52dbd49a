//! Syslog messages as lines.
//!
//! Every message is kept as one line of RFC 5424: what came in the older form (RFC 3164, `/dev/log`) is rewritten, so that priority, time zone and year
//! are there and readers have one form to know. Nothing of the text is lost. A message that is neither is text without a header, as RFC 3164
//! asks a relay to treat it.

use crate::path::{local_time_of, rfc3339_local};

/// `user.notice`, for messages without a priority.
const NO_PRIORITY: u16 = 13;
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Where a message came from and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// Who sent it, when it does not say.
    pub(super) host: &'a str,
    /// On a local socket messages name no host.
    pub(super) local: bool,
    /// Microseconds since 1970.
    pub(super) now_us: u64,
}

/// One message as one line of RFC 5424, still with its control characters.
pub(super) fn line_of(message: &[u8], source: Source<'_>, out: &mut Vec<u8>) {
    out.clear();
    let (priority, rest) = priority(message).unwrap_or((NO_PRIORITY, message));
    if rest.starts_with(b"1 ") && rest.splitn(8, |byte| *byte == b' ').count() >= 7 && rest.len() < message.len() {
        out.extend_from_slice(message);
        return;
    }
    let (time, rest) = stamp(rest, source.now_us);
    let (host, rest) = host(rest, source);
    let (app, process, text) = tag(rest);
    out.extend_from_slice(format!("<{priority}>1 {time} {host} {app} {process} - - ").as_bytes());
    out.extend_from_slice(text);
}

fn priority(message: &[u8]) -> Option<(u16, &[u8])> {
    let rest = message.strip_prefix(b"<")?;
    let end = rest.iter().take(4).position(|byte| *byte == b'>')?;
    let number: u16 = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    (number < 192).then_some((number, &rest[end + 1..]))
}

/// The time, and what follows it. Without one it is now.
fn stamp(rest: &[u8], now_us: u64) -> (String, &[u8]) {
    let now = || rfc3339_local(now_us);
    // `Oct 11 22:14:15 `
    if let Some(head) = rest.get(..15).and_then(|head| std::str::from_utf8(head).ok())
        && let Some(time_us) = bsd_time(head, now_us)
    {
        let after = &rest[15..];
        return (rfc3339_local(time_us), after.strip_prefix(b" ").unwrap_or(after));
    }
    // `2003-10-11T22:14:15.003Z `, which many send in the old form too.
    let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
    let iso = std::str::from_utf8(&rest[..end])
        .ok()
        .filter(|text| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).is_ok());
    match iso {
        Some(text) => (text.to_owned(), rest[end..].strip_prefix(b" ").unwrap_or(&rest[end..])),
        None => (now(), rest),
    }
}

fn bsd_time(head: &str, now_us: u64) -> Option<u64> {
    let month = MONTHS.iter().position(|month| head.starts_with(month))?;
    let number = |range: std::ops::Range<usize>| head.get(range)?.trim_start().parse::<u8>().ok();
    let separators =
        head.get(3..4)? == " " && head.get(6..7)? == " " && head.get(9..10)? == ":" && head.get(12..13)? == ":";
    if !separators {
        return None;
    }
    let (day, hour, minute, second) = (number(4..6)?, number(7..9)?, number(10..12)?, number(13..15)?);
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    local_time_of(u8::try_from(month).ok()?, day, hour, minute, second, now_us)
}

/// The host, and what follows it. A word that ends like a tag is none.
fn host<'a>(rest: &'a [u8], source: Source<'a>) -> (&'a str, &'a [u8]) {
    if !source.local {
        let end = rest.iter().position(|byte| *byte == b' ');
        if let Some(end) = end
            && let Some(word) = header_word(&rest[..end])
            && !word.contains('[')
            && !word.ends_with(':')
        {
            return (word, &rest[end + 1..]);
        }
    }
    (source.host, rest)
}

/// Program, process and text of `tag[process]: text`.
fn tag(rest: &[u8]) -> (&str, &str, &[u8]) {
    // RFC 3164 allows 32 characters; programs go beyond it.
    let end = rest.iter().take(64).position(|byte| matches!(byte, b':' | b'[' | b' '));
    let Some(end) = end.filter(|end| *end > 0 && rest[*end] != b' ') else { return ("-", "-", rest) };
    let Some(app) = header_word(&rest[..end]) else { return ("-", "-", rest) };
    let (process, after) = match rest[end] {
        b'[' => {
            let inside = &rest[end + 1..];
            let Some(close) = inside.iter().take(128).position(|byte| *byte == b']') else { return ("-", "-", rest) };
            let Some(process) = header_word(&inside[..close]) else { return ("-", "-", rest) };
            (process, &inside[close + 1..])
        }
        _ => ("-", &rest[end..]),
    };
    let Some(text) = after.strip_prefix(b":") else { return ("-", "-", rest) };
    (app, process, text.strip_prefix(b" ").unwrap_or(text))
}

/// A word that can stand in a header of RFC 5424.
fn header_word(bytes: &[u8]) -> Option<&str> {
    let fits = !bytes.is_empty() && bytes.len() <= 255 && bytes.iter().all(u8::is_ascii_graphic);
    fits.then(|| std::str::from_utf8(bytes).ok()).flatten()
}

/// Takes messages out of a TCP stream: with their length before them (`LENGTH SP MESSAGE`, RFC 6587 3.4.1) or one per line. Each message may be
/// in either form.
#[derive(Debug)]
pub(super) struct Frames {
    max_bytes: usize,
    held: Vec<u8>,
    /// Bytes of an over-long message that are still to come and will be dropped, when its length is known.
    skip: u64,
    /// The same up to the next line break.
    skip_line: bool,
}

impl Frames {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, held: Vec::new(), skip: 0, skip_line: false }
    }

    /// Takes bytes and hands out the messages that are whole. Of a longer one the beginning is handed out, one byte more than the limit, so that
    /// whoever makes lines of them sees that it was too long.
    pub(super) fn feed(&mut self, bytes: &[u8], mut message: impl FnMut(&[u8])) {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(taken) = self.step(at, &mut message) {
            at += taken;
        }
        self.held.drain(..at);
        self.held.shrink_to(self.max_bytes.min(64 << 10));
    }

    /// Takes what can be taken from a place on; `None` when more bytes are needed.
    fn step(&mut self, at: usize, message: &mut impl FnMut(&[u8])) -> Option<usize> {
        let rest = self.held.get(at..).filter(|rest| !rest.is_empty())?;
        if self.skip > 0 {
            let dropped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(rest.len());
            self.skip -= dropped as u64;
            return Some(dropped);
        }
        let line_end = memchr::memchr(b'\n', rest);
        if self.skip_line {
            self.skip_line = line_end.is_none();
            return Some(line_end.map_or(rest.len(), |end| end + 1));
        }
        match counted(rest) {
            Counted::Length { head, length } => {
                let whole = usize::try_from(length).unwrap_or(usize::MAX);
                let have = whole.min(rest.len() - head);
                if have < whole && have <= self.max_bytes {
                    return None;
                }
                message(&rest[head..head + have.min(self.max_bytes + 1)]);
                self.skip = (whole - have) as u64;
                Some(head + have)
            }
            Counted::MaybeLater => None,
            Counted::No => {
                let end = line_end.unwrap_or(rest.len());
                if line_end.is_none() && end <= self.max_bytes {
                    return None;
                }
                if end > 0 {
                    message(&rest[..end.min(self.max_bytes + 1)]);
                }
                self.skip_line = line_end.is_none();
                Some(line_end.map_or(end, |end| end + 1))
            }
        }
    }

    /// What is left when the connection ends: a line without its end, where there is one.
    pub(super) fn finish(&mut self, mut message: impl FnMut(&[u8])) {
        if matches!(counted(&self.held), Counted::No) && !self.held.is_empty() {
            message(&self.held);
        }
        self.held.clear();
    }
}

enum Counted {
    Length {
        head: usize,
        length: u64,
    },
    /// Digits, and nothing behind them yet.
    MaybeLater,
    No,
}

fn counted(bytes: &[u8]) -> Counted {
    if !bytes.first().is_some_and(|byte| (b'1'..=b'9').contains(byte)) {
        return Counted::No;
    }
    let digits = bytes.iter().take(10).take_while(|byte| byte.is_ascii_digit()).count();
    match bytes.get(digits) {
        Some(b' ') => match std::str::from_utf8(&bytes[..digits]).unwrap_or_default().parse() {
            Ok(length) => Counted::Length { head: digits + 1, length },
            Err(_) => Counted::No,
        },
        None if digits < 10 => Counted::MaybeLater,
        _ => Counted::No,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn line(message: &str, local: bool) -> String {
        let mut out = Vec::new();
        line_of(message.as_bytes(), Source { host: "10.0.0.9", local, now_us: 1_800_000_000_000_000 }, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_forms_become_one() {
        let new = "<165>1 2003-10-11T22:14:15.003Z host app 123 ID47 [x@1 a=\"b\"] text";
        assert_eq!(line(new, false), new);
        let stamped = line("<34>Jan 11 22:14:15 mymachine su[42]: 'su root' failed", false);
        assert!(stamped.starts_with("<34>1 2027-01-11T22:14:15.000000"), "{stamped}");
        assert!(stamped.ends_with(" mymachine su 42 - - 'su root' failed"), "{stamped}");
        assert!(line("<13>Jan 11 22:14:15 cron: x", true).ends_with(" 10.0.0.9 cron - - - x"));
        assert!(line("<13>Jan 11 22:14:15 cron: x", false).ends_with(" 10.0.0.9 cron - - - x"));
        assert!(line("just text", false).starts_with("<13>1 2027-01-"));
        assert!(line("just text", false).ends_with(" just - - - - text"));
        assert!(line("<999>a b", true).ends_with(" 10.0.0.9 - - - - <999>a b"));
        assert!(line("<34>2003-10-11T22:14:15Z h a: b", false).ends_with("1 2003-10-11T22:14:15Z h a - - - b"));
    }

    fn frames(max_bytes: usize, pieces: &[&[u8]]) -> Vec<String> {
        let (mut frames, mut out) = (Frames::new(max_bytes), Vec::new());
        for piece in pieces {
            frames.feed(piece, |message| out.push(String::from_utf8_lossy(message).into_owned()));
        }
        frames.finish(|message| out.push(format!("{}…", String::from_utf8_lossy(message))));
        out
    }

    #[test]
    fn frames_of_both_kinds_and_too_long_ones() {
        assert_eq!(frames(9, &[b"5 <1>ab<2>cd\n5 <3>", b"ef<4>"]), ["<1>ab", "<2>cd", "<3>ef", "<4>…"]);
        assert_eq!(
            frames(4, &[b"10 0123456789<1>x\n", b"<2>yyyyyyy", b"yyy\n<3>z\n"]),
            ["01234", "<1>x", "<2>yy", "<3>z"]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_pieces_do_not_matter(text in "[0-9<>a \n]{0,60}", cut in 0usize..60) {
            let cut = cut.min(text.len());
            let whole = frames(7, &[text.as_bytes()]);
            prop_assert_eq!(frames(7, &[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]), whole);
            let mut out = Vec::new();
            line_of(text.as_bytes(), Source { host: "h", local: false, now_us: 1 }, &mut out);
        }
    }
}
