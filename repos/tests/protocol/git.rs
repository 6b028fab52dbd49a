//! Real git, cut off from the machine's and the user's configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use repos::{Oid, RefMap};

/// Every version of the protocol that a client can be told to speak.
pub const VERSIONS: [u8; 3] = [0, 1, 2];

/// A temporary directory, and what is done in it.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

/// What a command printed.
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    pub fn new() -> Self {
        Sandbox { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An empty repository with the branch `main`.
    pub fn init(&self, name: &str) -> Repo {
        let repo = Repo { dir: self.path(name), home: self.dir.path().into(), version: 2 };
        std::fs::create_dir_all(&repo.dir).unwrap();
        repo.git(&["init", "-q", "-b", "main"]);
        repo
    }

    /// Runs `git clone`, and says how it went.
    pub fn try_clone(&self, version: u8, url: &str, name: &str, options: &[&str]) -> (Repo, Said) {
        let repo = Repo { dir: self.path(name), home: self.dir.path().into(), version };
        let outside = Repo { dir: self.dir.path().into(), home: self.dir.path().into(), version };
        let said = outside.run(&[&["clone"], options, &[url, name]].concat());
        (repo, said)
    }

    pub fn clone(&self, version: u8, url: &str, name: &str, options: &[&str]) -> Repo {
        let (repo, said) = self.try_clone(version, url, name, options);
        assert!(said.ok, "clone failed: {}", said.err);
        repo
    }
}

/// A repository of real git.
#[derive(Clone)]
pub struct Repo {
    pub dir: PathBuf,
    pub home: PathBuf,
    pub version: u8,
}

impl Repo {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["120", "git", "-c", &format!("protocol.version={}", self.version)]);
        command.args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "advice.detachedHead=false"]);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", &self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Tester").env(format!("GIT_{who}_EMAIL"), "tester@example.org");
            command.env(format!("GIT_{who}_DATE"), "1700000000 +0000");
        }
        command
    }

    /// Runs git, whatever comes of it.
    pub fn run(&self, args: &[&str]) -> Said {
        said(&self.command(args).output().unwrap())
    }

    /// Runs git, which must succeed, and yields what it printed.
    pub fn git(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert!(said.ok, "git {args:?} failed: {}{}", said.out, said.err);
        said.out.trim_end().to_owned()
    }

    /// Runs git with something to read.
    pub fn git_with_input(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let file = tempfile::tempfile_in(&self.home).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, input, 0).unwrap();
        let output = self.command(args).stdin(file).output().unwrap();
        assert!(output.status.success(), "git {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything, `seconds` after the year 2020 began.
    pub fn commit(&self, message: &str, seconds: u64) -> Oid {
        self.git(&["add", "-A"]);
        let date = format!("{} +0000", 1_577_836_800 + seconds);
        let mut command = self.command(&["commit", "-q", "--allow-empty", "-m", message]);
        let output = command.env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.id("HEAD")
    }

    pub fn id(&self, name: &str) -> Oid {
        self.git(&["rev-parse", "--verify", name]).parse().unwrap()
    }

    /// All references below `refs/`.
    pub fn refs(&self) -> RefMap {
        let text = self.git(&["for-each-ref", "--format=%(refname) %(objectname)"]);
        text.lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, id)| (name.try_into().unwrap(), id.parse().unwrap()))
            .collect()
    }

    /// Commits reachable from `tip` in this clone.
    pub fn count(&self, tip: &str) -> usize {
        self.git(&["rev-list", "--count", tip]).parse().unwrap()
    }

    pub fn is_shallow(&self) -> bool {
        self.git(&["rev-parse", "--is-shallow-repository"]) == "true"
    }

    /// Everything is there and in order.
    pub fn fsck(&self) {
        let said = self.run(&["fsck", "--strict", "--full", "--no-progress"]);
        assert!(
            said.ok && !said.err.contains("missing") && !said.err.contains("error"),
            "fsck: {}{}",
            said.out,
            said.err
        );
    }
}

fn said(output: &Output) -> Said {
    Said {
        ok: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The ids in a self-contained pack, as real git sees them.
pub fn ids_in_pack(sandbox: &Sandbox, pack: &[u8]) -> std::collections::BTreeSet<Oid> {
    let repo = sandbox.init("pack-inspection");
    let path = repo.dir.join("inspected.pack");
    std::fs::write(&path, pack).unwrap();
    repo.git(&["index-pack", "inspected.pack"]);
    let index = std::fs::read(Path::new(&repo.dir).join("inspected.idx")).unwrap();
    let text = String::from_utf8(repo.git_with_input(&["show-index"], &index)).unwrap();
    std::fs::remove_dir_all(&repo.dir).unwrap();
    text.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}
