//! The daemon around the core: threads, sockets, files, and the order in which they begin and end.
//!
//! | thread | does | never |
//! |---|---|---|
//! | `vip-engine` | the loop around the core, datagrams, the disk | waits for anything but its socket and its pipe |
//! | `vip-fence` | opens the kernel's fence for each lease | |
//! | `vip-plumber` | addresses on and off | keeps the loop waiting |
//! | `vip-announcer` | tells the segment whose addresses are here | keeps the plumber waiting |
//! | `vip-watcher` | what the kernel tells, the net below it | |
//! | `vip-prober` | asks who has an address, before it is put on for the first time | |
//! | `vip-network` | with `no_quorum = "probe"`: whether anybody else is still there | |
//! | `vip-history` | what happened, to the disk | keeps anybody waiting |
//! | tokio | configuration, commands, checks, hooks | is needed for a failover |
//!
//! Before the first packet: what an earlier run left is off the machine, and the fence is closed. After the last: everything
//! was handed over, or the guard sees to it.

pub mod announcer;
pub mod check_tls;
pub mod checks;
pub mod command;
pub mod control;
pub mod engine;
pub mod guard;
pub mod history;
pub mod hooks;
pub mod inbox;
pub mod keys;
pub mod lease;
pub mod metrics;
pub mod places;
pub mod plan;
pub mod plumber;
pub mod prober;
pub mod store;
pub mod transport;
pub mod view;
pub mod watcher;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cluster::control::{Server, ServerOptions};
use cluster::identity::ReloadingIdentity;
use cluster::shutdown::Shutdown;
use cluster::subscription::{Daemon, DaemonOptions, Snapshot, Subscription, Version, Wanted};
use duravip_core::envelope::{Envelope, Key};
use duravip_core::{Event, Incarnation, Member, Start};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::announcer::Announcer;
use self::checks::Checks;
use self::control::Desk;
use self::engine::{Engine, Hands, Pending, Since};
use self::guard::Guard;
use self::history::History;
use self::hooks::Hooks;
use self::inbox::{Inbox, Input, inbox};
use self::keys::Keys;
use self::lease::Lease;
use self::metrics::Metrics;
use self::places::Places;
use self::plan::{Plan, plan};
use self::plumber::{Installed, Plumber, Tools};
use self::prober::Prober;
use self::store::Store;
use self::transport::Transport;
use self::watcher::{Next, Watcher};
use crate::effects::fence::Fence;
use crate::effects::plumbing::Plumbing;
use crate::sys;

/// The program's name, for sockets and directories.
pub const PROGRAM: &str = "duravip";
/// Questions of other daemons that wait: people ask them. The next is dropped, and asked again.
const QUESTIONS: usize = 16;
/// How long a planned end goes on although nothing is handed over: a new election fits in between, and nobody may be left to
/// take anything. While addresses go it takes the time that they need: the kernel has 10,240 IPv6 addresses off in 10 s.
const LEAVE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(200);

fn wall_clock_ms() -> u64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as u64
}

/// Runs the daemon until it is told to stop, and hands everything over first. A witness may vote in another subcluster.
pub async fn run(options: &DaemonOptions, votes_in: Option<String>, shutdown: &Shutdown) -> anyhow::Result<()> {
    end_with_the_loop();
    // Also what other members' layers say: whoever leads has to know of every address.
    let wanted = Wanted::documents([plan::DOCUMENT, "cluster.toml"]).everybodys();
    let Daemon { node, data, identity, cluster_key, mut subscription, lock, .. } =
        options.open(PROGRAM, wanted, shutdown).await?;
    let credentials = match (cluster_key, identity) {
        (Some(key), _) => Credentials::Shared(Key::new(*key.as_bytes())),
        (None, Some(identity)) => Credentials::Identity(identity),
        (None, None) => bail!(
            "nothing authenticates this member to the others: give --cluster-key FILE, or --identity DIR with the node's identity"
        ),
    };
    let reader = Reader { votes_in };
    let Some(first) = reader.first_plan(&mut subscription).await else { return Ok(()) };
    let first = Arc::new(first);
    let mut versions = subscription.versions();
    let mut running = start(&node, &data, credentials, first, shutdown).await?;
    // Not before there is somebody to answer: a command would wait for a configuration.
    let control = Server::bind(&ServerOptions::new(PROGRAM, &node))?;
    shutdown.spawn(control.serve(running.desk.clone().router(), shutdown.token()));
    loop {
        tokio::select! {
            snapshot = subscription.next() => match snapshot {
                Some(snapshot) => running.reconfigure(&reader, snapshot).await,
                None => break,
            },
            changed = versions.changed() => match changed {
                Ok(()) => running.renumber(&mut versions),
                Err(_) => break,
            },
            () = running.ended.cancelled() => bail!("the member's loop has ended"),
        }
    }
    running.leave(shutdown).await;
    let _ = shutdown.drain(Duration::from_secs(5)).await;
    running.desk.history.flush(Duration::from_secs(1));
    drop(lock);
    Ok(())
}

