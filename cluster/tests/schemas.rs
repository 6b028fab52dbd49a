//! The documents of our programs: every sample is read, every mistake is named with its place.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use cluster::documents::local::parse_local;
use cluster::documents::schema::agent::Agent;
use cluster::documents::schema::boot::{Autoupdate, Boot};
use cluster::documents::schema::cidr::Cidr;
use cluster::documents::schema::cluster::Cluster;
use cluster::documents::schema::duravip::{Duravip, NoQuorum, Placement, Probe};
use cluster::documents::schema::eccfg::Eccfg;
use cluster::documents::schema::ecconfigd::{Ecconfigd, Limits};
use cluster::documents::schema::logd::{Input, Logd};
use cluster::documents::{ConfError, DocumentKind, MemoryFiles, NodeConf, conf};

fn sample(kind: DocumentKind) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(kind.file_name());
    std::fs::read_to_string(path).unwrap()
}

/// The samples as a working copy.
fn samples() -> MemoryFiles {
    let text = |kind| sample(kind).into_bytes();
    MemoryFiles(
        [
            ("global/cluster.toml", text(DocumentKind::Cluster)),
            ("default/duravip.toml", text(DocumentKind::Duravip)),
            ("default/logd.toml", text(DocumentKind::Logd)),
            ("default/cidr.toml", text(DocumentKind::Cidr)),
        ]
        .map(|(path, text)| (path.to_owned(), text))
        .into(),
    )
}

#[test]
fn samples_of_the_repositories() {
    let files = samples();
    let conf = NodeConf::read(&files, "n1", None).unwrap();
    assert_eq!(conf.search_path().to_string(), "n1:relays:default:global");

    let cluster: Cluster = conf.load().unwrap();
    assert_eq!(cluster.nodes["west1"].address.as_ref().unwrap().to_string(), "2001:db8::31");
    assert_eq!(cluster.nodes["n2"].subcluster, "default");
    let members: Vec<&str> = cluster.members_of("default").map(|node| node.name.as_str()).collect();
    assert_eq!(members, ["n1", "n2", "w1"], "a witness from anywhere is a member");

    let duravip: Duravip = conf.load().unwrap();
    let vip = |address: &str| &duravip.vips[&address.parse().unwrap()];
    assert_eq!(vip("10.1.1.1").placement, Placement::Preferred("n1".into()));
    assert_eq!(vip("10.2.1.1").placement, Placement::Follows("10.1.1.1".parse().unwrap()));
    assert_eq!(vip("2001:db8:1::1").placement, Placement::Follows("10.1.1.1".parse().unwrap()));
    assert_eq!(vip("10.1.1.2").placement, Placement::Elected);
    assert_eq!(duravip.topologies[&"10.2.1.0/24".parse().unwrap()].prefix_length, 32);
    assert_eq!(duravip.topologies[&"2001:db8:1::/64".parse().unwrap()].prefix_length, 128);
    assert_eq!((duravip.weight_of("n1"), duravip.weight_of("n2")), (2, 1));
    assert!(matches!(&duravip.checks["disk"].probe, Probe::Exec(argv) if argv.len() == 3));

    let logd: Logd = conf.load().unwrap();
    assert!(matches!(logd.logs["network"].input, Some(Input::SyslogUdp(_))));
    assert_eq!(logd.logs["jobs"].input, None);
    let manager = &logd.managers["eastmgr"];
    assert_eq!(manager.reads_as("n1", &logd.logs["mainlog"]), Some("eastmgr"));
    assert_eq!(manager.reads_as("n2", &logd.logs["mainlog"]), Some("master"));
    assert_eq!(manager.reads_as("n1", &logd.logs["auth"]), Some("master"), "its own where it exists, else master");
    assert_eq!(manager.reads_as("west1", &logd.logs["mainlog"]), None);
    assert_eq!(manager.file_mode.0, 0o640);

    let cidr: Cidr = conf.load().unwrap();
    assert_eq!(cidr.maintain_of("rbl").retention.unwrap().to_string(), "60d");
    assert_eq!(cidr.maintain_of("rbl").condense.unwrap().to_string(), "1d");
    assert_eq!(cidr.maintain_of("spam").retention.unwrap().to_string(), "30d");
    assert!(cidr.as_logger.includes("spam") && !cidr.as_logger.includes("test-1"));
    assert_eq!(cidr.series["ssh_fail"].monitor.to_string(), "300,6");
}

