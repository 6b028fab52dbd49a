//! Log lines on their way to stderr.
//!
//! Who reads stderr may stop doing so: then a write to it does not return. So no thread that has something else to do writes it. Lines wait in
//! a queue for a thread of their own; what does not fit is left out and counted, and the log says how many were left out as soon as there
//! is room. At the end, and when something panics, what still waits is waited for: [`Lines::flush`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::LogFormat;

/// What waits at most: a busy second of a daemon that logs everything it does. The next line is left out.
const MOST_BYTES: usize = 1 << 20;
/// What is written at once: as much as a pipe holds.
const AT_ONCE_BYTES: usize = 64 << 10;
/// When stderr belongs to somebody who does not wait, and is full.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The queue.
pub(super) struct Lines {
    format: LogFormat,
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Something was written.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    // Bounded by MOST_BYTES.
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Left out, and not said yet.
    left_out: u64,
    /// Lines that ever came in, and that went out.
    came: u64,
    gone: u64,
}

impl State {
    fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.came += 1;
        self.waiting.push_back(line);
    }
}

impl Lines {
    pub(super) fn new(format: LogFormat) -> Arc<Self> {
        Arc::new(Self { format, state: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves it sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or leaves it out. Never waits.
    pub(super) fn put(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > MOST_BYTES {
            state.left_out += 1;
            return;
        }
        state.push(line.to_vec());
        drop(state);
        self.filled.notify_one();
    }

    /// Queues what must not be left out: the last words of a thread.
    pub(super) fn put_anyway(&self, words: Vec<u8>) {
        self.state().push(words);
        self.filled.notify_one();
    }

    /// Waits until what was queued so far is written, at most this long; whether it is.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state();
        let wanted = state.came;
        while state.gone < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Starts the thread that writes.
    pub(super) fn start(self: &Arc<Self>, mut to: impl Write + Send + 'static) -> io::Result<()> {
        let lines = self.clone();
        let write = move || {
            loop {
                let (some, count) = lines.next();
                write(&mut to, &some);
                lines.state().gone += count;
                lines.emptied.notify_all();
            }
        };
        std::thread::Builder::new().name("log".into()).spawn(write).map(drop)
    }

    /// The lines to write next, and how many. Where some were left out before, that comes behind those that are queued: newer ones do not fit
    /// in before.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut state = self.state();
        while state.waiting.is_empty() {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut some, mut count) = (Vec::new(), 0);
        while let Some(line) = state.waiting.front()
            && (count == 0 || some.len() + line.len() <= AT_ONCE_BYTES)
        {
            some.extend_from_slice(line);
            count += 1;
            state.waiting.pop_front();
        }
        state.bytes -= some.len();
        let left_out = std::mem::take(&mut state.left_out);
        if left_out > 0 {
            state.push(self.lack(left_out));
        }
        (some, count)
    }

    fn lack(&self, lines: u64) -> Vec<u8> {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let words = "lines of this log were left out: nobody read them in time";
        let line = match self.format {
            LogFormat::Text => format!("{now}  WARN {words} lines={lines}\n"),
            LogFormat::Json => {
                let said = json!({ "timestamp": now, "level": "WARN", "message": words, "lines": lines });
                format!("{said}\n")
            }
        };
        line.into_bytes()
    }
}

/// A line that is being made. What is written at once is one line, as the layers of tracing do it.
pub(super) struct Line(pub(super) Arc<Lines>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where nobody can be told that it cannot be written, nobody is.
fn write(to: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(AGAIN_AFTER),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::sync::mpsc;

    /// A test must not wait for ever for what waits for ever.
    fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(run()));
        result.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_is_missing() {
        const PUT: u64 = 100_000;
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::new(LogFormat::Json);
        lines.start(writer).unwrap();
        let queue = lines.clone();
        in_time(move || (0..PUT).for_each(|number| queue.put(format!("{{\"number\":{number:60}}}\n").as_bytes())));
        assert!(!lines.flush(Duration::from_millis(1)), "nobody reads");
        lines.put_anyway(b"{\"last\":true}\n".to_vec());

        let (send, read) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                let _ = send.send(serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
            }
        });
        assert!(lines.flush(Duration::from_secs(60)));
        lines.put(b"{\"over\":true}\n");
        let (mut kept, mut missing, mut last, mut newest) = (0, 0, false, None);
        loop {
            let line = read.recv_timeout(Duration::from_secs(60)).unwrap();
            if line["over"] == true {
                break;
            }
            last |= line["last"] == true;
            missing += line["lines"].as_u64().unwrap_or(0);
            if let Some(number) = line["number"].as_u64() {
                assert!(newest < Some(number), "{line}");
                (kept, newest) = (kept + 1, Some(number));
            }
        }
        assert!(last && missing > PUT / 2 && kept > 10_000, "{kept} {missing}");
        assert_eq!(kept + missing, PUT);
    }

    #[test]
    fn what_is_missing_is_said_for_people_too() {
        let line = String::from_utf8(Lines::new(LogFormat::Text).lack(7)).unwrap();
        assert!(
            line.ends_with("Z  WARN lines of this log were left out: nobody read them in time lines=7\n"),
            "{line}"
        );
    }

    #[test]
    fn a_log_that_cannot_be_written_is_given_up_line_by_line() {
        struct Broken(u32);
        impl Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    2 => Err(io::ErrorKind::BrokenPipe.into()),
                    _ => Ok(bytes.len().div_ceil(2)),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::new(LogFormat::Text);
        lines.start(Broken(0)).unwrap();
        for _ in 0..3 {
            lines.put(b"a line\n");
            assert!(lines.flush(Duration::from_secs(60)));
        }
    }
}
