//! The format of tree objects: entries of `<mode> <name>\0<20 bytes id>`, sorted as if names of directories ended in a slash.

use std::cmp::Ordering;

use crate::Oid;
use crate::reader::Mode;

/// An entry as it is stored; nothing about it is checked but that it could be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawEntry<'a> {
    pub(crate) mode: u32,
    pub(crate) name: &'a [u8],
    pub(crate) id: Oid,
    /// Git never writes a mode with a leading zero.
    pub(crate) mode_is_canonical: bool,
}

impl RawEntry<'_> {
    /// The mode, if it is one of ours.
    pub(crate) fn mode(&self) -> Option<Mode> {
        Mode::from_git(self.mode)
    }
}

/// The entries of a tree. `Err` once, then nothing more, where the bytes cannot be taken apart.
pub(crate) struct Entries<'a> {
    rest: &'a [u8],
}

/// A tree whose bytes cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) fn entries(tree: &[u8]) -> Entries<'_> {
    Entries { rest: tree }
}

impl Entries<'_> {
    /// How far in `tree`, the bytes that were given, the next entry begins.
    pub(crate) fn position_in(&self, tree: &[u8]) -> usize {
        tree.len() - self.rest.len()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<RawEntry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match take_entry(self.rest) {
            Some((entry, rest)) => {
                self.rest = rest;
                Some(Ok(entry))
            }
            None => {
                self.rest = &[];
                Some(Err(Malformed))
            }
        }
    }
}

fn take_entry(bytes: &[u8]) -> Option<(RawEntry<'_>, &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let mode = bytes[..space].iter().try_fold(0u32, |mode, byte| match byte {
        b'0'..=b'7' => Some(mode << 3 | u32::from(byte - b'0')),
        _ => None,
    })?;
    let rest = &bytes[space + 1..];
    let nul = rest.iter().position(|byte| *byte == 0)?;
    let id = Oid::from_slice(rest.get(nul + 1..nul + 21)?)?;
    let mode_is_canonical = space > 0 && bytes[0] != b'0';
    Some((RawEntry { mode, name: &rest[..nul], id, mode_is_canonical }, &rest[nul + 21..]))
}

/// Appends an entry.
pub(crate) fn push_entry(out: &mut Vec<u8>, mode: Mode, name: &[u8], id: Oid) {
    // Directories are 40000 here, without the zero with which git shows them.
    out.extend_from_slice(match mode {
        Mode::File => b"100644 ",
        Mode::Exec => b"100755 ",
        Mode::Symlink => b"120000 ",
        Mode::Dir => b"40000 ",
        Mode::Submodule => b"160000 ",
    });
    out.extend_from_slice(name);
    out.push(0);
    out.extend_from_slice(id.as_bytes());
}

/// The order of entries in a tree.
pub(crate) fn order(a: &[u8], a_is_dir: bool, b: &[u8], b_is_dir: bool) -> Ordering {
    let common = a.len().min(b.len());
    a[..common].cmp(&b[..common]).then_with(|| {
        let end = |name: &[u8], is_dir: bool| name.get(common).copied().unwrap_or(if is_dir { b'/' } else { 0 });
        end(a, a_is_dir).cmp(&end(b, b_is_dir)).then(a.len().cmp(&b.len()))
    })
}
