//! A server, people with working copies, and the transcript of what they did.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use tempfile::TempDir;

pub use crate::support::DEADLINE;
use crate::support::transcript::{self, quoted, redacted};
use crate::support::{self, eccluster};

/// One ecconfigd; killed and started through a shared reference, because a session holds on to it.
pub struct Server {
    inner: RefCell<support::Server>,
    url: String,
    pub port: u16,
}

impl Server {
    /// Initialises and starts a server, and waits until it is ready.
    pub fn start() -> Server {
        let inner = support::Server::start();
        Server { url: inner.url(), port: inner.address().port(), inner: RefCell::new(inner) }
    }

    /// Starts it again on its data.
    pub fn run(&self) {
        self.inner.borrow_mut().run();
    }

    /// Kills it, as a power cut would.
    pub fn kill(&self) {
        self.inner.borrow_mut().kill();
    }

    /// A client that acts as the admin user, past whatever stands between a session and the server.
    pub fn client(&self) -> cluster::http_client::ApiClient {
        self.inner.borrow().client()
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn ca(&self) -> PathBuf {
        self.inner.borrow().ca()
    }

    pub fn password_file(&self) -> PathBuf {
        self.inner.borrow().password_file()
    }

    /// An agent of node n1, not started yet.
    pub fn agent(&self, agent_toml: &str) -> support::Agent {
        support::Agent::new(&self.inner.borrow(), agent_toml)
    }

    /// Waits for the agent's report about a revision of `default`.
    pub fn report(&self, revision: u64, state: cluster::api::ReportState) {
        self.inner.borrow().report("n1", revision, &[state]);
    }

    /// The fingerprint of the cluster's CA, as a person would read it to another.
    pub fn ca_fingerprint(&self) -> String {
        let identity = cluster::identity::Identity::load(&self.inner.borrow().data().join("identity"));
        identity.expect("init made an identity").ca_fingerprint().to_string()
    }

    fn dir(&self) -> PathBuf {
        self.inner.borrow().dir.path().to_owned()
    }
}

/// A stream that keeps what was written.
#[derive(Clone, Default)]
struct Kept(Rc<RefCell<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.borrow()).into_owned()
    }
}

/// People at their working copies, and everything they did.
pub struct Session<'a> {
    server: &'a Server,
    dir: TempDir,
    transcript: String,
    url: String,
}

impl<'a> Session<'a> {
    pub fn new(server: &'a Server) -> Session<'a> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Session { server, dir, transcript: String::new(), url: server.url() }
    }

    /// Names another server to the commands that follow.
    pub fn send_to(&mut self, url: &str) {
        self.url = url.to_owned();
    }

    /// A directory that belongs to the session.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command with the session's environment: the server, the CA and the admin's password.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = eccluster(self.dir());
        command
            .arg("eccfg")
            .args(args)
            .current_dir(self.dir())
            .env("ECCFG_SERVER", &self.url)
            .env("ECCFG_CA", self.server.ca())
            .env("ECCFG_USERNAME", "admin")
            .env("ECCFG_PASSWORD_FILE", self.server.password_file())
            .env("ECCFG_IDENTITY", self.dir().join("no-identity"))
            .env("ECCFG_NODE", "n1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command in `below` the session's directory and writes it down.
    pub fn run(&mut self, below: &str, args: &[&str]) -> Output {
        let mut command = self.command(args);
        command.current_dir(self.dir().join(below));
        self.run_command(below, args, command)
    }

    /// Runs a prepared command and writes it down.
    pub fn run_command(&mut self, below: &str, args: &[&str], mut command: Command) -> Output {
        let output = command.output().expect("eccfg runs");
        self.record(below, args, &output);
        output
    }

    /// Runs a command in this process as if on a terminal whose person gives these answers. Returns the status.
    pub fn run_on_terminal(&mut self, below: &str, args: &[&str], answers: &[&str]) -> u8 {
        let environment = eccfg::Environment::empty(self.dir().join(below))
            .with("ECCFG_SERVER", self.server.url())
            .with("ECCFG_CA", self.server.ca())
            .with("ECCFG_NODE", "n1");
        self.run_on_terminal_seeing(environment, below, args, answers)
    }

    /// The same with another environment.
    pub fn run_on_terminal_seeing(
        &mut self,
        environment: eccfg::Environment,
        below: &str,
        args: &[&str],
        answers: &[&str],
    ) -> u8 {
        let (out, err, asked) = (Kept::default(), Kept::default(), Rc::new(RefCell::new(Vec::new())));
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let terminal = Box::new(eccfg::prompt::ScriptedTerminal { answers, asked: asked.clone() });
        let mut ui = eccfg::Ui::with_streams(Box::new(out.clone()), Box::new(err.clone()), Some(terminal));
        let status = eccfg::run(args.iter().map(Into::into), environment, &mut ui);
        drop(ui);
        let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        let _ = writeln!(self.transcript, "{below}$ eccfg {}   # on a terminal", words.join(" "));
        for question in asked.borrow().iter().flat_map(|question| question.lines()) {
            let _ = writeln!(self.transcript, "? {question}");
        }
        for (mark, text) in [("", out.text()), ("! ", err.text())] {
            for line in text.lines() {
                let _ = writeln!(self.transcript, "{mark}{line}");
            }
        }
        let _ = writeln!(self.transcript, "[{status}]\n");
        status
    }

    fn record(&mut self, below: &str, args: &[&str], output: &Output) {
        transcript::record(&mut self.transcript, &format!("{below}$ eccfg"), args, output);
    }

    /// A remark in the transcript.
    pub fn say(&mut self, words: &str) {
        let _ = writeln!(self.transcript, "# {words}\n");
    }

    /// Makes a working copy called `name`, without a word in the transcript.
    pub fn checkout(&self, name: &str) {
        let output =
            self.command(&["bootstrap", "--clustername", "default", "--wc", name]).output().expect("eccfg runs");
        assert!(output.status.success(), "bootstrap: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a file and notes it.
    pub fn edit(&mut self, path: &str, text: &str) {
        let place = self.dir().join(path);
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("directories can be made");
        std::fs::write(place, text).expect("the file can be written");
        let first = text.lines().next().unwrap_or_default();
        let _ = writeln!(self.transcript, "# {path} is written: {first}\n");
    }

    /// Removes a file and notes it.
    pub fn remove(&mut self, path: &str) {
        std::fs::remove_file(self.dir().join(path)).expect("the file can be removed");
        let _ = writeln!(self.transcript, "# {path} is removed\n");
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Everything so far, without what changes from run to run. Standard error's lines begin with `! `.
    pub fn transcript(&self) -> String {
        let here = std::fs::canonicalize(self.dir()).expect("the directory exists");
        let text = self.transcript.replace(&here.display().to_string(), "[DIR]");
        let text =
            text.replace(&self.dir().display().to_string(), "[DIR]").replace(&self.server.port.to_string(), "[PORT]");
        let text = text.replace(&self.server.dir().display().to_string(), "[SERVER]");
        redacted(&text)
    }
}
