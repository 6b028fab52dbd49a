//! The small web service that `eccluster up` runs on each node, as an example of a service that the agent reloads.
//!
//! It reads `web/site.toml` once at start and again only when it is told to, like any daemon that reloads; what it serves
//! is therefore proof that the agent did its part. `check` reads the file without serving it, `reload` and `verify` talk
//! to the running service over its control socket. The three are what `agent.toml` names.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::extract::State;
use axum::response::Html;
use axum::routing::get;
use cluster::control::{self, Failure, Router, ServerOptions};
use cluster::documents::{DirFiles, EffectiveFile, NodeConf};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The document that the service follows, looked up like every other: node, `default/`, `global/`.
const DOCUMENT: &str = "web/site.toml";

/// The name of the control socket.
const PROGRAM: &str = "web";

/// Internal: the web service of a node of `eccluster up`
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Serve {
        #[arg(long)]
        node: String,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        wc: PathBuf,
    },
    Check {
        #[arg(long)]
        node: String,
        #[arg(long)]
        wc: PathBuf,
    },
    Reload,
    Verify,
}

/// What the page shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Site {
    title: String,
    message: String,
    /// A CSS colour name or `#rrggbb`.
    #[serde(default = "default_color")]
    color: String,
}

fn default_color() -> String {
    "#1f6feb".into()
}

/// Runs one verb.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    match options.verb {
        Verb::Serve { node, listen, wc } => serve(node, listen, wc).await,
        Verb::Check { node, wc } => read(&wc, &node).map(drop),
        Verb::Reload => ask("reload").await,
        Verb::Verify => ask("verify").await,
    }
}

/// The page as it was last loaded.
struct Service {
    node: String,
    wc: PathBuf,
    page: watch::Sender<Page>,
}

#[derive(Clone, Default)]
struct Page {
    html: String,
    /// How often the document was loaded, so that `verify` can tell a fresh page from an old one.
    loads: u64,
}

impl Service {
    fn reload(&self) -> anyhow::Result<u64> {
        let html = render(&self.node, &read(&self.wc, &self.node)?);
        self.page.send_modify(|page| *page = Page { html, loads: page.loads + 1 });
        Ok(self.page.borrow().loads)
    }
}

async fn serve(node: String, listen: SocketAddr, wc: PathBuf) -> anyhow::Result<()> {
    let service = Arc::new(Service { node: node.clone(), wc, page: watch::Sender::new(Page::default()) });
    if let Err(error) = service.reload() {
        // The first start comes before the agent's first update.
        service.page.send_modify(|page| page.html = waiting(&node, &error));
    }
    let control = control(Arc::clone(&service))?;
    let app = axum::Router::new().route("/", get(page)).with_state(Arc::clone(&service));
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners(listen)? {
        let app = app.clone();
        servers.spawn(async move { axum::serve(listener, app).await });
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        ended = servers.join_next() => bail!("the web service ended: {ended:?}"),
        () = control => bail!("the control socket ended"),
    }
}

/// The control socket, which `reload` and `verify` talk to; the future serves it.
fn control(service: Arc<Service>) -> anyhow::Result<impl Future<Output = ()>> {
    let socket = control::Server::bind(&ServerOptions::new(PROGRAM, &service.node))?;
    let loads = |service: &Service| service.page.borrow().loads;
    let reloading = Arc::clone(&service);
    let router = Router::new()
        .command("reload", "read the document again", move |_, _| {
            let outcome = reloading.reload().map_err(|error| Failure::new(format!("{error:#}")));
            async { Ok(json!({ "loads": outcome? })) }
        })
        .command("verify", "say whether a document is being served", move |_, _| {
            let loads = loads(&service);
            async move {
                if loads > 0 { Ok(json!({ "loads": loads })) } else { Err(Failure::new("no document has been loaded")) }
            }
        });
    Ok(socket.serve(router, CancellationToken::new()))
}

async fn ask(verb: &str) -> anyhow::Result<()> {
    let answer = control::call(PROGRAM, verb, json!({})).await.with_context(|| format!("{verb} failed"))?;
    super::show::line(&format!("{verb}: {answer}"));
    Ok(())
}

async fn page(State(service): State<Arc<Service>>) -> Html<String> {
    Html(service.page.borrow().html.clone())
}

/// The inherited socket, which `up` opened for the host, and the node's own. Without a network namespace of the node's own the two
/// are one.
fn listeners(listen: SocketAddr) -> anyhow::Result<Vec<TcpListener>> {
    let inherited = cluster::listen::inherited().context("cannot take the inherited socket")?;
    let mut all = inherited.into_iter().map(TcpListener::from_std).collect::<Result<Vec<_>, _>>()?;
    match std::net::TcpListener::bind(listen) {
        Ok(own) => {
            own.set_nonblocking(true)?;
            all.push(TcpListener::from_std(own)?);
        }
        Err(taken)
            if taken.kind() == std::io::ErrorKind::AddrInUse
                && all.iter().any(|socket| socket.local_addr().is_ok_and(|address| address == listen)) => {}
        Err(cause) => return Err(cause).with_context(|| format!("cannot listen on {listen}")),
    }
    Ok(all)
}

fn read(wc: &Path, node: &str) -> anyhow::Result<Site> {
    let files = DirFiles::new(wc);
    let document = NodeConf::read(&files, node, None)?.file(DOCUMENT)?;
    let EffectiveFile::Document(document) = document else { bail!("there is no {DOCUMENT}") };
    let site: Site = document.decode()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '#';
    if site.color.is_empty() || site.color.len() > 32 || !site.color.chars().all(plain) {
        bail!("{DOCUMENT}: color {:?} is neither a name nor #rrggbb", site.color);
    }
    Ok(site)
}

fn render(node: &str, site: &Site) -> String {
    let mut html = String::new();
    let _ = writeln!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <body style=\"font-family:sans-serif;margin:4rem;border-top:1rem solid {color};padding:2rem\">\
         <h1>{title}</h1><p>{message}</p><p><small>node {node}, from {DOCUMENT}</small></p></body></html>",
        title = escaped(&site.title),
        message = escaped(&site.message),
        color = site.color,
        node = escaped(node),
    );
    html
}

fn waiting(node: &str, error: &anyhow::Error) -> String {
    let site = Site { title: "No configuration yet".into(), message: format!("{error:#}"), color: "gray".into() };
    render(node, &site)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(text: &str) -> anyhow::Result<Site> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("default/web")).unwrap();
        std::fs::write(dir.path().join("default/web/site.toml"), text).unwrap();
        read(dir.path(), "n1")
    }

    #[test]
    fn a_page_shows_what_the_document_says_and_runs_none_of_it() {
        let page = render("n1", &site("title = \"A & B\"\nmessage = \"<script>\"\ncolor = \"#abcdef\"").unwrap());
        assert!(
            page.contains("<h1>A &amp; B</h1>") && page.contains("&lt;script&gt;") && page.contains("solid #abcdef"),
            "{page}"
        );
    }

    #[test]
    fn check_refuses_what_the_page_cannot_show() {
        for (text, word) in
            [("title = \"t\"", "message"), ("title='t'\nmessage='m'\ncolor='red;x'", "color"), ("titel='t'", "titel")]
        {
            let words = format!("{:#}", site(text).unwrap_err());
            assert!(words.contains(word), "{words}");
        }
    }
}
