//! Whether the services on this node are well. A check passes or fails after `rise` or `fall` results in a row; the first
//! result counts at once, and before it the check fails: a node that just started must not get addresses for a service that
//! may not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use cluster::documents::schema::duravip::{Check, Probe};
use duravip_core::Event;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::check_tls;
use super::command;
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
    let mut trust = None;
    loop {
        ticks.tick().await;
        let outcome = tokio::time::timeout(check.timeout.get(), ask(&check.probe, &mut trust)).await;
        let result = outcome.unwrap_or_else(|_| Err(format!("no answer within {}", check.timeout)));
        if result.is_err() {
            trust = None;
        }
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

async fn ask(probe: &Probe, trust: &mut Trust) -> Result<(), String> {
    match probe {
        Probe::Tcp(place) => connect(&place.to_string()).await.map(drop),
        Probe::Exec(argv) => run(argv).await,
        Probe::Http(url, ca) => get(url, ca.as_deref(), trust).await,
    }
}

/// Whom a check believes. Read once, and again after a failure: certificates are renewed.
type Trust = Option<Arc<ClientConfig>>;

fn trusting<'a>(trust: &'a mut Trust, ca: Option<&Path>) -> Result<&'a Arc<ClientConfig>, String> {
    match trust {
        Some(trust) => Ok(trust),
        None => Ok(trust.insert(check_tls::client(ca)?)),
    }
}

async fn connect(place: &str) -> Result<TcpStream, String> {
    TcpStream::connect(place).await.map_err(|error| format!("{place}: {error}"))
}

async fn run(argv: &[String]) -> Result<(), String> {
    let (program, arguments) = argv.split_first().ok_or("no command")?;
    let mut process = tokio::process::Command::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command::status(process).await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A request by hand: what is asked is whether the service answers, and that is in the first line.
async fn get(url: &str, ca: Option<&Path>, trust: &mut Trust) -> Result<(), String> {
    let (secure, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://").unwrap_or(url)),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let (host, place) = place_of(authority, if secure { 443 } else { 80 });
    let status = if secure {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let connector = TlsConnector::from(trusting(trust, ca)?.clone());
        let stream = connector.connect(name, connect(&place).await?).await;
        status_of(stream.map_err(|error| format!("{place}: {error}"))?, authority, path).await?
    } else {
        status_of(connect(&place).await?, authority, path).await?
    };
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("{url} answered {status}")) }
}

/// The host without brackets, and where it is reached.
fn place_of(authority: &str, usual_port: u16) -> (&str, String) {
    let port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let (host, place) = match port {
        Some((host, _)) => (host, authority.to_owned()),
        None => (authority, format!("{authority}:{usual_port}")),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), place)
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
    use cluster::identity::{Ca, KeyRequest, NodeCert, NodeRole, ReloadingIdentity};

    /// A web server that has something good at one place only.
    async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = [0; 512];
        let length = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap();
        let good = request[..length].starts_with(b"GET /good?x=1 HTTP/1.1\r\n");
        let answer: &[u8] = if good { b"HTTP/1.1 204 No Content\r\n\r\n" } else { b"HTTP/1.0 503 Busy\r\n\r\n" };
        stream.write_all(answer).await.unwrap();
        let _ = stream.shutdown().await;
    }

    #[tokio::test]
    async fn answers_are_judged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                serve(listener.accept().await.unwrap().0).await;
            }
        });
        assert_eq!(get(&format!("http://{place}/good?x=1"), None, &mut None).await, Ok(()));
        let bad = get(&format!("http://{place}"), None, &mut None).await.unwrap_err();
        assert!(bad.ends_with("answered 503"), "{bad}");
        assert!(ask(&Probe::Tcp(place.to_string().parse().unwrap()), &mut None).await.is_ok());
        assert!(run(&["true".into()]).await.is_ok());
        assert!(run(&["false".into()]).await.is_err());
        assert!(run(&["/nowhere".into()]).await.is_err());
    }

    #[tokio::test]
    async fn who_answers_over_https_has_to_be_believed() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create("test").unwrap();
        let issue = |name: &str| {
            let request = KeyRequest::generate(name).unwrap();
            let node = NodeCert::new(name, "default", NodeRole::Client).reached_at("127.0.0.1");
            let chain = ca.issue(request.csr_pem(), &node, std::time::Duration::from_secs(3600)).unwrap();
            request.certified(&chain.pem, ca.certificate_pem()).unwrap()
        };
        let identity = issue("n1");
        identity.store(&dir.path().join("n1")).unwrap();
        let shown = ReloadingIdentity::load(dir.path().join("n1")).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(
            cluster::tls::server_config(shown, ca.certificate_pem()).unwrap(),
        ));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
                if let Ok(stream) = accepted {
                    serve(stream).await;
                }
            }
        });
        let file = |name: &str, pem: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let url = format!("https://{place}/good?x=1");
        let authority = file("ca.pem", ca.certificate_pem());
        let own = file("own.pem", identity.cert_pem());
        let stranger = file("stranger.pem", Ca::create("other").unwrap().certificate_pem());
        let empty = file("empty.pem", "");
        for believed in [&authority, &own] {
            assert_eq!(get(&url, Some(believed), &mut None).await, Ok(()), "{}", believed.display());
        }
        let bad = get(&format!("https://{place}/"), Some(&authority), &mut None).await.unwrap_err();
        assert!(bad.ends_with("answered 503"), "{bad}");
        // By another name it is believed only if the file has its own certificate.
        let elsewhere = format!("https://localhost:{}/good?x=1", place.port());
        assert_eq!(get(&elsewhere, Some(&own), &mut None).await, Ok(()));
        for (url, ca, words) in [
            (&url, Some(&stranger), "UnknownIssuer"),
            (&url, None, ""),
            (&url, Some(&empty), "holds no certificate"),
            (&url, Some(&dir.path().join("nowhere")), "is not there"),
            (&"https://127.0.0.2:1/".to_owned(), Some(&authority), "127.0.0.2:1"),
        ] {
            let refused = get(url, ca.map(|path| path.as_path()), &mut None).await.unwrap_err();
            assert!(refused.contains(words), "{url} {ca:?}: {refused}");
        }
    }

    #[test]
    fn places_have_a_port_and_names_no_brackets() {
        for (authority, host, place) in [
            ("a.example", "a.example", "a.example:443"),
            ("a.example:8", "a.example", "a.example:8"),
            ("[::1]", "::1", "[::1]:443"),
            ("[::1]:8", "::1", "[::1]:8"),
        ] {
            assert_eq!(place_of(authority, 443), (host, place.to_owned()));
        }
    }
}
