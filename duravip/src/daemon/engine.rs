//! The loop: one event at a time, the time read right before it, and the core's actions carried out in their order. On a
//! thread of its own, with real-time priority where that is allowed; everything that may take long is another thread's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use duravip_core::{
    Action, Answer, Event, Incarnation, Known, Member, MemberId, Message, Notice, Time, Trouble, Version,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::announcer::Announcer;
use super::guard::Guard;
use super::history::History;
use super::hooks::Hooks;
use super::inbox::{Input, Inputs};
use super::lease::Lease;
use super::metrics::Metrics;
use super::plumber::Plumber;
use super::prober::Prober;
use super::store::Store;
use super::transport::{Bulk, Heard, Transport};
use super::view::state_text;
use super::watcher::list;
use crate::sys;

/// Datagrams and inputs that are handled before the clock is looked at again.
const AT_ONCE: usize = 64;
/// How often what nobody waits for is looked after.
const CHORES: Duration = Duration::from_millis(50);
/// Questions and orders that nobody answered are forgotten.
const FORGET: Duration = Duration::from_secs(10);

/// A question of another daemon, for somebody with time to answer it.
pub type Question = (MemberId, u64, Vec<u8>);

/// Since when things are as they are.
#[derive(Debug, Clone, Copy)]
pub struct Since {
    /// The members in the view.
    pub view: Time,
    /// The configuration in the table.
    pub config: Time,
    /// Who owns what.
    pub owners: Time,
}

/// What carries out what the core wants of the machine; a witness has none of it.
#[derive(Debug)]
pub struct Hands {
    /// Addresses on and off.
    pub plumber: Plumber,
    /// Who tells the segment.
    pub announcer: Announcer,
    /// Questions to the segment.
    pub prober: Prober,
    /// Who outlives this process.
    pub guard: Guard,
}

/// The loop's state.
pub struct Engine {
    /// The core.
    pub member: Member,
    /// The socket.
    pub transport: Transport,
    /// The disk.
    pub store: Store,
    /// What the others tell.
    pub inputs: Inputs,
    /// The machine.
    pub hands: Option<Hands>,
    /// Who wants to know.
    pub hooks: Hooks,
    /// The fence.
    pub lease: Lease,
    /// What happened.
    pub history: History,
    /// What is counted.
    pub metrics: Metrics,
    /// The members' names.
    pub names: BTreeMap<MemberId, String>,
    /// Questions of other daemons go there. Bounded; who asks more than can be answered asks again.
    pub questions: mpsc::Sender<Question>,
    /// Since when things are as they are.
    pub since: Arc<Mutex<Since>>,
    /// Whether every event is logged.
    pub debug: Arc<AtomicBool>,
    /// Cancelled when the loop has ended.
    pub ended: CancellationToken,
    /// What is under way.
    pub pending: Pending,
}

/// What is under way.
#[derive(Debug, Default)]
pub struct Pending {
    // Both bounded by the connections of the control socket, and by FORGET.
    orders: BTreeMap<u64, (Time, oneshot::Sender<Answer>)>,
    asked: BTreeMap<u64, (Time, oneshot::Sender<Vec<u8>>)>,
    next: u64,
    runs: Vec<(MemberId, Incarnation)>,
    present: BTreeSet<MemberId>,
    version: Version,
    owners: u64,
    config: duravip_core::ConfigId,
    chores_at: Time,
    /// What is wrong with which address, as of what this leader knew then.
    troubles: BTreeMap<IpAddr, Trouble>,
    known: Option<Known>,
    /// When the last addresses were given to this member.
    given_at: Option<Time>,
    left: bool,
    stop: bool,
}

impl Engine {
    /// Runs until the member has left, or was told to stop.
    pub fn run(mut self, first: Vec<Action>) {
        if let Err(error) = sys::be_realtime() {
            tracing::warn!(%error, "no real-time priority: a busy machine may delay heartbeats");
        }
        self.carry_out(first);
        let mut ticked_at = Time::ZERO;
        while !self.pending.left && !self.pending.stop {
            let all = self.take_inputs();
            self.take_datagrams();
            let now = sys::now();
            let wake_at = self.member.wake_at();
            if wake_at <= now && ticked_at < now {
                ticked_at = now;
                if wake_at > Time::ZERO {
                    self.metrics.lateness.observe(now.since(wake_at).as_secs_f64());
                }
                self.hand_in(Event::Tick);
            }
            self.do_chores();
            self.sleep(all);
        }
        self.end();
    }