/// A process without one of its threads would hold its addresses and do nothing for them. If one of them panics it ends as a
/// whole, and at once: the guard, the service manager and the other members know what to do about that.
fn end_with_the_loop() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if std::thread::current().name().is_some_and(|name| name.starts_with("vip-")) {
            std::process::abort();
        }
    }));
}

/// Reads configurations.
struct Reader {
    /// The subcluster whose members this witness is one of, if that is not its own.
    votes_in: Option<String>,
}

impl Reader {
    /// The first configuration that can be used; nothing if the program stops before there is one.
    async fn first_plan(&self, subscription: &mut Subscription) -> Option<Plan> {
        while let Some(snapshot) = subscription.next().await {
            match self.read(&snapshot) {
                Ok(plan) => {
                    snapshot.applied().await;
                    return Some(plan);
                }
                Err(reason) => snapshot.refused(reason).await,
            }
        }
        None
    }

    fn read(&self, snapshot: &Snapshot) -> Result<Plan, String> {
        let words = |error: &dyn std::error::Error| cluster::error::Chain(error).to_string();
        let conf = snapshot.conf().map_err(|error| words(&error))?;
        plan(&conf, snapshot.version(), self.votes_in.as_deref()).map_err(|error| words(&error))
    }
}

/// What authenticates this member to the others.
enum Credentials {
    /// A key that all members have.
    Shared(Key),
    /// Keys that pairs of members agree on.
    Identity(Arc<ReloadingIdentity>),
}

/// A key that nobody else has, for members with which none is agreed yet: nothing that they say is believed.
fn unknown_key() -> anyhow::Result<Key> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(Key::new(key))
}

/// A daemon that runs.
struct Running {
    inbox: Inbox,
    plan: watch::Sender<Arc<Plan>>,
    next: Arc<Mutex<Next>>,
    witness: bool,
    checks: Arc<Mutex<Checks>>,
    ended: CancellationToken,
    desk: Desk,
}

async fn start(
    node: &str,
    data: &std::path::Path,
    credentials: Credentials,
    plan: Arc<Plan>,
    shutdown: &Shutdown,
) -> anyhow::Result<Running> {
    let store = Store::in_dir(data);
    let stored = store.load()?;
    let metrics = Metrics::new(node);
    let history = History::open(data).context("the history cannot be kept")?;
    let (inbox, inputs) = inbox()?;
    let witness = plan.config.spec.members.get(&plan.me).is_some_and(|member| member.witness);
    let mut warnings = Vec::new();
    let socket = bind(&plan, shutdown).await?;
    if let Err(error) = sys::lock_memory() {
        tracing::debug!(%error, "memory is not locked");
    }
    let hooks = Hooks::start(shutdown.tracker());
    hooks.configure(plan.clone());
    let (hands, lease, next) = if witness {
        (None, Lease::start(None)?, Arc::default())
    } else {
        hands(&plan, &inbox, &history, &metrics, &hooks, &mut warnings)?
    };
    let mut places = Places::default();
    places.look(&plan).await;
    let stored_run = stored.as_ref().map_or(0, |stored| stored.incarnation.0);
    let incarnation = Incarnation(wall_clock_ms().max(stored_run + 1));
    let seed = plan.me.0 ^ incarnation.0 ^ u64::from(std::process::id());
    let begin = Start { me: plan.me, stored, incarnation, config: plan.config.clone(), seed };
    let (member, actions) = Member::new(sys::now(), begin);
    let here = socket.local_addr()?;
    let (key, identity) = match credentials {
        Credentials::Shared(key) => (key, None),
        Credentials::Identity(identity) => (unknown_key()?, Some(identity)),
    };
    let mut transport = Transport::new(socket, Envelope::new(plan.me, member.incarnation(), key))?;
    transport.set_peers(sys::now(), places.all());
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let now = sys::now();
    let since = Arc::new(Mutex::new(Since { view: now, config: now, owners: now }));
    let ended = CancellationToken::new();
    let debug = Arc::new(AtomicBool::new(false));
    let checks = Arc::new(Mutex::new(Checks::default()));
    checks.lock().unwrap_or_else(PoisonError::into_inner).configure(&plan.checks, &inbox);
    let (plans, plan_seen) = watch::channel(plan.clone());
    let desk = Desk {
        node: node.into(),
        inbox: inbox.clone(),
        plan: plan_seen,
        history: history.clone(),
        metrics: metrics.clone(),
        lease: lease.clone(),
        checks: checks.clone(),
        since: since.clone(),
        debug: debug.clone(),
        warnings: Arc::new(warnings),
    };
    shutdown.spawn(desk.clone().answer_questions(asked));
    // Not with the first signal: who takes over may have to be found yet.
    tokio::spawn(places.keep(desk.plan.clone(), inbox.clone(), ended.clone()));
    if let Some(identity) = identity {
        let listener = keys::listen(here).await.with_context(|| format!("cannot listen on {here} (TCP)"))?;
        let keys = Keys { identity, plan: desk.plan.clone(), inbox: inbox.clone() };
        // Not with the first signal: what is handed over then is still said with these keys.
        tokio::spawn(keys.run(listener, ended.clone()));
    }
    let engine = Engine {
        member,
        transport,
        store,
        inputs,
        hands,
        hooks,
        lease,
        history,
        metrics,
        names: plan.names.clone(),
        questions,
        since,
        debug,
        ended: ended.clone(),
        pending: Pending::default(),
    };
    std::thread::Builder::new().name("vip-engine".into()).spawn(move || engine.run(actions))?;
    tracing::info!(node, "duravip runs");
    Ok(Running { inbox, plan: plans, next, witness, checks, ended, desk })
}

