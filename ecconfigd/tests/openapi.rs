//! The committed description of the API is the one that the running server gives.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use support::TestServer;

fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

#[tokio::test]
async fn the_committed_document_is_the_served_one() {
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(committed(), ecconfigd::http::openapi_json()).unwrap();
    }
    let server = TestServer::start().await;
    let response = server.anonymous(reqwest::Method::GET, "/api/v1/openapi.json").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let served = response.text().await.unwrap();
    let committed = std::fs::read_to_string(committed()).unwrap_or_default();
    assert!(
        served == committed,
        "docs/openapi.json is not what the server gives; regenerate it with\n  UPDATE_OPENAPI=1 cargo test -p ecconfigd --test openapi"
    );
}

#[test]
fn every_documented_operation_has_a_name_and_answers() {
    let document: serde_json::Value = serde_json::from_slice(&ecconfigd::http::openapi_json()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(!path.contains('*'), "{path}");
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            assert!(!operation["responses"].as_object().unwrap().is_empty(), "{name}");
            assert!(operation["summary"].is_string(), "{name} says nothing");
        }
    }
    for wanted in ["commit", "commitSeveral", "watch", "getTarget", "getEffective", "enroll", "renew", "readyz"] {
        assert!(names.contains(wanted), "{wanted}");
    }
}
