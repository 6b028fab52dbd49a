//! A real nats-server as a sink: killed, with limits, over TLS, and with each kind of credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::lab::{Client, Lab, Program, check_at_least_once, eventually, free_port, text};
use crate::sinks::{lag, sending};

/// A client of NATS as small as can be: requests, one after the other.
struct Nats {
    stream: BufReader<TcpStream>,
}

impl Nats {
    fn connect(address: &str) -> Option<Self> {
        Self::log_in(address, |_| json!({ "user": "logd", "pass": "secret" }))
    }

    /// `login` makes the fields of CONNECT from the server's nonce.
    fn log_in(address: &str, login: impl Fn(&str) -> Value) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        let mut nats = Self { stream: BufReader::new(stream) };
        let info: Value = serde_json::from_str(nats.line()?.strip_prefix("INFO ")?).unwrap();
        let mut fields = login(info["nonce"].as_str().unwrap_or_default());
        fields["verbose"] = false.into();
        let hello = format!("CONNECT {fields}\r\nSUB answers 1\r\nPING\r\n");
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
    fn make_stream(&mut self, more: &Value) {
        let mut stream = json!({ "name": "LOGS", "subjects": ["logs.>"] });
        stream.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.ask("$JS.API.STREAM.CREATE.LOGS", &stream).unwrap();
        assert!(made["error"].is_null(), "{made}");
    }

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

/// A node with a log `a` and a sink, and where its nats-server listens.
struct Bus {
    lab: Lab,
    address: String,
}

impl Bus {
    fn new(url: &str, secret: &str) -> Self {
        let mut lab = Lab::new(&["n1"], "");
        let address = format!("{}:{}", lab.address("n1"), free_port(lab.address("n1")));
        fs::create_dir_all(lab.path("sinks")).unwrap();
        // What the server must be told lies on the node, not in the configuration.
        fs::write(lab.path("sinks/bus"), secret).unwrap();
        lab.configure(&format!("[log.a]\nsubscribers = []\n[sinks.bus]\nurl = \"{url}://{address}\"\n"));
        Self { lab, address }
    }

    /// Starts the server with JetStream and some more settings.
    fn serve(&self, more: &str) -> Option<Program> {
        self.serve_without_streams(&format!("jetstream {{ store_dir: {:?} }}\n{more}", self.lab.path("jetstream")))
    }

    fn serve_without_streams(&self, settings: &str) -> Option<Program> {
        let settings = format!("listen: \"{}\"\n{settings}\n", self.address);
        fs::write(self.lab.path("nats.conf"), settings).unwrap();
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(self.lab.path("nats.conf")).arg("-l").arg(self.lab.path("nats.log"));
        Program::start(&mut command)
    }

    fn connect(&self) -> Nats {
        eventually("the bus answers", || Nats::connect(&self.address))
    }

    fn make_stream(&self, more: &Value) {
        self.connect().make_stream(more);
    }

    fn send(&self, lines: &str) {
        let mut sender = self.lab.spawn_send("n1", "a");
        sender.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(sender.wait().unwrap().success());
    }

    fn metrics(&self) -> String {
        text(&self.lab.run("n1", &["metrics"]))
    }

