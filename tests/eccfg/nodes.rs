//! Admitting a machine, and pulling as one.

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
