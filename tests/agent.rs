//! The node agent as a process: what it does with a target, with local edits, with commands that fail, hang or lie, with its
//! own files, and without a server.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "support/node.rs"]
mod node;
mod support;

use std::path::Path;
use std::process::Command;

use cluster::api::ReportState;
use node::{Node, conf, section};
use support::{Server, eventually, fails, git, ok};

/// Every step of these services, in the order of an update that goes well.
fn good(services: &[&str], revision: u64, content: &str) -> Vec<String> {
    let line = |service: &str, step: &str| format!("{service} {step} r{revision} {content}");
    let checks = services.iter().map(|service| line(service, "check"));
    checks.chain(activated(services, revision, content)).collect()
}

/// Reload and verify of these services.
fn activated(services: &[&str], revision: u64, content: &str) -> Vec<String> {
    let steps = services.iter().flat_map(|service| [(service, "reload"), (service, "verify")]);
    steps.map(|(service, step)| format!("{service} {step} r{revision} {content}")).collect()
}

/// `eccfg` on the node, as its administrator.
fn eccfg(node: &Node) -> Command {
    let mut eccfg = node.server.eccfg(&node.agent.wc);
    eccfg.env("ECCLUSTER_RUN", node.agent.dir().join("run"));
    eccfg
}

#[test]
fn a_new_node_fills_its_working_copy_and_tells_its_commands_where_they_are() {
    let server = Server::start();
    let dir = server.dir.path().to_owned();
    let environment = format!(
        "[[service]]\nname = \"web\"\npaths = [\"default/**\"]\nreload = [\"sh\", \"-c\", \"pwd > {0}/pwd; env > {0}/env\"]\n",
        dir.display()
    );
    let agent = support::Agent::new(&server, &environment);
    let mut node = Node { agent, server, dir };
    assert!(!node.agent.wc.exists());
    let report = node.start();
    let head = node.server.head("default");
    let wc = node.agent.wc.display().to_string();
    let environment = std::fs::read_to_string(node.dir.join("env")).unwrap();
    let mut given: Vec<&str> = environment.lines().filter(|line| line.starts_with("EC_")).collect();
    given.sort_unstable();
    let serial = format!("EC_SERIAL={}", report.serial);
    let wanted = [
        format!("EC_COMMIT={}", head.commit),
        "EC_NODE=n1".into(),
        "EC_REPO=default".into(),
        format!("EC_REVISION={}", head.revision),
        serial,
        "EC_SERVICE=web".into(),
        "EC_STEP=reload".into(),
        format!("EC_WC={wc}"),
    ];
    assert_eq!(given, wanted);
    assert_eq!(std::fs::read_to_string(node.dir.join("pwd")).unwrap(), format!("{wc}\n"));

    // Plain git is at home in it, in both repositories, and reaches the servers with what the working copy knows.
    for (repo, path) in [("default", ""), ("global", "global")] {
        let clone = node.agent.wc.join(path);
        assert_eq!(ok(git(&clone).args(["rev-parse", "HEAD"])).trim(), node.server.head(repo).commit);
        assert_eq!(ok(git(&clone).args(["status", "--porcelain"])), "", "{repo}");
        let credentials = node.dir.join("credentials");
        let password = std::fs::read_to_string(node.server.password_file()).unwrap();
        let line = format!("https://admin:{}@{}\n", password.trim_end(), node.server.address());
        std::fs::write(&credentials, line).unwrap();
        let helper = format!("credential.helper=store --file {}", credentials.display());
        ok(git(&clone).args(["-c", &helper, "-c", "credential.username=admin", "fetch", "-q"]));
    }
    // eccfg needs no word about where the cluster is.
    let mut status = support::eccluster(node.server.dir.path());
    status.arg("eccfg").args(["--username", "admin", "--password-file"]).arg(node.server.password_file());
    let text = ok(status.current_dir(&node.agent.wc).arg("status"));
    assert!(text.contains("up to date") && text.contains("agent healthy"), "{text}");
}

