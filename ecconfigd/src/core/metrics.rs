//! The core's figures under `/metrics`, read at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Core;

impl Core {
    /// Adds what the core counts to the process's metrics; done once, at start.
    pub fn register_metrics(&self, registry: &cluster::telemetry::Metrics) {
        let collector = CoreCollector { core: self.clone() };
        registry.register(|registry| registry.register_collector(Box::new(collector)));
    }
}

struct CoreCollector {
    core: Core,
}

impl fmt::Debug for CoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreCollector")
    }
}

fn put(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// As much of the hash as a float holds exactly: enough to see that two nodes differ at the same index.
fn hash_number(hex: &str) -> f64 {
    hex.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0) as f64
}

impl Collector for CoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (figures, group) = (self.core.figures(), self.core.group());
        let seconds = |time: std::time::Duration| ConstCounter::new(time.as_secs_f64());
        let count = |number: u64| ConstCounter::new(number);
        let out = &mut encoder;
        put(out, "ecconfigd_commit_requests", "Commits, pushes and creations answered", &count(figures.requests))?;
        put(out, "ecconfigd_commit_entries", "Log entries proposed for them", &count(figures.entries))?;
        put(
            out,
            "ecconfigd_commit_queue",
            "Requests that wait to be committed",
            &ConstGauge::new(figures.queued as i64),
        )?;
        put(out, "ecconfigd_commit_build_seconds", "Time spent on judging and building", &seconds(figures.build_time))?;
        put(out, "ecconfigd_commit_log_seconds", "Time from proposing to applied", &seconds(figures.propose_time))?;
        put(out, "ecconfigd_applied_entries", "Log entries applied since the start", &count(figures.applied_entries))?;
        put(out, "ecconfigd_apply_seconds", "Time spent on applying", &seconds(figures.apply_time))?;
        put(out, "ecconfigd_log_syncs", "Syncs of the log", &count(figures.log_syncs))?;
        put(out, "ecconfigd_log_sync_seconds", "Time spent on syncing the log", &seconds(figures.log_sync_time))?;
        let p99 = ConstGauge::new(figures.log_sync_p99.as_secs_f64());
        put(out, "ecconfigd_log_sync_p99_seconds", "99th percentile of the newest 1024 syncs", &p99)?;
        put(out, "ecconfigd_log_bytes", "Bytes written to the log", &count(figures.log_bytes))?;
        put(
            out,
            "ecconfigd_core_watchers",
            "Watchers of repositories and targets",
            &ConstGauge::new(figures.watchers as i64),
        )?;
        put(
            out,
            "ecconfigd_durable_index",
            "The last log index in a checkpoint",
            &ConstGauge::new(figures.durable as i64),
        )?;
        put(out, "ecconfigd_raft_term", "The Raft term", &ConstGauge::new(group.term as i64))?;
        let read_only = ConstGauge::new(i64::from(self.core.read_only().is_some()));
        put(out, "ecconfigd_read_only", "1 while the disk is full and nothing is written", &read_only)?;
        let out_now = ConstGauge::new(i64::from(self.core.out().is_some()));
        put(out, "ecconfigd_out", "1 while this node has taken itself out because what it holds is wrong", &out_now)?;
        let health = self.core.health();
        let others = ConstGauge::new(health.others_out().len() as i64);
        put(out, "ecconfigd_members_out", "Other members that said so of themselves", &others)?;
        let disputed = ConstGauge::new(i64::from(health.disputed().is_some()));
        put(out, "ecconfigd_replicas_disputed", "1 while replicas differ and none has a majority", &disputed)?;
        put(
            out,
            "ecconfigd_healed",
            "Times this node came back after it had taken itself out",
            &count(health.healed()),
        )?;
        let hash = ConstGauge::new(hash_number(&group.state_hash));
        put(out, "ecconfigd_state_hash", "First 48 bits of the state's hash: equal on all nodes at equal index", &hash)
    }
}
