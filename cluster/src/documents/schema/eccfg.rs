//! `~/.config/eccluster/eccfg.toml`: one person's servers and credentials for the command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::boot::check_servers;
use super::values::OneOrMany;
use super::{Checker, Context, DocumentKind, Schema};
use crate::documents::place::KeyPath;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEccfg {
    /// URLs of servers, one or several.
    pub server: Option<OneOrMany<String>>,
    /// The cluster's certificate authority.
    pub ca: Option<PathBuf>,
    /// The user's name.
    pub username: Option<String>,
    /// The password itself.
    pub password: Option<SecretText>,
    /// A token itself.
    pub token: Option<SecretText>,
    /// A file with the password.
    pub password_file: Option<PathBuf>,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// The working copy.
    pub wc: Option<PathBuf>,
}

/// A secret: it never prints.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// One person's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Eccfg {
    /// URLs of servers, tried in order.
    pub servers: Vec<String>,
    /// The cluster's certificate authority (PEM).
    pub ca: Option<PathBuf>,
    /// The user's name.
    pub username: Option<String>,
    /// The password itself.
    pub password: Option<SecretText>,
    /// A token itself.
    pub token: Option<SecretText>,
    /// A file whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// A file whose first line is a token.
    pub token_file: Option<PathBuf>,
    /// The working copy to use when not inside one.
    pub wc: Option<PathBuf>,
}

impl Schema for Eccfg {
    const KIND: DocumentKind = DocumentKind::Eccfg;
    type Raw = RawEccfg;

    fn resolve(raw: RawEccfg, _: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let servers = raw.server.map(|servers| servers.0).unwrap_or_default();
        check_servers("server", &servers, check);
        let secrets = [
            ("password", raw.password.is_some()),
            ("password_file", raw.password_file.is_some()),
            ("token", raw.token.is_some()),
            ("token_file", raw.token_file.is_some()),
        ];
        let written: Vec<&str> = secrets.iter().filter(|(_, written)| *written).map(|(key, _)| *key).collect();
        if let [first, second, ..] = written[..] {
            check.refuse(
                &KeyPath::keys([second]),
                format!("\"{first}\" and \"{second}\": only one of them can be used"),
            );
        }
        if written.first().is_some_and(|key| key.starts_with("password")) && raw.username.is_none() {
            check.missing(&KeyPath::ROOT, "username");
        }
        Self {
            servers,
            ca: raw.ca,
            username: raw.username,
            password: raw.password,
            token: raw.token,
            password_file: raw.password_file,
            token_file: raw.token_file,
            wc: raw.wc,
        }
    }
}
