//! Commands of people, run for checks and hooks. Each is a process group: who is told to end takes along what it started,
//! or the next one would run beside what is left of it, and checks that hang would leave more of it every second.

use std::io;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

/// Runs a command to its end. If nobody waits for that any more, it and all that it started are ended. What a command leaves
/// behind when it ends by itself stays: it may have started a service.
pub async fn status(mut command: Command) -> io::Result<ExitStatus> {
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let status = child.wait().await;
    std::mem::forget(group);
    status
}

/// Ended when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // Its leader has not been waited for, so that the number is still its.
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::signal::kill;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn who_is_ended_takes_along_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display())]);
        let waiting = tokio::spawn(status(command));
        let begun = Instant::now();
        let patience = || assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain");
        let left = loop {
            patience();
            if let Ok(text) = std::fs::read_to_string(&file) {
                break Pid::from_raw(text.trim().parse().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(kill(left, None).is_ok(), "it runs");
        waiting.abort();
        // Whoever inherited it may take a moment to wait for it.
        let runs = || std::fs::read_to_string(format!("/proc/{left}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while runs() {
            patience();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(status(Command::new("true")).await.unwrap().success());
    }
}