    fn drained(&self) {
        eventually("nothing is left", || (lag(&self.lab, "n1", "bus") == 0).then_some(()));
    }
}

/// The bus is killed, logd is killed, a second log is added; the stream has everything.
#[test]
fn jetstream_gets_every_line() {
    let mut bus = Bus::new("nats", "logd:secret\n");
    let configure = |bus: &mut Bus, logs: &str| {
        let address = &bus.address;
        let sink = format!("[sinks.bus]\nurl = \"nats://{address}\"\nlogs = [{logs}]\n");
        bus.lab.configure(&format!("[log.a]\nsubscribers = []\n[log.b]\nsubscribers = []\n{sink}"));
    };
    configure(&mut bus, "\"a\"");
    let password = "authorization { user: logd, password: secret }";
    let Some(server) = bus.serve(password) else { return };
    bus.make_stream(&json!({}));

    bus.lab.start("n1");
    let stop = Arc::new(AtomicBool::new(false));
    let sender = sending(&bus.lab, "n1", "a", "one", &stop);
    let some_more = |bus: &Bus, than: u64| {
        let mut nats = bus.connect();
        eventually("more messages", || nats.count().filter(|count| *count > than + 200))
    };
    let before = some_more(&bus, 0);
    bus.lab.kill("n1");
    bus.lab.start("n1");
    let before = some_more(&bus, before);
    server.kill();
    eventually("the sink says that it waits", || {
        bus.metrics().contains("logd_sink_waiting{sink=\"bus\",log=\"a\"} 1").then_some(())
    });
    let _server = bus.serve(password).unwrap();
    some_more(&bus, before);
    Client::new(bus.lab.socket("n1", "b"), "two").send_until(30);
    configure(&mut bus, "\"a\", \"b\"");
    stop.store(true, Ordering::Relaxed);
    let last = sender.join().unwrap();
    bus.drained();
    let mut nats = bus.connect();
    eventually("the second log", || (nats.messages("logs.b.n1")?.len() >= 30).then_some(()));
    check_at_least_once(&nats.messages("logs.a.n1").unwrap(), &BTreeMap::from([("one".into(), last)]));
    check_at_least_once(&nats.messages("logs.b.n1").unwrap(), &BTreeMap::from([("two".into(), 30)]));
    let logs = text(&bus.lab.run("n1", &["logs"]));
    assert!(logs.contains("sink bus"), "{logs}");
    let refused = bus.lab.run("n1", &["subscriber", "remove", "bus"]);
    assert!(text(&refused).contains("the sink bus"), "{}", text(&refused));
    bus.lab.stop("n1");
}

/// Beyond the server's limit and beyond the stream's: the log goes on, and the lines lie in a file; or, where that is wanted, the log waits.
#[test]
fn a_line_that_is_too_long_blocks_nothing_and_is_not_lost() {
    let mut bus = Bus::new("nats", "logd:secret\n");
    let password = "authorization { user: logd, password: secret }";
    let Some(server) = bus.serve(&format!("{password}\nmax_payload: 2000")) else { return };
    bus.make_stream(&json!({ "max_msg_size": 1000 }));
    bus.lab.start("n1");
    let long = |letter: &str, length: usize| letter.repeat(length);
    bus.send(&format!("s 1\n{}\ns 2\n{}\ns 3\n", long("x", 1500), long("y", 3000)));
    bus.drained();
    let small = |bus: &Bus| {
        let all = bus.connect().messages("logs.a.n1").unwrap();
        all.into_iter().filter(|line| line.starts_with("s ")).collect::<Vec<String>>()
    };
    check_at_least_once(&small(&bus), &BTreeMap::from([("s".into(), 3)]));
    let aside = fs::read_to_string(bus.lab.path("n1/data/aside/bus/a")).unwrap();
    let lines: Vec<&str> = aside.lines().map(|line| line.rsplit_once(' ').unwrap().1).collect();
    assert_eq!(lines, [long("x", 1500), long("y", 3000)]);
    assert!(bus.metrics().contains("logd_sink_aside_records_total{sink=\"bus\",log=\"a\"} 2"), "{}", bus.metrics());
    let logs = text(&bus.lab.run("n1", &["logs"]));
    assert!(logs.contains("sink bus (2 aside)"), "{logs}");

    let waiting = fs::read_to_string(bus.lab.path("conf/default/logd.toml")).unwrap() + "too_large = \"wait\"\n";
    bus.lab.configure(&waiting);
    eventually("the change is applied", || {
        (bus.lab.log("n1").matches("configuration applied").count() == 2).then_some(())
    });
    bus.send(&format!("s 4\n{}\ns 5\n", long("z", 3000)));
    eventually("the sink says that it waits", || {
        text(&bus.lab.run("n1", &["logs"])).contains("sink bus (waits").then_some(())
    });
    eventually("what is before the line is confirmed", || (lag(&bus.lab, "n1", "bus") == 2).then_some(()));
    assert!(bus.lab.log("n1").contains("max_payload is 2000"), "{}", bus.lab.log("n1"));
    check_at_least_once(&small(&bus), &BTreeMap::from([("s".into(), 4)]));
    server.kill();
    let _server = bus.serve(password).unwrap();
    let update = json!({ "name": "LOGS", "subjects": ["logs.>"], "max_msg_size": -1 });
    let updated = bus.connect().ask("$JS.API.STREAM.UPDATE.LOGS", &update).unwrap();
    assert!(updated["error"].is_null(), "{updated}");
    bus.drained();
    check_at_least_once(&small(&bus), &BTreeMap::from([("s".into(), 5)]));
    let all = bus.connect().messages("logs.a.n1").unwrap();
    assert!(all.contains(&long("z", 3000)) && !all.contains(&long("y", 3000)));
    bus.lab.stop("n1");
}

/// The server wants the node's certificate and a password; the node wants the server's certificate.
#[test]
fn jetstream_over_tls() {
    let mut bus = Bus::new("nats+tls", "logd:secret\n");
    bus.lab.certify();
    let Some(plain) = bus.serve("") else { return };
    bus.make_stream(&json!({}));
    plain.kill();
    let identity = bus.lab.identity("n1").display().to_string();
    let tls = |password: &str| {
        format!(
            "tls {{ cert_file: \"{identity}/cert.pem\", key_file: \"{identity}/key.pem\", ca_file: \"{identity}/ca.pem\", verify: true }}\n\
             authorization {{ user: logd, password: {password} }}"
        )
    };
    let strict = bus.serve(&tls("another")).unwrap();
    bus.lab.start("n1");
    Client::new(bus.lab.socket("n1", "a"), "one").send_until(300);
    eventually("a wrong password is said", || bus.lab.log("n1").contains("Authorization Violation").then_some(()));
    strict.kill();
    let secured = bus.serve(&tls("secret")).unwrap();
    bus.drained();
    secured.kill();
    // Nothing goes to a server without TLS, whoever it is.
    let _plain = bus.serve("").unwrap();
    let messages = bus.connect().messages("logs.a.n1").unwrap();
    check_at_least_once(&messages, &BTreeMap::from([("one".into(), 300)]));
    Client::behind(bus.lab.socket("n1", "a"), "one", 300).send_until(310);
    eventually("the sink says that it waits", || {
        bus.metrics().contains("logd_sink_waiting{sink=\"bus\",log=\"a\"} 1").then_some(())
    });
    assert_eq!(bus.connect().messages("logs.a.n1").unwrap().len(), messages.len());
    bus.lab.stop("n1");
}

/// Keys as `nsc` and `nk` make them.
struct Nkey {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
    /// The five bits of the letter that its name begins with.
    kind: u8,
}

impl Nkey {
    fn new(letter: char, seed: u8) -> Self {
        let seed = [seed; 32];
        let kind = DIGITS.iter().position(|digit| char::from(*digit) == letter).unwrap() as u8;
        Self { pair: Ed25519KeyPair::from_seed_unchecked(&seed).unwrap(), seed, kind }
    }