/// A socket where the others expect this node. At boot the address may come later than the daemon.
async fn bind(plan: &Plan, shutdown: &Shutdown) -> anyhow::Result<UdpSocket> {
    let place = plan.here.to_string();
    let stop = shutdown.token();
    let mut complained = false;
    loop {
        let here: Vec<SocketAddr> = match tokio::net::lookup_host(&place).await {
            Ok(found) => found.collect(),
            Err(error) => bail!("{place}, where the other members reach this node, cannot be resolved: {error}"),
        };
        match UdpSocket::bind(&here[..]) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable && !stop.is_cancelled() => {
                if !complained {
                    tracing::warn!(place, "waiting for the address under which the other members reach this node");
                }
                complained = true;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {place} (UDP)")),
        }
    }
}

type Equipped = (Option<Hands>, Lease, Arc<Mutex<Next>>);

/// Everything that touches the machine, with the leftovers of an earlier run gone and the fence closed.
fn hands(
    plan: &Arc<Plan>,
    inbox: &Inbox,
    history: &History,
    metrics: &Metrics,
    hooks: &Hooks,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Equipped> {
    let needs = "addresses are managed with CAP_NET_ADMIN and CAP_NET_RAW";
    // Leftovers go behind the fence of the run that left them: between that fence and the next one there is none.
    let mut plumbing = Plumbing::open().context(needs)?;
    let left = plumbing.clear().context(needs)?;
    let mut fence = Fence::open().and_then(|mut fence| fence.build().map(|()| fence));
    if left > 0 {
        history.note("leftovers", format!("{left} addresses of an earlier run taken off"));
    }
    if let Err(error) = &mut fence {
        warnings.push(format!(
            "no kernel fence ({error}): a daemon that hangs answers until its guard has taken the addresses off"
        ));
        tracing::warn!("{}", warnings[warnings.len() - 1]);
    }
    let fence = fence.ok();
    let lease = Lease::start(fence.is_some().then(Fence::open).transpose()?)?;
    let installed = Installed::default();
    let guard = Guard::start(fence.is_some()).context("the guard cannot be started")?;
    let announcer = Announcer::start(installed.clone(), lease.clone(), metrics.clone())?;
    let plumber = Plumber::start(Tools {
        plumbing: Plumbing::open()?,
        installed: installed.clone(),
        inbox: inbox.clone(),
        unfenced: fence.is_none(),
        announcer: announcer.clone(),
        hooks: hooks.clone(),
        metrics: metrics.clone(),
        history: history.clone(),
    })?;
    let prober = Prober::start(lease.clone(), inbox.clone(), history.clone())?;
    prober.configure(plan.clone());
    let next = Arc::<Mutex<Next>>::default();
    let watcher = Watcher {
        plumbing,
        fence,
        installed,
        plumber: plumber.clone(),
        announcer: announcer.clone(),
        lease: lease.clone(),
        inbox: inbox.clone(),
        history: history.clone(),
        metrics: metrics.clone(),
        next: next.clone(),
    };
    watcher.start(plan.clone()).context("the machine's addresses cannot be looked after")?;
    Ok((Some(Hands { plumber, announcer, prober, guard }), lease, next))
}

impl Running {
    async fn reconfigure(&mut self, reader: &Reader, snapshot: Snapshot) {
        let plan = match reader.read(&snapshot) {
            Ok(plan) => Arc::new(plan),
            Err(reason) => return snapshot.refused(reason).await,
        };
        let before = self.plan.borrow().clone();
        let witness = plan.config.spec.members.get(&plan.me).is_some_and(|member| member.witness);
        if plan.here != before.here || witness != self.witness {
            let reason = "this node's own address, port or being a witness changes only with a restart of its duravip";
            return snapshot.refused(reason).await;
        }
        self.carry_out(plan);
        snapshot.applied().await;
    }

    /// Another commit changed nothing for this node.
    fn renumber(&mut self, versions: &mut watch::Receiver<Option<Version>>) {
        let version = versions.borrow_and_update().clone();
        let plan = version.and_then(|version| self.plan.borrow().at(&version));
        if let Some(plan) = plan {
            self.carry_out(Arc::new(plan));
        }
    }

    fn carry_out(&mut self, plan: Arc<Plan>) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).configure(&plan.checks, &self.inbox);
        self.plan.send_replace(plan.clone());
        if self.witness {
            self.inbox.send(Input::Plan(plan));
        } else {
            // The fence covers new addresses before the core may want them on: the watcher hands the plan on.
            self.next.lock().unwrap_or_else(PoisonError::into_inner).plan = Some(plan);
        }
    }

    /// Hands everything over, and waits until it is: for as long as addresses go, or until a second signal.
    async fn leave(&self, shutdown: &Shutdown) {
        self.inbox.event(Event::Leave);
        let mut progress = Progress::new(Instant::now());
        let left = loop {
            tokio::select! {
                () = self.ended.cancelled() => break true,
                () = shutdown.hurried() => break false,
                () = tokio::time::sleep(LOOK) => {
                    if progress.stalled(self.desk.metrics.held.get(), Instant::now()) {
                        break false;
                    }
                }
            }
        };
        if !left {
            tracing::warn!("not everything could be handed over in time");
            self.inbox.send(Input::Stop);
            let _ = tokio::time::timeout(Duration::from_secs(1), self.ended.cancelled()).await;
        }
        self.next.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        if left && !self.witness {
            // Nothing is left that the fence would have to keep silent.
            let removed = Fence::open().and_then(|mut fence| fence.remove());
            if let Err(error) = removed {
                tracing::warn!(%error, "the fence stays; it is closed");
            }
        }
    }
}

