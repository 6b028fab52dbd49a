//! Golden stories: what is done, and everything that happens.

use std::fmt::Write as _;

use super::*;
use crate::View;
use crate::fs::Fs;

/// Runs the lines of a story against a journal in memory.
struct Story {
    fs: Simulation,
    journal: Option<Journal>,
    reader: Option<Reader>,
    events: Arc<Mutex<Vec<Event>>>,
    options: Options,
    out: String,
}

fn story(options: Options, lines: &str) -> String {
    let (options, events) = listening(options);
    let mut story = Story { fs: Simulation::new(), journal: None, reader: None, events, options, out: String::new() };
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let repeated = line.matches("BIG").count();
        let shown = if repeated > 9 { format!("append BIG {repeated} times") } else { line.to_owned() };
        writeln!(story.out, "> {shown}").unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        if let Err(error) = story.line(&words) {
            writeln!(story.out, "error: {error}").unwrap();
        }
        for event in story.events.lock().unwrap().drain(..) {
            writeln!(story.out, "event: {event:?}").unwrap();
        }
    }
    story.out
}

impl Story {
    fn journal(&self) -> &Journal {
        self.journal.as_ref().expect("the story opens the journal first")
    }

    fn line(&mut self, words: &[&str]) -> crate::Result<()> {
        match words {
            ["open"] => {
                let fs: Arc<dyn Fs> = Arc::new(self.fs.clone());
                self.journal = Some(Journal::open_on(fs, dir(), self.options.clone())?);
            }
            ["close"] => self.journal.take().expect("open").close()?,
            ["kill"] => {
                let left = self.fs.after_kill();
                std::mem::forget(self.journal.take());
                self.reader = None;
                self.fs = left;
            }
            ["append", payloads @ ..] => {
                let mut numbers = Vec::new();
                let appended = payloads.iter().try_for_each(|payload| {
                    let payload = payload.replace("BIG", &"x".repeat(300));
                    self.journal().append(payload.as_bytes()).map(|number| numbers.push(number))
                });
                if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
                    writeln!(self.out, "{first}..={last}").unwrap();
                }
                appended?;
            }
            ["subscribe", name] => writeln!(self.out, "from {}", self.journal().subscribe(name)?).unwrap(),
            ["unsubscribe", name] => self.removed(self.journal().unsubscribe(name)?),
            ["checkpoint", name, next] => self.removed(self.journal().checkpoint(name, next.parse().unwrap())?),
            ["collect"] => self.removed(self.journal().collect()?),
            ["read", from @ ..] => {
                if let [from] = from {
                    self.reader = Some(match from.parse() {
                        Ok(number) => self.journal().reader(number),
                        Err(_) => self.journal().reader_of(from)?,
                    });
                }
                let lines = read_all(self.reader.as_mut().expect("a place was given once"));
                let middle = lines.len().saturating_sub(6);
                for (i, line) in lines.iter().enumerate() {
                    match i {
                        4 if middle > 1 => writeln!(self.out, "({middle} more)").unwrap(),
                        _ if middle > 1 && (4..4 + middle).contains(&i) => {}
                        _ => writeln!(self.out, "{}", line.replace(&"x".repeat(300), "BIG")).unwrap(),
                    }
                }
            }
            ["capacity", "none"] => self.fs.set_capacity(None),
            ["capacity", more] => {
                let bytes = self.fs.used_bytes() + more.parse::<usize>().unwrap();
                self.fs.set_capacity(Some(bytes));
            }
            ["syncs", "fail", kind] => self.fs.fail_syncs(Some(match *kind {
                "full" => std::io::ErrorKind::StorageFull,
                _ => std::io::ErrorKind::Other,
            })),
            ["syncs", "work"] => self.fs.fail_syncs(None),
            ["zero", segment, from, to] => {
                let path = crate::layout::segment_path(dir(), segment.parse().unwrap());
                let range = from.parse().unwrap()..to.parse().unwrap();
                self.fs.rot(&path, |bytes| bytes[range].fill(0));
            }
            ["wipe"] => {
                for name in self.fs.list(dir()).unwrap().iter().filter(|name| name.ends_with(".seg")) {
                    self.fs.remove(&dir().join(name)).unwrap();
                }
            }
            ["pass", "seconds", seconds] => self.fs.pass(seconds.parse::<u64>().unwrap() * 1_000_000),
            ["status"] => self.status()?,
            other => panic!("no such line: {other:?}"),
        }
        Ok(())
    }

    fn removed(&mut self, removed: crate::Removed) {
        writeln!(self.out, "removed {} segments", removed.segments).unwrap();
    }

    fn status(&mut self) -> crate::Result<()> {
        let status = View::open_on(Arc::new(self.fs.clone()), dir())?.status()?;
        for segment in &status.segments {
            writeln!(self.out, "segment {}..{} {} bytes", segment.first, segment.end, segment.bytes).unwrap();
        }
        for lag in &status.subscribers {
            let one = &lag.subscriber;
            let sound = if one.sound { "" } else { " (damaged)" };
            let (records, bytes) = (lag.records, lag.bytes);
            let (name, next, dropped) = (&one.name, one.next, one.dropped_records);
            writeln!(self.out, "{name}{sound} at {next}: {records} records, {bytes} bytes behind, {dropped} dropped")
                .unwrap();
        }
        Ok(())
    }
}

