//! Path patterns to paths and back: strftime in local time, and the names of log, node and subcluster.

use std::ffi::CString;
use std::path::PathBuf;

use cluster::documents::schema::logd::{PathPattern, PathPiece};

/// What fills the placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// `%{l}`
    pub log: String,
    /// `%{n}`
    pub node: String,
    /// `%{s}`
    pub subcluster: String,
}

/// The path for a record of this time.
pub fn render(pattern: &PathPattern, names: &Names, time_us: u64) -> PathBuf {
    let mut path = String::new();
    for piece in pattern.pieces() {
        match piece {
            PathPiece::Text(text) => path.push_str(text),
            PathPiece::Log => path.push_str(&names.log),
            PathPiece::Node => path.push_str(&names.node),
            PathPiece::Subcluster => path.push_str(&names.subcluster),
            PathPiece::Time(modifier, letter) => {
                let modifier = modifier.map(String::from).unwrap_or_default();
                path.push_str(&strftime(&format!("%{modifier}{letter}"), time_us / 1_000_000));
            }
        }
    }
    PathBuf::from(path)
}

/// The path of something that has no time of its own, such as a socket: parts of time are those of now.
pub fn render_now(pattern: &PathPattern, names: &Names) -> PathBuf {
    render(pattern, names, now_us())
}

/// True when the path changes with time.
pub fn has_time(pattern: &PathPattern) -> bool {
    pattern.pieces().iter().any(|piece| matches!(piece, PathPiece::Time(..)))
}

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The C library's strftime, so that the conversions mean what they mean everywhere, in the machine's time zone.
#[expect(unsafe_code, reason = "the C library's calendar and time zone have no safe interface")]
fn strftime(format: &str, seconds: u64) -> String {
    let Ok(format) = CString::new(format) else { return String::new() };
    let time = libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX);
    let mut buffer = [0_u8; 256];
    // SAFETY: `tm` is plain numbers and a pointer that localtime_r sets; the buffer's size is what is passed; the format is
    // terminated. All of it lives in this function.
    let written = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const time, &raw mut tm).is_null() {
            return String::new();
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &raw const tm)
    };
    String::from_utf8_lossy(&buffer[..written]).into_owned()
}

/// A time as RFC 5424 writes it, in the machine's time zone.
pub fn rfc3339_local(time_us: u64) -> String {
    let zone = strftime("%z", time_us / 1_000_000);
    let (hours, minutes) = zone.split_at_checked(3).unwrap_or(("+00", "00"));
    let base = strftime("%Y-%m-%dT%H:%M:%S", time_us / 1_000_000);
    format!("{base}.{:06}{hours}:{minutes}", time_us % 1_000_000)
}

/// The time that a stamp without year and zone means: local, and within half a year of `now_us`. `month` counts from 0.
#[expect(unsafe_code, reason = "the C library's calendar and time zone have no safe interface")]
pub fn local_time_of(month: u8, day: u8, hour: u8, minute: u8, second: u8, now_us: u64) -> Option<u64> {
    const HALF_A_YEAR_S: i64 = 183 * 86_400;
    let now = libc::time_t::try_from(now_us / 1_000_000).ok()?;
    let this_year: i32 = strftime("%Y", now_us / 1_000_000).parse::<i32>().ok()? - 1900;
    let candidates = [this_year, this_year - 1, this_year + 1].into_iter().filter_map(|year| {
        // SAFETY: `tm` is plain numbers and a pointer that mktime sets; it lives in this block.
        let time = unsafe {
            let mut tm: libc::tm = std::mem::zeroed();
            (tm.tm_year, tm.tm_mon, tm.tm_mday) = (year, month.into(), day.into());
            (tm.tm_hour, tm.tm_min, tm.tm_sec, tm.tm_isdst) = (hour.into(), minute.into(), second.into(), -1);
            libc::mktime(&raw mut tm)
        };
        (time >= 0).then_some(time)
    });
    let nearest = candidates.min_by_key(|time| time.abs_diff(now))?;
    (nearest.abs_diff(now) <= HALF_A_YEAR_S.unsigned_abs() + 86_400).then(|| nearest.unsigned_abs() * 1_000_000)
}

/// A regular expression for the paths that a pattern makes, with the names as groups `l`, `n` and `s`.
pub fn as_regex(pattern: &PathPattern) -> Option<regex::Regex> {
    let mut text = String::from("^");
    let mut seen = String::new();
    for piece in pattern.pieces() {
        match piece {
            PathPiece::Text(piece) => text.push_str(&regex::escape(piece)),
            // Dates with slashes make directories.
            PathPiece::Time(_, 'D' | 'x' | 'c') => text.push_str(".*?"),
            PathPiece::Time(..) => text.push_str("[^/]*?"),
            PathPiece::Log => group(&mut text, &mut seen, 'l'),
            PathPiece::Node => group(&mut text, &mut seen, 'n'),
            PathPiece::Subcluster => group(&mut text, &mut seen, 's'),
        }
    }
    text.push('$');
    regex::Regex::new(&text).ok()
}

fn group(text: &mut String, seen: &mut String, name: char) {
    // A second %{n} has the same value, but the engine has no back references; the first one counts.
    if seen.contains(name) {
        text.push_str("[^/]+?");
    } else {
        seen.push(name);
        text.push_str(&format!("(?P<{name}>[^/]+?)"));
    }
}

/// The directory below which every path of the pattern lies.
pub fn root(pattern: &PathPattern) -> PathBuf {
    let Some(PathPiece::Text(text)) = pattern.pieces().first() else { return PathBuf::from("/") };
    let end = text.rfind('/').unwrap_or(0);
    PathBuf::from(if end == 0 { "/" } else { &text[..end] })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names() -> Names {
        Names { log: "mainlog".into(), node: "n1".into(), subcluster: "east".into() }
    }

    #[test]
    fn a_path_and_back() {
        let pattern: PathPattern = "/var/log/x-%s/%{l}/%{s}.%{n}/%{n}%%".parse().unwrap();
        let path = render(&pattern, &names(), 1_234_567_890_123_456);
        assert_eq!(path, PathBuf::from("/var/log/x-1234567890/mainlog/east.n1/n1%"));
        let regex = as_regex(&pattern).unwrap();
        let found = regex.captures(path.to_str().unwrap()).unwrap();
        assert_eq!((&found["l"], &found["n"], &found["s"]), ("mainlog", "n1", "east"));
        assert_eq!(root(&pattern), PathBuf::from("/var/log"));
        assert!(has_time(&pattern));
        assert!(!has_time(&"/a/%{n}".parse().unwrap()));
    }
}
