//! The gate: what a change may do, and what the answer to whoever pushed it looks like.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use cluster::documents::{DirFiles, Files, FilesError, MemoryFiles};
use cluster::gate::{
    Change, ChangeKind, GateLimits, Proposal, ProposedRepo, RegisteredNode, Report, check, check_tree,
};

/// Repositories after a change. Paths are `REPOSITORY:PATH`; those named in `changed` are the change.
struct Cluster {
    repos: BTreeMap<String, Counting>,
    nodes: Vec<RegisteredNode>,
}

/// Files that remember what was read.
#[derive(Default)]
struct Counting {
    files: MemoryFiles,
    reads: RefCell<Vec<String>>,
}

impl Files for Counting {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        self.reads.borrow_mut().push(path.to_owned());
        self.files.read(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        self.files.list(directory)
    }
}

impl Cluster {
    fn new(nodes: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let mut repos: BTreeMap<String, Counting> = BTreeMap::new();
        for repo in ["default", "global"] {
            repos.insert(repo.to_owned(), Counting::default());
        }
        for (path, text) in files {
            let (repo, path) = path.split_once(':').unwrap();
            let repo = repos.entry(repo.to_owned()).or_default();
            repo.files.0.insert(path.to_owned(), text.as_bytes().to_vec());
        }
        let node = |(name, subcluster): &(&str, &str)| RegisteredNode {
            name: (*name).into(),
            subcluster: (*subcluster).into(),
        };
        Self { repos, nodes: nodes.iter().map(node).collect() }
    }

    fn check_with(&self, changed: &[&str], limits: &GateLimits) -> Report {
        let repos = self.repos.iter().map(|(name, files)| {
            let paths = changed.iter().filter_map(|path| path.split_once(':').filter(|(repo, _)| repo == name));
            let changes = paths.map(|(_, path)| {
                let size = files.files.0.get(path).map(|data| data.len() as u64);
                let kind = size.map_or(ChangeKind::Deleted, |size| ChangeKind::File { size: Some(size) });
                Change { path: path.as_bytes().to_vec(), kind }
            });
            (name.clone(), ProposedRepo { files, changes: changes.collect() })
        });
        check(&Proposal { repos: repos.collect(), nodes: self.nodes.clone() }, limits).unwrap()
    }

    #[track_caller]
    fn says(&self, changed: &[&str], expected: &str) {
        assert_eq!(self.check_with(changed, &GateLimits::default()).to_string(), expected);
    }

    #[track_caller]
    fn passes(&self, changed: &[&str]) {
        self.says(changed, "");
    }
}

const ONE: &[(&str, &str)] = &[("n1", "default")];

#[test]
fn syntax_by_extension() {
    let files = &[
        ("default:a/x.toml", "a = 1\nb = "),
        ("default:a/x.json", "{\n  \"ä\": 1,,\n}"),
        ("default:a/x.yaml", "a: 1\nb: [1, 2\nc: 3\n"),
        ("default:a/x.yml", "a: *nothing\n"),
        ("default:a/good.yaml", "a: &b\n  - 1\nc: *b\n---\nnext: document\n"),
        ("default:a/good.json", "[1, {\"a\": null}]"),
        ("default:a/x.toml.j2", "{{ jinja }}"),
        ("default:.toml", "= no extension"),
        ("default:a/empty.yaml", ""),
    ];
    let all: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    let report = Cluster::new(ONE, files).check_with(&all, &GateLimits::default());
    insta::assert_snapshot!(report);
    Cluster::new(ONE, files).passes(&["default:a/good.yaml"]);
}

#[test]
fn a_refusal_names_file_line_and_reason() {
    let files = &[("default:default/duravip.toml", "# addresses\nhartbeat = \"40ms\"\n")];
    Cluster::new(ONE, files).says(
        &["default:default/duravip.toml"],
        "default/duravip.toml:2:1: unknown key \"hartbeat\"; hint: did you mean \"heartbeat\"?",
    );
    let elsewhere = &[("east:default/duravip.toml", "hartbeat = 1\n"), ("global:cidr.toml", "serverz = 1")];
    Cluster::new(&[("e1", "east")], elsewhere).says(
        &["east:default/duravip.toml", "global:cidr.toml"],
        "east: default/duravip.toml:1:1: unknown key \"hartbeat\"; hint: did you mean \"heartbeat\"?\n\
         global/cidr.toml:1:1: unknown key \"serverz\"; hint: did you mean \"servers\"?",
    );
}

