//! Configuration documents: what is written in a repository, and what it means for one node.
//!
//! A document such as `duravip.toml` may exist in several directories of a working copy: the node's own, those of its
//! groups, `default/` and `global/`. The files along a node's [`SearchPath`] are the layers of the node's
//! [`Effective`] document: tables merge, arrays and scalars replace, `unset = ["key"]` removes; the more specific
//! layer wins. Two things always hold: every value knows the file, line and column it came from, and nothing here
//! touches a network, a git object or a clock, so that the server's gate, `eccfg validate` and every daemon judge a
//! document with the same code.
//!
//! * [`parse`]: one file into a [`Document`], with positions.
//! * [`layers`] and [`effective`]: several files into one value with its origins.
//! * [`decode`]: a document into a typed one by serde, every mistake with its place and a hint.
//! * [`schema`]: the documents that our programs read, raw (as written) and real (checked and complete).
//! * [`conf`]: all of it for one node, which is what a daemon wants.
//!
//! Left out on purpose: writing documents (people do that) and merging formats other than TOML.

pub mod conf;
pub mod decode;
pub mod effective;
pub mod files;
pub mod finding;
pub mod hint;
pub mod layers;
pub mod local;
pub mod parse;
pub mod place;
pub mod print;
pub mod schema;
pub mod search_path;
pub mod tree;

pub use conf::{ConfError, NodeConf};
pub use effective::{Effective, EffectiveError, EffectiveFile, LayerFile, effective};
pub use files::{DirFiles, Files, FilesError, MemoryFiles, Mounted};
pub use finding::{Finding, Findings};
pub use layers::Layer;
pub use local::{LocalError, load_local};
pub use parse::Document;
pub use place::{KeyPath, Place, Position, Segment};
pub use schema::DocumentKind;
pub use search_path::SearchPath;
pub use tree::{Item, Table, Value};
