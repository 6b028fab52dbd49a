//! A world in which members run: hosts with kernels, disks and drifting clocks, and a network that loses, repeats,
//! delays and cuts. The cores are the real ones; everything around them follows from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::invariants::Watch;
use crate::action::Notice;
use crate::config::{MemberSpec, Spec, VipSpec};
use crate::*;

/// What happens in the world, by true time.
#[derive(Clone, Debug)]
enum Happening {
    Deliver { to: usize, run: Incarnation, from: usize, from_run: Incarnation, message: Message },
    Tick { node: usize, generation: u64 },
    Kernel { node: usize, boot: u64, done: Event },
    Guard { node: usize, boot: u64, run: Incarnation },
    Fault(super::chaos::Fault),
}

/// A host: its kernel answers for addresses whether its daemon lives or not.
pub(crate) struct Host {
    pub(crate) id: MemberId,
    pub(crate) powered: bool,
    pub(crate) paused: bool,
    pub(crate) core: Option<Member>,
    pub(crate) disk: Option<Stored>,
    pub(crate) config: Arc<Config>,
    /// Counts starts of the machine and the daemon: what was in flight for an earlier one is void.
    pub(crate) boot: u64,
    /// Addresses on the interface.
    pub(crate) on: BTreeSet<IpAddr>,
    /// Until then, by the local clock, the kernel lets them answer.
    pub(crate) fence: Time,
    kernel_free_at: u64,
    generation: u64,
    rate_ppm: i64,
    offset_us: u64,
    backlog: VecDeque<Event>,
    pub(crate) seen: Version,
}

impl Host {
    fn local(&self, now_us: u64) -> Time {
        let drift = (now_us as i128 * i128::from(self.rate_ppm) / 1_000_000) as i64;
        Time::from_start(Duration::from_micros((now_us as i64 + drift) as u64 + self.offset_us))
    }

    fn true_us(&self, local: Time) -> u64 {
        // Upwards: an alarm that comes too early by less than this clock's grain would come again for ever.
        let local = local.since_start().as_nanos().div_ceil(1000).min(u128::from(u64::MAX / 4)) as u64;
        let since = local.saturating_sub(self.offset_us);
        (u128::from(since) * 1_000_000 / (1_000_000 + i128::from(self.rate_ppm)) as u128) as u64
    }
}

/// Which network there is.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) loss_percent: u64,
    pub(crate) twice_percent: u64,
    pub(crate) delay_us: (u64, u64),
}

impl Net {
    pub(crate) fn good() -> Self {
        Self { cut: BTreeSet::new(), loss_percent: 0, twice_percent: 1, delay_us: (50, 400) }
    }
}

pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) net: Net,
    pub(crate) watch: Watch,
    pub(crate) log: Option<Vec<String>>,
    pub(crate) answers: Vec<(u64, Answer)>,
    /// The daemon may die between writing to disk and sending.
    pub(crate) die_at_disk_percent: u64,
    pub(crate) plumb_us: (u64, u64),
    /// Every delay is the same and no clock drifts: for stories that people read.
    pub(crate) steady: bool,
    /// Somebody outside the cluster answers for this.
    pub(crate) outsider: Option<IpAddr>,
    /// The cut is between the members' ports; the segment is whole.
    pub(crate) probes_cross_cuts: bool,
    /// Witnesses are from another subcluster.
    pub(crate) strangers: bool,
    pub(crate) notices: Vec<(u64, MemberId, Notice)>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    count: u64,
    seed: u64,
}

pub(crate) fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A configuration of members 1 to n, the last `witnesses` of them witnesses, and some addresses.
pub(crate) fn config(revision: u64, members: usize, witnesses: usize, addresses: usize, timing: Timing) -> Config {
    let member = |number: usize| MemberSpec {
        name: format!("n{number}"),
        weight: 1,
        labels: BTreeSet::new(),
        witness: number > members - witnesses,
    };
    let spec = Spec {
        members: (1..=members).map(|number| (MemberId(number as u64), member(number))).collect(),
        vips: (1..=addresses).map(|last| (address(last as u8), VipSpec::default())).collect(),
        no_quorum: NoQuorum::Stop,
        mature: Duration::from_secs(1),
        rebalance: Rebalance::Auto,
    };
    Config::new(ConfigId { revision, commit: [revision as u8; 32] }, timing, spec).unwrap()
}