#[test]
fn partial_files_need_only_valid_keys() {
    let topology = "[topology.\"10.1.1.0/24\"]\ninterface = \"eth1\"\n";
    let vip = "[vip.\"10.1.1.1\"]\nname = \"a\"\n";
    let apart = Cluster::new(ONE, &[("global:duravip.toml", topology), ("default:default/duravip.toml", vip)]);
    apart.passes(&["global:duravip.toml", "default:default/duravip.toml"]);
    let alone = Cluster::new(ONE, &[("default:default/duravip.toml", vip)]);
    alone.says(
        &["default:default/duravip.toml"],
        "default/duravip.toml:1:6: 10.1.1.1 lies in no topology (node n1); hint: a [topology.\"BLOCK\"] says which interface carries it",
    );
}

#[test]
fn a_global_change_is_checked_against_all_subclusters() {
    let vip = "[vip.\"10.1.1.1\"]\n";
    let topology = "[topology.\"10.1.1.0/24\"]\ninterface = \"eth1\"\n";
    let files = &[
        ("default:default/duravip.toml", vip),
        ("east:default/duravip.toml", vip),
        ("east:e2/duravip.toml", topology),
        ("west:default/duravip.toml", "plumb = \"auto\""),
    ];
    let nodes = &[("n1", "default"), ("e1", "east"), ("e2", "east"), ("e3", "east"), ("w1", "west")];
    let cluster = Cluster::new(nodes, files);
    // The file that held the topology was removed.
    insta::assert_snapshot!(cluster.check_with(&["global:duravip.toml"], &GateLimits::default()));
}

#[test]
fn only_affected_nodes_are_judged() {
    let bad = "[vip.\"10.1.1.1\"]\n";
    let nodes =
        "node.n1.address = \"a\"\nnode.n2 = { address = \"b\", groups = [\"near\"] }\nnode.n3.address = \"c\"\n";
    let files = &[
        ("global:cluster.toml", nodes),
        ("default:n1/duravip.toml", bad),
        ("default:near/duravip.toml", bad),
        ("default:n3/duravip.toml", "mature = \"1s\""),
        ("default:spare/duravip.toml", bad),
        ("default:default/logd.toml", "[log.a]\n"),
    ];
    let cluster = Cluster::new(&[("n1", "default"), ("n2", "default"), ("n3", "default")], files);
    cluster.passes(&["default:n3/duravip.toml"]);
    cluster.passes(&["default:default/logd.toml"]);
    cluster.passes(&["default:spare/duravip.toml"]);
    cluster.passes(&["default:nginx/deep/duravip.toml"]);
    let says = |changed: &str| cluster.check_with(&[changed], &GateLimits::default()).to_string();
    assert!(says("default:n1/duravip.toml").contains("(node n1)"));
    assert!(says("default:near/duravip.toml").contains("(node n2)"));
    let all = says("default:default/duravip.toml");
    assert!(all.contains("(node n1)") && all.contains("(node n2)") && !all.contains("spare"), "{all}");
}

#[test]
fn nodes_belong_to_the_subcluster_of_their_certificate() {
    let files = &[(
        "global:cluster.toml",
        "[node.n1]\naddress = \"a\"\n[node.e1]\naddress = \"b\"\n[node.e2]\nsubcluster = \"default\"\n[node.e3]\nsubcluster = \"east\"\n[node.new]\nsubcluster = \"east\"\n",
    )];
    let cluster = Cluster::new(&[("n1", "default"), ("e1", "east"), ("e2", "east"), ("e3", "east")], files);
    cluster.says(
        &["global:cluster.toml"],
        "global/cluster.toml:3:7: the node e1 belongs to the subcluster \"east\", not \"default\"; hint: say so: subcluster = \"east\"\n\
         global/cluster.toml:6:1: the node e2 belongs to the subcluster \"east\", not \"default\"; hint: a node's subcluster is part of its certificate; enrol it again to move it",
    );
}