#[test]
fn samples_of_one_machine() {
    let boot: Boot = parse_local("boot.toml", sample(DocumentKind::Boot).as_bytes()).unwrap();
    assert_eq!((boot.autoupdate, boot.servers.len()), (Autoupdate::Always, 2));
    let agent: Agent = parse_local("agent.toml", sample(DocumentKind::Agent).as_bytes()).unwrap();
    assert!(agent.services[0].follows(["default/nginx/sites/a.conf"]));
    assert!(!agent.services[0].follows(["default/app.yaml", "n1/nginx"]));
    let server: Ecconfigd = parse_local("ecconfigd.toml", sample(DocumentKind::Ecconfigd).as_bytes()).unwrap();
    assert_eq!(server.limits, Limits::default(), "the sample shows the defaults");
    assert_eq!(server.listen[1].to_string(), "[::]:2027");
    let user: Eccfg = parse_local("eccfg.toml", sample(DocumentKind::Eccfg).as_bytes()).unwrap();
    assert_eq!(user.servers.len(), 2);
}

#[test]
fn without_any_file_everything_has_a_default() {
    let files = MemoryFiles::default();
    let conf = NodeConf::read(&files, "n1", None).unwrap();
    let duravip: Duravip = conf.load().unwrap();
    assert_eq!((duravip.no_quorum, duravip.dead_after.to_string()), (NoQuorum::Stop, "300ms".into()));
    assert_eq!(duravip.heartbeat.get() * 8, duravip.dead_after.get());
    assert!(duravip.vips.is_empty() && conf.load::<Logd>().unwrap().logs.is_empty());
    assert!(conf.load::<Cidr>().unwrap().servers.is_empty() && conf.cluster().nodes.is_empty());
}

/// The samples that the project promises to everybody are in its public contract; here they are word for word.
#[test]
fn what_was_promised() {
    let cluster = "[node.n1]\naddress = \"10.0.0.11\"\nsubcluster = \"default\"\nlabels = [\"rack-a\"]\ngroups = [\"relays\"]\nwitness = false\n\
                   ports = { logd = 4802, duravip = 4803 }\n";
    let files = MemoryFiles::from_texts([("global/cluster.toml", cluster)]);
    assert_eq!(conf::read_cluster(&files).unwrap().nodes["n1"].ports.duravip, 4803);
    // The sample of duravip.toml in this folder is the promised one with additions; autoupdate has three values.
    for (written, expected) in
        [("true", Autoupdate::Always), ("false", Autoupdate::Never), ("\"ifunchanged\"", Autoupdate::IfUnchanged)]
    {
        let boot: Boot = parse_local("boot.toml", format!("autoupdate = {written}").as_bytes()).unwrap();
        assert_eq!(boot.autoupdate, expected);
    }
}

