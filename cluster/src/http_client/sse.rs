//! Server-sent events: a parser with bounds, and a stream that reconnects and resumes.

use std::time::Duration;

use bytes::Bytes;

use super::{ApiClient, Backoff, Call, ClientError, Reply};

/// One event's data; an event of the API is a few kilobytes.
const EVENT_LIMIT_BYTES: usize = 4 << 20;
/// The server sends a comment every 25 seconds; when two are missing it is gone.
const SILENCE: Duration = Duration::from_secs(60);
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The event's id; the next connection resumes after it.
    pub id: Option<String>,
    /// Its type; empty means `message`.
    pub event: String,
    /// Its data, lines joined by newlines.
    pub data: String,
}

/// Turns bytes into events, as the HTML standard describes.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    /// A `\n` right after a `\r` belongs to it.
    after_cr: bool,
    started: bool,
    retry: Option<Duration>,
}

/// An event grew beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_LIMIT_BYTES} bytes")]
pub struct EventTooLong;

impl SseParser {
    /// Takes more bytes and appends the events they complete.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<SseEvent>) -> Result<(), EventTooLong> {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
            self.line.extend_from_slice(line);
            if self.line.len() + self.event.data.len() > EVENT_LIMIT_BYTES {
                return Err(EventTooLong);
            }
            let Some((ending, after)) = after.split_first() else { break };
            self.after_cr = *ending == b'\r';
            self.end_line(events);
            rest = after;
        }
        Ok(())
    }

    /// How long the server asked to wait before reconnecting.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn end_line(&mut self, events: &mut Vec<SseEvent>) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = if self.started { &*line } else { line.trim_start_matches('\u{feff}') };
        self.started = true;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "event" => self.event.event = value.into(),
            "id" if !value.contains('\0') => self.event.id = Some(value.into()),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry),
            // Comments (an empty field name) and unknown fields.
            _ => {}
        }
    }
}

/// What an [`EventStream`] has to say.
#[derive(Debug)]
pub enum Incoming {
    /// A server accepted the stream; everything since the last event will follow.
    Connected,
    /// An event.
    Event(SseEvent),
    /// The stream broke or could not be opened; the next call waits and tries again.
    Lost(ClientError),
}

/// An endless event stream. Not `Clone`: each follower has its own place.
#[derive(Debug)]
pub struct EventStream {
    client: ApiClient,
    path: String,
    last_id: Option<String>,
    state: State,
    backoff: Backoff,
    wait: Option<Duration>,
}

#[derive(Debug)]
enum State {
    Idle,
    Open { reply: Box<Reply>, parser: SseParser, ready: std::collections::VecDeque<SseEvent> },
}

impl EventStream {
    pub(super) fn new(client: ApiClient, path: String, last_id: Option<String>) -> Self {
        Self { client, path, last_id, state: State::Idle, backoff: Backoff::default(), wait: None }
    }

    /// The id that the next connection resumes after.
    pub fn last_event_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// The next event, however long it takes and however often the server is lost in between. Only a refusal that waiting cannot
    /// change (not found, not allowed) ends it.
    pub async fn next_event(&mut self) -> Result<SseEvent, ClientError> {
        loop {
            match self.next().await? {
                Incoming::Event(event) => return Ok(event),
                Incoming::Connected => {}
                Incoming::Lost(error) => tracing::debug!(path = %self.path, %error, "event stream lost"),
            }
        }
    }

