//! A configuration change reaches a real nginx: checked before, verified after, taken back when it fails.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use cluster::api::ReportState;
use support::{Agent, Server, eventually};

/// A running nginx whose configuration is the working copy's.
struct Nginx {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
}

impl Nginx {
    fn start(conf: &Path, address: SocketAddr, dir: &Path) -> Nginx {
        let child = command(conf, dir).args(["-g", "daemon off;"]).spawn().unwrap();
        let nginx = Nginx { child, address, dir: dir.to_owned() };
        eventually("nginx answers", || nginx.get("/"));
        nginx
    }

    /// Waits for a page: after a reload, workers of the configuration before answer for a moment longer.
    #[track_caller]
    fn shows(&self, page: &str) {
        eventually(page, || self.get("/").filter(|body| body == page));
    }

    /// The body of a page that is served with status 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers along when it is told to quit.
        support::signal(self.child.id(), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- nginx\n{}", std::fs::read_to_string(self.dir.join("error.log")).unwrap_or_default());
        }
    }
}

fn command(conf: &Path, dir: &Path) -> Command {
    let mut nginx = Command::new("/usr/sbin/nginx");
    nginx.arg("-e").arg(dir.join("error.log")).arg("-p").arg(dir).arg("-c").arg(conf);
    nginx
}

/// The main file includes the site file by its absolute path, as real ones do.
fn main_file(dir: &Path, wc: &Path) -> String {
    let dir = dir.display();
    format!(
        "worker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\nevents {{ worker_connections 64; }}\nhttp {{\n  access_log off;\n  \
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n  \
         include {}/default/nginx/sites/*.conf;\n}}\n",
        wc.display()
    )
}

fn site(address: SocketAddr, page: &str, health: u16) -> String {
    format!(
        "server {{\n  listen {address};\n  location / {{ return 200 \"{page}\"; }}\n  location /healthz {{ return {health} \"{page}\"; }}\n}}\n"
    )
}

const SITE: &str = "default/nginx/sites/web.conf";

#[test]
fn a_commit_changes_the_page_and_a_bad_one_does_not() {
    let server = Server::start();
    let dir = server.dir.path().join("nginx");
    std::fs::create_dir_all(&dir).unwrap();
    // nginx binds the port itself; a socket of this process reserves nothing, it only finds a free one.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent_toml = format!(
        r#"
[[service]]
name = "nginx"
paths = ["default/nginx/**"]
check = ["/usr/sbin/nginx", "-t", "-q", "-e", "{dir}/check.log", "-p", "{dir}", "-c", "@WC@/default/nginx/nginx.conf"]
reload = ["sh", "-c", "test ! -s {dir}/nginx.pid || /usr/sbin/nginx -s reload -e {dir}/reload.log -p {dir} -c @WC@/default/nginx/nginx.conf"]
verify = ["sh", "-c", "test ! -s {dir}/nginx.pid || {dir}/verify"]
timeout = "20s"
debounce = "0s"
"#,
        dir = dir.display()
    );
    write_verify(&dir, address);
    let mut agent = Agent::new(&server, &agent_toml);
    let main = main_file(&dir, &agent.wc);
    server
        .commit("default", "Add nginx", &[("default/nginx/nginx.conf", &main), (SITE, &site(address, "one", 200))])
        .unwrap();
    agent.spawn();
    let first = server.head("default").revision;
    server.report("n1", first, &[ReportState::Healthy]);
    let nginx = Nginx::start(&agent.wc.join("default/nginx/nginx.conf"), address, &dir);
    nginx.shows("one");

    // A good change is served.
    let good = server.commit("default", "Second page", &[(SITE, &site(address, "two", 200))]).unwrap().revision;
    server.report("n1", good, &[ReportState::Healthy]);
    nginx.shows("two");

    // A broken site file is refused by nginx -t, through the absolute include: the page and the tree stay.
    let broken =
        server.commit("default", "Broken", &[(SITE, "server { listen 127.0.0.1:1; retrun 200; }\n")]).unwrap().revision;
    let report = server.report("n1", broken, &[ReportState::Refused, ReportState::Failed]);
    assert_eq!(report.state, ReportState::Refused, "{report:#?}");
    let check = report.steps.last().unwrap();
    assert!(
        check.step == "check" && check.output.contains("retrun") && check.output.contains("web.conf:1"),
        "{report:#?}"
    );
    nginx.shows("two");
    assert!(std::fs::read_to_string(agent.wc.join(SITE)).unwrap().contains("two"));

    // One that passes the check and fails to verify is taken back.
    let sick = server.commit("default", "Sick", &[(SITE, &site(address, "three", 500))]).unwrap().revision;
    let report = server.report("n1", sick, &[ReportState::Refused, ReportState::Failed]);
    assert_eq!(report.state, ReportState::Failed, "{report:#?}");
    assert!(
        report.detail.contains("verify of nginx failed") && report.detail.contains("the revision before is back"),
        "{report:#?}"
    );
    nginx.shows("two");
    assert!(std::fs::read_to_string(agent.wc.join(SITE)).unwrap().contains("two"));

    // What failed is not tried again until it changes, not even by a restarted agent.
    agent.kill();
    agent.spawn();
    let healed = server.commit("default", "Healed", &[(SITE, &site(address, "four", 200))]).unwrap().revision;
    server.report("n1", healed, &[ReportState::Healthy]);
    nginx.shows("four");
    assert_eq!(agent.log().matches("step=\"verify\" ok=false").count(), 1, "{}", agent.log());
}

/// nginx reloads in the background, and for a moment old and new workers answer side by side: `verify` waits for an answer that the new
/// configuration gave, and judges that very answer.
fn write_verify(dir: &Path, address: SocketAddr) {
    use std::os::unix::fs::PermissionsExt as _;
    let conf = dir.parent().unwrap().join("n1/conf").join(SITE);
    let script = format!(
        "#!/bin/sh\nwant=$(sed -n 's/.*location \\/ .*return 200 \"\\(.*\\)\".*/\\1/p' {conf})\nfor i in $(seq 500); do\n  \
         answer=$(curl -s -w ' %{{http_code}}' http://{address}/healthz)\n  case $answer in\n    \"$want 200\") exit 0 ;;\n    \
         \"$want \"*) echo \"answered $answer\"; exit 1 ;;\n  esac\n  sleep 0.02\ndone\necho 'the new configuration never answered'; exit 1\n",
        conf = conf.display()
    );
    let path = dir.join("verify");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
