//! The cluster's servers as the source: the node's target tells what to fetch, commits tell exactly which content.
//!
//! Everything is read by commit id, so a commit that arrives in between, or a second server that lags behind, cannot mix two
//! configurations. Files whose blob is known already are not transferred again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::{News, Settings, Version, Wanted};
use crate::api::{EntryKind, Head, Target, TreeEntry};
use crate::documents::{ConfError, MemoryFiles, NodeConf};
use crate::error::Chain;
use crate::http_client::{ApiClient, Backoff, Call, ClientError, EventStream, Incoming, escape, escape_path};

/// Requests at once: they share one connection, more would only queue there.
const PARALLEL: usize = 16;
/// One file; the gate's own limit is far lower.
const FILE_LIMIT_BYTES: u64 = 64 << 20;
/// All files of one subscription: they are held in memory and written to the cache.
const TOTAL_LIMIT_BYTES: usize = 256 << 20;
/// A link to a link to a link; more is a circle.
const LINKS: usize = 8;

#[derive(Debug)]
pub(super) struct Server {
    client: ApiClient,
    settings: Settings,
    targets: EventStream,
    /// A target that was not fetched yet.
    pending: Option<Target>,
    /// The target that was fetched last.
    last: Option<Target>,
    known: BTreeMap<String, Blob>,
    backoff: Backoff,
    /// Streams lost in a row.
    losses: u32,
}

/// A file's content with the tag under which servers know it.
#[derive(Debug, Clone)]
struct Blob {
    tag: Option<String>,
    link: bool,
    data: Bytes,
}

/// Why a target could not be fetched.
enum FetchError {
    /// Nobody can be asked, or somebody refuses.
    Client(ClientError),
    /// The files are no configuration.
    Unusable(String),
}

impl From<ClientError> for FetchError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<ConfError> for FetchError {
    fn from(error: ConfError) -> Self {
        Self::Unusable(Chain(&error).to_string())
    }
}

impl Server {
    pub(super) fn new(client: ApiClient, settings: &Settings) -> Self {
        let targets = client.events(&format!("/api/v1/nodes/{}/target", escape(&settings.node)), None);
        let (settings, known) = (settings.clone(), BTreeMap::new());
        Self { client, settings, targets, pending: None, last: None, known, backoff: Backoff::default(), losses: 0 }
    }

    pub(super) fn read_again(&mut self) {
        self.pending = self.pending.take().or_else(|| self.last.take());
    }

    pub(super) async fn next(&mut self) -> News {
        loop {
            let Some(target) = self.pending.clone() else {
                match self.targets.next().await {
                    Ok(Incoming::Event(event)) => match serde_json::from_str::<Target>(&event.data) {
                        Ok(mut target) => {
                            if let Some(last) = &self.last {
                                target.hold(&last.repos);
                            }
                            self.pending = Some(target);
                        }
                        Err(error) => {
                            return News::Away { why: format!("the server's target cannot be read: {error}") };
                        }
                    },
                    Ok(Incoming::Connected) => self.losses = 0,
                    // A server that restarts is no news as long as another one, or it again, answers at the next attempt.
                    Ok(Incoming::Lost(_)) if self.losses == 0 && self.last.is_some() => self.losses = 1,
                    Ok(Incoming::Lost(error)) | Err(error) => return News::Away { why: Chain(&error).to_string() },
                }
                continue;
            };
            if self.backoff.failures() > 0 {
                self.pause().await;
            }
            let version = Version::of_target(target.serial, target.repos.clone());
            match self.fetch(&target).await {
                Ok(files) => {
                    self.done();
                    return News::Files { files, version };
                }
                Err(FetchError::Unusable(why)) => {
                    self.done();
                    return News::Unusable { version, why };
                }
                Err(FetchError::Client(error)) => {
                    self.backoff.next_delay();
                    return News::Away { why: Chain(&error).to_string() };
                }
            }
        }
    }

    fn done(&mut self) {
        self.backoff.reset();
        self.last = self.pending.take();
    }

