//! The daemon's commands: what `cidr` on the same machine asks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cidr_engine::{Address, Block, Day, Format, Maintained};
use cluster::control::{Failure, Parts, Router};
use cluster::error::Chain;
use cluster::units::HumanDuration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{inputs, maintenance, queries};
use crate::export;
use crate::service::Service;

/// `query`: text, and how the answer is printed.
#[derive(Debug, Serialize, Deserialize)]
pub struct QueryArgs {
    /// The question.
    pub query: String,
    /// `text`, `json` or `csv`.
    pub format: String,
}

/// `count`.
#[derive(Debug, Serialize, Deserialize)]
pub struct CountArgs {
    /// The block.
    pub block: String,
    /// The series.
    pub series: String,
    /// How far back.
    pub last: HumanDuration,
    /// This node alone.
    pub local: bool,
}

/// `remove`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RemoveArgs {
    /// The series.
    pub series: String,
    /// The address.
    pub address: String,
}

/// `export`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExportArgs {
    /// Where to, on the daemon's machine.
    pub to: PathBuf,
    /// Series; empty: all.
    pub series: Vec<String>,
    /// The first day.
    pub from: Option<String>,
    /// The last day.
    pub until: Option<String>,
}

impl ExportArgs {
    /// The days, from the first to the last.
    pub fn days(&self) -> Result<(Day, Day), Failure> {
        let day = |text: &Option<String>, otherwise| text.as_deref().map_or(Ok(otherwise), day_of);
        Ok((day(&self.from, Day(0))?, day(&self.until, Day(i64::MAX))?))
    }
}

/// `20080423` or `2008-04-23`.
fn day_of(text: &str) -> Result<Day, Failure> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = |range: std::ops::Range<usize>| digits.get(range).and_then(|digits| digits.parse().ok());
    let parts = (digits.len() == 8).then(|| Some((number(0..4)?, number(4..6)?, number(6..8)?))).flatten();
    let day = parts.and_then(|(year, month, day)| Day::from_date(year, month, day));
    day.ok_or_else(|| Failure::new(format!("{text:?} is no day")).hint("such as 2008-04-23").code("usage"))
}

/// The format of this name.
pub fn format_of(name: &str) -> Result<Format, Failure> {
    match name {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        "csv" => Ok(Format::Csv),
        other => Err(Failure::new(format!("there is no format {other:?}")).hint("text, json or csv")),
    }
}

/// All commands.
pub fn router(service: Arc<Service>) -> Router {
    let add = |router: Router, name, help, run: fn(Arc<Service>, Value, Parts) -> Answer| {
        let service = service.clone();
        router.command(name, help, move |args, parts| run(service.clone(), args, parts))
    };
    let router =
        add(Router::new(), "query", "Answers a question in the query language", |s, a, p| Box::pin(query(s, a, p)));
    let router = add(router, "add", "Counts lines of the text protocol", |s, a, _| Box::pin(add_lines(s, a)));
    let router =
        add(router, "count", "Counts a block over the last windows of the cluster", |s, a, _| Box::pin(count(s, a)));
    let router = add(router, "remove", "Forgets an address", |s, a, _| Box::pin(remove(s, a)));
    let router = add(router, "series", "Series with their windows", |s, _, _| Box::pin(aside(move || series(&s))));
    let router =
        add(router, "status", "What this daemon is and what waits", |s, _, _| Box::pin(aside(move || Ok(status(&s)))));
    let router = add(router, "maintain", "Builds days, condenses and expires now", |s, _, _| Box::pin(maintain(s)));
    let router = add(router, "verify", "Reads every byte of the store", |s, _, p| Box::pin(verify(s, p)));
    let router = add(router, "export", "Copies counts as Parquet", |s, a, p| Box::pin(export(s, a, p)));
    add(router, "metrics", "What Prometheus would read", |s, _, _| {
        Box::pin(aside(move || Ok(json!(s.meters.registry.render()))))
    })
}

type Answer = futures::future::BoxFuture<'static, Result<Value, Failure>>;

fn args<T: DeserializeOwned>(args: Value) -> Result<T, Failure> {
    serde_json::from_value(args)
        .map_err(|error| Failure::new(format!("the command's arguments: {error}")).code("usage"))
}

fn word<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: T::Err| Failure::new(error.to_string()).code("usage"))
}

async fn query(service: Arc<Service>, value: Value, parts: Parts) -> Result<Value, Failure> {
    let QueryArgs { query, format } = args(value)?;
    let begun = queries::begin(&service, query, format_of(&format)?).await;
    let mut pieces = begun.map_err(|failure| failure.failure())?;
    // Rows end anywhere in a piece, but never a character: all of it is ASCII.
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            () = parts.gone() => return Ok(Value::Null),
        };
        match piece {
            None => return Ok(Value::Null),
            Some(Ok(bytes)) => parts.send(String::from_utf8_lossy(&bytes)).await?,
            Some(Err(failure)) => return Err(failure.failure()),
        }
    }
}

async fn add_lines(service: Arc<Service>, value: Value) -> Result<Value, Failure> {
    let text: String = args(value)?;
    let received = inputs::feed_all(&service, text.into()).await;
    let (counted, refused) = received.totals();
    service.meters.brought("control", counted, refused);
    Ok(json!({ "counted": counted, "refused": refused, "why": received.why() }))
}

