//! A server of one repository: the protocol of this crate behind the least HTTP that serves it, with a committer that
//! decides about pushes the way the real one does, in small.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use repos::protocol::receive_pack::{self, Outcome, Push, ReceiveLimits, RefOutcome};
use repos::protocol::upload_pack::{self, Served, UploadLimits};
use repos::protocol::{Advertised, Service, Version, decode_body};
use repos::{CheckError, Oid, RefMap, RefName, Store, TreeRules};

use super::git::{Repo, Sandbox};
use super::http::Request;

pub struct Server {
    pub state: Arc<State>,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub struct State {
    pub store: Store,
    pub refs: Mutex<RefMap>,
    pub head: RefName,
    pub upload: UploadLimits,
    pub receive: ReceiveLimits,
    /// What was served, in order, with the version that was spoken.
    pub log: Mutex<Vec<(Version, Served)>>,
    /// Whether a compressed request came in.
    pub saw_gzip: AtomicBool,
    pub saw_chunks: AtomicBool,
}

impl Server {
    /// An empty repository.
    pub fn empty(sandbox: &Sandbox) -> Server {
        let store = Store::init(&sandbox.path("server.git")).unwrap();
        Server::start(State {
            store,
            refs: Mutex::default(),
            head: RefName::main(),
            upload: UploadLimits::default(),
            receive: ReceiveLimits::default(),
            log: Mutex::default(),
            saw_gzip: AtomicBool::new(false),
            saw_chunks: AtomicBool::new(false),
        })
    }

    /// A repository with everything that `from` has.
    pub fn with(sandbox: &Sandbox, from: &Repo) -> Server {
        let server = Server::empty(sandbox);
        server.import(from);
        server
    }

    pub fn start(state: State) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::new(state), Arc::new(AtomicBool::new(false)));
        let (served, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = served.clone();
                // Connections do not wait for each other: git opens a second one while the first is still open.
                std::thread::spawn(move || stream.and_then(|stream| answer(&state, stream)));
            }
        });
        Server { state, address, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/repo.git", self.address)
    }

    /// Takes over objects and references of a repository of real git.
    pub fn import(&self, from: &Repo) {
        let pack = from.git_with_input(&["pack-objects", "--all", "--stdout", "-q"], b"");
        self.state.store.install_pack(&pack).unwrap();
        *self.state.refs.lock().unwrap() = from.refs();
    }

    pub fn get(&self, name: &str) -> Option<Oid> {
        self.state.refs.lock().unwrap().get(name).copied()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to stop.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn answer(state: &State, stream: TcpStream) -> io::Result<()> {
    let Some(request) = Request::read(stream)? else { return Ok(()) };
    let version = Version::from_header(request.header("git-protocol").map(str::as_bytes));
    let encoding = request.header("content-encoding").map(str::to_owned);
    state.saw_gzip.fetch_or(encoding.is_some(), Ordering::SeqCst);
    state.saw_chunks.fetch_or(request.header("transfer-encoding").is_some(), Ordering::SeqCst);
    let what = request.path.strip_prefix("/repo.git/").unwrap_or_default().to_owned();
    let (method, query) = (request.method.clone(), request.query.clone());
    let (body, mut out) = request.into_parts()?;
    let mut body = decode_body(encoding.as_deref(), body, 1 << 30)?;

    let refs = state.refs.lock().unwrap().clone();
    let shown = Advertised { refs: &refs, head: &state.head };
    let advertised = query.strip_prefix("service=").and_then(Service::from_name);
    match (method.as_str(), what.as_str(), advertised) {
        ("GET", "info/refs", Some(service)) => {
            head(&mut out, service.advertisement_type())?;
            match service {
                Service::UploadPack => upload_pack::advertise(&state.store, version, shown, &mut out).unwrap(),
                Service::ReceivePack => receive_pack::advertise(version, shown, &mut out).unwrap(),
            }
        }
        ("POST", "git-upload-pack", _) => {
            head(&mut out, Service::UploadPack.result_type())?;
            match upload_pack::serve(&state.store, shown, version, &mut body, &mut out, &state.upload) {
                Ok(served) => state.log.lock().unwrap().push((version, served)),
                Err(error) => println!("upload-pack: {error} ({error:?})"),
            }
        }
        ("POST", "git-receive-pack", _) => {
            head(&mut out, Service::ReceivePack.result_type())?;
            match receive_pack::read(&state.store, &mut body, &state.receive) {
                Ok(push) => {
                    let outcome = commit(state, &push);
                    receive_pack::report(&push, &outcome, &mut out).unwrap();
                }
                Err(error) => receive_pack::refuse(&error, &mut out).unwrap(),
            }
        }
        _ => out.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")?,
    }
    out.flush()
}

fn head(out: &mut TcpStream, content_type: &str) -> io::Result<()> {
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n"
    )
}

/// Decides about a push, and does what it decided.
fn commit(state: &State, push: &Push) -> Outcome {
    if let Err(reason) = &push.received {
        return Outcome::unpack_failed(push, reason.clone());
    }
    let mut refs = state.refs.lock().unwrap();
    let old_tips: Vec<Oid> = refs.values().copied().collect();
    let new_tips: Vec<Oid> =
        push.commands.iter().filter(|command| !command.is_delete()).map(|command| command.new).collect();
    if let Some(quarantine) = &push.quarantine {
        match quarantine.check_new(&old_tips, &new_tips, &TreeRules::default()) {
            Ok(()) => {}
            Err(CheckError::Refused(refusals)) => {
                let lines: Vec<_> =
                    refusals.iter().map(|refusal| format!("{}: {}", refusal.path, refusal.reason)).collect();
                return Outcome::all_refused(push, "refused by the rules").with_message(lines.join("\n"));
            }
            Err(CheckError::Failed(error)) => return Outcome::all_refused(push, error.to_string()),
        }
    }
    let mut outcome = Outcome::all_done(push);
    for (command, outcome) in push.commands.iter().zip(&mut outcome.refs) {
        let old = refs.get(&command.name).copied().unwrap_or(Oid::NULL);
        if old != command.old {
            *outcome = RefOutcome::Refused("it has moved".into());
        } else if command.name.as_str().contains("locked") {
            *outcome = RefOutcome::Refused("this branch is locked".into());
        }
    }
    if outcome.refs.iter().any(|outcome| *outcome != RefOutcome::Done) {
        outcome = outcome.with_message("the branch is locked\nask the administrator: ü");
    }
    let outcome = outcome.made_atomic(push);
    if let Some(pack) = push.quarantine.as_ref().and_then(|quarantine| quarantine.pack_file()) {
        state.store.install_pack_file(pack).unwrap();
    }
    for (command, _) in push.commands.iter().zip(&outcome.refs).filter(|(_, outcome)| **outcome == RefOutcome::Done) {
        if command.is_delete() {
            refs.remove(&command.name);
        } else {
            refs.insert(command.name.clone(), command.new);
        }
    }
    outcome
}
