//! `tail -f`: an event per line, as long as somebody listens.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use cluster::control::Failure;
use cluster::documents::schema::logd::PathPattern;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::sync::OwnedSemaphorePermit;

use super::lines::{Asked, Row, known, pattern};
use super::{App, Refusal};
use crate::read::{Follow, OwnedLine, files, newest};

/// How often it looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Lines that it begins with.
const BEGIN: usize = 10;
/// A comment after so many looks without a line: whoever has gone is noticed by it.
const QUIET_LOOKS: u32 = 60;

struct Following {
    asked: Asked,
    pattern: PathPattern,
    follow: Option<Follow>,
    quiet: u32,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn follow(
    State(app): State<App>,
    Path(log): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let asked = Asked::of(log, query).await?;
    let (pattern, configured) = (pattern(&app)?, app.console.log_names());
    let place =
        app.followers.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Failure::new("as many follow logs here as may"))
        })?;
    let following = Following { asked, pattern, follow: None, quiet: 0, _place: place };
    let looked = tokio::task::spawn_blocking(move || {
        known(&following.pattern, &following.asked, &configured)?;
        Ok(following)
    });
    let unable = |_| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Failure::new("an error inside logd"));
    let following: Following = looked.await.map_err(unable)??;
    let events = futures::stream::unfold(following, |mut following| async move {
        loop {
            if following.follow.is_some() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            // A file that cannot be read ends the stream; whoever listens comes again.
            let (next, text) = tokio::task::spawn_blocking(move || following.look()).await.ok()?;
            following = next;
            let text = text.ok()?;
            if !text.is_empty() {
                return Some((Ok::<_, std::convert::Infallible>(text), following));
            }
        }
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(events)).into_response())
}

impl Following {
    /// What came since the last look, as events.
    fn look(mut self) -> (Self, std::io::Result<String>) {
        let text = self.fresh().map(|lines| {
            let taken = lines.iter().filter(|line| self.asked.takes(&line.text));
            taken.map(event).collect::<String>()
        });
        self.quiet = if text.as_ref().is_ok_and(String::is_empty) { self.quiet + 1 } else { 0 };
        if self.quiet < QUIET_LOOKS {
            return (self, text);
        }
        self.quiet = 0;
        (self, Ok(":\n\n".into()))
    }

    fn fresh(&mut self) -> std::io::Result<Vec<OwnedLine>> {
        let found = files(&self.pattern, &self.asked.wanted);
        match &mut self.follow {
            Some(follow) => follow.fresh(&found),
            None => {
                let (lines, follow) = newest(found, BEGIN)?;
                self.follow = Some(follow);
                Ok(lines)
            }
        }
    }
}

fn event(line: &OwnedLine) -> String {
    let row = Row::of(line.time_us, &line.node, &line.text);
    let json = serde_json::to_string(&row).unwrap_or_default();
    format!("data: {json}\n\n")
}
