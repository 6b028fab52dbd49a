//! Reading over HTTP on the port of the log service.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lab::{Client, Lab, eventually};

/// curl to a node's service, which is known by its name whatever its address.
pub fn curl(lab: &Lab, node: &str, ca: &Path, path: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--resolve", &format!("{node}:4802:{}", lab.address(node))]);
    command.arg("--cacert").arg(ca).arg(format!("https://{node}:4802{path}"));
    command
}

/// The status and the JSON that came with it.
pub fn answer(command: &mut Command) -> (String, Value) {
    let output = command.args(["-w", "\n%{http_code}"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    (status.into(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn texts(page: &Value) -> Vec<&str> {
    page["lines"].as_array().unwrap().iter().map(|line| line["line"].as_str().unwrap()).collect()
}

#[test]
fn pages_of_lines_for_managers_and_nobody_else() {
    let conf = "[log.mainlog]\nsubscribers = [\"m1\"]\n[managers.m1]\nlogfile = \"{out}/%{l}/%{s}/%{n}\"\n";
    let mut lab = Lab::new(&["n1", "n2", "m1"], conf);
    lab.certify();
    for node in ["n1", "n2", "m1"] {
        lab.start(node);
    }
    let ask = |who: Option<&str>, path: &str| {
        let mut command = curl(&lab, "m1", &lab.identity("m1").join("ca.pem"), path);
        if let Some(who) = who {
            let identity = lab.identity(who);
            command.arg("--cert").arg(identity.join("cert.pem")).arg("--key").arg(identity.join("key.pem"));
        }
        command
    };
    let get = |path: &str| answer(&mut ask(Some("m1"), path));
    for (node, id) in [("n1", "one"), ("n2", "two")] {
        Client::new(lab.socket(node, "mainlog"), id).send_until(40);
    }
    eventually("every line", || {
        (["n1", "n2"].iter().all(|node| lab.lines(&format!("mainlog/default/{node}")).len() == 40)).then_some(())
    });

    let (status, page) = get("/logs/mainlog/lines");
    assert_eq!((status.as_str(), texts(&page).len(), &page["more"]), ("200", 80, &Value::Null), "{page}");
    let (_, page) = get("/logs/mainlog/lines?node=n2&grep=%5Etwo%201&limit=5");
    assert_eq!(texts(&page), ["two 1", "two 10", "two 11", "two 12", "two 13"]);
    assert!(page["more"].is_string(), "{page}");
    assert!(texts(&get("/logs/mainlog/lines?subcluster=other").1).is_empty());
    assert!(texts(&get("/logs/mainlog/lines?until=1h").1).is_empty());
    let (status, problem) = get("/logs/mainlog/lines?limit=0");
    assert_eq!((status.as_str(), &problem["code"]), ("400", &"request".into()));
    for path in ["/logs/mainlgo/lines", "/logs/mainlgo/follow"] {
        let (status, problem) = get(path);
        assert_eq!((status.as_str(), &problem["code"]), ("404", &"not_found".into()), "{problem}");
        assert!(problem.to_string().contains("logd.toml has mainlog"), "{problem}");
    }
    let (_, journals) = get("/logs?all");
    assert_eq!(journals.as_array().unwrap().len(), 3, "{journals}");
    assert_eq!(answer(&mut ask(None, "/logs")).0, "401");
    assert_eq!(answer(&mut ask(Some("n1"), "/logs/mainlog/lines")).0, "403", "n1 is no manager");
    assert_eq!(answer(&mut ask(None, "/healthz")).0, "200");
    let metrics = ask(None, "/metrics").output().unwrap();
    assert!(String::from_utf8_lossy(&metrics.stdout).contains("logd_manager_lines_total{} 80"), "{metrics:?}");

    let mut follow = ask(Some("m1"), "/logs/mainlog/follow?node=n1").arg("-N").stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || {
        let event = events.find_map(|line| line.unwrap().strip_prefix("data: ").map(str::to_owned)).unwrap();
        serde_json::from_str::<Value>(&event).unwrap()["line"].as_str().unwrap().to_owned()
    };
    for number in 31..=40 {
        assert_eq!(next(), format!("one {number}"));
    }
    Client::behind(lab.socket("n1", "mainlog"), "one", 40).send_until(60);
    for number in 41..=60 {
        assert_eq!(next(), format!("one {number}"));
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
}
