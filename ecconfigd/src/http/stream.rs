//! Answers over HTTP/1.1 that are written without hyper (see [`super::http1`] for why).
//!
//! An event stream is a head, then bytes until the connection closes: the body ends with the connection (RFC 9112, 6.3), which event streams
//! expect anyway. A long poll's answer is small and has a length.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::response::Parts;
use http::{Response, StatusCode, header};
use http_body::Body as _;
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
    let head = head(&parts, Framing::UntilClose);
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

/// Sends an answer whose length is known, after which the connection goes on unless this is the last one. `None`: it cannot go on.
pub(super) async fn answer(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: Response<Body>,
    last: bool,
    stall: Duration,
) -> Option<()> {
    let (parts, mut body) = answer.into_parts();
    let Some(length) = body.size_hint().exact() else {
        send(io, Response::from_parts(parts, body), stall).await;
        return None;
    };
    let mut bytes = head(&parts, Framing::Length { length, last });
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(&frame.ok()?.into_data().unwrap_or_default());
    }
    write(io, &bytes, stall).await?;
    // Dropped after its last byte is out: until then the request is in flight.
    drop(body);
    if last {
        let _ = tokio::time::timeout(stall, io.shutdown()).await;
    }
    Some(())
}

async fn write(io: &mut (impl AsyncWrite + Unpin), data: &[u8], stall: Duration) -> Option<()> {
    let writing = async {
        io.write_all(data).await?;
        io.flush().await
    };
    tokio::time::timeout(stall, writing).await.ok()?.ok()
}

/// How the client knows where the body ends.
#[derive(Clone, Copy)]
enum Framing {
    UntilClose,
    Length { length: u64, last: bool },
}

fn head(parts: &Parts, framing: Framing) -> Vec<u8> {
    let status = parts.status;
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in &parts.headers {
        // These say how the body is framed, which is decided here.
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
    let (length, close) = match framing {
        Framing::UntilClose => (None, true),
        // An answer that has no body by its status does not name its length either (RFC 9110, 8.6).
        Framing::Length { last, .. } if bodiless(status) => (None, last),
        Framing::Length { length, last } => (Some(length), last),
    };
    if let Some(length) = length {
        head.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    head.extend_from_slice(if close { b"connection: close\r\n\r\n".as_slice() } else { b"\r\n" });
    head
}

fn bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
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

    #[tokio::test]
    async fn an_answer_with_a_length_leaves_the_connection_open() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        for (body, status, last) in [("abc", 200, false), ("", 304, false), ("abc", 503, true)] {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            answer(&mut server, response, last, Duration::from_secs(60)).await.unwrap();
        }
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        let answers: Vec<_> = text.split("HTTP/1.1 ").skip(1).collect();
        assert!(answers[0].ends_with("content-length: 3\r\n\r\nabc") && !answers[0].contains("close"), "{text}");
        assert!(answers[1].ends_with(" GMT\r\n\r\n") && !answers[1].contains("content-length"), "{text}");
        assert!(answers[2].ends_with("content-length: 3\r\nconnection: close\r\n\r\nabc"), "{text}");
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
