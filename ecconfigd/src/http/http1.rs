//! HTTP/1.1: requests one after the other, and the answers that are taken away from hyper because they last.
//!
//! hyper keeps 16 KiB of buffers and its machinery for as long as a connection may carry a request. Ten thousand watchers that wait need
//! none of that, so while one waits hyper's connection is dropped and what remains is the TLS session and the watcher. An event stream is
//! the last answer of its connection. A long poll's answer is written here too, and then hyper goes on with the connection.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

use super::activity::ConnectionInfo;
use super::connection::{Acceptor, Answer, Handler, LastAnswer, LaterAnswer, Tls};
use super::stream;
use super::wire::Wire;

/// What is taken away from hyper.
enum Taken {
    /// The last answer of the connection.
    Last(Response<Body>),
    /// An answer that comes later, and whether it is the last one because the client wants it so.
    Later(LaterAnswer, bool),
}

/// Where an answer that is not hyper's business waits for the connection's loop.
#[derive(Default)]
struct Slot {
    taken: Mutex<Option<Taken>>,
    there: Notify,
}

impl Slot {
    fn put(&self, taken: Taken) {
        *self.taken.lock().expect("no code panics while it holds this lock") = Some(taken);
        self.there.notify_one();
    }

    /// Waits for the answer. Cancel safe: nothing is taken before it is returned.
    async fn taken(&self) -> Taken {
        loop {
            self.there.notified().await;
            if let Some(taken) = self.taken.lock().expect("no code panics while it holds this lock").take() {
                return taken;
            }
        }
    }
}

impl<H: Handler> Acceptor<H> {
    /// Serves requests until the connection ends.
    pub(super) async fn serve_http1(&self, stream: Box<Tls>, info: Arc<ConnectionInfo>) {
        let mut wire = Wire::new(stream, info.clone());
        let stall = self.limits.now().body_idle_time;
        loop {
            // Boxed: the connection's task would keep room for hyper while it waits without it.
            let Some((parted, taken)) = Box::pin(self.with_hyper(wire, &info)).await else { return };
            wire = parted;
            match taken {
                Taken::Last(answer) => return Box::pin(stream::send(wire, answer, stall)).await,
                Taken::Later(later, last) => {
                    let Some((answer, read)) = waited(&mut wire, later).await else { return };
                    let last = last || info.leaving() || self.draining.is_cancelled();
                    if Box::pin(stream::answer(&mut wire, answer, last, stall)).await.is_none() || last {
                        return;
                    }
                    if let Some(byte) = read {
                        wire.put_back(&[byte]);
                    }
                }
            }
        }
    }

    /// Lets hyper serve until the connection ends (`None`) or an answer is taken away from it.
    async fn with_hyper(&self, wire: Wire<Box<Tls>>, info: &Arc<ConnectionInfo>) -> Option<(Wire<Box<Tls>>, Taken)> {
        let slot = Slot::default();
        let service = service_fn(|request| self.answer(request, info, &slot));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .max_headers(self.limits.now().header_count)
            .max_buf_size(self.limits.now().header_bytes.max(8192))
            .header_read_timeout(None)
            .half_close(false);
        let mut connection = builder.serve_connection(TokioIo::new(wire), service);
        let mut draining = false;
        loop {
            tokio::select! {
                _ = &mut connection => return None,
                taken = slot.taken() => {
                    let parts = connection.into_parts();
                    let mut wire = parts.io.into_inner();
                    // A client that sent its next request along: it has no other way of telling us that it is still there.
                    wire.put_back(&parts.read_buf);
                    return Some((wire, taken));
                }
                () = self.draining.cancelled(), if !draining => {
                    draining = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                () = self.idle_too_long(info) => return None,
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        info: &Arc<ConnectionInfo>,
        slot: &Slot,
    ) -> Result<Response<Body>, Infallible> {
        let separable =
            request.version() == Version::HTTP_11 && request.method() == Method::GET && request.body().is_end_stream();
        let last = wants_close(request.headers());
        // Boxed: hyper keeps room for this future between requests.
        let taken = match Box::pin(self.handler.clone().handle(request, info.clone())).await {
            Answer::Now(mut response) => match response.extensions_mut().remove::<LastAnswer>() {
                Some(LastAnswer) => Taken::Last(response),
                None => return Ok(self.closing(response, info)),
            },
            Answer::Later(later) if separable => Taken::Later(later, last),
            Answer::Later(later) => return Ok(self.closing(later.await, info)),
        };
        slot.put(taken);
        // The connection's loop takes over and drops this future.
        std::future::pending().await
    }

    fn closing(&self, mut response: Response<Body>, info: &ConnectionInfo) -> Response<Body> {
        if self.draining.is_cancelled() || info.leaving() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn wants_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// Waits for the answer, and with it for the client to leave (`None`). A first byte of the next request is kept; there it stays at that,
/// and a client that leaves is noticed when it is answered.
async fn waited(io: &mut (impl AsyncRead + Unpin), mut later: LaterAnswer) -> Option<(Response<Body>, Option<u8>)> {
    let mut byte = [0; 1];
    tokio::select! {
        answer = &mut later => return Some((answer, None)),
        read = io.read(&mut byte) => match read {
            Ok(1..) => {}
            _ => return None,
        },
    }
    Some((later.await, Some(byte[0])))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn a_client_says_that_it_will_close() {
        let mut headers = HeaderMap::new();
        assert!(!wants_close(&headers));
        headers.append(header::CONNECTION, "keep-alive, Close".parse().unwrap());
        assert!(wants_close(&headers));
    }

    #[tokio::test]
    async fn a_client_that_leaves_or_goes_on_while_it_waits() {
        let (client, mut server) = tokio::io::duplex(64);
        drop(client);
        assert!(waited(&mut server, Box::pin(std::future::pending())).await.is_none());

        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"GET").await.unwrap();
        let later = async {
            tokio::task::yield_now().await;
            Response::new(Body::empty())
        };
        let (_, read) = waited(&mut server, Box::pin(later)).await.unwrap();
        let mut rest = [0; 2];
        server.read_exact(&mut rest).await.unwrap();
        assert_eq!((read, &rest), (Some(b'G'), b"ET"));
    }
}
