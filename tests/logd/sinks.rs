//! Sinks beside the real programs that they are for, killed like everything else.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::lab::{Client, Lab, Program, check_at_least_once, eventually, free_port, text};

/// Sends until told to stop; answers the last number.
pub fn sending(lab: &Lab, node: &str, log: &str, id: &str, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
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

/// Records that a node still has for a subscriber.
pub fn lag(lab: &Lab, node: &str, subscriber: &str) -> u64 {
    let logs = lab.run(node, &["logs", "--json"]);
    let Ok(nodes) = serde_json::from_slice::<Value>(&logs.stdout) else { return u64::MAX };
    let logs = nodes[0]["logs"].as_array().unwrap();
    let subscribers = logs.iter().flat_map(|log| log["subscribers"].as_array().unwrap());
    subscribers.filter(|one| one["name"] == subscriber).map(|one| one["records"].as_u64().unwrap()).sum()
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
