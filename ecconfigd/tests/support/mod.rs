//! A real server in this process: TLS on port 0 of the loopback, its own data directory, and clients that trust its CA.
#![allow(dead_code, reason = "every test file uses another part")]
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::documents::schema::ecconfigd::Limits as Settings;
use cluster::identity::ReloadingIdentity;
use ecconfigd::init;
use ecconfigd::server::{Options, Server};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest that any test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server and what a test needs to talk to it.
pub struct TestServer {
    pub dir: tempfile::TempDir,
    pub server: Server,
    pub address: SocketAddr,
    pub password: String,
    pub ca_pem: String,
    pub client: Client,
}

pub fn init_options(data: &Path) -> init::Options {
    init::Options {
        data: data.to_owned(),
        node: "n1".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        subcluster: "default".into(),
        cluster: "test".into(),
        link: None,
    }
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        init::init(&init_options(&dir.path().join("data"))).await.unwrap();
        Self::run(dir, settings).await
    }

    /// Starts a server in a directory that was initialised before.
    pub async fn run(dir: tempfile::TempDir, settings: Settings) -> Self {
        let data = dir.path().join("data");
        let options = Options { data: data.clone(), settings: Some(settings), ..Options::default() };
        let server = Server::start(options).await.unwrap();
        server.app().core.wait_ready(PATIENCE).await.unwrap();
        let address = server.addresses()[0];
        let password = std::fs::read_to_string(data.join("admin-password")).unwrap().trim().to_owned();
        let ca_pem = std::fs::read_to_string(data.join("ca.pem")).unwrap();
        let client = client(&ca_pem, None, None);
        Self { dir, server, address, password, ca_pem, client }
    }

    /// Stops it and keeps its directory.
    pub async fn stop(self) -> tempfile::TempDir {
        let _ = self.server.shutdown().await;
        self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// A request as nobody.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// A request as `admin`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).basic_auth("admin", Some(&self.password))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// A GET that must succeed, as JSON.
    pub async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    pub async fn head(&self, repo: &str) -> u64 {
        self.json(&format!("/api/v1/repos/{repo}/head")).await["revision"].as_u64().unwrap()
    }

    /// Commits files on the head and returns the new revision.
    pub async fn commit(&self, repo: &str, files: &[(&str, &str)]) -> u64 {
        let base = self.head(repo).await;
        let changes: Vec<Value> = files.iter().map(|(path, text)| json!({"path": path, "content": text})).collect();
        let body = json!({"base": base, "message": "test", "changes": changes});
        let response = self.post(&format!("/api/v1/repos/{repo}/commits"), &body).await;
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, 201, "{answer}");
        answer["revision"].as_u64().unwrap()
    }

    /// Enrols a node and returns the directory of its identity.
    pub async fn enroll(&self, node: &str) -> Arc<ReloadingIdentity> {
        let answer: Value =
            self.post("/api/v1/node-tokens", &json!({"subcluster": "default"})).await.json().await.unwrap();
        let token = answer["token"].as_str().unwrap().parse().unwrap();
        let server = self.url("").parse().unwrap();
        let identity = cluster::identity::enroll(vec![server], &token, node).await.unwrap();
        let dir = self.dir.path().join(format!("identity-{node}"));
        identity.store(&dir).unwrap();
        ReloadingIdentity::load(dir).unwrap()
    }

    /// A client that shows a node's certificate.
    pub fn client_of(&self, identity: Arc<ReloadingIdentity>) -> Client {
        client(&self.ca_pem, Some(identity), None)
    }
}

/// A client that trusts this CA; `alpn` restricts the protocol.
pub fn client(ca_pem: &str, identity: Option<Arc<ReloadingIdentity>>, alpn: Option<&[u8]>) -> Client {
    let mut tls = cluster::tls::client_config(ca_pem, identity).unwrap();
    if let Some(alpn) = alpn {
        tls.alpn_protocols = vec![alpn.to_vec()];
    }
    Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE).no_proxy().build().unwrap()
}

/// The problem document of an answer, checked for its form.
pub async fn problem(response: Response) -> Value {
    let status = response.status().as_u16();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "status {status}");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert_eq!(body["request_id"], id);
    assert_eq!(body["type"], format!("urn:eccluster:problem:{}", body["code"].as_str().unwrap()));
    body
}

/// A TLS connection that speaks HTTP/1.1, to be written by hand.
pub async fn raw(server: &TestServer) -> TlsStream<TcpStream> {
    let mut tls = cluster::tls::client_config(&server.ca_pem, None).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::from(server.address.ip());
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap()
}

/// Everything until the server closes.
pub async fn read_all(stream: &mut TlsStream<TcpStream>) -> String {
    let mut text = Vec::new();
    // A close without close_notify is an end as well.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await.expect("the server closes in time");
    String::from_utf8_lossy(&text).into_owned()
}

/// The head of one answer.
pub async fn read_head(stream: &mut TlsStream<TcpStream>) -> String {
    let reading = async {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { break };
            text.push(char::from(byte));
        }
        text
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time")
}

/// One answer: its head, and as much body as its length says.
pub async fn read_answer(stream: &mut TlsStream<TcpStream>) -> String {
    let text = read_head(stream).await;
    let reading = async {
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        text + &String::from_utf8_lossy(&body)
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time")
}

/// `admin`'s credentials as an `Authorization` header.
pub fn basic(server: &TestServer) -> String {
    use base64::Engine as _;
    let credentials = format!("admin:{}", server.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials))
}
