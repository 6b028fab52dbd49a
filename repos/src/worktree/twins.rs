//! What both trees have in common, worked out while nobody waits.
//!
//! Nearly every update changes a few files of thousands. Finding that out anew (plan, steps, manifest, git's index) costs a few
//! passes over everything, in the way of the update. So a resident program compares the two trees in its idle moments
//! ([`Inner::tend`]), and the next update is worked out for the paths alone in which the trees or the commits differ.
//!
//! # Why it can be believed
//! What was found is bound to the very manifests that it was found from, by identity: whoever learns anything about a tree puts
//! another manifest into the cache, and then everything is compared as before. It covers only the plainest case (in both trees the same
//! paths; where they differ, unchanged tracked files; nothing staged); everything else goes the general way as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::Result;
use super::inner::Inner;
use super::journal::{self, Seen};
use super::manifest::{DirMeta, Entry, Held, Leaf, Manifest, PathKey};
use super::patch::is_kept;
use super::survey::Survey;
use super::tree::Tree;

/// What a manifest says about the files, as something that has an identity.
struct Known {
    entries: Arc<Vec<Entry>>,
    dirs: Arc<Vec<(PathKey, DirMeta)>>,
}

impl Known {
    fn of(manifest: &Manifest) -> Known {
        Known { entries: Arc::clone(&manifest.entries), dirs: Arc::clone(&manifest.dirs) }
    }

    fn is_of(&self, manifest: &Manifest) -> bool {
        Arc::ptr_eq(&self.entries, &manifest.entries) && Arc::ptr_eq(&self.dirs, &manifest.dirs)
    }
}

/// One mount's part of the two trees.
pub(crate) struct Twin {
    live: Known,
    spare: Known,
    pub common: Common,
}

/// The result of the comparison.
pub(crate) struct Common {
    /// Where the trees differ, sorted: in both an unchanged tracked file.
    differ: Vec<PathKey>,
    /// What the live tree has where it differs from upstream.
    pub seen: Vec<Seen>,
    /// Every tracked file of the second tree is what upstream has.
    pub spare_is_clean: bool,
}

/// A tracked file, unchanged.
fn is_plain(entry: &Entry) -> bool {
    entry.base.is_some() && entry.held.as_ref().and_then(Held::leaf) == entry.base
}

impl Twin {
    /// `None` if the trees differ in more than contents.
    pub(crate) fn of(live: &Manifest, spare: &Manifest) -> Option<Twin> {
        let same_dirs = live.dirs.len() == spare.dirs.len()
            && live.dirs.iter().zip(spare.dirs.iter()).all(|(l, s)| l.0 == s.0 && l.1.is_like(&s.1));
        if !same_dirs || live.entries.len() != spare.entries.len() {
            return None;
        }
        let mut differ = Vec::new();
        let mut spare_is_clean = spare.staged.is_empty();
        for (l, s) in live.entries.iter().zip(spare.entries.iter()) {
            // Nearly always the same allocation.
            if !Arc::ptr_eq(&l.path, &s.path) && l.path != s.path {
                return None;
            }
            spare_is_clean &= s.base.is_none() || is_plain(s);
            if l.base == s.base && is_kept(l, s) {
                continue;
            }
            if !is_plain(l) || !is_plain(s) {
                return None;
            }
            differ.push(PathKey::clone(&l.path));
        }
        let common = Common { differ, seen: journal::seen(live), spare_is_clean };
        Some(Twin { live: Known::of(live), spare: Known::of(spare), common })
    }

    fn fits(&self, live: &Manifest, spare: &Manifest) -> bool {
        self.live.is_of(live) && self.spare.is_of(spare)
    }
}

impl Common {
    /// The paths that an update is about which brings `upstream`; `None` if it does more than change contents of unchanged files.
    pub(crate) fn concerned(
        &self,
        live: &Manifest,
        upstream: &BTreeMap<PathKey, Option<Leaf>>,
    ) -> Option<Vec<PathKey>> {
        let changes_content =
            |(path, leaf): (&PathKey, &Option<Leaf>)| leaf.is_some() && live.get(path).is_some_and(is_plain);
        if !live.staged.is_empty() || !upstream.iter().all(changes_content) {
            return None;
        }
        let mut paths: Vec<PathKey> = self.differ.iter().chain(upstream.keys()).cloned().collect();
        paths.sort();
        paths.dedup();
        Some(paths)
    }
}

/// The second tree, and what it has in common with the live one, mount by mount.
pub(crate) struct Ready {
    pub tree: Tree,
    pub spare: Vec<Manifest>,
    pub common: Vec<Common>,
}

impl Inner {
    /// Compares the two trees as they are remembered. For when nobody waits.
    pub(crate) fn compare_trees(&self) {
        let (live, spare) = {
            let cache = self.cache();
            let (Some(live), Some(spare)) = (&cache.live, &cache.spare) else { return };
            (live.manifests.clone(), spare.manifests.clone())
        };
        let twins = live.iter().zip(&spare).map(|(live, spare)| Twin::of(live, spare)).collect();
        self.cache().twins = twins;
    }

