//! A daemon of your own that follows the cluster's configuration.
//!
//! It reads `greeter.toml`, a document that eccluster knows nothing about, along the node's search path (node, groups, default, global),
//! and greets when asked over its control socket:
//!
//! ```text
//! cargo run -p cluster --example follow -- --node n1 --conf /etc/eccluster/conf --data /tmp/greeter
//! echo '{"command":"greet","args":{"name":"Ada"}}' | socat - /run/eccluster/greeter.sock
//! ```
//! A configuration that makes no sense is refused as a whole: the one in use stays, and the cluster learns the reason.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use clap::Parser;
use cluster::control::{Failure, Router, Server, ServerOptions};
use cluster::documents::EffectiveFile;
use cluster::shutdown::{Drained, Shutdown};
use cluster::subscription::{Daemon, DaemonOptions, Snapshot, Wanted};
use cluster::telemetry::{self, Metrics, TelemetryOptions};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};

const PROGRAM: &str = "greeter";

/// Greets as configured
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    daemon: DaemonOptions,
    #[command(flatten)]
    telemetry: TelemetryOptions,
}

/// What `greeter.toml` says. `deny_unknown_fields` turns a misspelt key into an error with file, line and a hint.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Greeter {
    greeting: String,
}

/// Reads a configuration whole, or says why it cannot be used.
fn read(snapshot: &Snapshot) -> Result<Greeter, String> {
    match snapshot.effective("greeter.toml").map_err(|error| error.to_string())? {
        EffectiveFile::Document(document) => {
            let greeter: Greeter = document.decode().map_err(|findings| findings.to_string())?;
            if greeter.greeting.is_empty() { Err("the greeting is empty".into()) } else { Ok(greeter) }
        }
        _ => Err("there is no greeter.toml along the search path".into()),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    telemetry::init(&options.telemetry)?;
    let outcome = run(&options.daemon, &Shutdown::on_signals()?).await;
    // A log that nobody reads takes no error either.
    if !telemetry::flush() {
        std::process::exit(i32::from(outcome.is_err()));
    }
    outcome
}

/// Follows the configuration until told to stop, then drains.
async fn run(options: &DaemonOptions, shutdown: &Shutdown) -> anyhow::Result<()> {
    let wanted = Wanted::documents(["greeter.toml"]);
    let Daemon { node, mut subscription, lock, .. } = options.open(PROGRAM, wanted, shutdown).await?;

    let metrics = Metrics::new(PROGRAM, &node);
    let greeted = Counter::<u64>::default();
    metrics.register(|registry| registry.register("greeter_greetings", "Greetings given", greeted.clone()));

    let settings: Arc<RwLock<Option<Greeter>>> = Arc::default();
    let in_use = settings.clone();
    let router = Router::new()
        .command("greet", "Greets somebody", move |args: Value, _| {
            let (settings, greeted) = (in_use.clone(), greeted.clone());
            async move {
                let settings = settings.read().map_err(|_| Failure::new("a greeting broke"))?.clone();
                let greeter = settings.ok_or_else(|| Failure::new("not configured yet"))?;
                greeted.inc();
                Ok(json!(format!("{}, {}!", greeter.greeting, args["name"].as_str().unwrap_or("stranger"))))
            }
        })
        .command("metrics", "What Prometheus would read", move |_, _| {
            let text = metrics.render();
            async move { Ok(json!(text)) }
        });
    let control = Server::bind(&ServerOptions::new(PROGRAM, &node))?;
    shutdown.spawn(control.serve(router, shutdown.token()));

    while let Some(snapshot) = subscription.next().await {
        match read(&snapshot) {
            Ok(greeter) => {
                *settings.write().map_err(|_| anyhow::anyhow!("a greeting broke"))? = Some(greeter);
                snapshot.applied().await;
            }
            Err(reason) => snapshot.refused(reason).await,
        }
    }
    match shutdown.run(Duration::from_secs(5)).await {
        Drained::Clean => drop(lock),
        unfinished => anyhow::bail!("{unfinished}"),
    }
    Ok(())
}
