//! The last answer of an HTTP/1.1 connection, sent without hyper: a head, then bytes until the connection closes.
//!
//! hyper keeps 16 KiB of buffers and its machinery for as long as a connection may carry another request. An event stream lasts for hours
//! and nothing follows it, so it needs none of that: what remains is the TLS session and the events' source. The body ends with the
//! connection (RFC 9112, 6.3), which event streams expect anyway. HTTP/2 connections are shared by many requests and stay with hyper.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::response::Parts;
use http::{Response, header};
use http_body_util::BodyExt as _;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The form of `Date` (RFC 9110, 5.6.7).
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Sends the answer, until it ends, the client leaves, or the client takes nothing for the stall time.
pub(super) async fn send(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: Response<Body>, stall: Duration) {
    let (parts, mut body) = answer.into_parts();
    let head = head(&parts);
    drop(parts);
    if write(&mut io, &head, stall).await.is_none() {
        return;
    }
    drop(head);
    loop {
        let mut scrap = [0; 16];
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // A client that closes is gone; one that pipelines another request is not answered any more.
            read = io.read(&mut scrap) => match read {
                Ok(1..) => continue,
                _ => return,
            },
        };
        let Some(Ok(frame)) = frame else { break };
        let data = frame.into_data().unwrap_or_else(|_| Bytes::new());
        if write(&mut io, &data, stall).await.is_none() {
            return;
        }
    }
    let _ = tokio::time::timeout(stall, io.shutdown()).await;
}

async fn write(io: &mut (impl AsyncWrite + Unpin), data: &[u8], stall: Duration) -> Option<()> {
    let writing = async {
        io.write_all(data).await?;
        io.flush().await
    };
    tokio::time::timeout(stall, writing).await.ok()?.ok()
}

fn head(parts: &Parts) -> Vec<u8> {
    let status = parts.status;
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in &parts.headers {
        // The body has no length and ends with the connection.
        if *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING || *name == header::CONNECTION {
            continue;
        }
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if let Ok(date) = OffsetDateTime::now_utc().format(DATE) {
        head.extend_from_slice(format!("date: {date}\r\n").as_bytes());
    }
    head.extend_from_slice(b"connection: close\r\n\r\n");
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::convert::Infallible;

    fn events(count: usize) -> Response<Body> {
        let chunks = (0..count).map(|number| Ok::<_, Infallible>(format!("id: {number}\n\n")));
        let mut answer = Response::new(Body::from_stream(futures::stream::iter(chunks)));
        answer.headers_mut().insert("x-a", "b".parse().unwrap());
        answer
    }

    #[tokio::test]
    async fn head_and_events_come_in_order() {
        let (mut client, server) = tokio::io::duplex(64);
        let sending = tokio::spawn(send(server, events(3), Duration::from_secs(60)));
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        sending.await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nx-a: b\r\ndate: "), "{head}");
        assert!(head.ends_with(" GMT\r\nconnection: close"), "{head}");
        assert_eq!(body, "id: 0\n\nid: 1\n\nid: 2\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left() {
        let (client, server) = tokio::io::duplex(64);
        send(server, events(1000), Duration::from_secs(5)).await;
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_a_quiet_stream() {
        let (client, server) = tokio::io::duplex(1024);
        let quiet = futures::stream::pending::<Result<Bytes, Infallible>>();
        let sending = tokio::spawn(send(server, Response::new(Body::from_stream(quiet)), Duration::from_secs(60)));
        drop(client);
        sending.await.unwrap();
    }
}
