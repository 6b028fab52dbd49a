//! Cutting windows by the clock, and writing those that are over to the journal.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use cidr_engine::live::Past;
use cluster::error::Chain;
use tokio_util::sync::CancellationToken;

use crate::counting::Finished;
use crate::hand_in::Portion;
use crate::service::Service;

/// How often the clock is looked at: a jump is noticed within this time, and an end within a tenth of a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often windows of monitors are looked for that ended and are to be sorted. Who asks before that sorts them himself.
const SORT_EVERY: Duration = Duration::from_secs(1);
/// A disk that is full may be cleaned up; meanwhile the window stays in memory.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Ends windows when their time has come, events or not.
pub async fn cut(service: Arc<Service>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        service.counted(|counting, now| counting.turn(now));
    }
}

/// Sorts the windows of monitors that are over, away from whoever counts or asks.
pub async fn sort(service: Arc<Service>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(SORT_EVERY)).await.is_some() {
        let ended = service.counted(|counting, _| counting.take_ended());
        if !ended.is_empty() {
            let _ = tokio::task::spawn_blocking(move || ended.iter().for_each(Past::sort)).await;
        }
    }
}

/// Writes finished windows until there are no more. A thread of its own: it sorts millions of rows and waits for disks.
pub fn write(service: &Service, finished: &mpsc::Receiver<Finished>, hurry: &CancellationToken) {
    while let Ok(window) = finished.recv() {
        let cut = window.cut;
        let portions = portions(service, window);
        while let Err(error) = service.outbox.put(&portions) {
            if hurry.is_cancelled() {
                service.meters.windows_lost.inc();
                tracing::error!(error = %Chain(&error), "a window was lost at the end");
                break;
            }
            tracing::error!(error = %Chain(&error), "a window cannot be written; trying again");
            std::thread::sleep(AGAIN_AFTER);
        }
        service.meters.windows.inc_by(portions.len() as u64);
        service.cut_written(cut);
    }
}

/// The series that `as_logger` writes.
fn portions(service: &Service, mut window: Finished) -> Vec<Portion> {
    let settings = service.settings();
    let logger = &settings.cidr.as_logger;
    let (start, end) = (window.start.max(0), window.end);
    let counted = window.counted.seal().into_iter();
    let included = counted.filter(|(series, _)| logger.includes(series));
    included.map(|(series, counts)| Portion { series, start, end, counts }).collect()
}
