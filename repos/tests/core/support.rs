//! Repositories to test on, and git to compare with.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use repos::{Content, Draft, Mode, NewCommit, Oid, RepoPath, Signature, Store, TreeChange};
use tempfile::TempDir;

pub struct Repo {
    pub dir: TempDir,
    pub store: Store,
}

impl Repo {
    pub fn new() -> Repo {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::init(&dir.path().join("repo.git")).unwrap();
        Repo { dir, store }
    }

    pub fn git(&self, args: &[&str]) -> String {
        git(self.store.path(), args)
    }

    /// Commits changes on top of `parents` and installs the pack.
    pub fn commit(&self, parents: &[Oid], time_s: i64, changes: &[TreeChange]) -> Oid {
        let mut draft = Draft::new(&self.store).unwrap();
        let base = parents.first().map_or(Oid::EMPTY_TREE, |parent| draft.tree_of(*parent).unwrap());
        let tree = draft.apply(base, changes).unwrap();
        let id = draft.commit(&new_commit(tree, parents, time_s)).unwrap();
        if let Some(pack) = draft.into_pack().unwrap() {
            self.store.install_pack(&pack).unwrap();
        }
        id
    }
}

pub fn new_commit(tree: Oid, parents: &[Oid], time_s: i64) -> NewCommit {
    let someone = Signature { name: "Ann".into(), email: "ann@example.org".into(), time_s, offset_min: 60 };
    NewCommit {
        tree,
        parents: parents.to_vec(),
        author: someone.clone(),
        committer: someone,
        message: format!("at {time_s}"),
    }
}

pub fn path(text: &str) -> RepoPath {
    RepoPath::new(text).unwrap()
}

pub fn put(at: &str, data: impl Into<Vec<u8>>) -> TreeChange {
    TreeChange::Put { path: path(at), mode: None, content: Content::Bytes(Bytes::from(data.into())) }
}

pub fn put_mode(at: &str, mode: Mode, data: impl Into<Vec<u8>>) -> TreeChange {
    TreeChange::Put { path: path(at), mode: Some(mode), content: Content::Bytes(Bytes::from(data.into())) }
}

pub fn delete(at: &str) -> TreeChange {
    TreeChange::Delete { path: path(at) }
}

pub fn rename(from: &str, to: &str) -> TreeChange {
    TreeChange::Rename { from: path(from), to: path(to) }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_AUTHOR_NAME", "Git")
        .env("GIT_AUTHOR_EMAIL", "git@example.org")
        .env("GIT_COMMITTER_NAME", "Git")
        .env("GIT_COMMITTER_EMAIL", "git@example.org")
        .env("LC_ALL", "C");
    command
}

/// Runs git, which must succeed.
pub fn git(dir: &Path, args: &[&str]) -> String {
    String::from_utf8_lossy(&git_with(dir, args, b"")).into_owned()
}

pub fn git_with(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let (ok, out, err) = git_try(dir, args, input);
    assert!(ok, "git {args:?}: {err}\n{}", String::from_utf8_lossy(&out));
    out
}

pub fn git_try(dir: &Path, args: &[&str], input: &[u8]) -> (bool, Vec<u8>, String) {
    let mut child =
        command(dir, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // git may stop reading early; what it says then is looked at instead.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (output.status.success(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

pub fn sha1(bytes: &[u8]) -> Vec<u8> {
    let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
    hasher.update(bytes);
    hasher.try_finalize().unwrap().as_slice().to_vec()
}

/// A pack of these entries: type, what stands before the compressed bytes (the base of a delta), content.
pub fn raw_pack(entries: &[(u8, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    for (type_number, base, data) in entries {
        assert!(data.len() < 2048);
        pack.push(0x80 | type_number << 4 | (data.len() & 15) as u8);
        pack.push((data.len() >> 4) as u8);
        pack.extend_from_slice(base);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(data).unwrap();
        pack.extend(zlib.finish().unwrap());
    }
    let checksum = sha1(&pack);
    pack.extend(checksum);
    pack
}
