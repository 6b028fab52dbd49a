//! Finished files: compressed, and removed when they are old.
//!
//! It looks at the files that the pattern can have made and at nothing else. A file is finished when its name is not the one for now, nor for a while
//! ago, and the writer does not need it. Whatever a kill leaves is done again by the next look.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cluster::documents::schema::logd::{Compression, PathPattern};
use tokio_util::sync::CancellationToken;

use super::files::{COMPRESSED, Claims, LATE, with_ending};
use super::times;
use crate::path::{Names, as_regex, has_time, now_us, render, root};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60);
/// How long after its period a file is left open for lines that are late.
const GRACE: Duration = Duration::from_secs(600);
/// Deeper than any sensible pattern; a loop of mounts ends here.
const MAX_DEPTH: usize = 32;

/// What is to be done with finished files.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The files' names.
    pub pattern: PathPattern,
    /// How they are compressed.
    pub compress: Compression,
    /// How long they are kept.
    pub retention: Option<Duration>,
    /// Permissions of files.
    pub file_mode: u32,
}

/// Looks again and again, until `stop`.
pub async fn run(rules: tokio::sync::watch::Receiver<Rules>, claims: Claims, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let (rules, claims, stop) = (rules.borrow().clone(), claims.clone(), stop.clone());
        let _ = tokio::task::spawn_blocking(move || look(&rules, &claims, now_us(), &stop)).await;
    }
}

/// A file that the pattern can have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Without the endings of finished and late files.
    pub plain: PathBuf,
    /// What the path says of its origin; empty where it says nothing.
    pub names: Names,
    /// Its ending, `.gz` or `.zst`, where it is compressed.
    pub compressed: Option<&'static str>,
}

/// Every file that a pattern can have made, in order of their paths.
pub fn find(pattern: &PathPattern) -> Vec<Found> {
    let Some(regex) = as_regex(pattern) else { return Vec::new() };
    let mut found = Vec::new();
    walk(&root(pattern), 0, &mut |path| {
        let Some(text) = path.to_str() else { return };
        let compressed = COMPRESSED.into_iter().find(|ending| text.ends_with(ending));
        let plain = compressed.and_then(|ending| text.strip_suffix(ending)).unwrap_or(text);
        let plain = plain.strip_suffix(LATE).unwrap_or(plain);
        let Some(captures) = regex.captures(plain) else { return };
        let group = |name: &str| captures.name(name).map(|found| found.as_str().to_owned()).unwrap_or_default();
        let names = Names { log: group("l"), node: group("n"), subcluster: group("s") };
        found.push(Found { path: path.into(), plain: plain.into(), names, compressed });
    });
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(dir: &Path, depth: usize, each: &mut impl FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => walk(&entry.path(), depth + 1, each),
            Ok(kind) if kind.is_file() && !hidden => each(&entry.path()),
            _ => {}
        }
    }
}

/// One look. `now_us` is a parameter for tests.
pub fn look(rules: &Rules, claims: &Claims, now_us: u64, stop: &CancellationToken) {
    if !has_time(&rules.pattern) {
        return;
    }
    let before_us = now_us.saturating_sub(u64::try_from(GRACE.as_micros()).unwrap_or(u64::MAX));
    for found in find(&rules.pattern) {
        if stop.is_cancelled() {
            return;
        }
        let current =
            [now_us, before_us].iter().any(|time_us| render(&rules.pattern, &found.names, *time_us) == found.plain);
        if current || !claims.take_to_finish(&found.path) {
            continue;
        }
        let result = treat(rules, &found, now_us);
        claims.finished(&found.path);
        if let Err(error) = result {
            tracing::error!(path = %found.path.display(), %error, "a finished file");
        }
    }
}

