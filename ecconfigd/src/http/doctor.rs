//! The examination of the whole cluster, told while it goes on.
//!
//! One JSON document per line. What a node says of itself becomes findings here, because only the node that is asked sees all of them: who
//! does not answer, whose clock is wrong, who differs. The stream ends with a line of kind `end`; without it the examination was cut off.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use cluster::api::{Checkup, CheckupEvent, DoctorLine, Level, NodeReport, Problem, ReportState};
use http::{HeaderValue, header};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::Query;
use super::problem::ApiError;
use super::trust::now_ms;
use crate::accounts::{Action, Caller, authorize};

/// Lines that wait for the client; then the examination waits.
const QUEUE: usize = 32;
/// Clocks that differ by more make logs hard to read …
const SKEW_WARN_MS: u64 = 2_000;
/// … and certificates not yet valid.
const SKEW_BAD_MS: u64 = 60_000;
/// Certificates are renewed when two thirds of their life are over; one that ends so soon was not.
const CERTIFICATE_WARN_MS: u64 = 7 * 24 * 3600 * 1000;

/// How thorough.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Also read every object and every row on every node.
    #[serde(default)]
    deep: bool,
}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(doctor))
}

/// Examines the cluster: every server, the agents, the certificates.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "operations", operation_id = "doctor", params(How), responses(
    (status = 200, description = "One `DoctorLine` per line, while it goes on", body = DoctorLine,
        content_type = "application/x-ndjson"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn doctor(State(app): State<Arc<App>>, caller: Caller, Query(how): Query<How>) -> Result<Response, ApiError> {
    authorize(&caller, Action::ManageNodes)?;
    let (lines, received) = mpsc::channel(QUEUE);
    // It ends by itself when the client has gone: nothing can be sent then.
    tokio::spawn(async move { drop(examine(&app, how.deep, &lines).await) });
    let body = futures::stream::unfold(received, |mut received| async move {
        let line: DoctorLine = received.recv().await?;
        let mut json = serde_json::to_vec(&line).unwrap_or_default();
        json.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(json)), received))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Where findings go, and how many were bad.
struct Findings<'a> {
    lines: &'a mpsc::Sender<DoctorLine>,
    bad: u32,
    warned: u32,
}

/// Nobody listens any more.
struct Gone;

impl Findings<'_> {
    async fn add(&mut self, node: &str, check: &str, level: Level, words: impl Into<String>) -> Result<(), Gone> {
        self.bad += u32::from(level == Level::Bad);
        self.warned += u32::from(level == Level::Warn);
        let line = DoctorLine::Finding { node: node.to_owned(), check: check.to_owned(), level, words: words.into() };
        self.lines.send(line).await.map_err(|_| Gone)
    }
}

async fn examine(app: &App, deep: bool, lines: &mpsc::Sender<DoctorLine>) -> Result<(), Gone> {
    let mut findings = Findings { lines, bad: 0, warned: 0 };
    let (tell, mut events) = mpsc::channel(QUEUE);
    let core = app.core.clone();
    let examining = tokio::spawn(async move { core.examine_all(deep, tell).await });
    while let Some((node, event)) = events.recv().await {
        match event {
            CheckupEvent::Checkup(checkup) => judge(&mut findings, &node, &checkup, now_ms()).await?,
            CheckupEvent::Progress { repo, objects, bytes } => {
                let line = DoctorLine::Progress { node, repo, objects, bytes };
                lines.send(line).await.map_err(|_| Gone)?;
            }
            CheckupEvent::Objects { objects, problems, .. } if problems.is_empty() => {
                findings
                    .add(&node, "objects", Level::Ok, format!("{objects} objects are what their names say"))
                    .await?;
            }
            CheckupEvent::Objects { problems, .. } => {
                for problem in problems {
                    findings.add(&node, "objects", Level::Bad, problem).await?;
                }
            }
            CheckupEvent::Failed { why } => findings.add(&node, "reachable", Level::Bad, why).await?,
        }
    }
    drop(examining.await);
    let own = app.core.node_name().to_string();
    match app.core.compare_replicas(deep).await {
        Ok(()) => findings.add(&own, "replicas", Level::Ok, "all servers that answer have the same state").await?,
        Err(error) => findings.add(&own, "replicas", Level::Bad, error.to_string()).await?,
    }
    nodes(app, &mut findings).await?;
    let end = DoctorLine::End { bad: findings.bad, warned: findings.warned };
    lines.send(end).await.map_err(|_| Gone)
}