    fn name(&self) -> String {
        base32([&[self.kind << 3], self.pair.public_key().as_ref()].concat())
    }

    fn seed(&self) -> String {
        base32([&[18 << 3 | self.kind >> 2, (self.kind & 3) << 6][..], &self.seed].concat())
    }

    /// A token about somebody.
    fn token(&self, about: &Self, mut claims: Value) -> String {
        claims["version"] = 2.into();
        let claims =
            json!({ "jti": "x", "iat": 1, "iss": self.name(), "sub": about.name(), "name": "x", "nats": claims });
        let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
        let signed =
            format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
        format!("{signed}.{}", base64url(self.pair.sign(signed.as_bytes()).as_ref()))
    }
}

const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// With its checksum.
fn base32(mut bytes: Vec<u8>) -> String {
    let crc = bytes.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    bytes.extend_from_slice(&crc.to_le_bytes());
    in_groups(&bytes, 5, |digit| char::from(DIGITS[digit]))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    in_groups(bytes, 6, |digit| char::from(DIGITS[digit]))
}

fn in_groups(bytes: &[u8], bits: usize, digit: impl Fn(usize) -> char) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let groups = (0..bytes.len() * 8).step_by(bits);
    groups.map(|from| digit((from..from + bits).fold(0, |value, at| value << 1 | bit(at)))).collect()
}

