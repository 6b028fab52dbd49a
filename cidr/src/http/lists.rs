//! Lookups in the lists of blocks: single and in bulk.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use cidr_engine::Address;
use cidr_engine::lists::Lists;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, Refusal};

/// The lists with their sizes.
pub async fn names(State(app): State<App>) -> Json<Value> {
    let settings = app.service.settings();
    let lists = settings.lists.iter().map(|(name, list)| json!({ "list": name, "entries": list.len() }));
    Json(lists.collect())
}

/// `/lists/lookup?address=…&list=…`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupParameters {
    address: Option<String>,
    /// One list; without it all.
    list: Option<String>,
}

fn found(lists: &Lists, list: Option<&str>, address: Address) -> Vec<Value> {
    let matches = lists.lookup(address).filter(|(name, _)| list.is_none_or(|list| list == *name));
    matches.map(|(name, found)| json!({ "list": name, "block": found.block.to_string(), "text": found.text })).collect()
}

/// The most specific block of every list around an address.
pub async fn lookup(
    State(app): State<App>,
    parameters: Result<Query<LookupParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(LookupParameters { address, list }) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let settings = app.service.settings();
    check(&settings.lists, list.as_deref())?;
    let address = address.ok_or_else(|| Refusal::wrong("address=… is missing"))?;
    let parsed: Address = address.parse().map_err(|_| Refusal::wrong("address is neither IPv4 nor IPv6"))?;
    Ok(Json(json!({ "address": parsed.to_string(), "found": found(&settings.lists, list.as_deref(), parsed) })))
}

fn check(lists: &Lists, list: Option<&str>) -> Result<(), Refusal> {
    match list {
        Some(name) if lists.get(name).is_none() => Err(Refusal::not_found(format!("there is no list {name:?}"))),
        _ => Ok(()),
    }
}

/// One address per line; the answer is one line of JSON for each, all from the same state of the lists.
pub async fn lookup_many(
    State(app): State<App>,
    parameters: Result<Query<LookupParameters>, axum::extract::rejection::QueryRejection>,
    body: String,
) -> Result<Response, Refusal> {
    let Query(LookupParameters { list, .. }) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let settings = app.service.settings();
    check(&settings.lists, list.as_deref())?;
    // A million addresses are a second of work.
    let answer = tokio::task::block_in_place(|| {
        let mut answer = String::new();
        for line in body.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let row = match line.parse::<Address>() {
                Ok(address) => {
                    json!({ "address": address.to_string(), "found": found(&settings.lists, list.as_deref(), address) })
                }
                Err(_) => {
                    json!({ "address": line.chars().take(64).collect::<String>(), "error": "neither IPv4 nor IPv6" })
                }
            };
            answer.push_str(&row.to_string());
            answer.push('\n');
        }
        answer
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], answer).into_response())
}
