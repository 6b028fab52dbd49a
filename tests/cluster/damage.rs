//! A machine whose files go bad while it runs: it steps aside, says so everywhere, and comes back as the others are.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::lab::{Lab, possible};
use crate::membership::{commit, has};
use crate::support::{assert_success, eventually};

const OUT: &str = "this node has taken itself out";

fn packs(lab: &Lab, name: &str) -> Vec<PathBuf> {
    let dir = lab.machine(name).data().join("repos/default.git/objects/pack");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "pack")).collect()
}

/// Changes bytes where they lie: whoever has the file open or mapped sees it.
fn flip(path: &Path, places: impl Fn(&[u8]) -> Vec<usize>) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let bytes = fs::read(path).unwrap();
    let places = places(&bytes);
    assert!(!places.is_empty(), "{}", path.display());
    for at in places {
        file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
    }
}

fn text(lab: &Lab, name: &str, path: &str) -> Result<String, String> {
    let got = lab.client_of(&[name], |client| async move { client.get_bytes(path, 1 << 20).await });
    got.map(|bytes| String::from_utf8(bytes.into()).unwrap()).map_err(|error| error.to_string())
}

fn metric(lab: &Lab, name: &str, metric: &str) -> Option<f64> {
    let all = text(lab, name, "/metrics").ok()?;
    all.lines().find_map(|line| line.strip_prefix(metric)?.split_whitespace().last()?.parse().ok())
}

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_machine_with_spoiled_files_steps_aside_and_comes_back() {
    if !possible() {
        return;
    }
    let mut lab = Lab::cluster(3);
    (0..5).for_each(|number| drop(commit(&lab, &["n1"], &format!("number {number}"))));
    has(&lab, "n3", &commit(&lab, &["n2"], "the last"));
    // What it holds in memory goes to the disk.
    lab.terminate("n3");
    lab.start("n3");
    lab.wait_ready("n3");
    // It cannot put bad packs aside, so it stays out for as long as it is looked at.
    let obstacle = lab.machine("n3").data().join("damaged");
    fs::write(&obstacle, "").unwrap();
    for pack in packs(&lab, "n3") {
        flip(&pack, |bytes| vec![bytes.len() / 2]);
    }
    let settings = lab.machine("n3").data().join("ecconfigd.toml");
    let text_before = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text_before}\n[limits]\nscrub_interval = \"1s\"\n")).unwrap();
    lab.signal("n3", Signal::SIGHUP);

    eventually("n3 is out", || text(&lab, "n3", "/readyz").err().filter(|why| why.contains(OUT)));
    // Nothing that it holds is served, to nobody.
    for path in ["/api/v1/repos", "/api/v1/repos/default/head", "/api/v1/repos/default/files/default/f.txt"] {
        let refused = text(&lab, "n3", path).unwrap_err();
        assert!(refused.contains(OUT) && refused.contains("its objects are damaged"), "{path}: {refused}");
    }
    let git = lab.git(&lab.scratch("")).args(["ls-remote", &lab.repo_url("n3", "default")]).output().unwrap();
    assert!(!git.status.success() && said(&git).contains("503"), "{}", said(&git));
    assert_eq!(metric(&lab, "n3", "ecconfigd_out"), Some(1.0));
    eventually("n1 knows", || (metric(&lab, "n1", "ecconfigd_members_out") == Some(1.0)).then_some(()));
    // Who asks is told, there and elsewhere.
    for asked in ["n1", "n3"] {
        let list = said(&lab.eccfg_of(&[asked], &["node", "list"]).output().unwrap());
        let line = list.lines().find(|line| line.starts_with("n3")).unwrap_or_default();
        assert!(line.contains(OUT) && line.contains("damaged"), "{asked}: {list}");
        let info = lab.client_of(&[asked], |client| async move {
            client.get_json::<cluster::api::ClusterInfo>("/api/v1/cluster").await.unwrap()
        });
        let out = info.members.iter().find(|member| member.node == "n3").and_then(|member| member.out.clone());
        assert!(out.is_some_and(|why| why.contains("damaged")), "{asked}");
    }
    let wc = lab.scratch("wc").display().to_string();
    assert_success(&lab.eccfg_of(&["n1"], &["bootstrap", "--clustername", "default", "--wc", &wc]).output().unwrap());
    let status = said(&lab.eccfg_of(&["n1"], &["--wc", &wc, "status", "--node", "n3"]).output().unwrap());
    assert!(status.contains("The server on n3 is not in order: this node has taken itself out"), "{status}");
    let doctor = lab.eccfg_of(&["n1"], &["doctor", "--deep"]).output().unwrap();
    let words = said(&doctor);
    let object = |line: &str| {
        let id = line.strip_prefix("BAD   n3  objects: default: object ").and_then(|rest| rest.get(..40));
        id.is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    assert_eq!(doctor.status.code(), Some(1), "{words}");
    assert!(words.contains("BAD   n3  ready: this node has taken itself out"), "{words}");
    assert!(words.lines().any(object) && words.contains("ok    n1  objects"), "{words}");
    // The others go on.
    let head = commit(&lab, &["n1", "n2"], "without n3");

    fs::remove_file(&obstacle).unwrap();
    // Whoever examines it wakes it.
    lab.eccfg(&["doctor", "--deep"]);
    lab.wait_ready("n3");
    has(&lab, "n3", &head);
    assert_eq!(metric(&lab, "n3", "ecconfigd_healed_total"), Some(1.0));

    // The database, in keys of its table.
    let key = b"repo/default";
    flip(&lab.machine("n3").data().join("state.redb"), |bytes| {
        let found = bytes.windows(key.len()).enumerate().filter(|(_, window)| window == key);
        found.map(|(at, _)| at + 7).collect()
    });
    eventually("n3 has another database", || {
        (metric(&lab, "n3", "ecconfigd_healed_total") == Some(2.0) && lab.is_ready("n3")).then_some(())
    });
    assert!(lab.machine("n3").log().contains("state.redb is damaged"));
    let head = commit(&lab, &["n3"], "through n3 again");
    // Also from its disk alone.
    lab.kill("n3");
    lab.start("n3");
    lab.wait_ready("n3");
    ["n1", "n2", "n3"].iter().for_each(|name| has(&lab, name, &head));
    let doctor = lab.eccfg(&["doctor", "--deep"]);
    assert!(doctor.status.success(), "{}", said(&doctor));
    let clone = lab.scratch("clone");
    fs::create_dir_all(&clone).unwrap();
    crate::support::ok(lab.git(&clone).args(["clone", "-q", &lab.repo_url("n3", "default"), "."]));
    crate::support::ok(lab.git(&clone).args(["fsck", "--full", "--strict"]));
    let tip = crate::support::ok(lab.git(&clone).args(["rev-parse", "HEAD"]));
    assert_eq!(tip.trim(), head.commit);
}
