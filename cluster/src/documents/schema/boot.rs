//! Node-local `boot.toml`: how this node keeps its working copy.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::values::FileMode;
use super::{Checker, Context, DocumentKind, Schema, names};
use crate::documents::place::KeyPath;
use crate::units::HumanDuration;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBoot {
    /// When to update.
    pub autoupdate: Option<Autoupdate>,
    /// The node's name.
    pub node: Option<String>,
    /// The subcluster it believes to be in.
    pub subcluster: Option<String>,
    /// URLs of servers.
    pub servers: Option<Vec<String>>,
    /// Ask services to reload after an update.
    pub reload_config_on_update: Option<bool>,
    /// How often to ask when watching does not work.
    pub poll: Option<HumanDuration>,
    /// Who owns the working copy.
    pub owner: Option<String>,
    /// Permissions that are taken away from everything in it.
    pub umask: Option<FileMode>,
}

/// When a working copy follows its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Autoupdate {
    /// `true`: always, merging local edits.
    #[default]
    Always,
    /// `"ifunchanged"`: only when there are no local edits.
    IfUnchanged,
    /// `false`: never.
    Never,
}

impl Serialize for Autoupdate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Always => serializer.serialize_bool(true),
            Self::IfUnchanged => serializer.serialize_str("ifunchanged"),
            Self::Never => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Autoupdate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mode;
        impl de::Visitor<'_> for Mode {
            type Value = Autoupdate;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, \"ifunchanged\" or false")
            }

            fn visit_bool<E: de::Error>(self, always: bool) -> Result<Autoupdate, E> {
                Ok(if always { Autoupdate::Always } else { Autoupdate::Never })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Autoupdate, E> {
                match text {
                    "true" => Ok(Autoupdate::Always),
                    "false" => Ok(Autoupdate::Never),
                    "ifunchanged" => Ok(Autoupdate::IfUnchanged),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Mode)
    }
}

/// How this node keeps its working copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// When to update.
    pub autoupdate: Autoupdate,
    /// The node's name; none means the short host name.
    pub node: Option<String>,
    /// The subcluster the file names. The certificate decides; a file that says otherwise is refused by the reader.
    pub subcluster: Option<String>,
    /// URLs of servers, tried in order.
    pub servers: Vec<String>,
    /// Ask services to reload after an update.
    pub reload_config_on_update: bool,
    /// How often to ask when watching does not work.
    pub poll: HumanDuration,
    /// Who owns the working copy that the agent makes, as `user`, `user:group` or `:group`; whose names they are is this machine's business.
    pub owner: Option<String>,
    /// Permissions of group and others that are taken away from everything in it.
    pub umask: FileMode,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            autoupdate: Autoupdate::Always,
            node: None,
            subcluster: None,
            servers: Vec::new(),
            reload_config_on_update: true,
            poll: HumanDuration::from_secs(60),
            owner: None,
            umask: FileMode(0o022),
        }
    }
}

impl Schema for Boot {
    const KIND: DocumentKind = DocumentKind::Boot;
    type Raw = RawBoot;

    fn resolve(raw: RawBoot, _: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let usual = Self::default();
        if let Some(reason) = raw.node.as_deref().and_then(names::refuse_node_name) {
            check.refuse(&KeyPath::keys(["node"]), reason);
        }
        if let Some(reason) = raw.subcluster.as_deref().and_then(names::refuse_subcluster_name) {
            check.refuse(&KeyPath::keys(["subcluster"]), reason);
        }
        let servers = raw.servers.unwrap_or_default();
        check_servers("servers", &servers, check);
        let poll = raw.poll.unwrap_or(usual.poll);
        if poll < HumanDuration::from_secs(1) {
            check.refuse(&KeyPath::keys(["poll"]), "asking more often than once a second helps nobody");
        }
        let umask = raw.umask.unwrap_or(usual.umask);
        if umask.0 & !0o077 != 0 {
            check.refuse(&KeyPath::keys(["umask"]), "only permissions of group and others can be taken away");
        }
        Self {
            autoupdate: raw.autoupdate.unwrap_or_default(),
            node: raw.node,
            subcluster: raw.subcluster,
            servers,
            reload_config_on_update: raw.reload_config_on_update.unwrap_or(usual.reload_config_on_update),
            poll,
            owner: raw.owner,
            umask,
        }
    }
}

/// Servers are URLs with https: certificates and passwords go there.
pub(super) fn check_servers(key: &str, servers: &[String], check: &mut Checker<'_>) {
    for (index, server) in servers.iter().enumerate() {
        let host = server.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', '@', ' ', '?', '#'])) {
            let path = KeyPath::keys([key]).index(index);
            let shown = crate::documents::place::shortened(server);
            check.refuse(&path, format!("\"{shown}\" is not a server such as \"https://n1.example:2027\""));
        }
    }
}
