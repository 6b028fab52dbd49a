//! Changing the configuration: checkouts, commits, pulls, overlaps, refusals.

use crate::session::{Server, Session};

const SITE: &str = "server {\n    listen 80;\n    server_name one;\n    root /srv/one;\n    index index.html;\n    access_log off;\n}\n";

/// A session with `a` and `b` checked out and a site committed from `a`.
fn two_people(server: &Server) -> Session<'_> {
    let mut session = Session::new(server);
    session.checkout("a");
    std::fs::create_dir_all(session.dir().join("a/default/nginx")).expect("a directory");
    std::fs::write(session.dir().join("a/default/nginx/site.conf"), SITE).expect("a file");
    let done = session.command(&["commit", "--wc", "a", "--add-all", "-m", "the site"]).output().expect("eccfg runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    session.checkout("b");
    session.say("a and b are working copies at the same revision");
    session
}

#[test]
fn first_checkout() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.run("", &["bootstrap", "--clustername", "default", "--wc", "conf"]);
    session.run("", &["bootstrap", "--clustername", "default", "--wc", "conf"]);
    session.run("", &["bootstrap", "--clustername", "nosuch", "--wc", "other"]);
    assert!(!session.dir().join("other").exists(), "a name that does not exist leaves nothing behind");
    session.edit("full/file", "in the way");
    session.run("", &["bootstrap", "--clustername", "default", "--wc", "full"]);
    session.run("conf/default", &["status"]);
    session.run("conf/global", &["log"]);
    session.say("without options: the working copy knows its server and CA");
    let mut command = session.command(&["pull"]);
    command.current_dir(session.dir().join("conf")).env_remove("ECCFG_SERVER").env_remove("ECCFG_CA");
    session.run_command("conf", &["pull"], command);
    let host = format!("127.0.0.1:{}", server.port);
    let args = ["bootstrap", "--singlenode", &host, "--wc", "single"];
    let mut command = session.command(&args);
    command.env_remove("ECCFG_SERVER");
    session.run_command("", &["bootstrap", "--singlenode", "127.0.0.1:[PORT]", "--wc", "single"], command);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn edits_under_both_repositories_go_together() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.run("a", &["commit", "-m", "nothing"]);
    session.edit("a/default/nginx/site.conf", &SITE.replace("one;", "two;"));
    session.edit("a/global/motd", "hello\n");
    session.edit("a/default/new.conf", "new\n");
    session.run("a/default/nginx", &["status"]);
    session.run("a/default/nginx", &["diff"]);
    session.run("a/default/nginx", &["diff", "../../global"]);
    session.run("a", &["commit"]);
    session.run("a/default/nginx", &["commit", "-m", "known files only"]);
    session.run("a", &["commit", "--add-all", "-m", "both at once\n\nwith a reason"]);
    session.run("a", &["commit", "--add-all", "--delete-all", "-m", "again"]);
    session.run("a", &["status"]);
    session.run("b", &["status"]);
    session.run("b/default/nginx", &["pull"]);
    session.run("b", &["pull"]);
    session.run("b", &["--json", "pull"]);
    assert_eq!(session.read("b/global/motd"), "hello\n");
    assert_eq!(session.read("b/default/new.conf"), "new\n");
    session.say("a file disappears");
    session.remove("b/default/new.conf");
    session.run("b", &["status"]);
    session.run("b", &["commit", "-m", "vanished"]);
    session.run("b", &["commit", "--delete-all", "-m", "vanished"]);
    session.run("a", &["pull"]);
    assert!(!session.dir().join("a/default/new.conf").exists());
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn delete_and_revert() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.edit("a/default/nginx/extra/x.conf", "x\n");
    session.edit("a/default/nginx/extra/y.conf", "y\n");
    session.run("a", &["commit", "--add-all", "-m", "extra"]);
    session.run("a/default", &["delete", "nginx/extra"]);
    session.run("a", &["status"]);
    session.run("a", &["revert", "default/nginx/extra/x.conf"]);
    assert_eq!(session.read("a/default/nginx/extra/x.conf"), "x\n");
    session.run("a", &["commit", "-m", "only y goes"]);
    session.edit("a/default/nginx/site.conf", "broken\n");
    session.run("a", &["delete", "default/nginx/site.conf"]);
    session.run("a", &["revert", "default"]);
    assert_eq!(session.read("a/default/nginx/site.conf"), SITE);
    session.run("a", &["revert", "default"]);
    session.run("a", &["delete", "default/nosuch"]);
    session.run("a", &["revert", "../b"]);
    session.run("a", &["delete", "."]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn changes_that_do_not_overlap_are_merged() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.edit("a/default/nginx/site.conf", &SITE.replace("listen 80", "listen 8080"));
    session.run("a", &["commit", "-m", "port"]);
    session.edit("b/default/nginx/site.conf", &SITE.replace("access_log off", "access_log on"));
    session.run("b", &["commit", "-m", "log"]);
    assert!(session.read("b/default/nginx/site.conf").contains("8080"), "the working copy has both");
    session.edit(
        "a/default/nginx/site.conf",
        &SITE.replace("listen 80", "listen 8080").replace("root /srv/one", "root /srv/1"),
    );
    session.run("a", &["pull"]);
    let site = session.read("a/default/nginx/site.conf");
    assert!(site.contains("access_log on") && site.contains("/srv/1"), "the local edit is carried over: {site}");
    session.run("a", &["diff"]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn overlaps_are_refused_and_resolved() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.edit("a/default/nginx/site.conf", &SITE.replace("listen 80", "listen 81"));
    session.run("a", &["commit", "-m", "81"]);
    session.edit("b/default/nginx/site.conf", &SITE.replace("listen 80", "listen 82"));
    session.run("b", &["commit", "-m", "82"]);
    session.run("b", &["pull"]);
    assert!(session.read("b/default/nginx/site.conf").contains("listen 82"), "nothing was changed");
    session.run("b", &["pull", "--manual"]);
    assert!(session.read("b/default/nginx/site.conf").contains("<<<<<<<"));
    session.run("b", &["status"]);
    session.run("b", &["commit", "-m", "with markers"]);
    session.run("b", &["pull"]);
    session.run("b", &["resolve", "."]);
    session.run("b", &["resolve", "--revert", "--force", "."]);
    session.edit("b/default/nginx/site.conf", &SITE.replace("listen 80", "listen 83"));
    session.run("b", &["resolve", "default/nginx/site.conf"]);
    session.run("b", &["resolve", "default/nginx/site.conf"]);
    session.run("b", &["commit", "-m", "83"]);

    session.say("a takes the repository's side");
    session.edit("a/default/nginx/site.conf", &SITE.replace("listen 80", "listen 84"));
    session.run("a", &["pull", "--theirs"]);
    assert!(session.read("a/default/nginx/site.conf").contains("listen 83"));

    session.say("b commits, a keeps its own side");
    session.edit("b/default/nginx/site.conf", &SITE.replace("listen 80", "listen 85"));
    session.run("b", &["commit", "-m", "85"]);
    session.edit("a/default/nginx/site.conf", &SITE.replace("listen 80", "listen 86"));
    session.run("a", &["pull", "--mine"]);
    session.run("a", &["commit", "-m", "86"]);

    session.say("b gives one side up after --manual");
    session.edit("b/default/nginx/site.conf", &SITE.replace("listen 80", "listen 87"));
    session.run("b", &["pull", "--manual"]);
    session.run("b", &["resolve", "--revert", "."]);
    assert!(session.read("b/default/nginx/site.conf").contains("listen 86"));
    session.run("b", &["status"]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn the_gate_names_file_and_line() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.edit("a/default/duravip.toml", "mature = \"5s\"\nmatur = \"6s\"\n");
    session.edit("a/global/motd.json", "{\"a\": }\n");
    session.run("a", &["validate"]);
    session.run("a", &["--json", "validate"]);
    session.run("a", &["commit", "--add-all", "-m", "broken"]);
    session.run("a", &["status"]);
    session.edit("a/default/duravip.toml", "mature = \"5s\"\n");
    session.edit("a/global/motd.json", "{\"a\": 1}\n");
    session.run("a", &["validate"]);
    session.run("a", &["commit", "--add-all", "-m", "mended"]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn modes_links_and_odd_names_travel() {
    let server = Server::start();
    let mut session = two_people(&server);
    let hook = session.dir().join("a/default/hook");
    std::fs::write(&hook, "#!/bin/sh\n").expect("a file");
    std::os::unix::fs::symlink("hook", session.dir().join("a/default/link")).expect("a link");
    std::fs::write(session.dir().join("a/default/empty"), "").expect("a file");
    std::fs::write(session.dir().join("a/default/binary"), [0, 159, 146, 150, 255]).expect("a file");
    std::fs::write(session.dir().join("a/default/with space ä"), "x\n").expect("a file");
    session.run("a", &["commit", "--add-all", "-m", "odd ones"]);
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&hook, mode).expect("a mode");
    session.run("a", &["status"]);
    session.run("a", &["commit", "-m", "executable"]);
    session.run("b", &["pull"]);
    let theirs = session.dir().join("b/default");
    assert_eq!(std::fs::read_link(theirs.join("link")).expect("a link"), std::path::Path::new("hook"));
    assert_eq!(std::fs::read(theirs.join("binary")).expect("a file"), [0, 159, 146, 150, 255]);
    let about = std::fs::metadata(theirs.join("hook")).expect("a file");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o111, 0o111);
    insta::assert_snapshot!(session.transcript());
}

/// Such names go through the API in git's quoted form, as do names that begin with a quotation mark.
#[test]
fn names_that_are_not_text_travel() {
    use std::os::unix::ffi::OsStrExt;
    let name = |wc: &[u8]| std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&[wc, b"/default/caf\xe9"].concat()));
    let server = Server::start();
    let mut session = two_people(&server);
    let (a, b) = (session.dir().join(name(b"a")), session.dir().join(name(b"b")));
    std::fs::write(&a, "one\n").expect("a file");
    std::fs::write(session.dir().join("a/default/\"quoted\""), "x\n").expect("a file");
    session.run("a", &["status"]);
    session.run("a", &["commit", "--add-all", "-m", "latin"]);
    session.run("b", &["pull"]);
    assert_eq!(std::fs::read(&b).expect("a file"), b"one\n");
    assert_eq!(session.read("b/default/\"quoted\""), "x\n");
    session.say("edited on both sides, and deleted");
    std::fs::write(&a, "two\n").expect("a file");
    session.run("a", &["commit", "-m", "two"]);
    std::fs::write(&b, "three\n").expect("a file");
    session.run("b", &["commit", "-m", "three"]);
    session.run("b", &["pull", "--theirs"]);
    assert_eq!(std::fs::read(&b).expect("a file"), b"two\n");
    std::fs::remove_file(&b).expect("a file");
    session.run("b", &["commit", "--delete-all", "-m", "gone"]);
    session.run("a", &["pull"]);
    assert!(!a.exists());
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn large_files_travel() {
    let server = Server::start();
    let session = two_people(&server);
    let large: Vec<u8> = (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(session.dir().join("a/default/large"), &large).expect("a file");
    for args in [&["commit", "--wc", "a", "--add-all", "-m", "large"][..], &["pull", "--wc", "b"]] {
        let output = session.command(args).output().expect("eccfg runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(std::fs::read(session.dir().join("b/default/large")).expect("a file"), large);
}

#[test]
fn logins() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("a");
    session.edit("a/default/x", "x\n");
    session.edit("wrong", "wrong-password\n");
    for args in [&["log"][..], &["commit", "--add-all", "-m", "x"], &["status"]] {
        let mut command = session.command(args);
        command.current_dir(session.dir().join("a")).env_remove("ECCFG_PASSWORD_FILE");
        session.run_command("a", args, command);
    }
    session.run("a", &["log", "--password-file", "../wrong"]);
    session.run("a", &["log", "--username", "nobody", "--password", "visible"]);
    session.run("a", &["log", "--token", "visible"]);
    let password = std::fs::read_to_string(server.password_file()).expect("init wrote it");
    let output = session.command(&["log", "--debug", "--wc", "a"]).output().expect("eccfg runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("connecting") && !said.contains(password.trim()), "--debug tells no secret");
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn without_the_server() {
    let server = Server::start();
    let mut session = two_people(&server);
    session.edit("a/default/nginx/site.conf", "edited\n");
    session.say("a server that takes connections and never answers");
    server.kill();
    session.run("a", &["status"]);
    session.say("and none at all");
    session.send_to("https://127.0.0.1:1");
    for args in [
        &["status"][..],
        &["diff"],
        &["diff", "--from", "r1"],
        &["log"],
        &["log", "default"],
        &["pull"],
        &["commit", "-m", "x"],
        &["show", "r1"],
        &["effective", "duravip.toml"],
        &["effective", "duravip.toml", "--committed"],
        &["validate"],
        &["revert", "default/nginx/site.conf"],
        &["delete", "default/nginx"],
        &["resolve", "default/nginx"],
        &["status", "--local"],
        &["commit", "-m", "x"],
        &["watch", "--count", "1"],
        &["node", "token"],
        &["node", "list"],
        &["subcluster", "clusters"],
        &["subcluster", "create", "web"],
        &["subcluster", "copy", "default", "web"],
        &["subcluster", "master", "default"],
        &["subcluster", "slaves", "default"],
        &["subcluster", "override", "default", "n1"],
        &["subcluster", "resume", "default", "n1"],
        &["subcluster", "conflict", "default"],
        &["subcluster", "resolve", "default"],
        &["bootstrap", "--clustername", "default", "--wc", "../new"],
    ] {
        session.run("a", args);
    }
    insta::assert_snapshot!(session.transcript());
}

/// What a terminal adds: a login, questions about files, and the editor.
#[test]
fn questions_on_a_terminal() {
    let server = Server::start();
    let password = std::fs::read_to_string(server.password_file()).expect("init wrote it");
    let password = password.trim();
    let mut session = two_people(&server);
    session.edit("a/default/wanted", "w\n");
    session.edit("a/default/wanted-too", "w\n");
    session.edit("a/global/unwanted", "u\n");
    session.remove("a/default/nginx/site.conf");
    let message = "# a comment\nwhat was wanted\n\n# another\n";
    let answers = ["no", "y", "maybe", "yes", "n", message, password];
    assert_eq!(session.run_on_terminal("a", &["commit"], &answers), 0);
    assert_eq!(session.run_on_terminal("a", &["commit"], &["n", "n"]), 0);
    assert_eq!(session.run_on_terminal("a", &["commit", "--delete-all"], &["n", "# nothing but comments"]), 1);
    assert_eq!(session.run_on_terminal("a", &["log", "-n", "1"], &["not the password"]), 1);
    assert!(!session.transcript().contains(password), "a password is never shown");
    insta::assert_snapshot!(session.transcript());
}

/// Without the CA a person may type its fingerprint; the working copy remembers the CA from then on. A wrong one ends it.
#[test]
fn a_fingerprint_is_enough_to_trust() {
    let server = Server::start();
    let password = std::fs::read_to_string(server.password_file()).expect("init wrote it");
    let mut session = Session::new(&server);
    let environment =
        eccfg::Environment::empty(session.dir()).with("ECCFG_SERVER", server.url()).with("ECCFG_NODE", "n1");
    let args = ["bootstrap", "--clustername", "default", "--wc", "conf"];
    let wrong = "ab".repeat(32);
    for fingerprint in ["not one", wrong.as_str()] {
        let status = session.run_on_terminal_seeing(environment.clone(), "", &args, &[fingerprint, "x", "x"]);
        assert_eq!(status, 1);
        assert!(!session.dir().join("conf").exists());
    }
    let answers = [server.ca_fingerprint(), String::new(), password.trim().to_owned()];
    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
    assert_eq!(session.run_on_terminal_seeing(environment, "", &args, &answers), 0);
    let environment = eccfg::Environment::empty(session.dir().join("conf/default")).with("ECCFG_NODE", "n1");
    let answers = ["admin", password.trim()];
    assert_eq!(session.run_on_terminal_seeing(environment, "conf/default", &["log"], &answers), 0);
    insta::assert_snapshot!(session.transcript());
}
