//! Looking at the configuration: log, show, diff between revisions, effective documents.

use crate::session::{Server, Session};

#[test]
fn log_show_and_diff() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.edit("a/default/app/one.conf", "one\n");
    session.run("a", &["commit", "--add-all", "-m", "one\n\nbecause of two"]);
    session.edit("a/default/app/one.conf", "one\ntwo\n");
    session.edit("a/global/motd", "hello\n");
    session.run("a", &["commit", "--add-all", "-m", "two"]);
    for args in [
        &["log"][..],
        &["log", "-n", "1"],
        &["log", "app/one.conf"],
        &["log", "../global/motd"],
        &["log", "--repo", "global"],
        &["--json", "log", "-n", "1"],
        &["show", "r3"],
        &["show", "2"],
        &["show", "r99"],
        &["show", "--repo", "global", "r2"],
        &["diff", "--from", "r1"],
        &["diff", "--from", "r1", "--to", "r2"],
        &["log", "--repo", "nosuch"],
        &["log", "app/nosuch"],
    ] {
        session.run("a/default", args);
    }
    session.say("outside of any working copy");
    session.run("", &["log", "-n", "1"]);
    insta::assert_snapshot!(session.transcript());
}

/// Layering and provenance: which file and line each key comes from, for every node, here and on the server.
#[test]
fn effective_documents() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.edit(
        "a/global/cluster.toml",
        "[node.n1]\naddress = \"10.0.0.11\"\ngroups = [\"relays\"]\n[node.n2]\naddress = \"10.0.0.12\"\n[node.n3]\naddress = \"10.0.0.13\"\ngroups = [\"edge\", \"relays\"]\n",
    );
    session
        .edit("a/global/duravip.toml", "mature = \"5s\"\nplumb = \"auto\"\n\n[check.smtp]\ntcp = \"127.0.0.1:25\"\n");
    session.edit("a/default/duravip.toml", "dead_after = \"300ms\"\nmature = \"6s\"\n\n[topology.\"10.1.1.0/24\"]\ninterface = \"eth1\"\n\n[vip.\"10.1.1.1\"]\nname = \"mx-1\"\nservices = [\"smtp\"]\n");
    session.edit("a/relays/duravip.toml", "dead_after = \"500ms\"\n\n[vip.\"10.1.1.1\"]\nservices = []\n");
    session.edit("a/edge/duravip.toml", "dead_after = \"700ms\"\n");
    session.edit("a/n1/duravip.toml", "unset = [\"mature\"]\nplumb = \"spread\"\n");
    session.edit("a/default/plain.txt", "as it is\n");
    session.run("a", &["commit", "--add-all", "-m", "layers"]);
    for node in ["n1", "n2", "n3"] {
        session.run("a", &["effective", "--node", node, "duravip.toml"]);
        session.run("a", &["effective", "--node", node, "--committed", "duravip.toml"]);
    }
    session.run("a/default", &["effective", "duravip.toml"]);
    session.run("a", &["--json", "effective", "--node", "n2", "duravip.toml"]);
    session.run("a", &["--json", "effective", "--node", "n2", "--committed", "duravip.toml"]);
    session.run("", &["effective", "--node", "n2", "duravip.toml"]);
    session.run("a", &["effective", "--node", "n2", "plain.txt"]);
    session.run("a", &["effective", "--node", "n2", "--committed", "plain.txt"]);
    session.run("a", &["effective", "--node", "n2", "nosuch.toml"]);
    session.run("a", &["effective", "--node", "n2", "--committed", "nosuch.toml"]);

    session.say("a local edit is seen here and not on the server");
    session.edit("a/n2/duravip.toml", "mature = \"9s\"\n");
    session.run("a", &["effective", "--node", "n2", "duravip.toml"]);
    session.run("a", &["effective", "--node", "n2", "--committed", "duravip.toml"]);

    session.say("with a search path of its own");
    let args = ["effective", "--node", "n2", "duravip.toml"];
    let mut command = session.command(&args);
    command.current_dir(session.dir().join("a")).env("EC_CONF_SEARCH_PATH", "edge:{NODENAME}:global");
    session.run_command("a", &args, command);

    session.say("a file that cannot be read");
    session.edit("a/n2/duravip.toml", "mature = \n");
    session.run("a", &["effective", "--node", "n2", "duravip.toml"]);
    insta::assert_snapshot!(session.transcript());
}
