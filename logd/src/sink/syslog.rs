//! Syslog over TLS (RFC 5425): RFC 5424 messages with their lengths before them.
//!
//! The protocol has no acknowledgements. What it has is an end: this side closes its half in order, and the receiver, once it has read everything,
//! closes too. One that died with something unread resets the connection instead. So every few seconds the connection is exchanged for
//! another, and a checkpoint follows its orderly end. What the receiver has read and not kept is out of sight here: give it a disk queue.

use std::io;
use std::time::Duration;

use cluster::documents::schema::values::HostPort;
use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connect::{Stream, Way};
use super::{Message, Outlet, Put, SinkError};
use crate::path::{Names, rfc3339_local};

/// Each confirmation is a TLS handshake with a receiver that hundreds of nodes may use.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// A receiver that takes nothing for this long, or does not end, is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// User-level messages, informational: what a line is that says nothing of itself.
const PRIORITY: &str = "<14>1";

/// A connection.
pub(super) struct Syslog {
    stream: Box<dyn Stream>,
    names: Names,
    out: Vec<u8>,
    /// Ended in order: the next put needs another one.
    ended: bool,
}

impl Syslog {
    pub(super) async fn connect(address: &HostPort, way: &Way<'_>, names: &Names) -> Result<Self, SinkError> {
        let stream = way.secure(way.plain(address).await?, address).await?;
        Ok(Self { stream, names: names.clone(), out: Vec::new(), ended: false })
    }

    async fn send(&mut self, messages: &[Message]) -> Result<(), SinkError> {
        self.out.clear();
        for message in messages {
            frame(message, &self.names, &mut self.out);
        }
        let sending = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        Ok(tokio::time::timeout(PATIENCE, sending).await.map_err(|_| SinkError::Silent)??)
    }

    /// Ends the connection and waits until the receiver does, which it does behind the last byte.
    async fn end(&mut self) -> Result<(), SinkError> {
        let ending = async {
            self.stream.shutdown().await?;
            loop {
                match self.stream.read(&mut [0; 512]).await {
                    Ok(0) => return Ok(()),
                    // Receivers say nothing; whatever it was, it was not the end.
                    Ok(_) => {}
                    // An end of TCP without an end of TLS is what a receiver leaves that was killed.
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(tokio::time::timeout(PATIENCE, ending).await.map_err(|_| SinkError::Silent)??)
    }
}

impl Outlet for Syslog {
    fn put<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<Put, SinkError>> {
        self.send(messages).map_ok(|()| Put::All).boxed()
    }

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        async {
            self.ended = true;
            self.end().await
        }
        .boxed()
    }

    fn is_spent(&self) -> bool {
        self.ended
    }

    fn confirm_every(&self) -> Duration {
        CONFIRM_EVERY
    }

    fn idle(&mut self) -> BoxFuture<'_, SinkError> {
        async {
            loop {
                match self.stream.read(&mut [0; 512]).await {
                    Ok(0) => return SinkError::Io(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) => return error.into(),
                }
            }
        }
        .boxed()
    }
}

/// One message with its length before it. A line that is a message already goes as it is.
fn frame(message: &Message, names: &Names, out: &mut Vec<u8>) {
    if is_rfc5424(&message.payload) {
        out.extend_from_slice(format!("{} ", message.payload.len()).as_bytes());
    } else {
        let (time, node, log) = (rfc3339_local(message.time_us), &names.node, &names.log);
        // 48 characters are what an application's name may have.
        let log: String = log.chars().take(48).collect();
        let head = format!("{PRIORITY} {time} {node} {log} - - - ");
        out.extend_from_slice(format!("{} {head}", head.len() + message.payload.len()).as_bytes());
    }
    out.extend_from_slice(&message.payload);
}

/// `<PRI>1 `, as lines from syslog inputs begin.
fn is_rfc5424(line: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(b"<") else { return false };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=3).contains(&digits) && rest[digits..].starts_with(b">1 ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_become_messages_and_messages_stay() {
        let names = Names { log: "mainlog".into(), node: "n1".into(), subcluster: "east".into() };
        let framed = |payload: &str| {
            let message = Message { id: String::new(), sequence: 1, time_us: 1_000_000, payload: payload.into() };
            let mut out = Vec::new();
            frame(&message, &names, &mut out);
            let text = String::from_utf8(out).unwrap();
            let (length, rest) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), rest.len());
            rest.to_owned()
        };
        assert_eq!(framed("<34>1 2026-01-02T03:04:05Z h a - - - x"), "<34>1 2026-01-02T03:04:05Z h a - - - x");
        for plain in ["hello", "<34>2 x", "<>1 x", "<3456>1 x", ""] {
            let made = framed(plain);
            assert!(made.starts_with("<14>1 19") && made.ends_with(&format!(" n1 mainlog - - - {plain}")), "{made}");
        }
    }
}
