//! The line protocol: `spam 10.79.18.1 3`, one event per line; without a number it counts one.
//!
//! Series, address and amount are separated by spaces or tabs; empty lines and lines that begin with `#` say nothing. A line that makes no
//! sense is reported with its reason and does not stop those after it.

use crate::address::Address;
use crate::live::{Refusal, SeriesId, Tally};

/// Longest line: a name, an address and a number, with room.
pub const MAX_LINE_BYTES: usize = 256;

/// The largest amount of one event, up or down.
pub const MAX_AMOUNT: i64 = 1 << 32;

/// Lines handed on together.
const AT_ONCE: usize = 64;

/// Why a line was not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE_BYTES`].
    #[error("the line is longer than {MAX_LINE_BYTES} bytes")]
    Long,
    /// No address.
    #[error("a line is SERIES ADDRESS [AMOUNT]")]
    Short,
    /// More than three words.
    #[error("there is more after the amount")]
    Trailing,
    /// Not an address.
    #[error("the second word is not an IPv4 or IPv6 address")]
    Address,
    /// Not an amount.
    #[error("the third word is not a whole number between -{MAX_AMOUNT} and {MAX_AMOUNT}")]
    Amount,
    /// The counters.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// An event as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The series' name, not yet checked.
    pub series: &'a [u8],
    /// The address.
    pub address: Address,
    /// How much it counts.
    pub amount: i64,
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fed {
    /// Bytes that are done; the rest is the beginning of a line.
    pub consumed: usize,
    /// Events that were counted.
    pub counted: u64,
    /// Lines that were not.
    pub refused: u64,
}

/// Parses a line without its newline; none for one that says nothing.
#[inline]
pub fn parse_line(line: &[u8]) -> Result<Option<Line<'_>>, LineError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(LineError::Long);
    }
    let mut at = 0;
    let series = word(line, &mut at);
    if series.is_empty() || series[0] == b'#' {
        return Ok(None);
    }
    let address = word(line, &mut at);
    if address.is_empty() {
        return Err(LineError::Short);
    }
    let address = parse_v4(address).map(Address::V4).map_or_else(|| parse_address(address), Ok)?;
    let amount = word(line, &mut at);
    let amount = if amount.is_empty() { 1 } else { parse_amount(amount).ok_or(LineError::Amount)? };
    if !word(line, &mut at).is_empty() {
        return Err(LineError::Trailing);
    }
    Ok(Some(Line { series, address, amount }))
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

#[inline]
fn word<'a>(line: &'a [u8], at: &mut usize) -> &'a [u8] {
    while *at < line.len() && is_space(line[*at]) {
        *at += 1;
    }
    let start = *at;
    while *at < line.len() && !is_space(line[*at]) {
        *at += 1;
    }
    &line[start..*at]
}

/// Dotted decimal as the standard library takes it: four numbers without leading zeros.
#[inline]
fn parse_v4(text: &[u8]) -> Option<u32> {
    let (mut bits, mut parts, mut number, mut digits) = (0_u32, 0, 0_u32, 0);
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                if digits > 0 && number == 0 {
                    return None;
                }
                number = number * 10 + u32::from(byte - b'0');
                digits += 1;
                if number > 255 {
                    return None;
                }
            }
            b'.' if digits > 0 && parts < 3 => {
                bits = bits << 8 | number;
                (parts, number, digits) = (parts + 1, 0, 0);
            }
            _ => return None,
        }
    }
    (parts == 3 && digits > 0).then_some(bits << 8 | number)
}

#[cold]
fn parse_address(text: &[u8]) -> Result<Address, LineError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(LineError::Address)
}

#[inline]
fn parse_amount(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 10 {
        return None;
    }
    let mut number = 0_i64;
    for byte in digits {
        number = number * 10 + i64::from(byte.checked_sub(b'0').filter(|digit| *digit <= 9)?);
    }
    (number <= MAX_AMOUNT).then_some(if negative { -number } else { number })
}

