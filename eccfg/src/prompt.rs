//! Questions to a person: yes or no, a line, a secret, a message from an editor.
//!
//! A [`Terminal`] exists only when both standard input and standard error are one. Without it a command takes its documented
//! default or fails; nothing ever waits for an answer that cannot come.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::process::Command;

use nix::sys::termios::{self, LocalFlags, SetArg};

use crate::environment::Environment;

/// Someone who answers.
pub trait Terminal {
    /// Asks for one line; the answer without its line end. End of input is an error.
    fn ask(&mut self, question: &str) -> io::Result<String>;
    /// The same without showing what is typed.
    fn ask_secret(&mut self, question: &str) -> io::Result<String>;
    /// Lets the person write a text, starting from `initial`.
    fn edit(&mut self, initial: &str) -> io::Result<String>;
}

/// Asks until the answer is yes or no; an empty answer is `default`.
pub fn yes_or_no(terminal: &mut dyn Terminal, question: &str, default: bool) -> io::Result<bool> {
    let choices = if default { "[Y/n]" } else { "[y/N]" };
    loop {
        let answer = terminal.ask(&format!("{question} {choices} "))?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "" => return Ok(default),
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => {}
        }
    }
}

/// The terminal that the process was started on.
pub struct ProcessTerminal {
    editor: OsString,
}

impl ProcessTerminal {
    /// Uses `VISUAL`, then `EDITOR`, then `vi` for texts.
    pub fn new(environment: &Environment) -> ProcessTerminal {
        let editor = environment.variable("VISUAL").or_else(|| environment.variable("EDITOR"));
        ProcessTerminal { editor: editor.cloned().unwrap_or_else(|| "vi".into()) }
    }
}

impl Terminal for ProcessTerminal {
    fn ask(&mut self, question: &str) -> io::Result<String> {
        let mut err = io::stderr();
        err.write_all(question.as_bytes())?;
        err.flush()?;
        read_answer()
    }

    fn ask_secret(&mut self, question: &str) -> io::Result<String> {
        let silence = Silence::begin()?;
        let answer = self.ask(question);
        drop(silence);
        writeln!(io::stderr())?;
        answer
    }

    fn edit(&mut self, initial: &str) -> io::Result<String> {
        let mut file = tempfile::Builder::new().prefix("eccfg-").suffix(".txt").tempfile()?;
        file.write_all(initial.as_bytes())?;
        file.flush()?;
        // Through the shell, as git does it, because EDITOR may carry arguments.
        let status = Command::new("sh").arg("-c").arg("exec $0 \"$1\"").arg(&self.editor).arg(file.path()).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("the editor {} ended with {status}", self.editor.to_string_lossy())));
        }
        std::fs::read_to_string(file.path())
    }
}

fn read_answer() -> io::Result<String> {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the terminal gave no answer"));
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// The terminal's echo, off until dropped.
struct Silence {
    before: termios::Termios,
}

impl Silence {
    fn begin() -> io::Result<Silence> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut without = before.clone();
        without.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &without)?;
        Ok(Silence { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.before);
    }
}

/// Answers written down beforehand, for tests; every question asked is kept.
#[derive(Default)]
pub struct ScriptedTerminal {
    /// What to answer, in order.
    pub answers: std::collections::VecDeque<String>,
    /// What was asked.
    pub asked: std::rc::Rc<std::cell::RefCell<Vec<String>>>,
}

impl Terminal for ScriptedTerminal {
    fn ask(&mut self, question: &str) -> io::Result<String> {
        self.asked.borrow_mut().push(question.to_owned());
        self.answers.pop_front().ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no answer is left"))
    }

    fn ask_secret(&mut self, question: &str) -> io::Result<String> {
        self.ask(question)
    }

    fn edit(&mut self, initial: &str) -> io::Result<String> {
        self.ask(initial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclear_answers_are_asked_again() {
        let mut terminal =
            ScriptedTerminal { answers: ["maybe".to_owned(), "YES".to_owned()].into(), ..Default::default() };
        assert!(yes_or_no(&mut terminal, "Add it?", false).unwrap());
        assert_eq!(terminal.asked.borrow().len(), 2);
        assert!(yes_or_no(&mut terminal, "And now?", false).is_err());
    }
}
