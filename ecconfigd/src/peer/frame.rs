//! Frames on a connection: reading, writing, and their bounds.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{MAX_BODY_BYTES, Method, Refusal, RefusalCode};

/// Kind and id.
const HEAD_BYTES: usize = 9;
/// What a request has in front of its body.
const REQUEST_BYTES: usize = 6;

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const REFUSAL: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;
const PIECE: u8 = 6;
const END: u8 = 7;

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Request { id: u64, method: Method, time_left_ms: u32, body: Bytes },
    Answer { id: u64, body: Bytes },
    Refusal { id: u64, refusal: Refusal },
    Ping,
    Pong,
    Piece(Bytes),
    End,
}

fn invalid(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

/// Writes a frame. Flushing is the caller's business.
pub(super) async fn write(out: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let empty = Bytes::new();
    let (kind, id, extra, body) = match frame {
        Frame::Request { id, method, time_left_ms, body } => {
            let mut extra = BytesMut::with_capacity(REQUEST_BYTES);
            extra.put_u16_le(method.0);
            extra.put_u32_le(*time_left_ms);
            (REQUEST, *id, extra.freeze(), body)
        }
        Frame::Answer { id, body } => (ANSWER, *id, Bytes::new(), body),
        Frame::Refusal { id, refusal } => {
            let mut extra = BytesMut::with_capacity(1 + refusal.words.len());
            extra.put_u8(refusal.code as u8);
            extra.put_slice(refusal.words.as_bytes());
            (REFUSAL, *id, extra.freeze(), &empty)
        }
        Frame::Ping => (PING, 0, Bytes::new(), &empty),
        Frame::Pong => (PONG, 0, Bytes::new(), &empty),
        Frame::Piece(body) => (PIECE, 0, Bytes::new(), body),
        Frame::End => (END, 0, Bytes::new(), &empty),
    };
    let length = HEAD_BYTES + extra.len() + body.len();
    if length > MAX_BODY_BYTES + HEAD_BYTES + REQUEST_BYTES {
        return Err(invalid(format!("a frame of {length} bytes is over the bound")));
    }
    let mut head = BytesMut::with_capacity(4 + HEAD_BYTES + extra.len());
    head.put_u32_le(u32::try_from(length).map_err(io::Error::other)?);
    head.put_u8(kind);
    head.put_u64_le(id);
    head.put_slice(&extra);
    out.write_all(&head).await?;
    out.write_all(body).await
}

/// Reads a frame; `None` where the other end closed between frames. Not cancel safe.
pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_le_bytes(length) as usize;
    if !(HEAD_BYTES..=MAX_BODY_BYTES + HEAD_BYTES + REQUEST_BYTES).contains(&length) {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    // Read as it comes: a length alone must not take 32 MiB of memory.
    let mut bytes = BytesMut::with_capacity(length.min(64 << 10));
    let mut rest = input.take(length as u64);
    while bytes.len() < length {
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    decode(bytes.freeze()).map(Some)
}

fn decode(mut bytes: Bytes) -> io::Result<Frame> {
    let kind = bytes.get_u8();
    let id = bytes.get_u64_le();
    Ok(match kind {
        REQUEST => {
            if bytes.len() < REQUEST_BYTES {
                return Err(invalid("a request without a method".into()));
            }
            let method = Method(bytes.get_u16_le());
            let time_left_ms = bytes.get_u32_le();
            Frame::Request { id, method, time_left_ms, body: bytes }
        }
        ANSWER => Frame::Answer { id, body: bytes },
        REFUSAL => {
            if bytes.is_empty() {
                return Err(invalid("a refusal without a code".into()));
            }
            let code = RefusalCode::from_number(bytes.get_u8());
            let words = String::from_utf8_lossy(&bytes).into_owned();
            Frame::Refusal { id, refusal: Refusal { code, words } }
        }
        PING => Frame::Ping,
        PONG => Frame::Pong,
        PIECE => Frame::Piece(bytes),
        END => Frame::End,
        other => return Err(invalid(format!("a frame of kind {other}"))),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_go_there_and_back() {
        let frames = [
            Frame::Request { id: 7, method: Method::VOTE, time_left_ms: 250, body: Bytes::from_static(b"body") },
            Frame::Answer { id: u64::MAX, body: Bytes::new() },
            Frame::Refusal { id: 1, refusal: Refusal::bad("nö") },
            Frame::Ping,
            Frame::Pong,
            Frame::Piece(Bytes::from(vec![5; 100_000])),
            Frame::End,
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write(&mut wire, frame).await.unwrap();
        }
        let mut input = wire.as_slice();
        for frame in &frames {
            assert_eq!(read(&mut input).await.unwrap().as_ref(), Some(frame));
        }
        assert_eq!(read(&mut input).await.unwrap(), None);
    }

    /// The protocol is a promise between builds: these bytes are version 1.
    #[tokio::test]
    async fn version_1_is_these_bytes() {
        let mut wire = Vec::new();
        let frame = Frame::Request { id: 7, method: Method::VOTE, time_left_ms: 250, body: Bytes::from_static(b"x") };
        write(&mut wire, &frame).await.unwrap();
        write(&mut wire, &Frame::Refusal { id: 7, refusal: Refusal::bad("no") }).await.unwrap();
        assert_eq!(
            hex::encode(wire),
            "10000000010700000000000000 0200fa00000078 0c0000000307000000000000000 36e6f".replace(' ', "")
        );
    }

    #[tokio::test]
    async fn senseless_frames_are_refused() {
        for wire in
            [&[0, 0, 0, 0][..], &[255, 255, 255, 255], &[9, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0], &[9, 0, 0, 0, 1]]
        {
            assert!(read(&mut &wire[..]).await.is_err(), "{wire:?}");
        }
    }
}