pub(crate) fn timing(lease_ms: u64, heartbeat_ms: u64) -> Timing {
    let unplumb = Duration::from_millis((lease_ms / 10).min(20));
    Timing::new(Duration::from_millis(lease_ms), Duration::from_millis(heartbeat_ms), unplumb).unwrap()
}

impl World {
    /// Members that are not started yet.
    pub(crate) fn new(seed: u64, members: usize, config: Arc<Config>) -> Self {
        let mut world = Self {
            now_us: 1_000_000,
            hosts: Vec::new(),
            net: Net::good(),
            watch: Watch::default(),
            log: None,
            answers: Vec::new(),
            die_at_disk_percent: 0,
            plumb_us: (50, 3000),
            steady: false,
            outsider: None,
            probes_cross_cuts: false,
            strangers: false,
            notices: Vec::new(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            count: 0,
            seed,
        };
        for number in 1..=members {
            let rate_ppm = world.range(0, 800) as i64 - 400;
            let offset_us = world.range(0, 10_000_000);
            world.hosts.push(Host {
                id: MemberId(number as u64),
                powered: false,
                paused: false,
                core: None,
                disk: None,
                config: config.clone(),
                boot: 0,
                on: BTreeSet::new(),
                fence: Time::ZERO,
                kernel_free_at: 0,
                generation: 0,
                rate_ppm,
                offset_us,
                backlog: VecDeque::new(),
                seen: Version::ZERO,
            });
        }
        world
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Members that all keep the same time, over a network that never surprises.
    pub(crate) fn steady(members: usize, config: Arc<Config>) -> Self {
        let mut world = Self::new(1, members, config);
        world.steady = true;
        world.net.twice_percent = 0;
        for host in &mut world.hosts {
            host.rate_ppm = 0;
            host.offset_us = 0;
        }
        world
    }

    pub(crate) fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.random() % (to - from).max(1)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        percent > 0 && self.range(0, 100) < percent
    }

    fn at(&mut self, us: u64, happening: Happening) {
        self.count += 1;
        self.queue.push(Reverse((us.max(self.now_us), self.count)));
        self.happenings.insert(self.count, happening);
    }

    pub(crate) fn schedule(&mut self, in_us: u64, fault: super::chaos::Fault) {
        self.at(self.now_us + in_us, Happening::Fault(fault));
    }

    /// Faults that were to come, and their ends, come no more.
    pub(crate) fn forget_faults(&mut self) {
        self.happenings.retain(|_, happening| !matches!(happening, Happening::Fault(_)));
    }

    pub(crate) fn local(&self, node: usize) -> Time {
        self.hosts[node].local(self.now_us)
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let line = format!("{:>9}.{:03} {}", self.now_us / 1000, self.now_us % 1000, line());
            log.push(line);
        }
    }

