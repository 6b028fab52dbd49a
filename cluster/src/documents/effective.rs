//! What a file means for one node: the layers along its search path, merged, with the origin of every value.

use serde::de::DeserializeOwned;

use super::decode;
use super::files::{Files, FilesError};
use super::finding::{Finding, Findings};
use super::layers;
use super::parse::Document;
use super::place::{KeyPath, Place, Position};
use super::print;
use super::search_path::SearchPath;
use super::tree::{Item, Table};

/// Why there is no effective document.
#[derive(Debug, thiserror::Error)]
pub enum EffectiveError {
    /// A file could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A layer is no TOML.
    #[error("{0}")]
    Refused(Findings),
}

/// A file of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum EffectiveFile {
    /// A TOML document, merged from its layers.
    Document(Effective),
    /// Any other file: the most specific one wins as a whole.
    Whole {
        /// Where it was found, from the working copy's root.
        path: String,
        /// Its content.
        data: Vec<u8>,
    },
    /// In none of the directories.
    Missing,
}

/// A place on the search path at which a document was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// The path from the working copy's root.
    pub path: String,
    /// True when the file exists.
    pub exists: bool,
}

/// A document merged from its layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    file: String,
    layers: Vec<LayerFile>,
    root: Table,
}

/// The effective file of a search path. `file` is relative to each of its directories, such as `duravip.toml`.
pub fn effective(files: &dyn Files, search_path: &SearchPath, file: &str) -> Result<EffectiveFile, EffectiveError> {
    if !file.ends_with(".toml") {
        return whole(files, search_path, file);
    }
    let effective = document(files, search_path, file)?;
    if effective.exists() { Ok(EffectiveFile::Document(effective)) } else { Ok(EffectiveFile::Missing) }
}

/// The effective TOML document of a search path; an empty one when no layer exists.
pub fn document(files: &dyn Files, search_path: &SearchPath, file: &str) -> Result<Effective, EffectiveError> {
    let mut looked_at = Vec::new();
    let mut documents = Vec::new();
    let mut findings = Findings::new();
    for path in search_path.layers_of(file) {
        let data = files.read(&path)?;
        looked_at.push(LayerFile { path: path.clone(), exists: data.is_some() });
        match data.map(|data| Document::parse(&path, &data)) {
            Some(Ok(document)) => documents.push(document),
            Some(Err(wrong)) => findings.extend(wrong),
            None => {}
        }
    }
    if !findings.is_empty() {
        return Err(EffectiveError::Refused(findings));
    }
    Ok(Effective::from_layers(file, looked_at, documents.iter()))
}

fn whole(files: &dyn Files, search_path: &SearchPath, file: &str) -> Result<EffectiveFile, EffectiveError> {
    for directory in search_path.directories() {
        let path = format!("{directory}/{file}");
        if let Some(data) = files.read(&path)? {
            return Ok(EffectiveFile::Whole { path, data });
        }
    }
    Ok(EffectiveFile::Missing)
}

impl Effective {
    /// Merges layers that were read before; both lists have the least specific first.
    pub fn from_layers<'a>(
        file: &str,
        looked_at: Vec<LayerFile>,
        documents: impl IntoIterator<Item = &'a Document>,
    ) -> Self {
        let root = layers::merged(documents.into_iter().map(|document| &document.root));
        Self { file: file.to_owned(), layers: looked_at, root }
    }

    /// A document of one layer, such as a node-local file.
    pub fn from_document(document: Document) -> Self {
        let path = document.file.to_string();
        let layers = vec![LayerFile { path: path.clone(), exists: true }];
        Self::from_layers(&path, layers, [&document])
    }

    /// The file's name, relative to each directory of the search path.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where the document was looked for, the least specific first.
    pub fn layers(&self) -> &[LayerFile] {
        &self.layers
    }

    /// True when at least one layer exists.
    pub fn exists(&self) -> bool {
        self.layers.iter().any(|layer| layer.exists)
    }

    /// The merged value.
    pub fn root(&self) -> &Table {
        &self.root
    }

    /// The value at a path.
    pub fn get(&self, path: &KeyPath) -> Option<&Item> {
        self.root.get(path)
    }

    /// Where the value at a path was written.
    pub fn origin(&self, path: &KeyPath) -> Option<Place> {
        self.get(path).map(Item::place)
    }

    /// Every leaf's path with the place it was written at, in the order of the document.
    pub fn origins(&self) -> Vec<(KeyPath, Place)> {
        let mut origins = Vec::new();
        self.root.leaves(&mut |path, item| origins.push((path, item.place())));
        origins
    }

    /// As TOML; with `origins`, each line ends with the `# file:line` it came from.
    pub fn to_toml(&self, origins: bool) -> String {
        print::toml(&self.root, origins)
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        print::json(&self.root)
    }

    /// Reads the document into a type; every mistake comes with its place.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Findings> {
        decode::decode(&self.root, &self.anchor())
    }

    /// A finding about a key, at the place of the key or of what is around it.
    pub fn finding(&self, path: &KeyPath, message: impl Into<String>) -> Finding {
        let place = self.root.nearest_place(path).unwrap_or_else(|| self.anchor());
        Finding::at_place(&place, message).with_key(path)
    }

    /// The start of the most specific file that exists: the place of what is missing.
    fn anchor(&self) -> Place {
        let layer = self.layers.iter().rev().find(|layer| layer.exists);
        let file = layer.map_or(self.file.as_str(), |layer| layer.path.as_str());
        Place { file: file.into(), at: Position::START }
    }
}
