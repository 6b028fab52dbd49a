//! Files and directories at a revision.
//!
//! A file is served as its bytes and never as something a browser would run: HTML and SVG go out as text, sniffing is off and the answer is
//! sandboxed, because whoever may commit must not be able to act as whoever looks at the file in the console.

use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{EntryKind, Problem, TreeEntry};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use repos::{Entry, Mode, Oid, Reader, RepoPath};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Path, Query};
use super::problem::ApiError;
use super::read::{At, stamped};
use crate::accounts::Caller;
use crate::state::RepoName;

const X_MODE: HeaderName = HeaderName::from_static("x-mode");

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    let by_another_name = axum::routing::get(root);
    OpenApiRouter::new()
        .routes(routes!(file))
        .routes(routes!(tree))
        .routes(routes!(root))
        // Who puts paths together out of pieces means the root by the empty one.
        .route("/api/v1/repos/{repo}/tree/", by_another_name)
}

/// A path of a request as git takes it; one that is no UTF-8 is quoted as our answers quote it. One that git would not take does not exist.
pub(super) fn repo_path(text: &str) -> Result<RepoPath, ApiError> {
    let path = text.trim_end_matches('/').parse();
    path.map_err(|error: repos::PathError| ApiError::not_found(error.to_string()))
}

/// A file's bytes at a revision. A symbolic link answers with its target, as its `X-Mode` (120000) says.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/files/{*path}", tag = "files", operation_id = "getFile", params(
    ("repo" = String, Path, description = "The repository"),
    ("path" = String, Path, description = "The path from the repository's root, slashes and all"),
    At,
), responses(
    (status = 200, description = "The bytes", content_type = "application/octet-stream", body = Vec<u8>, headers(
        ("X-Revision" = u64, description = "The revision that was read"),
        ("X-Mode" = String, description = "git's mode in octal"),
        ("ETag" = String, description = "The blob's id"),
    )),
    (status = 304, description = "The blob of If-None-Match is still the one"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((repo, path)): Path<(RepoName, String)>,
    Query(at): Query<At>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = repo_path(&path)?;
    let resolved = app.at(&caller, &repo, &at).await?;
    let limit_bytes = app.limits.now().file_bytes;
    let known = if_none_match(&headers);
    let name = path.clone();
    let (entry, data) = app
        .read(&repo, move |reader| {
            let entry = find(reader, resolved.commit, &name)?;
            if known.contains(&entry.id) {
                return Ok((entry, None));
            }
            let data = reader.blob(entry.id, limit_bytes)?;
            Ok((entry, Some(data)))
        })
        .await?;
    let mut response = match data {
        None => StatusCode::NOT_MODIFIED.into_response(),
        Some(data) => content(&path, data),
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", entry.id)) {
        headers.insert(header::ETAG, tag);
    }
    if let Ok(mode) = HeaderValue::from_str(&entry.mode.to_string()) {
        headers.insert(X_MODE, mode);
    }
    Ok(stamped(resolved, response))
}

/// The file or link at a path of a commit.
fn find(reader: &Reader, commit: Oid, path: &RepoPath) -> Result<Entry, ApiError> {
    let entry = reader.entry(reader.tree_of(commit)?, path)?;
    match entry {
        Some(entry) if entry.mode.is_blob() => Ok(entry),
        Some(entry) if entry.mode == Mode::Dir => {
            Err(ApiError::not_found(format!("{path} is a directory")).hint("…/tree/ lists directories"))
        }
        _ => Err(ApiError::not_found(format!("there is no file {path} at {}", commit.short()))),
    }
}

fn content(path: &RepoPath, data: Vec<u8>) -> Response {
    let content_type = HeaderValue::from_static(content_type(path, &data));
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
        (header::CONTENT_TYPE, content_type),
    ];
    (fixed, data).into_response()
}

/// By the name's end where it says something harmless, else by whether it is text.
fn content_type(path: &RepoPath, data: &[u8]) -> &'static str {
    let name = path.name();
    let end = name.iter().rposition(|b| *b == b'.').map_or(&b""[..], |dot| &name[dot + 1..]);
    match end {
        b"json" => "application/json",
        b"toml" => "application/toml",
        b"yaml" | b"yml" => "application/yaml",
        b"png" => "image/png",
        b"jpg" | b"jpeg" => "image/jpeg",
        _ if data.contains(&0) || std::str::from_utf8(data).is_err() => "application/octet-stream",
        _ => "text/plain; charset=utf-8",
    }
}