async fn count(service: Arc<Service>, value: Value) -> Result<Value, Failure> {
    let CountArgs { block, series, last, local } = args(value)?;
    let block: Block = word(&block)?;
    let last_s = last.as_millis().div_ceil(1_000);
    if local {
        let count = service.count_aside(&series, &block, last_s).await?;
        return Ok(json!({ "count": count, "nodes": { (service.node.as_str()): count } }));
    }
    let count = service.count(&series, &block, last_s).await?;
    serde_json::to_value(count).map_err(|error| Failure::of(&error))
}

async fn remove(service: Arc<Service>, value: Value) -> Result<Value, Failure> {
    let RemoveArgs { series, address } = args(value)?;
    let address: Address = word(&address)?;
    Ok(json!({ "missing": service.remove(&series, address).await }))
}

/// Runs what reads the disk, or has much to print, where that keeps nobody's sockets and timers waiting.
pub async fn aside<T: Send + 'static>(run: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| Err(Failure::of(&error)))
}

/// The series that are kept, and those that are only in memory yet. Reads the store.
pub fn series(service: &Service) -> Result<Value, Failure> {
    let iso = |stamp: i64| {
        let moment = time::OffsetDateTime::from_unix_timestamp(stamp).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        moment.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
    };
    let mut all: std::collections::BTreeMap<String, serde_json::Map<String, Value>> = std::collections::BTreeMap::new();
    for (name, first, last) in service.store().map(|store| store.available()).unwrap_or_default() {
        let entry = all.entry(name).or_default();
        entry.insert("first".into(), iso(first).into());
        entry.insert("last".into(), iso(last).into());
    }
    for (name, (window_s, windows)) in service.counted(|counting, _| counting.monitored()) {
        all.entry(name).or_default().insert("monitor".into(), format!("{window_s},{windows}").into());
    }
    let rows = all.into_iter().map(|(name, mut entry)| {
        entry.insert("series".into(), name.into());
        Value::Object(entry)
    });
    Ok(rows.collect())
}

fn status(service: &Service) -> Value {
    let settings = service.settings();
    let waiting: serde_json::Map<String, Value> =
        service.outbox.waiting().unwrap_or_default().into_iter().map(|(name, n)| (name, n.into())).collect();
    let (addresses, refused) = service.counted(|counting, _| counting.usage());
    let lists: serde_json::Map<String, Value> =
        settings.lists.iter().map(|(name, list)| (name.to_owned(), list.len().into())).collect();
    json!({
        "node": service.node,
        "version": settings.version,
        "servers": settings.servers,
        "store": service.store().map(|store| store.dir().display().to_string()),
        "waiting": waiting,
        "addresses": addresses,
        "monitor_refused": refused,
        "lists": lists,
        "clock_jumped": service.clock.has_jumped(),
    })
}

/// What a round of maintenance did, as JSON.
pub fn maintained(done: Maintained) -> Value {
    let Maintained { days, spans, months, merged, condensed, expired } = done;
    json!({ "days": days, "spans": spans, "months": months, "merged": merged, "condensed": condensed, "expired": expired })
}

async fn maintain(service: Arc<Service>) -> Result<Value, Failure> {
    service.store_or_refusal()?;
    let round = tokio::task::spawn_blocking(move || maintenance::maintain(&service, &|| false)).await;
    let done = round.map_err(|error| Failure::of(&error))?.map_err(|error| Failure::new(Chain(&error).to_string()))?;
    Ok(maintained(done.unwrap_or_default()))
}

async fn export(service: Arc<Service>, value: Value, parts: Parts) -> Result<Value, Failure> {
    let options: ExportArgs = args(value)?;
    let (store, days) = (service.store_or_refusal()?, options.days()?);
    let exported =
        until_gone(&parts, move |stop| export::export(&store, &options.to, &options.series, days, stop)).await?;
    let exported = exported.map_err(|error| Failure::of(&error))?;
    Ok(json!({ "files": exported.files, "rows": exported.rows }))
}

/// Runs what blocks for long; it is stopped when nobody waits for it any more.
async fn until_gone<T: Send + 'static>(
    parts: &Parts,
    run: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> Result<T, Failure> {
    let gone = Arc::new(AtomicBool::new(false));
    let stop = gone.clone();
    let mut task = tokio::task::spawn_blocking(move || run(&|| stop.load(Ordering::Relaxed)));
    let done = tokio::select! {
        done = &mut task => done,
        () = parts.gone() => {
            gone.store(true, Ordering::Relaxed);
            task.await
        }
    };
    done.map_err(|error| Failure::of(&error))
}

async fn verify(service: Arc<Service>, parts: Parts) -> Result<Value, Failure> {
    let store = service.store_or_refusal()?;
    let verified = until_gone(&parts, move |stop| store.verify(stop)).await?.map_err(|error| Failure::of(&error))?;
    let damage = verified.damage.iter().map(|(path, what)| json!({ "file": path, "what": what }));
    Ok(json!({ "files": verified.files, "rows": verified.rows, "damage": damage.collect::<Value>() }))
}