    /// Lets time pass.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        self.run_us(ms * 1000);
    }

    pub(crate) fn run_us(&mut self, us: u64) {
        let end = self.now_us + us;
        let mut steps = 0_u64;
        while let Some(Reverse((us, number))) = self.queue.peek().copied() {
            if us > end {
                break;
            }
            self.queue.pop();
            self.now_us = us;
            let Some(happening) = self.happenings.remove(&number) else { continue };
            self.happen(happening);
            steps += 1;
            assert!(steps < 3_000 * (us / 1000 + 100), "the members talk without end");
        }
        self.now_us = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Deliver { to, run, from, from_run, message } => {
                let host = &self.hosts[to];
                // The envelope drops what was meant for an earlier run.
                if host.core.as_ref().is_some_and(|core| core.incarnation() == run) {
                    let from = self.hosts[from].id;
                    self.event(to, Event::Message(from, from_run, message));
                }
            }
            Happening::Tick { node, generation } => {
                if self.hosts[node].generation == generation {
                    self.event(node, Event::Tick);
                }
            }
            Happening::Kernel { node, boot, done } => self.kernel_done(node, boot, done),
            Happening::Guard { node, boot, run } => self.guard(node, boot, run),
            Happening::Fault(fault) => self.inflict(fault),
        }
    }

    /// Starts the daemon: it takes leftovers off before it says a word.
    pub(crate) fn start(&mut self, node: usize) {
        self.hosts[node].config = self.as_read_by(node, self.hosts[node].config.clone());
        let seed = self.random();
        let incarnation = Incarnation(self.now_us / 1000);
        let now_us = self.now_us;
        let host = &mut self.hosts[node];
        if host.core.is_some() {
            return;
        }
        host.powered = true;
        host.paused = false;
        host.backlog.clear();
        host.boot += 1;
        host.on.clear();
        host.fence = Time::ZERO;
        host.kernel_free_at = 0;
        host.seen = Version::ZERO;
        let now = host.local(now_us);
        let start = Start { me: host.id, stored: host.disk.clone(), incarnation, config: host.config.clone(), seed };
        let (core, actions) = Member::new(now, start);
        host.core = Some(core);
        self.say(|| format!("n{} starts", node + 1));
        self.carry_out(node, actions);
        self.set_alarm(node);
    }

    /// The daemon dies. Its addresses stay until the guard takes them off, or the fence closes.
    pub(crate) fn kill(&mut self, node: usize, with_guard: bool) {
        let delay = self.range(100, 8000);
        let host = &mut self.hosts[node];
        let Some(core) = host.core.take() else { return };
        host.paused = false;
        host.backlog.clear();
        host.generation += 1;
        let (boot, run) = (host.boot, core.incarnation());
        self.say(|| format!("n{} is killed", node + 1));
        if with_guard {
            self.at(self.now_us + delay, Happening::Guard { node, boot, run });
        }
    }

    /// The machine loses power.
    pub(crate) fn crash(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        host.powered = false;
        host.core = None;
        host.paused = false;
        host.backlog.clear();
        host.on.clear();
        host.fence = Time::ZERO;
        host.boot += 1;
        host.generation += 1;
        self.say(|| format!("n{} crashes", node + 1));
    }

    pub(crate) fn pause(&mut self, node: usize) {
        self.hosts[node].paused = true;
        self.say(|| format!("n{} stands still", node + 1));
    }

    pub(crate) fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.hosts[node].paused) {
            return;
        }
        self.say(|| format!("n{} goes on", node + 1));
        let backlog = std::mem::take(&mut self.hosts[node].backlog);
        self.event(node, Event::Tick);
        for event in backlog {
            self.event(node, event);
        }
    }

    /// A witness from another subcluster sees of a configuration who the members are.
    fn as_read_by(&self, node: usize, config: Arc<Config>) -> Arc<Config> {
        let witness = config.spec.members.get(&self.hosts[node].id).is_some_and(|spec| spec.witness);
        if !witness || !self.strangers || config.stranger {
            return config;
        }
        Arc::new(Config::of_stranger(ConfigId::NONE, timing(600, 60), config.spec.members.clone()).unwrap())
    }

    pub(crate) fn configure(&mut self, node: usize, config: Arc<Config>) {
        let config = self.as_read_by(node, config);
        self.hosts[node].config = config.clone();
        self.event(node, Event::Config(config));
    }

    /// Hands an event to a daemon, and carries out what it wants.
    pub(crate) fn event(&mut self, node: usize, event: Event) {
        let now_us = self.now_us;
        let host = &mut self.hosts[node];
        if host.core.is_none() {
            return;
        }
        if host.paused {
            // Socket buffers are finite; the kernel's own word comes in any case.
            if host.backlog.len() < 60 || !matches!(event, Event::Message(..)) {
                host.backlog.push_back(event);
            }
            return;
        }
        let now = host.local(now_us);
        if let Some(log) = &mut self.log
            && !matches!(event, Event::Tick)
        {
            let text = match &event {
                Event::Message(from, _, message) => format!("<- {from} {}", short(message)),
                other => format!("{other:?}"),
            };
            log.push(format!("{:>9}.{:03} {} {text}", now_us / 1000, now_us % 1000, host.id));
        }
        let Some(core) = host.core.as_mut() else { return };
        let actions = core.handle(now, event);
        let table = &core.cluster.table;
        let new = table.version != host.seen;
        if new {
            host.seen = table.version;
            self.watch.has(node, table);
        }
        self.carry_out(node, actions);
        if new && let Some(core) = &self.hosts[node].core {
            self.watch.keeps(node, &core.cluster.table);
        }
        self.set_alarm(node);
    }

    fn set_alarm(&mut self, node: usize) {
        let jitter = if self.steady { 0 } else { self.range(20, 200) };
        let host = &mut self.hosts[node];
        let Some(core) = &host.core else { return };
        let wake = core.wake_at();
        host.generation += 1;
        let generation = host.generation;
        if wake != Time::NEVER {
            let at = host.true_us(wake).max(self.now_us) + jitter;
            self.at(at, Happening::Tick { node, generation });
        }
    }

    fn carry_out(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            if let Some(log) = &mut self.log {
                let text = match &action {
                    Action::Send(to, message) => format!("-> {to} {}", short(message)),
                    other => format!("{other:?}"),
                };
                log.push(format!(
                    "{:>9}.{:03} {}     {text}",
                    self.now_us / 1000,
                    self.now_us % 1000,
                    self.hosts[node].id
                ));
            }
            match action {
                Action::Persist(stored) => {
                    let die = self.percent(self.die_at_disk_percent);
                    let before = die && self.percent(50);
                    if !before {
                        self.hosts[node].disk = Some((*stored).clone());
                    }
                    if die {
                        self.kill(node, true);
                        self.schedule(300_000, super::chaos::Fault::Start(node));
                        return;
                    }
                }
                Action::Send(to, message) => self.send(node, to, message),
                Action::Lease(until) => {
                    self.hosts[node].fence = until;
                    self.check_overlap(node);
                }
                Action::Plumb(addresses) => {
                    self.watch_acting(node, &addresses);
                    self.kernel(node, Event::Plumbed(addresses));
                }
                Action::Unplumb(addresses) => self.kernel(node, Event::Unplumbed(addresses)),
                Action::Probe(addresses) => {
                    for address in addresses {
                        self.kernel(node, Event::Probed(vec![(address, false)]));
                    }
                }
                Action::Announce(_) => {}
                Action::Answer(number, answer) => self.answers.push((number, answer)),
                Action::Notice(Notice::TwoLeaders(term)) => {
                    self.watch.violated(self.now_us, format!("two leaders in {term}"))
                }
                Action::Notice(notice) => {
                    let id = self.hosts[node].id;
                    self.notices.push((self.now_us, id, notice));
                }
                Action::Left => {
                    let host = &mut self.hosts[node];
                    host.core = None;
                    host.generation += 1;
                    if !host.on.is_empty() {
                        self.watch.violated(self.now_us, format!("n{} left with addresses on", node + 1));
                    }
                    return;
                }
            }
        }
    }

    /// The kernel does one thing after another, at its own pace, whether the daemon stands still or not.
    fn kernel(&mut self, node: usize, done: Event) {
        let pace = self.plumb_us;
        let delay = if self.steady { 1000 } else { self.range(pace.0, pace.1) };
        let host = &mut self.hosts[node];
        let at = host.kernel_free_at.max(self.now_us) + delay;
        host.kernel_free_at = at;
        let boot = host.boot;
        self.at(at, Happening::Kernel { node, boot, done });
    }

    fn kernel_done(&mut self, node: usize, boot: u64, done: Event) {
        if self.hosts[node].boot != boot {
            return;
        }
        let mut done = done;
        match &mut done {
            Event::Plumbed(addresses) => {
                // What a dead daemon asked for is not done after its guard or successor tidied up.
                self.hosts[node].on.extend(addresses.iter().copied());
                self.watch.changes += addresses.len() as u64;
                self.watch.changed.extend(addresses.iter().map(|address| (node, *address)));
                self.check_overlap(node);
            }
            Event::Unplumbed(addresses) => {
                for address in addresses.iter() {
                    self.hosts[node].on.remove(address);
                }
                self.watch.changes += addresses.len() as u64;
                self.watch.changed.extend(addresses.iter().map(|address| (node, *address)));
            }
            Event::Probed(probed) => {
                let reach = |other| self.probes_cross_cuts || !self.net.cut.contains(&(other, node));
                for (address, answered) in probed {
                    *answered = self.outsider == Some(*address)
                        || (0..self.hosts.len())
                            .any(|other| other != node && self.answers_for(other, *address) && reach(other));
                }
            }
            _ => {}
        }
        self.event(node, done);
    }

    /// The guard of a daemon that died: takes everything off, then tells the peers.
    fn guard(&mut self, node: usize, boot: u64, run: Incarnation) {
        if self.hosts[node].boot != boot || self.hosts[node].core.is_some() {
            return;
        }
        self.hosts[node].on.clear();
        self.hosts[node].fence = Time::ZERO;
        // Nothing that the dead daemon had asked for may come later.
        self.hosts[node].boot += 1;
        self.say(|| format!("n{}'s guard tidied up", node + 1));
        for to in 0..self.hosts.len() {
            if to != node {
                let id = self.hosts[to].id;
                self.send_as(node, run, id, Message::Gone(run));
            }
        }
    }

    fn send(&mut self, from: usize, to: MemberId, message: Message) {
        let Some(run) = self.hosts[from].core.as_ref().map(Member::incarnation) else { return };
        self.send_as(from, run, to, message);
    }

    fn send_as(&mut self, from: usize, from_run: Incarnation, to: MemberId, message: Message) {
        let Some(to) = self.hosts.iter().position(|host| host.id == to) else { return };
        if self.net.cut.contains(&(from, to)) || self.percent(self.net.loss_percent) {
            return;
        }
        let Some(run) = self.hosts[to].core.as_ref().map(Member::incarnation) else { return };
        let copies = if self.percent(self.net.twice_percent) { 2 } else { 1 };
        for _ in 0..copies {
            let (least, most) = self.net.delay_us;
            let rare = self.range(0, 1000) < 5;
            let delay = if self.steady {
                least
            } else if rare {
                self.range(most, 15_000.max(most + 1))
            } else {
                self.range(least, most)
            };
            let message = message.clone();
            self.at(self.now_us + delay, Happening::Deliver { to, run, from, from_run, message });
        }
    }

    /// Whether somebody on the segment gets an answer from this host for the address.
    pub(crate) fn answers_for(&self, node: usize, address: IpAddr) -> bool {
        let host = &self.hosts[node];
        host.powered && host.on.contains(&address) && host.local(self.now_us) < host.fence
    }

    pub(crate) fn owners(&self, address: IpAddr) -> Vec<usize> {
        (0..self.hosts.len()).filter(|node| self.answers_for(*node, address)).collect()
    }

    /// An overlap can only begin when an address comes on or a fence opens again.
    fn check_overlap(&mut self, node: usize) {
        let addresses: Vec<IpAddr> = self.hosts[node].on.iter().copied().collect();
        for address in addresses {
            let owners = self.owners(address);
            if owners.len() > 1 {
                self.watch.overlap(self.now_us, address, &owners);
            }
        }
    }

    fn watch_acting(&mut self, node: usize, addresses: &[IpAddr]) {
        let Some(core) = &self.hosts[node].core else { return };
        if core.serves_apart().is_none() {
            self.watch.acting(self.now_us, node, core, addresses);
        }
    }

    /// Says what went wrong, if anything did.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        match self.watch.violations.first() {
            None => Ok(()),
            Some(first) => Err(format!("{first} ({} in all)", self.watch.violations.len())),
        }
    }
}