/// Every finding about a document of n1, one per line, with two other nodes and a witness around.
fn mistakes(kind: DocumentKind, text: &str) -> String {
    let cluster = "[node.n1]\naddress = \"10.0.0.11\"\n[node.n2]\naddress = \"10.0.0.12\"\n[node.n3]\naddress = \"10.0.0.13\"\n\
                   [node.w1]\naddress = \"10.0.0.14\"\nwitness = true\n[node.far]\naddress = \"10.9.0.1\"\nsubcluster = \"far\"\n";
    let path = format!("default/{}", kind.file_name());
    let files = MemoryFiles::from_texts([("global/cluster.toml", cluster), (path.as_str(), text)]);
    let conf = NodeConf::read(&files, "n1", Some("default")).unwrap();
    let outcome = match kind {
        DocumentKind::Duravip => conf.load::<Duravip>().map(drop),
        DocumentKind::Logd => conf.load::<Logd>().map(drop),
        DocumentKind::Cidr => conf.load::<Cidr>().map(drop),
        _ => unreachable!("not in a repository"),
    };
    match outcome {
        Ok(()) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn cluster_mistakes(text: &str) -> String {
    match conf::read_cluster(&MemoryFiles::from_texts([("global/cluster.toml", text)])) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mistakes_in_cluster_toml() {
    insta::assert_snapshot!(cluster_mistakes(
        r#"
[node.N1]
address = "10.0.0.256"
[node.n2]
adress = "10.0.0.12"
subcluster = "Two Words"
groups = ["n2", "default", "x", "x"]
ports = { logd = 0, duravip = 70000 }
witness = "no"
[node.default]
address = "10.0.0.13:2027"
[nodes.n3]
"#
    ));
    // The rules for the whole follow once each key is right.
    insta::assert_snapshot!(cluster_mistakes(
        "[node.N1]\n[node.n2]\nsubcluster = \"Two Words\"\ngroups = [\"n2\", \"default\", \"x\", \"x\"]\nports = { logd = 0 }\nlabels = [\"a b\"]\n[node.default]\n"
    ));
}

#[test]
fn mistakes_in_duravip_toml() {
    let kind = DocumentKind::Duravip;
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
dead_after = 300
hartbeat = "40ms"
no_quorum = "stopp"
plumb = true
mature = "5 parsecs"
[topology."10.1.1.1/24"]
interface = "eth1"
[topology.eth2]
[vip."10.1.1"]
[vip."10.1.1.2"]
perference = "n1"
checks = "smtp"
services = ["smtp", 25]
[check.smtp]
tcp = "127.0.0.1"
[member.n1]
weight = -1
[hook]
acquired = "/bin/true"
"#
    ));
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
dead_after = "300ms"
heartbeat = "50ms"
no_quorum = "probe"
[topology."10.1.1.0/24"]
interface = "eth1"
prefix_length = 33
[topology."10.0.0.0/8"]
[vip."10.1.1.1"]
name = "mx-1"
preference = "n4"
checks = ["smtpd", "x"]
[vip."10.1.1.2"]
follow = "mx-1"
preference = "n1"
[vip."10.1.1.3"]
follow = "mx-2"
[vip."10.1.1.4"]
follow = "10.1.1.4"
[vip."10.1.1.5"]
follow = "10.1.1.6"
[vip."10.1.1.6"]
follow = "10.1.1.5"
[vip."10.1.1.7"]
follow = "10.1.1.5"
[vip."192.0.2.1"]
[vip."10.0.0.11"]
preference = "w1"
[vip."10.1.1.8"]
preference = "far"
[vip."224.0.0.1"]
[vip."10.1.1.9"]
follow = "10.1.1.99"
[member.n9]
[check.smtp]
tcp = "127.0.0.1:25"
http = "127.0.0.1"
[check.none]
interval = "1ms"
rise = 0
[hook]
released = []
"#
    ));
}

#[test]
fn whom_a_check_believes_goes_with_https() {
    for (check, words) in [
        ("http = \"http://127.0.0.1/\"\nca = \"/etc/ca.pem\"", "ca goes with"),
        ("tcp = \"127.0.0.1:1\"\nca = \"/etc/ca.pem\"", "ca goes with"),
        ("http = \"https://127.0.0.1/\"\nca = \"ca.pem\"", "absolute path"),
    ] {
        let found = mistakes(DocumentKind::Duravip, &format!("[check.web]\n{check}\n"));
        assert!(found.contains(words), "{check}: {found}");
    }
}

#[test]
fn two_members_must_choose() {
    let of = |nodes: &str, first_line: &str| {
        let vip = format!("{first_line}\n[topology.\"10.1.1.0/24\"]\ninterface = \"eth1\"\n[vip.\"10.1.1.1\"]\n");
        let files = MemoryFiles::from_texts([("global/cluster.toml", nodes), ("default/duravip.toml", vip.as_str())]);
        let conf = NodeConf::read(&files, "n1", None).unwrap();
        conf.load::<Duravip>().map_or_else(|error| error.to_string(), |_| "accepted".into())
    };
    let two = "node.n1.address = \"10.0.0.1\"\nnode.n2.address = \"10.0.0.2\"\n";
    insta::assert_snapshot!(of(two, ""));
    for choice in ["stop", "serve", "probe"] {
        assert_eq!(of(two, &format!("no_quorum = \"{choice}\"")), "accepted", "{choice}");
    }
    let witness = format!("{two}[node.w]\naddress = \"10.0.0.3\"\nsubcluster = \"x\"\nwitness = true\n");
    assert_eq!(of(&witness, ""), "accepted", "a witness makes three");
    let elsewhere = format!("{two}[node.w]\naddress = \"10.0.0.3\"\nsubcluster = \"x\"\n");
    assert!(of(&elsewhere, "").contains("with two members"), "a node of another subcluster does not");
    assert_eq!(of("node.n1.labels = [\"x\"]", ""), "accepted", "one member needs no address");
    assert!(
        of("node.n1.address = \"a\"\nnode.n2.address = \"A\"", "no_quorum = \"stop\"")
            .contains("same address and port")
    );
    assert!(of("node.n1.address = \"a\"\nnode.n2.labels = []", "no_quorum = \"stop\"").contains("n2 has no address"));
}

