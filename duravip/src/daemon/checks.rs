//! Whether the services on this node are well. A check passes or fails after `rise` or `fall` results in a row; the first
//! result counts at once, and before it the check fails: a node that just started must not get addresses for a service that
//! may not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use cluster::documents::schema::duravip::{Check, Probe};
use duravip_core::Event;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::inbox::Inbox;

/// The checks that run.
#[derive(Debug, Default)]
pub struct Checks {
    wanted: BTreeMap<String, Check>,
    tasks: JoinSet<()>,
    states: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Checks {
    /// Runs these from here on. Checks that are the same keep their state; others begin anew.
    pub fn configure(&mut self, checks: &BTreeMap<String, Check>, inbox: &Inbox) {
        if self.wanted == *checks && !checks.is_empty() {
            return;
        }
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        let same = |name: &String| self.wanted.get(name) == checks.get(name);
        let before = std::mem::take(&mut *lock(&self.states));
        let kept = checks.keys().map(|name| (name.clone(), same(name) && before.get(name) == Some(&true)));
        self.states = Arc::new(Mutex::new(kept.collect()));
        self.wanted.clone_from(checks);
        tell(&self.states, inbox);
        for (name, check) in checks.clone() {
            let first = !lock(&self.states)[&name];
            self.tasks.spawn(watch(name, check, first, self.states.clone(), inbox.clone()));
        }
    }

    /// What every check says now.
    pub fn states(&self) -> BTreeMap<String, bool> {
        lock(&self.states).clone()
    }
}

fn lock(states: &Mutex<BTreeMap<String, bool>>) -> std::sync::MutexGuard<'_, BTreeMap<String, bool>> {
    states.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(states: &Mutex<BTreeMap<String, bool>>, inbox: &Inbox) {
    let failing: BTreeSet<String> =
        lock(states).iter().filter(|(_, well)| !**well).map(|(name, _)| name.clone()).collect();
    inbox.event(Event::Failing(failing));
}

async fn watch(name: String, check: Check, mut first: bool, states: Arc<Mutex<BTreeMap<String, bool>>>, inbox: Inbox) {
    let mut ticks = tokio::time::interval(check.interval.get());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut in_a_row = 0;
    loop {
        ticks.tick().await;
        let outcome = tokio::time::timeout(check.timeout.get(), ask(&check.probe)).await;
        let result = outcome.unwrap_or_else(|_| Err(format!("no answer within {}", check.timeout)));
        let well = lock(&states)[&name];
        in_a_row = if result.is_ok() == well { 0 } else { in_a_row + 1 };
        let needed = if well { check.fall } else { check.rise };
        if in_a_row >= needed || (first && result.is_ok()) {
            in_a_row = 0;
            lock(&states).insert(name.clone(), !well);
            match &result {
                Ok(()) => tracing::info!(check = name, "the check passes"),
                Err(why) => tracing::warn!(check = name, why, "the check fails"),
            }
            tell(&states, &inbox);
        }
        first = false;
    }
}

async fn ask(probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Tcp(place) => connect(&place.to_string()).await.map(drop),
        Probe::Exec(argv) => run(argv).await,
        Probe::Http(url) => get(url).await,
    }
}

async fn connect(place: &str) -> Result<TcpStream, String> {
    TcpStream::connect(place).await.map_err(|error| format!("{place}: {error}"))
}

async fn run(argv: &[String]) -> Result<(), String> {
    let (program, arguments) = argv.split_first().ok_or("no command")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A request by hand: what is asked is whether the service answers, and that is in the first line.
async fn get(url: &str) -> Result<(), String> {
    let (secure, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://").unwrap_or(url)),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let place = match (has_port, secure) {
        (true, _) => authority.to_owned(),
        (false, true) => format!("{authority}:443"),
        (false, false) => format!("{authority}:80"),
    };
    if secure {
        return Err("https is not spoken by checks; use exec with a program that does".into());
    }
    let status = status_of(connect(&place).await?, authority, path).await?;
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("{url} answered {status}")) }
}

async fn status_of(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> Result<u16, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: duravip\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(stream, 1024));
    reader.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1));
    status.and_then(|status| status.trim().parse().ok()).ok_or_else(|| "the answer is not HTTP".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn answers_are_judged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 512];
                let length = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap();
                let good = request[..length].starts_with(b"GET /good?x=1 HTTP/1.1\r\n");
                let answer: &[u8] =
                    if good { b"HTTP/1.1 204 No Content\r\n\r\n" } else { b"HTTP/1.0 503 Busy\r\n\r\n" };
                stream.write_all(answer).await.unwrap();
            }
        });
        assert_eq!(get(&format!("http://{place}/good?x=1")).await, Ok(()));
        let bad = get(&format!("http://{place}")).await.unwrap_err();
        assert!(bad.ends_with("answered 503"), "{bad}");
        assert!(ask(&Probe::Tcp(place.to_string().parse().unwrap())).await.is_ok());
        assert!(run(&["true".into()]).await.is_ok());
        assert!(run(&["false".into()]).await.is_err());
        assert!(run(&["/nowhere".into()]).await.is_err());
    }
}
