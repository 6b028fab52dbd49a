//! Golden transcripts of what needs no server: help, wrong usage, and every command where there is no working copy or no server.

mod common;

use common::Session;

/// Every command, as it is typed.
const COMMANDS: &[&[&str]] = &[
    &["bootstrap"],
    &["pull"],
    &["commit"],
    &["status"],
    &["diff"],
    &["revert"],
    &["resolve"],
    &["delete"],
    &["log"],
    &["show"],
    &["effective"],
    &["validate"],
    &["doctor"],
    &["watch"],
    &["subcluster"],
    &["subcluster", "clusters"],
    &["subcluster", "create"],
    &["subcluster", "copy"],
    &["subcluster", "master"],
    &["subcluster", "slaves"],
    &["subcluster", "override"],
    &["subcluster", "resume"],
    &["subcluster", "conflict"],
    &["subcluster", "resolve"],
    &["node"],
    &["node", "token"],
    &["node", "enroll"],
    &["node", "list"],
    &["node", "promote"],
    &["node", "demote"],
    &["node", "remove"],
    &["node", "replace"],
    &["completions"],
    &["man"],
];

#[test]
fn help() {
    let mut session = Session::new();
    session.run(&["--help"]);
    for command in COMMANDS {
        session.run(&[command, &["--help"][..]].concat());
    }
    insta::assert_snapshot!(without_common_options(&session.transcript()));
}

/// They are the same everywhere; `eccfg --help` shows them once.
fn without_common_options(transcript: &str) -> String {
    let mut kept = String::new();
    for (at, run) in transcript.split("\n$ ").enumerate() {
        let (start, end) = if at == 0 { ("", run) } else { ("\n$ ", run) };
        kept.push_str(start);
        match end.split_once("Common options:\n") {
            Some((before, after)) if at > 0 => {
                kept.push_str(&format!("{before}Common options: …\n{}", &after[after.rfind('[').unwrap_or(0)..]));
            }
            _ => kept.push_str(end),
        }
    }
    kept
}

#[test]
fn every_command_has_help_in_this_test() {
    let mut found = Vec::new();
    names(&eccfg::cli::command(), &mut Vec::new(), &mut found);
    // The agent's transcripts stand beside the agent.
    found.retain(|name| name != &["agent"]);
    let tested: Vec<Vec<String>> =
        COMMANDS.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect();
    for name in found {
        assert!(tested.contains(&name), "eccfg {} has no transcript", name.join(" "));
    }
}

fn names(command: &clap::Command, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        path.push(below.get_name().to_owned());
        found.push(path.clone());
        names(below, path, found);
        path.pop();
    }
}

