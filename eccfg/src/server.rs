//! The requests that `eccfg` makes, each a method: the one file that knows the API's paths.
//!
//! A [`Server`] is all servers of a cluster; which of them answers is the HTTP client's business.

use std::time::Duration;

use cluster::api::{
    ClusterInfo, CommitDetail, CopyRepo, CreateRepo, Diff, EffectiveDocument, Head, LogEntry, MemberState,
    MultiCommitRequest, MultiCommitResponse, NodeInfo, NodeReport, NodeTokenRequest, NodeTokenResponse, PinRequest,
    RepoInfo, RevisionSpec, Target,
};
use cluster::http_client::{ApiClient, Call, ClientError, EventStream, Payload, Reply, escape, escape_path};

/// A commit may carry megabytes and wait for a leader.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long to wait before a commit is sent again: together longer than an election takes.
const COMMIT_PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// The first byte of a pack comes once the server has counted its objects.
const PACK_HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster's servers, spoken to as somebody.
#[derive(Clone, Debug)]
pub struct Server {
    client: ApiClient,
    ca_pem: String,
}

impl Server {
    /// Speaks through `client`, which trusts the CA in `ca_pem`.
    pub fn new(client: ApiClient, ca_pem: String) -> Server {
        Server { client, ca_pem }
    }

    /// The CA that is trusted.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The HTTP client, for what has no method here.
    pub fn client(&self) -> &ApiClient {
        &self.client
    }

    /// The server that is asked first, to be recorded with what came from it.
    pub fn name(&self) -> String {
        self.client.preferred_server().to_string()
    }

    /// The repositories that may be read.
    pub async fn repos(&self) -> Result<Vec<RepoInfo>, ClientError> {
        self.client.get_json("/api/v1/repos").await
    }

    /// Creates a subcluster's repository from the packaged templates.
    pub async fn create_repo(&self, name: &str) -> Result<RepoInfo, ClientError> {
        let request = CreateRepo { name: name.to_owned() };
        self.client.post_json_idempotent("/api/v1/repos", &request, &random_key()).await
    }

    /// Copies one repository onto another.
    pub async fn copy_repo(&self, to: &str, request: &CopyRepo) -> Result<RepoInfo, ClientError> {
        let path = format!("/api/v1/repos/{}/copy", escape(to));
        let call = Call::post(&path).json(request)?.idempotency_key(&random_key()).timeout(COMMIT_TIMEOUT);
        self.client.send(call).await?.json().await
    }

    /// Freezes a repository, or thaws it.
    pub async fn freeze(&self, repo: &str, frozen: bool) -> Result<RepoInfo, ClientError> {
        let what = if frozen { "freeze" } else { "thaw" };
        let call = Call::post(&format!("/api/v1/repos/{}/{what}", escape(repo))).idempotency_key(&random_key());
        self.client.send(call).await?.json().await
    }

    /// An examination of the cluster: one `DoctorLine` per line, while it goes on.
    pub async fn doctor(&self, deep: bool) -> Result<Reply, ClientError> {
        let call = Call::get("/api/v1/doctor").query("deep", deep);
        self.client.send(call.streaming(PACK_HEAD_TIMEOUT)).await
    }

    /// The Raft group.
    pub async fn cluster(&self) -> Result<ClusterInfo, ClientError> {
        self.client.get_json("/api/v1/cluster").await
    }

    /// Pins the leadership to a node, or unpins it.
    pub async fn pin(&self, node: &str, pinned: bool) -> Result<(), ClientError> {
        let path = if pinned { "/api/v1/cluster/pin" } else { "/api/v1/cluster/unpin" };
        let request = PinRequest { node: node.to_owned() };
        let call = Call::post(path).json(&request)?.idempotency_key(&random_key());
        self.client.send(call).await.map(drop)
    }

    /// Where a repository's `main` stands.
    pub async fn head(&self, repo: &str) -> Result<Head, ClientError> {
        self.client.get_json(&format!("/api/v1/repos/{}/head", escape(repo))).await
    }

    /// What a node shall have.
    pub async fn target(&self, node: &str) -> Result<Target, ClientError> {
        self.client.get_json(&format!("/api/v1/nodes/{}/target", escape(node))).await
    }

    /// The event stream of a node's target; its ids are serials.
    pub fn target_events(&self, node: &str, after: Option<u64>) -> EventStream {
        let path = format!("/api/v1/nodes/{}/target", escape(node));
        self.client.events(&path, after.map(|serial| serial.to_string()))
    }

    /// The event stream of a repository; its ids are revisions. `after` is asked for in the path too, because a stream that has seen
    /// nothing yet has no id to resume after.
    pub fn repo_events(&self, repo: &str, after: u64, paths: &[String]) -> EventStream {
        let mut path = format!("/api/v1/repos/{}/watch?after={after}", escape(repo));
        for glob in paths {
            path.push_str(&format!("&path={}", escape(glob)));
        }
        self.client.events(&path, Some(after.to_string()))
    }

    /// The newest commits, of one file if `path` is given.
    pub async fn log(&self, repo: &str, path: Option<&str>, limit: u32) -> Result<Vec<LogEntry>, ClientError> {
        let mut call = Call::get(&format!("/api/v1/repos/{}/log", escape(repo))).query("limit", limit);
        if let Some(path) = path {
            call = call.query("path", path);
        }
        self.client.send(call).await?.json().await
    }