#[test]
fn a_change_of_the_nodes_is_checked_against_every_document() {
    let vip = "[topology.\"10.1.1.0/24\"]\ninterface = \"eth1\"\n[vip.\"10.1.1.1\"]\npreference = \"n2\"\n";
    let files = |nodes| {
        [
            ("default:default/duravip.toml", vip),
            ("default:default/cidr.toml", "servers.nodes = [\"n2\"]"),
            ("global:cluster.toml", nodes),
        ]
    };
    let of = |nodes| {
        Cluster::new(ONE, &files(nodes)).check_with(&["global:cluster.toml"], &GateLimits::default()).to_string()
    };
    assert_eq!(of("node.n1.address = \"a\"\nnode.n2.address = \"b\"\nnode.n3.address = \"c\""), "");
    insta::assert_snapshot!(of("node.n1.address = \"a\"\nnode.n3.address = \"c\""));
}

#[test]
fn files_that_do_not_belong_there() {
    let files = &[
        ("default:global/cluster.toml", ""),
        ("default:global", ""),
        ("default:default/agent.toml", "[[service]]\n"),
        ("global:boot.toml", ""),
        ("default:default/cluster.toml", "[node.n1]\n"),
        ("default:default/deep/agent.toml", "anything = \"goes\""),
        ("global:sub/cluster.toml", "anything = \"goes\""),
    ];
    let all: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    insta::assert_snapshot!(Cluster::new(ONE, files).check_with(&all[..2], &GateLimits::default()));
    insta::assert_snapshot!(Cluster::new(ONE, files).check_with(&all[2..], &GateLimits::default()));
}

#[test]
fn removing_is_a_change_too() {
    let vip = "[vip.\"10.1.1.1\"]\n";
    let cluster = Cluster::new(ONE, &[("default:n1/duravip.toml", vip)]);
    // default/duravip.toml with the topology is gone.
    assert!(!cluster.check_with(&["default:default/duravip.toml"], &GateLimits::default()).is_pass());
    // A file that should not have been there may always go.
    cluster.passes(&["default:default/agent.toml", "default:global"]);
}

#[test]
fn limits() {
    let files = &[("default:a", "0123456789"), ("global:b", "0123456789")];
    let cluster = Cluster::new(ONE, files);
    let limits = |file_bytes, commit_bytes, commit_paths| GateLimits { file_bytes, commit_bytes, commit_paths };
    let says = |limits| cluster.check_with(&["default:a", "global:b"], &limits).to_string();
    assert_eq!(says(limits(10, 20, 2)), "");
    assert_eq!(
        says(limits(9, 20, 2)),
        "a: the file has 10B; at most 9B are allowed\nglobal/b: the file has 10B; at most 9B are allowed"
    );
    assert_eq!(
        says(limits(10, 19, 2)),
        ".: the change puts 20B of files; at most 19B are allowed; hint: split it into several commits"
    );
    assert_eq!(says(limits(10, 20, 1)), ".: the change touches 2 paths; at most 1 are allowed");
}

