//! Events over HTTP: JSON lines, lines of the text protocol, or binary batches, by content type.

use axum::Json;
use axum::extract::{Query, State};
use bytes::Bytes;
use cidr_engine::ingest::MAX_AMOUNT;
use cidr_engine::{Address, Stamp};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, Refusal};
use crate::daemon::inputs;
use crate::service::Service;

/// One line of JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEvent {
    series: String,
    address: String,
    #[serde(default = "one")]
    amount: i64,
    /// Seconds since 1970, or RFC 3339; without it: now.
    time: Option<JsonTime>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum JsonTime {
    Seconds(i64),
    Text(String),
}

const fn one() -> i64 {
    1
}

/// Counts the events of a request. Wrong lines do not keep out the others; the answer names the first.
pub async fn events(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Refusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let (counted, refused, why) = match kind {
        "application/x-ndjson" | "application/jsonl" | "application/json" => {
            let service = app.service.clone();
            // Megabytes of JSON are a good part of a second.
            let read = tokio::task::spawn_blocking(move || json_lines(&service, &body)).await;
            read.unwrap_or_else(|error| (0, 1, Some(error.to_string())))
        }
        "text/plain" | "application/octet-stream" => {
            let received = inputs::feed_all(&app.service, body).await;
            let (counted, refused) = received.totals();
            (counted, refused, received.why().map(str::to_owned))
        }
        _ => {
            let words = "the content type says what the events are: application/x-ndjson, text/plain or application/octet-stream";
            return Err(Refusal::wrong(words));
        }
    };
    app.service.meters.brought("http", counted, refused);
    Ok(Json(json!({ "counted": counted, "refused": refused, "why": why })))
}

fn json_lines(service: &Service, body: &[u8]) -> (u64, u64, Option<String>) {
    let (mut counted, mut refused, mut why) = (0, 0, None);
    for (number, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match json_line(service, line) {
            Ok(()) => counted += 1,
            Err(words) => {
                refused += 1;
                why.get_or_insert_with(|| format!("line {}: {words}", number + 1));
            }
        }
    }
    (counted, refused, why)
}

fn json_line(service: &Service, line: &[u8]) -> Result<(), String> {
    let event: JsonEvent = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let address: Address = event.address.parse().map_err(|_| "address is neither IPv4 nor IPv6".to_owned())?;
    if !(-MAX_AMOUNT..=MAX_AMOUNT).contains(&event.amount) {
        return Err(format!("amount is not between -{MAX_AMOUNT} and {MAX_AMOUNT}"));
    }
    let time = event.time.map(seconds).transpose()?;
    let counted = service.counted(|counting, now| counting.event(&event.series, address, event.amount, time, now));
    counted.map_err(|error| error.to_string())
}

fn seconds(time: JsonTime) -> Result<Stamp, String> {
    match time {
        JsonTime::Seconds(seconds) => Ok(seconds),
        JsonTime::Text(text) => {
            let moment = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339);
            Ok(moment.map_err(|_| "time is neither seconds since 1970 nor RFC 3339".to_owned())?.unix_timestamp())
        }
    }
}

/// `/remove?series=…&address=…`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveParameters {
    pub(super) series: String,
    pub(super) address: String,
}

impl RemoveParameters {
    pub(super) fn checked(&self) -> Result<Address, Refusal> {
        self.address.parse().map_err(|_| Refusal::wrong("address is neither IPv4 nor IPv6"))
    }
}

/// Forgets an address on every node; the answer names those that could not be told.
pub async fn remove(
    State(app): State<App>,
    parameters: Result<Query<RemoveParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(parameters) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let missing = app.service.remove(&parameters.series, parameters.checked()?).await;
    Ok(Json(json!({ "missing": missing })))
}