#[test]
fn segments_go_when_all_have_passed_them() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        subscribe a
        subscribe b
        append one BIG two BIG three BIG four
        status
        checkpoint a 7
        checkpoint b 4
        status
        read b
        unsubscribe b
        status
        checkpoint a 7
        checkpoint a 99
        subscribe a
        checkpoint c 1
        append five
        read"
    )) });
}

#[test]
fn a_kill_leaves_whole_records_and_numbers_jump() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        subscribe a
        append one two
        kill
        open
        read 0
        append three
        read
        close
        open
        append four
        read a
        status"
    )) });
}

#[test]
fn a_full_disk_fails_clearly_and_ends_by_itself() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        subscribe a
        append one
        capacity 100
        append BIG
        append short
        append BIG
        capacity none
        append BIG
        capacity 20
        append BIG
        append BIG
        capacity none
        append last
        read a"
    )) });
}

#[test]
fn a_disk_that_is_full_at_the_sync_takes_back_what_was_not_acknowledged() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        append one
        syncs fail full
        append two
        append three
        syncs work
        append four
        read 0
        close
        open
        read 0"
    )) });
}

#[test]
fn any_other_failed_sync_ends_the_writing() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        append one
        syncs fail other
        append two
        syncs work
        append three
        read 0"
    )) });
}

#[test]
fn the_oldest_records_are_dropped_at_the_limit_and_counted() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        Options { max_backlog_bytes: Some(8 * 4096), segment_bytes: 4096, ..small() },
        &format!(
            "open
            subscribe slow
            subscribe quick
            append {}
            checkpoint quick 60
            append {}
            status
            read slow",
            "BIG ".repeat(60).trim(),
            "BIG ".repeat(50).trim()
        )
    )) });
}

#[test]
fn writers_wait_at_the_limit_when_told_to() {
    let at_limit = crate::AtLimit::Block(std::time::Duration::from_millis(20));
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        Options { max_backlog_bytes: Some(2000), at_limit, ..small() },
        "open
        subscribe slow
        append BIG BIG BIG BIG BIG BIG BIG
        status
        checkpoint slow 5
        append BIG
        status"
    )) });
}

#[test]
fn without_subscribers_age_and_size_decide() {
    let keep = crate::Keep { age: std::time::Duration::from_secs(100), bytes: 1500 };
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        Options { keep, ..small() },
        "open
        append BIG BIG BIG
        status
        pass seconds 101
        collect
        status
        append BIG BIG BIG BIG BIG BIG
        status
        subscribe late
        append BIG BIG BIG BIG BIG BIG
        status"
    )) });
}

#[test]
fn rot_is_named_with_what_is_missing() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        subscribe a
        append one two three four BIG five
        close
        zero 1 100 130
        open
        read a
        status
        append six
        close
        zero 7 0 64
        open
        read 0"
    )) });
}

#[test]
fn an_emptied_directory_is_another_journal() {
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(story(
        small(),
        "open
        subscribe a
        append one two three
        checkpoint a 3
        close
        wipe
        open
        status
        append four
        read a
        checkpoint a 2
        status"
    )) });
}
