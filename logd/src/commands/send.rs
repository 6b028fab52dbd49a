//! `logd send`: standard input into a log, each line exactly once.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use crate::input::unix::GREETING;
use cluster::command_line::Failure;

/// Lines that are sent and not acknowledged yet; beyond it, standard input waits.
const WINDOW_BYTES: usize = 8 << 20;
const READ_BYTES: usize = 64 << 10;
/// Between attempts to reach the daemon.
const RETRY: Duration = Duration::from_millis(200);

/// Send standard input to a log, each line exactly once.
///
/// Lines are numbered, and kept until the daemon has them on disk. A daemon that is away is waited for, one that was restarted is sent what it does
/// not have yet. Ends when everything is on disk.
#[derive(Debug, Args)]
pub struct Send {
    /// The log
    #[arg(value_name = "LOG")]
    log: String,
    /// The log's socket, when it is not at the usual place
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
}

/// What is not known to be on disk.
#[derive(Debug, Default)]
struct Window {
    /// Number, and the line as it is sent.
    lines: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    last: u64,
    /// How many of the lines are sent on the connection there is.
    sent: usize,
    /// The beginning of a line.
    partial: Vec<u8>,
    ended: bool,
}

impl Window {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        self.last += 1;
        let mut line = format!("{} ", self.last).into_bytes();
        line.append(&mut self.partial);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        self.bytes += line.len();
        self.lines.push_back((self.last, line));
    }

    /// Standard input has ended; what it ended with is a line too.
    fn end(&mut self) {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.ended = true;
    }

    fn acknowledge(&mut self, number: u64) {
        while self.lines.front().is_some_and(|(first, _)| *first <= number) {
            if let Some((_, line)) = self.lines.pop_front() {
                self.bytes -= line.len();
                self.sent = self.sent.saturating_sub(1);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.bytes + self.partial.len() >= WINDOW_BYTES
    }

    fn is_done(&self) -> bool {
        self.ended && self.lines.is_empty()
    }

    /// What is to be sent next: some lines together.
    fn next_bytes(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < READ_BYTES
            && let Some((_, line)) = self.lines.get(self.sent)
        {
            out.extend_from_slice(line);
            self.sent += 1;
        }
        out
    }
}

impl Send {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let path = self.socket.unwrap_or_else(|| cluster::control::run_dir().join("log").join(&self.log));
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Failure::new(format!("no random numbers: {error}")))?;
        let id = format!("send-{}-{}", std::process::id(), hex::encode(random));
        let mut window = Window::default();
        let mut input = tokio::io::stdin();
        let mut said = false;
        while !window.is_done() {
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    said = false;
                    // Whatever ended it: the daemon is waited for.
                    if let Err(error) = talk(stream, &id, &mut window, &mut input).await {
                        tracing::debug!(%error, "the connection ended");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(socket = %path.display(), %error, "the daemon is waited for");
                    }
                    // Lines go on being taken as far as there is room, so that whoever writes them is not stopped at once.
                    read_while(&mut window, &mut input).await?;
                }
            }
        }
        Ok(())
    }
}

async fn read_while(window: &mut Window, input: &mut tokio::io::Stdin) -> Result<(), Failure> {
    let mut buffer = vec![0; READ_BYTES];
    let pause = tokio::time::sleep(RETRY);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return Ok(()),
            read = input.read(&mut buffer), if !window.ended && !window.is_full() => match read? {
                0 => window.end(),
                bytes => window.push(&buffer[..bytes]),
            },
        }
    }
}

async fn talk(
    stream: UnixStream,
    id: &str,
    window: &mut Window,
    input: &mut tokio::io::Stdin,
) -> Result<(), std::io::Error> {
    let (reader, mut writer) = stream.into_split();
    let mut answers = BufReader::new(reader).lines();
    writer.write_all(format!("{GREETING}{id}\n").as_bytes()).await?;
    window.sent = 0;
    let mut buffer = vec![0; READ_BYTES];
    let mut out: (Vec<u8>, usize) = (Vec::new(), 0);
    while !window.is_done() {
        if out.1 == out.0.len() {
            out = (window.next_bytes(), 0);
        }
        let pending = out.1 < out.0.len();
        tokio::select! {
            answer = answers.next_line() => match answer?.as_deref().map(|line| line.split_once(' ')) {
                Some(Some(("ack", number))) => window.acknowledge(number.parse().unwrap_or(0)),
                Some(other) => tracing::warn!(?other, "an answer that is no acknowledgement"),
                None => return Ok(()),
            },
            written = write_some(&mut writer, &out.0[out.1..]), if pending => out.1 += written?,
            read = input.read(&mut buffer), if !window.ended && !window.is_full() => match read? {
                0 => window.end(),
                bytes => window.push(&buffer[..bytes]),
            },
        }
    }
    Ok(())
}

/// Cancel safe, unlike `write_all`.
async fn write_some(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> std::io::Result<usize> {
    writer.write(bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_kept_until_acknowledged() {
        let mut window = Window::default();
        window.push(b"a\nb");
        assert_eq!(window.next_bytes(), b"1 a\n");
        window.push(b"c\n\n");
        window.end();
        assert_eq!(window.next_bytes(), b"2 bc\n3 \n");
        window.acknowledge(1);
        // Another connection: what is not acknowledged is sent again.
        window.sent = 0;
        assert_eq!(window.next_bytes(), b"2 bc\n3 \n");
        window.acknowledge(3);
        assert!(window.is_done() && window.bytes == 0);
    }
}
