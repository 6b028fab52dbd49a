//! logd: a node and a manager.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::loss::{self, Loss, Victim};
use super::{Outcome, cpu, disk_bytes, line, peak_kib, wait_for};

/// Services that write at once.
const CLIENTS: u64 = 4;
/// Lines that a service sends before it looks for acknowledgements again.
const WINDOW: u64 = 20_000;

/// The binary: another build than this one's by `$ECCLUSTER_BIN`, to compare the two in one run.
fn eccluster() -> PathBuf {
    std::env::var_os("ECCLUSTER_BIN").map_or_else(|| env!("CARGO_BIN_EXE_eccluster").into(), PathBuf::from)
}

fn start(dir: &Path, node: &str, address: &str) -> Child {
    std::fs::create_dir_all(dir.join(node)).unwrap();
    let log = std::fs::File::create(dir.join(node).join("log")).unwrap();
    Command::new(eccluster())
        .env("ECCLUSTER_RUN", dir.join(node).join("run"))
        .args(["logd", "run", "--identity", "/nonexistent", "--node", node, "--conf"])
        .arg(dir.join("conf"))
        .arg("--data")
        .arg(dir.join(node).join("data"))
        .arg("--cluster-key")
        .arg(dir.join("key"))
        .args(["--listen", &format!("{address}:4802")])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// One service: its share of the lines, acknowledged.
fn send(socket: &Path, client: u64, lines: u64) {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "ECLOG 1 bench-{client}").unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let (mut sent, mut acknowledged) = (0, 0);
    let mut out = Vec::new();
    while acknowledged < lines {
        out.clear();
        while sent < lines && sent < acknowledged + WINDOW {
            sent += 1;
            out.extend_from_slice(format!("{sent} {}\n", line(sent * CLIENTS + client)).as_bytes());
        }
        stream.write_all(&out).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        acknowledged = answer.trim_end().strip_prefix("ack ").unwrap().parse().unwrap();
    }
}

/// Writes what both daemons follow. A subscriber that never reads: the journal keeps everything, so that its size can be measured.
fn configure(dir: &Path) {
    std::fs::create_dir_all(dir.join("conf/global")).unwrap();
    std::fs::create_dir_all(dir.join("conf/default")).unwrap();
    std::fs::write(dir.join("key"), "5a".repeat(32)).unwrap();
    std::fs::write(
        dir.join("conf/global/cluster.toml"),
        "[node.n1]\naddress = \"127.88.0.1\"\n[node.m1]\naddress = \"127.88.0.2\"\n",
    )
    .unwrap();
    let conf = format!(
        "[log.mainlog]\nsubscribers = [\"m1\", \"never\"]\n[managers.m1]\nlogfile = \"{}/out/%{{l}}.%{{n}}\"\n",
        dir.display()
    );
    std::fs::write(dir.join("conf/default/logd.toml"), conf).unwrap();
}

const NODES: [(&str, &str); 2] = [("n1", "127.88.0.1"), ("m1", "127.88.0.2")];

/// Starts node and manager; answers them, the socket that takes lines and the file where they end up.
fn begin(dir: &Path) -> ([Child; 2], PathBuf, PathBuf) {
    configure(dir);
    let children = NODES.map(|(node, address)| start(dir, node, address));
    let socket = dir.join("n1/run/log/mainlog");
    wait_for("the node's socket", || socket.exists());
    (children, socket, dir.join("out/mainlog.n1"))
}

/// Sends, kills one end, starts it again; every line is sent until it is acknowledged.
pub fn loss(victim: Victim) -> Loss {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let (mut children, socket, file) = begin(dir);
    let begun = Instant::now();
    let sending = std::thread::spawn(move || {
        let mut acknowledged = 0;
        while begun.elapsed() < loss::SENDING {
            // The next connection begins behind what was acknowledged; what was sent twice is dropped by its number.
            if send_some(&socket, &mut acknowledged, begun).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        acknowledged
    });
    wait_for("the time to die", || begun.elapsed() >= loss::DEATH);
    let place = victim.place();
    children[place].kill().unwrap();
    children[place].wait().unwrap();
    children[place] = start(dir, NODES[place].0, NODES[place].1);
    let handed_over = sending.join().unwrap();
    let loss = Loss::count("logd, fsync at both ends", victim, handed_over, &file);
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    loss
}

/// Line `n` has the number `n + 1`, because numbers begin with 1.
fn send_some(socket: &Path, acknowledged: &mut u64, begun: Instant) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "ECLOG 1 loss")?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut sent = *acknowledged;
    while begun.elapsed() < loss::SENDING {
        let mut out = Vec::new();
        while sent < *acknowledged + WINDOW {
            sent += 1;
            out.extend_from_slice(format!("{sent} {}\n", line(sent - 1)).as_bytes());
        }
        stream.write_all(&out)?;
        let mut answer = String::new();
        if answers.read_line(&mut answer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        *acknowledged = answer.trim_end().strip_prefix("ack ").unwrap().parse().unwrap();
    }
    Ok(())
}

pub fn run(lines: u64) -> Outcome {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let (mut children, socket, file) = begin(dir);
    let length = || std::fs::metadata(&file).map_or(0, |found| found.len());

    // One line first, so that every connection is there.
    send(&socket, 99, 1);
    wait_for("the first line", || length() >= 200);
    let before = [0, 1].map(|place| cpu(children[place].id()));
    let begun = Instant::now();
    let share = lines / CLIENTS;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let socket = &socket;
            scope.spawn(move || send(socket, client, share));
        }
    });
    wait_for("every line", || length() >= (share * CLIENTS + 1) * 200);
    let took = begun.elapsed();
    let cpu = [0, 1].map(|place| cpu(children[place].id()) - before[place]);
    let payload = share * CLIENTS * 200;
    let journal = disk_bytes(&dir.join("n1/data/journal")) as f64 / payload as f64;

    // Idle: the median of single lines.
    let mut idle: Vec<Duration> = (0..15)
        .map(|number| {
            std::thread::sleep(Duration::from_millis(400));
            let (wanted, begun) = (length() + 200, Instant::now());
            send(&socket, 100 + number, 1);
            while length() < wanted {
                std::thread::sleep(Duration::from_micros(100));
            }
            begun.elapsed()
        })
        .collect();
    idle.sort_unstable();
    let peak_kib = [0, 1].map(|place| peak_kib(children[place].id()));
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    Outcome {
        name: "logd, fsync at both ends".into(),
        lines: share * CLIENTS,
        took,
        cpu,
        peak_kib,
        idle: Some(idle[idle.len() / 2]),
        note: format!("journal {journal:.2} times the payload"),
    }
}
