//! `eccfg validate` over directories, without a server: golden transcripts.

mod common;

use common::Session;

#[test]
fn directories_are_judged() {
    let mut session = Session::new();
    session.write("good/default/duravip.toml", "dead_after = \"300ms\"\n");
    session.write("good/global/cluster.toml", "[node.n1]\naddress = \"10.0.0.11\"\n");
    session.write("good/default/notes.txt", "anything = goes [here\n");
    session.run(&["validate", "good"]);
    session.run(&["validate", "--quiet", "good"]);
    session.run(&["validate", "--json", "good"]);

    session.write("bad/default/duravip.toml", "dead_after = \"300ms\"\ndead_aftr = 1\n");
    session.write("bad/n1/duravip.toml", "heartbeat = \"200ms\"\n");
    session.write("bad/default/broken.toml", "a = \n");
    session.write("bad/default/broken.json", "{\n  \"a\": ,\n}\n");
    session.write("bad/global/cluster.toml", "[node.n1]\naddress = \"10.0.0.11\"\n");
    session.run(&["validate", "bad"]);
    session.run(&["validate", "--json", "bad"]);

    session.write("one/default/broken.toml", "a = \n");
    session.run(&["validate", "one"]);
    session.run(&["validate", "nowhere"]);
    session.run(&["validate", "good/default/duravip.toml"]);
    insta::assert_snapshot!(session.transcript());
}
