//! Errors for people: one line with every cause once.

use std::error::Error;
use std::fmt;

/// Shows an error followed by its causes, `: ` between them, leaving out a cause whose words are already there.
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !text.ends_with(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            cause = error.source();
        }
        f.write_str(&text)
    }
}

/// The words of the innermost cause, which is what a person can act on.
pub fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Layer {
        words: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn causes_appear_once() {
        let inner = Layer { words: "refused", source: None };
        let middle = Layer { words: "connect: refused", source: Some(inner.into()) };
        let outer = Layer { words: "cannot fetch", source: Some(middle.into()) };
        assert_eq!(Chain(&outer).to_string(), "cannot fetch: connect: refused");
        assert_eq!(root_cause(&outer), "refused");
    }
}
