//! The commands beside `run`, one file each; the doc comment of each is its help.

pub mod check_mount;
pub mod logs;
pub mod read;
pub mod send;
pub mod subscriber;

use std::io::Write as _;

use cluster::command_line::Failure;

/// Prints to standard output. A reader that has gone (`| head`) ends the command in order.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::from),
    }
}
