//! `ecconfigd` as an administrator meets it: golden transcripts of its command line, stdout, stderr and exit status together.
//!
//! Every test runs the real binary on a data directory of its own. Ids, times, places and process numbers are replaced before comparing.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use support::transcript::{record, redacted};
use support::{eccluster, eventually};
use tempfile::TempDir;

/// One administrator in one directory.
struct Shell {
    dir: TempDir,
    transcript: String,
    /// What else changes from run to run, and what stands for it.
    hidden: Vec<(String, String)>,
}

impl Shell {
    fn new() -> Shell {
        Shell { dir: tempfile::tempdir().unwrap(), transcript: String::new(), hidden: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command without a word in the transcript.
    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = eccluster(self.dir.path());
        command.arg("ecconfigd").args(args).current_dir(self.dir.path()).env("ECCLUSTER_LOG", "error");
        command
    }

    /// Runs a command that ends by itself and writes it down.
    fn run(&mut self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        record(&mut self.transcript, "$ ecconfigd", args, &output);
        output
    }

    fn say(&mut self, words: &str) {
        self.transcript.push_str(&format!("# {words}\n\n"));
    }

    fn hide(&mut self, text: impl ToString, placeholder: &str) {
        self.hidden.push((text.to_string(), placeholder.to_owned()));
    }

    /// A cluster in `data`, without a word in the transcript.
    fn init(&self) {
        let output = self.command(&["init", "--data", "data", "--node", "n1", "--listen", "127.0.0.1:0"]).output();
        support::assert_success(&output.unwrap());
    }

    fn transcript(&self) -> String {
        let mut text = self.transcript.clone();
        for (secret, placeholder) in &self.hidden {
            text = text.replace(secret, placeholder);
        }
        let here = std::fs::canonicalize(self.dir.path()).unwrap();
        let text = text.replace(&here.display().to_string(), "[DIR]");
        redacted(&text.replace(env!("CARGO_PKG_VERSION"), "[VERSION]"))
    }
}

/// A server in the background.
struct Running(Child);

impl Running {
    /// Starts the server of `data` and waits until it listens. Its address is in `data.port`.
    fn start(shell: &Shell) -> Running {
        let mut command = shell.command(&["run", "--data", "data", "--port-file", "data.port"]);
        let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let port_file = shell.path("data.port");
        eventually("the server listens", || {
            assert!(running.0.try_wait().unwrap().is_none(), "ecconfigd ended");
            std::fs::read_to_string(&port_file).ok()
        });
        running
    }

