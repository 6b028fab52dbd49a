//! Lines that a sink will never take because they are too long: kept on the node, one file per sink and log.
//!
//! ```text
//! <data>/aside/<sink>/<log>      ID TIME LINE\n …
//! ```
//! A line is synced here before the subscriber passes it, so it is in the journal, here or both. The file is opened for each line: whoever has dealt with
//! it may rename or remove it at any time. Like the sink it gets each line at least once, and the id tells.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Message;
use crate::path::rfc3339_local;

/// Lines over a sink's limit are rare. So many bytes of them are a sink that was set up wrongly; its records then wait, as with `too_large = "wait"`.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Where a sink's lines of a log are put.
pub(super) fn path_of(data: &Path, sink: &str, log: &str) -> PathBuf {
    data.join("aside").join(sink).join(log)
}

/// Adds a line and syncs it.
pub(super) fn put(path: &Path, message: &Message) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        cluster::files::create_dirs(dir, 0o750).map_err(io::Error::other)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    let length = file.metadata()?.len();
    if length >= MAX_FILE_BYTES {
        return Err(io::Error::other("it is full of lines that were too long: look at the sink, then take it away"));
    }
    let mut out = Vec::with_capacity(message.payload.len() + 96);
    if length > 0 && !ends_whole(&mut file)? {
        // A crash or a full disk left a part of a line. The whole of it comes again.
        out.push(b'\n');
    }
    out.extend_from_slice(format!("{} {} ", message.id, rfc3339_local(message.time_us)).as_bytes());
    out.extend_from_slice(&message.payload);
    out.push(b'\n');
    file.write_all(&out)?;
    file.sync_all()?;
    match path.parent() {
        Some(dir) if length == 0 => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

fn ends_whole(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn torn_lines_stay_lines_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_of(dir.path(), "bus", "a");
        let message = |sequence: u64, text: &str| Message {
            id: format!("j-{sequence}"),
            sequence,
            time_us: 1_000_000,
            payload: text.as_bytes().to_vec(),
        };
        put(&path, &message(1, "one")).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"j-2 half").unwrap();
        put(&path, &message(2, "two")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("j-1 1970-01-0") && lines[0].ends_with(" one"), "{text}");
        assert!(lines[1] == "j-2 half" && lines[2].ends_with(" two"), "{text}");
    }
}