#[test]
fn wrong_usage() {
    let mut session = Session::new();
    for args in [
        &[][..],
        &["pul"],
        &["--bogus", "pull"],
        &["bootstrap"],
        &["bootstrap", "--clustername", "default", "--singlenode", "n1"],
        &["bootstrap", "--clustername", "Not A Word", "--server", "n1"],
        &["bootstrap", "--clustername", "global", "--server", "n1"],
        &["pull", "--mine", "--theirs"],
        &["pull", "extra"],
        &["pull", "--m"],
        &["commit", "--mesage", "typo"],
        &["commit", "--message"],
        &["status", "--node", "n1", "--local"],
        &["diff", "--to", "3"],
        &["diff", "--from", "yesterday"],
        &["commit", "-m"],
        &["revert"],
        &["revert", "--all"],
        &["resolve"],
        &["resolve", "--put-aside", "--force", "x"],
        &["resolve", "--revert=both", "x"],
        &["delete"],
        &["delete", "--forse", "x"],
        &["log", "--limit", "0"],
        &["log", "--limit", "many"],
        &["show"],
        &["show", "main"],
        &["effective"],
        &["effective", "a.toml", "b.toml"],
        &["validate", "a", "b"],
        &["agent", "--nod", "n1", "--bogus"],
        &["watch", "--exec"],
        &["watch", "--path", "a{b"],
        &["watch", "--count", "0"],
        &["node"],
        &["node", "tokn"],
        &["node", "enroll"],
        &["node", "enroll", "--node", "N 1", "--token", "x"],
        &["node", "enroll", "--node", "n1", "--token", "x"],
        &["node", "enroll", "--node", "n1", "--token", "x", "--token-file", "y"],
        &["completions"],
        &["completions", "cmd.exe"],
        &["man"],
        &["man", "a", "b"],
        &["subcluster"],
        &["subcluster", "clustres"],
        &["subcluster", "clusters", "extra"],
        &["subcluster", "create"],
        &["subcluster", "copy", "one"],
        &["subcluster", "master", "a", "b"],
        &["subcluster", "slaves", "a", "b"],
        &["subcluster", "override", "default"],
        &["subcluster", "resume", "default"],
        &["subcluster", "conflict"],
        &["subcluster", "resolve"],
        &["node", "token", "--ttl", "soon"],
        &["node", "list", "extra"],
        &["status", "--server", "http://n1:2027"],
        &["status", "--password", "x", "--password-file", "y"],
        &["status", "--pass", "x"],
    ] {
        let outcome = session.run(args);
        assert_ne!(outcome.status, 0, "eccfg {} must fail", args.join(" "));
        assert!(
            outcome.err.lines().any(|line| line.starts_with("error: ")),
            "eccfg {} says what is wrong",
            args.join(" ")
        );
    }
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn without_a_working_copy() {
    let mut session = Session::new();
    for args in [
        &["pull"][..],
        &["pull", "--auto"],
        &["commit", "-m", "x"],
        &["status"],
        &["status", "--wc", "nowhere"],
        &["diff"],
        &["revert", "x"],
        &["resolve", "x"],
        &["delete", "x"],
        &["log"],
        &["log", "default/x"],
        &["show", "r1"],
        &["effective", "duravip.toml"],
        &["watch"],
        &["node", "token"],
        &["node", "list"],
        &["bootstrap", "--clustername", "default"],
    ] {
        assert_eq!(session.run(args).status, 1, "eccfg {}", args.join(" "));
    }
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn without_a_server() {
    let mut session = Session::new();
    session.write("token", "not-a-real-token\n");
    session.write("ca.pem", cluster::identity::Ca::create("test").expect("a CA").certificate_pem());
    // Nothing listens on port 1 of the loopback address.
    session.set("ECCFG_SERVER", "127.0.0.1:1");
    session.run(&["node", "list"]);
    session.set("ECCFG_CA", session.dir().join("ca.pem"));
    for args in [
        &["log"][..],
        &["show", "r1"],
        &["diff", "--from", "r1"],
        &["watch", "--count", "1"],
        &["node", "token", "--token-file", "token"],
        &["node", "list", "--token", "visible"],
        &["bootstrap", "--clustername", "default"],
        &["bootstrap", "--singlenode", "127.0.0.1:1"],
        &["effective", "duravip.toml"],
    ] {
        assert_eq!(session.run(args).status, 1, "eccfg {}", args.join(" "));
    }
    session.set("ECCFG_CA", session.dir().join("missing.pem"));
    session.run(&["log"]);
    session.run(&["log", "--token-file", "missing"]);
    insta::assert_snapshot!(session.transcript());
}

#[test]
fn nothing_asks_without_a_terminal_and_secrets_are_asked_for_on_one() {
    let mut session = Session::new();
    session.write("ca.pem", cluster::identity::Ca::create("test").expect("a CA").certificate_pem());
    session.set("ECCFG_SERVER", "127.0.0.1:1");
    session.set("ECCFG_CA", session.dir().join("ca.pem"));
    let silent = session.run(&["log"]);
    assert!(silent.asked.is_empty());
    let asked = session.run_with(&["log"], &["", "hush"]);
    assert_eq!(asked.asked, ["User name [admin]: ", "Password of admin: "]);
    assert!(!asked.err.contains("hush") && !asked.out.contains("hush"));
    let named = session.run_with(&["log", "--username", "joe"], &["hush"]);
    assert_eq!(named.asked, ["Password of joe: "]);
}

#[test]
fn versions_completions_and_manual_pages() {
    let mut session = Session::new();
    assert_eq!(session.run(&["--version"]).out, format!("eccfg {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = session.run(&["completions", shell]);
        assert_eq!((script.status, script.err.as_str()), (0, ""));
        assert!(script.out.contains("bootstrap") && script.out.contains("password-file"), "{shell}");
        assert!(!script.out.contains("agent-isolate"), "{shell} would offer what is not for people");
    }
    let pages = session.run(&["man", "pages"]);
    assert_eq!((pages.status, pages.err.as_str()), (0, ""));
    for words in COMMANDS {
        let page = session.dir().join("pages").join(format!("eccfg-{}.1", words.join("-")));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
    }
    session.write("file", "");
    assert_eq!(session.run(&["man", "file"]).status, 1);
}
