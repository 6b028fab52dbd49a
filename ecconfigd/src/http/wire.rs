//! The bytes of an HTTP/1.1 connection between TLS and hyper, for the two things that hyper has no setting for.
//!
//! A head that cannot be parsed, or is too large, hyper answers by itself and without a body; here that answer becomes a problem document
//! like every other. And what was read while a long poll waited outside of hyper (see [`super::http1`]) is put back in front.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use cluster::api::{PROBLEM_JSON, Problem};
use cluster::telemetry::RequestId;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::ConnectionInfo;
use super::problem::{ApiError, Code};

/// The connection's bytes.
pub(super) struct Wire<T> {
    io: T,
    info: Arc<ConnectionInfo>,
    /// Read already, and to be read again first.
    before: Bytes,
    /// To be written in place of hyper's own answer.
    instead: Bytes,
    /// How many requests there had been when everything was last written out and none was in flight. What is written before there is
    /// one more can only be hyper's own.
    quiet_at: u64,
}

impl<T> Wire<T> {
    pub(super) fn new(io: T, info: Arc<ConnectionInfo>) -> Self {
        Self { io, info, before: Bytes::new(), instead: Bytes::new(), quiet_at: 0 }
    }

    /// Puts back what was read, in front of what was put back before and not read again yet. A copy: the bytes may be a few of a large
    /// buffer, or none of it.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.before = match (bytes, &*self.before) {
            ([], []) => Bytes::new(),
            (bytes, before) => [bytes, before].concat().into(),
        };
    }

    /// The problem document for what hyper is about to say by itself.
    fn instead_of(&self, data: &[u8]) -> Option<Bytes> {
        if self.info.served() != self.quiet_at {
            return None;
        }
        let status = data.strip_prefix(b"HTTP/1.1 ").or_else(|| data.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
        let error = match StatusCode::from_bytes(status).ok()? {
            StatusCode::URI_TOO_LONG => ApiError::new(Code::UriTooLong, "the request's path and query are too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                ApiError::new(Code::HeadTooLarge, "the request's head has too many or too large fields")
            }
            status if status.is_client_error() => ApiError::bad_request("the request's head cannot be parsed"),
            _ => return None,
        };
        Some(raw(error.problem().clone()))
    }
}

/// A problem as the bytes of a whole answer, the last one of its connection.
pub(super) fn raw(mut problem: Problem) -> Bytes {
    let id = RequestId::random();
    problem.request_id = Some(id.as_str().to_owned());
    let body = serde_json::to_string(&problem).expect("a problem has no map with keys that are not text");
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\ncache-control: no-store\r\nx-request-id: {id}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    answer.into()
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    fn write_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.instead))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.before.len().min(buf.remaining());
        buf.put_slice(&self.before.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.write_instead(cx))?;
        if let Some(instead) = self.instead_of(data) {
            self.instead = instead;
            return Poll::Ready(Ok(data.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.write_instead(cx))?;
        if let Some(instead) = parts.first().and_then(|first| self.instead_of(first)) {
            self.instead = instead;
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_instead(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if !self.info.busy() {
            self.quiet_at = self.info.served();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_instead(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::activity::InFlight;
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const OWN: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";

    async fn written(wire: &mut Wire<tokio::io::DuplexStream>, far: &mut tokio::io::DuplexStream) -> String {
        wire.write_all(OWN).await.unwrap();
        wire.flush().await.unwrap();
        let mut text = vec![0; 4096];
        let count = far.read(&mut text).await.unwrap();
        String::from_utf8_lossy(&text[..count]).into_owned()
    }

    #[tokio::test]
    async fn only_what_nobody_asked_for_is_replaced() {
        let info = ConnectionInfo::new(([127, 0, 0, 1], 1).into(), None);
        let (near, mut far) = tokio::io::duplex(4096);
        let mut wire = Wire::new(near, info.clone());
        let first = written(&mut wire, &mut far).await;
        assert!(first.starts_with("HTTP/1.1 431 ") && first.contains("\"code\":\"head_too_large\""), "{first}");

        // A file whose content looks like an answer, in the answer to a request.
        let request = InFlight::begin(&info);
        assert_eq!(written(&mut wire, &mut far).await.as_bytes(), OWN);
        drop(request);
        let request = InFlight::begin(&info);
        drop(request);
        assert_eq!(written(&mut wire, &mut far).await.as_bytes(), OWN, "the body is done before it is written");
        assert!(written(&mut wire, &mut far).await.contains("head_too_large"), "nothing has been asked since");
    }

    #[tokio::test]
    async fn what_was_put_back_comes_first() {
        let info = ConnectionInfo::new(([127, 0, 0, 1], 1).into(), None);
        let (near, mut far) = tokio::io::duplex(4096);
        let mut wire = Wire::new(near, info);
        wire.put_back(b"ET ");
        wire.put_back(b"G");
        far.write_all(b"/").await.unwrap();
        let mut text = [0; 5];
        wire.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"GET /");
    }
}
