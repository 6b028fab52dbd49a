//! Errors that point at the word and list what could stand there.

use std::fmt::Write as _;
use std::ops::Range;

/// What is wrong with a query's text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.one_line())]
pub struct TextError {
    /// What is wrong, without the place.
    pub message: String,
    /// Bytes of the query text.
    pub at: Range<usize>,
    /// What could stand there.
    pub expected: Vec<String>,
    /// The one of them that was probably meant, or other advice.
    pub hint: Option<String>,
}

/// More alternatives than this are cut: nobody reads them.
const MAX_LISTED: usize = 24;

impl TextError {
    pub(crate) fn new(message: impl Into<String>, at: Range<usize>) -> Self {
        Self { message: message.into(), at, expected: Vec::new(), hint: None }
    }

    /// Something else could stand there; what is closest to `found` is offered.
    pub(crate) fn unexpected(found: &str, at: Range<usize>, expected: Vec<String>) -> Self {
        let message = match found {
            "" => "the query ends here, but it is not complete".to_owned(),
            _ => format!("\"{}\" cannot stand here", shortened(found)),
        };
        let nearest = nearest(found, expected.iter().map(String::as_str));
        let hint = nearest.map(|word| format!("did you mean \"{word}\"?"));
        Self { message, at, expected, hint }
    }

    pub(crate) fn expecting(mut self, expected: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.expected = expected.into_iter().map(Into::into).collect();
        self
    }

    pub(crate) fn hinting(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn one_line(&self) -> String {
        let mut text = self.message.clone();
        if !self.expected.is_empty() {
            let _ = write!(text, "; here could stand: {}", self.listed());
        }
        if let Some(hint) = &self.hint {
            let _ = write!(text, " ({hint})");
        }
        text
    }

    fn listed(&self) -> String {
        let mut listed = self.expected.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
        if self.expected.len() > MAX_LISTED {
            let _ = write!(listed, " and {} more", self.expected.len() - MAX_LISTED);
        }
        listed
    }

    /// Several lines for people: the message, the query with a mark under the word, and what could stand there.
    pub fn render(&self, query: &str) -> String {
        // A long or many-lined query is shown around the place.
        const AROUND: usize = 60;
        let flat: Vec<(usize, char)> =
            query.char_indices().map(|(at, c)| (at, if c.is_control() { ' ' } else { c })).collect();
        let place = flat.partition_point(|(at, _)| *at < self.at.start);
        let marked = flat.iter().filter(|(at, _)| self.at.contains(at)).count().clamp(1, AROUND);
        let from = place.saturating_sub(AROUND);
        let to = (place + marked + AROUND).min(flat.len());
        let shown: String = flat[from..to].iter().map(|(_, c)| c).collect();
        let (before, after) = (if from > 0 { "…" } else { "" }, if to < flat.len() { "…" } else { "" });
        let indent = " ".repeat(place - from + before.chars().count());
        let mut text = format!("error: {}\n  {before}{shown}{after}\n  {indent}{}\n", self.message, "^".repeat(marked));
        if !self.expected.is_empty() {
            let _ = writeln!(text, "  here could stand: {}", self.listed());
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
        text
    }
}

pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.into(),
    }
}

/// The known word that a wrong one is probably meant to be: at most two letters away, and fewer for short words.
pub(crate) fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_ascii_lowercase();
    if found.len() < 2 || found.len() > 32 {
        return None;
    }
    let allowed = (found.len() / 3).clamp(1, 2);
    let rated = known.map(|word| (distance(&found, &word.to_ascii_lowercase()), word));
    rated.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// Letters to change, add, drop or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0].iter_mut().enumerate().for_each(|(i, cell)| *cell = i);
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
