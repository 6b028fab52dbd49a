//! Every kind of source.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;

use crate::lab::{Lab, check_sources, eventually, free_port};

#[test]
fn syslog_pipes_and_plain_sockets() {
    let ip = format!("127.99.{}.1", std::process::id() % 250);
    let (udp, tcp) = (free_port(&ip), free_port(&ip));
    let conf = format!(
        r#"
        [log.udp]
        input = "syslog:udp://{ip}:{udp}"
        [log.tcp]
        input = "syslog:tcp://{ip}:{tcp}"
        [log.dev]
        input = "syslog:unix:{{dir}}/devlog"
        max_line = "128B"
        [log.pipe]
        input = "fifo:{{dir}}/pipe"
        [log.plain]
        input = "unix:{{dir}}/plain"
        max_line = "128B"
        [managers.n1]
        logfile = "{{out}}/%{{l}}"
        "#
    );
    let mut lab = Lab::new(&["n1"], &conf);
    lab.start("n1");
    eventually("the inputs listen", || {
        let there = ["devlog", "pipe", "plain"].iter().all(|name| lab.path(name).exists());
        (there && TcpStream::connect((ip.as_str(), tcp)).is_ok()).then_some(())
    });
    let datagram = UdpSocket::bind((ip.as_str(), 0)).unwrap();
    datagram.send_to(b"<34>1 2026-01-02T03:04:05Z h a - - - new form", (ip.as_str(), udp)).unwrap();
    datagram.send_to(b"<13>Jan  2 03:04:05 host cron[7]: old form\n", (ip.as_str(), udp)).unwrap();
    let mut stream = TcpStream::connect((ip.as_str(), tcp)).unwrap();
    stream.write_all(b"<1>one line\n13 <2>a: counted").unwrap();
    drop(stream);
    let local = UnixDatagram::unbound().unwrap();
    local.send_to(b"<13>Jan  2 03:04:05 cron: local\0", lab.path("devlog")).unwrap();
    local.send_to(format!("<13>x: {}", "y".repeat(300)).as_bytes(), lab.path("devlog")).unwrap();
    fs::OpenOptions::new().write(true).open(lab.path("pipe")).unwrap().write_all(b"through\nthe pipe\n").unwrap();
    let mut plain = std::os::unix::net::UnixStream::connect(lab.path("plain")).unwrap();
    plain.write_all(format!("short\n{}\nno end", "z".repeat(200)).as_bytes()).unwrap();
    drop(plain);

    let file = |log: &str, lines: usize| {
        eventually(&format!("{lines} lines of {log}"), || {
            let found = lab.lines(log);
            (found.len() >= lines).then_some(found)
        })
    };
    let mut of_udp = file("udp", 2);
    of_udp.sort();
    assert!(of_udp[0].starts_with("<13>1 ") && of_udp[0].ends_with(" host cron 7 - - old form"), "{of_udp:?}");
    assert_eq!(of_udp[1], "<34>1 2026-01-02T03:04:05Z h a - - - new form");
    let of_tcp = file("tcp", 2);
    assert!(of_tcp[0].starts_with("<1>1 ") && of_tcp[0].ends_with(" one - - - - line"), "{of_tcp:?}");
    assert!(of_tcp[1].ends_with(" a - - - counted"), "{of_tcp:?}");
    let of_dev = file("dev", 2);
    assert!(of_dev[0].ends_with(" n1 cron - - - local"), "{of_dev:?}");
    assert!(of_dev[1].contains(" [logd: cut, the line had "), "{of_dev:?}");
    assert_eq!(file("pipe", 2), ["through", "the pipe"]);
    let of_plain = file("plain", 3);
    assert_eq!((of_plain[0].as_str(), of_plain[2].as_str()), ("short", "no end"));
    assert_eq!(of_plain[1], format!("{} [logd: cut, the line had 200 bytes]", "z".repeat(128)));
}

/// Lines `a 1`, `a 2`, … for a file, each in two writes: a reader sees half of a line.
struct Program {
    last: u64,
}

impl Program {
    fn write_to(&mut self, file: &mut fs::File, lines: u64) {
        for _ in 0..lines {
            self.last += 1;
            write!(file, "a ").unwrap();
            writeln!(file, "{}", self.last).unwrap();
        }
    }

    fn write(&mut self, lab: &Lab, lines: u64) {
        self.write_to(&mut appending(lab, "app/a.log"), lines);
    }
}

fn appending(lab: &Lab, name: &str) -> fs::File {
    fs::OpenOptions::new().append(true).create(true).open(lab.path(name)).unwrap()
}

/// Renamed, truncated, added to while nobody looks.
#[test]
fn files_are_followed_through_rotation_and_kills() {
    let conf = r#"
        [log.app]
        input = "file:{dir}/app/*.log*"
        [managers.n1]
        logfile = "{out}/%{l}"
    "#;
    let mut lab = Lab::new(&["n1"], conf);
    fs::create_dir_all(lab.path("app")).unwrap();
    let mut program = Program { last: 0 };
    program.write(&lab, 500);
    lab.start("n1");
    let all_there = |lab: &Lab, last: u64| {
        eventually("every line", || (lab.lines("app").len() as u64 >= last).then_some(()));
    };
    for round in 0..6 {
        program.write(&lab, 300);
        if round % 2 == 1 {
            // To a name that does not match: what the program still writes there is read all the same.
            all_there(&lab, program.last);
            let mut open = appending(&lab, "app/a.log");
            fs::rename(lab.path("app/a.log"), lab.path(&format!("app/old.{round}"))).unwrap();
            program.write_to(&mut open, 300);
            program.write(&lab, 300);
            continue;
        }
        fs::rename(lab.path("app/a.log"), lab.path(&format!("app/a.log.{round}"))).unwrap();
        program.write(&lab, 300);
        lab.kill("n1");
        program.write(&lab, 200);
        fs::rename(lab.path("app/a.log"), lab.path(&format!("app/a.log.{round}.away"))).unwrap();
        program.write(&lab, 200);
        lab.start("n1");
    }
    program.write(&lab, 10);
    let written = program.last;
    all_there(&lab, written);
    let mut lines = lab.lines("app");
    // Two files at once have no order between them; each line is there once all the same.
    lines.sort_by_key(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    check_sources(&lines, &BTreeMap::from([("a".into(), written)]));

    // Truncated in place, once everything was read.
    fs::File::create(lab.path("app/a.log")).unwrap();
    fs::write(lab.path("app/a.log"), "b 1\nb 2\n").unwrap();
    eventually("the truncated file", || lab.lines("app").contains(&"b 2".into()).then_some(()));
    lab.stop("n1");
    lab.start("n1");
    appending(&lab, "app/a.log").write_all(b"b 3\n").unwrap();
    eventually("it goes on", || lab.lines("app").contains(&"b 3".into()).then_some(()));
    let after: Vec<String> = lab.lines("app").into_iter().filter(|line| line.starts_with('b')).collect();
    assert_eq!(after, ["b 1", "b 2", "b 3"]);
}
