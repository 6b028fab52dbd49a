//! Seconds since 1970 in UTC, days, and how both are written in file names and answers.
//!
//! A window is named by its end, and belongs to the day in which its last second lies: the window that ends at midnight is the last
//! of the day before. (The original was off by one here.) There are no leap seconds in Unix time, so a day always has 86,400.

use std::fmt;

/// Seconds of a day.
pub const DAY_S: i64 = 86_400;

/// Seconds since 1970-01-01T00:00:00Z.
pub type Stamp = i64;

/// The first and last moment with a year of four digits; what lies outside is not a stamp.
pub const FIRST_STAMP: Stamp = 0;
/// 9999-12-31T00:00:00Z.
pub const LAST_STAMP: Stamp = 253_402_214_400;

/// A UTC day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i64);

impl Day {
    /// The day that a window belongs to, by its end.
    pub const fn of_end(end: Stamp) -> Self {
        Self((end - 1).div_euclid(DAY_S))
    }

    /// The day that a moment lies in.
    pub const fn of_moment(moment: Stamp) -> Self {
        Self(moment.div_euclid(DAY_S))
    }

    /// From a date; none when there is no such date.
    pub fn from_date(year: i64, month: i64, day: i64) -> Option<Self> {
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || day < 1 {
            return None;
        }
        let found = Self(days_from_civil(year, month, day));
        (found.date() == (year, month, day)).then_some(found)
    }

    /// Year, month, day.
    pub const fn date(self) -> (i64, i64, i64) {
        civil_from_days(self.0)
    }

    /// Midnight at its start: windows of this day end after it.
    pub const fn start(self) -> Stamp {
        self.0 * DAY_S
    }

    /// Midnight at its end: windows of this day end at or before it.
    pub const fn end(self) -> Stamp {
        (self.0 + 1) * DAY_S
    }

    /// `20080423`.
    pub fn compact(self) -> String {
        let (year, month, day) = self.date();
        format!("{year:04}{month:02}{day:02}")
    }

    /// The first day of this day's month.
    pub(crate) fn first_of_month(self) -> Self {
        Self(self.0 - self.date().2 + 1)
    }

    /// The first day of the month after this day's.
    pub(crate) fn next_month(self) -> Self {
        let (year, month, _) = self.date();
        let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        Self(days_from_civil(year, month, 1))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// `20080423T123000`, as in file names.
pub fn compact_stamp(stamp: Stamp) -> String {
    let day = Day::of_moment(stamp);
    let second = stamp - day.start();
    format!("{}T{:02}{:02}{:02}", day.compact(), second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 of a date in the Gregorian calendar, by counting from March so that the leap day comes last.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_and_days_are_the_same_thing() {
        assert_eq!(Day::from_date(1970, 1, 1), Some(Day(0)));
        assert_eq!(Day::from_date(2008, 4, 23).unwrap().start(), 1_208_908_800);
        assert_eq!(Day::from_date(9999, 12, 31).unwrap().start(), LAST_STAMP);
        for wrong in [(2023, 2, 29), (2100, 2, 29), (2024, 4, 31), (2024, 0, 1), (2024, 13, 1), (1969, 12, 31)] {
            assert_eq!(Day::from_date(wrong.0, wrong.1, wrong.2), None, "{wrong:?}");
        }
        let mut day = Day::from_date(1996, 2, 28).unwrap();
        for expected in [(1996, 2, 29), (1996, 3, 1)] {
            day = Day(day.0 + 1);
            assert_eq!(day.date(), expected);
        }
        for number in (0..2_900_000).step_by(97) {
            let (year, month, day) = Day(number).date();
            assert_eq!(Day::from_date(year, month, day), Some(Day(number)));
        }
    }

    #[test]
    fn midnight_belongs_to_the_day_before() {
        let day = Day::from_date(2008, 4, 23).unwrap();
        assert_eq!(Day::of_end(day.start() + 1), day);
        assert_eq!(Day::of_end(day.end()), day);
        assert_eq!(Day::of_end(day.end() + 1), Day(day.0 + 1));
        assert_eq!(compact_stamp(day.end()), "20080424T000000");
        assert_eq!(Day::from_date(2008, 12, 9).unwrap().next_month().date(), (2009, 1, 1));
    }
}
