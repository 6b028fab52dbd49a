//! Effective documents: what a file means for one node, and where each value was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::api::{EffectiveDocument, Origin, Problem};
use cluster::documents::schema::cluster::Cluster;
use cluster::documents::{ConfError, EffectiveFile, Files, Findings, MemoryFiles, Mounted, NodeConf};
use http::{HeaderMap, HeaderValue, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Path, Query, accepts};
use super::problem::{ApiError, Code};
use super::read::stamped;
use super::repositories::Min;
use crate::accounts::{Action, Caller, authorize};
use crate::core::Core;
use crate::state::{Head, NodeName, RepoName};
use crate::tree_files::TreeFiles;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(effective))
}

/// A document as one node sees it, with the place each value was written at. With `Accept: application/toml` as TOML with
/// the places in comments.
///
/// A file that is no TOML document is not merged: the most specific one wins, `value` is its text (or its bytes in base64) and the only
/// origin has an empty key.
#[utoipa::path(get, path = "/api/v1/effective/{subcluster}/{node}/{*file}", tag = "files", operation_id = "getEffective", params(
    ("subcluster" = String, Path, description = "The node's subcluster"),
    ("node" = String, Path, description = "The node"),
    ("file" = String, Path, description = "The file, relative to each directory of the search path"),
    Min,
), responses(
    (status = 200, description = "The document", content(
        (EffectiveDocument = "application/json"), (String = "application/toml"),
    ), headers(("X-Revision" = u64, description = "The revision of the subcluster's repository"))),
    (status = 422, description = "A layer cannot be read: `findings` says where", body = Problem,
        content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn effective(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((subcluster, node, file)): Path<(RepoName, NodeName, String)>,
    Query(min): Query<Min>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::Follow(&node))?;
    app.may_read(&caller, &subcluster, min.min_revision).await?;
    let registered = app.core.node(&node).ok();
    if let Some(record) = &registered
        && record.subcluster != subcluster
    {
        return Err(ApiError::not_found(format!("{node} belongs to {}, not to {subcluster}", record.subcluster)));
    }
    let view = View::now(&app, &subcluster)?;
    let heads = view.heads();
    let head = view.subcluster.1;
    let toml = accepts(&headers, "application/toml");
    let known = registered.is_some();
    let work = move || {
        let files = view.open()?;
        let conf = NodeConf::read(&files, node.as_str(), Some(subcluster.as_str())).map_err(unusable)?;
        if !known && !conf.cluster().nodes.contains_key(node.as_str()) {
            return Err(ApiError::not_found(format!("no such node: {node}")));
        }
        let found = conf.file(&file).map_err(unusable)?;
        if toml && let EffectiveFile::Document(document) = &found {
            return Ok(Shown::Toml(document.to_toml(true)));
        }
        let document = EffectiveDocument {
            subcluster: subcluster.to_string(),
            node: node.to_string(),
            search_path: conf.search_path().directories().to_vec(),
            value: serde_json::Value::Null,
            origins: BTreeMap::new(),
            repos: heads,
            file,
        };
        filled(document, found).map(|document| Shown::Json(Box::new(document)))
    };
    Ok(match app.blocking(work).await? {
        Shown::Json(document) => stamped(head, JsonBody(document)),
        Shown::Toml(text) => {
            let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/toml"))];
            stamped(head, (content_type, text).into_response())
        }
    })
}

enum Shown {
    Json(Box<EffectiveDocument>),
    Toml(String),
}

fn filled(mut document: EffectiveDocument, found: EffectiveFile) -> Result<EffectiveDocument, ApiError> {
    let origin = |file: &str, line: u32| Origin {
        repo: if file.starts_with("global/") { "global".into() } else { document.subcluster.clone() },
        file: file.to_owned(),
        line,
    };
    match found {
        EffectiveFile::Document(effective) => {
            document.value = effective.to_json();
            let origins = effective.origins().into_iter();
            document.origins =
                origins.map(|(key, place)| (key.to_string(), origin(&place.file, place.at.line))).collect();
        }
        EffectiveFile::Whole { path, data } => {
            document.origins = [(String::new(), origin(&path, 1))].into();
            document.value = match String::from_utf8(data) {
                Ok(text) => text.into(),
                Err(bytes) => STANDARD.encode(bytes.as_bytes()).into(),
            };
        }
        EffectiveFile::Missing => {
            let path = document.search_path.join(", ");
            return Err(ApiError::not_found(format!("{} is in none of {path}", document.file)));
        }
    }
    Ok(document)
}

/// The two repositories that a node sees, at one moment.
struct View {
    subcluster: (repos::Store, Head, RepoName),
    global: (repos::Store, Head),
}

impl View {
    fn now(app: &App, subcluster: &RepoName) -> Result<Self, ApiError> {
        let global = RepoName::global();
        let heads = app.core.heads(&[subcluster, &global])?;
        let [subcluster_head, global_head] = heads[..] else {
            return Err(ApiError::internal(&"two heads were asked for"));
        };
        Ok(Self {
            subcluster: (app.core.store(subcluster)?, subcluster_head, subcluster.clone()),
            global: (app.core.store(&global)?, global_head),
        })
    }

    fn heads(&self) -> BTreeMap<String, cluster::api::Head> {
        let (_, head, name) = &self.subcluster;
        [(name.to_string(), (*head).into()), ("global".to_owned(), self.global.1.into())].into()
    }

    fn open(&self) -> Result<Mounted<TreeFiles, TreeFiles>, ApiError> {
        let (store, head, _) = &self.subcluster;
        Ok(Mounted {
            subcluster: TreeFiles::of_commit(store.reader()?, head.commit)?,
            global: TreeFiles::of_commit(self.global.0.reader()?, self.global.1.commit)?,
        })
    }
}

impl App {
    /// The nodes that `cluster.toml` names at a revision of `global`.
    pub(super) async fn named_nodes(&self, head: Head) -> Result<Cluster, ApiError> {
        let core = self.core.clone();
        self.blocking(move || named_nodes(&core, head)).await
    }
}

/// The same, on a thread that may block.
pub(super) fn named_nodes(core: &Core, head: Head) -> Result<Cluster, ApiError> {
    let files = TreeFiles::of_commit(core.store(&RepoName::global())?.reader()?, head.commit)?;
    let files = Mounted { subcluster: MemoryFiles::default(), global: &files as &dyn Files };
    cluster::documents::conf::read_cluster(&files).map_err(unusable)
}

/// Documents that cannot be used are the committer's business, not a failure of the server.
fn unusable(error: ConfError) -> ApiError {
    let findings = |findings: Findings| findings.iter().cloned().map(Into::into).collect();
    match error {
        ConfError::Refused(found) => ApiError::refused(findings(found)),
        ConfError::SearchPath(error) => ApiError::new(Code::Invalid, error.to_string()),
        ConfError::Files(error) => ApiError::internal(&cluster::error::Chain(&error)),
    }
}