/// Whether a planned end still goes on.
struct Progress {
    least: i64,
    since: Instant,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self { least: i64::MAX, since: now }
    }

    /// Nothing more has left for so long that nothing more will.
    fn stalled(&mut self, held: i64, now: Instant) -> bool {
        if held < self.least {
            *self = Self { least: held, since: now };
        }
        now.duration_since(self.since) >= LEAVE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn a_planned_end_takes_as_long_as_addresses_go_and_no_longer() {
        let begun = Instant::now();
        let mut progress = Progress::new(begun);
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        for second in 0..100 {
            assert!(!progress.stalled(10_240 - second as i64, at(second)), "after {second} s");
        }
        assert!(!progress.stalled(10_200, at(105)), "some came back, and some time is left");
        assert!(progress.stalled(10_141, at(109)));
        // Nothing to hand over, and nobody who would say so.
        let mut progress = Progress::new(begun);
        assert!(!progress.stalled(0, at(9)) && progress.stalled(0, at(19)));
    }

    /// Not a test of its own: what the next one runs in a process that may end.
    #[test]
    #[ignore = "ends its process"]
    fn a_thread_panics() {
        end_with_the_loop();
        // Somebody else's thread is not missed.
        let other = std::thread::Builder::new().name("other".into()).spawn(|| panic!("on purpose")).unwrap();
        assert!(other.join().is_err());
        println!("lives");
        let ours = std::thread::Builder::new().name("vip-test".into()).spawn(|| panic!("on purpose")).unwrap();
        let _ = ours.join();
        println!("lives on");
    }

    #[test]
    fn a_panic_of_one_of_its_threads_ends_the_process() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "daemon::tests::a_thread_panics", "--ignored", "--nocapture"]);
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains("lives") && !said.contains("lives on"), "{said}");
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT));
    }
}
