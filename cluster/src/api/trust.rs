//! Certificates, tokens and passwords. A type that carries a secret shows none of it in `Debug`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::NodeRole;

/// Turns a one-time token and a key into a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The one-time token.
    pub token: String,
    /// The name the node asks for: a single lower-case word.
    pub node: String,
    /// The certificate signing request.
    pub csr_pem: String,
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The answer to an [`EnrollRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EnrollResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// The subcluster the token named.
    pub subcluster: String,
    /// The cluster's name.
    pub cluster: String,
}

/// A server asks to become a member of the cluster: a one-time token, a key, and where it will be reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The one-time token.
    pub token: String,
    /// The name the node asks for: a single lower-case word.
    pub node: String,
    /// The certificate signing request.
    pub csr_pem: String,
    /// Where the other nodes reach it, `HOST:PORT`.
    pub address: String,
    /// Further host names and addresses that its certificate shall cover.
    #[serde(default)]
    pub names: Vec<String>,
    /// True for a node that holds everything and never votes.
    #[serde(default)]
    pub learner: bool,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("node", &self.node).field("address", &self.address).finish_non_exhaustive()
    }
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JoinResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// The subcluster the token named.
    pub subcluster: String,
    /// The cluster's name.
    pub cluster: String,
    /// The node's number in the Raft group.
    pub raft_id: u64,
}

/// A node asks for a fresh certificate, authenticated by the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The certificate signing request.
    pub csr_pem: String,
}

/// The answer to a [`RenewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RenewResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
}

/// Asks for a one-time token for a new node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeTokenRequest {
    /// The subcluster the node will belong to.
    #[serde(default = "default_subcluster")]
    pub subcluster: String,
    /// How long the token is good for, such as `1h`; the server has a default and a maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

fn default_subcluster() -> String {
    "default".into()
}

impl Default for NodeTokenRequest {
    fn default() -> Self {
        Self { subcluster: default_subcluster(), ttl: None }
    }
}

/// A one-time token, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeTokenResponse {
    /// The token, with the CA's fingerprint inside.
    pub token: String,
    /// The subcluster it is good for.
    pub subcluster: String,
    /// When it ends.
    pub expires: String,
}

impl fmt::Debug for NodeTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTokenResponse")
            .field("subcluster", &self.subcluster)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Asks for an API token of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is for, in the owner's words.
    pub name: String,
    /// How long it is good for, such as `30d`; the server has a default and a maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// A new API token, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TokenCreated {
    /// What it is listed and revoked by.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// The token itself.
    pub token: String,
    /// When it ends.
    pub expires: String,
}

impl fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCreated").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// An API token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TokenInfo {
    /// What it is revoked by.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// When it was made.
    pub created: String,
    /// When it ends.
    pub expires: String,
}

/// Changes the caller's own password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// The new password.
    pub password: String,
}

impl fmt::Debug for PasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordRequest").finish_non_exhaustive()
    }
}

/// What kind of caller the server took somebody for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum CallerKind {
    /// A user, by password or token.
    User,
    /// A node, by its certificate.
    Node,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum AccountRole {
    /// Everything.
    Admin,
    /// Read and change.
    Committer,
    /// Read.
    Reader,
}

/// Who the server takes the caller for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Whoami {
    /// User or node.
    pub kind: CallerKind,
    /// The user's or node's name.
    pub name: String,
    /// How the caller proved it: `password`, `token` or `certificate`.
    pub by: String,
    /// The node's subcluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subcluster: Option<String>,
    /// The node's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    /// The user's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_role: Option<AccountRole>,
}

/// Liveness or readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok`, or why not.
    pub status: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_debug() {
        let created = TokenCreated { id: "1".into(), name: "n".into(), token: "hush".into(), expires: String::new() };
        assert!(!format!("{created:?}").contains("hush"));
    }
}
