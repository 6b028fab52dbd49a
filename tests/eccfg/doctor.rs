//! Examining the cluster.

use crate::session::{Server, Session};

#[test]
fn the_cluster_is_examined() {
    let server = Server::start();
    let mut session = Session::new(&server);
    session.run("", &["doctor"]);
    session.run("", &["doctor", "--deep"]);
    session.run("", &["doctor", "--json"]);
    let transcript = session.transcript();
    for words in [
        "replicas: all servers that answer have the same state",
        "clock: it has the time of the others",
        "leader: it follows",
        "disk: there is room",
        "objects are what their names say",
        "Nothing is wrong",
        r#"{"kind":"end","bad":0,"warned":0}"#,
    ] {
        assert!(transcript.contains(words), "{words} is not in\n{transcript}");
    }
    assert!(!transcript.contains("BAD"), "{transcript}");
}