#[test]
fn heartbeats() {
    let of = |text: &str| mistakes(DocumentKind::Duravip, text);
    assert_eq!(of("dead_after = \"300ms\"\nheartbeat = \"40ms\""), "accepted");
    assert_eq!(of("dead_after = \"300ms\"\nheartbeat = \"49999us\""), "accepted");
    assert!(of("dead_after = \"300ms\"\nheartbeat = \"50ms\"").contains("not under a sixth"));
    assert_eq!(of("dead_after = \"80ms\"\nheartbeat = \"10ms\""), "accepted");
    assert!(of("dead_after = \"1ms\"").contains("between 40ms and 1m"));
}

#[test]
fn mistakes_in_logd_toml() {
    let kind = DocumentKind::Logd;
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
[log.a]
input = "unixx:/run/a"
text = "relative/path"
at_limit = "dropoldest"
max_backlog = "10G"
subscriber = ["master"]
[managers.n1]
logfile = "/var/log/%{x}"
file_mode = 640
max_idle = 60
[managers.n1.node.n2]
pul = false
[manager.n2]
"#
    ));
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
[log."a/b"]
max_backlog = "1KiB"
max_line = "1GiB"
subscribers = ["x y", "m", "m"]
[log.one]
input = "unix:/run/same"
[log.two]
input = "unix:/run/same"
subscribers = ["n1", "master"]
[managers.n1]
max_open = 0
retention = "1m"
[managers.n1.node.n22]
[managers.n2]
node.n3 = { pull = false, subscriber = "x" }
[managers.n3]
subscriber = "n1"
[managers.n5]
"#
    ));
}

#[test]
fn one_subscriber_has_one_reader() {
    let of = |text: &str| mistakes(DocumentKind::Logd, text);
    let log = "[log.a]\nsubscribers = [\"master\"]\n";
    assert_eq!(of(&format!("{log}[managers.n1]\n")), "accepted");
    assert!(of(&format!("{log}[managers.n1]\n[managers.n2]\n")).contains("both read the log a as \"master\""));
    let sink = "[sinks.bus]\nurl = \"nats://10.0.0.5:4222\"\n";
    assert_eq!(of(&format!("{log}{sink}[managers.n1]\n")), "accepted");
    for (more, expected) in [
        ("subscriber = \"n1\"\n[managers.n1]\n", "\"n1\" has another reader already"),
        ("subscriber = \"master\"\n", "\"master\" has another reader already"),
        ("logs = [\"nothing\"]\n", "there is no log \"nothing\""),
        ("subject = \"logs.>\"\n", "a subject is words"),
    ] {
        let said = of(&format!("{log}{sink}{more}"));
        assert!(said.contains(expected), "{said}");
    }
    let named = "[log.a]\nsubscribers = [\"n1\", \"n2\"]\n[managers.n1]\n[managers.n2]\n";
    assert_eq!(of(named), "accepted");
    let split = format!(
        "{log}[managers.n1]\nnode.n3.pull = false\nnode.w1.pull = false\n[managers.n2]\n[managers.n2.node.n1]\npull = false\n"
    );
    assert!(of(&split).contains("both read"), "n2 itself is still read by both");
}

