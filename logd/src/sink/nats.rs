//! NATS JetStream: publishing with acknowledgements, in the protocol's own text form.
//!
//! A message is published with a reply subject of its own; the stream answers there once it has stored it. Without a stream for the subject the server
//! says that nobody responds, which is an error that an operator has to see. A message that is too long for the server or the stream is told apart: it will
//! never be taken, whatever is tried again. The sink's credentials file holds `user:password`, a token, a user's key or a `.creds` file.

use std::time::Duration;

use cluster::documents::schema::logd::Sink as Settings;
use cluster::documents::schema::values::HostPort;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf};

use super::connect::{PATIENCE, Stream, Way};
use super::nkey::Credentials;
use super::{Message, Outlet, Put, SinkError};
use crate::path::Names;

/// The longest line of the protocol that is waited for; INFO is some hundred bytes.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// The longest answer to a message.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What a stream says to a message over its `max_msg_size`.
const TOO_LARGE: u64 = 10054;
/// Every put is acknowledged; what a confirmation adds is a checkpoint, which costs the node two syncs.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// A connection.
pub(super) struct Nats {
    reader: BufReader<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
    /// What has come of the line that is being read; kept here, so that a reader that is dropped half-way loses nothing.
    line: Vec<u8>,
    inbox: String,
    subject: String,
    max_payload: usize,
}

/// The INFO line of a server, read byte by byte: behind it TLS may begin.
async fn info(stream: &mut tokio::net::TcpStream) -> Result<Value, SinkError> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() as u64 >= MAX_LINE_BYTES {
            return Err(SinkError::Protocol("a line without an end".into()));
        }
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
    let info = line.strip_prefix("INFO ").and_then(|info| serde_json::from_str(info).ok());
    info.ok_or(SinkError::Protocol(line))
}

impl Nats {
    /// Connects; `tls`: not without it.
    pub(super) async fn connect(
        address: &HostPort,
        tls: bool,
        way: &Way<'_>,
        settings: &Settings,
        names: &Names,
    ) -> Result<Self, SinkError> {
        let connecting = async {
            let mut stream = way.plain(address).await?;
            let info = info(&mut stream).await?;
            let stream: Box<dyn Stream> = match tls || info["tls_required"] == true {
                true => way.secure(stream, address).await?,
                false => Box::new(stream),
            };
            let (reader, writer) = tokio::io::split(stream);
            let mut random = [0; 12];
            getrandom::fill(&mut random).map_err(|error| SinkError::Protocol(error.to_string()))?;
            let max_payload = info["max_payload"].as_u64().and_then(|bytes| usize::try_from(bytes).ok());
            let mut nats = Self {
                reader: BufReader::new(reader),
                writer,
                line: Vec::new(),
                inbox: format!("_INBOX.{}", hex::encode(random)),
                subject: subject_of(settings, names),
                max_payload: max_payload.unwrap_or(1 << 20),
            };
            nats.greet(way, info["nonce"].as_str()).await?;
            Ok(nats)
        };
        tokio::time::timeout(PATIENCE, connecting).await.map_err(|_| SinkError::Silent)?
    }

    async fn greet(&mut self, way: &Way<'_>, nonce: Option<&str>) -> Result<(), SinkError> {
        let mut connect = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "echo": false,
            "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "name": format!("eccluster-logd-{}", way.sink),
        });
        if let Some(secret) = way.credentials().await? {
            Credentials::parse(&secret)?.add_to(&mut connect, nonce)?;
        }
        let hello = format!("CONNECT {connect}\r\nSUB {}.* 1\r\nPING\r\n", self.inbox);
        self.write(hello.as_bytes()).await?;
        while self.line().await? != "PONG" {}
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    /// The next line that is no ping and no chatter; errors of the server are errors.
    async fn line(&mut self) -> Result<String, SinkError> {
        loop {
            let line = line_of(&mut self.reader, &mut self.line).await?;
            match line.as_str() {
                "PING" => self.write(b"PONG\r\n").await?,
                "+OK" => {}
                _ if line.starts_with("INFO ") => {}
                _ if line.starts_with("-ERR") => return Err(SinkError::Protocol(line)),
                _ => return Ok(line),
            }
        }
    }

    /// Publishes all up to one that is too long, and waits until each is stored.
    async fn publish(&mut self, messages: &[Message]) -> Result<Put, SinkError> {
        let (mut out, mut sent, mut result) = (Vec::new(), 0, Put::All);
        for message in messages {
            let header = format!("NATS/1.0\r\nNats-Msg-Id: {}\r\n\r\n", message.id);
            let total = header.len() + message.payload.len();
            if total > self.max_payload {
                let why = format!("{total} bytes with its header, the server's max_payload is {}", self.max_payload);
                result = Put::Before { place: sent, why };
                break;
            }
            let (subject, inbox, header_bytes) = (&self.subject, &self.inbox, header.len());
            let head = format!("HPUB {subject} {inbox}.{sent} {header_bytes} {total}\r\n{header}");
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&message.payload);
            out.extend_from_slice(b"\r\n");
            sent += 1;
        }
        // Side by side: a server that answers while it is sent to must not find nobody reading.
        let Self { reader, writer, line, .. } = self;
        let sending = async {
            writer.write_all(&out).await?;
            Ok::<_, SinkError>(writer.flush().await?)
        };
        let receiving = async {
            let (mut waiting, mut pings) = (sent, 0);
            while waiting > 0 {
                let answer = tokio::time::timeout(PATIENCE, answer(reader, line));
                match answer.await.map_err(|_| SinkError::Silent)?? {
                    Answer::Stored => waiting -= 1,
                    Answer::TooLarge { place, why } => {
                        waiting -= 1;
                        let before = matches!(result, Put::Before { place: known, .. } if known <= place);
                        if !before {
                            result = Put::Before { place, why };
                        }
                    }
                    Answer::Ping => pings += 1,
                    Answer::Nothing => {}
                }
            }
            Ok::<usize, SinkError>(pings)
        };
        let ((), pings) = tokio::try_join!(sending, receiving)?;
        self.write("PONG\r\n".repeat(pings).as_bytes()).await?;
        Ok(result)
    }
}