#[test]
fn services_go_in_declared_order_and_the_first_failure_stops() {
    let mut node = Node::new(&["b", "a", "c"]);
    let all = ["b", "a", "c"];
    let first = node.start().repos["default"].revision;
    assert_eq!(node.take_journal(), good(&all, first, "first"));

    // Only what a change concerns is run.
    let revision = node.commit(&[("a", "second")]);
    let report = node.healthy(revision);
    assert_eq!(node.take_journal(), good(&["a"], revision, "second"));
    let steps: Vec<(&str, bool, Option<i32>)> =
        report.steps.iter().map(|step| (step.step.as_str(), step.ok, step.exit)).collect();
    assert_eq!(steps, [("check", true, Some(0)), ("reload", true, Some(0)), ("verify", true, Some(0))]);
    assert_eq!(report.steps[0].output, "check saw second");

    // A failing check: the ones after it are not run, nothing is reloaded, nothing moves.
    let checked = node.commit(&[("b", "third"), ("a", "bad-check"), ("c", "third")]);
    let report = node.ends(checked, ReportState::Refused);
    assert!(report.detail.contains("check of a failed") && report.detail.contains("a does not like it"), "{report:#?}");
    assert_eq!(report.steps.last().map(|step| step.exit), Some(Some(7)));
    assert_eq!(node.take_journal(), [format!("b check r{checked} third"), format!("a check r{checked} bad-check")]);
    assert_eq!((node.conf("b"), node.conf("a")), ("first".into(), "second".into()));

    // A failing reload: the old tree comes back, and everything is told again, with the revision that is back.
    let reloaded = node.commit(&[("b", "fourth"), ("a", "bad-reload"), ("c", "fourth")]);
    let report = node.ends(reloaded, ReportState::Failed);
    assert!(report.detail.contains("reload of a failed"), "{report:#?}");
    assert!(report.detail.contains("the revision before is back"), "{report:#?}");
    let mut wanted = vec![format!("b check r{reloaded} fourth"), format!("a check r{reloaded} bad-reload")];
    wanted.push(format!("c check r{reloaded} fourth"));
    wanted.extend(activated(&["b"], reloaded, "fourth"));
    wanted.push(format!("a reload r{reloaded} bad-reload"));
    wanted.extend(activated(&["b"], revision, "first"));
    wanted.extend(activated(&["a"], revision, "second"));
    wanted.extend(activated(&["c"], revision, "first"));
    assert_eq!(node.take_journal(), wanted);
    assert_eq!((node.conf("b"), node.conf("a")), ("first".into(), "second".into()));

    // Neither the same agent, told to look again, nor a new one tries it once more.
    node.reread();
    node.agent.kill();
    node.agent.spawn();
    let healed = node.commit(&[("b", "fifth"), ("a", "fifth"), ("c", "fifth")]);
    node.healthy(healed);
    assert_eq!(node.take_journal(), good(&all, healed, "fifth"));
}

/// Going back tells every service, also behind one that fails at that too.
#[test]
fn a_service_that_cannot_go_back_does_not_keep_the_others_from_it() {
    let mut node = Node::new(&["a", "b"]);
    let first = node.start().repos["default"].revision;
    node.take_journal();
    // `a` accepts the new content once and nothing after it.
    let script = node.dir.join("moody");
    std::fs::write(
        &script,
        format!("#!/bin/sh\n{0}/step || exit 1\ntest ! -e {0}/was || exit 9\ntouch {0}/was\n", node.dir.display()),
    )
    .unwrap();
    ok(Command::new("chmod").arg("755").arg(&script));
    let toml = std::fs::read_to_string(node.agent.etc.join("agent.toml")).unwrap();
    let moody = format!("reload = [\"{}\"]", script.display());
    let reload = format!("reload = [\"{}\"]", node.dir.join("step").display());
    std::fs::write(node.agent.etc.join("agent.toml"), toml.replacen(&reload, &moody, 1)).unwrap();
    node.reread();
    let revision = node.commit(&[("a", "second"), ("b", "bad-verify")]);
    let report = node.ends(revision, ReportState::Failed);
    assert!(report.detail.contains("verify of b failed"), "{report:#?}");
    assert!(report.detail.contains("the revision before is back, and reload of a failed"), "{report:#?}");
    let journal = node.journal();
    assert_eq!(journal[journal.len() - 2..], activated(&["b"], first, "first"), "{journal:#?}");
}

