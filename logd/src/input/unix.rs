//! The unix stream of lines, and its acknowledged form.
//!
//! ```text
//! plain          line\n …
//! acknowledged   ECLOG 1 <client-id>\n   then   <number> <line>\n …        ← ack <number>\n
//! ```
//! A client numbers its lines, upwards. `ack` means: everything up to this number is synced. The highest number of each client is noted in the journal
//! together with its lines, so what is sent again, on a new connection or to a new process, is dropped. A client that connects is told at once
//! how far it had come. A second connection under one id ends the first, after what the first had sent is on disk.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use logd_journal::Batch;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::lines::Lines;
use super::{Feed, batch_of, listen};
use crate::node::Receipt;
use crate::node::log::SourceNote;
use crate::path::now_us;

/// What is read at once: a few hundred usual lines, one chunk for the writer.
const READ_BYTES: usize = 64 << 10;
/// Chunks of one connection that may wait for their sync; when they do, it is not read further.
const CHUNKS_UNDER_WAY: usize = 4;
/// What is still read when the input stops: more than a socket holds. A client that never pauses must not hold up the end.
pub(super) const LAST_READS: u32 = 16;
/// The first line of an acknowledged stream, without the client's id.
pub const GREETING: &str = "ECLOG 1 ";
/// The longest client id.
const MAX_ID_BYTES: usize = 128;

/// Who is connected under which id.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<String, Arc<Client>>>>);

#[derive(Debug, Default)]
struct Client {
    /// Held by the connection that speaks for the client.
    turn: tokio::sync::Mutex<()>,
    /// Ends that connection.
    replaced: Mutex<CancellationToken>,
}

impl Clients {
    fn get(&self, id: &str) -> Arc<Client> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are of no use any more.
        if table.len() >= 2 * listen::MAX_CONNECTIONS {
            table.retain(|_, client| Arc::strong_count(client) > 1);
        }
        Arc::clone(table.entry(id.into()).or_default())
    }
}

