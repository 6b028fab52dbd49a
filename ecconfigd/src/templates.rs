//! The files that new repositories begin with, compiled in: one binary is all there is to install.

use bytes::Bytes;
use repos::Mode;

use crate::core::TemplateFile;

/// A file under `ecconfigd/templates/`.
macro_rules! packaged {
    ($dir:literal, $($path:literal),+ $(,)?) => {
        vec![$(file($path, Bytes::from_static(include_bytes!(concat!("../templates/", $dir, "/", $path))))),+]
    };
}

/// The first files of a subcluster's repository.
pub fn subcluster() -> Vec<TemplateFile> {
    packaged!("subcluster", "README.md", "default/README.md")
}

/// The first files of `global`, with the first node in `cluster.toml`.
pub fn global(node: &FirstNode) -> Vec<TemplateFile> {
    let mut files = packaged!("global", "README.md");
    files.push(file("cluster.toml", node.cluster_toml().into()));
    files
}

fn file(path: &str, content: Bytes) -> TemplateFile {
    let path = path.parse().expect("packaged files have plain paths");
    TemplateFile { path, mode: Mode::File, content }
}

/// The node that a cluster begins with, as `global/cluster.toml` names it.
#[derive(Debug, Clone)]
pub struct FirstNode {
    /// Its name.
    pub name: String,
    /// Where others reach it, without the port.
    pub host: String,
    /// The port of its ecconfigd.
    pub port: u16,
    /// Its subcluster.
    pub subcluster: String,
}

/// The port that needs no mention.
const USUAL_PORT: u16 = 2027;

impl FirstNode {
    /// The document. Names are checked words; the host is quoted as TOML wants it.
    fn cluster_toml(&self) -> String {
        let host = toml::Value::String(self.host.clone());
        let mut text = format!(
            "# The nodes of the cluster. Nodes may be named here before they join or enrol.\n\n\
             [node.{name}]\naddress = {host}            # where the other nodes reach it\nsubcluster = \"{subcluster}\"\n",
            name = self.name,
            subcluster = self.subcluster,
        );
        if self.port != USUAL_PORT && self.port != 0 {
            text.push_str(&format!("ports = {{ ecconfigd = {} }}\n", self.port));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_node_is_named() {
        let node = FirstNode { name: "n1".into(), host: "10.0.0.11".into(), port: 4027, subcluster: "default".into() };
        let text = node.cluster_toml();
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["node"]["n1"]["address"].as_str(), Some("10.0.0.11"), "{text}");
        assert_eq!(parsed["node"]["n1"]["ports"]["ecconfigd"].as_integer(), Some(4027));
    }
}
