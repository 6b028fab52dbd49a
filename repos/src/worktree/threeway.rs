//! The three-way merge of one file.
//!
//! `base` is what upstream had, `ours` what the tree has, `theirs` what upstream has now. Text is merged by lines
//! with the histogram algorithm; everything else is taken whole or is a conflict. Renames are not followed.

use gix::merge::blob::Resolution;
use gix::merge::blob::builtin_driver::text::{Conflict, ConflictStyle, Labels, Options};

use super::error::Result;
use super::manifest::Leaf;
use super::types::OnOverlap;
use crate::Oid;

/// What the merge came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ours,
    Theirs,
    /// Neither side's content.
    Content(crate::Mode, Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merged {
    pub outcome: Outcome,
    /// Both sides touched the same thing: what happened, in git's words. Under `Refuse` the outcome means nothing.
    pub conflict: Option<&'static str>,
}

/// Where contents come from.
pub(crate) trait Contents {
    fn content(&self, oid: Oid) -> Result<Vec<u8>>;
}

pub(crate) type Side = Option<Leaf>;

/// Merges one path.
pub(crate) fn merge(base: Side, ours: Side, theirs: Side, how: OnOverlap, contents: &dyn Contents) -> Result<Merged> {
    let clean = |outcome| Ok(Merged { outcome, conflict: None });
    if theirs == base || ours == theirs {
        return clean(Outcome::Ours);
    }
    if ours == base {
        return clean(Outcome::Theirs);
    }
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours.mode.is_file() && theirs.mode.is_file() => {
            files(base, ours, theirs, how, contents)
        }
        (None, _) => Ok(whole(how, "deleted by us", Outcome::Theirs)),
        (_, None) => Ok(whole(how, "deleted by them", Outcome::Ours)),
        _ => Ok(whole(how, if base.is_none() { "both added" } else { "both modified" }, Outcome::Ours)),
    }
}

/// A conflict where one side has to be taken as it is.
pub(crate) fn whole(how: OnOverlap, what: &'static str, manual: Outcome) -> Merged {
    let outcome = match how {
        OnOverlap::Refuse | OnOverlap::Manual => manual,
        OnOverlap::Mine => Outcome::Ours,
        OnOverlap::Theirs => Outcome::Theirs,
    };
    Merged { outcome, conflict: Some(what) }
}

fn files(base: Side, ours: Leaf, theirs: Leaf, how: OnOverlap, contents: &dyn Contents) -> Result<Merged> {
    let what = if base.is_none() { "both added" } else { "both modified" };
    let base_file = base.filter(|leaf| leaf.mode.is_file());
    // There are two modes: if both sides changed it, they agree. Without a base, executable wins.
    let mode = match base_file {
        Some(base) if ours.mode == base.mode => theirs.mode,
        Some(_) => ours.mode,
        None => ours.mode.max(theirs.mode),
    };
    if ours.oid == theirs.oid || base_file.is_some_and(|b| b.oid == theirs.oid) {
        return one_sided(Leaf { mode, ..ours }, ours, theirs, contents);
    }
    if base_file.is_some_and(|b| b.oid == ours.oid) {
        return one_sided(Leaf { mode, ..theirs }, ours, theirs, contents);
    }
    let base_data = base_file.map(|leaf| contents.content(leaf.oid)).transpose()?.unwrap_or_default();
    let (our_data, their_data) = (contents.content(ours.oid)?, contents.content(theirs.oid)?);
    if [&base_data, &our_data, &their_data].into_iter().any(|data| is_binary(data)) {
        return Ok(whole(how, what, Outcome::Ours));
    }
    let (data, conflicted) = text(&base_data, &our_data, &their_data, how);
    Ok(Merged { outcome: Outcome::Content(mode, data), conflict: conflicted.then_some(what) })
}

/// The content is one side's; the mode may come from the other.
fn one_sided(result: Leaf, ours: Leaf, theirs: Leaf, contents: &dyn Contents) -> Result<Merged> {
    let outcome = if result == ours {
        Outcome::Ours
    } else if result == theirs {
        Outcome::Theirs
    } else {
        Outcome::Content(result.mode, contents.content(result.oid)?)
    };
    Ok(Merged { outcome, conflict: None })
}

