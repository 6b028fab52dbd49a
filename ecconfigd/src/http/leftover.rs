//! What of a request's body nobody read, because the answer was given before its end: a refusal, mostly.
//!
//! A client that is still sending must get to read that answer. Over HTTP/1.1 a connection that is closed with something unread is reset,
//! over HTTP/2 the stream is, and clients then show the reset (curl: "Stream error in the HTTP/2 framing layer") and not the 413 that came
//! before it. So the rest is taken and thrown away while the answer is on its way; both bounds are there for those who never end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// As long as a request's head may take.
const TIME: Duration = Duration::from_secs(10);
/// More than twice the largest JSON body that is taken. It flows through the connection's window, so no more than that is held.
const BYTES: u64 = 256 << 20;

/// A request's body that is read to its end by somebody.
pub(super) struct Whole {
    body: Option<Incoming>,
    /// True when the client waits to be asked before it sends: unless somebody has asked, there is nothing to take.
    waits: bool,
    draining: CancellationToken,
}

impl Whole {
    pub(super) fn of(request: Request<Incoming>, draining: &CancellationToken) -> Request<Whole> {
        let waits = request.headers().contains_key(header::EXPECT);
        request.map(|body| Whole { body: Some(body), waits, draining: draining.clone() })
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) else { return };
        // Without a runtime the process ends, and its connections with it.
        if let Ok(runtime) = Handle::try_current() {
            let draining = self.draining.clone();
            runtime.spawn(async move {
                let taking = draining.run_until_cancelled(throw_away(body));
                let _ = tokio::time::timeout(TIME, taking).await;
            });
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut left = BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = match left.checked_sub(frame.data_ref().map_or(0, Bytes::len) as u64) {
            Some(left) => left,
            None => return,
        };
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
