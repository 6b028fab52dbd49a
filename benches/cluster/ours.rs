//! Three ecconfigd on the loopback address: the release binary, TLS, as an operator would start them.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use cluster::api::{ChangeRequest, ClusterInfo, CommitRequest, CommitResponse, Head};
use cluster::http_client::{ApiClient, ClientError, Credentials};

use crate::support::{DEADLINE, assert_success, eccluster};

pub struct Ours {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    children: Vec<Option<Child>>,
}

impl Ours {
    pub async fn start() -> Ours {
        // Kept open together while they are chosen, so that the three differ.
        let sockets: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        drop(sockets);
        let mut ours = Ours { dir: tempfile::tempdir().unwrap(), ports, children: vec![None, None, None] };
        let listen = |number: usize| format!("127.0.0.1:{}", ours.ports[number]);
        let init = eccluster(&ours.home(0))
            .args(["ecconfigd", "init", "--node", "n1", "--listen", &listen(0), "--data"])
            .arg(ours.data(0))
            .output()
            .unwrap();
        assert_success(&init);
        ours.run(0);
        ours.ready(0).await;
        for number in 1..3 {
            let token = eccluster(ours.dir.path())
                .args(["eccfg", "node", "token", "--username", "admin", "--server", &ours.url(0), "--ca"])
                .arg(ours.data(0).join("ca.pem"))
                .arg("--password-file")
                .arg(ours.data(0).join("admin-password"))
                .output()
                .unwrap();
            assert_success(&token);
            let token = String::from_utf8(token.stdout).unwrap();
            let name = format!("n{}", number + 1);
            let listen = format!("127.0.0.1:{}", ours.ports[number]);
            let join = eccluster(&ours.home(number))
                .args(["ecconfigd", "join", "--node", &name, "--listen", &listen, "--server", &ours.url(0)])
                .args(["--token", token.trim(), "--data"])
                .arg(ours.data(number))
                .output()
                .unwrap();
            assert_success(&join);
            ours.run(number);
            ours.ready(number).await;
        }
        let begun = Instant::now();
        loop {
            let info: ClusterInfo = ours.client(0).get_json("/api/v1/cluster").await.unwrap();
            if info.members.iter().filter(|member| member.role == cluster::api::NodeRole::Voter).count() == 3 {
                return ours;
            }
            assert!(begun.elapsed() < DEADLINE, "three voters");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn home(&self, number: usize) -> PathBuf {
        let home = self.dir.path().join(format!("n{}", number + 1));
        std::fs::create_dir_all(&home).unwrap();
        home
    }

    fn data(&self, number: usize) -> PathBuf {
        self.home(number).join("data")
    }

    fn url(&self, number: usize) -> String {
        format!("https://127.0.0.1:{}", self.ports[number])
    }

    pub fn run(&mut self, number: usize) {
        self.run_on(number, None);
    }

    /// On one processor only, if one is named.
    pub fn run_on(&mut self, number: usize, processor: Option<usize>) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.home(number).join("log")).unwrap();
        let mut run = eccluster(&self.home(number));
        run.args(["ecconfigd", "run", "--data"]).arg(self.data(number));
        let child = run.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        if let Some(processor) = processor {
            pin(child.id(), processor);
        }
        self.children[number] = Some(child);
    }

    /// Keeps this program and the servers that run on one processor.
    pub fn pin_all(&self, processor: usize) {
        let pids = self.children.iter().flatten().map(Child::id).chain([std::process::id()]);
        pids.for_each(|pid| pin(pid, processor));
    }

    pub fn kill(&mut self, number: usize) {
        let mut child = self.children[number].take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub async fn ready(&self, number: usize) {
        let (client, begun) = (self.client(number), Instant::now());
        while client.get_bytes("/readyz", 1 << 16).await.is_err() {
            assert!(begun.elapsed() < DEADLINE, "n{} is not ready", number + 1);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// A client of one server, with a connection of its own.
    pub fn client(&self, number: usize) -> ApiClient {
        self.client_of(&[number])
    }

    pub fn client_of(&self, numbers: &[usize]) -> ApiClient {
        let password = std::fs::read_to_string(self.data(0).join("admin-password")).unwrap().trim_end().to_owned();
        let credentials = Credentials::Basic { username: "admin".into(), password: password.into() };
        let servers = numbers.iter().map(|number| self.url(*number).parse().unwrap()).collect();
        ApiClient::new(servers, &std::fs::read_to_string(self.data(0).join("ca.pem")).unwrap(), credentials).unwrap()
    }

    /// The number of the server that leads.
    pub async fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            for number in (0..3).filter(|number| self.children[*number].is_some()) {
                let info: Result<ClusterInfo, ClientError> = self.client(number).get_json("/api/v1/cluster").await;
                let leader = info.ok().and_then(|info| info.leader);
                if let Some(leader) = leader.and_then(|name| name.strip_prefix('n')?.parse::<usize>().ok())
                    && self.children[leader - 1].is_some()
                {
                    return leader - 1;
                }
            }
            assert!(begun.elapsed() < DEADLINE, "no leader");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// All threads of a process on one processor.
fn pin(pid: u32, processor: usize) {
    let words = ["-a", "-c", "-p", &processor.to_string(), &pid.to_string()].map(str::to_owned);
    let done = Command::new("taskset").args(words).output().unwrap();
    assert!(done.status.success(), "taskset: {}", String::from_utf8_lossy(&done.stderr));
}

impl Drop for Ours {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub async fn head(client: &ApiClient) -> Result<Head, ClientError> {
    client.get_json("/api/v1/repos/default/head").await
}

/// One real commit of one file: blob, trees, commit, gate, quorum.
pub async fn commit(client: &ApiClient, base: u64, path: &str, content: &[u8]) -> Result<u64, ClientError> {
    let changes = vec![ChangeRequest::put(path, content.to_vec())];
    let request = CommitRequest { base: base.into(), message: "bench".into(), changes };
    let answer: CommitResponse = client.post_json("/api/v1/repos/default/commits", &request).await?;
    Ok(answer.revision)
}
