//! Who is let in, and what the others are told.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cluster::identity::{Ca, NodeRole};

use super::{Client, Method, PeerError, RefusalCode, Target};
use crate::core::group::{Group, identity};

const WITHIN: Duration = Duration::from_secs(20);

async fn ask(client: &Client, target: &Target) -> Result<Bytes, PeerError> {
    // The first attempt after a refusal may fall into the pause between two.
    client.call(target, Method::READ_INDEX, Bytes::new(), WITHIN).await
}

fn words(result: Result<Bytes, PeerError>) -> String {
    result.expect_err("it must be refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_of_the_same_version_are_answered() {
    let group = Group::start(1).await;
    let target = group.members[0].target();
    let dir = tempfile::tempdir().unwrap();

    // n1's own identity, as a second process would have it: a member.
    let member = identity(&group.ca, "n1", NodeRole::Voter, dir.path());
    let client = Client::speaking(member.clone(), 1, None, BTreeMap::new(), super::VERSION);
    assert_eq!(ask(&client, &target).await.unwrap().len(), 24);

    // An unknown method is refused, and the connection lives on.
    let unknown = client.call(&target, Method(999), Bytes::new(), WITHIN).await.unwrap_err();
    assert!(
        matches!(&unknown, PeerError::Refused { refusal, .. } if refusal.code == RefusalCode::UnknownMethod),
        "{unknown}"
    );
    assert!(ask(&client, &target).await.is_ok());

    // Another version is told so, on both sides.
    let other = Client::speaking(member.clone(), 1, None, BTreeMap::new(), 9);
    let refused = words(ask(&other, &target).await);
    assert!(refused.contains("version 1") && refused.contains('9'), "{refused}");

    // Somebody with another number is somebody else.
    let wrong = Target { raft_id: 7, ..target.clone() };
    let refused = words(ask(&client, &wrong).await);
    assert!(refused.contains("member 1, not 7"), "{refused}");

    // A certificate of the cluster is not enough …
    for role in [NodeRole::Client, NodeRole::Voter] {
        let dir = tempfile::tempdir().unwrap();
        let stranger = Client::speaking(
            identity(&group.ca, "stranger", role, dir.path()),
            5,
            None,
            BTreeMap::new(),
            super::VERSION,
        );
        let refused = words(ask(&stranger, &target).await);
        assert!(refused.contains("stranger is not member 5"), "{refused}");
    }
    // … and one of another cluster ends in the handshake, whatever it says.
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Ca::create("elsewhere").unwrap();
    let stranger = Client::speaking(
        identity(&elsewhere, "n1", NodeRole::Voter, dir.path()),
        1,
        None,
        BTreeMap::new(),
        super::VERSION,
    );
    assert!(matches!(ask(&stranger, &target).await, Err(PeerError::Unreachable { .. })));
    group.stop().await;
}