impl Outlet for Nats {
    fn put<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<Put, SinkError>> {
        self.publish(messages).boxed()
    }

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn confirm_every(&self) -> Duration {
        CONFIRM_EVERY
    }

    fn idle(&mut self) -> BoxFuture<'_, SinkError> {
        async {
            match self.line().await {
                Ok(line) => SinkError::Protocol(line),
                Err(error) => error,
            }
        }
        .boxed()
    }
}

/// A name with dots would be several words of a subject.
fn subject_of(settings: &Settings, names: &Names) -> String {
    let word = |name: &str| name.replace('.', "_");
    let subject = settings.subject.replace("%{l}", &word(&names.log));
    subject.replace("%{n}", &word(&names.node)).replace("%{s}", &word(&names.subcluster))
}

/// The next line, without its end. What has come of it stays in `line` when this is dropped.
async fn line_of(reader: &mut (impl tokio::io::AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<String, SinkError> {
    let room = MAX_LINE_BYTES.saturating_sub(line.len() as u64);
    reader.take(room).read_until(b'\n', line).await?;
    match line.last() {
        Some(b'\n') => Ok(String::from_utf8_lossy(&std::mem::take(line)).trim_end().to_owned()),
        _ if line.len() as u64 >= MAX_LINE_BYTES => Err(SinkError::Protocol("a line without an end".into())),
        _ => Err(SinkError::Io(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

enum Answer {
    Stored,
    /// The stream's own limit (`max_msg_size`) is below the server's.
    TooLarge {
        place: usize,
        why: String,
    },
    Ping,
    Nothing,
}

/// The next thing that the server says while acknowledgements are waited for.
async fn answer(reader: &mut (impl tokio::io::AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<Answer, SinkError> {
    let line = line_of(reader, line).await?;
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["PING"] => Ok(Answer::Ping),
        ["PONG" | "+OK"] | ["INFO", ..] => Ok(Answer::Nothing),
        ["MSG" | "HMSG", .., bytes] => {
            let bytes = bytes.parse().ok().filter(|bytes| *bytes <= MAX_ANSWER_BYTES);
            let bytes: usize = bytes.ok_or_else(|| SinkError::Protocol(line.clone()))?;
            // With the line break behind it.
            let mut body = vec![0; bytes + 2];
            reader.read_exact(&mut body).await?;
            // The reply subject ends with the message's place.
            let place = words[1].rsplit('.').next().and_then(|place| place.parse().ok());
            stored(&body[..bytes], place.ok_or_else(|| SinkError::Protocol(line.clone()))?)
        }
        _ => Err(SinkError::Protocol(line)),
    }
}

fn stored(body: &[u8], place: usize) -> Result<Answer, SinkError> {
    if body.starts_with(b"NATS/1.0 503") {
        return Err(SinkError::Refused("no stream takes this subject".into()));
    }
    let answer: Value = serde_json::from_slice(body)
        .map_err(|_| SinkError::Protocol(String::from_utf8_lossy(body).chars().take(200).collect()))?;
    match answer["error"]["description"].as_str() {
        Some(error) if answer["error"]["err_code"] == TOO_LARGE => {
            Ok(Answer::TooLarge { place, why: error.to_owned() })
        }
        Some(error) => Err(SinkError::Refused(error.to_owned())),
        None if answer["stream"].is_string() => Ok(Answer::Stored),
        None => Err(SinkError::Protocol(answer.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_of_a_stream() {
        assert!(matches!(stored(br#"{"stream":"LOGS","seq":7,"duplicate":true}"#, 0), Ok(Answer::Stored)));
        let refused = stored(br#"{"error":{"code":503,"description":"insufficient resources"}}"#, 0).err().unwrap();
        assert!(refused.to_string().contains("insufficient resources"));
        let nobody = stored(b"NATS/1.0 503\r\n\r\n", 0).err().unwrap();
        assert!(nobody.to_string().contains("no stream"));
        assert!(stored(b"hello", 0).is_err());
        let long = br#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#;
        assert!(matches!(stored(long, 3), Ok(Answer::TooLarge { place: 3, .. })));
    }

    #[tokio::test]
    async fn a_line_survives_a_reader_that_gives_up() {
        let (mut server, client) = tokio::io::duplex(64);
        let (mut reader, mut line) = (BufReader::new(client), Vec::new());
        server.write_all(b"PI").await.unwrap();
        tokio::select! {
            biased;
            _ = line_of(&mut reader, &mut line) => panic!("half a line"),
            () = tokio::task::yield_now() => {}
        }
        server.write_all(b"NG\r\nPONG\r\n").await.unwrap();
        assert_eq!(line_of(&mut reader, &mut line).await.unwrap(), "PING");
        assert_eq!(line_of(&mut reader, &mut line).await.unwrap(), "PONG");
        drop(server);
        assert!(line_of(&mut reader, &mut line).await.is_err());
    }
}
