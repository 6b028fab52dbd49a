//! Commands that people want run when an address comes, goes, or changes its state. Never two at once for one address,
//! always in order, each with a deadline; nobody waits for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::command;
use super::plan::Plan;

/// Hooks that run at once: enough for a node that takes over thousands of addresses, few enough for its processors.
const AT_ONCE: usize = 16;
/// Hooks that wait for one address. A hook that hangs on a flapping address must not fill the memory; the oldest go.
const WAITING: usize = 32;

/// What hooks are told.
#[derive(Debug)]
enum Told {
    Plan(Arc<Plan>),
    Changed(&'static str, Vec<(IpAddr, &'static str)>),
}

/// The queue in front of the hooks.
#[derive(Debug, Clone)]
pub struct Hooks {
    // Not bounded: a change of ownership must never wait here. It holds two entries for each change at most, and the task
    // behind it only sorts them into bounded queues.
    sender: UnboundedSender<Told>,
}

impl Hooks {
    /// Starts the task that runs them, on a tokio runtime. It ends when nobody can tell it anything any more and every hook
    /// has run; a planned end waits for that.
    pub fn start(tasks: &TaskTracker) -> Self {
        let (sender, receiver) = unbounded_channel();
        tasks.spawn(Runner { plan: None, queues: BTreeMap::new(), running: JoinSet::new() }.serve(receiver));
        Self { sender }
    }

    /// Another configuration.
    pub fn configure(&self, plan: Arc<Plan>) {
        let _ = self.sender.send(Told::Plan(plan));
    }

    /// These came.
    pub fn acquired(&self, addresses: &[IpAddr]) {
        self.changed("acquired", addresses.iter().map(|address| (*address, "")).collect());
    }

    /// These left.
    pub fn released(&self, addresses: &[IpAddr]) {
        self.changed("released", addresses.iter().map(|address| (*address, "")).collect());
    }

    /// The state of these changed.
    pub fn state(&self, states: &[(IpAddr, &'static str)]) {
        self.changed("state", states.to_vec());
    }

    fn changed(&self, what: &'static str, addresses: Vec<(IpAddr, &'static str)>) {
        let _ = self.sender.send(Told::Changed(what, addresses));
    }
}

/// A command, ready to run.
#[derive(Debug)]
struct Job {
    argv: Vec<String>,
    environment: Vec<(&'static str, String)>,
    timeout: Duration,
}

/// Whose turn it is: an address, or all of them when hooks run in batches.
type Turn = Option<IpAddr>;

#[derive(Debug)]
struct Runner {
    plan: Option<Arc<Plan>>,
    /// A queue is there while one of its jobs runs or waits.
    queues: BTreeMap<Turn, Queue>,
    running: JoinSet<Turn>,
}

#[derive(Debug, Default)]
struct Queue {
    busy: bool,
    jobs: VecDeque<Job>,
}

impl Runner {
    async fn serve(mut self, mut receiver: UnboundedReceiver<Told>) {
        let mut listens = true;
        while listens || !self.queues.is_empty() {
            tokio::select! {
                told = receiver.recv(), if listens => match told {
                    Some(Told::Plan(plan)) => self.plan = Some(plan),
                    Some(Told::Changed(what, addresses)) => self.sort(what, &addresses),
                    None => listens = false,
                },
                Some(done) = self.running.join_next() => {
                    if let Ok(turn) = done
                        && let Some(queue) = self.queues.get_mut(&turn)
                    {
                        queue.busy = false;
                    }
                }
                else => break,
            }
            self.start();
        }
    }