fn treat(rules: &Rules, found: &Found, now_us: u64) -> io::Result<()> {
    let modified = std::fs::metadata(&found.path)?.modified()?;
    let age = (SystemTime::UNIX_EPOCH + Duration::from_micros(now_us)).duration_since(modified).unwrap_or_default();
    if rules.retention.is_some_and(|retention| age >= retention) {
        tracing::info!(path = %found.path.display(), "removed for its age");
        std::fs::remove_file(&found.path)?;
        if found.path == found.plain || found.compressed.is_some() {
            let _ = std::fs::remove_file(times::path_of(&found.plain));
        }
        return Ok(());
    }
    let ending = match rules.compress {
        Compression::None => return Ok(()),
        Compression::Gzip => ".gz",
        Compression::Zstd => ".zst",
    };
    // Late lines are few, and more may come.
    if found.compressed.is_some() || found.path != found.plain || age < GRACE {
        return Ok(());
    }
    compress(&found.path, ending, rules.file_mode)
}

/// Puts the compressed file in the place of the plain one; at every instant one of them is whole.
fn compress(path: &Path, ending: &str, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let target = with_ending(path, ending);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let mut input = File::open(path)?;
    let output = File::create(&temporary)?;
    output.set_permissions(std::fs::Permissions::from_mode(mode))?;
    let mut output = io::BufWriter::with_capacity(256 << 10, output);
    if ending == ".gz" {
        let mut encoder = flate2::write::GzEncoder::new(&mut output, flate2::Compression::default());
        io::copy(&mut input, &mut encoder)?;
        encoder.finish()?;
    } else {
        zstd::stream::copy_encode(&mut input, &mut output, 3)?;
    }
    output.flush()?;
    let modified = input.metadata()?.modified()?;
    let output = output.into_inner()?;
    // Its age is that of its lines.
    output.set_modified(modified)?;
    output.sync_all()?;
    std::fs::rename(&temporary, &target)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()?;
    std::fs::remove_file(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rules(dir: &Path, compress: Compression, retention: Option<Duration>) -> Rules {
        let pattern = format!("{}/%Y/%{{l}}.%{{n}}", dir.display()).parse().unwrap();
        Rules { pattern, compress, retention, file_mode: 0o640 }
    }

    #[test]
    fn finished_files_are_compressed_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let now = now_us();
        let year = crate::path::render(&"/%Y".parse().unwrap(), &Names::default(), now);
        let current = format!("{}/main.n1", year.strip_prefix("/").unwrap().display());
        for name in ["1999/main.n1", "1999/main.n2", &current, "1999/other", "1999/main.n3.late"] {
            std::fs::create_dir_all(place(name).parent().unwrap()).unwrap();
            std::fs::write(place(name), "line\n").unwrap();
            let file = File::options().write(true).open(place(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
        }
        let (claims, stop) = (Claims::default(), CancellationToken::new());
        assert!(claims.take_to_write(&place("1999/main.n2")));
        for (compress, ending) in [(Compression::Gzip, "gz"), (Compression::Zstd, "zst")] {
            look(&rules(dir.path(), compress, None), &claims, now, &stop);
            let done = place(&format!("1999/main.n1.{ending}"));
            assert!(done.exists() && !place("1999/main.n1").exists());
            let text = crate::read::open(&done).unwrap();
            assert_eq!(io::read_to_string(text).unwrap(), "line\n");
            std::fs::write(place("1999/main.n1"), "line\n").unwrap();
            let file = File::options().write(true).open(place("1999/main.n1")).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
            std::fs::remove_file(&done).unwrap();
        }
        for kept in ["1999/main.n2", &current, "1999/other", "1999/main.n3.late"] {
            assert!(place(kept).exists(), "{kept}");
        }
        look(&rules(dir.path(), Compression::None, Some(Duration::from_secs(3600))), &claims, now, &stop);
        for (name, there) in [("1999/main.n1", false), ("1999/main.n2", true), (&current, true), ("1999/other", true)] {
            assert_eq!(place(name).exists(), there, "{name}");
        }
    }
}
