#![allow(clippy::unwrap_used)]
//! Golden transcripts: a command line, and everything it said.

use std::path::Path;

use logd_journal::{Batch, Journal, Options};

use super::run;
use crate::jlog::tests::Fixture;

/// Runs command lines (`DIR` is the directory) and shows what came of them.
fn transcript(dir: &Path, lines: &str) -> String {
    let mut all = String::new();
    for line in lines.lines().map(str::trim) {
        let args = std::iter::once("jlogctl").chain(line.split(' '));
        let args = args.map(|word| word.replace("DIR", dir.to_str().unwrap()).into());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = run(args, &mut out, &mut err);
        all += &format!("$ jlogctl {line}\n{}{}", String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
        all += &if status == 0 { String::new() } else { format!("(status {status})\n") };
    }
    all.replace(dir.to_str().unwrap(), "DIR")
}

/// A journal of 40 lines in several segments, one line per second.
fn journal(dir: &Path) -> Journal {
    let options = Options { segment_bytes: 1000, sync_delay: None, ..Options::default() };
    let journal = Journal::open(dir, options).unwrap();
    journal.subscribe("master").unwrap();
    for i in 0..40u64 {
        let mut batch = Batch::new();
        batch.push(1_700_000_000_000_000 + i * 1_000_000, format!("line {i} of the log").as_bytes()).unwrap();
        journal.append_batch(&mut batch).unwrap();
    }
    journal
}

/// The UUID is random.
fn without_uuids(text: &str) -> String {
    let is_uuid = |word: &str| {
        word.len() == 36 && word.bytes().enumerate().all(|(i, b)| (b == b'-') == matches!(i, 8 | 13 | 18 | 23))
    };
    let words = text.split_inclusive(|c: char| !(c.is_ascii_hexdigit() || c == '-'));
    words
        .map(|word| {
            let (bare, end) = word.split_at(word.len().min(36));
            if is_uuid(bare) { format!("UUID{end}") } else { word.to_owned() }
        })
        .collect()
}

macro_rules! golden {
    ($text:expr) => {
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(without_uuids(&$text));
        });
    };
}

#[test]
fn the_originals_flags() {
    let dir = tempfile::tempdir().unwrap();
    let _writer = journal(dir.path());
    golden!(
        transcript(
            dir.path(),
            "DIR
        -s DIR
        -l DIR
        -i DIR
        -v -a mgr1 DIR
        -a mgr1 DIR
        -u master -C 35 DIR
        -p master DIR
        -p nobody DIR
        -v -c DIR
        -i DIR
        -v -e mgr1 DIR
        -s DIR
        -l DIR
        -u master -C 99 DIR
        -u master DIR
        -d DIR
        -r DIR
        -l /nonexistent"
        )
        .lines()
        // The owner of the lock has a pid and a time.
        .map(|line| if line.contains("in use by") { "error: DIR is in use by …" } else { line })
        .collect::<Vec<_>>()
        .join("\n")
    );
}

#[test]
fn records_as_text_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let _writer = journal(dir.path());
    golden!(transcript(
        dir.path(),
        "tail -n 3 DIR
        tail -n 2 --json DIR
        dump --from 38 DIR
        dump --from 5 --to 6 --json DIR
        check DIR
        check --json DIR
        meta --json DIR
        subscriber add late DIR
        subscriber list DIR
        subscriber list --json DIR
        subscriber erase late DIR
        -s --json DIR"
    ));
}

#[test]
fn damage_is_named_and_the_status_says_so() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path()).close().unwrap();
    let path = dir.path().join("0000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..160].fill(0);
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(dir.path().join("master.sub"), b"nothing").unwrap();
    golden!(transcript(
        dir.path(),
        "check DIR
        dump --to 5 DIR
        repair DIR
        -s DIR"
    ));
}

#[test]
fn an_old_directory_is_named_and_imported() {
    let top = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&top.path().join("mainlog"));
    fixture.segment(0, &["a", "b", "c"]);
    fixture.segment(1, &["d", "e"]);
    fixture.checkpoint("master", 0, 2);
    fixture.checkpoint("mgr1", 1, 1);
    fixture.damage(1, |bytes| bytes.extend([0; 40]));
    golden!(transcript(
        top.path(),
        "-s DIR/mainlog
        import --into DIR/copy DIR/mainlog
        import DIR/mainlog
        -s DIR/mainlog
        dump --unread mgr1 DIR/mainlog
        import DIR/mainlog
        create -s master DIR/new
        create DIR/new
        meta DIR/new"
    ));
}

#[test]
fn a_tail_follows_what_another_process_may_be_writing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let path = dir.path().to_owned();
    let tail = std::thread::spawn(move || transcript(&path, "tail -f -n 1 --count 30 DIR"));
    for i in 0.. {
        // As long as it takes: the tail may begin before or after any of these.
        if tail.is_finished() {
            break;
        }
        journal.append(format!("new {i}").as_bytes()).unwrap();
    }
    let text = tail.join().unwrap();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines.len(), 30, "{text}");
    let numbers: Vec<usize> = lines.iter().filter_map(|line| line.strip_prefix("new ")?.parse().ok()).collect();
    assert!(numbers.len() >= 29 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    struct Gone;
    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let _writer = journal(dir.path());
    let args = ["jlogctl", "dump", dir.path().to_str().unwrap()].map(Into::into);
    let mut err = Vec::new();
    assert_eq!((run(args, &mut Gone, &mut err), err), (0, Vec::new()));
}
