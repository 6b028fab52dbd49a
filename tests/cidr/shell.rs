//! The shell on a terminal, queries that nobody waits for any more, and the commands that look after a store.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;

use super::support::{ECCLUSTER, clean, eventually, fails, ok};
use super::{Node, SETTINGS, conf};

/// The shell of a node on a terminal of twelve lines.
struct Terminal {
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn open(node: &Node, pager: &str) -> Self {
        let size = Winsize { ws_row: 12, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        // A session of its own, whose terminal it is: Ctrl-C becomes a signal there.
        let mut command = Command::new("setsid");
        clean(&mut command, &node.home);
        command.args(["--ctty", "--wait", ECCLUSTER, "cidr"]).env("ECCLUSTER_RUN", node.home.join("run"));
        command.env("TERM", "xterm").env("PAGER", pager);
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        let keys = File::from(pty.master);
        let (mut screen, seen) = (keys.try_clone().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let all = seen.clone();
        std::thread::spawn(move || {
            let mut some = [0; 4_096];
            // The last process that has the terminal open ends this.
            while let Ok(bytes @ 1..) = screen.read(&mut some) {
                all.lock().unwrap().extend_from_slice(&some[..bytes]);
            }
        });
        Self { keys, seen, child }
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Presses keys and forgets what was on the screen.
    fn press(&mut self, keys: &str) {
        self.seen.lock().unwrap().clear();
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Presses keys, twice a second, until something has happened.
    fn presses<T>(&mut self, keys: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let mut looks = 0;
        eventually(&format!("{keys:?} does something"), || {
            if looks % 100 == 0 {
                // The terminal may have gone meanwhile.
                let _ = self.keys.write_all(keys.as_bytes());
            }
            looks += 1;
            done(self)
        })
    }

    /// Waits for a text and then for the next prompt: keys that come before it are not read as keys.
    #[track_caller]
    fn shows(&self, text: &str) -> String {
        let place = |screen: &str| if text.is_empty() { Some(0) } else { screen.rfind(text) };
        let prompted = |screen: &String| place(screen).is_some_and(|place| screen[place..].contains("cidr> "));
        eventually(&format!("the terminal shows {text:?}"), || Some(self.screen()).filter(prompted))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("on the terminal:\n{}", self.screen());
        }
    }
}

/// A node that counted many addresses.
fn crowded(top: &tempfile::TempDir, addresses: u32) -> Node {
    let node = Node::start(top.path(), &conf(top, &[("default/cidr.toml", SETTINGS)]), "n1");
    let lines = (0..addresses).map(|n| format!("big 10.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255));
    node.add(&lines.collect::<String>());
    node.has_sum("big", i64::from(addresses));
    node
}

fn metric(node: &Node, name: &str) -> u64 {
    let metrics = node.get("/metrics").1;
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().trim().parse().unwrap()
}

fn failed_queries(node: &Node) -> u64 {
    metric(node, "cidr_queries_failed_total")
}

/// Sixty passes over everything: all blocks of all lengths, sorted, with little memory.
const LONG: &str = "show count for 0.0.0.0/0 in big cidrsize 0 to 32 order by count";

#[test]
fn the_shell_on_a_terminal() {
    let top = tempfile::tempdir().unwrap();
    let mut node = crowded(&top, 200_000);
    // A pager that shows how a page begins, and then waits for the end of the answer.
    let mut terminal = Terminal::open(&node, "sed -n -e 1,3p -e $p");
    terminal.shows("");
    // Words and series are completed, and what was asked before comes back.
    terminal.press("sho\tcou\tfor 10.0.0.7 in bi\t\r");
    let screen = terminal.shows("10.0.0.7/32        :         1");
    assert!(screen.contains("show count for 10.0.0.7 in big"), "{screen:?}");
    terminal.press("\x1b[A\r");
    terminal.shows("10.0.0.7/32        :         1");
    // A long answer goes through the pager.
    terminal.press("show count for 10.0.0.0/24 in big\r");
    let screen = terminal.shows("10.0.0.255/32");
    assert!(screen.contains("10.0.0.2/32") && !screen.contains("10.0.0.99/32"), "{screen:?}");
    // A wrong word is pointed at, and the shell goes on.
    terminal.press("show cuont\r");
    terminal.shows("did you mean \"count\"?");
    // Ctrl-C ends the query in the daemon, and not the shell. (It also ends this pager, so that the shell may have nothing to say.)
    let before = failed_queries(&node);
    terminal.press(&format!("{LONG}\r"));
    eventually("the query is ended", || {
        terminal.keys.write_all(b"\x03").unwrap();
        (failed_queries(&node) > before).then_some(())
    });
    // Keys that came together with a Ctrl-C may be lost with it: they are pressed again.
    let answered = "10.0.0.8/32        :         1";
    terminal.presses("show count for 10.0.0.8 in big\r", |terminal| terminal.screen().contains(answered).then_some(()));
    let status = terminal.presses("\x04", |terminal| terminal.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let history = std::fs::read_to_string(node.home.join(".local/state/eccluster/cidr_history")).unwrap();
    assert!(history.contains("show count for 10.0.0.7 in big") && history.contains(LONG), "{history}");

    // A client that goes away in the middle of an answer ends its query.
    let before = failed_queries(&node);
    let mut client = TcpStream::connect(node.address("")).unwrap();
    let path = LONG.replace(' ', "+");
    client.write_all(format!("GET /query?q={path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    assert!(client.read(&mut [0; 256]).unwrap() > 0, "the answer begins");
    drop(client);
    eventually("the query of a client that left is ended", || (failed_queries(&node) > before).then_some(()));
    node.end(Signal::SIGTERM);
}

#[test]
fn whoever_reads_a_page_for_long_or_leaves_it_keeps_no_query_waiting() {
    let top = tempfile::tempdir().unwrap();
    let mut node = crowded(&top, 200_000);
    let (pager, go) = (node.home.join("pager"), node.home.join("go"));
    let script = format!("until [ -e {} ]; do sleep 0.02; done\nexec sed -n '$p'\n", go.display());
    std::fs::write(&pager, script).unwrap();
    let answered = || metric(&node, "cidr_queries_total");
    let mut terminal = Terminal::open(&node, &format!("sh {}", pager.display()));
    terminal.shows("");
    let before = answered();
    terminal.press("show count for 10.0.0.0/8 in big\r");
    eventually("the query has ended before a line was read", || (answered() > before).then_some(()));
    std::fs::write(&go, "").unwrap();
    terminal.shows("10.3.13.63/32");

    let mut terminal = Terminal::open(&node, "head -n 2");
    terminal.shows("");
    let before = failed_queries(&node);
    terminal.press(&format!("{LONG}\r"));
    eventually("the query that nobody reads is ended", || (failed_queries(&node) > before).then_some(()));
    terminal.shows("");
    node.end(Signal::SIGTERM);
}

#[test]
fn a_store_is_exported_verified_and_repaired() {
    let top = tempfile::tempdir().unwrap();
    let mut node = crowded(&top, 1_000);
    let out = node.home.join("out");
    let exported = ok(node.cidr(&["export", "--json", "--to"]).arg(&out));
    assert!(exported.contains("\"rows\":1000"), "{exported}");
    let of_series: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(of_series.len() == 1 && of_series[0].ends_with("series=big"), "{of_series:?}");
    assert!(ok(&mut node.cidr(&["verify"])).contains(" 0 damaged"));
    node.end(Signal::SIGTERM);

    // A directory without its manifest is not opened; a repair makes one, and puts aside what is damaged.
    let windows = node.home.join("data/windows");
    std::fs::remove_file(windows.join("manifest")).unwrap();
    let dir = windows.display().to_string();
    let words = fails(&mut node.cidr(&["verify", "--dir", &dir]));
    assert!(words.contains("repair"), "{words}");
    let repaired = ok(&mut node.cidr(&["repair", "--dir", &dir]));
    assert!(ok(&mut node.cidr(&["verify", "--dir", &dir])).contains(" 0 damaged"), "{repaired}");
    node.spawn();
    node.has_sum("big", 1_000);
    node.end(Signal::SIGTERM);
    let file = std::fs::read_dir(&windows).unwrap().map(|entry| entry.unwrap().path());
    let file = file.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("big.")).min().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let found = node.cidr(&["verify", "--dir", &dir]).output().unwrap();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let said = String::from_utf8_lossy(&[found.stdout, found.stderr].concat()).into_owned();
    assert!(found.status.code() == Some(1) && said.contains(&name), "{said}");
    std::fs::remove_file(windows.join("manifest")).unwrap();
    let repaired = ok(&mut node.cidr(&["repair", "--dir", &dir]));
    assert!(windows.join("damaged").join(&name).exists(), "{repaired}");
}