    /// Whether none is left: those that are left ring no bell any more.
    fn take_inputs(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            let Some(input) = self.inputs.take() else { return true };
            self.take_input(input);
        }
        false
    }

    fn take_input(&mut self, input: Input) {
        let now = sys::now();
        match input {
            Input::Event(event) => {
                if let (Event::Plumbed(_), Some(at)) = (&event, self.pending.given_at) {
                    self.metrics.takeover.observe(now.since(at).as_secs_f64());
                }
                self.hand_in(event);
            }
            Input::Places(places) => self.transport.set_peers(now, places),
            Input::Plan(plan) => {
                self.names.clone_from(&plan.names);
                if let Some(hands) = &self.hands {
                    hands.prober.configure(plan.clone());
                }
                self.hooks.configure(plan.clone());
                self.hand_in(Event::Config(plan.config.clone()));
            }
            Input::Order(order, answer) => {
                let number = self.number();
                self.pending.orders.insert(number, (now, answer));
                self.hand_in(Event::Order(number, order));
            }
            // The copy is made here, what is made of it elsewhere.
            Input::Look(answer) => drop(answer.send(Box::new(self.member.clone()))),
            Input::Ask(whom, question, answer) => {
                let number = self.number();
                self.pending.asked.insert(number, (now, answer));
                self.transport.send_long(now, whom, &Bulk::Query(number, question));
            }
            Input::Reply(whom, number, answer) => {
                self.transport.send_long(now, whom, &Bulk::Reply(number, answer));
            }
            Input::Key(member, key) => self.transport.set_key(now, member, key),
            Input::AnnounceAll => self.announce_all(),
            Input::Stop => self.pending.stop = true,
        }
    }

    fn number(&mut self) -> u64 {
        self.pending.next += 1;
        self.pending.next
    }

    fn take_datagrams(&mut self) {
        let mut budget = AT_ONCE;
        while let Some(heard) = self.transport.receive(sys::now(), &mut budget) {
            match heard {
                Heard::Message(from, run, message) => self.hand_in(Event::Message(from, run, message)),
                Heard::Query(from, number, question) => drop(self.questions.try_send((from, number, question))),
                Heard::Reply(_, number, answer) => {
                    if let Some((_, waiting)) = self.pending.asked.remove(&number) {
                        let _ = waiting.send(answer);
                    }
                }
            }
        }
    }

    fn hand_in(&mut self, event: Event) {
        let debug = self.debug.load(Ordering::Relaxed);
        if debug {
            tracing::info!(?event, "in");
        }
        let actions = self.member.handle(sys::now(), event);
        if debug && !actions.is_empty() {
            tracing::info!(?actions, "out");
        }
        self.carry_out(actions);
        if self.member.table().version != self.pending.version {
            self.on_table();
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist(stored) => {
                    if let Err(error) = self.store.save(&stored) {
                        // What was answered must be on disk. The guard cleans up behind this.
                        tracing::error!(error = %cluster::error::Chain(&error), "the state cannot be made durable: ending");
                        cluster::telemetry::flush();
                        std::process::exit(1);
                    }
                }
                Action::Send(to, message) => self.transport.send(sys::now(), to, &message),
                Action::Lease(until) => self.renew(until),
                Action::Answer(number, answer) => {
                    if let Some((_, waiting)) = self.pending.orders.remove(&number) {
                        let _ = waiting.send(answer);
                    }
                }
                Action::Notice(notice) => self.note(&notice),
                Action::Left => self.pending.left = true,
                Action::Plumb(addresses) => {
                    self.pending.given_at = Some(sys::now());
                    self.history.note("acquire", list(&addresses));
                    self.with_hands(addresses, |hands, addresses| hands.plumber.put(addresses));
                }
                Action::Unplumb(addresses) => {
                    self.history.note("release", list(&addresses));
                    self.with_hands(addresses, |hands, addresses| hands.plumber.take(addresses));
                }
                Action::Probe(addresses) => {
                    self.with_hands(addresses, |hands, addresses| hands.prober.probe(addresses))
                }
                Action::Announce(addresses) => {
                    self.with_hands(addresses, |hands, addresses| hands.announcer.announce(addresses));
                }
            }
        }
    }

    fn with_hands(&self, addresses: Vec<IpAddr>, act: impl FnOnce(&Hands, Vec<IpAddr>)) {
        match &self.hands {
            Some(hands) => act(hands, addresses),
            None => tracing::error!("a witness was given {}", list(&addresses)),
        }
    }

    fn renew(&mut self, until: Time) {
        let left = self.member.lease().map(|_| until.since(sys::now())).unwrap_or_default();
        self.metrics.margin.observe(left.as_secs_f64());
        self.lease.set(until);
        if let Some(hands) = &self.hands {
            if self.lease.is_fenced() {
                hands.guard.set_lease(until);
            } else {
                // Taking addresses off takes a moment, and without a fence nothing else ends the answers: the guard begins
                // earlier, when all heartbeats of most of a lease are missing.
                let timing = self.member.table().header.timing;
                hands.guard.set_lease(until - timing.map_or(Duration::ZERO, |timing| timing.lease() / 8));
                hands.plumber.renew(until);
            }
        }
    }

    fn name(&self, member: MemberId) -> String {
        self.names.get(&member).cloned().unwrap_or_else(|| member.to_string())
    }

    fn note(&self, notice: &Notice) {
        match notice {
            Notice::Leading(term) => {
                self.metrics.leading.set(1);
                self.metrics.leaders.inc();
                self.history.note("leader", format!("this node leads, in term {}", term.number));
            }
            Notice::Deposed(term) => {
                self.metrics.leading.set(0);
                self.history.note("leader", format!("{} leads no more (term {})", self.name(term.leader), term.number));
            }
            Notice::Following(term) => {
                self.metrics.leaders.inc();
                self.history.note("leader", format!("{} leads, in term {}", self.name(term.leader), term.number));
            }
            Notice::Lapsed => {
                self.metrics.lapses.inc();
                // The kernel's own clock has closed it, unless the machine slept or this process was stopped at a bad moment.
                self.lease.set(Time::ZERO);
                self.history.note("lapse", "the lease ended without renewal; everything is released");
            }
            Notice::ServingApart(members) => {
                let names: Vec<String> = members.iter().map(|member| self.name(*member)).collect();
                self.history
                    .note("apart", format!("without a majority, with {}: two owners are possible", names.join(", ")));
            }
            Notice::Rejoined => self.history.note("rejoined", "back with the majority"),
            Notice::TwoLeaders(term) => {
                tracing::error!(term = term.number, "two leaders of one term: a majority has lost its disks");
            }
        }
    }

    /// The table changed: who is there, which configuration, who owns what.
    fn on_table(&mut self) {
        let table = self.member.table();
        let now = sys::now();
        self.pending.version = table.version;
        let seen = table.header.view.iter().filter(|(_, seen)| seen.present);
        let present: BTreeSet<MemberId> = seen.map(|(member, _)| *member).collect();
        // Cheap to compare, however many addresses there are.
        let owners = table.entries.iter().fold(0_u64, |sum, (address, entry)| {
            let address = match address {
                IpAddr::V4(address) => u64::from(address.to_bits()),
                IpAddr::V6(address) => address.to_bits() as u64,
            };
            sum.wrapping_add((entry.owner.map_or(1, |owner| owner.0) ^ address).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if owners != self.pending.owners {
            since.owners = now;
        }
        if table.config != self.pending.config {
            since.config = now;
        }
        if present != self.pending.present {
            since.view = now;
        }
        drop(since);
        (self.pending.owners, self.pending.config) = (owners, table.config);
        let came: Vec<MemberId> = present.difference(&self.pending.present).copied().collect();
        let went: Vec<MemberId> = self.pending.present.difference(&present).copied().collect();
        self.pending.present = present;
        for member in went {
            self.history.note("gone", format!("{} is gone", self.name(member)));
        }
        for member in &came {
            self.history.note("here", format!("{} is here", self.name(*member)));
        }
        // After a partition healed, hosts on its other side still believe the owner there.
        if !came.is_empty() {
            self.announce_all();
        }
    }

    fn announce_all(&self) {
        if let Some(hands) = &self.hands {
            hands.announcer.announce(self.member.held().filter(|address| self.member.holds(*address)));
        }
    }

    /// What nobody waits for.
    fn do_chores(&mut self) {
        let now = sys::now();
        if now < self.pending.chores_at {
            return;
        }
        self.pending.chores_at = now + CHORES;
        self.metrics.held.set(self.member.held().count() as i64);
        self.metrics.dropped.set(self.transport.counts.dropped as f64);
        self.pending.orders.retain(|_, (at, _)| now.since(*at) < FORGET);
        self.pending.asked.retain(|_, (at, _)| now.since(*at) < FORGET);
        self.note_states(now);
        let runs = self.transport.runs();
        let Some(hands) = &mut self.hands else { return };
        hands.guard.look_after();
        if runs != self.pending.runs {
            let words = self.transport.last_words(&Message::Gone(self.member.incarnation()));
            hands.guard.set_last_words(words);
            self.pending.runs = runs;
        }
    }

    /// The leader knows what is wrong with addresses, and tells the hooks of its node. A new leader begins with all that is
    /// wrong: what changed while nobody led is not lost, and what its predecessor told may be told again.
    fn note_states(&mut self, now: Time) {
        let known = self.member.known();
        if known == self.pending.known {
            return;
        }
        self.pending.known = known;
        let troubles = self.member.troubles(now).unwrap_or_default();
        let before = std::mem::replace(&mut self.pending.troubles, troubles);
        if self.pending.known.is_none() {
            return;
        }
        let now = &self.pending.troubles;
        let addresses: BTreeSet<&IpAddr> = before.keys().chain(now.keys()).collect();
        let changed = addresses.into_iter().filter(|address| before.get(*address) != now.get(*address));
        let changed: Vec<(IpAddr, &str)> =
            changed.map(|address| (*address, state_text(now.get(address).copied()))).collect();
        if changed.is_empty() {
            return;
        }
        for state in BTreeSet::from_iter(changed.iter().map(|(_, state)| *state)) {
            let these: Vec<IpAddr> =
                changed.iter().filter(|(_, other)| *other == state).map(|(address, _)| *address).collect();
            self.history.note("state", format!("{state}: {}", list(&these)));
        }
        self.hooks.state(&changed);
    }

    fn sleep(&mut self, all_taken: bool) {
        let now = sys::now();
        let wake_at = self.member.wake_at().min(self.pending.chores_at.max(now + Duration::from_micros(100)));
        // A core that wants to be woken in the past was just woken: a moment's rest keeps a defect from eating a processor.
        let left = if all_taken { wake_at.since(now).max(Duration::from_micros(50)) } else { Duration::ZERO };
        let timeout = TimeSpec::nanoseconds(left.as_nanos().min(1_000_000_000) as i64);
        let mut fds = [
            PollFd::new(self.transport.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inputs.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, Some(timeout), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => tracing::error!(%error, "cannot wait"),
        }
        let woken = fds[1].any().unwrap_or(false);
        if woken {
            self.inputs.woken();
        }
    }

    /// After the loop: nothing is renewed any more, and the guard is not needed if everything is off.
    fn end(mut self) {
        let clean = self.pending.left;
        self.lease.end();
        if let Some(hands) = self.hands.take() {
            hands.plumber.end();
            hands.announcer.end();
            if clean {
                hands.guard.dismiss();
            } else {
                // What the guard takes for the end of this process must be the end of it: until then a thread may still
                // open the fence, or put an address on, and the others have been told that nothing is left.
                std::mem::forget(hands.guard);
            }
        }
        self.history.note("end", if clean { "everything was handed over" } else { "stopped without handing over" });
        self.ended.cancel();
    }
}
