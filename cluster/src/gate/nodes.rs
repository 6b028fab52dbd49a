//! Documents: each changed layer by itself, and the effective documents of every node that the change affects.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{ChangeKind, FilesError, Finding, GLOBAL, Gathered, Proposal};
use crate::documents::schema::cluster::Cluster;
use crate::documents::schema::{self, Context, misplaced};
use crate::documents::{Document, DocumentKind, Effective, KeyPath, LayerFile, SearchPath};

pub(super) fn check(proposal: &Proposal<'_>, gathered: &mut Gathered) -> Result<(), FilesError> {
    let view = View { proposal, parsed: RefCell::default() };
    let affected = check_layers(&view, gathered)?;
    let links = links_at_the_root(proposal);
    if affected.is_empty() && links.is_empty() {
        return Ok(());
    }
    let Some(cluster) = read_cluster(&view, affected.cluster, gathered)? else { return Ok(()) };
    check_links(&links, proposal, &cluster, gathered);
    for (subcluster, nodes) in nodes_by_subcluster(proposal, &cluster) {
        for kind in [DocumentKind::Duravip, DocumentKind::Logd, DocumentKind::Cidr] {
            check_nodes(&view, &cluster, &subcluster, &nodes, kind, &affected, gathered)?;
        }
    }
    Ok(())
}

/// Links at the root of a subcluster's repository: repository and name.
fn links_at_the_root<'a>(proposal: &'a Proposal<'_>) -> Vec<(&'a str, &'a str)> {
    let mut links = Vec::new();
    for (repo, proposed) in proposal.repos.iter().filter(|(repo, _)| *repo != GLOBAL) {
        let is_link = |change: &&super::Change| change.kind == ChangeKind::Symlink && !change.path.contains(&b'/');
        let names = proposed.changes.iter().filter(is_link).filter_map(|change| std::str::from_utf8(&change.path).ok());
        links.extend(names.map(|name| (repo.as_str(), name)));
    }
    links
}

/// A directory in which nodes look for documents is no link: a change behind it would pass by the gate.
fn check_links(links: &[(&str, &str)], proposal: &Proposal<'_>, cluster: &Cluster, gathered: &mut Gathered) {
    for (repo, name) in links {
        let looked_into = *name == "default"
            || proposal.nodes.iter().any(|node| node.name == *name)
            || cluster.nodes.values().any(|node| node.name == *name || node.groups.iter().any(|group| group == name));
        if looked_into {
            let message = "nodes look for their documents here, so this must be a directory and not a link";
            gathered.add(Finding { repo: (*repo).to_owned(), ..Finding::whole(name, message) });
        }
    }
}

/// The document that a path of a repository is a layer of, and the directory of the search path it lies in. In a
/// subcluster's repository a layer is `DIRECTORY/NAME.toml`; in `global` it is `NAME.toml`, and that is for the caller
/// to tell apart.
pub(super) fn document_of(path: &str) -> Option<DocumentKind> {
    DocumentKind::of_file_name(path.rsplit('/').next().unwrap_or(path))
}

/// A changed layer: its document and its directory as a working copy has it.
pub(super) fn layer_of<'a>(repo: &str, path: &'a str) -> Option<(DocumentKind, &'a str)> {
    match (repo == GLOBAL, path.split_once('/')) {
        (true, None) => Some((document_of(path)?, GLOBAL)),
        (false, Some((directory, name))) if !name.contains('/') => Some((document_of(name)?, directory)),
        _ => None,
    }
}

/// What a change touches, so that nothing else is looked at.
#[derive(Default)]
struct Affected {
    /// The nodes themselves: every document may refer to them.
    cluster: bool,
    /// Documents of the repository `global`.
    global: BTreeSet<DocumentKind>,
    /// Subcluster, document and directory.
    own: BTreeSet<(String, DocumentKind, String)>,
}

impl Affected {
    fn is_empty(&self) -> bool {
        !self.cluster && self.global.is_empty() && self.own.is_empty()
    }

    fn touches(&self, subcluster: &str, kind: DocumentKind, search_path: &SearchPath) -> bool {
        let own = |directory: &String| self.own.contains(&(subcluster.to_owned(), kind, directory.clone()));
        self.cluster || self.global.contains(&kind) || search_path.directories().iter().any(own)
    }
}

