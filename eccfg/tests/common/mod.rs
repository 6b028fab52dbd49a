//! Runs `eccfg` in process and writes down everything that happened: the command, both streams, the exit status.
#![allow(dead_code, missing_docs)]

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use eccfg::prompt::ScriptedTerminal;
use eccfg::{Environment, Ui};

/// A stream that keeps what was written.
#[derive(Clone, Default)]
pub struct Kept(Rc<RefCell<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Kept {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.borrow()).into_owned()
    }
}

/// What one run left behind.
pub struct Outcome {
    pub out: String,
    pub err: String,
    pub status: u8,
    pub asked: Vec<String>,
}

/// A directory to run in, and the transcript so far.
pub struct Session {
    dir: tempfile::TempDir,
    environment: Environment,
    transcript: String,
}

impl Session {
    pub fn new() -> Session {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let environment = Environment::empty(dir.path());
        Session { dir, environment, transcript: String::new() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment = self.environment.clone().with(name, value);
    }

    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Runs without a terminal.
    pub fn run(&mut self, args: &[&str]) -> Outcome {
        self.run_answering(args, None)
    }

    /// Runs on a terminal whose person gives these answers.
    pub fn run_with(&mut self, args: &[&str], answers: &[&str]) -> Outcome {
        self.run_answering(args, Some(answers))
    }

    fn run_answering(&mut self, args: &[&str], answers: Option<&[&str]>) -> Outcome {
        let (out, err) = (Kept::default(), Kept::default());
        let asked = Rc::new(RefCell::new(Vec::new()));
        let terminal = answers.map(|answers| {
            let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
            Box::new(ScriptedTerminal { answers, asked: asked.clone() }) as Box<dyn eccfg::prompt::Terminal>
        });
        let mut ui = Ui::with_streams(Box::new(out.clone()), Box::new(err.clone()), terminal);
        let status = eccfg::run(args.iter().map(OsString::from), self.environment.clone(), &mut ui);
        drop(ui);
        let asked = asked.borrow().clone();
        let outcome = Outcome { out: out.text(), err: err.text(), status, asked };
        self.record(args, &outcome);
        outcome
    }

    fn record(&mut self, args: &[&str], outcome: &Outcome) {
        let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        let _ = writeln!(self.transcript, "$ eccfg {}", words.join(" "));
        for question in &outcome.asked {
            let _ = writeln!(self.transcript, "asked: {question}");
        }
        for (mark, text) in [("", &outcome.out), ("! ", &outcome.err)] {
            for line in text.lines() {
                let _ = writeln!(self.transcript, "{mark}{line}");
            }
        }
        let _ = writeln!(self.transcript, "[{}]\n", outcome.status);
    }

    /// Everything so far; standard error's lines begin with `! `, the status stands in brackets.
    pub fn transcript(&self) -> String {
        let here = self.dir.path().display().to_string();
        self.transcript.replace(&here, "[DIR]")
    }
}

fn quoted(arg: &str) -> String {
    if arg.is_empty() || arg.contains([' ', '*', '$']) { format!("'{arg}'") } else { arg.to_owned() }
}
