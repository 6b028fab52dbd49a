//! The metrics of the process itself, under the names that every Prometheus client uses, read from `/proc` at each scrape.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut put = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Metric| {
            metric.put(encoder.encode_descriptor(name, help, unit, metric.kind())?)
        };
        if let Some(stat) = Stat::read() {
            let cpu = ConstCounter::new(stat.cpu_s);
            put("process_cpu", "Processor time used", Some(&Unit::Seconds), &cpu)?;
            let resident = ConstGauge::new(stat.resident_bytes);
            put("process_resident_memory", "Resident memory", Some(&Unit::Bytes), &resident)?;
            put("process_threads", "Threads", None, &ConstGauge::new(stat.threads))?;
            if let Some(booted_s) = boot_time_s() {
                let started = ConstGauge::new(booted_s + stat.started_after_boot_s);
                put("process_start_time", "When the process started", Some(&Unit::Seconds), &started)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // The listing itself holds one.
            let open = open.count().saturating_sub(1) as i64;
            put("process_open_fds", "Open file descriptors", None, &ConstGauge::new(open))?;
        }
        Ok(())
    }
}

/// `EncodeMetric` without its sized receiver, so that one closure serves every type.
trait Metric {
    fn kind(&self) -> prometheus_client::metrics::MetricType;
    fn put(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error>;
}

impl<T: EncodeMetric> Metric for T {
    fn kind(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }

    fn put(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode(encoder)
    }
}

struct Stat {
    cpu_s: f64,
    resident_bytes: i64,
    threads: i64,
    started_after_boot_s: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the command in parentheses, which may hold anything; fields are counted after it (proc(5)).
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let ticks_per_s = system_value(nix::unistd::SysconfVar::CLK_TCK)?;
        let page_bytes = system_value(nix::unistd::SysconfVar::PAGE_SIZE)?;
        Some(Self {
            cpu_s: (number(14)? + number(15)?) / ticks_per_s,
            threads: number(20)? as i64,
            started_after_boot_s: number(22)? / ticks_per_s,
            resident_bytes: (number(24)? * page_bytes) as i64,
        })
    }
}

fn system_value(name: nix::unistd::SysconfVar) -> Option<f64> {
    nix::unistd::sysconf(name).ok().flatten().map(|value| value as f64)
}

fn boot_time_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
