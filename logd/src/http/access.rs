//! Who may read: managers and voters by their certificate, people and programs by the cluster's accounts.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cluster::control::Failure;
use http::StatusCode;
use http::header::AUTHORIZATION;

use super::{App, Refusal};
use crate::wire::trust::Proved;

/// Whose connection it is.
#[derive(Debug, Clone)]
pub(super) struct Line(pub(super) Option<Proved>);

async fn knows(app: &App, authorization: &str) -> Result<bool, Refusal> {
    let Some(accounts) = &app.accounts else {
        return Err(forbidden("this daemon follows a directory and knows no accounts"));
    };
    let whoami = accounts.whoami(authorization).await.map_err(|error| {
        tracing::warn!(error = %cluster::error::Chain(&error), "no server says who this is");
        let failure = Failure::new("no server of the cluster says who this is").code("accounts");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure)
    })?;
    Ok(whoami.is_some())
}

fn forbidden(words: &str) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, Failure::new(words).code("forbidden"))
}

/// Lets in who may read.
pub(super) async fn readers(State(app): State<App>, request: Request, next: Next) -> Result<Response, Refusal> {
    let line = request.extensions().get::<Line>().and_then(|line| line.0.clone());
    let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok()).map(str::to_owned);
    match (line, header) {
        // A login counts also where a certificate does not.
        (_, Some(login)) => {
            if !knows(&app, &login).await? {
                return Err(Refusal::unauthorized("the cluster does not know this login"));
            }
        }
        (Some(Proved::Member), None) => {}
        (Some(Proved::Node { node, voter }), None) => {
            if !voter && !app.console.is_manager(&node) {
                return Err(forbidden("only managers and voters read logs by their certificate"));
            }
        }
        (None, None) => return Err(Refusal::unauthorized("log in with an account of the cluster")),
    }
    Ok(next.run(request).await)
}
