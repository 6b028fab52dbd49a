//! The care of the store on a schedule, and monitors that survive a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cidr_engine::live::Sealed;
use cidr_engine::{Care, Maintained, Stamp};
use cluster::error::Chain;
use cluster::files;
use tokio_util::sync::CancellationToken;

use crate::hand_in::{HandIn, Portion};
use crate::service::Service;

/// A round that finds nothing to do costs microseconds; a day is built at most this long after it ended.
const ROUND_EVERY: Duration = Duration::from_secs(900);
/// Counts of a persistent monitor that a crash may take.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// A monitor's file: windows of millions of addresses.
const SAVED_BYTES: u64 = 1 << 30;

/// Builds days, condenses and expires, now and then.
pub async fn rounds(service: Arc<Service>, stop: CancellationToken) {
    loop {
        let wait = tokio::time::sleep(ROUND_EVERY);
        tokio::select! {
            () = stop.cancelled() => return,
            () = service.reconfigured.notified() => {}
            () = wait => {}
        }
        let (service, stop) = (service.clone(), stop.clone());
        let round = tokio::task::spawn_blocking(move || maintain(&service, &|| stop.is_cancelled())).await;
        match round {
            Ok(Ok(Some(done))) if done != Maintained::default() => tracing::info!(?done, "maintenance"),
            Ok(Err(error)) if !matches!(error, cidr_engine::Error::Cancelled) => {
                tracing::error!(error = %Chain(&error), "maintenance failed; it goes on next time");
            }
            _ => {}
        }
    }
}

/// One round; none where no store is.
pub fn maintain(service: &Service, stop: &dyn Fn() -> bool) -> Result<Option<Maintained>, cidr_engine::Error> {
    let Some(store) = service.store() else { return Ok(None) };
    let (settings, held) = (service.settings(), service.clock.has_jumped());
    if held {
        tracing::warn!("the clock jumped ahead by more than a day: nothing is expired or condensed until a restart");
    }
    let care = |series: &str| if held { Care::default() } else { settings.care_of(series) };
    store.maintain(service.wall(), care, stop).map(Some)
}

/// Saves the monitors that shall survive, every minute and at the end.
pub async fn save_monitors(service: Arc<Service>, stop: CancellationToken) {
    loop {
        let over = stop.run_until_cancelled(tokio::time::sleep(SAVE_EVERY)).await.is_none();
        let service = service.clone();
        let saved = tokio::task::spawn_blocking(move || save(&service)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(error = %Chain(&error), "monitors cannot be kept for the next start");
        }
        if over {
            return;
        }
    }
}

fn file_of(data: &Path, series: &str) -> PathBuf {
    data.join("monitors").join(series)
}

fn save(service: &Service) -> Result<(), files::FileError> {
    let settings = service.settings();
    let persistent = settings.cidr.series.iter().filter(|(_, series)| series.persist);
    for (name, series) in persistent {
        let Some(held) = service.counted(|counting, _| counting.export(name)) else { continue };
        let window_s = i64::from(series.monitor.window_s);
        let bytes = saved(name, window_s, held.windows());
        files::create_dirs(&service.data.join("monitors"), 0o755)?;
        files::write_atomic(&file_of(&service.data, name), &bytes, 0o644)?;
    }
    Ok(())
}

/// A message of windows, and its checksum.
fn saved(series: &str, window_s: i64, windows: Vec<(Stamp, cidr_engine::Counts)>) -> Vec<u8> {
    let portions = windows.into_iter().map(|(start, counts)| Portion {
        series: series.into(),
        start,
        end: start.saturating_add(window_s),
        counts,
    });
    let records = portions.flat_map(|portion| portion.encode());
    let records: Vec<(u64, Vec<u8>)> = records.enumerate().map(|(number, record)| (number as u64, record)).collect();
    let mut bytes = HandIn { journal: [0; 16], next: records.len() as u64, records }.encode();
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Option<Vec<(Stamp, cidr_engine::Counts)>> {
    let (message, sum) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(message) != u32::from_le_bytes(*sum) {
        return None;
    }
    let records = HandIn::decode(message).ok()?.records;
    let portions =
        records.iter().map(|(_, record)| Portion::decode(record).map(|portion| (portion.start, portion.counts)));
    portions.collect::<Result<_, _>>().ok()
}

/// Gives persistent monitors back what they had. Called after a configuration came into use; a monitor that has counted is left alone.
pub fn restore(service: &Service) {
    for (name, _) in service.settings().cidr.series.iter().filter(|(_, series)| series.persist) {
        let path = file_of(&service.data, name);
        match files::read_limited(&path, SAVED_BYTES) {
            Ok(None) => {}
            Ok(Some(bytes)) => match read(&bytes) {
                Some(windows) => {
                    let sealed = windows.into_iter().map(|(start, counts)| (start, Sealed::new(counts))).collect();
                    service.counted(|counting, now| counting.import(name, sealed, now));
                }
                None => tracing::warn!(path = %path.display(), "the monitor's file is damaged; it begins anew"),
            },
            Err(error) => tracing::warn!(error = %Chain(&error), "a monitor begins anew"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cidr_engine::Counts;

    #[test]
    fn what_was_saved_is_read_and_damage_is_noticed() {
        let counts = |count| Counts::from_rows(vec![(1, count)], Vec::new());
        let windows = vec![(600, counts(5)), (300, counts(7))];
        let bytes = saved("spam", 300, windows.clone());
        assert_eq!(read(&bytes), Some(windows));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(read(&wrong), None, "byte {at}");
        }
    }
}