/// Counts all complete lines of a text. The last line needs no newline when `complete`, as in a datagram.
pub fn feed_text(
    window: &mut impl Tally,
    text: &[u8],
    complete: bool,
    refused: &mut dyn FnMut(&[u8], LineError),
) -> Fed {
    let mut fed = Fed::default();
    // Most lines are of the same series as the one before.
    let mut last: Option<(&[u8], SeriesId)> = None;
    while fed.consumed < text.len() {
        if let Some((name, id)) = last
            && feed_plain_lines(window, text, name, id, &mut fed)
        {
            continue;
        }
        let rest = &text[fed.consumed..];
        let (line, next) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], end + 1),
            // A line without end that is too long already can never be good.
            None if complete || rest.len() > MAX_LINE_BYTES => (rest, rest.len()),
            None => break,
        };
        match feed_line(window, line, &mut last) {
            Ok(counted) => fed.counted += u64::from(counted),
            Err(error) => {
                fed.refused += 1;
                refused(line, error);
            }
        }
        fed.consumed += next;
    }
    fed
}

/// Counts lines of the usual shape; false when the next line is none of them, or was refused.
fn feed_plain_lines(window: &mut impl Tally, text: &[u8], series: &[u8], id: SeriesId, fed: &mut Fed) -> bool {
    let mut events = [(0, 0); AT_ONCE];
    let mut ends = [0; AT_ONCE];
    let (mut number, mut at) = (0, fed.consumed);
    while number < AT_ONCE
        && let Some((bits, amount, next)) = plain_line(&text[at..], series)
    {
        at += next;
        (events[number], ends[number]) = ((bits, amount), at);
        number += 1;
    }
    let counted = window.add_v4(id, &events[..number]).map_or_else(|(counted, _)| counted, |()| number);
    if counted > 0 {
        fed.consumed = ends[counted - 1];
        fed.counted += counted as u64;
    }
    counted > 0 && counted == number
}

/// Nearly every line in one pass: the series of the line before, an IPv4 address, perhaps an amount, single spaces, a newline. Whatever is
/// not exactly that is left to [`parse_line`].
#[inline]
fn plain_line(rest: &[u8], series: &[u8]) -> Option<(u32, i64, usize)> {
    let tail = rest.strip_prefix(series)?.strip_prefix(b" ")?;
    let (mut bits, mut number, mut digits, mut dots, mut at) = (0_u32, 0_u32, 0, 0, 0);
    let end = loop {
        let byte = *tail.get(at)?;
        at += 1;
        if byte.is_ascii_digit() {
            if digits == 3 || (digits > 0 && number == 0) {
                return None;
            }
            number = number * 10 + u32::from(byte - b'0');
            digits += 1;
            continue;
        }
        if digits == 0 || number > 255 {
            return None;
        }
        bits = bits << 8 | number;
        if byte != b'.' {
            break byte;
        }
        (number, digits, dots) = (0, 0, dots + 1);
        if dots > 3 {
            return None;
        }
    };
    let head = series.len() + 1;
    match end {
        b'\n' if dots == 3 => Some((bits, 1, head + at)),
        b' ' if dots == 3 => {
            let mut amount = 0_i64;
            for (index, byte) in tail[at..].iter().take(10).enumerate() {
                match byte {
                    b'0'..=b'9' => amount = amount * 10 + i64::from(byte - b'0'),
                    b'\n' if index > 0 => return Some((bits, amount, head + at + index + 1)),
                    _ => return None,
                }
            }
            None
        }
        _ => None,
    }
}

