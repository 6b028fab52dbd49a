//! Following a repository: events, commands, restarts of either side.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::session::{DEADLINE, Server, Session};

/// A watch that runs beside the test; its lines come through a channel.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(session: &Session<'_>, args: &[&str]) -> Watch {
        let mut command = session.command(&[&["watch"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("eccfg runs");
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Watch { child, lines }
    }

    /// Waits for a line that contains `words`.
    fn wait_for(&self, words: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{words:?} never came; seen: {seen:#?}"),
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }
}

fn commit(session: &Session<'_>, path: &str, text: &str) {
    let place = session.dir().join("a").join(path);
    std::fs::create_dir_all(place.parent().expect("a parent")).expect("directories");
    std::fs::write(place, text).expect("a file");
    let output = session
        .command(&["commit", "--wc", "a", "--add-all", "-m", &format!("{path} is {text}")])
        .output()
        .expect("eccfg runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn events_and_commands() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    commit(&session, "default/web/a", "1");
    commit(&session, "default/mail/b", "2");
    commit(&session, "default/web/a", "3");
    session.run("", &["watch", "--after", "1", "--count", "3"]);
    session.run("", &["watch", "--after", "1", "--count", "2", "--path", "default/web/**"]);
    session.run("", &["watch", "--after", "1", "--count", "1", "--json", "--path", "default/mail/*"]);
    let command = "echo \"$EC_REPO $EC_REVISION ${#EC_COMMIT}\"";
    session
        .run("", &["watch", "--quiet", "--after", "1", "--count", "2", "--path", "default/web/*", "--exec", command]);
    session.say("a command that fails is reported and does not end the watch");
    session.run("", &["watch", "--quiet", "--after", "1", "--count", "3", "--exec", "test $EC_REVISION != 3"]);
    session.run("", &["watch", "--repo", "nosuch"]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn a_watch_survives_the_server() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    let watch = Watch::start(&session, &["--after", "1"]);
    commit(&session, "default/x", "1");
    assert!(watch.wait_for("r2 ").contains("default/x is 1"));
    server.kill();
    watch.wait_for("note: the server is lost");
    server.run();
    watch.wait_for("note: a server answers again");
    commit(&session, "default/x", "2");
    assert!(watch.wait_for("r3 ").contains("default/x is 2"));
    watch.kill();
}

#[test]
fn a_state_file_misses_no_revision() {
    let server = Server::start();
    let session = Session::new(&server);
    session.checkout("a");
    let done = session.dir().join("done");
    let exec = format!("echo $EC_REVISION >> {}", done.display());
    let state = session.dir().join("state");
    let args = ["--state", state.to_str().expect("UTF-8"), "--exec", &exec];

    let first = Watch::start(&session, &args);
    wait_until(|| state.exists());
    commit(&session, "default/x", "1");
    wait_until(|| std::fs::read_to_string(&state).is_ok_and(|text| text.contains("2")));
    first.kill();
    commit(&session, "default/x", "2");
    commit(&session, "default/x", "3");
    let second = Watch::start(&session, &args);
    wait_until(|| std::fs::read_to_string(&state).is_ok_and(|text| text.contains("4")));
    second.kill();
    assert_eq!(std::fs::read_to_string(&done).expect("a file"), "2\n3\n4\n");
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it never happened");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
