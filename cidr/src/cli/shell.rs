//! `cidr` alone: the shell. Lines with history and completion, answers page by page, Ctrl-C ends the query and not the shell.
//!
//! Without a terminal it reads questions line by line, so that a script may pipe them in.

use std::fs::File;
use std::io::{BufRead as _, IsTerminal as _, Seek as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use cluster::command_line::Failure;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Context, Editor, Helper, Highlighter, Hinter, Validator};
use tokio::runtime::Runtime;

use super::commands::{count_args, print_count};
use super::source::{Source, SourceOptions};

const PROMPT: &str = "cidr> ";

/// Words of the language and of the shell.
const KEYWORDS: &[&str] = &[
    "show",
    "available",
    "count",
    "for",
    "in",
    "union(",
    "from",
    "to",
    "on",
    "since",
    "last",
    "cidrsize",
    "exclude",
    "node",
    "threshold",
    "aggregate",
    "daily",
    "trend",
    "order",
    "by",
    "cidr",
    "limit",
    "explain",
    "cache",
    "details",
    "help",
    "format",
    "text",
    "json",
    "csv",
    "quit",
];

const HELP: &str = "\
count CIDR in SERIES [last 30m]             what every node counted lately, not yet written windows included
format text | json | csv                    how answers are printed
quit                                        leave (Ctrl-D)
";

/// Reads and answers until the end.
pub fn run(runtime: &Runtime, options: &SourceOptions) -> Result<(), Failure> {
    let mut shell = Shell { runtime, source: options.open()?, format: "text".into() };
    if std::io::stdin().is_terminal() { shell.interactive() } else { shell.script() }
}

struct Shell<'a> {
    runtime: &'a Runtime,
    source: Source,
    format: String,
}

/// Go on, or leave.
#[derive(PartialEq, Eq)]
enum Next {
    Line,
    Leave,
}

impl Shell<'_> {
    fn script(&mut self) -> Result<(), Failure> {
        let mut failed = 0;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
            match self.line(line.trim()) {
                Ok(Next::Line) => {}
                Ok(Next::Leave) => break,
                Err(failure) => {
                    failure.print();
                    failed += 1;
                }
            }
        }
        // Each failure was printed where it happened.
        if failed == 0 { Ok(()) } else { Err(Failure::new("")) }
    }

    fn interactive(&mut self) -> Result<(), Failure> {
        let editor_failure = |error: ReadlineError| Failure::new(format!("the terminal cannot be used: {error}"));
        let config = rustyline::Config::builder().auto_add_history(true).max_history_size(2_000);
        let config = config.map_err(editor_failure)?.completion_type(rustyline::CompletionType::List).build();
        let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).map_err(editor_failure)?;
        editor.set_helper(Some(Words { series: self.series() }));
        let history = history_file();
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        loop {
            match editor.readline(PROMPT) {
                Ok(line) => match self.line(line.trim()) {
                    Ok(Next::Line) => {}
                    Ok(Next::Leave) => break,
                    Err(failure) => failure.print(),
                },
                // A line that was begun is dropped, as in every shell.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(editor_failure(error)),
            }
            if let Some(words) = editor.helper_mut() {
                words.series = self.series();
            }
        }
        if let Some(path) = &history {
            let _ = editor.save_history(path);
        }
        Ok(())
    }

    /// The names of series, for completion; none when nobody answers.
    fn series(&self) -> Vec<String> {
        let answer = self.runtime.block_on(self.source.series()).unwrap_or_default();
        let rows = answer.as_array().into_iter().flatten();
        rows.filter_map(|row| row["series"].as_str().map(str::to_owned)).collect()
    }

    fn line(&mut self, line: &str) -> Result<Next, Failure> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let lower = line.to_ascii_lowercase();
        let lower: Vec<&str> = lower.split_whitespace().collect();
        match lower.as_slice() {
            [] => {}
            ["quit" | "exit"] => return Ok(Next::Leave),
            ["format", format @ ("text" | "json" | "csv")] => self.format = (*format).into(),
            ["count", ..] => {
                let args = count_args(&words[1..], false)?;
                print_count(&self.runtime.block_on(self.source.count(args))?, self.format == "json")?;
            }
            ["help"] => {
                self.query(line)?;
                write!(std::io::stdout(), "{HELP}")?;
            }
            _ => self.query(line)?,
        }
        Ok(Next::Line)
    }

    /// Asks; Ctrl-C lets go of the daemon, which ends the query there.
    fn query(&self, text: &str) -> Result<(), Failure> {
        let mut pages = Pages::new();
        let mut show = |piece: &str| pages.write(piece);
        let asked = self.runtime.block_on(async {
            tokio::select! {
                asked = self.source.query(text, &self.format, &mut show) => Some(asked),
                _ = tokio::signal::ctrl_c() => None,
            }
        });
        let left = pages.end();
        match asked {
            None => Err(Failure::new("the query was ended")),
            // Whoever leaves the pager has seen enough.
            Some(_) if left => Ok(()),
            Some(asked) => asked,
        }
    }
}

/// An answer on its way to the screen: through a pager once it is longer than that.
struct Pages {
    rows: usize,
    held: String,
    paged: Option<Paged>,
    direct: bool,
    left: bool,
}

impl Pages {
    fn new() -> Self {
        let rows = screen_rows();
        Self { rows: rows.unwrap_or(0), held: String::new(), paged: None, direct: rows.is_none(), left: false }
    }