#[inline]
fn feed_line<'a>(
    window: &mut impl Tally,
    line: &'a [u8],
    last: &mut Option<(&'a [u8], SeriesId)>,
) -> Result<bool, LineError> {
    let Some(event) = parse_line(line)? else { return Ok(false) };
    let id = match *last {
        Some((name, id)) if name == event.series => id,
        _ => {
            let id = window.series(event.series)?;
            *last = Some((event.series, id));
            id
        }
    };
    window.add(id, event.address, event.amount)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::live::{Limits, LiveWindow};
    use proptest::prelude::*;

    fn window() -> LiveWindow {
        LiveWindow::new(Limits::default(), 1)
    }

    #[test]
    fn lines_are_counted_and_wrong_ones_reported() {
        let mut window = window();
        let text = b"spam 10.79.18.1 3\nspam  10.79.18.1\r\n# note\n\nspam 10.0.0.256\nvirus ::ffff:10.79.18.1 -2\n\
            sp/am 10.0.0.1\nspam\nspam 10.0.0.1 1 1\nspam 10.0.0.1 99999999999\nspam 10.0.0.1 x\nspam 2001:db8::1 5\nspam 10.0";
        let mut errors = Vec::new();
        let fed = feed_text(&mut window, text, false, &mut |_, error| errors.push(error));
        assert_eq!((fed.counted, fed.refused, &text[fed.consumed..]), (4, 6, &b"spam 10.0"[..]));
        use LineError::{Address, Amount, Refused, Short, Trailing};
        assert_eq!(errors, [Address, Refused(Refusal::Name), Short, Trailing, Amount, Amount]);
        assert_eq!(window.count("spam", &"10.79.18.0/24".parse().unwrap()), 4);
        assert_eq!(window.count("virus", &"10.79.18.1".parse().unwrap()), -2);
        let sealed = window.seal();
        assert_eq!(
            sealed.iter().map(|(name, counts)| (name.as_str(), counts.len())).collect::<Vec<_>>(),
            [("spam", 2), ("virus", 1)]
        );
        assert!(window.is_empty());
    }

    #[test]
    fn a_line_without_end_is_dropped_once_it_is_too_long() {
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        let fed = feed_text(&mut window(), &long, false, &mut |_, error| assert_eq!(error, LineError::Long));
        assert_eq!((fed.consumed, fed.refused), (long.len(), 1));
    }

    #[test]
    fn series_are_bounded() {
        let mut window = LiveWindow::new(Limits { series: 2, addresses: 2 }, 1);
        let text = b"a 10.0.0.1\nb 10.0.0.1\nc 10.0.0.1\na 10.0.0.2\na 10.0.0.3\na 10.0.0.1\n";
        let mut errors = Vec::new();
        let fed = feed_text(&mut window, text, true, &mut |_, error| errors.push(error));
        assert_eq!((fed.counted, errors.len()), (4, 2));
        assert!(matches!(
            errors[..],
            [LineError::Refused(Refusal::TooManySeries), LineError::Refused(Refusal::Full(_))]
        ));
    }

    proptest! {
        #[test]
        fn addresses_read_as_std_reads_them(text in "([0-9]{1,3}\\.){3}[0-9]{1,3}|[0-9a-f:.]{1,20}|\\PC{0,20}") {
            let std: Option<Address> = text.parse().ok();
            let word: Vec<u8> = text.bytes().filter(|b| !is_space(*b)).collect();
            if word == text.as_bytes() && !word.is_empty() {
                let line = [b"s ", text.as_bytes()].concat();
                let ours = parse_line(&line).ok().flatten().map(|line| line.address);
                prop_assert_eq!(ours, std);
            }
        }

        #[test]
        fn the_short_way_counts_as_the_long_one(
            lines in proptest::collection::vec("(a|b|) ?(10|0|1?[0-9]{1,3})\\.0\\.[0-3]{1,2}(\\.[0-9]{1,3}){0,2}( [0-9]{0,12}| -1| x|\r)?", 1..20),
        ) {
            let (mut at_once, mut one_by_one) = (window(), window());
            let text = lines.join("\n") + "\n";
            let fed = feed_text(&mut at_once, text.as_bytes(), false, &mut |_, _| {});
            let mut alone = Fed::default();
            for line in &lines {
                let fed = feed_text(&mut one_by_one, line.as_bytes(), true, &mut |_, _| {});
                (alone.counted, alone.refused) = (alone.counted + fed.counted, alone.refused + fed.refused);
            }
            prop_assert_eq!((fed.counted, fed.refused, fed.consumed), (alone.counted, alone.refused, text.len()));
            prop_assert_eq!(at_once.seal(), one_by_one.seal());
        }

        #[test]
        fn any_bytes_are_answered(text in proptest::collection::vec(any::<u8>(), 0..600)) {
            let fed = feed_text(&mut window(), &text, true, &mut |_, _| {});
            prop_assert_eq!(fed.consumed, text.len());
        }
    }
}
