//! Bad data is kept aside, for whoever wants to know what happened, and bounded, because nobody may come.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The directory in the data directory.
const DIR: &str = "damaged";
/// So many incidents are kept …
const KEPT: usize = 4;
/// … and so many bytes, but for the newest one, which is kept in any case.
const KEPT_BYTES: u64 = 1 << 30;

/// A new directory for what is about to be moved away; older ones go when there are too many.
pub(crate) fn place(data: &Path, what: &str) -> io::Result<PathBuf> {
    let dir = data.join(DIR);
    // What lies there is as secret as what it was.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let mut kept = incidents(&dir)?;
    let number = kept.last().map_or(0, |(number, _)| *number) + 1;
    let new = dir.join(format!("{number:06}-{what}"));
    fs::create_dir(&new)?;
    kept.reverse();
    let mut bytes = 0;
    for (at, (_, path)) in kept.iter().enumerate() {
        bytes += size(path);
        if at + 2 > KEPT || (at > 0 && bytes > KEPT_BYTES) {
            tracing::info!(path = %path.display(), "removed old damaged data");
            fs::remove_dir_all(path)?;
        }
    }
    Ok(new)
}

/// What is kept, by number.
fn incidents(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(number) = name.split('-').next().and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn size(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| size(&entry.path())).sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_newest_incidents_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=7 {
            let place = place(dir.path(), "state").unwrap();
            assert!(place.ends_with(format!("{number:06}-state")), "{place:?}");
            fs::write(place.join("state.redb"), b"x").unwrap();
        }
        let kept: Vec<u64> = incidents(&dir.path().join(DIR)).unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(kept, [4, 5, 6, 7]);
    }
}
