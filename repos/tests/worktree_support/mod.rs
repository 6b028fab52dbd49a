//! A working copy with an upstream to play with, and real `git` to look at it.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use repos::worktree::{
    CreateOptions, Mount, Ownership, Settled, StageOptions, Target, Targets, WorkingCopy, WorktreeError,
};
use repos::{Content, Draft, Mode, NewCommit, Oid, RepoPath, Signature, Store, TreeChange};

pub struct World {
    pub temp: tempfile::TempDir,
    pub wc: WorkingCopy,
    pub tips: std::collections::BTreeMap<String, Target>,
}

pub fn mounts() -> Vec<Mount> {
    [("default", ""), ("global", "global")]
        .map(|(name, at)| Mount {
            name: name.into(),
            at: at.into(),
            remote_url: format!("https://config.test:2027/{name}.git"),
            ca: Some("/etc/ca.pem".into()),
        })
        .into()
}

pub fn options() -> CreateOptions {
    CreateOptions { mounts: mounts(), ownership: Ownership::default() }
}

/// Options that do not wait for a disk.
pub fn quick() -> StageOptions {
    StageOptions { durability: repos::worktree::Durability::Never, ..StageOptions::default() }
}

pub fn path(text: impl AsRef<[u8]>) -> RepoPath {
    RepoPath::new(text.as_ref()).unwrap()
}

pub fn signature() -> Signature {
    Signature { name: "Ada".into(), email: "ada@test".into(), time_s: 1_700_000_000, offset_min: 60 }
}

/// An upstream edit: `None` deletes.
pub type Edit<'a> = (&'a [u8], Option<(Mode, &'a [u8])>);

pub fn put<'a>(path: &'a str, text: &'a str) -> Edit<'a> {
    (path.as_bytes(), Some((Mode::File, text.as_bytes())))
}

pub fn gone(path: &str) -> Edit<'_> {
    (path.as_bytes(), None)
}

impl World {
    pub fn new() -> World {
        World::with(options())
    }

    pub fn with(options: CreateOptions) -> World {
        let temp = tempfile::tempdir().unwrap();
        let wc = WorkingCopy::create(&temp.path().join("conf"), options).unwrap();
        World { temp, wc, tips: Default::default() }
    }

    /// With something in both repositories, checked out.
    pub fn filled() -> World {
        let mut world = World::new();
        world.commit(
            "default",
            &[put("default/a.conf", "one\ntwo\nthree\nfour\nfive\n"), put("default/b.conf", "b\n"), put("n1/x", "x\n")],
        );
        world.commit("global", &[put("cluster.toml", "[node.n1]\n")]);
        world.update().unwrap();
        world
    }

    pub fn root(&self) -> &Path {
        self.wc.root()
    }

    pub fn file(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.file(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
    }

    pub fn write(&self, path: &str, text: &str) {
        let file = self.file(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// A commit upstream; its objects are installed as if they had been fetched.
    pub fn commit(&mut self, repo: &str, edits: &[Edit<'_>]) -> Target {
        let store = self.wc.objects(repo).unwrap();
        let target = commit_on(&store, self.tips.get(repo).copied(), edits);
        self.tips.insert(repo.into(), target);
        target
    }

    pub fn targets(&self) -> Targets {
        self.tips.clone()
    }

    pub fn update(&self) -> Result<Settled, WorktreeError> {
        self.update_with(&quick())
    }

    pub fn update_with(&self, options: &StageOptions) -> Result<Settled, WorktreeError> {
        self.wc.stage(&self.targets(), options)?.exchange()?.settle()
    }

    pub fn git(&self, args: &[&str]) -> String {
        git(self.root(), args)
    }

    /// `git status --porcelain` of both repositories, and `git fsck`.
    pub fn assert_git_clean(&self) {
        for dir in ["", "global"] {
            let dir = self.root().join(dir);
            assert_eq!(git(&dir, &["status", "--porcelain"]), "", "{}", dir.display());
            assert_eq!(git(&dir, &["diff-files"]), "", "{}", dir.display());
            git(&dir, &["fsck", "--strict"]);
        }
        assert!(self.wc.status().unwrap().is_clean(), "{:?}", self.wc.status().unwrap());
    }
}

pub fn commit_on(store: &Store, tip: Option<Target>, edits: &[Edit<'_>]) -> Target {
    let mut draft = Draft::new(store).unwrap();
    let tree = tip.map_or(Oid::EMPTY_TREE, |t| draft.tree_of(t.commit).unwrap());
    let mut changes: Vec<TreeChange> =
        edits.iter().filter(|(_, e)| e.is_none()).map(|(p, _)| TreeChange::Delete { path: path(p) }).collect();
    changes.extend(edits.iter().filter_map(|(p, e)| {
        let (mode, data) = (*e)?;
        Some(TreeChange::Put { path: path(p), mode: Some(mode), content: Content::Bytes(data.to_vec().into()) })
    }));
    let tree = draft.apply(tree, &changes).unwrap();
    let parents = tip.iter().map(|t| t.commit).collect();
    let revision = tip.map_or(1, |t| t.revision + 1);
    let message = format!("revision {revision}");
    let commit =
        draft.commit(&NewCommit { tree, parents, author: signature(), committer: signature(), message }).unwrap();
    if let Some(pack) = draft.into_pack().unwrap() {
        store.install_pack(&pack).unwrap();
    }
    Target { revision, commit }
}

pub fn git_command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent");
    for (key, value) in [("NAME", "Git User"), ("EMAIL", "git@test")] {
        command.env(format!("GIT_AUTHOR_{key}"), value).env(format!("GIT_COMMITTER_{key}"), value);
    }
    command.env("LC_ALL", "C");
    command
}

pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = git_command(dir).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?} in {}: {}", dir.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