    /// Ends it as init would; gives everything it said.
    fn terminate(mut self) -> Output {
        support::signal(self.0.id(), nix::sys::signal::Signal::SIGTERM);
        let status = self.0.wait().unwrap();
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut bytes = Vec::new();
            pipe.unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let stdout = read(self.0.stdout.as_mut().map(|pipe| pipe as _));
        Output { status, stdout, stderr: read(self.0.stderr.as_mut().map(|pipe| pipe as _)) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_command_explains_itself() {
    let mut shell = Shell::new();
    shell.run(&["--version"]);
    for command in ["init", "join", "run"] {
        shell.run(&[command, "--help"]);
    }
    insta::assert_snapshot!(shell.transcript());
    // The list of commands grows; each one has a line in it.
    let help = String::from_utf8(shell.run(&["--help"]).stdout).unwrap();
    assert!(
        ["\n  init", "\n  join", "\n  run"].iter().all(|command| help.contains(command))
            && help.contains("Exit status: 0 done"),
        "{help}"
    );
}

#[test]
fn sighup_reads_the_settings_again() {
    let shell = Shell::new();
    shell.init();
    let log = shell.path("log");
    let mut command = shell.command(&["run", "--data", "data", "--port-file", "data.port"]);
    let running = Running(command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap());
    eventually("the server listens", || shell.path("data.port").exists().then_some(()));
    let file = shell.path("data/ecconfigd.toml");
    let settings = std::fs::read_to_string(&file).unwrap();
    // At the level that it was started with nothing would be said about this.
    std::fs::write(&file, format!("log = \"info\"\n{settings}\n[limits]\nwatchers = 7\n")).unwrap();
    support::signal(running.0.id(), nix::sys::signal::Signal::SIGHUP);
    let said = || std::fs::read_to_string(&log).unwrap();
    eventually("it says what waits", || said().contains("from the next start").then_some(()));
    assert!(said().contains("read ecconfigd.toml again changed=[\"log\"]") && said().contains("keys=[\"watchers\"]"));
}

#[test]
fn wrong_usage_is_status_2() {
    let mut shell = Shell::new();
    let good = ["init", "--data", "data", "--node", "n1", "--listen", "127.0.0.1:0"];
    let with = |option: &'static str, value: &'static str| {
        let mut args = good.to_vec();
        match args.iter().position(|arg| *arg == option) {
            Some(at) => args[at + 1] = value,
            None => args.extend([option, value]),
        }
        args
    };
    for args in [
        vec!["start"],
        vec!["run"],
        vec!["run", "--data", "data", "--prot-file", "x"],
        vec!["run", "--data", "data", "--listen", "nowhere"],
        vec!["run", "--data", "data", "extra"],
        vec!["--log", "=", "run", "--data", "data"],
        vec!["init"],
        vec!["join"],
        vec![
            "join",
            "--data",
            "data",
            "--node",
            "n2",
            "--listen",
            "127.0.0.1:0",
            "--server",
            "https://127.0.0.1:1",
            "--token",
            "x",
        ],
        with("--node", "N 1"),
        with("--node", ""),
        with("--listen", "127.0.0.1"),
        with("--listen", "127.0.0.1:99999"),
        with("--advertise", "a b:1"),
        with("--subcluster", "global"),
        with("--cluster-name", "two words"),
    ] {
        assert_eq!(shell.run(&args).status.code(), Some(2), "{args:?}");
    }
    assert!(!shell.path("data").exists(), "wrong usage makes nothing");
    insta::assert_snapshot!(shell.transcript());
}

#[test]
fn a_cluster_is_made_once() {
    let mut shell = Shell::new();
    let init = ["init", "--data", "data", "--node", "n1", "--listen", "127.0.0.1:2027"];
    shell.run(&init);
    shell.run(&init);
    shell.run(&[
        "init",
        "--data",
        "other",
        "--node",
        "n2",
        "--listen",
        "0.0.0.0:2027",
        "--advertise",
        "n2.example:2027",
        "--subcluster",
        "east",
        "--json",
    ]);
    shell.say("a place that cannot be written");
    std::fs::write(shell.path("file"), "").unwrap();
    shell.run(&["init", "--data", "file/data", "--node", "n1", "--listen", "127.0.0.1:2027"]);
    insta::assert_snapshot!(shell.transcript());
    let password = std::fs::read_to_string(shell.path("data/admin-password")).unwrap();
    assert!(!shell.transcript.contains(password.trim()), "the password is in its file and nowhere else");
}

#[test]
fn a_server_runs_until_it_is_told_to_stop() {
    let mut shell = Shell::new();
    shell.init();
    let server = Running::start(&shell);
    let pid = server.0.id();
    shell.hide(format!("pid {pid}"), "pid [PID]");
    shell.say("while it runs nobody else can have its directory, and it is named");
    shell.run(&["run", "--data", "data"]);
    shell.run(&["init", "--data", "data", "--node", "n1", "--listen", "127.0.0.1:0"]);
    let ended = server.terminate();
    record(&mut shell.transcript, "$ ecconfigd", &["run", "--data", "data", "--port-file", "data.port"], &ended);
    insta::assert_snapshot!(shell.transcript());
    let address = std::fs::read_to_string(shell.path("data.port")).unwrap();
    assert!(address.trim().parse::<std::net::SocketAddr>().is_ok(), "{address:?}");
}

#[test]
fn what_keeps_a_server_from_starting_is_named() {
    let mut shell = Shell::new();
    shell.run(&["run", "--data", "nowhere"]);
    std::fs::create_dir(shell.path("empty")).unwrap();
    shell.run(&["run", "--data", "empty"]);
    shell.init();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    shell.hide(&address, "127.0.0.1:[PORT]");
    shell.say("a port in use");
    shell.run(&["run", "--data", "data", "--listen", &address]);

    let config = shell.path("data/ecconfigd.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    shell.say("a setting that does not exist, and one that makes no sense");
    std::fs::write(&config, format!("{good}[limits]\nwatcher = 5\n")).unwrap();
    shell.run(&["run", "--data", "data"]);
    std::fs::write(&config, format!("{good}[limits]\nwatchers = \"many\"\n")).unwrap();
    shell.run(&["run", "--data", "data"]);
    std::fs::write(&config, good).unwrap();

    shell.say("a log that a later ecconfigd wrote");
    let segment = find(&shell.path("data"), b"ECLOGSEG").expect("a segment of the log");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..32]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&segment, bytes).unwrap();
    shell.run(&["run", "--data", "data"]);

    shell.say("an identity that is gone");
    std::fs::remove_dir_all(shell.path("data/identity")).unwrap();
    shell.run(&["run", "--data", "data"]);
    insta::assert_snapshot!(shell.transcript());
}

/// The newest file below a directory that begins with these bytes.
fn find(dir: &Path, magic: &[u8]) -> Option<PathBuf> {
    let mut found: Option<PathBuf> = None;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found = find(&path, magic).or(found);
        } else if std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(magic)) {
            found = found.max(Some(path));
        }
    }
    found
}
