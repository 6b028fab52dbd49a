//! What `/metrics` tells.

use cluster::telemetry::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// The way an event came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Input {
    /// `unix`, `udp`, `http`, `log` or `control`.
    pub input: &'static str,
}

/// A CIDR server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerLabel {
    /// Its node.
    pub server: String,
}

/// The counters of the daemon, and the registry behind `/metrics`.
pub struct Meters {
    /// Prints all.
    pub registry: Metrics,
    /// Events that were counted.
    pub events: Family<Input, Counter>,
    /// Lines and batches that were not.
    pub refused: Family<Input, Counter>,
    /// Windows written to the journal.
    pub windows: Counter,
    /// Windows that could not be written.
    pub windows_lost: Counter,
    /// Hand-ins merged into the store.
    pub merged: Counter,
    /// Hand-ins that came again.
    pub repeated: Counter,
    /// Hand-ins that made no sense.
    pub malformed: Counter,
    /// Records that wait for a server.
    pub waiting: Family<ServerLabel, Gauge>,
    /// Queries that were answered.
    pub queries: Counter,
    /// Queries that ended with an error.
    pub queries_failed: Counter,
    /// Their time.
    pub query_seconds: Histogram,
}

impl Meters {
    /// Registers everything.
    pub fn new(node: &str) -> Self {
        let this = Self {
            registry: Metrics::new("cidr", node),
            events: Family::default(),
            refused: Family::default(),
            windows: Counter::default(),
            windows_lost: Counter::default(),
            merged: Counter::default(),
            repeated: Counter::default(),
            malformed: Counter::default(),
            waiting: Family::default(),
            queries: Counter::default(),
            queries_failed: Counter::default(),
            // 20 µs to 40 s.
            query_seconds: Histogram::new(exponential_buckets(0.00002, 4.0, 12)),
        };
        this.registry.register(|registry| {
            registry.register("cidr_events", "Events counted", this.events.clone());
            registry.register("cidr_refused", "Lines and batches not counted", this.refused.clone());
            let mut counter = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
            counter("cidr_windows", "Series of windows handed in", &this.windows);
            counter("cidr_windows_lost", "Windows that could not be handed in", &this.windows_lost);
            counter("cidr_merged", "Records merged into the store", &this.merged);
            counter("cidr_repeated", "Records that had been merged before", &this.repeated);
            counter("cidr_malformed", "Records that make no sense", &this.malformed);
            counter("cidr_queries", "Queries answered", &this.queries);
            counter("cidr_queries_failed", "Queries that ended with an error", &this.queries_failed);
            registry.register("cidr_waiting", "Records that wait for a CIDR server", this.waiting.clone());
            registry.register("cidr_query_seconds", "Time of a query", this.query_seconds.clone());
        });
        this
    }

    /// Counts what an input brought.
    pub fn brought(&self, input: &'static str, counted: u64, refused: u64) {
        if counted > 0 {
            self.events.get_or_create(&Input { input }).inc_by(counted);
        }
        if refused > 0 {
            self.refused.get_or_create(&Input { input }).inc_by(refused);
        }
    }
}
