//! What is seldom done and must be right all the same: everything at once, shells that an update left behind, owners, edits that
//! were put aside, machines of another cluster.

use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use repos::worktree::{StageOptions, Target, Targets, WorkingCopy};

use crate::session::{Server, Session};
use crate::support::{self, Agent, eccluster, eventually};

/// Owner, group and permissions.
fn about(path: &std::path::Path) -> (u32, u32, u32) {
    let about = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (about.uid(), about.gid(), about.mode() & 0o7777)
}

#[test]
fn the_root_stands_for_everything() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.edit("a/README.md", "edited");
    session.edit("a/global/README.md", "edited too");
    session.edit("a/default/unknown", "stays");
    session.run("a", &["delete", "."]);
    session.run("a/default", &["revert", ".."]);
    session.run("a", &["revert", "."]);
    session.run("a", &["resolve", "."]);
    session.run("a", &["status"]);
    insta::assert_snapshot!(session.transcript());
}

/// A shell sits in the tree that was current when it entered it; what it edits there is another tree's.
#[test]
fn a_shell_in_a_displaced_tree_is_told() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.checkout("b");
    session.edit("a/default/x", "1\n");
    session.run("a", &["commit", "--add-all", "-m", "x"]);
    session.run("b/default", &["pull"]);
    session.say("the shell that called the last command is here now");
    session.run(".b.eccfg/spare/default", &["status"]);
    session.run(".b.eccfg/spare/default", &["commit", "-q", "-m", "nothing"]);
    session.run("b/default", &["commit", "-m", "nothing"]);
    session.say("a script goes on in the old directory");
    session.edit(".b.eccfg/spare/default/y", "2\n");
    session.edit(".b.eccfg/spare/README.md", "edited\n");
    session.run(".b.eccfg/spare", &["commit", "--add-all", "-m", "from the old directory"]);
    assert_eq!(session.read("b/default/y"), "2\n");
    insta::assert_snapshot!(session.transcript());
}

/// An agent follows the same working copy and is faster: what it has put there since is never taken back, only `--auto` goes back.
#[test]
fn pull_beside_a_faster_agent_goes_on_from_where_that_is() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.checkout("b");
    session.edit("a/default/x", "1\n");
    // What is staged keeps others out, as an agent in the middle of an update does.
    let wc = WorkingCopy::open(&session.dir().join("b")).unwrap();
    let base = wc.base("default").unwrap().unwrap();
    let further = Target { revision: base.revision + 5, commit: base.commit };
    let staged = wc.stage(&Targets::from([("default".to_owned(), further)]), &StageOptions::default()).unwrap();
    session.run("a", &["commit", "--add-all", "-m", "x"]);
    let commit = WorkingCopy::open(&session.dir().join("a")).unwrap().base("default").unwrap().unwrap().commit;
    let mut pull = session.command(&["pull"]);
    let pulling = pull.current_dir(session.dir().join("b")).stderr(Stdio::piped()).spawn().unwrap();
    // It has asked where to go, and waits for its turn.
    eventually("pull has fetched", || wc.objects("default").unwrap().reader().unwrap().contains(commit).then_some(()));
    staged.exchange().unwrap().settle().unwrap();
    let told = pulling.wait_with_output().unwrap();
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains("the server that answered at 2; it stays"), "{told}");
    assert_eq!(wc.base("default").unwrap().unwrap().revision, further.revision);
    let identity = server.ca().with_file_name("identity");
    let mut back = session.command(&["pull", "--auto"]);
    support::ok(back.current_dir(session.dir().join("b")).env("ECCFG_IDENTITY", identity));
    assert_eq!(wc.base("default").unwrap().unwrap().revision, 2);
}

/// In `b` a file is edited that `a` has deleted since.
fn edited_here_and_deleted_there(server: &Server) -> Session<'_> {
    let mut session = Session::new(server);
    session.checkout("a");
    session.edit("a/default/note", "a note\n");
    session.run("a", &["commit", "--add-all", "-m", "a note"]);
    session.checkout("b");
    session.run("a", &["delete", "default/note"]);
    session.run("a", &["commit", "-m", "no note"]);
    session.edit("b/default/note", "mine\n");
    session
}

#[test]
fn what_was_put_aside_is_kept_until_it_is_dropped() {
    let server = Server::start();
    let mut session = edited_here_and_deleted_there(&server);
    session.run("b", &["pull"]);
    session.run("b", &["pull", "--theirs"]);
    assert!(!session.dir().join("b/default/note").exists());
    session.run("b", &["status"]);
    assert_eq!(session.read(".b.eccfg/saved/1/file"), "mine\n");
    session.run("b", &["resolve", "--put-aside", "default/other"]);
    session.run("b", &["--json", "resolve", "--put-aside", "."]);
    session.run("b", &["status"]);
    session.run("b", &["resolve", "--put-aside", "--revert", "."]);
    insta::assert_snapshot!(session.transcript());
}