#[test]
fn local_edits_are_carried_or_stand_in_the_way() {
    let mut node = Node::new(&["web"]);
    let lines = |first: &str, last: &str| format!("{first}\none\ntwo\nthree\nfour\n{last}\n");
    let ours = conf("web");
    node.server.commit("default", "Lines", &[(&ours, &lines("top", "bottom"))]).unwrap();
    node.start();
    node.take_journal();

    // Other lines of the same file, and a file that nobody knows.
    node.write(&ours, &lines("top", "local"));
    node.write("default/mine", "mine");
    let revision = node.server.commit("default", "Top", &[(&ours, &lines("TOP", "bottom"))]).unwrap().revision;
    node.healthy(revision);
    assert_eq!((node.read(&ours), node.read("default/mine")), (lines("TOP", "local"), "mine".into()));
    node.take_journal();

    // The same line: nothing moves, and the report names the path.
    let blocked = node.server.commit("default", "Bottom", &[(&ours, &lines("TOP", "theirs"))]).unwrap().revision;
    let report = node.ends(blocked, ReportState::Refused);
    assert!(report.detail.contains("default/web/conf") && report.steps.is_empty(), "{report:#?}");
    assert_eq!((node.read(&ours), node.journal()), (lines("TOP", "local"), Vec::new()));
    // Still there, still refused.
    node.reread();
    assert_eq!(node.ends(blocked, ReportState::Refused).detail, report.detail);

    // The edit goes, the update comes: by SIGHUP.
    ok(eccfg(&node).arg("revert").arg(node.agent.wc.join(&ours)));
    node.agent.hang_up();
    node.recovers(blocked);
    assert_eq!((node.read(&ours), node.read("default/mine")), (lines("TOP", "theirs"), "mine".into()));

    // And by the control command.
    node.write(&ours, &lines("TOP", "local again"));
    let blocked = node.server.commit("default", "Bottom", &[(&ours, &lines("TOP", "newer"))]).unwrap().revision;
    node.ends(blocked, ReportState::Refused);
    node.write(&ours, &lines("TOP", "theirs"));
    node.control("update");
    node.recovers(blocked);
    assert_eq!(node.read(&ours), lines("TOP", "newer"));
}

#[test]
fn autoupdate_decides_when_the_files_move() {
    let mut node = Node::new(&["web"]);
    let boot = |node: &Node, mode: &str| {
        std::fs::write(node.agent.etc.join("boot.toml"), format!("autoupdate = {mode}\n")).unwrap();
    };
    let waits_for = |node: &Node, revision: u64| {
        eventually("the agent knows the target", || {
            let target = node.control("status")["target"]["repos"]["default"]["revision"].as_u64();
            (target == Some(revision)).then_some(())
        });
    };
    let at = |node: &Node| node.record()["applied"]["default"]["revision"].as_u64();

    // false: an empty working copy, which somebody fills; the services follow all the same.
    boot(&node, "false");
    node.agent.spawn();
    let first = node.server.head("default").revision;
    eventually("the agent's socket", || node.agent.dir().join("run/agent.sock").exists().then_some(()));
    waits_for(&node, first);
    assert!(!node.agent.wc.join(conf("web")).exists() && node.journal().is_empty());
    ok(eccfg(&node).arg("pull"));
    node.healthy(first);
    assert_eq!(node.take_journal(), good(&["web"], first, "first"));
    let second = node.commit(&[("web", "second")]);
    waits_for(&node, second);
    assert_eq!((node.conf("web"), at(&node)), ("first".into(), Some(first)));
    ok(eccfg(&node).arg("pull"));
    node.healthy(second);
    // What is pulled and fails is taken back; pulled once more, it is tried once more.
    let third = node.commit(&[("web", "bad-verify")]);
    node.take_journal();
    for _ in 0..2 {
        waits_for(&node, third);
        ok(eccfg(&node).arg("pull"));
        eventually("the services judge what was pulled", || {
            let journal = node.journal();
            (journal.last()? == &format!("web verify r{second} second")).then_some(())
        });
        eventually("it is over", || node.record()["underway"].is_null().then_some(()));
        assert_eq!(node.conf("web"), "second");
        assert_eq!(node.take_journal().len(), 5);
    }

    // "ifunchanged": not while there are local edits, whether they overlap or not.
    boot(&node, "\"ifunchanged\"");
    node.reread();
    node.write("default/mine", "mine");
    let fourth = node.commit(&[("web", "fourth")]);
    let report = node.ends(fourth, ReportState::Refused);
    assert!(report.detail.contains("ifunchanged"), "{report:#?}");
    assert_eq!(node.conf("web"), "second");
    std::fs::remove_file(node.agent.wc.join("default/mine")).unwrap();
    node.control("update");
    node.recovers(fourth);
    assert_eq!(node.conf("web"), "fourth");

    // true: merged.
    boot(&node, "true");
    node.reread();
    node.write("default/mine", "mine");
    let fifth = node.commit(&[("web", "fifth")]);
    node.healthy(fifth);
    assert_eq!((node.conf("web"), node.read("default/mine")), ("fifth".into(), "mine".into()));
}