pub(super) fn start(feed: &Feed, path: PathBuf, clients: Clients) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let what = path.display().to_string();
        let bind = || {
            listen::clear_path(&path)?;
            let listener = UnixListener::bind(&path)?;
            listen::open_to_all(&path)?;
            Ok(listener)
        };
        let Some(listener) = listen::until_bound(&feed, &what, bind).await else { return };
        let places = Arc::new(Semaphore::new(listen::MAX_CONNECTIONS));
        loop {
            let accepting = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let Some(Some((accepted, place))) = feed.stop.run_until_cancelled(accepting).await else { break };
            match accepted {
                Ok((stream, _)) => {
                    let (of_connection, clients) = (feed.clone(), clients.clone());
                    feed.spawn(async move {
                        serve(stream, &of_connection, &clients).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(log = feed.log.name(), %error, "a connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        let _ = std::fs::remove_file(&path);
    });
}

async fn serve(stream: UnixStream, feed: &Feed, clients: &Clients) {
    let (mut reader, writer) = stream.into_split();
    let mut buffer = vec![0; READ_BYTES];
    // Enough to know which form it is.
    let mut begun = 0;
    while begun < GREETING.len() && GREETING.as_bytes().starts_with(&buffer[..begun]) {
        match feed.stop.run_until_cancelled(reader.read(&mut buffer[begun..])).await {
            Some(Ok(bytes)) if bytes > 0 => begun += bytes,
            _ => break,
        }
    }
    if buffer[..begun].starts_with(GREETING.as_bytes()) {
        acknowledged(reader, writer, buffer, begun, feed, clients).await;
    } else {
        plain(reader, buffer, begun, feed).await;
    }
}

/// Waits for what a connection still has on its way to the disk.
async fn settle(receipts: &mut Vec<Receipt>) -> bool {
    for receipt in receipts.drain(..) {
        if receipt.wait().await.is_err() {
            return false;
        }
    }
    true
}

async fn plain(mut reader: OwnedReadHalf, mut buffer: Vec<u8>, mut filled: usize, feed: &Feed) {
    let mut lines = Lines::new(feed.max_line_bytes);
    let mut under_way = Vec::new();
    let mut last_reads = LAST_READS;
    loop {
        let batch = batch_of(feed, &mut lines, &buffer[..filled]);
        if !batch.is_empty() {
            let Ok(receipt) = feed.log.write(batch, false).await else { return };
            under_way.push(receipt);
            if under_way.len() >= CHUNKS_UNDER_WAY && under_way.remove(0).wait().await.is_err() {
                return;
            }
        }
        // When the input stops, what the client has sent already is still taken: it could not send it again.
        filled = match feed.stop.run_until_cancelled(reader.read(&mut buffer)).await {
            Some(Ok(bytes)) => bytes,
            Some(Err(_)) => 0,
            None if last_reads == 0 => 0,
            None => {
                last_reads -= 1;
                reader.try_read(&mut buffer).unwrap_or(0)
            }
        };
        if filled == 0 {
            break;
        }
    }
    let (mut batch, now) = (Batch::new(), now_us());
    let found = lines.finish(|line| feed.push(&mut batch, now, line));
    feed.count_cut(found.cut);
    if !batch.is_empty()
        && let Ok(receipt) = feed.log.write(batch, false).await
    {
        under_way.push(receipt);
    }
    settle(&mut under_way).await;
}

/// Numbered lines on their way to a batch.
struct Numbered<'a> {
    feed: &'a Feed,
    /// The highest number that was taken.
    last: u64,
    batch: Batch,
    wrong: Option<&'static str>,
}

impl Numbered<'_> {
    fn take(&mut self, line: &[u8], time_us: u64) {
        if self.wrong.is_some() {
            return;
        }
        let (number, text) = match memchr::memchr(b' ', line) {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let Some(number) = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u64>().ok()) else {
            self.wrong = Some("a line without a number");
            return;
        };
        if number <= self.last {
            self.feed.log.counters.repeated_lines.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.last = number;
        self.feed.push(&mut self.batch, time_us, text);
    }
}

/// The key of a client's note.
fn key_of(id: &str) -> Vec<u8> {
    [b"client:", id.as_bytes()].concat()
}

async fn acknowledged(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    mut buffer: Vec<u8>,
    mut filled: usize,
    feed: &Feed,
    clients: &Clients,
) {
    while memchr::memchr(b'\n', &buffer[..filled]).is_none() && filled <= GREETING.len() + MAX_ID_BYTES {
        match feed.stop.run_until_cancelled(reader.read(&mut buffer[filled..])).await {
            Some(Ok(bytes)) if bytes > 0 => filled += bytes,
            _ => return,
        }
    }
    let end = memchr::memchr(b'\n', &buffer[..filled]).unwrap_or(filled);
    let id = std::str::from_utf8(&buffer[GREETING.len()..end]).unwrap_or_default().trim_end_matches('\r').to_owned();
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        let _ = writer.write_all(b"error a client id is 1 to 128 printable characters\n").await;
        return;
    }
    let client = clients.get(&id);
    let replaced = CancellationToken::new();
    std::mem::replace(&mut *client.replaced.lock().unwrap_or_else(PoisonError::into_inner), replaced.clone()).cancel();
    let _turn = client.turn.lock().await;
    let key = key_of(&id);
    let note = feed.log.journal().note(&key).and_then(|value| SourceNote::parse(&value));
    let last = note.map_or(0, |note| note.position);
    if last > 0 && writer.write_all(format!("ack {last}\n").as_bytes()).await.is_err() {
        return;
    }

    // Answers are sent while the next lines are read. The bound is what makes a client wait that does not.
    let (under_way, mut receipts) = mpsc::channel::<(u64, Receipt)>(CHUNKS_UNDER_WAY);
    let acks = tokio::spawn(async move {
        while let Some((number, receipt)) = receipts.recv().await {
            if receipt.wait().await.is_err() {
                return;
            }
            // A client that is gone hears it at its next connection; the rest is waited for all the same.
            let _ = writer.write_all(format!("ack {number}\n").as_bytes()).await;
        }
    });
    let mut lines = Lines::new(feed.max_line_bytes.saturating_add(21));
    let mut numbered = Numbered { feed, last, batch: Batch::new(), wrong: None };
    let mut from = end + 1;
    loop {
        let now = now_us();
        numbered.batch.reserve(filled + filled / 8);
        let found = lines.feed(&buffer[from.min(filled)..filled], |line| numbered.take(line, now));
        feed.count_cut(found.cut);
        from = 0;
        let mut batch = std::mem::take(&mut numbered.batch);
        if !batch.is_empty() {
            // Short enough for a note, by the check above.
            let _ = batch.note(&key, &SourceNote::now(numbered.last).encode(&[]));
            let Ok(receipt) = feed.log.write(batch, true).await else { break };
            if under_way.send((numbered.last, receipt)).await.is_err() {
                break;
            }
        }
        if let Some(what) = numbered.wrong {
            tracing::warn!(log = feed.log.name(), client = id, what, "a client is sent away");
            break;
        }
        filled = tokio::select! {
            biased;
            () = feed.stop.cancelled() => break,
            () = replaced.cancelled() => break,
            read = reader.read(&mut buffer) => match read {
                Ok(bytes) if bytes > 0 => bytes,
                _ => break,
            },
        };
    }
    drop(under_way);
    let _ = acks.await;
}
