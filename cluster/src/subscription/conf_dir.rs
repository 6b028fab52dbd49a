//! A directory as the source: a working copy, or a plain directory laid out like one.
//!
//! The directory may be exchanged as a whole while it is read. It is opened once and read through that handle, and what was read counts
//! only if the path still names the same directory afterwards: no mixture of two trees is ever a configuration.
//!
//! Besides being told, it looks by itself now and then: some file systems tell nothing, and inotify's watches are limited per user.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{News, Settings, Version, Wanted};
use crate::documents::{ConfError, DirFiles, Files, FilesError, MemoryFiles, NodeConf, conf};
use crate::watch_dir::DirWatch;

/// An exchange takes microseconds; being interrupted this often in a row means something else.
const ATTEMPTS: usize = 10;
/// How often to look although nothing was told.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often to look where the directory cannot be watched.
const LOOK_OFTEN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ConfDir {
    reader: Arc<Reader>,
    watch: Option<DirWatch>,
    /// Something changed that was not read yet.
    dirty: bool,
}

impl ConfDir {
    pub(super) fn new(dir: PathBuf, settings: &Settings) -> Self {
        // A link is resolved once: the exchange happens where it points to.
        let dir = fs::canonicalize(&dir).unwrap_or(dir);
        let watch = watch(&dir);
        Self { reader: Arc::new(Reader { dir, settings: settings.clone() }), watch, dirty: true }
    }

    pub(super) fn read_again(&mut self) {
        self.dirty = true;
    }

    pub(super) async fn next(&mut self) -> News {
        if !self.dirty {
            self.wait().await;
            self.dirty = true;
        }
        let reader = self.reader.clone();
        let news = tokio::task::spawn_blocking(move || reader.read()).await;
        self.dirty = false;
        news.unwrap_or_else(|error| News::Away { why: error.to_string() })
    }
}

impl ConfDir {
    async fn wait(&mut self) {
        match &mut self.watch {
            // Told or not, it is time to look.
            Some(watch) => drop(tokio::time::timeout(LOOK_EVERY, watch.changed()).await),
            None => {
                tokio::time::sleep(LOOK_OFTEN).await;
                self.watch = DirWatch::new(&self.reader.dir).ok();
            }
        }
    }
}

fn watch(dir: &Path) -> Option<DirWatch> {
    DirWatch::new(dir)
        .inspect_err(
            |error| tracing::warn!(error = %crate::error::Chain(error), "looking every {LOOK_OFTEN:?} instead"),
        )
        .ok()
}

#[derive(Debug)]
struct Reader {
    dir: PathBuf,
    settings: Settings,
}

impl Reader {
    fn read(&self) -> News {
        for _ in 0..ATTEMPTS {
            let opened = match File::open(&self.dir) {
                Ok(opened) => opened,
                Err(error) => return News::Away { why: format!("{}: {error}", self.dir.display()) },
            };
            let result = self.read_tree(&DirFiles::new(format!("/proc/self/fd/{}", opened.as_raw_fd())));
            if same_directory(&opened, &self.dir) {
                return result.unwrap_or_else(|error| News::Unusable {
                    version: Version::default(),
                    why: crate::error::Chain(&error).to_string(),
                });
            }
        }
        News::Away { why: format!("{} changes faster than it can be read", self.dir.display()) }
    }

    fn read_tree(&self, tree: &DirFiles) -> Result<News, ConfError> {
        let files = gather(tree, &self.settings)?;
        Ok(News::Files { files, version: Version::of_directory(commit(tree, &self.settings.node)) })
    }
}

/// The configuration commit. A mistake in another node's documents must not stop this one; equal trees have equal mistakes.
fn commit(tree: &dyn Files, node: &str) -> String {
    conf::hash(tree, node).unwrap_or_else(|error| hex::encode(&Sha256::digest(format!("wrong\n{error}"))[..20]))
}

/// Copies what is wanted, so that it stays as it is.
fn gather(tree: &dyn Files, settings: &Settings) -> Result<MemoryFiles, ConfError> {
    let mut files = MemoryFiles::default();
    let mut take = |path: String| -> Result<(), FilesError> {
        if let Some(data) = tree.read(&path)? {
            files.0.insert(path, data);
        }
        Ok(())
    };
    let conf = NodeConf::read(tree, &settings.node, settings.subcluster.as_deref())?;
    let search_path = settings.search_path.as_ref().unwrap_or(conf.search_path());
    Wanted::cluster_layers().into_iter().chain(settings.wanted.layers(search_path, &conf)).try_for_each(&mut take)?;
    for root in settings.wanted.roots() {
        let matching = tree.list(&root)?.into_iter().filter(|path| settings.wanted.matches(path));
        matching.into_iter().try_for_each(&mut take)?;
    }
    Ok(files)
}

fn same_directory(opened: &File, path: &Path) -> bool {
    match (opened.metadata(), fs::metadata(path)) {
        (Ok(then), Ok(now)) => (then.dev(), then.ino()) == (now.dev(), now.ino()),
        _ => false,
    }
}