/// A message in a few words.
pub(crate) fn short(message: &Message) -> String {
    let Message::Group(tag, body) = message else { return format!("{message:?}") };
    let part = if *tag == GroupTag::Cluster { "" } else { "part: " };
    let words = match body {
        Body::MayI(c) => format!("may I? have {}", c.have),
        Body::YouMay { term, refusal, .. } => match refusal {
            None => format!("you may, term {term}"),
            Some(Refusal::Voters(..)) => format!("you may not, term {term}: the voters changed"),
            Some(refusal) => format!("you may not, term {term}: {refusal:?}"),
        },
        Body::Elect { term, candidacy } => format!("elect me in {term}, have {}", candidacy.have),
        Body::Elected { term, have, early } => {
            format!("elected in {term}, have {have}{}", if *early { ", early" } else { "" })
        }
        Body::Beat(b) => format!(
            "beat {} of {}: table {}, commit {}, heard {}, lease {:?}",
            b.number,
            b.term,
            b.table,
            b.commit,
            b.heard.map_or("-".to_owned(), |heard| heard.to_string()),
            b.lease
        ),
        Body::Ack(a) => format!(
            "ack {} of beat {} of {}: have {}, applied {}, plumbed {}{}",
            a.number,
            a.beat,
            a.term,
            a.standing.have,
            a.standing.applied,
            a.standing.plumbed,
            if a.standing.leaving { ", leaving" } else { "" }
        ),
        Body::Table(_, update) => {
            let base = update.base.map_or("whole".to_owned(), |base| format!("from {base}"));
            format!("table {} {base}, {} entries", update.version, update.entries.len())
        }
        Body::Report(_, report) => format!("report {} of {:?}", report.number, report.config),
        Body::Stale { term } => format!("stale, term {term}"),
    };
    format!("{part}{words}")
}