    /// Waits after a failed fetch, or until there is a newer target.
    async fn pause(&mut self) {
        let end = Instant::now() + self.backoff.clone().next_delay();
        while let Ok(news) = tokio::time::timeout_at(end, self.targets.next()).await {
            if let Ok(Incoming::Event(event)) = news
                && let Ok(mut target) = serde_json::from_str::<Target>(&event.data)
            {
                if let Some(last) = &self.last {
                    target.hold(&last.repos);
                }
                self.pending = Some(target);
                return;
            }
        }
    }

    async fn fetch(&mut self, target: &Target) -> Result<MemoryFiles, FetchError> {
        let mut fetched = self.fetch_all(target, Wanted::cluster_layers()).await?;
        let mut paths = self.layers(&fetched)?;
        for root in self.settings.wanted.roots() {
            paths.extend(self.list(target, &root).await?.into_iter().filter(|path| self.settings.wanted.matches(path)));
        }
        paths.retain(|path| !fetched.contains_key(path));
        fetched.extend(self.fetch_all(target, paths).await?);
        let total: usize = fetched.values().map(|blob| blob.data.len()).sum();
        if total > TOTAL_LIMIT_BYTES {
            return Err(FetchError::Unusable(format!("the wanted files are more than {TOTAL_LIMIT_BYTES} bytes")));
        }
        let files = fetched.iter().map(|(path, blob)| (path.clone(), blob.data.to_vec())).collect();
        self.known = fetched;
        Ok(MemoryFiles(files))
    }

    /// Where wanted documents may be, by the `cluster.toml` that was fetched.
    fn layers(&self, fetched: &BTreeMap<String, Blob>) -> Result<BTreeSet<String>, FetchError> {
        let files = MemoryFiles(fetched.iter().map(|(path, blob)| (path.clone(), blob.data.to_vec())).collect());
        let conf = NodeConf::read(&files, &self.settings.node, self.settings.subcluster.as_deref())?;
        let search_path = self.settings.search_path.as_ref().unwrap_or(conf.search_path());
        Ok(self.settings.wanted.layers(search_path, &conf))
    }

