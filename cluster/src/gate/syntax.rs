//! Every changed file must be what its extension says: TOML, JSON or YAML.

use saphyr_parser::{Parser, ScanError};

use super::{ChangeKind, FilesError, Finding, Gathered, Proposal};
use crate::documents::files::MAX_DOCUMENT_BYTES;
use crate::documents::parse::{Lines, text_of};
use crate::documents::{Document, Findings, Position};

pub(super) fn check(proposal: &Proposal<'_>, gathered: &mut Gathered) -> Result<(), FilesError> {
    for (repo, proposed) in &proposal.repos {
        for change in &proposed.changes {
            let ChangeKind::File { size } = change.kind else { continue };
            // What nobody could name in a document has no syntax to keep to.
            let Ok(path) = std::str::from_utf8(&change.path) else { continue };
            if Language::of(path).is_none() || is_giant(size) {
                continue;
            }
            let Some(data) = proposed.files.read(path)? else { continue };
            for finding in check_syntax(path, &data) {
                gathered.add(Finding { repo: repo.clone(), ..finding });
            }
        }
    }
    Ok(())
}

/// Data files of this size are somebody's lists, not configuration; parsing them would hold up everybody else's commits.
/// Documents of ours are never that long.
fn is_giant(size: Option<u64>) -> bool {
    size.is_some_and(|size| size > MAX_DOCUMENT_BYTES)
}

enum Language {
    Toml,
    Json,
    Yaml,
}

impl Language {
    fn of(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let (stem, extension) = name.rsplit_once('.')?;
        match extension {
            _ if stem.is_empty() => None,
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// What is wrong with the syntax of a file, judged by its name's extension; nothing for files of other kinds. The findings
/// name the file as given here.
pub fn check_syntax(path: &str, data: &[u8]) -> Findings {
    let checked = match Language::of(path) {
        None => Ok(()),
        Some(Language::Toml) => Document::parse(path, data).map(|_| ()),
        Some(Language::Json) => text_of(path, data).and_then(|text| check_json(path, text)),
        Some(Language::Yaml) => text_of(path, data).and_then(|text| check_yaml(path, text)),
    };
    checked.err().unwrap_or_default()
}

fn check_json(path: &str, text: &str) -> Result<(), Findings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_json_depth(path, text)?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map(|_| ()).map_err(|error| {
        let at = Position { line: error.line().max(1) as u32, column: column_of(text, error.line(), error.column()) };
        // The parser appends the place, which the finding has already.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Finding::at(path, at, message).into()
    })
}

/// serde_json counts bytes, and points behind the last byte it took.
fn column_of(text: &str, line: usize, bytes: usize) -> u32 {
    let line = text.split('\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let before = line.as_bytes().get(..bytes.saturating_sub(1)).unwrap_or(line.as_bytes());
    let characters = before.iter().filter(|byte| *byte & 0xc0 != 0x80).count();
    u32::try_from(characters + 1).unwrap_or(u32::MAX)
}

/// Deeper nesting than this is an attack on whoever reads it.
const MAX_DEPTH: usize = 128;

/// The parser that checks JSON recurses into nothing; those that read the file later do.
fn check_json_depth(path: &str, text: &str) -> Result<(), Findings> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(Finding::at(path, Lines::new(text).position(offset), too_deep()).into());
        }
    }
    Ok(())
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

fn check_yaml(path: &str, text: &str) -> Result<(), Findings> {
    use saphyr_parser::Event;
    let mut depth = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Findings::from(yaml_finding(path, &error)))?;
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let at = position(span.start.line(), span.start.col());
            return Err(Finding::at(path, at, too_deep()).into());
        }
    }
    Ok(())
}

fn yaml_finding(path: &str, error: &ScanError) -> Finding {
    let marker = error.marker();
    Finding::at(path, position(marker.line(), marker.col()), error.info().to_owned())
}

/// saphyr counts lines from 1 and columns from 0.
fn position(line: usize, column: usize) -> Position {
    Position {
        line: u32::try_from(line.max(1)).unwrap_or(u32::MAX),
        column: u32::try_from(column + 1).unwrap_or(u32::MAX),
    }
}
