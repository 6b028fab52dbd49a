//! Journals that somebody took away, or put an older copy in place of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::lab::{Client, Lab, check_sources, eventually, text};

const CONF: &str = r#"
[log.mainlog]
subscribers = ["m1"]
[managers.m1]
logfile = "{out}/%{l}"
"#;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// The copy is written on until it has more records than the manager has seen: by its numbers alone it would look as if nothing had happened.
#[test]
fn an_older_copy_and_an_empty_journal_are_noticed() {
    let mut lab = Lab::new(&["n1", "m1"], CONF);
    lab.start("n1");
    lab.start("m1");
    let mut one = Client::new(lab.socket("n1", "mainlog"), "one");
    let complete = |lab: &Lab, lines: usize| {
        eventually(&format!("{lines} lines"), || (lab.lines("mainlog").len() >= lines).then_some(()));
    };
    one.send_until(300);
    complete(&lab, 300);
    let drained = lab.run("m1", &["subscriber", "drain", "m1", "--timeout", "50s"]);
    assert!(drained.status.success(), "{}", text(&drained));
    lab.stop("n1");
    let (journals, backup) = (lab.path("n1/data/journal"), lab.path("backup"));
    copy(&journals, &backup);
    lab.start("n1");
    one.send_until(400);
    complete(&lab, 400);

    lab.stop("n1");
    lab.stop("m1");
    fs::remove_dir_all(&journals).unwrap();
    copy(&backup, &journals);
    lab.start("n1");
    Client::new(lab.socket("n1", "mainlog"), "two").send_until(500);
    lab.start("m1");
    complete(&lab, 900);
    assert!(lab.log("m1").contains("an older copy was put here"), "{}", lab.log("m1"));

    lab.stop("n1");
    fs::remove_dir_all(&journals).unwrap();
    lab.start("n1");
    Client::new(lab.socket("n1", "mainlog"), "three").send_until(50);
    complete(&lab, 950);
    assert!(lab.log("m1").contains("it was made in"), "{}", lab.log("m1"));
    let expected = [("one", 400), ("two", 500), ("three", 50)].map(|(id, lines)| (id.to_owned(), lines));
    check_sources(&lab.lines("mainlog"), &BTreeMap::from(expected));
    // What was read of it is passed there too: nothing was promised by the numbers of the one before.
    let drained = lab.run("m1", &["subscriber", "drain", "m1", "--timeout", "50s"]);
    assert!(drained.status.success(), "{}", text(&drained));
}