/// A working copy that is removed and made again still has what had been put aside.
#[test]
fn what_was_put_aside_outlives_the_tree() {
    let server = Server::start();
    let mut session = edited_here_and_deleted_there(&server);
    session.run("b", &["pull", "--theirs"]);
    std::fs::remove_dir_all(session.dir().join("b")).unwrap();
    session.say("somebody removed the directory b");
    session.run("", &["status", "--wc", "b"]);
    session.run("", &["bootstrap", "--clustername", "default", "--wc", "b"]);
    session.run("b", &["status"]);
    assert_eq!(session.read(".b.eccfg/saved/1/file"), "mine\n");
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn owner_and_permissions_are_chosen_at_bootstrap() {
    let server = Server::start();
    let mut session = Session::new(&server);
    for (option, value) in [("--umask", "700"), ("--umask", "rw"), ("--owner", ":"), ("--owner", "no-such-user")] {
        session.run("", &["bootstrap", "--clustername", "default", "--wc", "a", option, value]);
    }
    let mut args = vec!["bootstrap", "--clustername", "default", "--wc", "a", "--umask", "027"];
    let is_root = nix::unistd::Uid::effective().is_root();
    if is_root {
        args.extend(["--owner", "65534:65534"]);
    }
    let output = session.command(&args).output().expect("eccfg runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (uid, gid, _) = if is_root { (65534, 65534, 0) } else { about(session.dir()) };
    let a = session.dir().join("a");
    let check = |file: &str, mode: u32| assert_eq!(about(&a.join(file)), (uid, gid, mode), "{file}");
    check("README.md", 0o640);
    check("default", 0o750);
    check("global/README.md", 0o640);

    // What comes later is like it, new directories included; what is executable stays so.
    session.checkout("b");
    std::fs::create_dir(session.dir().join("b/default/new")).expect("a directory");
    std::fs::write(session.dir().join("b/default/new/hook"), "#!/bin/sh\n").expect("a file");
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(session.dir().join("b/default/new/hook"), mode).expect("a mode");
    for args in [&["commit", "--wc", "b", "--add-all", "-m", "a hook"][..], &["pull", "--wc", "a"]] {
        let output = session.command(args).output().expect("eccfg runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    check("default/new", 0o750);
    check("default/new/hook", 0o750);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn an_agent_gives_its_working_copy_the_owner_of_boot_toml() {
    let server = support::Server::start();
    let mut agent = Agent::new(&server, "");
    let is_root = nix::unistd::Uid::effective().is_root();
    let (uid, gid, _) = about(server.dir.path());
    let (owner, uid, gid) = if is_root { ("65534:65534", 65534, 65534) } else { ("", uid, gid) };
    let boot = if owner.is_empty() {
        "umask = \"077\"\n".to_owned()
    } else {
        format!("umask = \"077\"\nowner = \"{owner}\"\n")
    };
    std::fs::write(agent.etc.join("boot.toml"), "owner = \"no-such-user\"\n").expect("a file");
    agent.spawn();
    assert!(!agent.wait().success());
    assert!(agent.log().contains("boot.toml: owner: there is no user \"no-such-user\""), "{}", agent.log());
    std::fs::write(agent.etc.join("boot.toml"), boot).expect("a file");
    agent.spawn();
    let file = agent.wc.join("default/README.md");
    eventually("the working copy is filled", || file.exists().then_some(()));
    assert_eq!(about(&file), (uid, gid, 0o600));
}

/// A machine that is a node of one cluster is a stranger to another: its certificate is not shown there.
#[test]
fn an_identity_of_another_cluster_is_not_used() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    let data = session.dir().join("other");
    let mut init = eccluster(session.dir());
    init.args(["ecconfigd", "init", "--node", "n1", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
    support::ok(&mut init);
    for args in [&["log", "-n", "1"][..], &["log", "-n", "1", "--username", "admin"], &["pull"], &["pull", "--auto"]] {
        let mut command = session.command(args);
        for name in ["ECCFG_PASSWORD_FILE", "ECCFG_USERNAME", "ECCFG_CA"] {
            command.env_remove(name);
        }
        command.env("ECCFG_IDENTITY", data.join("identity")).current_dir(session.dir().join("a"));
        session.run_command("a", args, command);
    }
    insta::assert_snapshot!(session.transcript());
}
