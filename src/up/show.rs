//! What `eccluster up` prints: how to reach the cluster, then its commits and the fate of its processes.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cluster::api::{ChangeRequest, ClusterInfo, CommitRequest, CommitResponse, Head, NodeRole, RepoInfo, WatchEvent};
use cluster::http_client::{ApiClient, Credentials, ServerUrl, escape};
use tokio::sync::mpsc;

use super::layout::{Layout, quoted};
use super::node::{Event, Means, Network, Node, Role};

/// How long a node may take to serve; a first start makes keys and repositories.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// How often readiness is asked for.
const READY_EVERY: Duration = Duration::from_millis(50);
/// Lines that wait for the terminal; when it is slower than the commits, following pauses and resumes where it was.
const COMMIT_QUEUE: usize = 64;

/// What the web services of a new cluster show.
const FIRST_PAGE: &str = "default/web/site.toml";

/// Prints a line at once; a closed standard output is no reason to end the cluster.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints what happened to a process; one that cannot be started at all ends everything.
pub(crate) fn event(node: &str, event: Event) -> anyhow::Result<()> {
    match event {
        Event::Started(role, pid) => line(&format!("{node}  {} runs again, pid {pid}", role.name())),
        Event::Ended(role, words) => line(&format!("{node}  {} ended ({words}) and is started again", role.name())),
        Event::Failed(role, error) => return Err(error.context(format!("the {} of {node}", role.name()))),
    }
    Ok(())
}

/// Says where everything is and what to try.
pub(crate) fn summary(layout: &Layout, means: &Means, nodes: &[Arc<Node>], pids: &[(String, Role, u32)]) {
    let count = nodes.len();
    let (plural, network) = match (count, &means.network) {
        (1, Network::Own(why)) => ("node", format!("in a network namespace of its own ({why})")),
        (1, Network::Host(why)) => ("node", format!("on loopback ports ({why})")),
        (_, Network::Own(why)) => ("nodes", format!("each in a network namespace of its own ({why})")),
        (_, Network::Host(why)) => ("nodes", format!("on loopback ports ({why})")),
    };
    line(&format!("A cluster of {count} {plural} runs in {}, {network}.", layout.dir().display()));
    if let Some(why) = &means.no_checks {
        line(&format!("Changes are not checked before they are put in place, only taken back when they fail ({why})."));
    }
    line("");
    for node in nodes {
        let pid = |role: Role| {
            pids.iter().find(|(name, of, _)| *name == node.name && *of == role).map_or(0, |(_, _, pid)| *pid)
        };
        line(&format!(
            "  {}  https://{}  ecconfigd pid {}, agent pid {}, web service http://{} pid {}",
            node.name,
            node.address(),
            pid(Role::Server),
            pid(Role::Agent),
            node.web_address(),
            pid(Role::Web)
        ));
    }
    let Some(first) = nodes.first() else { return };
    let (dir, ca, address) = (layout.dir(), quoted(&layout.ca()), first.address());
    line("");
    line(&format!("  console       https://{address}/"));
    line(&format!("  user          admin, password in {}", layout.password().display()));
    line(&format!("  certificate   {}", layout.ca().display()));
    line("");
    line("Try, in another terminal:");
    line("");
    let credentials = quoted(&dir.join("git-credentials"));
    line(&format!(
        "  GIT_SSL_CAINFO={ca} git clone --config http.sslCAInfo={ca} --config credential.helper='store --file {credentials}' https://admin@{address}/default.git"
    ));
    line(&format!("  . {}; eccfg log", quoted(&dir.join("env"))));
    line(&format!(
        "  curl --cacert {ca} --netrc-file {} -d '{}' -H 'content-type: application/json' https://{address}/api/v1/repos/default/commits",
        quoted(&dir.join("netrc")),
        r#"{"base":1,"message":"Say hello","changes":[{"path":"n1/web/site.toml","content":"message = \"Hello from curl\"\n"}]}"#
    ));
    line("");
    line("Commits appear below as they arrive; Ctrl-C ends the cluster, the same command resumes it.");
    line("");
}

