//! What a `kill -9` costs: lines that were handed over and are not in the manager's file once both ends have been started again and are quiet.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::wait_for;

/// How long lines are sent, and when the victim dies.
pub const SENDING: Duration = Duration::from_millis(2000);
pub const DEATH: Duration = Duration::from_millis(1000);
/// A file that has not grown for so long is complete.
const QUIET: Duration = Duration::from_secs(5);

/// Which end dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Node,
    Manager,
}

impl Victim {
    pub const BOTH: [Self; 2] = [Self::Node, Self::Manager];

    pub fn place(self) -> usize {
        usize::from(self == Self::Manager)
    }
}

/// What became of the lines.
pub struct Loss {
    pub name: &'static str,
    pub victim: Victim,
    pub handed_over: u64,
    pub lost: u64,
    pub twice: u64,
}

impl Loss {
    /// Looks for lines `0` to `handed_over`, each beginning with its number, in a file that has come to rest.
    pub fn count(name: &'static str, victim: Victim, handed_over: u64, file: &Path) -> Self {
        let length = || std::fs::metadata(file).map_or(0, |found| found.len());
        let mut at = (length(), Instant::now());
        wait_for("the file is quiet", || {
            if length() != at.0 {
                at = (length(), Instant::now());
            }
            at.1.elapsed() > QUIET
        });
        let text = std::fs::read(file).unwrap_or_default();
        let (mut seen, mut twice) = (HashSet::new(), 0);
        for line in text.split(|byte| *byte == b'\n') {
            let number = line.get(..10).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
            twice += u64::from(number.is_some_and(|number| !seen.insert(number)));
        }
        let lost = (0..handed_over).filter(|number| !seen.contains(number)).count() as u64;
        Self { name, victim, handed_over, lost, twice }
    }

    pub fn print(&self) {
        println!(
            "{:<26} kill -9 of the {:?} under load: of {} lines {} lost, {} twice",
            self.name, self.victim, self.handed_over, self.lost, self.twice
        );
    }
}
