//! Node reports, written together: a thousand agents that report one commit cost a few log entries, not a thousand.

use tokio::sync::{mpsc, oneshot};

use super::Core;
use crate::commit::Propose as _;
use crate::error::{Error, Result};
use crate::raft::command::{Op, Outcome};
use crate::state::ReportRecord;

/// Reports of one entry.
const BATCH: usize = 512;
/// The largest report; the output of every command is cut before.
pub(super) const MAX_REPORT_BYTES: usize = 256 << 10;
/// Bytes of one entry.
const BATCH_BYTES: usize = 2 << 20;

struct Job {
    report: ReportRecord,
    answer: oneshot::Sender<Result<()>>,
}

/// What waits to be written.
pub(super) struct Reports(mpsc::Receiver<Job>);

/// The way in.
#[derive(Clone)]
pub(super) struct Reporter {
    jobs: mpsc::Sender<Job>,
}

impl Reporter {
    pub(super) fn new(length: usize) -> (Reporter, Reports) {
        let (jobs, receiver) = mpsc::channel(length);
        (Reporter { jobs }, Reports(receiver))
    }

    pub(super) fn put(&self, report: ReportRecord) -> Result<oneshot::Receiver<Result<()>>> {
        let (answer, answered) = oneshot::channel();
        match self.jobs.try_send(Job { report, answer }) {
            Ok(()) => Ok(answered),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Error::Overloaded { queue: "the queue of node reports".into() })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Unavailable("the server is stopping".into())),
        }
    }
}

/// Writes what waits until nobody can put anything in any more.
pub(super) async fn run(core: Core, Reports(mut jobs): Reports) {
    while let Some(first) = jobs.recv().await {
        let mut bytes = first.report.json.len();
        let mut batch = vec![first];
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.report.json.len();
            batch.push(job);
        }
        let ops = batch.iter().map(|job| Op::Report(job.report.clone())).collect();
        let outcomes = core.propose(ops, Vec::new()).await;
        for (at, job) in batch.into_iter().enumerate() {
            let result = match &outcomes {
                Ok(outcomes) => match &outcomes[at] {
                    Outcome::Done => Ok(()),
                    Outcome::NotFound => Err(Error::no_node(&job.report.node)),
                    Outcome::Refused(why) => Err(Error::Invalid(why.clone())),
                    other => Err(Error::Internal(format!("a report was answered {other:?}"))),
                },
                Err(error) => Err(Error::Unavailable(error.to_string())),
            };
            // Whoever reported may have gone.
            drop(job.answer.send(result));
        }
    }
}