#[test]
fn a_thousand_mistakes_are_a_short_answer() {
    let files: Vec<(String, String)> =
        (0..3_000).map(|n| (format!("default:d{n}/x.toml"), "a = \nb = \n".to_owned())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let all: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    let report = Cluster::new(ONE, &files).check_with(&all, &GateLimits::default());
    assert_eq!((report.findings.len(), report.more), (100, 5_900));
    assert!(report.lines().last().unwrap().ends_with("5900 more"));
}

#[test]
fn three_hundred_nodes_are_judged_once() {
    let nodes: Vec<String> = (0..300).map(|n| format!("node{n}")).collect();
    let registered: Vec<(&str, &str)> = nodes.iter().map(|node| (node.as_str(), "default")).collect();
    let named: String = nodes
        .iter()
        .enumerate()
        .map(|(n, node)| format!("node.{node}.address = \"10.0.{}.{}\"\n", n / 250, n % 250 + 1))
        .collect();
    let vips: String = (0..10_240)
        .map(|n| format!("[vip.\"10.9.{}.{}\"]\npreference = \"node{}\"\n", n / 250, n % 250 + 1, n % 300))
        .collect();
    let shared = format!("[topology.\"10.9.0.0/16\"]\ninterface = \"eth1\"\n{vips}");
    let files = &[
        ("global:cluster.toml", named.as_str()),
        ("default:default/duravip.toml", shared.as_str()),
        ("default:node7/duravip.toml", "mature = \"9s\""),
    ];
    let cluster = Cluster::new(&registered, files);
    cluster.passes(&["default:default/duravip.toml"]);
    let reads = cluster.repos["default"].reads.borrow();
    let of_shared = reads.iter().filter(|path| *path == "default/duravip.toml").count();
    assert_eq!(of_shared, 2, "once for its syntax, once as a layer");
    assert!(reads.iter().all(|path| path.ends_with("/duravip.toml")), "nothing else is read");
    drop(reads);

    let broken = shared.replace("preference = \"node5\"", "preference = \"node500\"");
    let files = &[
        ("global:cluster.toml", named.as_str()),
        ("default:default/duravip.toml", broken.as_str()),
        ("default:node7/duravip.toml", "mature = \"9s\""),
    ];
    let report = Cluster::new(&registered, files).check_with(&["default:default/duravip.toml"], &GateLimits::default());
    assert!(
        report.findings.iter().all(|finding| finding.more_nodes == 299 && finding.node.as_deref() == Some("node0")),
        "one line for all nodes"
    );
    assert_eq!(report.findings[0].message, "no node is called \"node500\"");
}

#[test]
fn a_working_copy_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("global/cluster.toml", "[node.n1]\naddress = \"10.0.0.1\"\ngroups = [\"relays\"]\n");
    put("relays/duravip.toml", "[vip.\"10.1.1.1\"]\n");
    put("default/app.json", "{}");
    put(".git/config.json", "no json");
    put("global/.git/x.json", "no json");
    let files = DirFiles::new(dir.path());
    let says = |subcluster| check_tree(&files, subcluster).unwrap().to_string();
    assert_eq!(
        says("default"),
        "relays/duravip.toml:1:6: 10.1.1.1 lies in no topology (node n1); hint: a [topology.\"BLOCK\"] says which interface carries it"
    );
    put("default/duravip.toml", "[topology.\"10.1.0.0/16\"]\ninterface = \"eth0\"\n");
    assert_eq!(says("default"), "");
    put("global/x.yaml", "a: [");
    put("n2/logd.toml", "[log.a]\ninputs = 1\n");
    let expected = "global/x.yaml:2:1: while parsing a node, did not find expected node content\nn2/logd.toml:2:1: unknown key \"inputs\"; hint: did you mean \"input\"?";
    assert_eq!(says("default"), expected);
    assert_eq!(says("east"), expected, "files are named from the directory's root, whatever the subcluster");
}

#[test]
fn documents_are_files_of_bearable_length() {
    let files = MemoryFiles::from_texts([("cluster.toml", "[node.n2]\ngroups = [\"lab\"]\n")]);
    let nothing = MemoryFiles::default();
    let says = |path: &str, kind| {
        let changes = vec![Change { path: path.into(), kind }];
        let repos = [
            ("default".to_owned(), ProposedRepo { files: &nothing as &dyn Files, changes }),
            ("global".to_owned(), ProposedRepo { files: &files, changes: Vec::new() }),
        ];
        let nodes = vec![RegisteredNode { name: "n1".into(), subcluster: "default".into() }];
        check(&Proposal { repos: repos.into(), nodes }, &GateLimits::default()).unwrap().to_string()
    };
    assert_eq!(says("n1/duravip.toml", ChangeKind::Symlink), "n1/duravip.toml: a document must be a file, not a link");
    for directory in ["n1", "n2", "lab", "default"] {
        assert!(says(directory, ChangeKind::Symlink).contains("must be a directory and not a link"), "{directory}");
    }
    for path in ["README", "n1/current", "lab/x.toml"] {
        assert_eq!(says(path, ChangeKind::Symlink), "", "{path}");
    }
    let large = ChangeKind::File { size: Some(9 << 20) };
    assert_eq!(says("default/logd.toml", large), "default/logd.toml: a document has at most 8MiB");
    assert_eq!(says("default/data.json", large), "", "somebody's data");
}