/// Asks the cluster as its admin user.
pub(crate) struct Client {
    api: ApiClient,
}

impl Client {
    pub(crate) fn new(layout: &Layout, nodes: &[Arc<Node>]) -> anyhow::Result<Client> {
        let servers: Vec<ServerUrl> =
            nodes.iter().map(|node| format!("https://{}", node.address()).parse()).collect::<Result<_, _>>()?;
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let password = read(&layout.password())?.trim_end().to_owned().into();
        let credentials = Credentials::Basic { username: "admin".into(), password };
        Ok(Client { api: ApiClient::new(servers, &read(&layout.ca())?, credentials)? })
    }

    /// Waits until a server serves and all nodes vote: from then on the loss of any one of three changes nothing.
    pub(crate) async fn wait_ready(&self, nodes: usize) -> anyhow::Result<()> {
        let ask = async {
            loop {
                let cluster: Result<ClusterInfo, _> = self.api.get_json("/api/v1/cluster").await;
                let votes = |cluster: &ClusterInfo| {
                    cluster.members.iter().filter(|member| member.role == NodeRole::Voter).count() >= nodes
                };
                if cluster.is_ok_and(|cluster| cluster.leader.is_some() && votes(&cluster)) {
                    return;
                }
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        tokio::time::timeout(READY_DEADLINE, ask)
            .await
            .context("the cluster is not ready after two minutes; its logs are in the nodes' directories")
    }

    /// Commits what the web services show, unless somebody has done so before.
    pub(crate) async fn first_page(&self) -> anyhow::Result<()> {
        let head: Head = self.api.get_json("/api/v1/repos/default/head").await?;
        match self.api.get_bytes(&format!("/api/v1/repos/default/files/{FIRST_PAGE}"), 1 << 20).await {
            Ok(_) => return Ok(()),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error).context("cannot read the repository default"),
        }
        let page = "title = \"eccluster\"\nmessage = \"Change default/web/site.toml, commit, and reload this page.\"\ncolor = \"seagreen\"\n";
        let commit = CommitRequest {
            base: head.revision.into(),
            message: "Show a first page".into(),
            changes: vec![ChangeRequest::put(FIRST_PAGE, page.into())],
        };
        let _: CommitResponse = self
            .api
            .post_json("/api/v1/repos/default/commits", &commit)
            .await
            .context("cannot commit the first page")?;
        Ok(())
    }

    /// The commits of all repositories, as lines, from now on.
    pub(crate) async fn follow_commits(&self) -> anyhow::Result<mpsc::Receiver<String>> {
        let (lines, receiver) = mpsc::channel(COMMIT_QUEUE);
        let repos: Vec<RepoInfo> = self.api.get_json("/api/v1/repos").await.context("cannot list the repositories")?;
        for repo in repos {
            tokio::spawn(follow(self.api.clone(), repo, lines.clone()));
        }
        Ok(receiver)
    }
}

async fn follow(api: ApiClient, repo: RepoInfo, lines: mpsc::Sender<String>) {
    let path = format!("/api/v1/repos/{}/watch?after={}", escape(&repo.name), repo.revision);
    let mut events = api.events(&path, Some(repo.revision.to_string()));
    loop {
        match events.next_event().await {
            Ok(event) => {
                let Ok(event) = serde_json::from_str::<WatchEvent>(&event.data) else { continue };
                if lines.send(commit_line(&event)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = lines.send(format!("cannot follow {}: {error}", repo.name)).await;
                return;
            }
        }
    }
}

fn commit_line(event: &WatchEvent) -> String {
    const SHOWN: usize = 5;
    let subject: String =
        event.message.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    let author = event.author.split(" <").next().unwrap_or_default();
    let mut paths = event.paths.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if event.paths.len() > SHOWN {
        paths.push_str(&format!(" and {} more", event.paths.len() - SHOWN));
    }
    format!("{}  {} r{}  {author}: {subject}  ({paths})", event.time, event.repo, event.revision)
}