#[test]
fn mistakes_in_cidr_toml() {
    let kind = DocumentKind::Cidr;
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
[server]
nodes = ["n1"]
[as_logger]
log_interval = "1 hour"
series_include_default = "some"
series_exclude = ["("]
[maintain]
retention = 30
[series.a]
monitor = "300"
pattern = '(?P<ip>'
[series.b]
monitor = "0,6"
"#
    ));
    insta::assert_snapshot!(mistakes(
        kind,
        r#"
[servers]
nodes = ["n1", "n7", "n1"]
[as_logger]
log_interval = "1500ms"
base_dir = "aslogger"
[maintain]
retention = "36h"
condense = "2d"
[maintain.series.x]
retention = "1d"
condense = "3d"
[series.union]
log = "auth"
[series.b]
pattern = 'from (\S+)'
"#
    ));
}

#[test]
fn mistakes_in_local_files() {
    let all = [
        parse_local::<Boot>("boot.toml", b"autoupdate = \"sometimes\"\nnode = \"N1\"\nserver = []\npoll = \"1ms\"").map(drop),
        parse_local::<Boot>("boot.toml", b"node = \"N1\"\nservers = [\"http://n1:2027\", \"https://n1:2027\"]\npoll = \"1ms\"").map(drop),
        parse_local::<Agent>("agent.toml", b"[[service]]\nname = \"a\"\npath = [\"x\"]\n[[service]]\ncheck = \"true\"").map(drop),
        parse_local::<Agent>(
            "agent.toml",
            b"[[service]]\nname = \"a\"\npaths = [\"x\"]\nreload = [\"r\"]\n[[service]]\nname = \"a\"\ncheck = []\ntimeout = \"0s\"\n[[service]]\npaths = [\"y\"]",
        )
        .map(drop),
        parse_local::<Ecconfigd>("ecconfigd.toml", b"listen = \"2027\"\nlimits = { watcher = 3, file_size = 3 }").map(drop),
        parse_local::<Ecconfigd>("ecconfigd.toml", b"listen = \"[::]:0\"\nadvertise = \"n1:0\"\nlimits = { watchers = 0, file_size = \"3B\" }").map(drop),
        parse_local::<Eccfg>("eccfg.toml", b"server = \"n1\"\ntoken = \"secret\"\npassword_file = \"/p\"").map(drop),
    ];
    let lines: Vec<String> = all.into_iter().map(|outcome| outcome.unwrap_err().to_string()).collect();
    insta::assert_snapshot!(lines.join("\n\n"));
}

#[test]
fn a_single_layer_may_be_incomplete_but_not_wrong() {
    let layer = |text: &str| {
        let document = cluster::documents::Document::parse("n1/duravip.toml", text.as_bytes()).unwrap();
        DocumentKind::Duravip.check_layer(&document).to_string()
    };
    assert_eq!(
        layer("[vip.\"10.1.1.1\"]\nfollow = \"mx-9\"\n[check.x]\nrise = 3"),
        "",
        "complete only together with other layers"
    );
    assert_eq!(layer("unset = [\"vip\", \"plumb\"]\n[vip.\"10.1.1.1\"]\nunset = [\"preference\"]"), "");
    assert_eq!(layer("[topology]\nunset = [\"10.1.1.0/24\"]\n[check]\nunset = [\"smtp\"]"), "");
    insta::assert_snapshot!(layer(
        "unset = [\"plum\", \"vip\"]\n[vip]\nunset = [\"mx-1\"]\n[vip.\"10.1.1.1\"]\nunset = [\"preferense\"]\n[hook]\nunset = 1\n"
    ));
}

#[test]
fn a_nodes_certificate_decides_its_subcluster() {
    let files =
        MemoryFiles::from_texts([("global/cluster.toml", "[node.n1]\naddress = \"a\"\nsubcluster = \"east\"\n")]);
    assert_eq!(NodeConf::read(&files, "n1", None).unwrap().subcluster(), "east");
    assert_eq!(NodeConf::read(&files, "n2", Some("west")).unwrap().subcluster(), "west");
    let Err(ConfError::Refused(findings)) = NodeConf::read(&files, "n1", Some("west")) else { panic!("accepted") };
    assert!(
        findings
            .to_string()
            .starts_with("global/cluster.toml:3:1: the node n1 belongs to the subcluster \"west\", not \"east\"")
    );
}

