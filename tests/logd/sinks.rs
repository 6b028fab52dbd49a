//! Sinks beside the real programs that they are for, killed like everything else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::lab::{Client, Lab, Program, check_at_least_once, eventually, free_port, text};

/// A client of NATS as small as can be: requests, one after the other.
struct Nats {
    stream: BufReader<TcpStream>,
}

impl Nats {
    fn connect(address: &str) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        let mut nats = Self { stream: BufReader::new(stream) };
        let hello = "CONNECT {\"verbose\":false,\"user\":\"logd\",\"pass\":\"secret\"}\r\nSUB answers 1\r\nPING\r\n";
        nats.stream.get_mut().write_all(hello.as_bytes()).ok()?;
        while nats.line()? != "PONG" {}
        Some(nats)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.stream.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    }

    fn ask(&mut self, subject: &str, body: &Value) -> Option<Value> {
        let body = body.to_string();
        let request = format!("PUB {subject} answers {}\r\n{body}\r\n", body.len());
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        loop {
            let line = self.line()?;
            if let Some(length) = line.strip_prefix("MSG answers 1 ") {
                let mut answer = vec![0; length.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut answer).ok()?;
                return Some(serde_json::from_slice(&answer).unwrap());
            }
            assert!(!line.starts_with("-ERR"), "{line}");
        }
    }

    /// Messages of the stream `LOGS` with a subject, in order.
    fn messages(&mut self, subject: &str) -> Option<Vec<String>> {
        let state = self.ask("$JS.API.STREAM.INFO.LOGS", &json!({}))?;
        let last = state["state"]["last_seq"].as_u64()?;
        let mut found = Vec::new();
        for sequence in 1..=last {
            let answer = self.ask("$JS.API.STREAM.MSG.GET.LOGS", &json!({ "seq": sequence }))?;
            if answer["message"]["subject"] == subject {
                found.push(String::from_utf8(base64(answer["message"]["data"].as_str()?)).unwrap());
            }
        }
        Some(found)
    }

    fn count(&mut self) -> Option<u64> {
        self.ask("$JS.API.STREAM.INFO.LOGS", &json!({}))?["state"]["messages"].as_u64()
    }
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | DIGITS.iter().position(|digit| *digit == byte).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

/// Sends until told to stop; answers the last number.
fn sending(lab: &Lab, node: &str, log: &str, id: &str, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut client, stop) = (Client::new(lab.socket(node, log), id), stop.clone());
    std::thread::spawn(move || {
        let mut last = 0;
        while !stop.load(Ordering::Relaxed) {
            last += 20;
            client.send_until(last);
        }
        last
    })
}

fn lag(lab: &Lab, node: &str, subscriber: &str) -> u64 {
    let logs = lab.run(node, &["logs", "--json"]);
    let Ok(nodes) = serde_json::from_slice::<Value>(&logs.stdout) else { return u64::MAX };
    let logs = nodes[0]["logs"].as_array().unwrap();
    let subscribers = logs.iter().flat_map(|log| log["subscribers"].as_array().unwrap());
    subscribers.filter(|one| one["name"] == subscriber).map(|one| one["records"].as_u64().unwrap()).sum()
}

