//! The one place where failures become HTTP: a status, a stable code and an RFC 9457 document.
//!
//! Handlers return [`ApiError`]; everything else converts into it here. `code` is what programs may rely on, the words are for people.
//! A failure of this node alone (disk, bug) is told as 500 with the request's id and nothing about its inside; the log has the rest.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use cluster::api::{ConflictPath, Finding, PROBLEM_JSON, Problem};
use http::{HeaderValue, StatusCode, header};

/// Every kind of failure the API knows, with its status, code and title.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal, $title:literal;)*) => {
        /// Every kind of failure the API knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name),* }

        impl Code {
            /// All of them, for the documentation.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),* }
            }

            /// The stable name.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What it means, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }
        }
    };
}

codes! {
    /// The request cannot be understood.
    BadRequest = BAD_REQUEST, "bad_request", "The request cannot be understood";
    /// No or wrong credentials.
    Unauthorized = UNAUTHORIZED, "unauthorized", "Credentials are needed";
    /// The caller may not do that.
    Forbidden = FORBIDDEN, "forbidden", "Not allowed";
    /// There is no such thing.
    NotFound = NOT_FOUND, "not_found", "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed";
    /// The body came too slowly.
    TooSlow = REQUEST_TIMEOUT, "request_timeout", "The request came too slowly";
    /// Somebody else changed the same paths.
    Conflict = CONFLICT, "conflict", "Somebody else changed the same paths";
    /// It exists already, or its state does not allow the request.
    Exists = CONFLICT, "exists", "It exists already";
    /// The state of the cluster does not allow the request.
    NotPossible = CONFLICT, "not_possible", "Not possible as things are";
    /// The revision asked for is not here yet.
    NotYet = SERVICE_UNAVAILABLE, "revision_not_reached", "The revision is not here yet";
    /// An idempotency key was used for another request.
    KeyReused = UNPROCESSABLE_ENTITY, "idempotency_key_reused", "The idempotency key belongs to another request";
    /// The body is larger than the limit.
    TooLarge = PAYLOAD_TOO_LARGE, "too_large", "The request is too large";
    /// The request's target is longer than the limit.
    UriTooLong = URI_TOO_LONG, "uri_too_long", "The request's target is too long";
    /// The request's head is larger than the limit.
    HeadTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "The request's head is too large";
    /// The content type is not one this endpoint takes.
    MediaType = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Unsupported media type";
    /// The gate refuses the change.
    Refused = UNPROCESSABLE_ENTITY, "refused", "The change is refused";
    /// The body is well-formed and makes no sense.
    Invalid = UNPROCESSABLE_ENTITY, "invalid", "The request makes no sense";
    /// This caller or address asks too much.
    TooMany = TOO_MANY_REQUESTS, "too_many_requests", "Too many requests";
    /// The server has no room for the request now.
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "The server is overloaded";
    /// The server is starting, ending, or cannot reach a majority.
    Unavailable = SERVICE_UNAVAILABLE, "unavailable", "The server cannot do that now";
    /// The server did not finish in time.
    TimedOut = GATEWAY_TIMEOUT, "timed_out", "The server did not finish in time";
    /// A failure of this server.
    Internal = INTERNAL_SERVER_ERROR, "internal", "The server failed";
}

/// A failure on its way to the client.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    problem: Problem,
    retry_after: Option<Duration>,
    challenge: bool,
}