    fn write(&mut self, piece: &str) -> Result<(), Failure> {
        if self.direct {
            return Ok(std::io::stdout().write_all(piece.as_bytes())?);
        }
        if self.paged.is_none() {
            self.held.push_str(piece);
            if self.held.lines().count() < self.rows {
                return Ok(());
            }
            let held = std::mem::take(&mut self.held);
            self.paged = pager().map(Paged::through).transpose()?;
            self.direct = self.paged.is_none();
            return self.write(&held);
        }
        if !self.paged.as_mut().map_or(Ok(false), |paged| paged.write(piece))? {
            self.left = true;
            return Err(Failure::new("the pager was left"));
        }
        Ok(())
    }

    /// True when the reader left before the end.
    fn end(mut self) -> bool {
        let _ = std::io::stdout().write_all(self.held.as_bytes());
        let _ = std::io::stdout().flush();
        if let Some(paged) = self.paged.take() {
            paged.end();
        }
        self.left
    }
}

/// A pager, and the answer in a file without a name: whoever reads a page for long does not keep the query waiting, which the daemon would end.
struct Paged {
    pager: Child,
    answer: File,
    /// How much of the answer is there; gone when there is no more.
    grown: mpsc::Sender<u64>,
    feeding: JoinHandle<()>,
}

impl Paged {
    fn through(mut pager: Child) -> Result<Self, Failure> {
        let answer = tempfile::tempfile()?;
        let (file, mut input) = (answer.try_clone()?, pager.stdin.take());
        // As many numbers as pieces of an answer, of 64 KiB each.
        let (grown, come) = mpsc::channel();
        let feeding = std::thread::spawn(move || {
            let (mut piece, mut at) = (vec![0; 64 << 10], 0);
            for end in come {
                while at < end {
                    let wanted = piece.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                    let Ok(read @ 1..) = file.read_at(&mut piece[..wanted], at) else { return };
                    if input.as_mut().is_none_or(|input| input.write_all(&piece[..read]).is_err()) {
                        return;
                    }
                    at += read as u64;
                }
            }
        });
        Ok(Self { pager, answer, grown, feeding })
    }

    /// False when the pager was left.
    fn write(&mut self, piece: &str) -> Result<bool, Failure> {
        self.answer.write_all(piece.as_bytes())?;
        let end = self.answer.stream_position()?;
        Ok(self.grown.send(end).is_ok())
    }

    fn end(self) {
        let Self { mut pager, grown, feeding, .. } = self;
        drop(grown);
        let _ = feeding.join();
        let _ = pager.wait();
    }
}

/// `$PAGER`, or `less`; none when there is neither.
fn pager() -> Option<Child> {
    let chosen = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let chosen = chosen.unwrap_or_else(|| "less -FX".into());
    let mut words = chosen.split_whitespace();
    let mut command = Command::new(words.next()?);
    command.args(words).stdin(Stdio::piped()).env("LESSSECURE", "1");
    command.spawn().ok()
}

/// Rows of the screen, where there is one.
fn screen_rows() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let (_, rows) = rustyline_size().unwrap_or((80, 24));
    Some(rows.max(4) - 1)
}

fn rustyline_size() -> Option<(usize, usize)> {
    let read = |name: &str| std::env::var(name).ok()?.parse().ok();
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row))).filter(|size| size.1 > 0);
    size.or_else(|| Some((read("COLUMNS")?, read("LINES")?)))
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let dir = state.join("eccluster");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("cidr_history"))
}

/// Completes words of the language, and series where one may stand.
#[derive(Helper, Highlighter, Hinter, Validator)]
struct Words {
    series: Vec<String>,
}

impl Words {
    /// Where the word under the cursor begins, and what it may become.
    fn complete_word(&self, line: &str, at: usize) -> (usize, Vec<String>) {
        let before = &line[..at];
        let start = before.rfind([' ', ',', '(', '\t']).map_or(0, |place| place + 1);
        let begun = before[start..].to_ascii_lowercase();
        let words: Vec<String> = before[..start].split_whitespace().map(str::to_ascii_lowercase).collect();
        let fits = |word: &&str| word.to_ascii_lowercase().starts_with(&begun);
        let series: Vec<&str> = self.series.iter().map(String::as_str).filter(fits).collect();
        let last = words.last().map(String::as_str).unwrap_or_default();
        let names = last == "in" || last.ends_with(',') || last.ends_with("union(") || before[..start].ends_with(',');
        if names {
            let union = if last == "in" { Some("union(").filter(fits) } else { None };
            return (start, series.into_iter().chain(union).map(str::to_owned).collect());
        }
        (start, KEYWORDS.iter().copied().filter(fits).map(str::to_owned).collect())
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, found) = self.complete_word(line, at);
        let pair = |word: String| {
            let space = if word.ends_with('(') { "" } else { " " };
            Pair { replacement: format!("{word}{space}"), display: word }
        };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_and_series_are_completed_where_they_may_stand() {
        let words = Words { series: vec!["spam".into(), "ssh_fail".into()] };
        let complete = |line: &str| words.complete_word(line, line.len()).1.join(" ");
        assert_eq!(complete("sh"), "show");
        assert_eq!(complete("show count for 10.0.0.0/8 in s"), "spam ssh_fail");
        assert_eq!(complete("show count for 10.0.0.0/8 in u"), "union(");
        assert_eq!(complete("show count for 10.0.0.0/8 in union(spam,"), "spam ssh_fail");
        assert_eq!(complete("show count for 10.0.0.0/8 in union(s"), "spam ssh_fail");
        assert_eq!(complete("show count for 10.0.0.0/8 in spam thr"), "threshold");
        assert_eq!(complete("cache d"), "daily details");
    }
}
