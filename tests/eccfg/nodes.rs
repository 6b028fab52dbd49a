//! Admitting a machine, and pulling as one.

use cluster::api::ReportState;

use crate::session::{Server, Session};

#[test]
fn a_machine_becomes_a_node() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.run("", &["node", "list"]);
    let output = session.command(&["node", "token"]).output().expect("eccfg runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("text");
    let token = printed.trim();
    assert_eq!(printed, format!("{token}\n"), "the token and nothing else");
    assert!(!token.is_empty() && !token.contains(char::is_whitespace));
    std::fs::write(session.dir().join("token"), token).expect("a file");

    session.say("a server that does not belong to the token's cluster gets nothing");
    let stranger = Server::start();
    let stranger_url = stranger.url();
    let args = [
        "node",
        "enroll",
        "--node",
        "w1",
        "--token-file",
        "token",
        "--identity",
        "identity",
        "--server",
        &stranger_url,
    ];
    let output = session.command(&args).output().expect("eccfg runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        !session.dir().join("identity").exists()
            || std::fs::read_dir(session.dir().join("identity")).expect("a directory").next().is_none()
    );

    let args = ["node", "enroll", "--node", "w1", "--token-file", "token", "--identity", "identity"];
    let mut command = session.command(&args);
    // A machine that knows nothing but the token and the server.
    command.env_remove("ECCFG_CA").env_remove("ECCFG_PASSWORD_FILE").env_remove("ECCFG_USERNAME");
    session.run_command("", &args, command);
    session.run("", &args);
    let again = ["node", "enroll", "--node", "w2", "--token-file", "token", "--identity", "identity2"];
    session.run("", &again);
    session.run("", &["node", "list"]);
    session.run("", &["node", "list", "--subcluster", "nosuch"]);

    session.say("as a node");
    for args in [
        &["bootstrap", "--clustername", "default", "--wc", "conf"][..],
        &["pull", "--auto", "--wc", "conf"],
        &["status", "--wc", "conf"],
        &["commit", "--add-all", "--wc", "conf", "-m", "nodes do not commit"],
    ] {
        if args[0] == "commit" {
            session.edit("conf/default/x", "x\n");
        }
        let mut command = session.command(args);
        for name in ["ECCFG_CA", "ECCFG_PASSWORD_FILE", "ECCFG_USERNAME", "ECCFG_NODE"] {
            command.env_remove(name);
        }
        command.env("ECCFG_IDENTITY", session.dir().join("identity"));
        session.run_command("", args, command);
    }
    session.say("without an identity");
    session.run("", &["pull", "--auto", "--wc", "conf"]);
    insta::assert_snapshot!(session.transcript());
}

/// What a command on the node said is kept, and `status` shows it.
#[test]
fn status_shows_what_the_node_reported() {
    let server = Server::start();
    let mut session = Session::new(&server);
    let mut agent = server.agent(
        "[[service]]\nname = \"web\"\npaths = [\"default/web/**\"]\nreload = [\"true\"]\nverify = [\"sh\", \"-c\", \"cat default/web/page; ! grep -q bad default/web/page\"]\n",
    );
    agent.spawn();
    session.checkout("a");
    session.edit("a/default/web/page", "good\n");
    session.run("a", &["commit", "--add-all", "-m", "good"]);
    server.report(2, ReportState::Healthy);
    session.run("a", &["status", "--output"]);
    session.edit("a/default/web/page", "bad\n");
    session.run("a", &["commit", "-m", "bad"]);
    server.report(3, ReportState::Failed);
    session.run("a", &["status"]);
    session.run("a", &["node", "list"]);
    assert_eq!(
        std::fs::read_to_string(agent.wc.join("default/web/page")).expect("a file"),
        "good\n",
        "it was taken back"
    );

    session.say("on the node itself, when no server answers");
    server.kill();
    let args = ["status"];
    let mut command = session.command(&args);
    command.current_dir(&agent.wc).env(
        "ECCLUSTER_RUN",
        agent
            .command()
            .get_envs()
            .find(|(name, _)| *name == "ECCLUSTER_RUN")
            .and_then(|(_, value)| value)
            .expect("the agent's directory for sockets"),
    );
    session.run_command("n1", &args, command);
    insta::assert_snapshot!(timeless(&session.transcript()));
}

/// How long a command took differs from run to run.
fn timeless(transcript: &str) -> String {
    let mut out = String::new();
    for piece in transcript.split_inclusive(" ms)") {
        match piece.rsplit_once('(') {
            Some((before, _)) if piece.ends_with(" ms)") => out.push_str(&format!("{before}([N] ms)")),
            _ => out.push_str(piece),
        }
    }
    out
}

/// A person commits in the working copy that the agent follows: both move it, and it never goes back.
#[test]
fn commits_beside_a_running_agent() {
    let server = Server::start();
    let session = Session::new(&server);
    let mut agent = server.agent("");
    agent.spawn();
    crate::support::eventually("the agent's working copy", || {
        agent.wc.join("global/cluster.toml").exists().then_some(())
    });
    for number in 0..15 {
        std::fs::write(agent.wc.join("default/number"), format!("{number}\n")).expect("a file");
        let output =
            session.command(&["commit", "--add-all", "-m", "x", "--wc"]).arg(&agent.wc).output().expect("eccfg runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("warning"), "{said}");
        assert_eq!(std::fs::read_to_string(agent.wc.join("default/number")).expect("a file"), format!("{number}\n"));
    }
    let output = session.command(&["status", "--wc"]).arg(&agent.wc).output().expect("eccfg runs");
    let status = String::from_utf8(output.stdout).expect("text");
    assert!(
        status.contains("default: revision 16 (") && !status.contains("behind") && !status.contains("M  "),
        "{status}"
    );
}