fn check_layers(view: &View<'_>, gathered: &mut Gathered) -> Result<Affected, FilesError> {
    let mut affected = Affected::default();
    for (repo, proposed) in &view.proposal.repos {
        for change in &proposed.changes {
            let Ok(path) = std::str::from_utf8(&change.path) else { continue };
            let Some((kind, directory)) = layer_of(repo, path) else { continue };
            if change.kind == ChangeKind::Symlink {
                let message = "a document must be a file, not a link";
                gathered.add(Finding { repo: repo.clone(), ..Finding::whole(path, message) });
                continue;
            }
            if change.kind != ChangeKind::Deleted && check_layer(view, repo, path, kind, directory, gathered)? {
                continue;
            }
            match (repo == GLOBAL, kind) {
                (true, DocumentKind::Cluster) => affected.cluster = true,
                (true, kind) => drop(affected.global.insert(kind)),
                (false, kind) => drop(affected.own.insert((repo.clone(), kind, directory.to_owned()))),
            }
        }
    }
    Ok(affected)
}

/// True when the file should not be there at all, so that what it says does not matter.
fn check_layer(
    view: &View<'_>,
    repo: &str,
    path: &str,
    kind: DocumentKind,
    directory: &str,
    gathered: &mut Gathered,
) -> Result<bool, FilesError> {
    let shown = format!("{directory}/{}", kind.file_name());
    if let Some(finding) = misplaced(kind, &shown) {
        gathered.add(Finding { repo: repo.to_owned(), file: path.to_owned(), ..finding });
        return Ok(true);
    }
    // Syntax was judged before, for every file.
    if let Parsed::Document(document) = view.layer(repo, &shown)? {
        for finding in kind.check_layer(&document) {
            gathered.add(in_repo(repo, finding));
        }
    }
    Ok(false)
}

/// Reads the nodes. None when they cannot be read, in which case nothing that refers to them can be judged.
fn read_cluster(view: &View<'_>, changed: bool, gathered: &mut Gathered) -> Result<Option<Cluster>, FilesError> {
    let nobody = Cluster::default();
    let context = Context { cluster: &nobody, subcluster: "default", node: None };
    let search_path = SearchPath::shared();
    let effective = match view.effective(GLOBAL, &search_path, DocumentKind::Cluster)? {
        Ok(effective) => effective,
        Err(findings) => {
            findings.into_iter().for_each(|finding| gathered.add(finding));
            return Ok(None);
        }
    };
    match schema::resolve::<Cluster>(&effective, &context) {
        Ok(cluster) => {
            if changed {
                check_registry(view.proposal, &cluster, &effective, gathered);
            }
            Ok(Some(cluster))
        }
        Err(findings) => {
            findings.into_iter().for_each(|finding| gathered.add(in_repo(GLOBAL, finding)));
            Ok(None)
        }
    }
}

/// A node's subcluster is in its certificate. A file that says otherwise would have its daemons disagree with the server.
fn check_registry(proposal: &Proposal<'_>, cluster: &Cluster, effective: &Effective, gathered: &mut Gathered) {
    for registered in &proposal.nodes {
        let Some(named) = cluster.nodes.get(&registered.name) else { continue };
        if named.subcluster == registered.subcluster {
            continue;
        }
        let path = KeyPath::keys(["node", &registered.name, "subcluster"]);
        let message = format!(
            "the node {} belongs to the subcluster \"{}\", not \"{}\"",
            registered.name, registered.subcluster, named.subcluster
        );
        let hint = match effective.get(&path) {
            None => format!("say so: subcluster = \"{}\"", registered.subcluster),
            Some(_) => "a node's subcluster is part of its certificate; enrol it again to move it".to_owned(),
        };
        gathered.add(in_repo(GLOBAL, effective.finding(&path, message).with_hint(hint)));
    }
}

/// The nodes of each subcluster, joined or only named. A subcluster without any has its shared documents judged.
fn nodes_by_subcluster(proposal: &Proposal<'_>, cluster: &Cluster) -> BTreeMap<String, BTreeSet<String>> {
    let mut nodes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for repo in proposal.repos.keys().filter(|repo| *repo != GLOBAL) {
        nodes.insert(repo.clone(), BTreeSet::new());
    }
    let mut seen = BTreeSet::new();
    for registered in &proposal.nodes {
        seen.insert(registered.name.as_str());
        if let Some(nodes) = nodes.get_mut(&registered.subcluster) {
            nodes.insert(registered.name.clone());
        }
    }
    for node in cluster.nodes.values().filter(|node| !seen.contains(node.name.as_str())) {
        if let Some(nodes) = nodes.get_mut(&node.subcluster) {
            nodes.insert(node.name.clone());
        }
    }
    nodes
}

/// Nodes that are judged together: the same layers, and the same things to refer to.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    layers: Vec<String>,
    /// A node that `cluster.toml` does not name may still refer to itself.
    alone: Option<String>,
}

