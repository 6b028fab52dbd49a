//! Taking sockets: trying until they can be had, and cleaning up.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::Feed;

/// How often a socket that cannot be had is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How many connections one input serves at once; each has a buffer of 64 KiB. Further ones wait in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 1024;

/// Calls `bind` until it works; `None` when the input is stopped first. Says once what is in the way.
pub(super) async fn until_bound<T>(feed: &Feed, what: &str, bind: impl Fn() -> io::Result<T>) -> Option<T> {
    let mut said = false;
    loop {
        match bind() {
            Ok(socket) => {
                tracing::debug!(log = feed.log.name(), what, "listening");
                return Some(socket);
            }
            Err(error) if !std::mem::replace(&mut said, true) => {
                tracing::error!(log = feed.log.name(), what, %error, "the input cannot be opened; trying again");
            }
            Err(_) => {}
        }
        feed.stop.run_until_cancelled(tokio::time::sleep(RETRY)).await?;
    }
}

/// Makes the way for a socket: its directory, and nothing dead of that name. A file that is no socket is left alone.
pub(super) fn clear_path(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Services of every user write logs, as they do to /dev/log.
pub(super) fn open_to_all(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}