#[test]
fn a_check_that_hangs_is_ended_with_all_that_it_started() {
    let mut node = Node::with(&["web"], "timeout = \"400ms\"\ndebounce = \"0s\"");
    node.start();
    let check =
        format!("check = [\"sh\", \"-c\", \"echo begun; sleep 1000 & echo $! > {}/pid; wait\"]", node.dir.display());
    let toml = std::fs::read_to_string(node.agent.etc.join("agent.toml")).unwrap();
    let old = format!("check = [\"{}\"]", node.dir.join("step").display());
    std::fs::write(node.agent.etc.join("agent.toml"), toml.replace(&old, &check)).unwrap();
    node.reread();
    let revision = node.commit(&[("web", "second")]);
    let report = node.ends(revision, ReportState::Refused);
    let step = report.steps.last().unwrap();
    assert!(step.output.starts_with("begun\n") && step.output.contains("timeout of 400ms"), "{report:#?}");
    assert_eq!((step.exit, node.conf("web")), (None, "first".into()));
    let pid = std::fs::read_to_string(node.dir.join("pid")).unwrap();
    eventually("what the check started has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_check_sees_the_staged_tree_in_its_place_and_nobody_else_does() {
    let mut node = Node::new(&["web"]);
    let first = node.start().repos["default"].revision;
    node.take_journal();
    std::fs::write(node.dir.join("hold-web-check"), "").unwrap();
    let revision = node.commit(&[("web", "second")]);
    eventually("the check runs", || node.dir.join("held-web-check").exists().then_some(()));
    // The very path that the check reads.
    assert_eq!(node.journal(), [format!("web check r{revision} second")]);
    assert_eq!(node.conf("web"), "first");
    // An agent that is killed meanwhile leaves the old tree, and the next one is not disturbed by the check that lives on.
    node.agent.kill();
    assert_eq!(node.conf("web"), "first");
    assert_eq!(node.record()["applied"]["default"]["revision"], first);
    node.agent.spawn();
    eventually("the next agent checks too", || (node.journal().len() == 2).then_some(()));
    std::fs::remove_file(node.dir.join("hold-web-check")).unwrap();
    node.healthy(revision);
    assert_eq!(node.conf("web"), "second");
    assert_eq!(node.journal()[1..], good(&["web"], revision, "second"));
}

#[test]
fn an_agent_goes_on_without_its_server_and_with_the_next_one() {
    let mut node = Node::new(&["web"]);
    node.start();
    let bad = node.commit(&[("web", "bad-verify")]);
    node.ends(bad, ReportState::Failed);
    // With a server and without one, status shows what the command printed.
    let shows = |node: &Node| {
        let text = ok(eccfg(node).arg("status"));
        assert!(text.contains("agent failed") && text.contains("| verify saw bad-verify"), "{text}");
        assert!(text.contains("| web does not like it") && text.contains("failed with status 7"), "{text}");
        text
    };
    assert!(shows(&node).contains("Node n1, target"));
    node.server.kill();
    assert!(shows(&node).contains("The agent of n1:"));
    eventually("the agent notices", || node.agent.log().contains("lost the server").then_some(()));
    // An agent that starts without any server keeps what it has, and still knows what failed.
    node.agent.kill();
    node.agent.spawn();
    eventually("the agent's socket answers", || {
        let socket = node.agent.dir().join("run/agent.sock");
        std::os::unix::net::UnixStream::connect(socket).ok().map(drop)
    });
    shows(&node);
    assert_eq!(node.conf("web"), "first");
    node.take_journal();
    node.server.run();
    let revision = node.commit(&[("web", "after")]);
    node.healthy(revision);
    assert_eq!((node.conf("web"), node.take_journal()), ("after".into(), good(&["web"], revision, "after")));
}

/// A report that no server has taken is delivered by the next agent.
#[test]
fn a_report_survives_server_and_agent() {
    let mut node = Node::new(&["web"]);
    node.start();
    std::fs::write(node.dir.join("hold-web-verify"), "").unwrap();
    let revision = node.commit(&[("web", "second")]);
    eventually("the update is under way", || node.dir.join("held-web-verify").exists().then_some(()));
    node.server.kill();
    std::fs::remove_file(node.dir.join("hold-web-verify")).unwrap();
    eventually("it ends", || (node.record()["applied"]["default"]["revision"] == revision).then_some(()));
    node.agent.kill();
    node.agent.spawn();
    node.server.run();
    node.healthy(revision);
}

#[test]
fn sigterm_waits_for_the_update_and_its_report() {
    let mut node = Node::new(&["web"]);
    node.start();
    node.take_journal();
    std::fs::write(node.dir.join("hold-web-reload"), "").unwrap();
    let revision = node.commit(&[("web", "second")]);
    eventually("the update is under way", || node.dir.join("held-web-reload").exists().then_some(()));
    let pid = node.agent.pid();
    support::signal(pid, nix::sys::signal::Signal::SIGTERM);
    let socket = node.agent.dir().join("run/agent.sock");
    eventually("the agent hears it", || std::os::unix::net::UnixStream::connect(&socket).err().map(drop));
    std::fs::remove_file(node.dir.join("hold-web-reload")).unwrap();
    assert!(node.agent.wait().success(), "{}", node.agent.log());
    assert_eq!(node.take_journal(), good(&["web"], revision, "second"));
    // Nobody is left to send it later.
    node.healthy(revision);
}

#[test]
fn a_commit_made_on_the_node_runs_its_services_too() {
    let mut node = Node::new(&["web"]);
    let first = node.start().repos["default"].revision;
    node.take_journal();
    node.write(&conf("web"), "by hand");
    let text = ok(eccfg(&node).args(["commit", "-m", "By hand"]));
    assert!(text.contains("Committed revision"), "{text}");
    let revision = first + 1;
    node.healthy(revision);
    assert_eq!((node.conf("web"), node.take_journal()), ("by hand".into(), good(&["web"], revision, "by hand")));
    assert_eq!(ok(git(&node.agent.wc).args(["status", "--porcelain"])), "");

    // One that does not pass its check, or fails to verify, is taken back like any other.
    for (content, state) in [("bad-check", ReportState::Refused), ("bad-verify", ReportState::Failed)] {
        let before = node.record()["applied"].clone();
        node.write(&conf("web"), content);
        ok(eccfg(&node).args(["commit", "-m", "Worse"]));
        let bad = node.server.head("default").revision;
        node.ends(bad, state);
        eventually("the old content is back", || (node.conf("web") == "by hand").then_some(()));
        eventually("the record says so", || node.record()["underway"].is_null().then_some(()));
        assert_eq!(node.record()["applied"], before);
        // Upstream has it still, until somebody mends it.
        let mended = node.commit(&[("web", "by hand")]);
        node.healthy(mended);
    }
}

#[test]
fn broken_files_are_refused_and_the_old_ones_stay() {
    let mut node = Node::new(&["web"]);
    let toml = node.agent.etc.join("agent.toml");
    let good_toml = std::fs::read_to_string(&toml).unwrap();
    let broken = format!("{good_toml}\n[[service]]\nname = \"more\"\npath = [\"x\"]\nreload = [\"true\"]\n");
    let line = broken.lines().position(|line| line.starts_with("path = ")).unwrap() + 1;
    let place = format!("agent.toml:{line}");
    std::fs::write(&toml, &broken).unwrap();
    let words = fails(&mut node.agent.command());
    assert!(words.contains(&place) && words.contains("paths"), "{words}");

    std::fs::write(&toml, &good_toml).unwrap();
    node.start();
    node.take_journal();
    std::fs::write(&toml, &broken).unwrap();
    node.agent.hang_up();
    eventually("the agent refuses it", || node.agent.log().contains("stay as they were").then_some(()));
    assert!(node.agent.log().contains(&place), "{}", node.agent.log());
    let revision = node.commit(&[("web", "second")]);
    node.healthy(revision);
    assert_eq!(node.take_journal(), good(&["web"], revision, "second"));

    // A good one takes effect, also for a service that was not there.
    std::fs::write(&toml, format!("{}\n{good_toml}", section("more", &node.dir, "debounce = \"0s\""))).unwrap();
    node.reread();
    let revision = node.commit(&[("more", "third"), ("web", "third")]);
    node.healthy(revision);
    assert_eq!(node.take_journal(), good(&["more", "web"], revision, "third"));

    // A file that makes this another node is refused at SIGHUP as at the start.
    std::fs::write(node.agent.etc.join("boot.toml"), "subcluster = \"other\"\n").unwrap();
    node.agent.hang_up();
    eventually("the agent refuses it", || {
        node.agent.log().contains("says that this node is in subcluster other").then_some(())
    });
    node.agent.kill();
    let words = fails(&mut node.agent.command());
    assert!(words.contains("subcluster other"), "{words}");
    std::fs::write(node.agent.etc.join("boot.toml"), "node = \"n2\"\n").unwrap();
    let mut command = support::eccluster(node.agent.dir());
    command.args(["eccfg", "agent", "--server", &node.server.url(), "--wc"]).arg(&node.agent.wc);
    command.arg("--config").arg(&node.agent.etc).arg("--data").arg(node.agent.dir().join("agent"));
    let words = fails(command.arg("--identity").arg(node.server.data().join("identity")));
    assert!(words.contains("is of node n1, not n2"), "{words}");
}

/// Nothing of `boot.toml` needs a restart, and nobody needs to send a signal.
#[test]
fn boot_toml_takes_effect_when_it_changes() {
    let mut node = Node::new(&["web"]);
    let boot = node.agent.etc.join("boot.toml");
    let say = |text: &str| {
        let fresh = boot.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &boot).unwrap();
    };
    // Nobody is there, and the next question would come in an hour.
    let nobody = "https://127.0.0.1:1";
    say(&format!("servers = [\"{nobody}\"]\npoll = \"1h\"\n"));
    node.agent.spawn_without_servers();
    eventually("the agent runs", || node.agent.dir().join("run/agent.sock").exists().then_some(()));
    let url = node.server.url();
    let good = |more: &str| format!("servers = [\"{nobody}\", \"{url}\"]\n{more}");
    say(&good("poll = \"1h\"\n"));
    let first = node.server.head("default").revision;
    node.healthy(first);
    let client = node.agent.wc.parent().unwrap().join(".conf.eccfg/client.toml");
    assert!(std::fs::read_to_string(&client).unwrap().contains(&url));

    // What is wrong changes nothing, and the log says where.
    let told = |words: &str| {
        eventually(words, || node.agent.log().contains(words).then_some(()));
    };
    for (text, words) in [
        ("poll = \"60s\"\nservers = [\"http://n1:2027\"]\n", "boot.toml:2:12: "),
        ("poll = \"1h\"\n", "no server is named, neither by --server nor by `servers` in"),
    ] {
        say(text);
        told(words);
    }
    std::fs::remove_file(&boot).unwrap();
    told("boot.toml has gone");
    let second = node.commit(&[("web", "second")]);
    node.healthy(second);

    // Other servers are known to eccfg too.
    let more = format!("servers = [\"{url}\", \"https://127.0.0.1:2\"]\n");
    say(&more);
    eventually("eccfg knows them", || std::fs::read_to_string(&client).unwrap().contains("127.0.0.1:2").then_some(()));

    // A file that local edits block is looked at as often as the file says now.
    node.write(&conf("web"), "mine");
    let third = node.commit(&[("web", "third")]);
    node.ends(third, ReportState::Refused);
    let reread = || node.agent.log().matches("read boot.toml and agent.toml again").count();
    let before = reread();
    say(&format!("{more}poll = \"1s\"\n"));
    eventually("the agent reads it", || (reread() > before).then_some(()));
    node.write(&conf("web"), "second");
    node.recovers(third);

    let before = reread();
    say(&format!("{more}autoupdate = false\n"));
    eventually("the agent reads it", || (reread() > before).then_some(()));
    node.commit(&[("web", "fourth")]);
    let mut pull = eccfg(&node);
    ok(pull.arg("pull"));
    node.healthy(node.server.head("default").revision);
}