fn check_nodes(
    view: &View<'_>,
    cluster: &Cluster,
    subcluster: &str,
    nodes: &BTreeSet<String>,
    kind: DocumentKind,
    affected: &Affected,
    gathered: &mut Gathered,
) -> Result<(), FilesError> {
    let mut alike: BTreeMap<Alike, (SearchPath, Vec<String>)> = BTreeMap::new();
    if nodes.is_empty() && affected.touches(subcluster, kind, &SearchPath::shared()) {
        alike.insert(Alike { layers: Vec::new(), alone: None }, (SearchPath::shared(), Vec::new()));
    }
    for node in nodes {
        let search_path = SearchPath::of_node(node, cluster.groups_of(node));
        if !affected.touches(subcluster, kind, &search_path) {
            continue;
        }
        let mut layers = Vec::new();
        for path in search_path.layers_of(kind.file_name()) {
            if !matches!(view.layer(subcluster, &path)?, Parsed::Absent) {
                layers.push(path);
            }
        }
        let alone = (!cluster.nodes.is_empty() && !cluster.nodes.contains_key(node)).then(|| node.clone());
        alike.entry(Alike { layers, alone }).or_insert_with(|| (search_path, Vec::new())).1.push(node.clone());
    }
    for (Alike { alone, .. }, (search_path, nodes)) in alike {
        let context = Context { cluster, subcluster, node: alone.as_deref() };
        let findings = match view.effective(subcluster, &search_path, kind)? {
            Ok(effective) => {
                kind.check_effective(&effective, &context).into_iter().map(|f| in_repo(subcluster, f)).collect()
            }
            Err(findings) => findings,
        };
        for finding in findings {
            gathered.add_for(finding, &nodes);
        }
    }
    Ok(())
}

/// A finding that names a file of a working copy, moved to the repository in which that file lives.
fn in_repo(subcluster: &str, finding: Finding) -> Finding {
    let (repo, file) = locate(subcluster, &finding.file);
    let (repo, file) = (repo.to_owned(), file.to_owned());
    Finding { repo, file, ..finding }
}

fn locate<'a>(subcluster: &'a str, path: &'a str) -> (&'a str, &'a str) {
    match path.strip_prefix("global/") {
        Some(inner) => (GLOBAL, inner),
        None => (subcluster, path),
    }
}

/// A layer as it was found.
#[derive(Clone)]
enum Parsed {
    Absent,
    Document(Arc<Document>),
    /// Not TOML. The findings name repository and file.
    Broken(Arc<Vec<Finding>>),
}

/// The proposed trees as working copies, each layer read and parsed once.
struct View<'a> {
    proposal: &'a Proposal<'a>,
    /// By repository and path in it.
    parsed: RefCell<HashMap<(String, String), Parsed>>,
}

impl View<'_> {
    /// A layer by its path in the working copy of a subcluster.
    fn layer(&self, subcluster: &str, path: &str) -> Result<Parsed, FilesError> {
        let (repo, file) = locate(subcluster, path);
        let key = (repo.to_owned(), file.to_owned());
        if let Some(parsed) = self.parsed.borrow().get(&key) {
            return Ok(parsed.clone());
        }
        let data = match self.proposal.repos.get(repo) {
            Some(proposed) => proposed.files.read(file)?,
            None => None,
        };
        // Positions name the file as a working copy does; findings are moved to their repository later.
        let parsed = match data.map(|data| Document::parse(path, &data)) {
            None => Parsed::Absent,
            Some(Ok(document)) => Parsed::Document(Arc::new(document)),
            Some(Err(findings)) => Parsed::Broken(Arc::new(findings.into_iter().map(|f| in_repo(repo, f)).collect())),
        };
        self.parsed.borrow_mut().insert(key, parsed.clone());
        Ok(parsed)
    }

    /// The effective document of a search path, or what is wrong with the syntax of its layers.
    fn effective(
        &self,
        subcluster: &str,
        search_path: &SearchPath,
        kind: DocumentKind,
    ) -> Result<Result<Effective, Vec<Finding>>, FilesError> {
        let mut looked_at = Vec::new();
        let mut documents = Vec::new();
        let mut broken = Vec::new();
        // In `global` the nodes have only one place.
        let is_cluster = kind == DocumentKind::Cluster;
        for path in search_path.layers_of(kind.file_name()).filter(|path| !is_cluster || path.starts_with("global/")) {
            let parsed = self.layer(subcluster, &path)?;
            looked_at.push(LayerFile { path, exists: !matches!(parsed, Parsed::Absent) });
            match parsed {
                Parsed::Absent => {}
                Parsed::Document(document) => documents.push(document),
                Parsed::Broken(findings) => broken.extend(findings.iter().cloned()),
            }
        }
        if !broken.is_empty() {
            return Ok(Err(broken));
        }
        Ok(Ok(Effective::from_layers(kind.file_name(), looked_at, documents.iter().map(Arc::as_ref))))
    }
}
