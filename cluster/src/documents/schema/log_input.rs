//! Where the lines of a log come from: the inputs of `logd.toml`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::path_pattern::PathPattern;
use super::values::{ValueError, string_value, wrong};
use crate::documents::place::shortened;

/// Where the lines of a log come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A unix socket that takes lines.
    Unix(PathPattern),
    /// Files that match a shell pattern.
    File(PathPattern),
    /// A pipe in the file system.
    Fifo(PathPattern),
    /// Syslog datagrams.
    SyslogUdp(SocketAddr),
    /// Syslog over TCP.
    SyslogTcp(SocketAddr),
    /// Syslog over TLS.
    SyslogTls(SocketAddr),
    /// A socket like `/dev/log`.
    SyslogUnix(PathPattern),
    /// The system's journal.
    Journald,
}

impl Input {
    /// True for what only one log can listen to.
    pub(super) fn is_exclusive(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Journald)
    }
}

impl FromStr for Input {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "journald" {
            return Ok(Self::Journald);
        }
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "unix" => rest.parse().map(Self::Unix),
            "file" => rest.parse().map(Self::File),
            "fifo" => rest.parse().map(Self::Fifo),
            "syslog" => syslog(rest),
            _ => {
                let near = crate::documents::hint::nearest(kind, ["unix", "file", "fifo", "syslog", "journald"]);
                let near = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
                Err(wrong(format!(
                    "\"{}\" is not an input: unix:PATH, file:GLOB, fifo:PATH, syslog:udp://ADDR:PORT, syslog:tcp://…, syslog:tls://…, \
                     syslog:unix:PATH or journald{near}",
                    shortened(text)
                )))
            }
        }
    }
}

fn syslog(rest: &str) -> Result<Input, ValueError> {
    if let Some(path) = rest.strip_prefix("unix:") {
        return path.parse().map(Input::SyslogUnix);
    }
    let expected = || {
        wrong(format!("\"{}\" is not udp://ADDR:PORT, tcp://ADDR:PORT, tls://ADDR:PORT or unix:PATH", shortened(rest)))
    };
    let (kind, address) = rest.split_once("://").ok_or_else(expected)?;
    let address = address.parse::<SocketAddr>().map_err(|_| {
        wrong(format!("\"{}\" is not an address with a port such as \"0.0.0.0:514\"", shortened(address)))
    });
    match kind {
        "udp" => address.map(Input::SyslogUdp),
        "tcp" => address.map(Input::SyslogTcp),
        "tls" => address.map(Input::SyslogTls),
        _ => Err(expected()),
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::File(path) => write!(f, "file:{path}"),
            Self::Fifo(path) => write!(f, "fifo:{path}"),
            Self::SyslogUdp(address) => write!(f, "syslog:udp://{address}"),
            Self::SyslogTcp(address) => write!(f, "syslog:tcp://{address}"),
            Self::SyslogTls(address) => write!(f, "syslog:tls://{address}"),
            Self::SyslogUnix(path) => write!(f, "syslog:unix:{path}"),
            Self::Journald => f.write_str("journald"),
        }
    }
}

string_value!(Input, "an input such as \"unix:/run/app.log\", \"file:/var/log/app/*.log\" or \"journald\"");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn inputs_print_as_they_were_written() {
        for text in [
            "unix:/run/eccluster/log/mainlog",
            "file:/var/log/app/*.log",
            "fifo:/run/app/%{n}.fifo",
            "syslog:udp://0.0.0.0:514",
            "syslog:tcp://[::]:514",
            "syslog:tls://10.0.0.1:6514",
            "syslog:unix:/dev/log",
            "journald",
        ] {
            assert_eq!(text.parse::<Input>().unwrap().to_string(), text);
        }
        for (text, expected) in [
            ("unixx:/run/a", "did you mean \"unix\""),
            ("unix:run/a", "not an absolute path"),
            ("syslog:udp://localhost:514", "0.0.0.0:514"),
            ("syslog:carrier-pigeon://x", "udp://ADDR:PORT"),
            ("", "is not an input"),
        ] {
            let message = text.parse::<Input>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
