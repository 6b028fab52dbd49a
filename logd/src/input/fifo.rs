//! A pipe with a name.
//!
//! Made if it is not there. It stays open here, so that writers come and go. What the pipe held when the daemon dies is gone with the pipe's last
//! reader: a pipe cannot be exact.

use std::io;
use std::path::{Path, PathBuf};

use logd_journal::Batch;
use nix::sys::stat::Mode;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::lines::Lines;
use super::{Feed, batch_of, listen};
use crate::path::now_us;

const READ_BYTES: usize = 64 << 10;

pub(super) fn start(feed: &Feed, path: PathBuf) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let what = path.display().to_string();
        let Some(mut pipe) = listen::until_bound(&feed, &what, || open(&path)).await else { return };
        let mut lines = Lines::new(feed.max_line_bytes);
        let mut buffer = vec![0; READ_BYTES];
        let mut last_reads = super::unix::LAST_READS;
        loop {
            let bytes = match feed.stop.run_until_cancelled(pipe.read(&mut buffer)).await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    tracing::error!(log = feed.log.name(), %error, "the pipe cannot be read");
                    break;
                }
                None if last_reads == 0 => 0,
                None => {
                    last_reads -= 1;
                    pipe.try_read(&mut buffer).unwrap_or(0)
                }
            };
            if bytes == 0 {
                break;
            }
            let batch = batch_of(&feed, &mut lines, &buffer[..bytes]);
            if !batch.is_empty() && !put(&feed, batch).await {
                return;
            }
        }
        let (mut batch, now) = (Batch::new(), now_us());
        lines.finish(|line| feed.push(&mut batch, now, line));
        if !batch.is_empty() {
            put(&feed, batch).await;
        }
    });
}

async fn put(feed: &Feed, batch: Batch) -> bool {
    match feed.log.write(batch, false).await {
        Ok(receipt) => receipt.wait().await.is_ok(),
        Err(_) => false,
    }
}

fn open(path: &Path) -> io::Result<pipe::Receiver> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o622)) {
        Ok(()) => {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o622))?;
        }
        Err(nix::Error::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    pipe::OpenOptions::new().read_write(true).open_receiver(path)
}
