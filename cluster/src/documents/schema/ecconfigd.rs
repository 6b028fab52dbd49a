//! Node-local `ecconfigd.toml`: where the server listens, and how much it lets others ask of it.

use serde::{Deserialize, Serialize};

use super::values::{HostPort, OneOrMany};
use super::{Checker, Context, DocumentKind, Schema};
use crate::documents::place::KeyPath;
use crate::units::{HumanDuration, HumanSize};

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEcconfigd {
    /// Addresses to listen on, one or several.
    pub listen: Option<OneOrMany<HostPort>>,
    /// Where the others reach this server.
    pub advertise: Option<HostPort>,
    /// What to log.
    pub log: Option<String>,
    /// Bounds on what clients may ask.
    pub limits: Option<RawLimits>,
}

/// The real form, with the options of the command line still to be laid over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ecconfigd {
    /// Addresses to listen on; empty when the file names none.
    pub listen: Vec<HostPort>,
    /// Where the others reach this server.
    pub advertise: Option<HostPort>,
    /// What to log, instead of what the program was started with.
    pub log: Option<String>,
    /// Bounds on what clients may ask.
    pub limits: Limits,
}

/// Declares the limits once: raw form, real form, defaults and the smallest value that works.
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr, at least $least:expr;)+) => {
        /// What may be written under `[limits]`.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct RawLimits {
            $($(#[doc = $doc])+ pub $key: Option<$type>,)+
        }

        /// Bounds on what clients may ask. Whatever is over one is refused with 413, 429 or 503, never queued.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $key: $type,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl Limits {
            /// The keys whose values differ.
            pub fn changed(&self, other: &Self) -> Vec<&'static str> {
                let mut changed = Vec::new();
                $(if self.$key != other.$key { changed.push(stringify!($key)); })+
                changed
            }

            fn resolve(raw: RawLimits, check: &mut Checker<'_>) -> Self {
                $(
                    let least: $type = $least;
                    if raw.$key.is_some_and(|written| written < least) {
                        let path = KeyPath::keys(["limits", stringify!($key)]);
                        check.refuse(&path, format!("less than {least} does not work"));
                    }
                )+
                Self { $($key: raw.$key.unwrap_or($default),)+ }
            }
        }
    };
}

limits! {
    /// Connections at once, from everybody.
    connections: u32 = 32_768, at least 16;
    /// Connections at once from one address. A site behind one address translator still has 1,000 watchers.
    connections_per_address: u32 = 4_096, at least 4;
    /// Requests being worked on at once, watchers not counted.
    requests: u32 = 512, at least 4;
    /// Watchers waiting at once.
    watchers: u32 = 20_000, at least 1;
    /// Commits waiting for the log.
    commit_queue: u32 = 1_024, at least 1;
    /// Requests, fetches and pushes that may wait for their turn; more are sent away at once.
    queue: u32 = 2_048, at least 1;
    /// How long a request may wait for its turn.
    queue_timeout: HumanDuration = HumanDuration::from_secs(5), at least HumanDuration::from_millis(10);
    /// Git uploads and downloads running at once; each holds a thread.
    git_transfers: u32 = 64, at least 1;
    /// Pushes running at once; each holds a thread and its pack on disk.
    git_pushes: u32 = 8, at least 1;
    /// Requests at once on one HTTP/2 connection.
    streams_per_connection: u32 = 100, at least 1;
    /// Password checks at once; each takes a processor and 19 MiB for some milliseconds.
    password_checks: u32 = 4, at least 1;
    /// A request's head.
    header_size: HumanSize = HumanSize::from_kib(64), at least HumanSize::from_kib(4);
    /// Fields in a request's head.
    header_count: u32 = 100, at least 20;
    /// A commit's JSON body; other JSON bodies have at most 1 MiB.
    body_size: HumanSize = HumanSize::from_mib(96), at least HumanSize::from_kib(64);
    /// A pushed pack.
    push_size: HumanSize = HumanSize::from_gib(1), at least HumanSize::from_kib(64);
    /// Objects in a pushed pack.
    push_objects: u32 = 2_000_000, at least 16;
    /// One file in a commit.
    file_size: HumanSize = HumanSize::from_mib(64), at least HumanSize::from_kib(1);
    /// All files that a commit puts or changes.
    commit_size: HumanSize = HumanSize::from_mib(512), at least HumanSize::from_kib(1);
    /// Paths that a commit touches.
    commit_paths: u32 = 100_000, at least 1;
    /// Time for a request's head to arrive.
    header_timeout: HumanDuration = HumanDuration::from_secs(10), at least HumanDuration::from_millis(100);
    /// Time that a connection may stay open without a request.
    idle_timeout: HumanDuration = HumanDuration::from_secs(75), at least HumanDuration::from_millis(100);
    /// Time without a byte in either direction before a transfer is ended.
    stall_timeout: HumanDuration = HumanDuration::from_secs(30), at least HumanDuration::from_millis(100);
    /// Time for a clone, fetch or push in all.
    transfer_timeout: HumanDuration = HumanDuration::from_secs(3_600), at least HumanDuration::from_secs(1);
    /// Time for a request's work, transfers and watches not counted.
    request_timeout: HumanDuration = HumanDuration::from_secs(30), at least HumanDuration::from_secs(1);
    /// The longest that a long poll may ask to wait.
    wait: HumanDuration = HumanDuration::from_secs(300), at least HumanDuration::from_secs(1);
    /// How fast this server sends objects to another one that is far behind, in a second.
    catch_up_bytes_per_s: HumanSize = HumanSize::from_mib(64), at least HumanSize::from_kib(64);
    /// How often this server reads all of its objects and compares them with their names.
    scrub_interval: HumanDuration = HumanDuration::from_secs(6 * 3_600), at least HumanDuration::from_secs(1);
    /// How fast it does so, in a second.
    scrub_bytes_per_s: HumanSize = HumanSize::from_mib(64), at least HumanSize::from_kib(64);
    /// Room on the disk that is left free: with less, the server reads and does not write.
    min_free_bytes: HumanSize = HumanSize::from_mib(96), at least HumanSize::from_mib(1);
    /// Entries of the log that are kept for servers that were away; who misses more gets a snapshot and the missing objects.
    log_entries: u32 = 10_000, at least 100;
    /// How long a certificate that this server issues is good for; nodes renew theirs when two thirds of it are over.
    certificate_life: HumanDuration = HumanDuration::from_days(90), at least HumanDuration::from_secs(10);
    /// Time to finish what runs when the server stops.
    shutdown_timeout: HumanDuration = HumanDuration::from_secs(10), at least HumanDuration::from_millis(10);
}

impl Schema for Ecconfigd {
    const KIND: DocumentKind = DocumentKind::Ecconfigd;
    type Raw = RawEcconfigd;

    fn resolve(raw: RawEcconfigd, _: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let listen = raw.listen.map(|listen| listen.0).unwrap_or_default();
        if raw.advertise.as_ref().is_some_and(|advertise| advertise.port == 0) {
            check.refuse(&KeyPath::keys(["advertise"]), "others cannot reach port 0");
        }
        if let Some(Err(error)) = raw.log.as_deref().map(crate::telemetry::check_filter) {
            check.refuse(&KeyPath::keys(["log"]), error.to_string());
        }
        Self {
            listen,
            advertise: raw.advertise,
            log: raw.log,
            limits: Limits::resolve(raw.limits.unwrap_or_default(), check),
        }
    }
}