#[test]
fn changes_within_the_debounce_are_taken_together() {
    let mut node = Node::with(&["web"], "debounce = \"2s\"");
    let stamp =
        format!("reload = [\"sh\", \"-c\", \"date +%s%N >> {}/times; exec {}\"]", node.dir.display(), step(&node.dir));
    let toml = std::fs::read_to_string(node.agent.etc.join("agent.toml")).unwrap();
    let old = format!("reload = [\"{}\"]", step(&node.dir));
    std::fs::write(node.agent.etc.join("agent.toml"), toml.replace(&old, &stamp)).unwrap();
    let first = node.start().repos["default"].revision;
    for content in ["second", "third", "fourth"] {
        node.commit(&[("web", content)]);
    }
    let last = node.server.head("default").revision;
    node.healthy(last);
    // A service that the change does not concern holds nothing up, and is not run.
    let reloads: Vec<String> = node.journal().into_iter().filter(|line| line.contains("reload")).collect();
    assert_eq!(reloads, [format!("web reload r{first} first"), format!("web reload r{last} fourth")]);
    let times: Vec<u64> =
        std::fs::read_to_string(node.dir.join("times")).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert!(times[1] - times[0] >= 2_000_000_000, "{times:?}");
}

fn step(dir: &Path) -> String {
    dir.join("step").display().to_string()
}

/// A freeze and a thaw are new targets that change no file: no service hears of them, and the node says that it has them.
#[test]
fn a_target_that_changes_nothing_is_reported_as_well() {
    let mut node = Node::new(&["web"]);
    node.start();
    let has_its_target = |what: &str| {
        let (wanted, report) = eventually(what, || {
            let info = node.server.node("n1");
            let report = info.reports.into_iter().find(|report| report.program == "agent")?;
            let wanted = info.target?.serial;
            (report.serial == wanted).then_some((wanted, report))
        });
        assert_eq!(report.state, ReportState::Healthy, "{what}: {report:#?}");
        wanted
    };
    let first = has_its_target("the first target");
    node.take_journal();
    ok(eccfg(&node).args(["subcluster", "conflict", "default"]));
    let frozen = has_its_target("the freeze");
    ok(eccfg(&node).args(["subcluster", "resolve", "default"]));
    assert!(first < frozen && frozen < has_its_target("the thaw"));
    assert_eq!(node.journal(), Vec::<String>::new());
}
