//! The command's side of the control socket.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{ANSWER_LIMIT_BYTES, ControlError, Line, Request, socket_path};

/// Asks a program on this machine once.
pub async fn call(program: &str, command: &str, args: impl Serialize) -> Result<Value, ControlError> {
    call_streaming(program, command, args, |_| {}).await
}

/// Asks once and hands every part of a streaming answer to `part`.
pub async fn call_streaming(
    program: &str,
    command: &str,
    args: impl Serialize,
    part: impl FnMut(Value),
) -> Result<Value, ControlError> {
    Client::connect(program).await?.call(command, args, part).await
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects to a program's usual socket.
    pub async fn connect(program: &str) -> Result<Self, ControlError> {
        Self::connect_at(program, &socket_path(program)).await
    }

    /// Connects to a socket elsewhere; `program` is for the error.
    pub async fn connect_at(program: &str, path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning { program: program.into(), path: path.into() }
            }
            _ => ControlError::io("connect to", path)(error),
        })?;
        let (reader, writer) = stream.into_split();
        Ok(Self { path: path.into(), reader: BufReader::new(reader), writer })
    }

    /// Sends a command and waits for the end of its answer.
    pub async fn call(
        &mut self,
        command: &str,
        args: impl Serialize,
        mut part: impl FnMut(Value),
    ) -> Result<Value, ControlError> {
        let args = serde_json::to_value(args).map_err(|error| self.protocol(error))?;
        let request = Request { command: command.into(), args };
        let mut line = serde_json::to_vec(&request).map_err(|error| self.protocol(error))?;
        line.push(b'\n');
        let sent = self.writer.write_all(&line).await;
        loop {
            let read = read_line(&mut self.reader, ANSWER_LIMIT_BYTES).await;
            let read = read.map_err(ControlError::io("read from", &self.path))?;
            let Some(line) = read.map_err(|TooLong| self.protocol("a line is too long"))? else {
                // A daemon that is too busy answers and closes before it reads; only without an answer is the write's error of interest.
                sent.map_err(ControlError::io("write to", &self.path))?;
                return Err(self.protocol("the connection ended before the answer"));
            };
            match serde_json::from_slice(&line).map_err(|error| self.protocol(error))? {
                Line::Part(value) => part(value),
                Line::Ok(value) => return Ok(value),
                Line::Error(failure) => return Err(failure.into()),
            }
        }
    }

    fn protocol(&self, why: impl ToString) -> ControlError {
        ControlError::Protocol { path: self.path.clone(), why: why.to_string() }
    }
}

/// A line was longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// Reads up to the next newline; `None` at the end. A last line without a newline counts.
pub(super) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit_bytes: usize,
) -> std::io::Result<Result<Option<Vec<u8>>, TooLong>> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(Ok((!line.is_empty()).then_some(line)));
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let take = end.unwrap_or(available.len());
        if line.len() + take > limit_bytes {
            return Ok(Err(TooLong));
        }
        line.extend_from_slice(&available[..take]);
        reader.consume(end.map_or(take, |end| end + 1));
        if end.is_some() {
            return Ok(Ok(Some(line)));
        }
    }
}
