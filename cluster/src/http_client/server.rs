//! One server's address, checked once.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::ClientError;

/// ecconfigd's port.
pub const DEFAULT_PORT: u16 = 2027;

/// `https://host:port`, without user, password, query or fragment. `host` and `host:port` are understood as well; where the port is
/// missing without a scheme, it is 2027.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// The URL of an absolute path (with query) on this server.
    pub(super) fn join(&self, path: &str) -> Result<Url, ClientError> {
        let bad = || ClientError::Setup { what: "path", why: format!("{path:?} is not an absolute path") };
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(bad());
        }
        Url::parse(&format!("{}{path}", self.as_str())).map_err(|_| bad())
    }

    /// The URL without a slash at its end.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        format!("{host}:{}", self.0.port_or_known_default().unwrap_or(DEFAULT_PORT))
    }
}

impl FromStr for ServerUrl {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        // The text is not repeated in errors about user info: it may hold a password.
        let bad = |why: String| ClientError::Setup { what: "server URL", why };
        let text = text.trim();
        let full = if text.contains("://") { text.to_owned() } else { with_scheme(text) };
        let url = Url::parse(&full).map_err(|error| bad(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("user and password do not belong into it".into()));
        }
        if url.scheme() != "https" {
            return Err(bad(format!("{text:?} must begin with https://")));
        }
        if url.query().is_some() || url.fragment().is_some() || url.host_str().is_none() {
            return Err(bad(format!("{text:?} must be https://host:port")));
        }
        Ok(Self(url))
    }
}

fn with_scheme(text: &str) -> String {
    let after_host = text.rsplit_once(']').map_or(text, |(_, rest)| rest);
    if after_host.contains(':') { format!("https://{text}") } else { format!("https://{text}:{DEFAULT_PORT}") }
}

impl TryFrom<String> for ServerUrl {
    type Error = ClientError;

    fn try_from(text: String) -> Result<Self, ClientError> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(server: ServerUrl) -> Self {
        server.as_str().into()
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, expected) in [
            ("https://n1:2027", "https://n1:2027"),
            ("https://n1:2027/", "https://n1:2027"),
            ("n1", "https://n1:2027"),
            ("10.0.0.1:99", "https://10.0.0.1:99"),
            ("[::1]", "https://[::1]:2027"),
            ("[::1]:5", "https://[::1]:5"),
            ("https://example.org", "https://example.org"),
        ] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().as_str(), expected, "{text}");
        }
        let server: ServerUrl = "n1".parse().unwrap();
        assert_eq!(server.join("/api/v1/x?y=1").unwrap().as_str(), "https://n1:2027/api/v1/x?y=1");
        for path in ["", "api", "//evil/x"] {
            assert!(server.join(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn refusals_repeat_no_password() {
        for text in ["http://n1:2027", "https://u:hush@n1", "u:hush@n1", "https://", "https://n1/?q", "ftp://x"] {
            let error = text.parse::<ServerUrl>().unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
