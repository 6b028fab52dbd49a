//! Durations and sizes as people write them.
//!
//! Every duration and size in a configuration document is a string with its unit (`"300ms"`, `"10GiB"`), so that no
//! reader has to guess whether a bare 30 means seconds or minutes. Both types print back in the largest unit that
//! loses nothing, and parsing what was printed gives the same value again. Left out on purpose: fractions ("1.5h"),
//! sums ("1h30m") and months or years, which have no fixed length.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a duration or a size. The message is complete; show it as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing but white space.
    #[error("empty; expected {expected}")]
    Empty {
        /// What should have stood there.
        expected: &'static str,
    },
    /// A bare number.
    #[error("\"{text}\" has no unit; expected {expected}")]
    NoUnit {
        /// What was written.
        text: String,
        /// What should have stood there.
        expected: &'static str,
    },
    /// Something other than digits before the unit.
    #[error("\"{text}\" does not start with a whole number; expected {expected}")]
    NoNumber {
        /// What was written.
        text: String,
        /// What should have stood there.
        expected: &'static str,
    },
    /// An unknown unit.
    #[error("\"{text}\" has the unknown unit \"{unit}\"; units are {units}")]
    Unit {
        /// What was written.
        text: String,
        /// The unit found in it.
        unit: String,
        /// The units that exist.
        units: &'static str,
    },
    /// More than the type can hold.
    #[error("\"{text}\" is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

const DURATION_EXPECTED: &str = "a duration with its unit such as \"300ms\", \"5s\", \"10m\", \"1h\" or \"30d\"";
const DURATION_UNITS: &str = "ns, us, ms, s, m, h, d, w";
const SIZE_EXPECTED: &str = "a size with its unit such as \"512B\", \"64KiB\" or \"10GiB\"";
const SIZE_UNITS: &str = "B, KiB, MiB, GiB, TiB (powers of 1024) and kB, MB, GB, TB (powers of 1000)";

/// Nanoseconds per unit, largest first: the order in which printing looks for a unit without remainder.
const DURATIONS_NS: [(&str, u64); 8] = [
    ("w", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes per unit, largest first. Printing uses the powers of 1024 only.
const SIZES_BYTES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DECIMAL_SIZES_BYTES: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];

/// A length of time written with its unit: `300ms`, `5s`, `10m`, `1h`, `30d`, `2w`. At most about 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// A number of milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// A number of seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    /// A number of days of 24 hours.
    pub const fn from_days(days: u64) -> Self {
        Self(Duration::from_secs(days * 86_400))
    }

    /// The same as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }
}

impl From<HumanDuration> for Duration {
    fn from(value: HumanDuration) -> Self {
        value.0
    }
}

impl From<Duration> for HumanDuration {
    /// Saturates at the longest duration that can be printed.
    fn from(value: Duration) -> Self {
        Self(value.min(Duration::from_nanos(u64::MAX)))
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text, DURATION_EXPECTED)?;
        let factor = find(&DURATIONS_NS, unit).ok_or_else(|| UnitError::Unit {
            text: text.into(),
            unit: unit.into(),
            units: DURATION_UNITS,
        })?;
        let ns = number.checked_mul(factor).ok_or_else(|| UnitError::TooLarge { text: text.into() })?;
        Ok(Self(Duration::from_nanos(ns)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if ns == 0 {
            return f.pad("0s");
        }
        // Weeks are read but not written: "30d" is easier to compare than "4w" and a remainder.
        f.pad(&print(&DURATIONS_NS[1..], ns))
    }
}

/// A number of bytes written with its unit: `512B`, `64KiB`, `10GiB`, `1MB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanSize(u64);

impl HumanSize {
    /// A number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A number of KiB.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// A number of MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// A number of GiB.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for HumanSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text, SIZE_EXPECTED)?;
        let factor = find(&SIZES_BYTES, unit)
            .or_else(|| find(&DECIMAL_SIZES_BYTES, unit))
            .ok_or_else(|| UnitError::Unit { text: text.into(), unit: unit.into(), units: SIZE_UNITS })?;
        number.checked_mul(factor).map(Self).ok_or_else(|| UnitError::TooLarge { text: text.into() })
    }
}

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("0B");
        }
        f.pad(&print(&SIZES_BYTES, self.0))
    }
}

macro_rules! as_text {
    ($type:ty, $expected:expr) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

as_text!(HumanDuration, DURATION_EXPECTED);
as_text!(HumanSize, SIZE_EXPECTED);

/// Splits `300 ms` into its number and its unit.
fn split<'a>(text: &'a str, expected: &'static str) -> Result<(u64, &'a str), UnitError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(UnitError::Empty { expected });
    }
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim_start());
    if number.is_empty() || unit.starts_with(['.', ',', '_']) {
        return Err(UnitError::NoNumber { text: shorten(text), expected });
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: shorten(text), expected });
    }
    let number = number.parse().map_err(|_| UnitError::TooLarge { text: shorten(text) })?;
    Ok((number, unit))
}

/// Error messages quote what was written, but never a megabyte of it.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

fn find(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

fn print(units: &[(&str, u64)], value: u64) -> String {
    let (unit, factor) = units.iter().find(|(_, factor)| value.is_multiple_of(*factor)).expect("the last unit is 1");
    format!("{}{unit}", value / factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [
            ("300ms", 300),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            (" 2 s ", 2_000),
            ("1w", 604_800_000),
        ] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().as_millis(), ms, "{text}");
        }
        for (text, bytes) in
            [("512B", 512), ("64KiB", 65_536), ("10GiB", 10 << 30), ("1kB", 1_000), ("2TB", 2_000_000_000_000)]
        {
            assert_eq!(text.parse::<HumanSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |text: &str| text.parse::<HumanDuration>().unwrap_err().to_string();
        assert!(error("30").contains("has no unit"), "{}", error("30"));
        assert!(error("1.5h").contains("whole number"), "{}", error("1.5h"));
        assert!(error("5 parsecs").contains("unknown unit \"parsecs\""));
        assert!(error("99999999999d").contains("too large"));
        assert!(error("").contains("empty"));
        assert!(error("-5s").contains("whole number"));
        assert!("1gb".parse::<HumanSize>().unwrap_err().to_string().contains("unknown unit"));
        assert!("64 K".parse::<HumanSize>().is_err());
        assert!(error(&"9".repeat(1_000_000)).len() < 300, "messages stay short");
    }

    proptest! {
        #[test]
        fn duration_prints_and_parses(ns in any::<u64>()) {
            let duration = HumanDuration(Duration::from_nanos(ns));
            prop_assert_eq!(duration.to_string().parse::<HumanDuration>().unwrap(), duration);
        }

        #[test]
        fn size_prints_and_parses(bytes in any::<u64>()) {
            let size = HumanSize(bytes);
            prop_assert_eq!(size.to_string().parse::<HumanSize>().unwrap(), size);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<HumanDuration>();
            let _ = text.parse::<HumanSize>();
        }
    }
}
