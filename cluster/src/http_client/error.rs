//! What can go wrong between a client and the cluster.
//!
//! Transport errors say their innermost cause in their own words and have no `source`: the layers in between ("error sending request",
//! "client error") tell a person nothing.

use std::fmt;
use std::time::Duration;

use super::ServerUrl;
use crate::api::Problem;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The client could not be set up, or the request not be made.
    #[error("{what}: {why}")]
    Setup {
        /// What was wrong.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The server could not be reached; it has not seen the request.
    #[error("cannot connect to {server}: {}", crate::error::root_cause(cause))]
    Connect {
        /// The server.
        server: ServerUrl,
        /// Why.
        cause: Box<reqwest::Error>,
    },
    /// The server does not take the certificate that was shown; it has not looked at the request.
    #[error("{server} does not take the certificate of this node: {why}")]
    Certificate {
        /// The server.
        server: ServerUrl,
        /// Why not.
        why: String,
    },
    /// The connection broke after the request was sent: it may have been carried out.
    #[error("the answer of {server} was lost: {}", crate::error::root_cause(cause))]
    Lost {
        /// The server.
        server: ServerUrl,
        /// Why.
        cause: Box<reqwest::Error>,
    },
    /// No answer in time: the request may have been carried out.
    #[error("{server} did not answer within {after:?}")]
    TimedOut {
        /// The server.
        server: ServerUrl,
        /// The limit.
        after: Duration,
    },
    /// No server could be used.
    #[error("no server can be used: {}", list(attempts))]
    Unreachable {
        /// What each of them did.
        attempts: Vec<Attempt>,
    },
    /// The server refused.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The server's answer is not what it should be.
    #[error("{server} sent an answer that cannot be used: {why}")]
    Answer {
        /// The server.
        server: ServerUrl,
        /// What is wrong with it.
        why: String,
    },
}

/// What became of a request at one server.
#[derive(Debug)]
pub struct Attempt {
    /// The server.
    pub server: ServerUrl,
    /// What happened.
    pub error: Box<ClientError>,
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(|attempt| attempt.error.to_string()).collect::<Vec<_>>().join("; ")
}

impl ClientError {
    pub(super) fn transport(server: &ServerUrl, error: reqwest::Error) -> Self {
        let (server, cause) = (server.clone(), Box::new(error.without_url()));
        if let Some(why) = refused_certificate(&*cause) {
            return Self::Certificate { server, why };
        }
        if cause.is_connect() { Self::Connect { server, cause } } else { Self::Lost { server, cause } }
    }

    pub(super) fn answer(server: &ServerUrl, why: impl ToString) -> Self {
        Self::Answer { server: server.clone(), why: why.to_string() }
    }

    /// Another server may do better, and asking it cannot do harm.
    pub(super) fn may_try_next(&self, repeatable: bool) -> bool {
        match self {
            Self::Connect { .. } | Self::Certificate { .. } => true,
            Self::Lost { .. } | Self::TimedOut { .. } => repeatable,
            Self::Api(error) => matches!(error.status, 502..=504) && (repeatable || error.problem.not_done),
            Self::Setup { .. } | Self::Unreachable { .. } | Self::Answer { .. } => false,
        }
    }

    /// The server's refusal, where it was one; of several servers, the last one's.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            Self::Unreachable { attempts } => attempts.iter().rev().find_map(|attempt| attempt.error.api()),
            _ => None,
        }
    }

    /// The HTTP status, where a server answered.
    pub fn status(&self) -> Option<u16> {
        self.api().map(|error| error.status)
    }

    /// True when trying the same again later may work: nobody answered, or a server was busy or broken.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } => true,
            Self::Api(error) => matches!(error.status, 408 | 425 | 429 | 500..=599),
            Self::Setup { .. } | Self::Certificate { .. } | Self::Answer { .. } => false,
        }
    }

    /// True when the request certainly changed nothing.
    pub fn is_certainly_not_done(&self) -> bool {
        match self {
            Self::Setup { .. } | Self::Connect { .. } | Self::Certificate { .. } => true,
            Self::Api(error) => !error.in_doubt && (error.status < 500 || error.problem.not_done),
            Self::Unreachable { attempts } => attempts.iter().all(|attempt| attempt.error.is_certainly_not_done()),
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Answer { .. } => false,
        }
    }
}

/// What the server's TLS has against our certificate, where that is what the request failed on. The alert may come with the handshake or
/// (TLS 1.3) in place of the answer, and HTTP/2 keeps no more of it than its words.
fn refused_certificate(error: &dyn std::error::Error) -> Option<String> {
    use rustls::AlertDescription as Alert;
    let words = crate::error::root_cause(error);
    let is = |alert| words == rustls::Error::AlertReceived(alert).to_string();
    let bad = [Alert::BadCertificate, Alert::UnsupportedCertificate, Alert::CertificateUnknown, Alert::DecryptError];
    if is(Alert::UnknownCA) {
        Some("another cluster has issued it".into())
    } else if is(Alert::CertificateExpired) {
        Some("it has expired".into())
    } else {
        bad.into_iter().find(|alert| is(*alert)).map(|alert| format!("it is not valid ({alert:?})"))
    }
}

/// A refusal by the server: an RFC 9457 problem document and what came with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ApiError {
    /// The server that answered.
    pub server: ServerUrl,
    /// The HTTP status.
    pub status: u16,
    /// The request's id, by which the server's log can be searched.
    pub request_id: Option<String>,
    /// When to try again, where the server said so.
    pub retry_after: Option<Duration>,
    /// What the server says about it.
    pub problem: Problem,
    /// A server that was asked before this one may have done it: "there is no such thing" may then be the answer to what is done.
    pub in_doubt: bool,
}

impl fmt::Display for ApiError {
    /// The title, and the detail where there is one; findings and paths are the caller's to lay out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.problem.title.as_str(), self.problem.detail.as_str()) {
            ("", "") => write!(f, "{} answered with status {}", self.server, self.status),
            ("", detail) => f.write_str(detail),
            (title, "") => f.write_str(title),
            (title, detail) => write!(f, "{title}: {detail}"),
        }
    }
}
