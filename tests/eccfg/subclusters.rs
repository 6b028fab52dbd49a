//! Whole subclusters: creating, copying, freezing; and who leads.

use crate::session::{Server, Session};

#[test]
fn subclusters_are_created_and_copied() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.run("", &["subcluster", "clusters"]);
    session.run("", &["subcluster", "create", "east"]);
    session.run("", &["subcluster", "create", "east"]);
    session.run("", &["subcluster", "create", "East-1"]);
    session.run("", &["subcluster", "clusters"]);
    session.run("", &["subcluster", "clusters", "--json"]);

    session.checkout("conf");
    session.edit("conf/default/app.toml", "port = 1\n");
    std::os::unix::fs::symlink("app.toml", session.dir().join("conf/default/link")).expect("a link");
    session.run("conf", &["commit", "--add-all", "-m", "an application"]);

    session.say("the newest tree, onto one that exists and onto one that does not");
    session.run("", &["subcluster", "copy", "default", "east"]);
    session.run("", &["subcluster", "copy", "default", "west"]);
    session.run("", &["subcluster", "copy", "--with-history", "default", "south"]);
    session.run("", &["subcluster", "copy", "--with-history", "default", "south"]);
    session.run("", &["subcluster", "copy", "nosuch", "north"]);
    session.run("", &["subcluster", "copy", "--with-history", "nosuch", "north"]);
    session.run("", &["subcluster", "copy", "default", "default"]);
    session.run("", &["subcluster", "copy", "global", "north"]);
    for name in ["east", "west", "south"] {
        session.run("", &["log", "--repo", name]);
        let wc = format!("conf-{name}");
        session.run("", &["bootstrap", "--clustername", name, "--wc", &wc]);
        assert_eq!(session.read(&format!("{wc}/default/link")), "port = 1\n", "{name}: through the link");
    }
    session.say("each goes its own way");
    session.edit("conf-south/default/app.toml", "port = 2\n");
    session.run("conf-south", &["commit", "-m", "another port"]);
    session.run("conf", &["pull"]);
    insta::assert_snapshot!("subclusters", session.transcript());
}

#[test]
fn a_subcluster_in_conflict_stands_still() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.checkout("behind");
    session.checkout("ahead");
    session.edit("ahead/default/a.txt", "one\n");
    session.run("ahead", &["commit", "--add-all", "-m", "one"]);
    session.run("", &["subcluster", "conflict", "default"]);
    session.run("", &["subcluster", "clusters"]);
    session.run("behind", &["pull"]);
    session.edit("ahead/default/a.txt", "two\n");
    session.run("ahead", &["commit", "-m", "two"]);
    session.say("others go on");
    session.edit("ahead/global/g.txt", "g\n");
    session.run("ahead", &["revert", "default/a.txt"]);
    session.run("ahead", &["commit", "--add-all", "-m", "global goes on"]);
    session.run("behind", &["pull"]);
    session.run("", &["subcluster", "resolve", "default"]);
    session.run("", &["subcluster", "clusters"]);
    session.run("behind", &["pull"]);
    session.run("", &["subcluster", "conflict", "nosuch"]);
    insta::assert_snapshot!("conflict", session.transcript());
}

#[test]
fn the_leader_is_known_and_pinned() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.run("", &["subcluster", "master"]);
    session.run("", &["subcluster", "master", "default"]);
    session.run("", &["subcluster", "master", "nosuch"]);
    session.run("", &["subcluster", "slaves"]);
    session.run("", &["subcluster", "override", "default", "n1"]);
    session.run("", &["subcluster", "override", "default", "n1"]);
    session.run("", &["subcluster", "override", "nosuch", "n1"]);
    session.run("", &["subcluster", "override", "default", "n9"]);
    session.run("", &["subcluster", "master", "--json"]);
    session.run("", &["subcluster", "resume", "default", "n2"]);
    session.run("", &["subcluster", "resume", "default", "n1"]);
    session.run("", &["subcluster", "master", "--json"]);
    session.run("", &["subcluster"]);
    session.run("", &["subcluster", "override", "default"]);
    session.say("without a server");
    server.kill();
    session.run("", &["subcluster", "clusters"]);
    session.run("", &["subcluster", "master"]);
    insta::assert_snapshot!("leader", session.transcript());
}
