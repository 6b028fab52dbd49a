//! What is counted, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cluster::telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// The counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Addresses put on.
    pub acquired: Counter,
    /// Addresses taken off.
    pub released: Counter,
    /// Announcement frames sent.
    pub announcements: Counter,
    /// Changes of leader seen.
    pub leaders: Counter,
    /// Leases that ended without renewal.
    pub lapses: Counter,
    /// Another machine claimed an address that is here.
    pub claims: Counter,
    /// Addresses that somebody took off behind our back.
    pub lost: Counter,
    /// Addresses here now.
    pub held: Gauge,
    /// 1 while this member leads.
    pub leading: Gauge,
    /// Milliseconds left of a lease when it was renewed.
    pub margin: Histogram,
    /// Seconds from the loss of an owner, as the table says it, to its addresses being on here.
    pub takeover: Histogram,
    /// How late the loop was for a tick.
    pub lateness: Histogram,
    /// Datagrams dropped: forged, repeated, for an earlier run.
    pub dropped: Gauge<f64, AtomicU64>,
    registry: Arc<telemetry::Metrics>,
}

impl Metrics {
    /// Registered for a node.
    pub fn new(node: &str) -> Self {
        let registry = telemetry::Metrics::new("duravip", node);
        let steps = || [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0].into_iter();
        let metrics = Self {
            acquired: Counter::default(),
            released: Counter::default(),
            announcements: Counter::default(),
            leaders: Counter::default(),
            lapses: Counter::default(),
            claims: Counter::default(),
            lost: Counter::default(),
            held: Gauge::default(),
            leading: Gauge::default(),
            margin: Histogram::new(steps()),
            takeover: Histogram::new(steps()),
            lateness: Histogram::new([0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5]),
            dropped: Gauge::default(),
            registry: Arc::new(registry),
        };
        metrics.registry.register(|registry| {
            registry.register("duravip_acquired", "Addresses put on this node", metrics.acquired.clone());
            registry.register("duravip_released", "Addresses taken off this node", metrics.released.clone());
            registry.register("duravip_announcements", "Announcement frames sent", metrics.announcements.clone());
            registry.register("duravip_leader_changes", "Changes of leader seen", metrics.leaders.clone());
            registry.register("duravip_lapses", "Leases that ended without renewal", metrics.lapses.clone());
            registry.register(
                "duravip_claims",
                "Claims of other machines on addresses held here",
                metrics.claims.clone(),
            );
            registry.register("duravip_lost", "Addresses taken off behind our back", metrics.lost.clone());
            registry.register("duravip_held", "Addresses on this node", metrics.held.clone());
            registry.register("duravip_leading", "1 while this node leads", metrics.leading.clone());
            registry.register("duravip_lease_margin_seconds", "Left of a lease when renewed", metrics.margin.clone());
            registry.register(
                "duravip_takeover_seconds",
                "From a table that gives addresses to them being on",
                metrics.takeover.clone(),
            );
            registry.register("duravip_loop_lateness_seconds", "How late the loop was", metrics.lateness.clone());
            registry.register(
                "duravip_dropped_datagrams",
                "Datagrams that were not genuine or not new",
                metrics.dropped.clone(),
            );
        });
        metrics
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        self.registry.render()
    }
}
