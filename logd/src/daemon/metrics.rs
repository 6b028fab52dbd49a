//! The daemon's figures as Prometheus reads them.
//!
//! They are made when they are asked for, from what the journals say then; nothing counts twice.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use cluster::telemetry::Metrics;

use super::control::Shared;
use crate::wire::protocol::LogStatus;

/// A label's value.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Everything, in the text format.
pub(super) fn render(shared: &Shared, process: &Metrics) -> String {
    let mut out = process.render();
    // The end mark comes last.
    out.truncate(out.trim_end().trim_end_matches("# EOF").len());
    match shared.service.status() {
        Ok(logs) => journals(&mut out, &logs, shared),
        Err(error) => tracing::warn!(%error, "figures are missing"),
    }
    manager(&mut out, shared);
    sinks(&mut out, shared);
    out.push_str("# EOF\n");
    out
}

/// One family: its type, its name, its help, and a sample per line of labels.
fn family(out: &mut String, kind: &str, name: &str, help: &str, samples: &[(String, u64)]) {
    let ending = if kind == "counter" { "_total" } else { "" };
    let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{ending}{{{labels}}} {value}");
    }
}

fn journals(out: &mut String, logs: &[LogStatus], shared: &Shared) {
    let label = |log: &str| format!("log=\"{}\"", quoted(log));
    let of_logs = |value: &dyn Fn(&LogStatus) -> u64| -> Vec<(String, u64)> {
        logs.iter().map(|log| (label(&log.log), value(log))).collect()
    };
    family(out, "gauge", "logd_journal_bytes", "Size of the journal on disk", &of_logs(&|log| log.bytes));
    family(out, "gauge", "logd_max_backlog_bytes", "What is kept at most", &of_logs(&|log| log.max_backlog));
    family(out, "counter", "logd_cut_lines", "Lines longer than max_line", &of_logs(&|log| log.cut_lines));
    family(out, "gauge", "logd_disk_full", "1 while the disk is full", &of_logs(&|log| log.full.into()));
    family(out, "gauge", "logd_blocked", "1 while writers wait at max_backlog", &of_logs(&|log| log.blocked.into()));
    let all = shared.logs.all();
    let of_own = |value: &dyn Fn(&crate::node::Log) -> u64| -> Vec<(String, u64)> {
        all.iter().map(|log| (label(log.name()), value(log))).collect()
    };
    let written = of_own(&|log| log.journal().stats().written().0);
    family(out, "counter", "logd_lines", "Lines written to the journal", &written);
    let repeated = of_own(&|log| log.counters.repeated_lines.load(Relaxed));
    family(out, "counter", "logd_repeated_lines", "Lines that a client sent again", &repeated);
    family(out, "counter", "logd_syncs", "Syncs of the journal", &of_own(&|log| log.journal().stats().syncs().0));
    let mut lag = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for log in logs {
        for one in &log.subscribers {
            let labels = format!("{},subscriber=\"{}\"", label(&log.log), quoted(&one.name));
            lag.0.push((labels.clone(), one.records));
            lag.1.push((labels.clone(), one.bytes));
            lag.2.push((labels.clone(), one.seconds));
            lag.3.push((labels, one.dropped));
        }
    }
    family(out, "gauge", "logd_subscriber_lag_records", "Records not read yet", &lag.0);
    family(out, "gauge", "logd_subscriber_lag_bytes", "Their size on disk", &lag.1);
    family(out, "gauge", "logd_subscriber_lag_seconds", "Age of the oldest of them", &lag.2);
    family(out, "counter", "logd_subscriber_dropped_records", "Records dropped unread at max_backlog", &lag.3);
}

fn manager(out: &mut String, shared: &Shared) {
    let figures = shared.current().figures.clone();
    let Some(figures) = figures else { return };
    let one = |value: u64| vec![(String::new(), value)];
    let counters = [
        ("logd_manager_lines", "Lines written to aggregated files", &figures.lines),
        ("logd_manager_bytes", "Their bytes", &figures.bytes),
        ("logd_manager_commits", "Commits", &figures.rounds),
        ("logd_manager_late_lines", "Lines that came after their file was compressed", &figures.late_lines),
        ("logd_manager_missing_records", "Records that nodes reported as missing", &figures.missing_records),
    ];
    for (name, help, value) in counters {
        family(out, "counter", name, help, &one(value.load(Relaxed)));
    }
    family(out, "gauge", "logd_manager_open_files", "Aggregated files open", &one(figures.open_files.load(Relaxed)));
    family(out, "gauge", "logd_manager_disk_full", "1 while the disk is full", &one(figures.full.load(Relaxed).into()));
}

fn sinks(out: &mut String, shared: &Shared) {
    let sinks = shared.current().sinks.clone();
    if sinks.is_empty() {
        return;
    }
    let each = |value: &dyn Fn(&crate::sink::Figures) -> u64| -> Vec<(String, u64)> {
        let labels = |sink: &str, log: &str| format!("sink=\"{}\",log=\"{}\"", quoted(sink), quoted(log));
        sinks.iter().map(|((sink, log), figures)| (labels(sink, log), value(figures))).collect()
    };
    let confirmed = each(&|figures| figures.confirmed.load(Relaxed));
    family(out, "counter", "logd_sink_records", "Records that a sink has confirmed", &confirmed);
    let aside = each(&|figures| figures.aside.load(Relaxed));
    family(out, "counter", "logd_sink_aside_records", "Records too long for a sink, put into a file", &aside);
    let failures = each(&|figures| figures.failures.load(Relaxed));
    family(out, "counter", "logd_sink_failures", "Connections to a sink that failed or broke", &failures);
    let waiting = each(&|figures| figures.waiting.load(Relaxed).into());
    family(out, "gauge", "logd_sink_waiting", "1 while records wait for a sink that failed", &waiting);
}
