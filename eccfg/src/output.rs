//! Where a command's words go: results to standard output, notes and errors to standard error.
//!
//! A command never prints by itself. Everything passes through [`Ui`], which knows whether a person watches (colours,
//! questions) and lets tests read what was said. A reader that goes away (`eccfg log | head`) ends the output silently.

use std::io::{self, IsTerminal, Write};

use crate::environment::Environment;
use crate::prompt::{ProcessTerminal, Terminal};

/// A command's connection to whoever called it.
pub struct Ui {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    terminal: Option<Box<dyn Terminal>>,
    colour_out: bool,
    colour_err: bool,
    quiet: bool,
    json: bool,
}

/// How a piece of text stands out on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Added, good.
    Green,
    /// Removed, failed.
    Red,
    /// Worth a look.
    Yellow,
    /// Places and ids.
    Cyan,
    /// Headings.
    Bold,
}

impl Ui {
    /// The process's own standard streams.
    pub fn of_process(environment: &Environment) -> Ui {
        let colours = environment.variable("NO_COLOR").is_none() && environment.text("TERM") != Some("dumb");
        let terminal: Option<Box<dyn Terminal>> = (io::stdin().is_terminal() && io::stderr().is_terminal())
            .then(|| Box::new(ProcessTerminal::new(environment)) as Box<dyn Terminal>);
        Ui {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            terminal,
            colour_out: colours && io::stdout().is_terminal(),
            colour_err: colours && io::stderr().is_terminal(),
            quiet: false,
            json: false,
        }
    }

    /// Streams handed in, no colours; `terminal` answers questions when there is one.
    pub fn with_streams(out: Box<dyn Write>, err: Box<dyn Write>, terminal: Option<Box<dyn Terminal>>) -> Ui {
        Ui { out, err, terminal, colour_out: false, colour_err: false, quiet: false, json: false }
    }

    /// `--quiet`: notes and progress are left out; results and errors stay.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// `--json`: results are one JSON document instead of text.
    pub fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Whether notes and progress are left out.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Whether results are wanted as JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether standard output shows colours.
    pub fn coloured(&self) -> bool {
        self.colour_out
    }

    /// One line of a result on standard output.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), OutputError> {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// Raw bytes of a result (a patch may hold anything).
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.out.write_all(bytes).map_err(OutputError::from_io)
    }

    /// Hands what was written so far to the reader; long-running commands call it after each event.
    pub fn flush(&mut self) -> Result<(), OutputError> {
        self.out.flush().map_err(OutputError::from_io)
    }

    /// The whole result as JSON.
    pub fn json_document(&mut self, value: &impl serde::Serialize) -> Result<(), OutputError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| OutputError::Failed(io::Error::other(error)))?;
        self.line(text)
    }

    /// One JSON document on one line, for streams of results.
    pub fn json_line(&mut self, value: &impl serde::Serialize) -> Result<(), OutputError> {
        let text = serde_json::to_string(value).map_err(|error| OutputError::Failed(io::Error::other(error)))?;
        self.line(text)
    }

    /// What happens along the way: on standard output for a person, not at all with `--quiet` or `--json`.
    pub fn progress(&mut self, text: impl AsRef<str>) -> Result<(), OutputError> {
        if self.quiet || self.json { Ok(()) } else { self.line(text) }
    }

    /// Something to know that is neither result nor failure, on standard error.
    pub fn note(&mut self, text: impl AsRef<str>) {
        if !self.quiet {
            self.diagnostic("note", Style::Cyan, text.as_ref());
        }
    }

    /// Something that may be a mistake, on standard error, also with `--quiet`.
    pub fn warning(&mut self, text: impl AsRef<str>) {
        self.diagnostic("warning", Style::Yellow, text.as_ref());
    }

    /// A labelled line on standard error. Errors there have nowhere to go and are dropped.
    pub fn diagnostic(&mut self, label: &str, style: Style, text: &str) {
        let label = if self.colour_err { paint(style, &format!("{label}:")) } else { format!("{label}:") };
        let _ = writeln!(self.err, "{label} {text}");
    }

    /// An unlabelled line on standard error, the continuation of a diagnostic.
    pub fn diagnostic_line(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}");
    }

    /// `text` in `style` if standard output shows colours.
    pub fn styled(&self, style: Style, text: &str) -> String {
        if self.colour_out { paint(style, text) } else { text.to_owned() }
    }

    /// The person to ask, if there is one.
    pub fn terminal(&mut self) -> Option<&mut (dyn Terminal + 'static)> {
        self.terminal.as_deref_mut()
    }
}

fn paint(style: Style, text: &str) -> String {
    let code = match style {
        Style::Green => "32",
        Style::Red => "31",
        Style::Yellow => "33",
        Style::Cyan => "36",
        Style::Bold => "1",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The reader went away; nobody is left to tell.
    #[error("the reader of standard output went away")]
    ReaderGone,
    /// Anything else, such as a full disk.
    #[error("standard output could not be written")]
    Failed(#[source] io::Error),
}

impl OutputError {
    fn from_io(error: io::Error) -> OutputError {
        if error.kind() == io::ErrorKind::BrokenPipe { OutputError::ReaderGone } else { OutputError::Failed(error) }
    }
}

/// Lays out rows as columns separated by two spaces, the last one ragged.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter().map(|row| lay_out(row, &widths)).collect()
}

fn lay_out(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        if !line.is_empty() {
            line.push_str("  ");
        }
        line.push_str(cell);
        let missing = width.saturating_sub(cell.chars().count());
        line.extend(std::iter::repeat_n(' ', missing));
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            vec![vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()], vec!["bbbb".to_owned(), "c".to_owned()]];
        assert_eq!(columns(&rows), ["a     long cell  x", "bbbb  c"]);
    }
}
