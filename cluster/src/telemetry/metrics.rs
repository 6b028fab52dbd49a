//! The registry behind `/metrics`.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::ProcessCollector;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    program: String,
    node: String,
    version: String,
}

impl Metrics {
    /// A registry that already tells program, node, version and the state of the process.
    pub fn new(program: &str, node: &str) -> Self {
        let mut registry = Registry::default();
        let version = env!("CARGO_PKG_VERSION").into();
        let build = Info::new(Build { program: program.into(), node: node.into(), version });
        registry.register("eccluster_build", "The program, its node and its version", build);
        registry.register_collector(Box::new(ProcessCollector));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Registers a program's own metrics; done once, at start.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut rendered = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        text::encode(&mut rendered, &registry).expect("writing to a string cannot fail");
        rendered
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    fn value(rendered: &str, name: &str) -> f64 {
        let line = rendered
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("no {name} in\n{rendered}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn process_and_own_metrics_are_rendered() {
        let metrics = Metrics::new("logd", "n1");
        let lines = Counter::<u64>::default();
        metrics.register(|registry| registry.register("logd_lines", "Lines read", lines.clone()));
        lines.inc_by(3);
        let rendered = metrics.render();
        assert_eq!(value(&rendered, "logd_lines_total"), 3.0);
        assert!(value(&rendered, "process_resident_memory_bytes") > 1e5);
        assert!(value(&rendered, "process_open_fds") >= 3.0);
        let now = time::OffsetDateTime::now_utc().unix_timestamp() as f64;
        let started = value(&rendered, "process_start_time_seconds");
        assert!((now - started).abs() < 24.0 * 3600.0, "started at {started}, now {now}");
        assert!(rendered.contains(r#"eccluster_build_info{program="logd",node="n1","#), "{rendered}");
        assert!(rendered.ends_with("# EOF\n"));
    }
}
