//! Where nodes send logs beside managers: the sinks of `logd.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::logd::{Log, MASTER, Manager};
use super::values::{HostPort, ValueError, string_value, wrong};
use super::{Checker, names};
use crate::documents::place::{KeyPath, shortened};

/// What may be written about a sink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSink {
    /// Where it is.
    pub url: Option<SinkUrl>,
    /// The logs; all when none are named.
    pub logs: Option<Vec<String>>,
    /// The subscriber that each node sends as.
    pub subscriber: Option<String>,
    /// The subject of messages.
    pub subject: Option<String>,
    /// What becomes of a line that is too long for the sink.
    pub too_large: Option<TooLarge>,
}

/// What becomes of a line that is longer than a sink ever takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLarge {
    /// It is put into a file on the node, and the next ones go on.
    #[default]
    Aside,
    /// It waits, and the log with it, until the sink's limit is raised.
    Wait,
}

/// Where a sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkUrl {
    /// NATS with JetStream; with TLS where the server wants it.
    Nats(HostPort),
    /// NATS with JetStream, and never without TLS.
    NatsTls(HostPort),
    /// Syslog over TLS (RFC 5425).
    SyslogTls(HostPort),
}

impl FromStr for SinkUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let of_kind = match text.split_once("://") {
            Some(("nats", address)) => Some((Self::Nats as fn(HostPort) -> Self, address)),
            Some(("nats+tls", address)) => Some((Self::NatsTls as _, address)),
            Some(("syslog+tls", address)) => Some((Self::SyslogTls as _, address)),
            _ => None,
        };
        let Some((kind, address)) = of_kind else {
            let text = shortened(text);
            return Err(wrong(format!("\"{text}\" is not nats://, nats+tls:// or syslog+tls:// with HOST:PORT")));
        };
        address.parse().map(kind)
    }
}

impl fmt::Display for SinkUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nats(address) => write!(f, "nats://{address}"),
            Self::NatsTls(address) => write!(f, "nats+tls://{address}"),
            Self::SyslogTls(address) => write!(f, "syslog+tls://{address}"),
        }
    }
}

string_value!(SinkUrl, "an address such as \"nats://10.0.0.5:4222\" or \"syslog+tls://10.0.0.5:6514\"");

/// Where nodes send logs beside managers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// Where it is.
    pub url: SinkUrl,
    /// The logs; none: all.
    pub logs: BTreeSet<String>,
    /// The subscriber that each node sends as.
    pub subscriber: String,
    /// The subject of messages, with `%{l}`, `%{n}` and `%{s}`; of use to NATS alone.
    pub subject: String,
    /// What becomes of a line that is too long; of use to NATS alone.
    pub too_large: TooLarge,
}

impl Sink {
    /// True when it gets this log.
    pub fn takes(&self, log: &str) -> bool {
        self.logs.is_empty() || self.logs.contains(log)
    }
}

/// A sink has a subscriber of its own: of one that somebody else reads as it would get a part.
pub(super) fn resolve_sinks(
    raw: BTreeMap<String, RawSink>,
    logs: &BTreeMap<String, Log>,
    managers: &BTreeMap<String, Manager>,
    check: &mut Checker<'_>,
) -> BTreeMap<String, Sink> {
    let mut sinks: BTreeMap<String, Sink> = BTreeMap::new();
    for (name, raw) in raw {
        let path = KeyPath::keys(["sinks", &name]);
        if let Some(reason) = names::refuse_item_name(&name) {
            check.refuse(&path, reason);
        }
        let subscriber = raw.subscriber.unwrap_or_else(|| name.clone());
        if let Some(reason) = names::refuse_item_name(&subscriber) {
            check.refuse(&path.key("subscriber"), reason);
        }
        let taken = subscriber == MASTER
            || managers.values().any(|manager| manager.subscribers().any(|used| used == subscriber))
            || sinks.values().any(|sink| sink.subscriber == subscriber);
        if taken {
            let message = format!("\"{subscriber}\" has another reader already; a sink needs a subscriber of its own");
            check.refuse(&path, message);
        }
        for (index, log) in raw.logs.iter().flatten().enumerate() {
            if !logs.contains_key(log) {
                check.refuse(&path.key("logs").index(index), format!("there is no log \"{log}\""));
            }
        }
        let Some(url) = raw.url else {
            check.refuse(&path, "a sink needs its url, such as \"nats://10.0.0.5:4222\"");
            continue;
        };
        if raw.subject.is_some() && matches!(url, SinkUrl::SyslogTls(_)) {
            check.refuse(&path.key("subject"), "only NATS has subjects");
        }
        if raw.too_large.is_some() && matches!(url, SinkUrl::SyslogTls(_)) {
            check.refuse(&path.key("too_large"), "only NATS says when a line is too long for it");
        }
        let subject = raw.subject.unwrap_or_else(|| "logs.%{l}.%{n}".into());
        if !is_subject(&subject) {
            let message = "a subject is words of letters, digits, - and _ with dots between them, and %{l}, %{n}, %{s}";
            check.refuse(&path.key("subject"), message);
        }
        let logs = raw.logs.unwrap_or_default().into_iter().collect();
        sinks.insert(name, Sink { url, logs, subscriber, subject, too_large: raw.too_large.unwrap_or_default() });
    }
    sinks
}

/// Wildcards, blanks and line breaks would mean something else to a server.
fn is_subject(subject: &str) -> bool {
    let plain = subject.replace("%{l}", "l").replace("%{n}", "n").replace("%{s}", "s");
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    plain.split('.').all(is_word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_print_as_they_were_written() {
        for text in ["nats://10.0.0.5:4222", "nats+tls://nats.example:4222", "syslog+tls://[::1]:6514"] {
            assert_eq!(text.parse::<SinkUrl>().unwrap().to_string(), text);
        }
        for text in ["nats:10.0.0.5", "http://a:1", "nats://", "syslog+tls://a"] {
            assert!(text.parse::<SinkUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn subjects_are_words() {
        assert!(is_subject("logs.%{s}.%{l}.%{n}") && is_subject("one"));
        for wrong in ["", "a..b", "a.*", "a.>", "a b", "a.\r\nPUB", "%{x}"] {
            assert!(!is_subject(wrong), "{wrong}");
        }
    }
}