impl ApiError {
    /// A failure with its words.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let problem = Problem {
            kind: format!("urn:eccluster:problem:{}", code.code()),
            title: code.title().into(),
            status: code.status().as_u16(),
            detail: detail.into(),
            code: code.code().into(),
            ..Problem::default()
        };
        // Whatever may pass by itself carries a time to come back.
        let passing =
            matches!(code, Code::TooMany | Code::Overloaded | Code::Unavailable | Code::TimedOut | Code::NotYet);
        Self(Box::new(Inner {
            code,
            problem,
            retry_after: passing.then_some(Duration::from_secs(1)),
            challenge: code == Code::Unauthorized,
        }))
    }

    /// What another node said, told as if this one had. A code of a newer build is a failure of the server.
    pub fn from_problem(problem: Problem) -> Self {
        let code = Code::ALL.iter().copied().find(|code| code.code() == problem.code).unwrap_or(Code::Internal);
        let mut error = Self::new(code, problem.detail.clone());
        error.0.problem = Problem { request_id: None, ..problem };
        error
    }

    /// `404` with its words.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// `400` with its words.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// A failure of this server: the cause goes to the log, the client learns that there was one.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed inside the server");
        Self::new(Code::Internal, "the server's log has the cause under this request id")
    }

    /// `409` that names the paths.
    pub fn conflict(detail: impl Into<String>, paths: Vec<ConflictPath>) -> Self {
        let mut error = Self::new(Code::Conflict, detail);
        error.0.problem.paths = paths;
        error
    }

    /// `422` with what the gate found.
    pub fn refused(findings: Vec<Finding>) -> Self {
        let detail = match findings.as_slice() {
            [] => "the change is refused".to_owned(),
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        };
        let mut error = Self::new(Code::Refused, detail);
        error.0.problem.findings = findings;
        error
    }

    /// The same with a hint for people.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.problem.hint = Some(hint.into());
        self
    }

    /// The same, and certainly nothing was done: the client may ask another server.
    pub fn not_done(mut self) -> Self {
        self.0.problem.not_done = true;
        self
    }

    /// The same with the time after which another try makes sense.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// What kind of failure this is.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The document, as it will be sent but for the request's id.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// What a git client shows behind `remote:`, line by line.
    pub fn lines(&self) -> Vec<String> {
        let problem = &self.0.problem;
        let mut lines: Vec<String> = problem.findings.iter().map(ToString::to_string).collect();
        lines.extend(problem.paths.iter().map(|path| format!("{}:{}: {}", path.repo, path.path, path.reason)));
        if lines.is_empty() {
            lines.push(problem.detail.clone());
        }
        lines.extend(problem.hint.iter().map(|hint| format!("hint: {hint}")));
        lines
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Inner { code, problem, retry_after, challenge } = *self.0;
        let body = serde_json::to_vec(&problem).expect("a problem has no map with keys that are not text");
        let mut response = (code.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        if challenge {
            let basic = HeaderValue::from_static("Basic realm=\"eccluster\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, basic);
        }
        // The outermost layer adds the request's id to the document.
        response.extensions_mut().insert(ProblemBody(problem));
        response
    }
}

impl From<crate::error::Error> for ApiError {
    fn from(error: crate::error::Error) -> Self {
        use crate::error::Error;
        let words = error.to_string();
        match error {
            Error::Conflict { paths } => {
                Self::conflict(words, paths).hint("read the head, redo the change on it, try again")
            }
            Error::Refused { findings } => Self::refused(findings),
            Error::NotFound { .. } => Self::new(Code::NotFound, words),
            Error::Exists { .. } => Self::new(Code::Exists, words),
            Error::Invalid(_) => Self::new(Code::BadRequest, words),
            Error::NotPossible(_) => Self::new(Code::NotPossible, words),
            Error::TooLarge { .. } => Self::new(Code::TooLarge, words),
            Error::Overloaded { .. } => Self::new(Code::Overloaded, words).not_done(),
            Error::Unavailable(_) => Self::new(Code::Unavailable, words),
            Error::NotDone(_) => Self::new(Code::Unavailable, words).not_done(),
            Error::Internal(cause) => Self::internal(&cause),
        }
    }
}

impl From<repos::Error> for ApiError {
    fn from(error: repos::Error) -> Self {
        match error {
            repos::Error::TooLarge { .. } => Self::new(Code::TooLarge, error.to_string()),
            other => Self::internal(&cluster::error::Chain(&other)),
        }
    }
}

/// The problem behind a response, left there for the layer that adds the request's id and writes the log.
#[derive(Debug, Clone)]
pub struct ProblemBody(pub Problem);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn codes_are_unique_and_plain() {
        let codes: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.code()).collect();
        assert_eq!(codes.len(), Code::ALL.len());
        assert!(codes.iter().all(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn a_refusal_names_file_line_and_reason() {
        let finding = Finding {
            repo: "default".into(),
            file: "default/a.toml".into(),
            line: 3,
            column: 0,
            message: "no such key".into(),
            hint: None,
        };
        let error = ApiError::refused(vec![finding]);
        assert_eq!(error.lines(), ["default:default/a.toml:3: no such key"]);
        assert_eq!(error.problem().status, 422);
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let response = ApiError::new(Code::Overloaded, "full").into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let response = ApiError::new(Code::TooMany, "x").retry_after(Duration::from_millis(5_200)).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "6");
    }
}
