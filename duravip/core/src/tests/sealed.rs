//! The envelope: golden bytes, and everything that must be dropped.

use proptest::prelude::*;

use crate::envelope::{Dropped, Envelope, Key, Opened};
use crate::*;

fn key() -> Key {
    Key::new([7; 32])
}

fn pair() -> (Envelope, Envelope) {
    let mut a = Envelope::new(MemberId(1), Incarnation(100), key());
    let mut b = Envelope::new(MemberId(2), Incarnation(200), key());
    assert!(a.seal(MemberId(2), &gone()).is_none(), "nobody was heard yet");
    let hello = a.greet(MemberId(2));
    assert_eq!(b.open(&hello), Ok(Opened::Greeting(MemberId(1))));
    let back = b.greet(MemberId(1));
    assert_eq!(a.open(&back), Ok(Opened::Greeting(MemberId(2))));
    (a, b)
}

fn gone() -> Message {
    Message::Gone(Incarnation(100))
}

#[test]
fn what_is_said_is_heard_once() {
    let (mut a, mut b) = pair();
    let sealed = a.seal(MemberId(2), &gone()).unwrap();
    assert_eq!(b.open(&sealed), Ok(Opened::Message(MemberId(1), Incarnation(100), gone())));
    assert_eq!(b.open(&sealed), Err(Dropped::Replayed(MemberId(1))));
    let mut later: Vec<_> = (0..5).map(|_| a.seal(MemberId(2), &gone()).unwrap()).collect();
    later.reverse();
    for sealed in &later {
        assert!(b.open(sealed).is_ok(), "overtaking is no replay");
        assert!(b.open(sealed).is_err());
    }
}

#[test]
fn runs_do_not_mix() {
    let (mut a, mut b) = pair();
    let old = a.seal(MemberId(2), &gone()).unwrap();
    // The receiver restarts: what was said to its earlier run means nothing.
    let mut b2 = Envelope::new(MemberId(2), Incarnation(201), key());
    assert_eq!(b2.open(&old), Err(Dropped::ForEarlierRun(MemberId(1))));
    let hello = b2.greet(MemberId(1));
    assert_eq!(a.open(&hello), Ok(Opened::Greeting(MemberId(2))));
    let new = a.seal(MemberId(2), &gone()).unwrap();
    assert!(b2.open(&new).is_ok());
    // The sender restarts: its earlier run is over for good.
    let mut a2 = Envelope::new(MemberId(1), Incarnation(101), key());
    assert!(b.open(&a2.greet(MemberId(2))).is_ok());
    assert_eq!(b.open(&old), Err(Dropped::OldRun(MemberId(1))));
}

#[test]
fn keys_receivers_and_bytes_matter() {
    let (mut a, mut b) = pair();
    let sealed = a.seal(MemberId(2), &gone()).unwrap();
    let mut other = Envelope::new(MemberId(2), Incarnation(200), Key::new([8; 32]));
    assert_eq!(other.open(&sealed), Err(Dropped::Forged(MemberId(1))));
    let mut third = Envelope::new(MemberId(3), Incarnation(200), key());
    assert_eq!(third.open(&sealed), Err(Dropped::Receiver(MemberId(2))));
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        assert!(b.open(&damaged).is_err(), "a flipped bit at {at} went through");
    }
    assert!(b.open(&sealed).is_ok(), "none of that spoiled the real one");
}

proptest! {
    #[test]
    fn noise_is_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, mut b) = pair();
        prop_assert!(b.open(&bytes).is_err());
    }
}

/// The bytes of version 1, as in docs/formats.md. A change here is a new version.
#[test]
fn golden_bytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/messages-v1.txt");
    let (mut a, _) = pair();
    let term = Term { number: 5, leader: MemberId(1) };
    let version = Version { term, step: 3 };
    let beat = Beat {
        term,
        number: 9,
        table: version,
        commit: version,
        heard: Some(8),
        lease: std::time::Duration::from_millis(300),
        promise: std::time::Duration::from_millis(150),
        report: 1,
    };
    let standing = Standing { have: version, applied: version, plumbed: Version::ZERO, report: 1, leaving: false };
    let entry = Entry { owner: Some(MemberId(2)), since: version, fresh: true, conflict: None };
    let update = Update {
        base: Some(Version { term, step: 2 }),
        version,
        header: Header { electorate: Electorate::of([MemberId(1), MemberId(2)]), ..Header::default() },
        config: ConfigId { revision: 47, commit: [0xAB; 32] },
        spec: None,
        entries: vec![("10.0.0.1".parse().unwrap(), Some(entry)), ("2001:db8::1".parse().unwrap(), None)],
    };
    let cluster = |body| Message::Group(GroupTag::Cluster, body);
    let messages = [
        ("greeting", None),
        ("beat", Some(cluster(Body::Beat(beat)))),
        ("ack", Some(cluster(Body::Ack(Ack { term, beat: 9, number: 10, standing })))),
        ("table", Some(cluster(Body::Table(term, update)))),
        ("stale", Some(cluster(Body::Stale { term: 6 }))),
        ("gone", Some(gone())),
        ("order", Some(Message::Order(3, Order::Drain(MemberId(2))))),
    ];
    let mut text = String::from("# version 1; key 07 × 32; from member 1, run 100, to member 2, run 200\n");
    for (name, message) in messages {
        let bytes = match message {
            None => a.greet(MemberId(2)),
            Some(message) => a.seal(MemberId(2), &message).unwrap(),
        };
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("{name} {hex}\n"));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    } else {
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }
}

#[test]
fn after_the_last_words_nothing_of_that_run_is_heard() {
    let (mut a, mut b) = pair();
    let prepared = a.seal_last(MemberId(2), &gone()).unwrap();
    let later = a.seal(MemberId(2), &gone()).unwrap();
    assert!(b.open(&later).is_ok(), "preparing them ends nothing");
    assert_eq!(b.open(&prepared), Ok(Opened::Message(MemberId(1), Incarnation(100), gone())));
    assert_eq!(b.open(&prepared), Err(Dropped::Replayed(MemberId(1))));
    let after = a.seal(MemberId(2), &gone()).unwrap();
    assert_eq!(b.open(&after), Err(Dropped::Replayed(MemberId(1))));
    let mut next_run = Envelope::new(MemberId(1), Incarnation(101), key());
    assert!(b.open(&next_run.greet(MemberId(2))).is_ok());
    let nobody = next_run.seal_last(MemberId(2), &gone());
    assert_eq!(nobody, None, "who was not heard has no run to write to");
}

#[test]
fn a_key_of_two_replaces_the_common_one() {
    let (mut a, mut b) = pair();
    a.set_key(MemberId(2), Key::new([9; 32]));
    let sealed = a.seal_bytes(MemberId(2), b"piece").unwrap();
    assert_eq!(b.open(&sealed), Err(Dropped::Forged(MemberId(1))));
    b.set_key(MemberId(1), Key::new([9; 32]));
    assert_eq!(b.open(&sealed), Ok(Opened::Bytes(MemberId(1), Incarnation(100), b"piece".to_vec())));
    let common = Envelope::new(MemberId(1), Incarnation(100), key()).greet(MemberId(2));
    assert_eq!(b.open(&common), Err(Dropped::Forged(MemberId(1))), "the common key is no key between these two");
    assert_eq!(b.run_of(MemberId(1)), Some(Incarnation(100)));
}