/// The bus is killed, logd is killed, a second log is added; the stream has everything.
#[test]
fn jetstream_gets_every_line() {
    let conf = |logs: &str| {
        format!(
            "[log.a]\nsubscribers = []\n[log.b]\nsubscribers = []\n[sinks.bus]\nurl = \"nats://{{nats}}\"\nlogs = [{logs}]\n"
        )
    };
    let mut lab = Lab::new(&["n1"], "");
    let address = format!("{}:{}", lab.address("n1"), free_port(lab.address("n1")));
    let configure = |lab: &mut Lab, logs: &str| lab.configure(&conf(logs).replace("{nats}", &address));
    configure(&mut lab, "\"a\"");
    // What the server must be told lies on the node, not in the configuration.
    fs::create_dir_all(lab.path("sinks")).unwrap();
    fs::write(lab.path("sinks/bus"), "logd:secret\n").unwrap();
    let settings = format!(
        "listen: \"{address}\"\njetstream {{ store_dir: {:?} }}\nauthorization {{ user: logd, password: secret }}\n",
        lab.path("jetstream")
    );
    fs::write(lab.path("nats.conf"), settings).unwrap();
    let start = |lab: &Lab| {
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(lab.path("nats.conf")).arg("-l").arg(lab.path("nats.log"));
        Program::start(&mut command)
    };
    let Some(bus) = start(&lab) else { return };
    let connect = || eventually("the bus answers", || Nats::connect(&address));
    let made = connect().ask("$JS.API.STREAM.CREATE.LOGS", &json!({ "name": "LOGS", "subjects": ["logs.>"] })).unwrap();
    assert!(made["error"].is_null(), "{made}");

    lab.start("n1");
    let stop = Arc::new(AtomicBool::new(false));
    let sender = sending(&lab, "n1", "a", "one", &stop);
    let some_more = |than: u64| {
        let mut nats = connect();
        eventually("more messages", || nats.count().filter(|count| *count > than + 200))
    };
    let before = some_more(0);
    lab.kill("n1");
    lab.start("n1");
    let before = some_more(before);
    bus.kill();
    eventually("the sink says that it waits", || {
        text(&lab.run("n1", &["metrics"])).contains("logd_sink_waiting{sink=\"bus\",log=\"a\"} 1").then_some(())
    });
    let _bus = start(&lab).unwrap();
    some_more(before);
    Client::new(lab.socket("n1", "b"), "two").send_until(30);
    configure(&mut lab, "\"a\", \"b\"");
    stop.store(true, Ordering::Relaxed);
    let last = sender.join().unwrap();
    eventually("nothing is left", || (lag(&lab, "n1", "bus") == 0).then_some(()));
    let mut nats = connect();
    eventually("the second log", || (nats.messages("logs.b.n1")?.len() >= 30).then_some(()));
    check_at_least_once(&nats.messages("logs.a.n1").unwrap(), &BTreeMap::from([("one".into(), last)]));
    check_at_least_once(&nats.messages("logs.b.n1").unwrap(), &BTreeMap::from([("two".into(), 30)]));
    let logs = text(&lab.run("n1", &["logs"]));
    assert!(logs.contains("sink bus"), "{logs}");
    let refused = lab.run("n1", &["subscriber", "remove", "bus"]);
    assert!(text(&refused).contains("the sink bus"), "{}", text(&refused));
    lab.stop("n1");
}

/// rsyslog is killed and comes back; what it had not written comes again.
#[test]
fn rsyslog_over_tls_gets_every_line() {
    let mut lab = Lab::new(&["n1", "m1"], "");
    lab.certify();
    let address = format!("127.0.0.1:{}", free_port("127.0.0.1"));
    lab.configure(&format!("[log.a]\nsubscribers = []\n[sinks.siem]\nurl = \"syslog+tls://{address}\"\n"));
    let out = lab.path("received");
    // A queue in memory would lose on a kill what it has taken; without one a line is in the file before the next is read.
    let settings = format!(
        r#"
        global(workDirectory="{dir}" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{identity}/ca.pem"
               defaultNetstreamDriverCertFile="{identity}/cert.pem" defaultNetstreamDriverKeyFile="{identity}/key.pem")
        main_queue(queue.type="Direct")
        module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
        input(type="imtcp" address="127.0.0.1" port="{port}")
        template(name="text" type="string" string="%hostname% %app-name%|%msg%\n")
        action(type="omfile" file="{out}" template="text" asyncWriting="off" flushOnTXEnd="on")
        "#,
        dir = lab.dir.path().display(),
        identity = lab.identity("m1").display(),
        port = address.rsplit_once(':').unwrap().1,
        out = out.display(),
    );
    fs::write(lab.path("rsyslog.conf"), settings).unwrap();
    let start = |lab: &Lab| {
        let mut command = Command::new("/usr/sbin/rsyslogd");
        command.args(["-n", "-i", "NONE", "-f"]).arg(lab.path("rsyslog.conf"));
        Program::start(&mut command)
    };
    let Some(rsyslog) = start(&lab) else { return };
    lab.start("n1");
    let stop = Arc::new(AtomicBool::new(false));
    let sender = sending(&lab, "n1", "a", "one", &stop);
    let received = || {
        let text = fs::read_to_string(&out).unwrap_or_default();
        // The last one may be half of one, where rsyslog was killed; its whole comes again.
        let lines = text.lines().filter_map(|line| line.strip_prefix("n1 a|").map(|line| line.trim().to_owned()));
        lines.collect::<Vec<String>>()
    };
    let some_more =
        |than: usize| eventually("more lines", || Some(received().len()).filter(|count| *count > than + 200));
    let before = some_more(0);
    rsyslog.kill();
    let waits = || text(&lab.run("n1", &["metrics"])).contains("logd_sink_waiting{sink=\"siem\",log=\"a\"} 1");
    eventually("the sink says that it waits", || waits().then_some(()));
    let _rsyslog = start(&lab).unwrap();
    some_more(before);
    lab.kill("n1");
    lab.start("n1");
    stop.store(true, Ordering::Relaxed);
    let last = sender.join().unwrap();
    eventually("nothing is left", || (lag(&lab, "n1", "siem") == 0).then_some(()));
    let whole: Vec<String> = received().into_iter().filter(|line| line.starts_with("one ")).collect();
    check_at_least_once(&whole, &BTreeMap::from([("one".into(), last)]));
    lab.stop("n1");
}
