//! The control socket: what the commands ask, and who knows the answer. What only the leader knows is asked of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::control::{Failure, Router};
use duravip_core::{Answer, Member, MemberId, Order};
use nix::sys::socket::SockProtocol;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::checks::Checks;
use super::engine::{self, Since};
use super::history::History;
use super::inbox::{Inbox, Input};
use super::lease::Lease;
use super::metrics::Metrics;
use super::plan::Plan;
use super::view::{self, Question};
use super::watcher::mac_text;
use crate::effects::plumbing::Mode;
use crate::effects::{interfaces, neighbours, netlink};
use crate::sys;

/// For an answer of the leader: a few leases, and a person's patience.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer of a leader that is unpacked: one about 10,240 addresses with long names is a tenth.
const ANSWER_BYTES: usize = 64 << 20;

/// What the commands may look at.
#[derive(Debug, Clone)]
pub struct Desk {
    /// This node.
    pub node: String,
    /// The loop.
    pub inbox: Inbox,
    /// The configuration.
    pub plan: watch::Receiver<Arc<Plan>>,
    /// What happened.
    pub history: History,
    /// What is counted.
    pub metrics: Metrics,
    /// The fence.
    pub lease: Lease,
    /// What is well.
    pub checks: Arc<Mutex<Checks>>,
    /// Since when things are as they are.
    pub since: Arc<Mutex<Since>>,
    /// Whether every event is logged.
    pub debug: Arc<AtomicBool>,
    /// Anything that limits what this member promises.
    pub warnings: Arc<Vec<String>>,
}

fn gone() -> Failure {
    Failure::new("the daemon is stopping").code("stopping")
}

/// What takes milliseconds, for thousands of addresses or because the kernel is asked: one of two threads serves the sockets and timers of this
/// process, and goes on doing so.
fn aside<T>(run: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(run)
}

impl Desk {
    /// The commands.
    pub fn router(self) -> Router {
        let desk = Arc::new(self);
        macro_rules! command {
            ($router:expr, $name:literal, $help:literal, $method:ident) => {{
                let desk = desk.clone();
                $router.command($name, $help, move |args: Value, _| {
                    let desk = desk.clone();
                    async move { desk.$method(args).await }
                })
            }};
        }
        let router = Router::new();
        let router = command!(router, "show", "Addresses, owners, states", show);
        let router = command!(router, "members", "The members", members);
        let router = command!(router, "order", "An order to the leader", order);
        let router = command!(router, "explain", "Why an address is where it is", explain);
        let router = command!(router, "simulate", "What would move without a node", simulate);
        let router = command!(router, "history", "What happened here", history);
        let router = command!(router, "arp", "Hardware addresses of the cluster", arp);
        let router = command!(router, "debug", "Logs every event, or no more", debug);
        command!(router, "metrics", "What Prometheus reads", metrics)
    }

    /// Answers the questions of other daemons, until the loop ends.
    pub async fn answer_questions(self, mut questions: mpsc::Receiver<engine::Question>) {
        while let Some((whom, number, question)) = questions.recv().await {
            let Ok(question) = postcard::from_bytes::<Question>(&question) else { continue };
            let Ok(member) = self.look().await else { return };
            // Packed here: an answer about 10,240 addresses has megabytes, which would keep the loop from its heartbeats.
            let packed = aside(|| {
                let leads = view::leads(&member);
                let answer = if leads { view::answer(&member, sys::now(), &question) } else { Value::Null };
                lz4_flex::block::compress_prepend_size(answer.to_string().as_bytes())
            });
            self.inbox.send(Input::Reply(whom, number, packed));
        }
    }