    fn sort(&mut self, what: &'static str, addresses: &[(IpAddr, &'static str)]) {
        let Some(plan) = self.plan.clone() else { return };
        let argv = match what {
            "acquired" => &plan.hook.acquired,
            "released" => &plan.hook.released,
            _ => &plan.hook.state,
        };
        let Some(argv) = argv else { return };
        let timeout = plan.hook.timeout.get();
        let add = |runner: &mut Self, turn: Turn, environment| {
            let queue = runner.queues.entry(turn).or_default();
            if queue.jobs.len() == WAITING {
                tracing::warn!(?turn, "hooks are too slow; the oldest is skipped");
                queue.jobs.pop_front();
            }
            queue.jobs.push_back(Job { argv: argv.clone(), environment, timeout });
        };
        if plan.hook.batch {
            // One state at a time: all addresses of a batch have the one that it names.
            for state in BTreeSet::from_iter(addresses.iter().map(|(_, state)| *state)) {
                let these = addresses.iter().filter(|(_, other)| *other == state);
                let these: Vec<String> = these.map(|(address, _)| address.to_string()).collect();
                let mut environment = vec![("EC_VIP_EVENT", what.into()), ("EC_VIP_ADDRESSES", these.join(" "))];
                environment.push(("EC_VIP_STATE", state.into()));
                add(self, None, environment);
            }
            return;
        }
        for (address, state) in addresses {
            add(self, Some(*address), environment(&plan, what, *address, state));
        }
    }

    fn start(&mut self) {
        for (turn, queue) in &mut self.queues {
            if self.running.len() >= AT_ONCE {
                break;
            }
            if queue.busy {
                continue;
            }
            if let Some(job) = queue.jobs.pop_front() {
                queue.busy = true;
                let turn = *turn;
                self.running.spawn(async move {
                    run(job).await;
                    turn
                });
            }
        }
        self.queues.retain(|_, queue| queue.busy || !queue.jobs.is_empty());
    }
}

fn environment(plan: &Plan, what: &str, address: IpAddr, state: &str) -> Vec<(&'static str, String)> {
    let seat = plan.seats.get(&address);
    let name = plan.config.spec.vips.get(&address).and_then(|vip| vip.name.clone());
    vec![
        ("EC_VIP_EVENT", what.to_owned()),
        ("EC_VIP_ADDRESS", address.to_string()),
        ("EC_VIP_PREFIX", seat.map(|seat| seat.prefix_length.to_string()).unwrap_or_default()),
        ("EC_VIP_INTERFACE", seat.map(|seat| seat.interface.clone()).unwrap_or_default()),
        ("EC_VIP_NAME", name.unwrap_or_default()),
        ("EC_VIP_STATE", state.to_owned()),
    ]
}

async fn run(job: Job) {
    let Some((program, arguments)) = job.argv.split_first() else { return };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).envs(job.environment).stdin(Stdio::null()).stdout(Stdio::null());
    match tokio::time::timeout(job.timeout, command::status(command)).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => tracing::warn!(program, %status, "a hook failed"),
        Ok(Err(error)) => tracing::warn!(program, %error, "a hook cannot be run"),
        Err(_) => tracing::warn!(program, "a hook took too long and was ended"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::plan::tests::plan_of;
    use super::*;
    use std::time::Instant;

    /// What the hooks wrote, once there are so many lines.
    async fn lines(path: &std::path::Path, count: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "only {lines:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn hooks_of_one_address_run_one_after_the_other_and_hold_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = |word: &str| {
            format!(
                "[\"sh\", \"-c\", \"echo $EC_VIP_ADDRESS {word} begin >> {0}; sleep 0.05; echo $EC_VIP_ADDRESS {word} end >> {0}\"]",
                log.display()
            )
        };
        let text = format!(
            "[topology.\"10.1.0.0/16\"]\ninterface = \"eth1\"\n[vip.\"10.1.1.1\"]\n[vip.\"10.1.1.2\"]\n[hook]\nacquired = {}\nreleased = {}\n",
            script("on"),
            script("off"),
        );
        let tasks = TaskTracker::new();
        let hooks = Hooks::start(&tasks);
        hooks.configure(Arc::new(plan_of("n1", &text).unwrap()));
        let both: Vec<IpAddr> = ["10.1.1.1", "10.1.1.2"].map(|address| address.parse().unwrap()).into();
        for _ in 0..2 {
            hooks.acquired(&both);
            hooks.released(&both);
        }
        // At a planned end everything that was told is still run.
        drop(hooks);
        tasks.close();
        tasks.wait().await;
        let lines = lines(&log, 16).await;
        for address in ["10.1.1.1", "10.1.1.2"] {
            let own: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(&format!("{address} "))).collect();
            assert_eq!(own, ["on begin", "on end", "off begin", "off end"].repeat(2), "{lines:?}");
        }
    }
}
