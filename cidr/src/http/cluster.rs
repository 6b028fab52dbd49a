//! What daemons ask each other. Only nodes get here, and a node hands in its own windows alone: its certificate names it.

use axum::extract::{Query, State};
use axum::http::Extensions;
use bytes::Bytes;
use cluster::control::Failure;
use http::StatusCode;

use super::access::peer_of;
use super::events::RemoveParameters;
use super::query::CountParameters;
use super::{App, Refusal};
use crate::daemon::deliver;
use crate::hand_in::HandIn;

/// Takes windows; they are durable when this answers.
pub async fn windows(State(app): State<App>, extensions: Extensions, body: Bytes) -> Result<String, Refusal> {
    let peer = peer_of(&extensions).ok_or_else(|| Refusal::forbidden("which node is this?"))?;
    let (service, node) = (app.service.clone(), peer.node.clone());
    let merged = tokio::task::spawn_blocking(move || {
        let message = HandIn::decode(&body).map_err(|error| Refusal::wrong(error.to_string()))?;
        let merged = deliver::receive(&service, &node, &message);
        merged.map(|_| message.next).map_err(unavailable)
    });
    let next = merged.await.unwrap_or_else(|error| Err(unavailable(error.to_string())))?;
    Ok(format!("{next}\n"))
}

fn unavailable(words: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Failure::new(words).code("store"))
}

/// What this node alone counted.
pub async fn count(
    State(app): State<App>,
    parameters: Result<Query<CountParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<String, Refusal> {
    let Query(parameters) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let (block, last_s) = parameters.checked()?;
    let count = app.service.count_aside(&parameters.series, &block, last_s).await;
    Ok(format!("{}\n", count.map_err(|failure| Refusal::new(StatusCode::BAD_REQUEST, failure))?))
}

/// Forgets an address on this node alone.
pub async fn remove(
    State(app): State<App>,
    parameters: Result<Query<RemoveParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<String, Refusal> {
    let Query(parameters) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    app.service.remove_here(&parameters.series, parameters.checked()?);
    Ok("ok\n".into())
}