    async fn look(&self) -> Result<Box<Member>, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(Input::Look(sender));
        receiver.await.map_err(|_| gone())
    }

    /// The leader's answer, or nothing where there is none to be had.
    async fn ask_leader(&self, member: &Member, question: &Question) -> Option<Value> {
        if view::leads(member) {
            return Some(aside(|| view::answer(member, sys::now(), question))).filter(|answer| !answer.is_null());
        }
        let leader = member.leadership()?.leader;
        let question = postcard::to_allocvec(question).ok()?;
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(Input::Ask(leader, question, sender));
        let answer = tokio::time::timeout(PATIENCE, receiver).await.ok()?.ok()?;
        let size = answer.first_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
        if size > ANSWER_BYTES {
            return None;
        }
        let read = || {
            let answer = lz4_flex::block::decompress_size_prepended(&answer).ok()?;
            serde_json::from_slice(&answer).ok().filter(|answer: &Value| !answer.is_null())
        };
        aside(read)
    }

    async fn show(&self, _: Value) -> Result<Value, Failure> {
        let member = self.look().await?;
        let mut shown = match self.ask_leader(&member, &Question::Show).await {
            Some(shown) => shown,
            None => aside(|| view::answer(&member, sys::now(), &Question::Show)),
        };
        Ok(aside(|| {
            for vip in shown["vips"].as_array_mut().into_iter().flatten() {
                let address = vip["address"].as_str().and_then(|address| address.parse().ok());
                vip["here"] = json!(address.is_some_and(|address: IpAddr| member.holds(address)));
            }
            let mut all = self.status(&member);
            if let (Some(all), Value::Object(shown)) = (all.as_object_mut(), shown) {
                all.extend(shown);
            }
            all
        }))
    }

    /// How this member is.
    fn status(&self, member: &Member) -> Value {
        let now = sys::now();
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let table = member.table();
        let name_of = |id: MemberId| table.spec.members.get(&id).map(|spec| spec.name.clone());
        let apart =
            member.serves_apart().map(|members| members.iter().filter_map(|id| name_of(*id)).collect::<Vec<_>>());
        let lease = member.lease().map(|until| until.since(now).as_millis() as u64);
        let unfenced = !self.lease.is_fenced() && !self.plan.borrow().seats.is_empty();
        let lifetime = self.plan.borrow().lifetime().filter(|_| unfenced);
        let mut warnings = (*self.warnings).clone();
        warnings.extend(unfenced.then(|| self.behind_guard()));
        let fenced = self.lease.is_fenced() && !self.lease.is_fence_missing();
        if self.lease.is_fenced() && !fenced {
            warnings.push("the kernel's fence was taken away, and cannot be built again".into());
        }
        let stable = |at: duravip_core::Time| now.since(at).as_secs();
        json!({
            "node": self.node,
            "leader": member.leadership().and_then(|term| name_of(term.leader)),
            "term": member.leadership().map(|term| term.number),
            "version": table.version.to_string(),
            "committed": member.commit().to_string(),
            "configuration": { "revision": table.config.revision, "commit": hex::encode(&table.config.commit[..20]) },
            "lease_ms": lease,
            "fence": fenced,
            "lifetime_s": lifetime.map(|lifetime| lifetime.as_secs()),
            "two_owners_possible": apart.is_some(),
            "serves_apart_with": apart,
            "stable_s": { "view": stable(since.view), "configuration": stable(since.config), "owners": stable(since.owners) },
            "checks": self.checks.lock().unwrap_or_else(PoisonError::into_inner).states(),
            "warnings": warnings,
        })
    }

    /// What stands behind a guard that hangs as well, where there is no fence.
    fn behind_guard(&self) -> String {
        let plan = self.plan.borrow();
        match plan.lifetime() {
            Some(lifetime) => {
                let routes = plan.seats.values().any(|seat| seat.mode == Mode::Route);
                let but = if routes { " (routes stay)" } else { "" };
                format!(
                    "without a fence addresses leave by themselves {} s after their last renewal{but}",
                    lifetime.as_secs()
                )
            }
            None => "without a fence, and with so many addresses, nothing stands behind the guard".into(),
        }
    }

    async fn members(&self, _: Value) -> Result<Value, Failure> {
        let member = self.look().await?;
        let mut status = self.status(&member);
        status["members"] = json!(view::members(&member));
        Ok(status)
    }

    /// An address, written as one or by its name.
    fn address(&self, text: &str) -> Result<IpAddr, Failure> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let plan = self.plan.borrow().clone();
        let named = plan.config.spec.vips.iter().find(|(_, vip)| vip.name.as_deref() == Some(text));
        named.map(|(address, _)| *address).ok_or_else(|| {
            Failure::new(format!("{text} is neither an address nor the name of one")).code("unknown-address")
        })
    }

    fn node(&self, name: &str) -> Result<MemberId, Failure> {
        let id = MemberId::of_name(name);
        let plan = self.plan.borrow().clone();
        if plan.names.contains_key(&id) {
            return Ok(id);
        }
        let names: Vec<&str> = plan.names.values().map(String::as_str).collect();
        Err(Failure::new(format!("{name} is no member"))
            .hint(format!("members are {}", names.join(", ")))
            .code("unknown-node"))
    }

    async fn order(&self, args: Value) -> Result<Value, Failure> {
        #[derive(Deserialize)]
        struct Wanted {
            order: String,
            #[serde(default)]
            address: String,
            #[serde(default)]
            node: String,
        }
        let wanted: Wanted = serde_json::from_value(args).map_err(|error| Failure::new(error.to_string()))?;
        let order = match wanted.order.as_str() {
            "move" => Order::Move(self.address(&wanted.address)?, self.node(&wanted.node)?),
            "unpin" => Order::Unpin(self.address(&wanted.address)?),
            "take" => Order::Take(self.address(&wanted.address)?),
            "drain" => Order::Drain(self.node(&wanted.node)?),
            "undrain" => Order::Undrain(self.node(&wanted.node)?),
            "rebalance" => Order::Rebalance,
            "announce" => Order::Announce,
            other => return Err(Failure::new(format!("there is no order {other:?}"))),
        };
        if order == Order::Announce {
            // Also what this node has is announced, whoever leads.
            self.inbox.send(Input::AnnounceAll);
        }
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(Input::Order(order, sender));
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(Answer::Done(version))) => Ok(json!({ "version": version.to_string() })),
            Ok(Ok(Answer::Refused(why))) => Err(Failure::new(why).code("refused")),
            Ok(Ok(Answer::NoLeader)) => {
                Err(Failure::new("there is no leader: no majority of the members can be heard")
                    .hint("duravip members shows who is there")
                    .code("no-leader"))
            }
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Failure::new("no answer from the leader")
                .hint("duravip show tells what became of it")
                .code("timeout")),
        }
    }

    async fn leaders_answer(&self, question: Question) -> Result<Value, Failure> {
        let member = self.look().await?;
        self.ask_leader(&member, &question).await.ok_or_else(|| {
            Failure::new("only the leader knows, and it does not answer")
                .hint("duravip members shows who leads")
                .code("no-leader")
        })
    }

    async fn explain(&self, args: Value) -> Result<Value, Failure> {
        let address = self.address(args["address"].as_str().unwrap_or_default())?;
        if !self.plan.borrow().config.spec.vips.contains_key(&address) {
            return Err(Failure::new(format!("{address} is not managed")).code("unknown-address"));
        }
        self.leaders_answer(Question::Explain(address)).await
    }

    async fn simulate(&self, args: Value) -> Result<Value, Failure> {
        let node = args["without"].as_str().unwrap_or_default();
        self.node(node)?;
        self.leaders_answer(Question::Without(node.into())).await
    }

    async fn history(&self, args: Value) -> Result<Value, Failure> {
        let count = args["count"].as_u64().unwrap_or(50) as usize;
        Ok(json!({ "node": self.node, "entries": self.history.newest(count) }))
    }

    async fn arp(&self, _: Value) -> Result<Value, Failure> {
        aside(|| self.neighbours())
    }

    fn neighbours(&self) -> Result<Value, Failure> {
        let plan = self.plan.borrow().clone();
        let failed = |error: std::io::Error| Failure::new(format!("the neighbours cannot be listed: {error}"));
        let mut socket = netlink::Socket::open(SockProtocol::NetlinkRoute, 0).map_err(failed)?;
        let own = interfaces::all(&mut socket).map_err(failed)?;
        let known = neighbours::all(&mut socket).map_err(failed)?;
        let member_at: BTreeMap<String, &String> =
            plan.peers.iter().filter_map(|(id, place)| Some((place.host.to_string(), plan.names.get(id)?))).collect();
        let mut hosts = Vec::new();
        for interface in own.values().filter(|interface| plan.interfaces.contains(&interface.name)) {
            let mac = interface.mac.map(mac_text);
            hosts.push(json!({ "node": self.node, "interface": interface.name, "mac": mac, "addresses": interface.own.iter().map(|(own, _)| own).collect::<Vec<_>>() }));
        }
        for (index, host) in known {
            let interface =
                own.values().find(|interface| interface.index == index).map(|interface| interface.name.clone());
            let member = member_at.get(&host.address.to_string());
            if member.is_some() || plan.seats.contains_key(&host.address) {
                hosts.push(json!({ "node": member, "interface": interface, "mac": mac_text(host.mac), "addresses": [host.address] }));
            }
        }
        Ok(json!({ "hosts": hosts }))
    }

    async fn debug(&self, args: Value) -> Result<Value, Failure> {
        let on = args["on"].as_bool().unwrap_or(false);
        self.debug.store(on, Ordering::Relaxed);
        Ok(json!({ "debug": on }))
    }

    async fn metrics(&self, _: Value) -> Result<Value, Failure> {
        // It reads /proc.
        Ok(json!(aside(|| self.metrics.render())))
    }
}