    /// The next thing that happens to the stream. An error is final for this call, but calling again tries again after a pause.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Incoming, ClientError> {
        if let State::Idle = self.state {
            if let Some(wait) = self.wait {
                tokio::time::sleep(wait).await;
                self.wait = None;
            }
            return self.connect().await;
        }
        loop {
            let State::Open { reply, parser, ready } = &mut self.state else { return self.connect().await };
            if let Some(event) = ready.pop_front() {
                if let Some(id) = &event.id {
                    self.last_id = Some(id.clone());
                }
                self.backoff.reset();
                return Ok(Incoming::Event(event));
            }
            let error = match tokio::time::timeout(SILENCE, reply.chunk()).await {
                Ok(Ok(Some(bytes))) => match parse(parser, &bytes) {
                    Ok(events) => {
                        ready.extend(events);
                        continue;
                    }
                    Err(error) => ClientError::answer(reply.server(), error),
                },
                Ok(Ok(None)) => ClientError::answer(reply.server(), "the event stream ended"),
                Ok(Err(error)) => error,
                Err(_) => ClientError::TimedOut { server: reply.server().clone(), after: SILENCE },
            };
            // The first return is quick, because another server may be ready; only then the server's wish counts.
            let asked = if self.backoff.failures() == 0 { None } else { parser.retry() };
            self.state = State::Idle;
            return Ok(self.lost(error, asked));
        }
    }

    async fn connect(&mut self) -> Result<Incoming, ClientError> {
        let mut call = Call::get(&self.path).header("accept", "text/event-stream").streaming(HEAD_TIMEOUT);
        if let Some(id) = &self.last_id {
            call = call.header("last-event-id", id);
        }
        match self.client.send(call).await {
            Ok(reply) if is_event_stream(&reply) => {
                let ready = std::collections::VecDeque::new();
                self.state = State::Open { reply: Box::new(reply), parser: SseParser::default(), ready };
                Ok(Incoming::Connected)
            }
            Ok(reply) => {
                self.wait = Some(self.backoff.next_delay());
                Err(ClientError::answer(reply.server(), "it is not an event stream"))
            }
            Err(error) if error.is_temporary() => {
                let asked = error.api().and_then(|error| error.retry_after);
                Ok(self.lost(error, asked))
            }
            Err(error) => {
                self.wait = Some(self.backoff.next_delay());
                Err(error)
            }
        }
    }

    fn lost(&mut self, error: ClientError, asked: Option<Duration>) -> Incoming {
        let own = self.backoff.next_delay();
        // A server may ask for more patience, up to a minute, never for less.
        self.wait = Some(asked.map_or(own, |asked| asked.clamp(own, own.max(Duration::from_secs(60)))));
        Incoming::Lost(error)
    }
}

fn parse(parser: &mut SseParser, bytes: &Bytes) -> Result<Vec<SseEvent>, EventTooLong> {
    let mut events = Vec::new();
    parser.push(bytes, &mut events)?;
    Ok(events)
}

fn is_event_stream(reply: &Reply) -> bool {
    reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Vec<SseEvent> {
        let mut events = Vec::new();
        SseParser::default().push(text.as_bytes(), &mut events).unwrap();
        events
    }

    fn event(id: Option<&str>, kind: &str, data: &str) -> SseEvent {
        SseEvent { id: id.map(Into::into), event: kind.into(), data: data.into() }
    }

    #[test]
    fn fields_comments_and_line_ends() {
        let events =
            whole("\u{feff}: hello\nid: 7\nevent:target\ndata: a\ndata:b\r\n\r\nid: 8\rdata\r\r: x\n\nid: 9\n\n");
        assert_eq!(events, [event(Some("7"), "target", "a\nb"), event(Some("8"), "", "")]);
        assert_eq!(whole("data: cut off\n"), []);
    }

    #[test]
    fn retry_is_remembered_and_size_is_bounded() {
        let mut parser = SseParser::default();
        parser.push(b"retry: 250\nretry: soon\n", &mut Vec::new()).unwrap();
        assert_eq!(parser.retry(), Some(Duration::from_millis(250)));
        let flood = vec![b'x'; EVENT_LIMIT_BYTES + 1];
        assert_eq!(parser.push(&flood, &mut Vec::new()), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn cuts_between_packets_do_not_matter(text in "(data|id|event|:|: |x|é|\r|\n|\r\n){0,40}", cuts in prop::collection::vec(0usize..80, 0..8)) {
            let bytes = text.as_bytes();
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            let mut from = 0;
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            for cut in cuts.into_iter().chain([bytes.len()]) {
                parser.push(&bytes[from..cut], &mut events).unwrap();
                from = cut;
            }
            prop_assert_eq!(events, whole(&text));
        }
    }
}
