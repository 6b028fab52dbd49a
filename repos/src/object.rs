//! The text of commits and tags.
//!
//! Reading is forgiving, because history may have come from anywhere: a time that is no number is 0, a name that is not
//! UTF-8 is replaced. Writing is strict: what would break the format is left out.

use crate::reader::{CommitInfo, ObjectKind, Signature};
use crate::{NewCommit, Oid};

/// What walking history needs of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) tree: Oid,
    pub(crate) parents: Vec<Oid>,
    /// The committer's time.
    pub(crate) time_s: i64,
}

pub(crate) fn links(data: &[u8]) -> Option<Links> {
    let (tree, parents, rest) = tree_and_parents(data)?;
    let committer = header(rest, b"committer ").unwrap_or_default();
    Some(Links { tree, parents, time_s: time_of(committer).0 })
}

pub(crate) fn commit_info(id: Oid, data: &[u8]) -> Option<CommitInfo> {
    let (tree, parents, rest) = tree_and_parents(data)?;
    let author = signature(header(rest, b"author ").unwrap_or_default());
    let committer = signature(header(rest, b"committer ").unwrap_or_default());
    let message = data.windows(2).position(|two| two == b"\n\n").map_or(&b""[..], |at| &data[at + 2..]);
    Some(CommitInfo { id, tree, parents, author, committer, message: String::from_utf8_lossy(message).into_owned() })
}

fn tree_and_parents(data: &[u8]) -> Option<(Oid, Vec<Oid>, &[u8])> {
    let (tree, mut rest) = id_line(data, b"tree ")?;
    let mut parents = Vec::new();
    while let Some((parent, after)) = id_line(rest, b"parent ") {
        parents.push(parent);
        rest = after;
    }
    Some((tree, parents, rest))
}

fn id_line<'a>(data: &'a [u8], name: &[u8]) -> Option<(Oid, &'a [u8])> {
    let rest = data.strip_prefix(name)?;
    let id = std::str::from_utf8(rest.get(..40)?).ok()?.parse().ok()?;
    Some((id, rest[40..].strip_prefix(b"\n")?))
}

/// The value of a header line; the headers end at the first empty line.
fn header<'a>(data: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    data.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(name))
}

fn signature(line: &[u8]) -> Signature {
    let (time_s, offset_min) = time_of(line);
    let open = line.iter().position(|byte| *byte == b'<').unwrap_or(line.len());
    let close = line.iter().rposition(|byte| *byte == b'>').unwrap_or(line.len());
    let email = line.get(open + 1..close).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Signature { name: text(&line[..open]), email: text(email), time_s, offset_min }
}

/// Seconds and time zone from the end of a signature.
fn time_of(line: &[u8]) -> (i64, i32) {
    let after = line.iter().rposition(|byte| *byte == b'>').map_or(&b""[..], |at| &line[at + 1..]);
    let mut words = std::str::from_utf8(after).unwrap_or_default().split_whitespace();
    let time_s = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let zone: i32 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let minutes = zone.abs() / 100 * 60 + zone.abs() % 100;
    (time_s, if zone < 0 { -minutes } else { minutes })
}

/// What a tag names, and as which kind.
pub(crate) fn tag_target(data: &[u8]) -> Option<(Oid, ObjectKind)> {
    let (id, rest) = id_line(data, b"object ")?;
    let line = rest.split(|byte| *byte == b'\n').next()?;
    let kind = match line.strip_prefix(b"type ")? {
        b"commit" => ObjectKind::Commit,
        b"tree" => ObjectKind::Tree,
        b"blob" => ObjectKind::Blob,
        b"tag" => ObjectKind::Tag,
        _ => return None,
    };
    Some((id, kind))
}

/// The bytes of a new commit.
pub(crate) fn write_commit(commit: &NewCommit) -> Vec<u8> {
    let mut out = format!("tree {}\n", commit.tree);
    for parent in &commit.parents {
        out.push_str(&format!("parent {parent}\n"));
    }
    out.push_str(&format!("author {}\n", signature_text(&commit.author)));
    out.push_str(&format!("committer {}\n\n", signature_text(&commit.committer)));
    out.extend(commit.message.chars().filter(|c| *c != '\0'));
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out.into_bytes()
}

fn signature_text(signature: &Signature) -> String {
    let name = clean(&signature.name);
    let name = if name.is_empty() { "unknown" } else { name.as_str() };
    let minutes = signature.offset_min.clamp(-14 * 60, 14 * 60);
    let zone = minutes.abs() / 60 * 100 + minutes.abs() % 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{name} <{}> {} {sign}{zone:04}", clean(&signature.email), signature.time_s.max(0))
}

/// Without what would end the field, nor what git trims at its ends.
fn clean(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_control() && !matches!(c, '<' | '>')).collect();
    kept.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | ',' | ':' | ';' | '"' | '\\' | '\'')).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn someone(name: &str, offset_min: i32) -> Signature {
        Signature { name: name.into(), email: "a@b".into(), time_s: 1_700_000_000, offset_min }
    }

    #[test]
    fn commits_survive_writing_and_reading() {
        let commit = NewCommit {
            tree: Oid::EMPTY_TREE,
            parents: vec![Oid::from_bytes([1; 20]), Oid::from_bytes([2; 20])],
            author: someone("Ann Ö", 90),
            committer: someone("Bob", -210),
            message: "Title\n\nBody\n".into(),
        };
        let info = commit_info(Oid::NULL, &write_commit(&commit)).unwrap();
        assert_eq!((info.tree, &info.parents), (commit.tree, &commit.parents));
        assert_eq!(
            (&info.author, &info.committer, &info.message),
            (&commit.author, &commit.committer, &commit.message)
        );
    }

    #[test]
    fn nobody_can_inject_a_header() {
        let mut commit = NewCommit {
            tree: Oid::EMPTY_TREE,
            parents: vec![],
            author: someone("x\nparent y <z>", 0),
            committer: someone("", 0),
            message: "m".into(),
        };
        commit.author.email = "e>\nx".into();
        let text = String::from_utf8(write_commit(&commit)).unwrap();
        assert_eq!(
            text.lines().filter(|line| line.starts_with("author") || line.starts_with("parent")).count(),
            1,
            "{text}"
        );
        assert_eq!(commit_info(Oid::NULL, text.as_bytes()).unwrap().committer.name, "unknown");
    }
}
