//! Which paths a watcher wants.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// More patterns than this are a mistake, and each costs at every commit.
const MAX_GLOBS: usize = 64;
const MAX_GLOB_BYTES: usize = 1024;

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{glob:?} cannot be watched: {reason}")]
pub struct BadGlob {
    /// The pattern.
    pub glob: String,
    /// Why not.
    pub reason: String,
}

/// Path patterns: `**` crosses directories, `*` and `?` do not, and a pattern that names a directory means everything in it.
#[derive(Debug, Clone)]
pub struct Globs {
    /// Sorted and without repeats: what makes two sets of patterns the same.
    patterns: Vec<String>,
    /// `None` matches everything.
    set: Option<GlobSet>,
}

impl Globs {
    /// Compiles patterns; none at all match everything.
    pub fn new(patterns: &[String]) -> Result<Globs, BadGlob> {
        let bad = |glob: &str, reason: String| BadGlob { glob: glob.chars().take(80).collect(), reason };
        if patterns.len() > MAX_GLOBS {
            return Err(bad(&patterns[0], format!("more than {MAX_GLOBS} patterns")));
        }
        let mut patterns = patterns.to_vec();
        patterns.sort();
        patterns.dedup();
        if patterns.is_empty() {
            return Ok(Globs { patterns, set: None });
        }
        let mut set = GlobSetBuilder::new();
        for pattern in &patterns {
            if pattern.is_empty() || pattern.len() > MAX_GLOB_BYTES {
                return Err(bad(pattern, format!("it has to have 1 to {MAX_GLOB_BYTES} bytes")));
            }
            for form in [pattern.clone(), format!("{}/**", pattern.trim_end_matches('/'))] {
                let glob = GlobBuilder::new(&form).literal_separator(true).build();
                set.add(glob.map_err(|e| bad(pattern, e.kind().to_string()))?);
            }
        }
        let first = patterns[0].clone();
        let set = set.build().map_err(|e| bad(&first, e.kind().to_string()))?;
        Ok(Globs { patterns, set: Some(set) })
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether one of the paths matches. A list that was cut may have hidden a match, so it counts as one.
    pub fn matches(&self, paths: &[String], truncated: bool) -> bool {
        match &self.set {
            None => true,
            Some(_) if truncated => true,
            Some(set) => paths.iter().any(|path| set.is_match(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn globs(patterns: &[&str]) -> Globs {
        Globs::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn stars_stop_at_directories() {
        let yes = |pattern: &str, path: &str| globs(&[pattern]).matches(&[path.to_owned()], false);
        assert!(yes("default/*.toml", "default/a.toml"));
        assert!(!yes("default/*.toml", "default/x/a.toml"));
        assert!(yes("default/**/a.toml", "default/x/y/a.toml"));
        assert!(yes("default/**", "default/x/y"));
        assert!(yes("default", "default/x/y") && yes("default/", "default/x"));
        assert!(!yes("default", "defaults/x"));
    }

    #[test]
    fn none_and_truncated_match_everything() {
        assert!(globs(&[]).matches(&[], false));
        assert!(globs(&["a"]).matches(&["b".into()], true));
        assert!(!globs(&["a"]).matches(&["b".into()], false));
    }

    #[test]
    fn a_broken_pattern_is_named() {
        let error = Globs::new(&["[".into()]).unwrap_err();
        assert_eq!(error.glob, "[");
        assert!(Globs::new(&["x".repeat(2000)]).is_err());
    }
}