/// The blobs that the client has, by their entity tags. `*` is not asked by anybody who reads files.
fn if_none_match(headers: &HeaderMap) -> Vec<Oid> {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let tags = values.flat_map(|value| value.split(','));
    tags.filter_map(|tag| tag.trim().trim_start_matches("W/").trim_matches('"').parse().ok()).collect()
}

/// How to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// List what directories contain instead of the directories.
    #[serde(default)]
    recursive: bool,
}

/// A directory's entries at a revision; of a file, the file itself.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/tree/{*path}", tag = "files", operation_id = "getTree", params(
    ("repo" = String, Path, description = "The repository"),
    ("path" = String, Path, description = "The directory's path from the repository's root, slashes and all"),
    At, Listing,
), responses(
    (status = 200, description = "The entries in order", body = Vec<TreeEntry>,
        headers(("X-Revision" = u64, description = "The revision that was read"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn tree(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((repo, path)): Path<(RepoName, String)>,
    Query(at): Query<At>,
    Query(listing): Query<Listing>,
) -> Result<Response, ApiError> {
    let path = repo_path(&path)?;
    entries(&app, &caller, &repo, &at, Some(path), listing.recursive).await
}

/// The root directory's entries at a revision.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/tree", tag = "files", operation_id = "getRootTree", params(
    ("repo" = String, Path, description = "The repository"),
    At, Listing,
), responses(
    (status = 200, description = "The entries in order", body = Vec<TreeEntry>,
        headers(("X-Revision" = u64, description = "The revision that was read"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn root(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    Query(at): Query<At>,
    Query(listing): Query<Listing>,
) -> Result<Response, ApiError> {
    entries(&app, &caller, &repo, &at, None, listing.recursive).await
}

async fn entries(
    app: &App,
    caller: &Caller,
    repo: &RepoName,
    at: &At,
    path: Option<RepoPath>,
    recursive: bool,
) -> Result<Response, ApiError> {
    let resolved = app.at(caller, repo, at).await?;
    let work = move |reader: &Reader| {
        let tree = reader.tree_of(resolved.commit)?;
        if let Some(path) = &path
            && reader.entry(tree, path)?.is_none()
        {
            return Err(ApiError::not_found(format!("there is no {path} at {}", resolved.commit.short())));
        }
        let entries = reader.list(tree, path.as_ref(), recursive)?;
        let entries = entries.into_iter().map(|entry| shown(reader, entry)).collect::<Result<Vec<_>, _>>()?;
        // Many of them are much text, which is written here, too.
        Ok(stamped(resolved, JsonBody(entries)))
    };
    app.read(repo, work).await
}

fn shown(reader: &Reader, entry: Entry) -> Result<TreeEntry, ApiError> {
    let size = if entry.mode.is_blob() { reader.header(entry.id)?.map(|(_, size)| size) } else { None };
    Ok(TreeEntry {
        path: entry.path.to_string(),
        kind: match entry.mode {
            Mode::File | Mode::Exec => EntryKind::File,
            Mode::Symlink => EntryKind::Symlink,
            Mode::Dir => EntryKind::Dir,
            Mode::Submodule => EntryKind::Submodule,
        },
        mode: entry.mode.to_string(),
        id: entry.id.to_string(),
        size,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_is_served_that_a_browser_would_run() {
        let path = |text: &str| RepoPath::new(text).unwrap();
        assert_eq!(content_type(&path("a/b.html"), b"<script>"), "text/plain; charset=utf-8");
        assert_eq!(content_type(&path("a.svg"), b"<svg/>"), "text/plain; charset=utf-8");
        assert_eq!(content_type(&path("a.toml"), b""), "application/toml");
        assert_eq!(content_type(&path("a"), b"\0"), "application/octet-stream");
        assert_eq!(content_type(&path("a"), b"\xff"), "application/octet-stream");
        assert_eq!(content_type(&path("png"), b"text"), "text/plain; charset=utf-8");
    }

    #[test]
    fn paths_out_of_the_repository_do_not_exist() {
        for bad in ["../x", "/x", "a//b", ".git/config", "a/.GIT/x", ""] {
            assert!(repo_path(bad).is_err(), "{bad:?}");
        }
        assert!(repo_path("a/b/").is_ok());
    }
}
