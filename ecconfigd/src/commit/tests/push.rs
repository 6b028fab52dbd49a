//! Pushes, from the quarantine to the refs.

use bytes::Bytes;
use repos::{Content, Draft, NewCommit, Oid, PackLimits, RefName, RepoPath, Signature, TreeChange};

use crate::commit::{Propose, PushCommand, PushOutcome, PushRequest};
use crate::core::Core;
use crate::core::tests::put as put_change;
use crate::core::tests::{author, name, request, started, text_at};
use crate::error::{Error, Result};
use crate::raft::command::{Op, Outcome};
use crate::state::State;

/// Bytes that do not compress, the same every time.
pub(super) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// What a client has made on top of the server's objects.
struct Client {
    core: Core,
    draft: Draft,
}

impl Client {
    fn new(core: &Core) -> Client {
        let draft = Draft::new(&core.store(&name("default")).unwrap()).unwrap();
        Client { core: core.clone(), draft }
    }

    fn commit(&mut self, parent: Oid, path: &str, data: Vec<u8>) -> Oid {
        let tree = if parent.is_null() { Oid::EMPTY_TREE } else { self.draft.tree_of(parent).unwrap() };
        let content = Content::Bytes(Bytes::from(data));
        let put = TreeChange::Put { path: RepoPath::new(path).unwrap(), mode: None, content };
        let tree = self.draft.apply(tree, &[put]).unwrap();
        let author = Signature { name: "Dev".into(), email: "dev@x".into(), time_s: 5, offset_min: 60 };
        let parents = if parent.is_null() { vec![] } else { vec![parent] };
        let message = format!("Write {path}\n");
        self.draft.commit(&NewCommit { tree, parents, committer: author.clone(), author, message }).unwrap()
    }

    async fn push(&self, atomic: bool, commands: &[(&str, Oid, Oid)]) -> PushOutcome {
        let tips: Vec<Oid> = commands.iter().map(|(_, _, new)| *new).filter(|new| !new.is_null()).collect();
        let store = self.core.store(&name("default")).unwrap();
        let pack = self.draft.pack_of(&tips).unwrap();
        let quarantine = pack.map(|pack| {
            let mut quarantine = store.quarantine().unwrap();
            quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
            quarantine
        });
        let commands = commands
            .iter()
            .map(|(name, old, new)| PushCommand { name: RefName::try_from(*name).unwrap(), old: *old, new: *new })
            .collect();
        let request = PushRequest { repo: name("default"), author: author(), commands, atomic, quarantine };
        self.core.push(request).await.unwrap()
    }
}

const MAIN: &str = "refs/heads/main";

