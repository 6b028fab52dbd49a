//! What a daemon says about itself: logs on stderr, as text or JSON, and metrics for Prometheus.
//!
//! Logs go to stderr and nowhere else; files, rotation and shipping belong to whoever started the process. A daemon does not wait for whoever
//! reads them ([`init`]). Secrets never reach either: every type that carries one has a `Debug` that leaves it out.

mod lines;
mod metrics;
mod process;
mod request_id;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::lines::{Line, Lines};
pub use metrics::{CONTENT_TYPE, Metrics};
pub use request_id::RequestId;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Options that every daemon has.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct TelemetryOptions {
    /// What to log: a level, or `target=level` pairs separated by commas
    #[arg(long, env = "ECCLUSTER_LOG", value_name = "FILTER", default_value = "info", hide_env_values = true)]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "ECCLUSTER_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl TelemetryOptions {
    /// The options of the environment, for programs that have none of their own.
    pub fn from_env() -> Self {
        let log = std::env::var("ECCLUSTER_LOG").unwrap_or_else(|_| "info".into());
        let json = std::env::var("ECCLUSTER_LOG_FORMAT").is_ok_and(|format| format.eq_ignore_ascii_case("json"));
        Self { log, log_format: if json { LogFormat::Json } else { LogFormat::Text } }
    }
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error("{filter:?} is not a log filter")]
    Filter {
        /// What was given.
        filter: String,
        /// Why it is none.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The log's filter is not there any more.
    #[error("the log does not take another filter")]
    Gone,
    /// The log has no thread.
    #[error("the log cannot be written")]
    Writer(#[source] io::Error),
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// How long the end of a process waits for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a thread that panics does. The others may go on meanwhile.
const PANIC: Duration = Duration::from_millis(500);

/// Sends the log of this process to stderr, and waits for nobody who reads it: lines that do not fit into a queue are left out, and the log says how
/// many. Whoever ends the process calls [`flush`] before, and what panics is told the same way.
pub fn init(options: &TelemetryOptions) -> Result<(), TelemetryError> {
    let lines = Lines::new(options.log_format);
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(TelemetryError::Writer)?;
    let queue = lines.clone();
    init_with(options, move || Line(queue.clone()))?;
    lines.start(File::from(stderr)).map_err(TelemetryError::Writer)?;
    if LINES.set(lines.clone()).is_ok() {
        std::panic::set_hook(Box::new(move |panic| {
            lines.put_anyway(words_of(panic).into_bytes());
            lines.flush(PANIC);
        }));
    }
    Ok(())
}

/// The same for a command that somebody looks at: what it logs comes before what it prints afterwards.
pub fn init_command(options: &TelemetryOptions) -> Result<(), TelemetryError> {
    init_with(options, io::stderr)
}

fn init_with<W>(options: &TelemetryOptions, writer: W) -> Result<(), TelemetryError>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&options.log)?);
    let layer = layer(options.log_format, writer, io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    let _ = FILTER.set(handle);
    Ok(())
}

/// What waits to be written, where it does not at once.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Waits a little until what was logged is written; false when nobody reads it: then nothing else can be said on stderr either.
pub fn flush() -> bool {
    LINES.get().is_none_or(|lines| lines.flush(LAST_WORDS))
}

/// As the standard library says it, which would wait for whoever reads.
fn words_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let payload = panic.payload();
    let message =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|text| &**text));
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let trace = Backtrace::capture();
    let trace = if trace.status() == BacktraceStatus::Captured { format!("{trace}\n") } else { String::new() };
    format!("\nthread '{name}' panicked at {place}:\n{}\n{trace}", message.unwrap_or("(no words)"))
}

/// The filter of this process's log, once it is set up.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Logs by another filter from now on. Nothing happens where this process's log was not set up by [`init`].
pub fn set_filter(text: &str) -> Result<(), TelemetryError> {
    let filter = filter(text)?;
    if let Some(handle) = FILTER.get() {
        handle.reload(filter).map_err(|_| TelemetryError::Gone)?;
    }
    Ok(())
}

/// Whether a filter makes sense.
pub fn check_filter(text: &str) -> Result<(), TelemetryError> {
    filter(text).map(drop)
}

fn layer<S, W>(format: LogFormat, writer: W, colours: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer().with_writer(writer).with_ansi(colours).with_target(false).boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(true)
            .with_writer(writer)
            .boxed(),
    }
}

/// A bare level is meant for our own programs; the libraries below speak up from `warn` unless they are named. Openraft
/// warns of every heartbeat that gets no answer, many times a second; who is away is said once, by what connects to members.
fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    let quiet = "hyper=warn,h2=warn,rustls=warn,reqwest=warn,notify=warn,openraft=error";
    let full = if text.is_empty() { format!("{quiet},info") } else { format!("{quiet},{text}") };
    full.parse().map_err(|source| TelemetryError::Filter { filter: text.into(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        telemetry: TelemetryOptions,
    }

    #[test]
    fn options_parse_and_filters_are_checked() {
        let program = Program::try_parse_from(["x", "--log", "debug,hyper=trace", "--log-format", "json"]).unwrap();
        assert_eq!(program.telemetry.log_format, LogFormat::Json);
        filter(&program.telemetry.log).unwrap();
        let error = filter("a=b=c").unwrap_err();
        assert!(error.to_string().contains("a=b=c"), "{error}");
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(layer(format, move || writer.clone(), false));
        tracing::subscriber::with_default(subscriber, || {
            let _inside = RequestId::accept(Some("req-1")).span().entered();
            tracing::info!(node = "n1", "served");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_line_of_a_request_carries_its_id() {
        let text = logged(LogFormat::Text);
        assert!(text.contains("request{id=req-1}") && text.contains("served node=\"n1\""), "{text}");
        let json: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!(
            (&json["message"], &json["node"], &json["spans"][0]["id"]),
            (&"served".into(), &"n1".into(), &"req-1".into())
        );
    }
}
