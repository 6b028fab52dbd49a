//! A commit whose answer never comes: it is sent again under the same key, so it is committed once and its revision is learnt.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use cluster::api::Head;
use cluster::http_client::ApiClient;

use crate::session::{DEADLINE, Server, Session};

/// What stands between `eccfg` and the server. It carries everything until the server begins to answer a commit; that answer it
/// keeps, and cuts the connection once it is told to.
struct Relay {
    server: SocketAddr,
    client: ApiClient,
    before: u64,
    kept: AtomicBool,
}

impl Relay {
    fn carry(self: Arc<Relay>, client: TcpStream, keeping: Sender<()>, cut: Arc<std::sync::Mutex<Receiver<()>>>) {
        let Ok(server) = TcpStream::connect(self.server) else { return };
        let (mut from, mut to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        std::thread::spawn(move || {
            let (mut server, mut client) = (server, client);
            let mut piece = [0; 1 << 16];
            while let Ok(count @ 1..) = server.read(&mut piece) {
                // An answer to a commit comes after its revision can be seen, and so does nothing else that is kept here.
                if self.is_committed() && !self.kept.swap(true, Ordering::SeqCst) {
                    keeping.send(()).expect("the test waits for it");
                    let _ = cut.lock().expect("nobody panics with it").recv();
                    break;
                }
                if client.write_all(&piece[..count]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }

    fn is_committed(&self) -> bool {
        !self.kept.load(Ordering::SeqCst) && revision(&self.client).is_some_and(|revision| revision > self.before)
    }
}

fn revision(client: &ApiClient) -> Option<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(client.get_json::<Head>("/api/v1/repos/default/head")).ok().map(|head| head.revision)
}

#[test]
fn a_commit_whose_answer_is_lost_is_committed_once() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    let client = server.client();
    let before = revision(&client).expect("the server answers");
    std::fs::write(session.dir().join("a/default/once"), "once\n").expect("a file");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let through = format!("https://{}", listener.local_addr().expect("an address"));
    let mut command = session.command(&["commit", "--wc", "a", "--add-all", "-m", "Exactly once"]);
    command.env("ECCFG_SERVER", through).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("eccfg runs");

    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    let relay = Arc::new(Relay { server: address, client, before, kept: AtomicBool::new(false) });
    let ((keeping, kept), (cut, cuts)) = (channel(), channel());
    let cuts = Arc::new(std::sync::Mutex::new(cuts));
    let begun = Instant::now();
    while child.try_wait().expect("our own child").is_none() {
        assert!(begun.elapsed() < DEADLINE, "eccfg never ended");
        if let Ok((client, _)) = listener.accept() {
            client.set_nonblocking(false).expect("a socket");
            relay.clone().carry(client, keeping.clone(), cuts.clone());
        }
        if kept.try_recv().is_ok() {
            // The server has committed, and dies before anybody has heard of it.
            server.kill();
            server.run();
            cut.send(()).expect("the relay waits for it");
        }
        std::thread::sleep(Duration::from_millis(5));
    }

    let output = child.wait_with_output().expect("our own child");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(relay.kept.load(Ordering::SeqCst), "no answer was kept, so nothing was shown");
    assert!(said.contains(&format!("Committed revision {}\n", before + 1)), "{said}");
    assert_eq!(revision(&server.client()), Some(before + 1));
    let log = session.command(&["log", "-n", "5"]).output().expect("eccfg runs");
    assert_eq!(String::from_utf8_lossy(&log.stdout).matches("Exactly once").count(), 1);
}
