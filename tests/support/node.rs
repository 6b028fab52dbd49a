//! A cluster of one node whose agent keeps services that only exist as a script: it writes down what it was asked and what it saw.
//!
//! A service `web` follows `default/web/**`. Its file `default/web/conf` decides how it behaves: `bad-check`, `bad-reload` or
//! `bad-verify` in it make that step fail. Every step leaves one line in the journal: service, step, revision, content.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use cluster::api::{NodeReport, ReportState};

use crate::support::{Agent, Server, eventually};

/// Both ends of an update.
pub const ENDS: &[ReportState] = &[ReportState::Healthy, ReportState::Refused, ReportState::Failed];

pub struct Node {
    // First, so that it ends first.
    pub agent: Agent,
    pub server: Server,
    pub dir: PathBuf,
}

impl Node {
    /// A node with these services in this order, each at its first content, before its agent is started.
    pub fn new(services: &[&str]) -> Node {
        Node::with(services, "timeout = \"30s\"\ndebounce = \"0s\"")
    }

    pub fn with(services: &[&str], options: &str) -> Node {
        let server = Server::start();
        let dir = server.dir.path().join("services");
        std::fs::create_dir_all(&dir).unwrap();
        write_step(&dir);
        let sections: Vec<String> = services.iter().map(|name| section(name, &dir, options)).collect();
        let agent = Agent::new(&server, &sections.join("\n"));
        let node = Node { agent, server, dir };
        let paths: Vec<String> = services.iter().map(|name| conf(name)).collect();
        let files: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), "first")).collect();
        if !files.is_empty() {
            node.server.commit("default", "First", &files).unwrap();
        }
        node
    }

    /// Starts the agent and waits until it is at the head.
    pub fn start(&mut self) -> NodeReport {
        self.agent.spawn();
        self.healthy(self.server.head("default").revision)
    }

    /// Commits the services' files; the revision.
    pub fn commit(&self, files: &[(&str, &str)]) -> u64 {
        let paths: Vec<String> = files.iter().map(|(name, _)| conf(name)).collect();
        let files: Vec<(&str, &str)> =
            paths.iter().zip(files).map(|(path, (_, text))| (path.as_str(), *text)).collect();
        self.server.commit("default", "Change", &files).unwrap().revision
    }

    /// Waits for the end of the update to this revision, which must be this one.
    #[track_caller]
    pub fn ends(&self, revision: u64, state: ReportState) -> NodeReport {
        let report = self.server.report("n1", revision, ENDS);
        assert_eq!(report.state, state, "{report:#?}");
        report
    }

    /// Waits until a revision that was refused before is accepted.
    pub fn recovers(&self, revision: u64) -> NodeReport {
        self.server.report("n1", revision, &[ReportState::Healthy])
    }

    #[track_caller]
    pub fn healthy(&self, revision: u64) -> NodeReport {
        self.ends(revision, ReportState::Healthy)
    }

    /// What the working copy holds.
    pub fn conf(&self, service: &str) -> String {
        self.read(&conf(service))
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.agent.wc.join(path)).unwrap_or_else(|error| format!("({error})"))
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::write(self.agent.wc.join(path), text).unwrap();
    }

    /// What the services were asked, one line each, and forgets it.
    pub fn take_journal(&self) -> Vec<String> {
        let lines = self.journal();
        let _ = std::fs::remove_file(self.dir.join("journal"));
        lines
    }

    pub fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Tells the agent to read its files again, and waits until it has.
    pub fn reread(&self) {
        let count = || self.agent.log().matches("read boot.toml and agent.toml again").count();
        let before = count();
        self.agent.hang_up();
        eventually("the agent reads its files again", || (count() > before).then_some(()));
    }

    /// A control command of the running agent.
    pub fn control(&self, command: &str) -> serde_json::Value {
        self.server.runtime.block_on(async {
            let path = self.agent.dir().join("run/agent.sock");
            let mut client = cluster::control::Client::connect_at("agent", &path).await.unwrap();
            client.call(command, (), |_| {}).await.unwrap()
        })
    }

    /// What the agent remembers.
    pub fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.agent.dir().join("agent/state.json")).unwrap()).unwrap()
    }
}

pub fn conf(service: &str) -> String {
    format!("default/{service}/conf")
}

/// The part of `agent.toml` about a service.
pub fn section(name: &str, dir: &std::path::Path, options: &str) -> String {
    let step = dir.join("step");
    let step = step.display();
    format!(
        "[[service]]\nname = \"{name}\"\npaths = [\"default/{name}/**\"]\ncheck = [\"{step}\"]\nreload = [\"{step}\"]\nverify = [\"{step}\"]\n{options}\n"
    )
}

/// Waits in a step for as long as a file `hold-SERVICE-STEP` is there, after it has made `held-SERVICE-STEP`.
fn write_step(dir: &std::path::Path) {
    let script = format!(
        r#"#!/bin/sh
content=$(cat "$EC_WC/default/$EC_SERVICE/conf")
echo "$EC_SERVICE $EC_STEP r$EC_REVISION $content" >> {dir}/journal
echo "$EC_STEP saw $content"
while test -e {dir}/hold-$EC_SERVICE-$EC_STEP; do touch {dir}/held-$EC_SERVICE-$EC_STEP; sleep 0.01; done
case "$content" in *bad-$EC_STEP*) echo "$EC_SERVICE does not like it"; exit 7 ;; esac
"#,
        dir = dir.display()
    );
    let path = dir.join("step");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
