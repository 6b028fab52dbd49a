//! Paths with parts to be filled in, for the files of `logd.toml`.

use std::fmt;
use std::str::FromStr;

use super::values::{ValueError, string_value, wrong};
use crate::documents::place::shortened;

/// An absolute path with parts to be filled in: POSIX strftime (`%Y`, `%m`, …), `%{l}` log, `%{n}` node, `%{s}`
/// subcluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    pieces: Vec<PathPiece>,
}

/// A part of a path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPiece {
    /// As it stands.
    Text(String),
    /// A strftime conversion: its optional modifier (`E`, `O`) and its letter.
    Time(Option<char>, char),
    /// The log's name.
    Log,
    /// The node's name.
    Node,
    /// The subcluster's name.
    Subcluster,
}

/// The conversions of POSIX strftime that make sense in a path, and those with the modifiers `E` and `O`.
const CONVERSIONS: &str = "aAbBcCdDeFgGhHIjklmMpPrRsSTuUVwWxXyYzZ";
const E_CONVERSIONS: &str = "cCxXyY";
const O_CONVERSIONS: &str = "deHImMSuUVwWy";

impl PathPattern {
    /// The pieces, in order.
    pub fn pieces(&self) -> &[PathPiece] {
        &self.pieces
    }

    pub(super) fn usual_logfile() -> Self {
        "/var/log/eccluster/%Y/%m/%d/%{l}/%{s}/%{n}".parse().expect("a test parses it")
    }
}

impl FromStr for PathPattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const LONGEST: usize = 4_000;
        if !text.starts_with('/') {
            return Err(wrong(format!("\"{}\" is not an absolute path", shortened(text))));
        }
        if text.len() > LONGEST || text.contains(|c: char| c.is_control()) {
            return Err(wrong(format!("\"{}\" cannot be a path", shortened(text))));
        }
        if text.split('/').any(|part| part == "..") {
            return Err(wrong(format!("\"{}\" goes up with \"..\"", shortened(text))));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            push_text(&mut pieces, &rest[..at]);
            let (piece, after) = conversion(&rest[at + 1..], text)?;
            match piece {
                PathPiece::Text(text) => push_text(&mut pieces, &text),
                piece => pieces.push(piece),
            }
            rest = after;
        }
        push_text(&mut pieces, rest);
        Ok(Self { pieces })
    }
}

fn push_text(pieces: &mut Vec<PathPiece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(PathPiece::Text(before)) => before.push_str(text),
        _ => pieces.push(PathPiece::Text(text.to_owned())),
    }
}

/// What follows a percent sign, and the rest behind it.
fn conversion<'a>(rest: &'a str, whole: &str) -> Result<(PathPiece, &'a str), ValueError> {
    let unknown = |what: &str| {
        wrong(format!(
            "\"{}\" contains %{what}, which is not known: strftime conversions, %{{l}} log, %{{n}} node, %{{s}} subcluster",
            shortened(whole)
        ))
    };
    let mut chars = rest.chars();
    let first = chars
        .next()
        .ok_or_else(|| wrong(format!("\"{}\" ends with a single %; write %% for the character", shortened(whole))))?;
    match first {
        '%' => Ok((PathPiece::Text("%".into()), chars.as_str())),
        '{' => {
            let end =
                rest.find('}').ok_or_else(|| wrong(format!("\"{}\" contains %{{ without }}", shortened(whole))))?;
            let piece = match &rest[1..end] {
                "l" => PathPiece::Log,
                "n" => PathPiece::Node,
                "s" => PathPiece::Subcluster,
                other => return Err(unknown(&format!("{{{}}}", shortened(other)))),
            };
            Ok((piece, &rest[end + 1..]))
        }
        'n' => Err(wrong(format!("\"{}\" contains %n, a line break; the node's name is %{{n}}", shortened(whole)))),
        't' => Err(wrong(format!("\"{}\" contains %t, a tabulator", shortened(whole)))),
        modifier @ ('E' | 'O') => {
            let letters = if modifier == 'E' { E_CONVERSIONS } else { O_CONVERSIONS };
            match chars.next().filter(|letter| letters.contains(*letter)) {
                Some(letter) => Ok((PathPiece::Time(Some(modifier), letter), chars.as_str())),
                None => Err(unknown(&modifier.to_string())),
            }
        }
        letter if CONVERSIONS.contains(letter) => Ok((PathPiece::Time(None, letter), chars.as_str())),
        other => Err(unknown(&other.to_string())),
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                PathPiece::Text(text) => f.write_str(&text.replace('%', "%%"))?,
                PathPiece::Time(Some(modifier), letter) => write!(f, "%{modifier}{letter}")?,
                PathPiece::Time(None, letter) => write!(f, "%{letter}")?,
                PathPiece::Log => f.write_str("%{l}")?,
                PathPiece::Node => f.write_str("%{n}")?,
                PathPiece::Subcluster => f.write_str("%{s}")?,
            }
        }
        Ok(())
    }
}

string_value!(PathPattern, "an absolute path");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn path_patterns() {
        let usual = PathPattern::usual_logfile();
        assert_eq!(usual.to_string(), "/var/log/eccluster/%Y/%m/%d/%{l}/%{s}/%{n}");
        assert_eq!(usual.pieces().len(), 12);
        assert_eq!("/a/100%%/%Ey%Od".parse::<PathPattern>().unwrap().to_string(), "/a/100%%/%Ey%Od");
        for (text, expected) in [
            ("/a/%n", "%{n}"),
            ("/a/%", "single %"),
            ("/a/%{x}", "%{x}"),
            ("/a/%{l", "without }"),
            ("/a/%Q", "%Q"),
            ("/a/%EQ", "%E"),
            ("/a/../b", "goes up"),
            ("a", "absolute"),
        ] {
            let message = text.parse::<PathPattern>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
