//! The daemon's side of the control socket.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{TooLong, read_line};
use super::router::{Parts, Router};
use super::{ANSWER_LIMIT_BYTES, ControlError, Failure, Line, REQUEST_LIMIT_BYTES, Request, socket_path};
use crate::files;
use crate::lock::{DirLock, LockError, Owner};

/// Who may wait at once: a handful of people and scripts. The next is told that the daemon is busy.
const MAX_CONNECTIONS: usize = 64;
/// Parts that a slow reader may lag behind; then the handler waits.
const PARTS_QUEUE: usize = 16;
/// A reader that takes nothing for this long is dropped, so that it cannot hold one of the connections for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A command that still runs this long after the daemon was told to stop is ended; one that streams would go on for ever.
const GRACE: Duration = Duration::from_secs(2);
/// How often a silent command looks whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where and as whom to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The socket; [`ServerOptions::new`] takes the usual place.
    pub path: PathBuf,
    /// Who serves it, for those who are refused.
    pub owner: Owner,
}

impl ServerOptions {
    /// The usual socket of `program`, served for `node`.
    pub fn new(program: &str, node: &str) -> Self {
        Self { path: socket_path(program), owner: Owner::current(program, node) }
    }

    /// The same at another place.
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = path.into();
        self
    }
}

/// A bound control socket; removed when dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    _lock: DirLock,
}

impl Server {
    /// Takes the socket, replacing what a dead process left.
    pub fn bind(options: &ServerOptions) -> Result<Self, ControlError> {
        let path = &options.path;
        let dir = path.parent().unwrap_or(Path::new("."));
        files::create_dirs(dir, 0o755).map_err(|error| ControlError::Io {
            action: "make the directory of",
            path: path.clone(),
            source: std::io::Error::other(error),
        })?;
        let lock = lock(path, &options.owner)?;
        let listener = bind_private(path, dir)?;
        Ok(Self { path: path.clone(), listener, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until `stop`, then lets running commands finish.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let router = Arc::new(router);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely; trying at once would spin.
                    tracing::warn!(%error, path = %self.path.display(), "control connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                connections.spawn(refuse(stream));
                continue;
            };
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                serve_connection(stream, &router, stop).await;
                drop(place);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(path: &Path, owner: &Owner) -> Result<DirLock, ControlError> {
    let beside = path.with_extension("lock");
    DirLock::acquire_file(&beside, path, owner).map_err(|error| match error {
        LockError::Held { owner, .. } => {
            let owner = owner.map_or_else(|| "another process".into(), |owner| owner.to_string());
            ControlError::InUse { path: path.into(), owner }
        }
        error => ControlError::Lock(error),
    })
}

/// Binds inside a private directory and renames, so that the socket is never reachable with another mode than 0600.
fn bind_private(path: &Path, dir: &Path) -> Result<UnixListener, ControlError> {
    let private = dir.join(format!(".{}", std::process::id()));
    let _ = fs::remove_dir_all(&private);
    fs::DirBuilder::new().mode(0o700).create(&private).map_err(ControlError::io("prepare", path))?;
    let temporary = private.join("s");
    let bound = UnixListener::bind(&temporary)
        .and_then(|listener| {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            fs::rename(&temporary, path)?;
            Ok(listener)
        })
        .map_err(ControlError::io("listen at", path));
    let _ = fs::remove_dir_all(&private);
    bound
}

async fn refuse(mut stream: UnixStream) {
    let busy = Failure::new(format!("{MAX_CONNECTIONS} commands are running already")).code("busy");
    if let Ok(line) = to_line(&Line::Error(busy)) {
        let _ = tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&line)).await;
    }
}

async fn serve_connection(stream: UnixStream, router: &Router, stop: CancellationToken) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let Some(read) = stop.run_until_cancelled(read_line(&mut reader, REQUEST_LIMIT_BYTES)).await else { return };
        let answer = match read {
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(TooLong)) => {
                let _ = write(&mut writer, &Line::Error(Failure::new("the request is too long"))).await;
                return;
            }
            Ok(Ok(Some(line))) => match serde_json::from_slice::<Request>(&line) {
                Ok(request) => run(router, request, &mut writer, &stop).await,
                Err(error) => Err(Failure::new(format!("not a request: {error}")).code("bad-request")),
            },
        };
        let line = answer.map_or_else(Line::Error, Line::Ok);
        // An answer may have megabytes.
        let Ok(Ok(bytes)) = tokio::task::spawn_blocking(move || limited(&line)).await else { return };
        if write_bytes(&mut writer, &bytes).await.is_err() {
            return;
        }
    }
}

/// Runs one command and forwards its parts as they come. When the other side is gone, the handler is dropped.
async fn run(
    router: &Router,
    request: Request,
    writer: &mut OwnedWriteHalf,
    stop: &CancellationToken,
) -> Result<Value, Failure> {
    let (sender, mut parts) = mpsc::channel(PARTS_QUEUE);
    let running = router.run(request, Parts { sender });
    let out_of_grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(running, out_of_grace);
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            biased;
            Some(part) = parts.recv() => {
                if write(writer, &Line::Part(part)).await.is_err() {
                    return Err(Failure::new("the command that asked is gone"));
                }
            }
            answer = &mut running => {
                // What the handler sent in its last moment is still in the queue.
                while let Ok(part) = parts.try_recv() {
                    write(writer, &Line::Part(part)).await.map_err(|error| Failure::new(error.to_string()))?;
                }
                return answer;
            }
            () = &mut out_of_grace => return Err(Failure::new("the daemon is stopping").code("stopping")),
            _ = look.tick() => {
                if hung_up(writer) {
                    return Err(Failure::new("the command that asked is gone"));
                }
            }
        }
    }
}

/// True once the other side has closed its socket entirely. Having ended its requests (`nc -N`, a pipe that ran dry) is not that.
fn hung_up(writer: &OwnedWriteHalf) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stream: &UnixStream = writer.as_ref();
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let answered = poll(&mut asked, PollTimeout::ZERO);
    answered.is_ok() && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

async fn write(writer: &mut OwnedWriteHalf, line: &Line) -> std::io::Result<()> {
    write_bytes(writer, &limited(line)?).await
}

/// The line, or that it is too long for one.
fn limited(line: &Line) -> std::io::Result<Vec<u8>> {
    let bytes = to_line(line)?;
    if bytes.len() <= ANSWER_LIMIT_BYTES {
        return Ok(bytes);
    }
    to_line(&Line::Error(Failure::new("the answer is too long for one line")))
}

async fn write_bytes(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> std::io::Result<()> {
    match tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(bytes)).await {
        Ok(result) => result,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

fn to_line(line: &Line) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}
