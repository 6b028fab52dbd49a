//! The id that ties a request, its log lines and its answer together across machines.

use std::fmt;
use std::sync::Arc;

/// The longest id taken from others; longer ones are replaced, because logs repeat them on every line.
const LONGEST: usize = 64;

/// A request's id: 16 random hex digits, or what the caller sent.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A fresh id.
    pub fn random() -> Self {
        let mut bytes = [0; 8];
        // An id of zeros is only less useful.
        let _ = getrandom::fill(&mut bytes);
        Self(hex::encode(bytes).into())
    }

    /// The caller's id where it is one (letters, digits, `-_.:`, at most 64), else a fresh one.
    pub fn accept(sent: Option<&str>) -> Self {
        let fits = |id: &&str| {
            (1..=LONGEST).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
        };
        sent.filter(fits).map_or_else(Self::random, |id| Self(id.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A span that puts the id on every log line inside.
    pub fn span(&self) -> tracing::Span {
        tracing::info_span!("request", id = %self)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_kept_only_when_harmless() {
        assert_eq!(RequestId::accept(Some("req-1.a:b_c")).as_str(), "req-1.a:b_c");
        for bad in [None, Some(""), Some("a b"), Some("x\ny"), Some(&*"a".repeat(65))] {
            let id = RequestId::accept(bad);
            assert_eq!(id.as_str().len(), 16, "{bad:?} became {id}");
        }
        assert_ne!(RequestId::random(), RequestId::random());
    }
}