    /// The second tree, if what was found out about it and the live one still holds. It is taken out of the cache: the update that
    /// asks changes it.
    pub(crate) fn ready(&self, survey: &Survey) -> Result<Option<Ready>> {
        let (twins, spare) = {
            let mut cache = self.cache();
            let (Some(twins), Some(spare)) = (cache.twins.take(), cache.spare.clone()) else { return Ok(None) };
            (twins, spare)
        };
        let manifests = survey.manifests.iter().zip(&spare.manifests);
        if twins.len() != survey.manifests.len() || !twins.iter().zip(manifests).all(|(t, (l, s))| t.fits(l, s)) {
            return Ok(None);
        }
        let Ok(tree) = Tree::open(&self.spare_path(), self.mounts()) else { return Ok(None) };
        if tree.id()?.as_ref() != Some(&spare.id) || !super::survey::fits(&spare.manifests, &self.states(&tree)?) {
            return Ok(None);
        }
        let common = twins.into_iter().map(|twin| twin.common).collect();
        Ok(Some(Ready { tree, spare: spare.manifests, common }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fsx::Sig;
    use super::*;
    use crate::{Mode, Oid};

    fn leaf(content: u8) -> Leaf {
        Leaf { mode: Mode::File, oid: Oid::from_bytes([content; 20]) }
    }

    /// What upstream has at a path, and what a tree has; each tree has inodes of its own.
    type File<'a> = (&'a str, Option<u8>, Option<u8>);

    fn manifest(tree: u64, files: &[File<'_>]) -> Manifest {
        let entry = |(i, (path, base, held)): (usize, &File<'_>)| {
            let sig = Sig { mode: 0o100644, ino: tree + i as u64, ..Sig::default() };
            let held = held.map(|n| Held { sig, oid: Some(leaf(n).oid), shared: false });
            Entry { path: path.as_bytes().into(), base: base.map(leaf), held }
        };
        Manifest { entries: Arc::new(files.iter().enumerate().map(entry).collect()), ..Manifest::default() }
    }

    fn twin(live: &[File<'_>], spare: &[File<'_>]) -> Option<Twin> {
        Twin::of(&manifest(100, live), &manifest(200, spare))
    }

    const SAME: File<'_> = ("same", Some(1), Some(1));

    #[test]
    fn only_contents_of_unchanged_files_may_differ() {
        let common = twin(&[("a", Some(2), Some(2)), SAME], &[("a", Some(1), Some(1)), SAME]).unwrap().common;
        assert_eq!((common.differ, common.spare_is_clean, common.seen.len()), (vec![b"a"[..].into()], true, 0));
        for (what, live, spare) in [
            ("a path more", [SAME, ("z", Some(1), Some(1))], [SAME, ("y", Some(1), Some(1))]),
            ("an edit that the second tree has not", [("a", Some(1), Some(2)), SAME], [("a", Some(1), Some(1)), SAME]),
            ("an edit that only the second tree has", [("a", Some(1), Some(1)), SAME], [("a", Some(1), Some(2)), SAME]),
            ("gone", [("a", Some(1), None), SAME], [("a", Some(1), Some(1)), SAME]),
            ("unversioned, with two inodes", [("a", None, Some(1)), SAME], [("a", None, Some(1)), SAME]),
        ] {
            assert!(twin(&live, &spare).is_none(), "{what}");
        }
        assert!(twin(&[SAME], &[]).is_none());
        let edited = [("a", Some(1), Some(2)), SAME];
        let common = twin(&edited, &edited).unwrap().common;
        assert_eq!((common.differ.len(), common.spare_is_clean, common.seen.len()), (0, false, 1));
    }

    #[test]
    fn an_update_of_anything_else_goes_the_general_way() {
        let live = [("a", Some(2), Some(2)), ("edited", Some(1), Some(3)), SAME];
        let spare = [("a", Some(1), Some(1)), ("edited", Some(1), Some(3)), SAME];
        let common = twin(&live, &spare).unwrap().common;
        let live = manifest(100, &live);
        let concerned = |path: &str, content: Option<u8>| {
            common.concerned(&live, &BTreeMap::from([(path.as_bytes().into(), content.map(leaf))]))
        };
        assert_eq!(concerned("same", Some(4)).unwrap(), [b"a"[..].into(), b"same"[..].into()]);
        assert_eq!(concerned("a", Some(4)).unwrap(), [b"a"[..].into()]);
        assert_eq!(concerned("a", None), None);
        assert_eq!(concerned("new", Some(4)), None);
        assert_eq!(concerned("edited", Some(4)), None);
    }

    #[test]
    fn whoever_learns_something_ends_it() {
        let (mut live, spare) = (manifest(100, &[SAME]), manifest(200, &[SAME]));
        let twin = Twin::of(&live, &spare).unwrap();
        assert!(twin.fits(&live.clone(), &spare.clone()));
        live.patch(vec![Entry { path: SAME.0.as_bytes().into(), base: Some(leaf(1)), held: None }]);
        assert!(!twin.fits(&live, &spare));
    }
}