fn results(outcome: &PushOutcome) -> Vec<Option<&str>> {
    outcome.refs.iter().map(|(_, result)| result.as_ref().err().map(String::as_str)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_several_commits_is_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let one = client.commit(start, "default/x.txt", b"x\n".to_vec());
    let two = client.commit(one, "default/y.txt", b"y\n".to_vec());
    let outcome = client.push(false, &[(MAIN, start, two)]).await;
    assert_eq!(results(&outcome), [None]);
    assert_eq!(outcome.head.map(|head| (head.revision, head.commit)), Some((2, two)));
    let record = core.revision(&name("default"), 2).await.unwrap();
    assert_eq!(record.paths, ["default/x.txt", "default/y.txt"]);
    assert_eq!(record.message, "Write default/y.txt\n");
    assert_eq!(record.author, "Ad Min <admin@test>", "who pushed, not who wrote");
    assert_eq!(text_at(&core, two, "default/x.txt").as_deref(), Some("x\n"));
    assert_eq!(core.revision_of(&name("default"), one).unwrap(), None, "a commit that main never stood at");
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn main_only_moves_forward() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let orphan = client.commit(Oid::NULL, "default/x.txt", b"x\n".to_vec());
    let outcome = client.push(false, &[(MAIN, start, orphan)]).await;
    assert_eq!(results(&outcome), [Some("non-fast-forward")]);
    assert!(outcome.lines.iter().any(|line| line.contains("only moves forward")), "{outcome:?}");
    let outcome = client.push(false, &[(MAIN, start, Oid::NULL)]).await;
    assert_eq!(results(&outcome), [Some("deletion of main is refused")]);
    let behind = client.commit(start, "default/x.txt", b"x\n".to_vec());
    core.commit(request(1, vec![put_change("default/other", "o")])).await.unwrap();
    let outcome = client.push(false, &[(MAIN, start, behind)]).await;
    assert!(results(&outcome)[0].unwrap().starts_with("fetch first"), "{outcome:?}");
    assert_eq!(core.head(&name("default")).unwrap().revision, 2);
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_and_tags_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let one = client.commit(start, "default/x.txt", b"x\n".to_vec());
    let orphan = client.commit(Oid::NULL, "other", b"y\n".to_vec());
    let made = [("refs/heads/topic", Oid::NULL, one), ("refs/tags/v1", Oid::NULL, one)];
    assert_eq!(results(&client.push(false, &made).await), [None, None]);
    // A forced push, a deletion, a name below another's, a ref that is none of ours.
    let outcome = client
        .push(
            false,
            &[
                ("refs/heads/topic", one, orphan),
                ("refs/tags/v1", one, Oid::NULL),
                ("refs/heads/main/sub", Oid::NULL, one),
                ("refs/pull/1", Oid::NULL, one),
            ],
        )
        .await;
    let expected = [None, None, Some("refs/heads/main is in the way"), Some("refs are branches, tags or notes here")];
    assert_eq!(results(&outcome), expected);
    let refs = core.refs(&name("default")).unwrap();
    let names: Vec<String> = refs.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["refs/heads/main", "refs/heads/topic"]);
    assert_eq!(core.head(&name("default")).unwrap().revision, 1, "no revision without main");
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let one = client.commit(start, "default/x.txt", b"x\n".to_vec());
    let commands = [(MAIN, start, one), ("refs/heads/topic", start, one)];
    let outcome = client.push(true, &commands).await;
    assert_eq!(results(&outcome), [Some("atomic push failed"), Some("fetch first: it does not exist")]);
    assert_eq!(core.head(&name("default")).unwrap().revision, 1);
    let outcome = client.push(false, &commands).await;
    assert_eq!(results(&outcome), [None, Some("fetch first: it does not exist")]);
    assert_eq!(core.head(&name("default")).unwrap().revision, 2);
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_judges_main_and_the_rules_judge_everything() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let broken = client.commit(start, "default/logd.toml", b"[log.x]\ninptu = \"y\"\n".to_vec());
    let outcome = client.push(false, &[(MAIN, start, broken), ("refs/heads/wip", Oid::NULL, broken)]).await;
    assert_eq!(results(&outcome), [Some("refused by the gate"), None]);
    assert!(outcome.lines.iter().any(|line| line.contains("default/logd.toml:2")), "{:?}", outcome.lines);
    let harmful = client.commit(start, "global/x", b"x".to_vec());
    let outcome = client.push(false, &[("refs/heads/bad", Oid::NULL, harmful)]).await;
    assert_eq!(results(&outcome), [Some("refused: a path breaks the rules")]);
    assert!(outcome.lines[0].starts_with("global"), "{:?}", outcome.lines);
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_travels_in_chunks_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let start = core.head(&name("default")).unwrap().commit;
    let before = core.group().applied;
    let mut client = Client::new(&core);
    let data = noise(9 << 20);
    let one = client.commit(start, "default/noise", data.clone());
    let outcome = client.push(false, &[(MAIN, start, one)]).await;
    assert_eq!(results(&outcome), [None]);
    let entries = core.group().applied - before;
    assert!((10..=12).contains(&entries), "nine chunks and a bit, then the entry that names them: {entries}");
    drop(client);
    core.shutdown().await;
    drop(core);

    let left: Vec<_> = std::fs::read_dir(dir.path().join("uploads")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let core = crate::core::tests::reopened(dir.path()).await;
    let reader = core.store(&name("default")).unwrap().reader().unwrap();
    let file = reader.read(one, &RepoPath::new("default/noise").unwrap(), 16 << 20).unwrap().unwrap();
    assert_eq!(file.data, data);
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_that_is_refused_is_not_sent_around() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let before = core.group().applied;
    let start = core.head(&name("default")).unwrap().commit;
    let mut client = Client::new(&core);
    let orphan = client.commit(Oid::NULL, "default/noise", noise(5 << 20));
    let outcome = client.push(false, &[(MAIN, start, orphan)]).await;
    assert_eq!(results(&outcome), [Some("non-fast-forward")]);
    assert_eq!(core.group().applied, before);
    core.shutdown().await;
}

/// Whoever proposes here does not always hear what became of it: `lost` says for each attempt whether it was done (or not), and was not
/// answered. What is in doubt can be looked up.
struct Deaf {
    core: Core,
    lost: std::sync::Mutex<Vec<bool>>,
    proposed: std::sync::atomic::AtomicUsize,
}

impl Propose for Deaf {
    fn state(&self) -> &State {
        self.core.state()
    }

    async fn propose(&self, ops: Vec<Op>, attachments: Vec<Bytes>) -> Result<Vec<Outcome>> {
        self.proposed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let lost = self.lost.lock().unwrap().pop();
        let answer = match lost {
            Some(false) => Ok(Vec::new()),
            _ => self.core.propose(ops, attachments).await,
        };
        if lost.is_some() { Err(Error::Unavailable("the answer was lost".into())) } else { answer }
    }

    async fn settle(&self) -> Result<()> {
        self.core.linearize().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_whose_answers_are_lost_are_looked_for_and_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let pack = Bytes::from(noise(5 << 19));
    let upload = async |lost: &[bool]| {
        let lost = lost.iter().rev().copied().collect::<Vec<_>>().into();
        let deaf = Deaf { core: core.clone(), lost, proposed: Default::default() };
        let upload = deaf.upload(pack.clone()).await;
        (upload, deaf.proposed.into_inner())
    };
    // Done and not told; not done; both, the one after the other.
    for (lost, proposed) in [(&[true][..], 3), (&[false], 4), (&[false, true], 4), (&[false, false, true], 5)] {
        let (id, proposals) = upload(lost).await;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut core.state().open_upload(id.unwrap()).unwrap(), &mut bytes).unwrap();
        assert!(bytes == pack && proposals == proposed, "{lost:?}: {} bytes, {proposals} proposals", bytes.len());
    }
    // Nothing is left of one that is given up.
    let files = || std::fs::read_dir(dir.path().join("uploads")).unwrap().count();
    core.checkpoint().await.unwrap();
    let before = files();
    assert!(upload(&[true, false, false, false, false, false]).await.0.is_err());
    core.checkpoint().await.unwrap();
    assert_eq!(files(), before);
}
