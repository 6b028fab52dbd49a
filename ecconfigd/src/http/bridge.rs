//! From the asynchronous world into threads that block and back: git's protocol reads and writes streams.
//!
//! Both directions go through channels of a few chunks, so a fast side waits for the slow one and nothing piles up. A side that makes no
//! progress for the pause limit, or a transfer that outlives its time, fails with words that end up in git's error message.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Chunks on the way, each of at most [`CHUNK_BYTES`]: a transfer holds at most 256 KiB here. When the channel is full the writer waits.
const CHUNKS: usize = 8;
/// What is gathered before it is sent.
const CHUNK_BYTES: usize = 32 << 10;

/// The bounds of one transfer.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The longest pause.
    pub pause: Duration,
    /// The end of the transfer's time.
    pub deadline: Instant,
}

impl Pace {
    fn left(&self) -> Duration {
        self.pause.min(self.deadline.saturating_duration_since(Instant::now()))
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the transfer was too slow")
}

/// A request's body, read by a thread that may block.
pub struct BodyReader {
    body: BodyDataStream,
    chunk: Bytes,
    runtime: Handle,
    pace: Pace,
}

impl BodyReader {
    /// Reads this body.
    pub fn new(body: Body, pace: Pace) -> Self {
        Self { body: body.into_data_stream(), chunk: Bytes::new(), runtime: Handle::current(), pace }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let next = tokio::time::timeout(self.pace.left(), self.body.next());
            match self.runtime.block_on(next) {
                Err(_) => return Err(too_slow()),
                Ok(None) => return Ok(0),
                Ok(Some(Ok(chunk))) => self.chunk = chunk,
                Ok(Some(Err(error))) => return Err(io::Error::other(error)),
            }
        }
        let count = buf.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buf[..count]);
        Ok(count)
    }
}

/// An answer's body, written by a thread that may block.
pub struct BodyWriter {
    /// Told once whether there is an answer at all.
    begun: Option<oneshot::Sender<io::Result<()>>>,
    chunk: BytesMut,
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    pace: Pace,
}

impl BodyWriter {
    /// The writer, and the answer as it begins: the body that carries what is written, or what failed before anything was.
    pub fn new(pace: Pace) -> (Self, impl Future<Output = io::Result<Body>>) {
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let (begun, beginning) = oneshot::channel();
        let body = Body::from_stream(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let writer = Self { begun: Some(begun), chunk: BytesMut::new(), sender, runtime: Handle::current(), pace };
        let answer = async {
            let begun = beginning.await.unwrap_or_else(|_| Err(io::Error::other("the writer is gone")));
            begun.map(|()| body)
        };
        (writer, answer)
    }

    /// Sends what is left.
    pub fn finish(mut self) -> io::Result<()> {
        self.begin(Ok(()));
        self.flush()
    }

    /// Breaks the answer off, so that the client does not take half of it for the whole. Before it has begun there is no answer to break
    /// off, only one to make of the error.
    pub fn fail(mut self, error: io::Error) {
        if let Some(error) = self.begin(Err(error)).and_then(Result::err) {
            let _ = self.send(Err(error));
        }
    }

    /// Says how the answer begins; gives the word back if it was said already.
    fn begin(&mut self, begun: io::Result<()>) -> Option<io::Result<()>> {
        let Some(sender) = self.begun.take() else { return Some(begun) };
        // An error here: nobody waits for the answer any more.
        let _ = sender.send(begun);
        None
    }

    fn send(&mut self, item: io::Result<Bytes>) -> io::Result<()> {
        self.begin(Ok(()));
        let sending = tokio::time::timeout(self.pace.left(), self.sender.send(item));
        match self.runtime.block_on(sending) {
            Err(_) => Err(too_slow()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Ok(Ok(())) => Ok(()),
        }
    }
}

impl Write for BodyWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&data[..count]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        self.send(Ok(chunk))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt as _;

    fn pace(pause_ms: u64) -> Pace {
        Pace { pause: Duration::from_millis(pause_ms), deadline: Instant::now() + Duration::from_secs(60) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_come_through_in_both_directions() {
        let data: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
        let (mut writer, answer) = BodyWriter::new(pace(60_000));
        let sent = data.clone();
        let writing = tokio::task::spawn_blocking(move || {
            writer.write_all(&sent).unwrap();
            writer.finish().unwrap();
        });
        let mut reader = BodyReader::new(answer.await.unwrap(), pace(60_000));
        let reading = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        writing.await.unwrap();
        assert_eq!(reading.await.unwrap(), data);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stalled_client_ends_the_writer() {
        let (mut writer, answer) = BodyWriter::new(pace(20));
        let writing = tokio::task::spawn_blocking(move || writer.write_all(&vec![0; 1 << 20]));
        let body = answer.await.unwrap();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(body);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stalled_sender_ends_the_reader() {
        let body = Body::from_stream(futures::stream::pending::<io::Result<Bytes>>());
        let mut reader = BodyReader::new(body, pace(20));
        let reading = tokio::task::spawn_blocking(move || reader.read(&mut [0; 10]));
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broken_answer_is_not_a_whole_one() {
        let (mut writer, answer) = BodyWriter::new(pace(60_000));
        tokio::task::spawn_blocking(move || {
            writer.write_all(b"half").unwrap();
            writer.flush().unwrap();
            writer.fail(io::Error::other("broken"));
        });
        assert!(answer.await.unwrap().collect().await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_before_it_begins_is_no_answer() {
        let (writer, answer) = BodyWriter::new(pace(60_000));
        tokio::task::spawn_blocking(move || writer.fail(io::Error::other("broken")));
        assert_eq!(answer.await.unwrap_err().to_string(), "broken");
        let (writer, answer) = BodyWriter::new(pace(60_000));
        drop(writer);
        assert!(answer.await.is_err());
        let (writer, answer) = BodyWriter::new(pace(60_000));
        tokio::task::spawn_blocking(move || writer.finish().unwrap());
        assert_eq!(answer.await.unwrap().collect().await.unwrap().to_bytes().len(), 0);
    }
}
