//! What the HTTP side counts.

use std::time::Duration;

use cluster::telemetry::Metrics as Registry;
use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::App;

/// The server's counters, and the registry that `/metrics` prints.
pub struct Metrics {
    /// Shared with everything else in the process.
    pub registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Histogram,
    connections: Gauge,
    in_flight: Gauge,
    watchers: Gauge,
    fetches: Gauge,
    pushes: Gauge,
    ready: Gauge,
    applied: Gauge,
}

/// Routes are the router's templates, so the label's values are bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: Registry) -> Self {
        let this = Self {
            registry,
            requests: Family::default(),
            // 0.5 ms to 8 s: a cached read to a commit on a slow disk.
            seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            watchers: Gauge::default(),
            fetches: Gauge::default(),
            pushes: Gauge::default(),
            ready: Gauge::default(),
            applied: Gauge::default(),
        };
        this.registry.register(|registry| {
            let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
            gauge("ecconfigd_connections", "Open connections", &this.connections);
            gauge("ecconfigd_requests_in_flight", "Requests being worked on", &this.in_flight);
            gauge("ecconfigd_watchers", "Long polls and event streams", &this.watchers);
            gauge("ecconfigd_git_fetches", "Clones and fetches running", &this.fetches);
            gauge("ecconfigd_git_pushes", "Pushes running", &this.pushes);
            gauge("ecconfigd_ready", "1 when caught up with the log", &this.ready);
            gauge("ecconfigd_applied_index", "The last log index applied here", &this.applied);
            registry.register("ecconfigd_http_requests", "Requests answered", this.requests.clone());
            registry.register(
                "ecconfigd_http_request_seconds",
                "Time to an answer's head, watches left out",
                this.seconds.clone(),
            );
        });
        this
    }

    /// Counts one answer.
    pub fn answered(&self, method: &http::Method, route: Option<&str>, status: StatusCode, took: Duration) {
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => "other",
        };
        let route = route.unwrap_or("none");
        let labels = Answered { method, route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        if !route.ends_with("/watch") && !route.ends_with("/target") {
            self.seconds.observe(took.as_secs_f64());
        }
    }

    /// Reads what is not counted but measured.
    pub(super) fn sample(&self, app: &App) {
        let used = |total: usize, free: usize| total.saturating_sub(free) as i64;
        let (limits, places) = (app.limits.now(), &app.places);
        self.connections.set(app.connections.open() as i64);
        self.in_flight.set(used(limits.in_flight, places.requests.free()));
        self.watchers.set(used(limits.watchers, places.watchers.free()));
        self.fetches.set(used(limits.fetches, places.fetches.free()));
        self.pushes.set(used(limits.pushes, places.pushes.free()));
        self.ready.set(i64::from(app.core.readiness() == crate::core::Readiness::Ready));
        self.applied.set(app.core.group().applied as i64);
    }
}
