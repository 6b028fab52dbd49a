//! Dates and times as people write them in queries: `20080423`, `2008-04-23T12:00:00+02:00`, `2h`.

use super::ast::Moment;
use crate::time::{DAY_S, Day, FIRST_STAMP, LAST_STAMP};

/// What a date looks like, for errors.
pub(crate) const EXPECTED: &str = "a date such as 20080423, 2008-04-23T12:00:00Z or 2h";

/// Parses a moment; the error says what is wrong with it.
pub(crate) fn parse_moment(text: &str) -> Result<Moment, String> {
    let unit = text.as_bytes().last().copied().unwrap_or(0).to_ascii_lowercase();
    let length = match unit {
        b's' => Some(1),
        b'm' => Some(60),
        b'h' => Some(3_600),
        b'd' => Some(DAY_S),
        b'w' => Some(7 * DAY_S),
        _ => None,
    };
    if let Some(length) = length {
        let number = &text[..text.len() - 1];
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err("this is no length of time".into());
        }
        let seconds = number.parse::<i64>().ok().and_then(|number| number.checked_mul(length));
        return seconds.filter(|s| *s <= LAST_STAMP).map(Moment::Ago).ok_or_else(|| "this is too long ago".into());
    }
    let (date, time) = match text.find(['T', 't']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let day = parse_date(date)?;
    let Some(time) = time else { return Ok(Moment::Day(day)) };
    let stamp = day.start() + parse_time(time)?;
    if (FIRST_STAMP..=LAST_STAMP).contains(&stamp) { Ok(Moment::At(stamp)) } else { Err("this is out of range".into()) }
}

fn parse_date(text: &str) -> Result<Day, String> {
    let digits: String = match text.len() {
        8 => text.into(),
        10 if text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-' => text.replace('-', ""),
        _ => return Err("this is no date".into()),
    };
    let number = |from: usize, to: usize| digits.get(from..to).and_then(parse_digits);
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(4, 6), number(6, 8)) else {
        return Err("this is no date".into());
    };
    if year < 1970 {
        return Err("nothing was counted before 1970".into());
    }
    Day::from_date(year, month, day).ok_or_else(|| format!("there is no {year:04}-{month:02}-{day:02}"))
}

fn parse_digits(text: &str) -> Option<i64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Seconds from midnight UTC; a zone may make them negative.
fn parse_time(text: &str) -> Result<i64, String> {
    let zone_at = text.find(['Z', 'z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = text.split_at(zone_at);
    let wrong = || format!("\"{text}\" is no time of day such as 120000 or 12:00:00");
    let digits: String = if clock.contains(':') {
        if clock.split(':').any(|part| part.len() != 2) {
            return Err(wrong());
        }
        clock.replace(':', "")
    } else {
        clock.into()
    };
    let number = |from: usize| digits.get(from..from + 2).and_then(parse_digits);
    let (hour, minute, second) = match digits.len() {
        2 => (number(0), Some(0), Some(0)),
        4 => (number(0), number(2), Some(0)),
        6 => (number(0), number(2), number(4)),
        _ => return Err(wrong()),
    };
    let (Some(hour), Some(minute), Some(second)) = (hour, minute, second) else { return Err(wrong()) };
    let seconds = hour * 3_600 + minute * 60 + second;
    if minute > 59 || second > 59 || seconds > DAY_S {
        return Err(wrong());
    }
    Ok(seconds - parse_zone(zone)?)
}

/// Seconds east of Greenwich.
fn parse_zone(text: &str) -> Result<i64, String> {
    let wrong = || format!("\"{text}\" is no zone such as Z or +02:00");
    if text.is_empty() || text.eq_ignore_ascii_case("z") {
        return Ok(0);
    }
    let (sign, rest) = text.split_at(1);
    let digits = rest.replace(':', "");
    let (hours, minutes) = match (rest.len(), digits.len()) {
        (2, 2) => (parse_digits(&digits), Some(0)),
        (4, 4) | (5, 4) => (digits.get(..2).and_then(parse_digits), digits.get(2..).and_then(parse_digits)),
        _ => return Err(wrong()),
    };
    let (Some(hours @ 0..=14), Some(minutes @ 0..=59)) = (hours, minutes) else { return Err(wrong()) };
    let seconds = hours * 3_600 + minutes * 60;
    Ok(if sign == "-" { -seconds } else { seconds })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_way_to_write_a_moment() {
        let day = Day::from_date(2008, 4, 23).unwrap();
        for text in ["20080423", "2008-04-23"] {
            assert_eq!(parse_moment(text), Ok(Moment::Day(day)), "{text}");
        }
        let noon = Moment::At(day.start() + DAY_S / 2);
        for text in [
            "20080423T120000",
            "20080423T12",
            "20080423t1200z",
            "2008-04-23T12:00:00",
            "2008-04-23T12:00Z",
            "2008-04-23T14:00:00+02:00",
            "20080423T140000+0200",
            "20080423T143000+0230",
            "20080423T070000-05",
        ] {
            assert_eq!(parse_moment(text), Ok(noon), "{text}");
        }
        assert_eq!(parse_moment("20080423T240000"), Ok(Moment::At(day.end())));
        assert_eq!(parse_moment("2h"), Ok(Moment::Ago(7_200)));
        assert_eq!(parse_moment("30D"), Ok(Moment::Ago(30 * DAY_S)));
        for text in [
            "",
            "2008",
            "20080432",
            "2008-4-23",
            "20080423T",
            "20080423T250000",
            "20080423T126000",
            "20080423T1",
            "20080423T12:0",
            "20080423T120000+2",
            "20080423T120000+0260",
            "h",
            "-2h",
            "1.5h",
            "99999999999999999999d",
            "19691231",
            "20080423+0200",
            "２０080423",
            "2008-04é3",
            "今今今",
            "20080423T12é",
        ] {
            assert!(parse_moment(text).is_err(), "{text}");
        }
    }
}