fn text(base: &[u8], ours: &[u8], theirs: &[u8], how: OnOverlap) -> (Vec<u8>, bool) {
    let conflict = match how {
        OnOverlap::Refuse | OnOverlap::Manual => Conflict::Keep {
            style: ConflictStyle::Merge,
            marker_size: std::num::NonZeroU8::new(Conflict::DEFAULT_MARKER_SIZE).unwrap_or(std::num::NonZeroU8::MIN),
        },
        OnOverlap::Mine => Conflict::ResolveWithOurs,
        OnOverlap::Theirs => Conflict::ResolveWithTheirs,
    };
    let options = Options { diff_algorithm: gix::diff::blob::Algorithm::Histogram, conflict };
    let labels =
        Labels { ancestor: Some("base".into()), current: Some("local".into()), other: Some("upstream".into()) };
    let mut out = Vec::new();
    let mut input = gix::diff::blob::InternedInput::new(&b""[..], &b""[..]);
    let resolution = gix::merge::blob::builtin_driver::text(&mut out, &mut input, labels, ours, base, theirs, options);
    (out, resolution != Resolution::Complete)
}

/// Git's rule: a NUL byte near the beginning.
pub(crate) fn is_binary(data: &[u8]) -> bool {
    data[..data.len().min(8000)].contains(&0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::objects::blob_oid;
    use super::*;
    use crate::Mode;

    struct Table(std::cell::RefCell<std::collections::HashMap<Oid, Vec<u8>>>);

    impl Contents for Table {
        fn content(&self, oid: Oid) -> Result<Vec<u8>> {
            Ok(self.0.borrow()[&oid].clone())
        }
    }

    impl Table {
        fn leaf(&self, mode: Mode, text: &str) -> Side {
            let oid = blob_oid(text.as_bytes());
            self.0.borrow_mut().insert(oid, text.as_bytes().to_vec());
            Some(Leaf { mode, oid })
        }
    }

    fn table() -> Table {
        Table(Default::default())
    }

    const BASE: &str = "1\n2\n3\n4\n5\n6\n7\n";

    #[test]
    fn separate_lines_merge() {
        let t = table();
        let [b, o, n] = [BASE, "ONE\n2\n3\n4\n5\n6\n7\n", "1\n2\n3\n4\n5\n6\nSEVEN\n"].map(|s| t.leaf(Mode::File, s));
        let merged = merge(b, o, n, OnOverlap::Refuse, &t).unwrap();
        assert_eq!(
            merged,
            Merged { outcome: Outcome::Content(Mode::File, b"ONE\n2\n3\n4\n5\n6\nSEVEN\n".to_vec()), conflict: None }
        );
    }

    #[test]
    fn same_line_conflicts_and_each_mode_decides() {
        let t = table();
        let [b, o, n] = [BASE, "ONE\n2\n3\n4\n5\n6\n7\n", "uno\n2\n3\n4\n5\n6\nSEVEN\n"].map(|s| t.leaf(Mode::File, s));
        let run = |how| merge(b, o, n, how, &t).unwrap();
        assert_eq!(run(OnOverlap::Refuse).conflict, Some("both modified"));
        let content = |how| match run(how).outcome {
            Outcome::Content(_, data) => String::from_utf8(data).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(content(OnOverlap::Mine), "ONE\n2\n3\n4\n5\n6\nSEVEN\n");
        assert_eq!(content(OnOverlap::Theirs), "uno\n2\n3\n4\n5\n6\nSEVEN\n");
        assert_eq!(
            content(OnOverlap::Manual),
            "<<<<<<< local\nONE\n=======\nuno\n>>>>>>> upstream\n2\n3\n4\n5\n6\nSEVEN\n"
        );
    }

    #[test]
    fn mode_and_content_are_independent() {
        let t = table();
        let (b, o, n) = (t.leaf(Mode::File, BASE), t.leaf(Mode::Exec, BASE), t.leaf(Mode::File, "new\n"));
        let merged = merge(b, o, n, OnOverlap::Refuse, &t).unwrap();
        assert_eq!(merged, Merged { outcome: Outcome::Content(Mode::Exec, b"new\n".to_vec()), conflict: None });
    }

    #[test]
    fn what_has_no_lines_is_taken_whole() {
        let t = table();
        let (b, gone, n) = (t.leaf(Mode::File, BASE), None, t.leaf(Mode::File, "new\n"));
        assert_eq!(
            merge(b, gone, n, OnOverlap::Mine, &t).unwrap(),
            Merged { outcome: Outcome::Ours, conflict: Some("deleted by us") }
        );
        assert_eq!(
            merge(b, n, gone, OnOverlap::Theirs, &t).unwrap(),
            Merged { outcome: Outcome::Theirs, conflict: Some("deleted by them") }
        );
        let (o, n) = (t.leaf(Mode::File, "a\0b"), t.leaf(Mode::File, "c\0d"));
        assert_eq!(
            merge(b, o, n, OnOverlap::Manual, &t).unwrap(),
            Merged { outcome: Outcome::Ours, conflict: Some("both modified") }
        );
        let link = t.leaf(Mode::Symlink, "target");
        assert_eq!(merge(b, link, n, OnOverlap::Theirs, &t).unwrap().outcome, Outcome::Theirs);
    }
}
