//! `eccfg effective`.

use std::collections::BTreeMap;

use cluster::api::{EffectiveDocument, Origin};
use cluster::documents::place::Position;
use cluster::documents::{
    self, ConfError, DirFiles, EffectiveFile, Item, KeyPath, NodeConf, Place, SearchPath, Table, effective, print,
};
use repos::worktree::WorkingCopy;
use serde_json::{Map, Value};

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::place::CopyInfo;
use crate::update;

/// Show a document as a node sees it, with the file and line of every key
///
/// The layers along the node's search path (the node's own directory, its groups, default/, global/) are merged, the most specific
/// winning. In a working copy its files are read, local edits included; with --committed, or without one, a server is asked.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The file, relative to each directory of the search path, such as duravip.toml
    #[arg(value_name = "FILE")]
    file: String,
    /// The node [default: this machine's]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What is committed, from a server
    #[arg(long)]
    committed: bool,
    /// The node's subcluster [default: the working copy's, else `default`]
    #[arg(long, value_name = "NAME")]
    subcluster: Option<String>,
}

/// Where a local override of the search path stands.
const SEARCH_PATH_VARIABLE: &str = "EC_CONF_SEARCH_PATH";

/// What will be shown.
enum Found {
    Document { document: EffectiveDocument, text: String },
    Whole { path: String, data: Vec<u8>, search_path: Vec<String> },
    Missing { search_path: Vec<String> },
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let node = match &args.node {
        Some(node) => node.clone(),
        None => cx.node(wc.as_ref())?,
    };
    let found = match &wc {
        Some(wc) if !args.committed => in_working_copy(args, &node, wc, cx)?,
        _ => from_server(args, &node, wc.as_ref(), cx).await?,
    };
    show(args, &node, found, cx)
}

fn show(args: &Args, node: &str, found: Found, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match found {
        Found::Document { document, .. } if cx.ui.json() => cx.ui.json_document(&document)?,
        Found::Document { document, text } => {
            cx.ui.progress(format!("# {} of {node}; search path {}", args.file, document.search_path.join(", ")))?;
            cx.ui.bytes(text.as_bytes())?;
        }
        Found::Whole { path, data, search_path } if cx.ui.json() => {
            let content = String::from_utf8_lossy(&data);
            cx.ui.json_document(&serde_json::json!({ "node": node, "file": args.file, "search_path": search_path, "found": path, "content": content }))?;
        }
        Found::Whole { path, data, .. } => {
            cx.ui.note(format!("{path} is used as a whole: only TOML documents are merged"));
            cx.ui.bytes(&data)?;
        }
        Found::Missing { search_path } => {
            return Err(CommandError::failed(format!("{node} has no {}", args.file))
                .or_hint(&format!("it was looked for in {}", search_path.join(", "))));
        }
    }
    Ok(0)
}

/// The same code that the server and the daemons use, over the files as they are here.
fn in_working_copy(args: &Args, node: &str, wc: &WorkingCopy, cx: &Context<'_>) -> Result<Found, CommandError> {
    let info = CopyInfo::load(wc)?;
    let files = DirFiles::new(wc.root());
    let subcluster = args.subcluster.clone().or(Some(info.subcluster).filter(|name| !name.is_empty()));
    let conf = NodeConf::read(&files, node, None).map_err(refused)?;
    let search_path = match cx.environment.text(SEARCH_PATH_VARIABLE) {
        Some(text) => {
            SearchPath::parse(text, node).map_err(|error| CommandError::because(SEARCH_PATH_VARIABLE, error))?
        }
        None => conf.search_path().clone(),
    };
    let directories = search_path.directories().to_vec();
    Ok(match effective(&files, &search_path, &args.file).map_err(|error| refused(error.into()))? {
        EffectiveFile::Missing => Found::Missing { search_path: directories },
        EffectiveFile::Whole { path, data } => Found::Whole { path, data, search_path: directories },
        EffectiveFile::Document(found) => {
            let origins = found.origins().into_iter().map(|(key, place)| (key.to_string(), origin(&place))).collect();
            let document = EffectiveDocument {
                subcluster: subcluster.unwrap_or_else(|| conf.subcluster().to_owned()),
                node: node.to_owned(),
                file: args.file.clone(),
                search_path: directories,
                value: found.to_json(),
                origins,
                repos: update::bases(wc)?,
            };
            Found::Document { document, text: found.to_toml(true) }
        }
    })
}

