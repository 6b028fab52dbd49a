//! A real terminal: the password is asked for without echo, and the result is coloured.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::session::{Server, Session};

/// Starts `command` on a pseudo terminal; returns the other end.
fn on_terminal(command: &mut Command) -> (std::process::Child, File) {
    let pty = nix::pty::openpty(None, None).expect("a pseudo terminal");
    let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let child = command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end()).spawn().expect("eccfg runs");
    // The command keeps its descriptors, and with them the terminal, open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (child, File::from(pty.master))
}

/// Reads until `words` were seen, or the other side is gone.
fn read_until(terminal: &mut File, words: Option<&str>) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !words.is_some_and(|words| String::from_utf8_lossy(&text).contains(words)) {
        match terminal.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&piece[..count]),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn log_on_terminal(session: &Session<'_>, password: &str, no_color: bool) -> String {
    let mut command = session.command(&["log", "-n", "1"]);
    command.env_remove("ECCFG_PASSWORD_FILE");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let (mut child, mut terminal) = on_terminal(&mut command);
    let mut seen = read_until(&mut terminal, Some("Password of admin: "));
    assert!(seen.ends_with("Password of admin: "), "{seen:?}");
    terminal.write_all(format!("{password}\n").as_bytes()).expect("typing works");
    seen.push_str(&read_until(&mut terminal, None));
    assert!(child.wait().expect("our own child can be waited for").success(), "{seen}");
    seen
}

#[test]
fn passwords_are_not_echoed_and_results_are_coloured() {
    let server = Server::start();
    let session = Session::new(&server);
    let password = std::fs::read_to_string(server.password_file()).expect("init wrote it");
    let seen = log_on_terminal(&session, password.trim(), false);
    assert!(!seen.contains(password.trim()), "{seen:?}");
    assert!(seen.contains("\x1b[33mr1\x1b[0m"), "{seen:?}");
    let plain = log_on_terminal(&session, password.trim(), true);
    assert!(plain.contains("r1  ") && !plain.contains('\x1b'), "{plain:?}");
}
