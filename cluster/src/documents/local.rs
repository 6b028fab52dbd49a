//! Node-local files: documents of one layer, read from where they lie.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::effective::Effective;
use super::finding::Findings;
use super::parse::Document;
use super::schema::cluster::Cluster;
use super::schema::{self, Context, Schema};

/// Why a node-local file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It exists and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that is not understood. One finding per line.
    #[error("{0}")]
    Refused(Findings),
}

/// Reads a node-local document; none when the file does not exist.
pub fn load_local<S: Schema>(path: &Path) -> Result<Option<S>, LocalError> {
    let data = match fs::read(path) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LocalError::Read { path: path.to_owned(), source }),
    };
    parse_local(&path.to_string_lossy(), &data).map(Some).map_err(LocalError::Refused)
}

/// Parses a document of one layer.
pub fn parse_local<S: Schema>(file: &str, data: &[u8]) -> Result<S, Findings> {
    let document = Document::parse(file, data)?;
    let wrong = schema::check_layer::<S>(&document);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let cluster = Cluster::default();
    schema::resolve(
        &Effective::from_document(document),
        &Context { cluster: &cluster, subcluster: "default", node: None },
    )
}