#[test]
fn the_hash_of_a_configuration() {
    let hash =
        |texts: &[(&str, &str)], node: &str| conf::hash(&MemoryFiles::from_texts(texts.iter().copied()), node).unwrap();
    let cluster = ("global/cluster.toml", "[node.n1]\naddress = \"a\"\n[node.n2]\naddress = \"b\"\n");
    let base = hash(&[cluster, ("default/duravip.toml", "mature = \"5s\"\nplumb = \"auto\"")], "n1");
    assert_eq!(base.len(), 40);
    assert_eq!(
        base,
        hash(&[cluster, ("default/duravip.toml", "# so\nplumb = 'auto'\n\nmature = \"5s\"")], "n2"),
        "same meaning, on every member"
    );
    assert_eq!(
        base,
        hash(
            &[
                cluster,
                ("global/duravip.toml", "plumb = 'auto'"),
                ("default/duravip.toml", "mature = \"5s\""),
                ("default/x", "y")
            ],
            "n1"
        )
    );
    assert_ne!(base, hash(&[cluster, ("default/duravip.toml", "mature = \"6s\"\nplumb = \"auto\"")], "n1"));
    assert_ne!(
        base,
        hash(
            &[
                cluster,
                ("default/duravip.toml", "mature = \"5s\"\nplumb = \"auto\""),
                ("n2/duravip.toml", "mature = \"6s\"")
            ],
            "n1"
        ),
        "also for another node"
    );
    assert_ne!(base, hash(&[cluster, ("default/logd.toml", "mature = \"5s\"\nplumb = \"auto\"")], "n1"));
}

/// The keys that a table of a document may have, as the hint for an unknown one lists them.
fn known_keys(kind: DocumentKind, table: &str) -> Vec<String> {
    let text = format!("{table}\nqqqqqqqqqqqq = 1\n");
    let document = cluster::documents::Document::parse(kind.file_name(), text.as_bytes()).unwrap();
    let findings = kind.check_layer(&document);
    let hint = findings.iter().find_map(|finding| finding.hint.clone()).unwrap_or_default();
    let names = hint.strip_prefix("known here: ").unwrap_or_else(|| panic!("{kind} {table}: {hint:?}"));
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_in_a_sample() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/documents.md");
    let page = std::fs::read_to_string(page).unwrap();
    let tables = [
        (DocumentKind::Cluster, vec!["", "[node.a]", "[node.a.ports]"]),
        (
            DocumentKind::Duravip,
            vec!["", "[topology.\"10.0.0.0/8\"]", "[vip.\"10.0.0.1\"]", "[member.a]", "[check.a]", "[hook]"],
        ),
        (DocumentKind::Logd, vec!["", "[log.a]", "[managers.a]", "[managers.a.node.b]", "[sinks.a]"]),
        (DocumentKind::Cidr, vec!["", "[servers]", "[as_logger]", "[maintain]", "[maintain.series.a]", "[series.a]"]),
        (DocumentKind::Boot, vec![""]),
        (DocumentKind::Agent, vec!["", "[[service]]"]),
        (DocumentKind::Ecconfigd, vec![""]),
        (DocumentKind::Eccfg, vec![""]),
    ];
    for (kind, tables) in tables {
        let sample = sample(kind);
        for key in tables.iter().flat_map(|table| known_keys(kind, table)) {
            let shapes = [format!("`{key}`"), format!(".{key}`"), format!("`{key}."), format!("[{key}]")];
            let shown = shapes.iter().any(|shape| page.contains(shape));
            assert!(shown, "{kind}: {key} is not on the page");
            assert!(sample.contains(&key), "{kind}: {key} is not in the sample");
        }
    }
    // Too many to be listed in a hint; the sample shows the defaults of all of them.
    let limits = sample(DocumentKind::Ecconfigd);
    for key in limits.lines().skip_while(|line| !line.starts_with("[limits]")).filter_map(|line| line.split_once(" = "))
    {
        assert!(page.contains(&format!("`{}`", key.0)), "ecconfigd.toml: limits.{} is not on the page", key.0);
    }
    let fields = format!("{:?}", Limits::default()).matches(": ").count();
    assert_eq!(
        fields,
        limits.lines().skip_while(|line| !line.starts_with("[limits]")).count() - 1,
        "a limit is not in the sample"
    );
}