    async fn fetch_all(
        &self,
        target: &Target,
        paths: impl IntoIterator<Item = String>,
    ) -> Result<BTreeMap<String, Blob>, FetchError> {
        let fetches = paths.into_iter().map(|path| async move {
            let blob = self.fetch_file(target, &path).await?;
            Ok::<_, FetchError>(blob.map(|blob| (path, blob)))
        });
        let found: Vec<_> = futures::stream::iter(fetches).buffer_unordered(PARALLEL).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// A file of the working copy, links followed; `None` when there is none.
    async fn fetch_file(&self, target: &Target, path: &str) -> Result<Option<Blob>, FetchError> {
        let mut at = path.to_owned();
        for _ in 0..LINKS {
            let Some(blob) = self.fetch_blob(target, &at).await? else { return Ok(None) };
            if !blob.link {
                return Ok(Some(blob));
            }
            let Some(next) = follow(&at, &blob.data) else {
                return Err(FetchError::Unusable(format!("{at} is a link out of the repositories")));
            };
            at = next;
        }
        Err(FetchError::Unusable(format!("{path} is a link that leads in circles")))
    }

    async fn fetch_blob(&self, target: &Target, path: &str) -> Result<Option<Blob>, FetchError> {
        let Some((repo, head, inner)) = locate(target, path) else { return Ok(None) };
        let known = self.known.get(path);
        let url = format!("/api/v1/repos/{}/files/{}", escape(repo), escape_path(inner.as_bytes()));
        let mut call = at_commit(Call::get(&url), head);
        if let Some(tag) = known.and_then(|blob| blob.tag.as_deref()) {
            call = call.header("if-none-match", tag);
        }
        let reply = match self.client.send(call).await {
            Ok(reply) => reply,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if reply.status() == http::StatusCode::NOT_MODIFIED
            && let Some(known) = known
        {
            return Ok(Some(known.clone()));
        }
        let tag = reply.header("etag").map(str::to_owned);
        let link = reply.header("x-mode") == Some("120000");
        Ok(Some(Blob { tag, link, data: reply.bytes(FILE_LIMIT_BYTES).await? }))
    }

    /// The files below a directory of the working copy.
    async fn list(&self, target: &Target, directory: &str) -> Result<Vec<String>, FetchError> {
        let mut found = Vec::new();
        for (repo, mount) in mounts(target, directory) {
            let inner = directory.strip_prefix(mount).unwrap_or("").trim_start_matches('/');
            let separator = if inner.is_empty() { "" } else { "/" };
            let url = format!("/api/v1/repos/{}/tree{separator}{}", escape(repo), escape_path(inner.as_bytes()));
            let call = at_commit(Call::get(&url).query("recursive", true), &target.repos[repo]);
            let entries: Vec<TreeEntry> = match self.client.send(call).await {
                Ok(reply) => reply.json().await?,
                Err(error) if error.status() == Some(404) => continue,
                Err(error) => return Err(error.into()),
            };
            let files = entries.into_iter().filter(|entry| matches!(entry.kind, EntryKind::File | EntryKind::Symlink));
            let prefix = if mount.is_empty() { String::new() } else { format!("{mount}/") };
            found.extend(files.map(|entry| format!("{prefix}{}", entry.path)));
        }
        Ok(found)
    }
}

const GLOBAL: &str = "global";

/// The repository behind a path of the working copy, and the path inside it.
fn locate<'a>(target: &'a Target, path: &'a str) -> Option<(&'a str, &'a Head, &'a str)> {
    if let Some(inner) = path.strip_prefix("global/") {
        return target.repos.get(GLOBAL).map(|head| (GLOBAL, head, inner));
    }
    let (repo, head) = target.repos.iter().find(|(repo, _)| *repo != GLOBAL)?;
    Some((repo, head, path))
}

/// The repositories that hold something at or below a directory, each with where it is mounted.
fn mounts<'a>(target: &'a Target, directory: &str) -> Vec<(&'a str, &'static str)> {
    let within_global = directory == GLOBAL || directory.starts_with("global/");
    let repos = target.repos.keys().map(String::as_str);
    repos
        .filter(|repo| if *repo == GLOBAL { within_global || directory.is_empty() } else { !within_global })
        .map(|repo| (repo, if repo == GLOBAL { GLOBAL } else { "" }))
        .collect()
}

/// Exactly this commit, from a server that is new enough to have it.
fn at_commit(call: Call, head: &Head) -> Call {
    call.query("revision", &head.commit).query("min_revision", head.revision)
}

/// Where a link at `path` leads, if that is inside the working copy.
fn follow(path: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    if link.starts_with('/') {
        return None;
    }
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_stay_inside() {
        assert_eq!(follow("default/a.toml", b"../n1/b.toml").unwrap(), "n1/b.toml");
        assert_eq!(follow("default/a.toml", b"./b.toml").unwrap(), "default/b.toml");
        assert_eq!(follow("default/a.toml", b"../../etc/passwd"), None);
        assert_eq!(follow("default/a.toml", b"/etc/passwd"), None);
    }

    #[test]
    fn paths_find_their_repository() {
        let head = |commit: &str| Head { revision: 1, commit: commit.into() };
        let target = Target {
            serial: 1,
            repos: [("east".into(), head("e")), ("global".into(), head("g"))].into(),
            frozen: Vec::new(),
        };
        assert_eq!(locate(&target, "global/cluster.toml").unwrap(), ("global", &head("g"), "cluster.toml"));
        assert_eq!(locate(&target, "default/x").unwrap(), ("east", &head("e"), "default/x"));
        assert_eq!(mounts(&target, ""), [("east", ""), ("global", "global")]);
        assert_eq!(mounts(&target, "global/sub"), [("global", "global")]);
        assert_eq!(mounts(&target, "n1"), [("east", "")]);
    }
}