#[test]
fn jetstream_with_keys_and_tokens() {
    let user = Nkey::new('U', 1);
    let mut bus = Bus::new("nats", &user.seed());
    let by_key =
        format!("authorization {{ users: [ {{ nkey: {} }}, {{ user: logd, password: secret }} ] }}", user.name());
    let Some(server) = bus.serve(&by_key) else { return };
    bus.make_stream(&json!({}));
    bus.lab.start("n1");
    Client::new(bus.lab.socket("n1", "a"), "one").send_until(100);
    bus.drained();
    check_at_least_once(&bus.connect().messages("logs.a.n1").unwrap(), &BTreeMap::from([("one".into(), 100)]));
    server.kill();

    // Accounts that an operator signs, users that an account signs.
    let (operator, system) = (Nkey::new('O', 2), Nkey::new('A', 5));
    let (account, other) = (Nkey::new('A', 3), Nkey::new('A', 4));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1
    });
    let mut with_streams = limits.clone();
    for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
        with_streams[limit] = (-1).into();
    }
    let of = |who: &Nkey, limits: &Value| operator.token(who, json!({ "type": "account", "limits": limits }));
    let of_operator = operator.token(&operator, json!({ "type": "operator" }));
    let of_system = of(&system, &limits);
    let by_token = |limits: &Value| {
        let preload = format!("{}: {}\n{}: {of_system}", account.name(), of(&account, limits), system.name());
        let system = system.name();
        format!(
            "operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n{preload}\n}}"
        )
    };
    let token = |signer: &Nkey| signer.token(&user, json!({ "type": "user", "subs": -1, "data": -1, "payload": -1 }));
    let creds = |signer: &Nkey| {
        let (token, seed) = (token(signer), user.seed());
        format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    fs::write(bus.lab.path("sinks/bus"), creds(&other)).unwrap();
    let without_streams = bus.serve_without_streams(&by_token(&limits)).unwrap();
    Client::behind(bus.lab.socket("n1", "a"), "one", 100).send_until(110);
    eventually("an unknown account is refused", || bus.lab.log("n1").contains("Authorization Violation").then_some(()));
    assert!(!bus.lab.log("n1").contains("no stream takes"), "{}", bus.lab.log("n1"));
    fs::write(bus.lab.path("sinks/bus"), creds(&account)).unwrap();
    // The account has no JetStream: whoever hears that nobody takes the subject has been let in.
    eventually("the account's user is let in", || bus.lab.log("n1").contains("no stream takes").then_some(()));
    without_streams.kill();
    // Now it has: what waited comes.
    let _server = bus.serve(&by_token(&with_streams)).unwrap();
    let login =
        |nonce: &str| json!({ "jwt": token(&account), "sig": base64url(user.pair.sign(nonce.as_bytes()).as_ref()) });
    let mut nats = eventually("the bus answers", || Nats::log_in(&bus.address, login));
    nats.make_stream(&json!({}));
    bus.drained();
    let came: BTreeSet<String> = nats.messages("logs.a.n1").unwrap().into_iter().collect();
    assert_eq!(came, (101..=110).map(|number| format!("one {number}")).collect());
    bus.lab.stop("n1");
}
