//! One stream of pieces in each direction on a connection of its own: TCP's window is the flow control, and nothing else waits behind it.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::frame::{self, Frame};
use super::{MAX_PIECE_BYTES, PeerError, Refusal};

/// How long a piece may take in either direction before the stream is given up.
const PAUSE: Duration = Duration::from_secs(60);

/// A bulk stream, the same on both ends.
pub struct Bulk {
    io: BufStream<TlsStream<TcpStream>>,
    peer: String,
    pause: Duration,
}

impl Bulk {
    pub(super) fn new(io: BufStream<TlsStream<TcpStream>>, peer: String) -> Self {
        Self { io, peer, pause: PAUSE }
    }

    /// The other node.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    fn lost(&self, why: impl std::fmt::Display) -> PeerError {
        PeerError::Lost { peer: self.peer.clone(), why: why.to_string() }
    }

    async fn timed<T>(pause: Duration, work: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
        match tokio::time::timeout(pause, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("nothing moved for {} s", pause.as_secs())),
        }
    }

    /// Sends bytes, in pieces where they are many.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), PeerError> {
        while !bytes.is_empty() {
            let piece = Frame::Piece(bytes.split_to(bytes.len().min(MAX_PIECE_BYTES)));
            let sent = Self::timed(self.pause, frame::write(&mut self.io, &piece)).await;
            sent.map_err(|why| self.lost(why))?;
        }
        Ok(())
    }

    /// Pushes out what was sent so far.
    pub async fn flush(&mut self) -> Result<(), PeerError> {
        Self::timed(self.pause, self.io.flush()).await.map_err(|why| self.lost(why))
    }

    /// Ends this direction: the other end's [`Bulk::next`] answers `None`.
    pub async fn finish(&mut self) -> Result<(), PeerError> {
        let sent = Self::timed(self.pause, frame::write(&mut self.io, &Frame::End)).await;
        sent.map_err(|why| self.lost(why))?;
        self.flush().await
    }

    /// Ends the stream with words.
    pub(super) async fn refuse(&mut self, refusal: Refusal) -> Result<(), PeerError> {
        let sent = Self::timed(self.pause, frame::write(&mut self.io, &Frame::Refusal { id: 0, refusal })).await;
        sent.map_err(|why| self.lost(why))?;
        self.flush().await
    }

    /// The next piece, `None` at the end. A refusal by the other end is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        let pause = self.pause;
        self.next_within(pause).await
    }

    /// The same with another patience: the other end may have long work to do before it answers.
    pub async fn next_within(&mut self, pause: Duration) -> Result<Option<Bytes>, PeerError> {
        match Self::timed(pause, frame::read(&mut self.io)).await {
            Ok(Some(Frame::Piece(bytes))) => Ok(Some(bytes)),
            Ok(Some(Frame::End)) => Ok(None),
            Ok(Some(Frame::Refusal { refusal, .. })) => Err(PeerError::Refused { peer: self.peer.clone(), refusal }),
            Ok(Some(other)) => Err(self.lost(format!("an unexpected frame: {other:?}"))),
            Ok(None) => Err(self.lost("it was closed")),
            Err(why) => Err(self.lost(why)),
        }
    }

    /// All pieces up to the end, if they are not more than so many bytes.
    pub async fn collect(&mut self, limit_bytes: usize) -> Result<Bytes, PeerError> {
        let mut all = bytes::BytesMut::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > limit_bytes {
                return Err(self.lost(format!("it sends more than {limit_bytes} bytes")));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}
