//! rsyslog as people run it for this who have tuned it: a disk-assisted queue on the node, RELP to the manager, one file there.
//!
//! With RELP's usual window of 128 messages the two wait for each other 40 ms at a time (Nagle's algorithm against delayed acknowledgements): 2,700 to
//! 2,900 lines per second with 14 µs of CPU each. A larger window and larger batches make that 40,000 to 50,000; beyond these sizes nothing more comes.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::loss::{self, Loss, Victim};
use super::{Outcome, cpu, line, peak_kib, wait_for};

/// Messages that RELP sends before it waits for answers.
const RELP_WINDOW: u32 = 8192;
/// Messages that a queue hands on at once, and how many it holds in memory.
const BATCHES: &str = "queue.dequeueBatchSize=\"4096\" queue.size=\"200000\"";

pub struct Rsyslog {
    program: PathBuf,
    modules: PathBuf,
}

impl Rsyslog {
    /// The installed one, or the one that the environment names.
    pub fn find() -> Option<Self> {
        let program = PathBuf::from(std::env::var("RSYSLOGD").unwrap_or_else(|_| "/usr/sbin/rsyslogd".into()));
        let modules = std::env::var("RSYSLOG_MODULES").unwrap_or_else(|_| "/usr/lib/x86_64-linux-gnu/rsyslog".into());
        let modules = PathBuf::from(modules);
        (program.exists() && modules.join("omrelp.so").exists()).then_some(Self { program, modules })
    }

    fn start(&self, dir: &Path, name: &str, conf: &str) -> Child {
        let path = dir.join(format!("{name}.conf"));
        std::fs::write(&path, conf).unwrap();
        let log = std::fs::File::create(dir.join(format!("{name}.log"))).unwrap();
        Command::new(&self.program)
            .args(["-n", "-i", "NONE", "-f"])
            .arg(&path)
            .arg("-M")
            .arg(&self.modules)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// What both ends are told, and the port that takes lines.
    fn configure(dir: &Path, synced: bool) -> ([String; 2], [u16; 2]) {
        let [tcp, relp] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        for sub in ["node", "manager"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let sync = if synced { "on" } else { "off" };
        let usual = format!(
            "queue.type=\"LinkedList\" queue.filename=\"q\" queue.maxdiskspace=\"4g\" queue.saveonshutdown=\"on\" {BATCHES}"
        );
        // Synced: everything goes to disk at once, and every piece of it is synced.
        let durable = "queue.type=\"Disk\" queue.filename=\"q\" queue.maxdiskspace=\"4g\" queue.syncqueuefiles=\"on\" queue.checkpointinterval=\"1\"";
        let queue = if synced { durable.to_owned() } else { usual };
        let main_queue = format!("main_queue(queue.type=\"FixedArray\" {BATCHES})");
        let node = format!(
            "global(workDirectory=\"{0}/node\")\n{main_queue}\nmodule(load=\"imptcp\")\nmodule(load=\"omrelp\")\ninput(type=\"imptcp\" address=\"127.0.0.1\" port=\"{tcp}\" supportOctetCountedFraming=\"off\")\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\")\n\
             action(type=\"omrelp\" target=\"127.0.0.1\" port=\"{relp}\" template=\"raw\" windowSize=\"{RELP_WINDOW}\" action.resumeRetryCount=\"-1\" {queue})\n",
            dir.display()
        );
        let manager = format!(
            "global(workDirectory=\"{0}/manager\")\n{main_queue}\nmodule(load=\"imrelp\")\ninput(type=\"imrelp\" address=\"127.0.0.1\" port=\"{relp}\")\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\naction(type=\"omfile\" file=\"{0}/out\" template=\"raw\" sync=\"{sync}\")\n",
            dir.display()
        );
        ([node, manager], [tcp, relp])
    }

    /// Sends, kills one end, starts it again. A line counts as handed over when it was written to a connection that still stood.
    pub fn loss(&self, victim: Victim) -> Loss {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let (conf, [tcp, relp]) = Self::configure(dir, false);
        let mut children = [self.start(dir, "node", &conf[0]), self.start(dir, "manager", &conf[1])];
        wait_for("rsyslog listens", || TcpStream::connect(("127.0.0.1", tcp)).is_ok());
        wait_for("its manager listens", || TcpStream::connect(("127.0.0.1", relp)).is_ok());
        let begun = Instant::now();
        let sending = std::thread::spawn(move || {
            let (mut stream, mut sent) = (TcpStream::connect(("127.0.0.1", tcp)).ok(), 0);
            while begun.elapsed() < loss::SENDING {
                let text: String = (sent..sent + 100).map(|number| line(number) + "\n").collect();
                if stream.as_mut().is_some_and(|open| open.write_all(text.as_bytes()).is_ok()) {
                    sent += 100;
                } else {
                    std::thread::sleep(Duration::from_millis(5));
                    stream = TcpStream::connect(("127.0.0.1", tcp)).ok();
                }
            }
            sent
        });
        wait_for("the time to die", || begun.elapsed() >= loss::DEATH);
        let place = victim.place();
        children[place].kill().unwrap();
        children[place].wait().unwrap();
        children[place] = self.start(dir, ["node", "manager"][place], &conf[place]);
        let handed_over = sending.join().unwrap();
        let loss = Loss::count("rsyslog, RELP", victim, handed_over, &dir.join("out"));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        loss
    }

    pub fn run(&self, lines: u64, synced: bool) -> Outcome {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let ([node, manager], [tcp, relp]) = Self::configure(dir, synced);
        let mut children = [self.start(dir, "node", &node), self.start(dir, "manager", &manager)];
        wait_for("rsyslog listens", || TcpStream::connect(("127.0.0.1", tcp)).is_ok());
        wait_for("its manager listens", || TcpStream::connect(("127.0.0.1", relp)).is_ok());
        let file = dir.join("out");
        let count = || std::fs::metadata(&file).map_or(0, |found| found.len()) / 200;
        let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
        writeln!(stream, "{}", line(0)).unwrap();
        wait_for("the first line", || count() >= 1);
        let before = [0, 1].map(|place| cpu(children[place].id()));
        let begun = Instant::now();
        let mut out = Vec::new();
        for number in 1..=lines {
            writeln!(out, "{}", line(number)).unwrap();
            if out.len() > 64 << 10 || number == lines {
                stream.write_all(&out).unwrap();
                out.clear();
            }
        }
        // The last ones may be in a buffer that is written a second later; that second is not counted against it.
        let mut at = (count(), Instant::now());
        wait_for("every line", || {
            let now = count();
            if now != at.0 {
                at = (now, Instant::now());
            }
            now > lines || at.1.elapsed() > Duration::from_secs(20)
        });
        let took = at.1.duration_since(begun);
        let cpu = [0, 1].map(|place| cpu(children[place].id()) - before[place]);
        let peak_kib = [0, 1].map(|place| peak_kib(children[place].id()));
        let missing = (lines + 1).saturating_sub(count());
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Outcome {
            name: format!("rsyslog, RELP{}", if synced { ", synced" } else { "" }),
            lines,
            took,
            cpu,
            peak_kib,
            idle: None,
            note: if missing > 0 { format!("{missing} lines missing") } else { String::new() },
        }
    }
}