/// What a server says of itself, beside this one's clock.
async fn judge(findings: &mut Findings<'_>, node: &str, checkup: &Checkup, now_ms: u64) -> Result<(), Gone> {
    match (&checkup.out, &checkup.not_ready) {
        (Some(why), _) | (None, Some(why)) => findings.add(node, "ready", Level::Bad, why).await?,
        (None, None) => findings.add(node, "ready", Level::Ok, "it serves").await?,
    }
    match &checkup.leader {
        Some(leader) => findings.add(node, "leader", Level::Ok, format!("it follows {leader}")).await?,
        None => findings.add(node, "leader", Level::Bad, "it knows of no leader").await?,
    }
    let skew_ms = checkup.wall_ms.abs_diff(now_ms);
    let level = match skew_ms {
        0..SKEW_WARN_MS => Level::Ok,
        SKEW_WARN_MS..SKEW_BAD_MS => Level::Warn,
        _ => Level::Bad,
    };
    let words = if level == Level::Ok {
        "it has the time of the others".to_owned()
    } else {
        format!("it is {} s off", skew_ms / 1000)
    };
    findings.add(node, "clock", level, words).await?;
    let mib = |bytes: u64| bytes >> 20;
    match checkup.free_bytes {
        Some(free) if free < checkup.reserve_bytes => {
            findings.add(node, "disk", Level::Bad, format!("{} MiB are left: it is read-only", mib(free))).await?;
        }
        Some(free) if free < checkup.reserve_bytes.saturating_mul(4) => {
            findings.add(node, "disk", Level::Warn, format!("only {} MiB are left", mib(free))).await?;
        }
        Some(_) => findings.add(node, "disk", Level::Ok, "there is room").await?,
        None => findings.add(node, "disk", Level::Warn, "the room is not known").await?,
    }
    if let Some(why) = &checkup.disputed {
        findings.add(node, "replicas", Level::Bad, why).await?;
    }
    Ok(())
}

/// Certificates, and how far the programs on each node are.
async fn nodes(app: &App, findings: &mut Findings<'_>) -> Result<(), Gone> {
    for record in app.core.nodes() {
        let node = record.name.to_string();
        let newest = record.certificates.iter().map(|certificate| certificate.not_after_time_ms).max();
        let left_ms = newest.map(|until| until.saturating_sub(now_ms()));
        match left_ms {
            Some(0) => findings.add(&node, "certificate", Level::Bad, "it has expired").await?,
            Some(left) if left < CERTIFICATE_WARN_MS => {
                let words = format!("it ends in {} hours and was not renewed", left / 3_600_000);
                findings.add(&node, "certificate", Level::Warn, words).await?;
            }
            Some(_) => findings.add(&node, "certificate", Level::Ok, "it is valid").await?,
            None => {}
        }
        let target = app.core.target(&record.name).map_or(0, |target| target.record.serial);
        for report in app.core.reports(&record.name).unwrap_or_default() {
            let Ok(report) = serde_json::from_slice::<NodeReport>(&report.json) else { continue };
            let (program, serial) = (&report.program, report.serial);
            match report.state {
                ReportState::Failed | ReportState::Refused => {
                    let words = format!("{program} could not take target {serial}");
                    findings.add(&node, "target", Level::Bad, words).await?;
                }
                _ if serial < target => {
                    let words = format!("{program} is at target {serial} of {target}");
                    findings.add(&node, "target", Level::Warn, words).await?;
                }
                _ => findings.add(&node, "target", Level::Ok, format!("{program} has what it shall have")).await?,
            }
        }
    }
    Ok(())
}