    /// One commit with its patch.
    pub async fn commit(&self, repo: &str, revision: &RevisionSpec) -> Result<CommitDetail, ClientError> {
        self.client.get_json(&format!("/api/v1/repos/{}/commits/{}", escape(repo), spec(revision))).await
    }

    /// The difference between two revisions.
    pub async fn diff(&self, repo: &str, from: &RevisionSpec, to: Option<&RevisionSpec>) -> Result<Diff, ClientError> {
        let mut call = Call::get(&format!("/api/v1/repos/{}/diff", escape(repo))).query("from", spec(from));
        if let Some(to) = to {
            call = call.query("to", spec(to));
        }
        self.client.send(call).await?.json().await
    }

    /// Commits to one or several repositories, all or nothing. A lost answer is asked for again under the same key, so that what was
    /// committed is not committed twice and its revision is learnt; so is a server that is busy.
    pub async fn commit_all(&self, request: &MultiCommitRequest) -> Result<MultiCommitResponse, ClientError> {
        let key = random_key();
        let mut pauses = COMMIT_PAUSES.iter();
        loop {
            let call = Call::post("/api/v1/commits").json(request)?.idempotency_key(&key).timeout(COMMIT_TIMEOUT);
            let error = match self.client.send(call).await {
                Ok(reply) => return reply.json().await,
                Err(error) => error,
            };
            let busy = matches!(error.status(), Some(429 | 502..=504));
            let again = error.is_temporary() && (busy || !error.is_certainly_not_done());
            match pauses.next().filter(|_| again) {
                Some(pause) => {
                    tracing::debug!(%error, "committing again under the same key");
                    tokio::time::sleep(*pause).await;
                }
                None => return Err(error),
            }
        }
    }

    /// A document as one node sees it.
    pub async fn effective(&self, subcluster: &str, node: &str, file: &str) -> Result<EffectiveDocument, ClientError> {
        let file = escape_path(file.as_bytes());
        self.client.get_json(&format!("/api/v1/effective/{}/{}/{file}", escape(subcluster), escape(node))).await
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, ClientError> {
        self.client.get_json("/api/v1/nodes").await
    }

    /// How the servers are at this moment.
    pub async fn member_states(&self) -> Result<Vec<MemberState>, ClientError> {
        self.client.get_json("/api/v1/cluster/members").await
    }

    /// One node with its reports.
    pub async fn node(&self, node: &str) -> Result<NodeInfo, ClientError> {
        self.client.get_json(&format!("/api/v1/nodes/{}", escape(node))).await
    }

    /// Says what a program on a node did with its target.
    pub async fn report(&self, node: &str, report: &NodeReport) -> Result<(), ClientError> {
        let path = format!("/api/v1/nodes/{}/report", escape(node));
        self.client.send(Call::post(&path).json(report)?.idempotency_key(&random_key())).await.map(drop)
    }

    /// Lets a member vote.
    pub async fn promote(&self, node: &str) -> Result<(), ClientError> {
        self.change_node(node, "promote").await.map(drop)
    }

    /// Takes a member's vote away.
    pub async fn demote(&self, node: &str) -> Result<(), ClientError> {
        self.change_node(node, "demote").await.map(drop)
    }

    /// Removes a node for good.
    pub async fn remove_node(&self, node: &str) -> Result<(), ClientError> {
        // Removed twice is removed: another server may be asked when one does not know what became of it. That there is no such node is good
        // news then.
        let call = Call::delete(&format!("/api/v1/nodes/{}", escape(node)));
        match self.client.send(call.idempotency_key(&random_key())).await {
            Err(ClientError::Api(error)) if error.status == 404 && error.in_doubt => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// A one-time token with which a new machine takes a member's name over.
    pub async fn replace_node(&self, node: &str) -> Result<NodeTokenResponse, ClientError> {
        self.change_node(node, "replace").await?.json().await
    }

    async fn change_node(&self, node: &str, how: &str) -> Result<Reply, ClientError> {
        let path = format!("/api/v1/nodes/{}/{how}", escape(node));
        self.client.send(Call::post(&path).idempotency_key(&random_key())).await
    }

    /// A one-time token for a new node. One that was made and never seen expires by itself.
    pub async fn node_token(&self, request: &NodeTokenRequest) -> Result<NodeTokenResponse, ClientError> {
        self.client.post_json_idempotent("/api/v1/node-tokens", request, &random_key()).await
    }

    /// The answer to a protocol v2 fetch, its body unread.
    pub async fn upload_pack(&self, repo: &str, body: Vec<u8>) -> Result<Reply, ClientError> {
        let call = Call::post(&format!("/{}.git/git-upload-pack", escape(repo)))
            .body("application/x-git-upload-pack-request", Payload::Bytes(body.into()))
            .header("git-protocol", "version=2")
            .header("accept", "application/x-git-upload-pack-result")
            // Reading is safe to repeat at another server.
            .idempotency_key(&random_key())
            .streaming(PACK_HEAD_TIMEOUT);
        self.client.send(call).await
    }
}

/// A revision number is written `r47` where a bare number could be taken for a commit id.
fn spec(revision: &RevisionSpec) -> String {
    match revision {
        RevisionSpec::Number(number) => format!("r{number}"),
        RevisionSpec::Commit(id) => id.clone(),
    }
}

/// 128 random bits: no two requests ever share a key.
pub(crate) fn random_key() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel's random source does not fail once the system is up");
    hex::encode(bytes)
}
