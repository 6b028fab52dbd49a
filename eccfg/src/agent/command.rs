//! Running one command of `agent.toml`, so that it can neither hang the agent nor flood it.
//!
//! A command gets a process group of its own; at its timeout the whole group is told to end and then killed. Of what it
//! prints the end is kept, because that is where tools say what went wrong. A daemon that a command leaves behind may
//! keep the output pipe open: once the command itself has ended, only what already stands in the pipe is still read.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cluster::api::StepReport;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// How much of a command's output is kept: some hundred lines, small enough to go with every report.
pub(crate) const OUTPUT_LIMIT_BYTES: usize = 16 * 1024;
/// How long a command has after SIGTERM before its group is killed.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// Which part of a service's life a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// On the staged tree, before the exchange.
    Check,
    /// After the exchange.
    Reload,
    /// After the reload.
    Verify,
}

impl StepKind {
    /// The name in reports and environment.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StepKind::Check => "check",
            StepKind::Reload => "reload",
            StepKind::Verify => "verify",
        }
    }
}

/// One command to run.
#[derive(Debug)]
pub(crate) struct Step {
    /// The service it belongs to.
    pub(crate) service: String,
    /// What it is for.
    pub(crate) kind: StepKind,
    /// Program and arguments.
    pub(crate) argv: Vec<OsString>,
    /// What `argv[0]` becomes in the process, where that differs.
    pub(crate) arg0: Option<String>,
    /// Environment besides the agent's own.
    pub(crate) env: Vec<(String, OsString)>,
    /// Where it runs.
    pub(crate) cwd: PathBuf,
    /// When it is ended.
    pub(crate) timeout: Duration,
}

impl Step {
    /// Runs the command to its end or its timeout. Whatever happens becomes a report; nothing is an error of the agent.
    pub(crate) async fn run(self) -> StepReport {
        let begun = Instant::now();
        let mut report = StepReport {
            service: self.service.clone(),
            step: self.kind.name().to_owned(),
            ok: false,
            exit: None,
            duration_ms: 0,
            output: String::new(),
        };
        match self.spawn() {
            Ok((child, output)) => self.attend(child, output, &mut report).await,
            Err(cause) => report.output = format!("cannot start {}: {cause}", self.name()),
        }
        report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        report
    }

    fn name(&self) -> String {
        self.argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn spawn(&self) -> io::Result<(Child, pipe::Receiver)> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
        };
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.cwd).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command.stdout(writer.try_clone()?).stderr(writer);
        if let Some(arg0) = &self.arg0 {
            command.arg0(arg0);
        }
        // The agent's own credentials are none of a service's business.
        for secret in ["ECCFG_PASSWORD", "ECCFG_TOKEN"] {
            command.env_remove(secret);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        let child = command.spawn()?;
        Ok((child, pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?))
    }

    async fn attend(&self, mut child: Child, output: pipe::Receiver, report: &mut StepReport) {
        let mut tail = Tail::default();
        let ended = tokio::time::timeout(self.timeout, follow(&mut child, &output, &mut tail)).await;
        match ended {
            Ok(Ok(status)) => {
                report.ok = status.success();
                report.exit = status.code();
                tail.drain(&output);
                if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
                    tail.note(&format!("ended by signal {signal}"));
                }
            }
            Ok(Err(cause)) => tail.note(&format!("cannot wait for it: {cause}")),
            Err(_) => {
                end_group(&mut child).await;
                tail.drain(&output);
                tail.note(&format!("ended after its timeout of {:?}", self.timeout));
            }
        }
        report.output = tail.into_text();
    }
}

/// Reads what the command prints until it ends.
async fn follow(child: &mut Child, output: &pipe::Receiver, tail: &mut Tail) -> io::Result<ExitStatus> {
    let mut open = true;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            ready = output.readable(), if open => {
                ready?;
                open = tail.read(output);
            }
        }
    }
}

async fn end_group(child: &mut Child) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else { return };
    let _ = killpg(group, Signal::SIGTERM);
    let _ = tokio::time::timeout(TERM_GRACE, child.wait()).await;
    // Also when the leader has gone: what it started may have stayed.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait().await;
}

/// The end of what was printed.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    /// Takes what can be read now; false at the end of the pipe.
    fn read(&mut self, output: &pipe::Receiver) -> bool {
        let mut buffer = [0; 8 * 1024];
        match output.try_read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.push(&buffer[..count]);
                true
            }
            Err(cause) => cause.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Takes what already stands in the pipe, at most as much as is kept.
    fn drain(&mut self, output: &pipe::Receiver) {
        let mut buffer = [0; OUTPUT_LIMIT_BYTES];
        for _ in 0..8 {
            match output.try_read(&mut buffer) {
                Ok(count) if count > 0 => self.push(&buffer[..count]),
                _ => return,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        if self.bytes.len() > OUTPUT_LIMIT_BYTES {
            self.cut = true;
            self.bytes.drain(..self.bytes.len() - OUTPUT_LIMIT_BYTES);
        }
    }

    fn note(&mut self, text: &str) {
        if self.bytes.back().is_some_and(|last| *last != b'\n') {
            self.bytes.push_back(b'\n');
        }
        self.bytes.extend(text.as_bytes());
    }

    fn into_text(mut self) -> String {
        let text = String::from_utf8_lossy(self.bytes.make_contiguous()).trim_end().to_owned();
        if self.cut { format!("[…]\n{text}") } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Step {
        Step {
            service: "web".into(),
            kind: StepKind::Check,
            argv: ["sh", "-c", script].map(OsString::from).to_vec(),
            arg0: None,
            env: vec![("EC_TEST".into(), "here".into())],
            cwd: "/".into(),
            timeout,
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn output_and_exit_status_are_kept() {
        let report = shell("echo $EC_TEST; echo broken >&2; exit 3", LONG).run().await;
        assert_eq!((report.ok, report.exit, report.output.as_str()), (false, Some(3), "here\nbroken"));
    }

    #[tokio::test]
    async fn the_end_of_a_flood_is_kept() {
        let report = shell("yes line | head -n 100000; echo last", LONG).run().await;
        assert!(
            report.ok && report.output.starts_with("[…]") && report.output.ends_with("\nlast"),
            "{}",
            report.output.len()
        );
        assert!(report.output.len() <= OUTPUT_LIMIT_BYTES + "[…]\n".len());
    }

    #[tokio::test]
    async fn a_timeout_ends_the_whole_group() {
        // The shell ignores SIGTERM, its child holds the pipe: neither keeps the agent.
        let report = shell("trap '' TERM; echo begun; sleep 1000 & wait; wait", Duration::from_millis(300)).run().await;
        assert!(!report.ok && report.output.starts_with("begun\n"), "{report:?}");
        assert!(report.output.contains("timeout"), "{report:?}");
    }

    #[tokio::test]
    async fn a_daemon_left_behind_does_not_hold_the_agent() {
        let report = shell("setsid sleep 5 & echo started", Duration::from_secs(4)).run().await;
        assert_eq!((report.ok, report.output.as_str()), (true, "started"));
    }

    #[tokio::test]
    async fn a_missing_program_is_a_failed_step() {
        let mut step = shell("", LONG);
        step.argv = vec!["/nonexistent/program".into()];
        let report = step.run().await;
        assert!(!report.ok && report.output.starts_with("cannot start /nonexistent/program:"), "{report:?}");
    }
}
