//! Node reports, written together: a thousand agents that report one commit cost a few log entries, not a thousand.

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::commit::Proposer;
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

/// The way in.
#[derive(Clone)]
pub(super) struct Reporter {
    jobs: mpsc::Sender<Job>,
}

impl Reporter {
    pub(super) fn start(proposer: Proposer, length: usize) -> (Reporter, JoinHandle<()>) {
        let (jobs, receiver) = mpsc::channel(length);
        (Reporter { jobs }, tokio::spawn(run(proposer, receiver)))
    }

    pub(super) fn put(&self, report: ReportRecord) -> Result<oneshot::Receiver<Result<()>>> {
        let (answer, answered) = oneshot::channel();
        match self.jobs.try_send(Job { report, answer }) {
            Ok(()) => Ok(answered),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::Overloaded { queue: "the queue of node reports" }),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Unavailable("the server is stopping".into())),
        }
    }
}

async fn run(proposer: Proposer, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        let mut bytes = first.report.json.len();
        let mut batch = vec![first];
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.report.json.len();
            batch.push(job);
        }
        let ops = batch.iter().map(|job| Op::Report(job.report.clone())).collect();
        let outcomes = proposer.propose(ops, Vec::new()).await;
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