fn origin(place: &Place) -> Origin {
    Origin { repo: String::new(), file: place.file.to_string(), line: place.at.line }
}

/// A document that cannot be read is shown with its places, as the gate would.
fn refused(error: ConfError) -> CommandError {
    match error {
        ConfError::Refused(findings) => CommandError::Refused {
            message: "there is no effective document: a file is wrong".into(),
            findings: findings.iter().map(super::validate::finding_line).collect(),
            hint: findings.iter().find_map(|finding| finding.hint.clone()),
        },
        other => CommandError::because("the document cannot be read", other),
    }
}

async fn from_server(
    args: &Args,
    node: &str,
    wc: Option<&WorkingCopy>,
    cx: &mut Context<'_>,
) -> Result<Found, CommandError> {
    let remembered = wc.map(CopyInfo::load).transpose()?.map(|info| info.subcluster).filter(|name| !name.is_empty());
    let subcluster = args.subcluster.clone().or(remembered).unwrap_or_else(|| super::DEFAULT_SUBCLUSTER.to_owned());
    let server = cx.server(wc, Need::Reader).await?;
    let document = server.effective(&subcluster, node, &args.file).await?;
    // A file that is no document is its text, and its only origin has no key.
    if let (Value::String(content), Some(origin)) = (&document.value, document.origins.get("")) {
        let (path, data) = (origin.file.clone(), content.clone().into_bytes());
        return Ok(Found::Whole { path, data, search_path: document.search_path });
    }
    let text = annotated(&document);
    Ok(Found::Document { document, text })
}

/// The server's document in the form that the local one has.
fn annotated(document: &EffectiveDocument) -> String {
    let Value::Object(entries) = &document.value else { return format!("{}\n", document.value) };
    print::toml(&table(entries, &KeyPath::ROOT, &document.origins), true)
}

fn table(entries: &Map<String, Value>, path: &KeyPath, origins: &BTreeMap<String, Origin>) -> Table {
    let mut table = Table::default();
    for (key, value) in entries {
        let path = path.key(key);
        let origin = origins.get(&path.to_string());
        table.entries.insert(key.clone(), item(value, &path, origin, origins));
    }
    table
}

fn item(value: &Value, path: &KeyPath, origin: Option<&Origin>, origins: &BTreeMap<String, Origin>) -> Item {
    let at = Position { line: origin.map_or(1, |origin| origin.line), column: 1 };
    let value = match value {
        Value::Null => documents::Value::Absent,
        Value::Bool(value) => documents::Value::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => documents::Value::Integer(whole),
            (None, float) => documents::Value::Float(float.unwrap_or(f64::NAN)),
        },
        Value::String(text) => documents::Value::String(text.clone()),
        Value::Array(items) => {
            documents::Value::Array(items.iter().map(|value| item(value, path, origin, origins)).collect())
        }
        Value::Object(entries) => documents::Value::Table(table(entries, path, origins)),
    };
    Item { file: origin.map_or("", |origin| origin.file.as_str()).into(), key_at: at, at, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server sends is printed like what the same files give here.
    #[test]
    fn a_servers_document_looks_like_a_local_one() {
        let files = documents::MemoryFiles::from_texts([
            ("global/duravip.toml", "mature = \"5s\"\n[check.smtp]\ntcp = \"127.0.0.1:25\"\n"),
            ("default/duravip.toml", "dead_after = \"300ms\"\n[vip.\"10.1.1.1\"]\nservices = [\"smtp\"]\nweight = 2\n"),
            ("n1/duravip.toml", "mature = \"9s\"\n"),
        ]);
        let EffectiveFile::Document(found) =
            effective(&files, &SearchPath::of_node("n1", &[]), "duravip.toml").unwrap()
        else {
            panic!("the document exists");
        };
        let document = EffectiveDocument {
            subcluster: "default".into(),
            node: "n1".into(),
            file: "duravip.toml".into(),
            search_path: Vec::new(),
            value: found.to_json(),
            origins: found.origins().into_iter().map(|(key, place)| (key.to_string(), origin(&place))).collect(),
            repos: BTreeMap::new(),
        };
        assert_eq!(annotated(&document), found.to_toml(true));
        assert!(annotated(&document).contains("n1/duravip.toml:1"));
    }
}
