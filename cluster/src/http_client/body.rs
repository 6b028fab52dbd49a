//! Bodies: read whole within a limit, streamed, or handed to code that blocks.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, StatusCode};
use reqwest::Body;
use serde::de::DeserializeOwned;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::{ClientError, ServerUrl};
use crate::api::X_REVISION;

/// A JSON answer of the API; listings of 100,000 entries fit.
const JSON_LIMIT_BYTES: u64 = 64 << 20;

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Reply {
    server: ServerUrl,
    response: reqwest::Response,
}

impl Reply {
    pub(super) fn new(server: ServerUrl, response: reqwest::Response) -> Self {
        Self { server, response }
    }

    /// The status: 2xx or 304.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The server that answered.
    pub fn server(&self) -> &ServerUrl {
        &self.server
    }

    /// One header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The revision (or serial) that the answer was read at.
    pub fn revision(&self) -> Option<u64> {
        self.header(X_REVISION)?.parse().ok()
    }

    /// Reads the body as JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let server = self.server.clone();
        let bytes = self.bytes(JSON_LIMIT_BYTES).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::answer(&server, error))
    }

    /// Reads the body, refusing more than `limit_bytes`.
    pub async fn bytes(mut self, limit_bytes: u64) -> Result<Bytes, ClientError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit_bytes {
                return Err(ClientError::answer(&self.server, format!("it is longer than {limit_bytes} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// The next piece of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response.chunk().await.map_err(|error| ClientError::transport(&self.server, error))
    }

    /// The body as a stream.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin + 'static {
        self.response
            .bytes_stream()
            .map(|piece| piece.map_err(|error| std::io::Error::other(error.without_url())))
            .boxed()
    }

    /// The body for code that blocks. Call this on the runtime, and read on a thread that may block
    /// (`spawn_blocking`): reading on a runtime thread panics.
    pub fn into_blocking_reader(self) -> impl Read + Send + 'static {
        SyncIoBridge::new(StreamReader::new(self.into_stream()))
    }
}

/// The blocking end of [`upload_pipe`]; dropping it ends the body.
pub type UploadWriter = SyncIoBridge<tokio::io::DuplexStream>;

/// A request body that blocking code writes while it is being sent. At most `buffer_bytes` wait in between; then the writer waits.
pub fn upload_pipe(buffer_bytes: usize) -> (UploadWriter, Body) {
    let (near, far) = tokio::io::duplex(buffer_bytes);
    (SyncIoBridge::new(near), Body::wrap_stream(ReaderStream::new(far)))
}
