//! Identities over real TLS handshakes: enrolment, renewal, reload, and everything that must be refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use cluster::api::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse};
use cluster::http_client::{ApiClient, Credentials};
use cluster::identity::{
    Ca, DEFAULT_VALIDITY, Identity, IdentityError, JoinToken, KeyRequest, NodeCert, NodeRole, Peer, ReloadingIdentity,
    Renewer, enroll, renew,
};
use common::{Trust, soon};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The endpoints of ecconfigd that matter here, with a token that is good once.
fn enrolling(trust: &Trust, token: &JoinToken) -> Router {
    let ca = Arc::new(Ca::from_pem(trust.ca.certificate_pem(), &trust.ca.key_pem()).unwrap());
    let (secret, used, renewing) = (token.secret().sha256(), Arc::new(AtomicUsize::new(0)), ca.clone());
    let enroll = async move |Json(request): Json<EnrollRequest>| {
        let token: JoinToken = request.token.parse().unwrap();
        if !token.secret_matches(&secret) || used.fetch_add(1, Ordering::SeqCst) > 0 {
            return Err(axum::http::StatusCode::FORBIDDEN);
        }
        let cert = NodeCert::new(&request.node, "east", NodeRole::Client);
        let chain = ca.issue(&request.csr_pem, &cert, DEFAULT_VALIDITY).unwrap();
        let (subcluster, cluster) = ("east".into(), ca.cluster_name());
        Ok(Json(EnrollResponse { certificate_pem: chain.pem, ca_pem: chain.ca_pem, subcluster, cluster }))
    };
    let renew = async move |Extension(peer): Extension<Option<Peer>>, Json(request): Json<RenewRequest>| {
        let peer = peer.ok_or(axum::http::StatusCode::UNAUTHORIZED)?;
        let cert = NodeCert::new(&peer.node, &peer.subcluster, peer.role);
        let chain = renewing.issue(&request.csr_pem, &cert, 2 * DEFAULT_VALIDITY).unwrap();
        Ok::<_, axum::http::StatusCode>(Json(RenewResponse { certificate_pem: chain.pem, ca_pem: chain.ca_pem }))
    };
    Router::new()
        .route("/api/v1/enroll", post(enroll))
        .route("/api/v1/renew", post(renew))
        .route("/whoami", get(whoami))
        .route("/certificate", get(certificate))
}

async fn certificate(Extension(peer): Extension<Option<Peer>>) -> Json<Option<String>> {
    Json(peer.map(|peer| peer.fingerprint.to_string()))
}

async fn whoami(Extension(peer): Extension<Option<Peer>>) -> Json<Option<(String, String, NodeRole)>> {
    Json(peer.map(|peer| (peer.node, peer.subcluster, peer.role)))
}

type Who = Option<(String, String, NodeRole)>;

#[tokio::test]
async fn a_token_becomes_an_identity_once_and_the_identity_renews_itself() {
    let trust = Trust::new();
    let token = JoinToken::generate(trust.ca.fingerprint());
    let server = trust.serve("n1", enrolling(&trust, &token)).await;
    let servers = vec![common::dead_server().await, server.url()];

    let identity = soon("enrolling", enroll(servers.clone(), &token, "web1")).await.unwrap();
    assert_eq!(
        (identity.node(), &*identity.peer().subcluster, identity.peer().role),
        ("web1", "east", NodeRole::Client)
    );
    assert_eq!(identity.peer().cluster_id, trust.ca.cluster_id());
    let dir = trust.dir_of("web1");
    identity.store(&dir).unwrap();

    let again = enroll(servers.clone(), &token, "web2").await.unwrap_err();
    let IdentityError::Request { source, .. } = again else { panic!("{again}") };
    assert_eq!(source.status(), Some(403));

    let identity = ReloadingIdentity::load(&dir).unwrap();
    let client = ApiClient::as_node(servers, identity.clone()).unwrap();
    let me: Who = client.get_json("/whoami").await.unwrap();
    assert_eq!(me, Some(("web1".into(), "east".into(), NodeRole::Client)));

    let before = identity.current().peer().clone();
    let fresh = renew(&client, &identity.current()).await.unwrap();
    identity.replace(&fresh).unwrap();
    let after = identity.current().peer().clone();
    assert!(after.not_after > before.not_after && after.fingerprint != before.fingerprint);
    assert_eq!(Identity::load(&dir).unwrap().peer(), &after);
    let me: Who = client.get_json("/whoami").await.unwrap();
    assert_eq!(me.unwrap().0, "web1");
    // The connection from before showed the old certificate; requests do not go over it any more.
    let shown: Option<String> = client.get_json("/certificate").await.unwrap();
    assert_eq!(shown, Some(after.fingerprint.to_string()));
}

/// A server with a chain of its own making. It says how the handshake ended and what plain text came through.
async fn impostor(
    versions: Versions<'_>,
    chain: Vec<CertificateDer<'static>>,
    key_pem: &str,
) -> (String, tokio::task::JoinHandle<Result<Vec<u8>, String>>) {
    // Not checked for belonging together, as an attacker would not.
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
    let key = cluster::tls::provider().key_provider.load_private_key(key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(chain, key);
    let mut config = rustls::ServerConfig::builder_with_provider(cluster::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let heard = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.map_err(|error| error.to_string())?;
        let mut plain = vec![0; 1 << 16];
        let count = stream.read(&mut plain).await.map_err(|error| error.to_string())?;
        plain.truncate(count);
        Ok(plain)
    });
    (address, heard)
}

/// A leaf with its key, and the CA's certificate.
fn leaf(ca: &Ca, cert: &NodeCert) -> (CertificateDer<'static>, String, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let chain = ca.issue(&csr, cert, DEFAULT_VALIDITY).unwrap();
    let mut certificates = CertificateDer::pem_slice_iter(chain.pem.as_bytes()).map(Result::unwrap);
    (certificates.next().unwrap(), key.serialize_pem(), certificates.next().unwrap())
}

type Versions<'a> = &'a [&'static rustls::SupportedProtocolVersion];

async fn token_reaches(
    versions: Versions<'_>,
    chain: Vec<CertificateDer<'static>>,
    key_pem: &str,
    token: &JoinToken,
) -> Result<Vec<u8>, String> {
    let (address, heard) = impostor(versions, chain, key_pem).await;
    let result = soon("enrolling at an impostor", enroll(vec![address.parse().unwrap()], token, "web1")).await;
    assert!(result.is_err(), "enrolled at an impostor");
    soon("the impostor", heard).await.unwrap()
}

#[tokio::test]
async fn the_token_never_leaves_for_a_server_that_is_not_proven() {
    let (ours, theirs) = (Trust::new(), Trust::new());
    let token = JoinToken::generate(ours.ca.fingerprint());
    let cert = NodeCert::new("n1", "default", NodeRole::Voter);
    let (own_leaf, own_key, own_ca) = leaf(&ours.ca, &cert);
    let (other_leaf, other_key, other_ca) = leaf(&theirs.ca, &cert);
    let mut elsewhere = NodeCert::new("n9", "default", NodeRole::Voter);
    elsewhere.names = vec!["n9.example".into()];
    let (misnamed_leaf, misnamed_key, _) = leaf(&ours.ca, &elsewhere);

    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        // The method is sound: a proven server does hear the token.
        let proven = vec![own_leaf.clone(), own_ca.clone()];
        let heard = token_reaches(versions, proven, &own_key, &token).await.unwrap();
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.starts_with("POST /api/v1/enroll "), "{heard}");

        for (what, chain, key) in [
            ("another CA", vec![other_leaf.clone(), other_ca.clone()], &other_key),
            ("another CA's leaf beside our public CA", vec![other_leaf.clone(), own_ca.clone()], &other_key),
            ("our leaf and CA with another key", vec![own_leaf.clone(), own_ca.clone()], &other_key),
            ("a leaf for another name", vec![misnamed_leaf.clone(), own_ca.clone()], &misnamed_key),
            ("our CA itself as the leaf", vec![own_ca.clone(), own_ca.clone()], &ours.ca.key_pem()),
        ] {
            let heard = token_reaches(versions, chain, key, &token).await;
            assert!(heard.is_err(), "{what}: the handshake succeeded and {heard:?} arrived");
        }
    }
}

async fn who_am_i(
    trust: &Trust,
    url: &cluster::http_client::ServerUrl,
    client: Arc<ReloadingIdentity>,
) -> Result<Who, String> {
    let client = ApiClient::new(vec![url.clone()], trust.ca.certificate_pem(), Credentials::Identity(client)).unwrap();
    soon("asking", client.get_json("/whoami")).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn only_valid_certificates_of_the_own_ca_are_let_in() {
    let (trust, other) = (Trust::new(), Trust::new());
    let server = trust.serve("n1", Router::new().route("/whoami", get(whoami))).await;
    let url = server.url();

    let nobody = ApiClient::new(vec![url.clone()], trust.ca.certificate_pem(), Credentials::None).unwrap();
    assert_eq!(nobody.get_json::<Who>("/whoami").await.unwrap(), None);
    let me = who_am_i(&trust, &url, trust.identity("n2")).await.unwrap();
    assert_eq!(me.unwrap().0, "n2");

    let long_ago = OffsetDateTime::now_utc() - 3 * DAY;
    trust.issue("old", DAY, long_ago).store(&trust.dir_of("old")).unwrap();
    let expired = ReloadingIdentity::load(trust.dir_of("old")).unwrap();
    who_am_i(&trust, &url, expired).await.unwrap_err();
    who_am_i(&trust, &url, other.identity("n2")).await.unwrap_err();

    // And the other way: a server of another CA, or one whose certificate has expired, is not talked to.
    let strange = ApiClient::new(vec![url.clone()], other.ca.certificate_pem(), Credentials::None).unwrap();
    let error = strange.get_json::<Who>("/whoami").await.unwrap_err();
    assert!(error.is_certainly_not_done() && error.to_string().contains("UnknownIssuer"), "{error}");
    trust.issue("n1", DAY, long_ago).store(&trust.dir_of("n1")).unwrap();
    assert!(server.identity.reload().unwrap());
    let late = ApiClient::new(vec![url], trust.ca.certificate_pem(), Credentials::None).unwrap();
    let error = late.get_json::<Who>("/whoami").await.unwrap_err().to_string();
    assert!(error.contains("xpired"), "{error}");
}

async fn certificate_of(trust: &Trust, address: std::net::SocketAddr) -> Peer {
    let config = cluster::tls::client_config(trust.ca.certificate_pem(), None).unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::from(address.ip());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    Peer::from_certificate(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
}

#[tokio::test]
async fn a_certificate_replaced_on_disk_is_served_without_a_restart() {
    let trust = Trust::new();
    let server = trust.serve("n1", Router::new().route("/whoami", get(whoami))).await;
    let stop = CancellationToken::new();
    let mut changes = server.identity.changes();
    let watching = tokio::spawn(server.identity.clone().watch(stop.clone()));

    let client = ApiClient::new(vec![server.url()], trust.ca.certificate_pem(), Credentials::None).unwrap();
    client.get_json::<Who>("/whoami").await.unwrap();
    let before = certificate_of(&trust, server.address).await;
    // Another process (`eccfg node enroll`, an administrator) replaces the files.
    let fresh = trust.issue("n1", 2 * DEFAULT_VALIDITY, OffsetDateTime::now_utc());
    // The watch may not be armed yet, so the files change until it has noticed.
    soon("the reload", async {
        while !changes.has_changed().unwrap() {
            fresh.store(&trust.dir_of("n1")).unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed())
                .await
                .map(|_| changes.mark_changed());
        }
    })
    .await;
    let after = certificate_of(&trust, server.address).await;
    assert_ne!(before.fingerprint, after.fingerprint);
    assert_eq!(after.fingerprint, fresh.peer().fingerprint);
    client.get_json::<Who>("/whoami").await.expect("the connection from before goes on");

    // Somebody else's identity does not slip in.
    trust.issue("n2", DEFAULT_VALIDITY, OffsetDateTime::now_utc()).store(&trust.dir_of("n1")).unwrap();
    server.identity.reload().unwrap_err();
    assert_eq!(server.identity.current().node(), "n1");
    stop.cancel();
    soon("the watch", watching).await.unwrap();
}

#[tokio::test]
async fn renewal_happens_when_it_is_due_and_not_before() {
    let trust = Trust::new();
    // Two thirds of the life of this one are over, a third is left.
    let due = trust.issue("n1", 8 * DAY, OffsetDateTime::now_utc() - 6 * DAY);
    assert!(due.peer().renewal_due() < OffsetDateTime::now_utc() && due.peer().not_after > OffsetDateTime::now_utc());
    due.store(&trust.dir_of("n1")).unwrap();
    let identity = ReloadingIdentity::load(trust.dir_of("n1")).unwrap();
    let mut changes = identity.changes();
    let asked = Arc::new(AtomicUsize::new(0));
    let (counter, stop) = (asked.clone(), CancellationToken::new());
    let ca = Ca::from_pem(trust.ca.certificate_pem(), &trust.ca.key_pem()).unwrap();
    let renewer = Renewer::new(identity.clone());
    let stopped = stop.clone();
    let renewing = async move {
        let issue = |present: Arc<Identity>| {
            counter.fetch_add(1, Ordering::SeqCst);
            let key = KeyRequest::generate(present.node()).unwrap();
            let cert = NodeCert::new("n1", "default", NodeRole::Voter);
            let chain = ca.issue(key.csr_pem(), &cert, DEFAULT_VALIDITY).unwrap();
            std::future::ready(key.certified(&chain.pem, &chain.ca_pem))
        };
        renewer.run_with(issue, stopped).await;
    };
    let waiting = async {
        soon("the renewal", changes.changed()).await.unwrap();
        stop.cancel();
    };
    tokio::join!(renewing, waiting);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(identity.current().peer().renewal_due() > OffsetDateTime::now_utc() + 50 * DAY);
}

#[test]
fn a_reader_never_sees_a_key_beside_another_certificate() {
    let trust = Trust::new();
    let now = OffsetDateTime::now_utc();
    let identities: Vec<_> = (1..=5).map(|days| trust.issue("n1", days * DAY, now)).collect();
    let dir = trust.dir_of("n1");
    identities[0].store(&dir).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..20).for_each(|round| identities[round % 5].store(&dir).unwrap()));
        let mut loads = 0;
        // `load` checks that the three belong together, so a mixture would be an error.
        while !writer.is_finished() || loads == 0 {
            Identity::load(&dir).unwrap();
            loads += 1;
        }
    });
    let generations = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("g-"));
    assert!(generations.count() <= 2, "old generations are cleaned");
}

#[test]
fn files_are_where_and_as_private_as_documented() {
    let trust = Trust::new();
    let dir = trust.dir_of("n1");
    trust.identity("n1");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.join("key.pem")), 0o600);
    assert_eq!(mode(&dir.join("cert.pem")), 0o644);
    assert_eq!(std::fs::read_to_string(dir.join("ca.pem")).unwrap(), trust.ca.certificate_pem());

    // Three plain files that somebody copied work as well; a mixture of two identities does not.
    let plain = trust.dir_of("plain");
    std::fs::create_dir(&plain).unwrap();
    for file in ["key.pem", "cert.pem", "ca.pem"] {
        std::fs::copy(dir.join(file), plain.join(file)).unwrap();
    }
    assert_eq!(Identity::load(&plain).unwrap().node(), "n1");
    trust.identity("n2");
    std::fs::copy(trust.dir_of("n2").join("cert.pem"), plain.join("cert.pem")).unwrap();
    Identity::load(&plain).unwrap_err();
    assert!(matches!(Identity::load(&trust.dir_of("none")), Err(IdentityError::Missing { .. })));

    let ca_dir = trust.dir_of("ca");
    trust.ca.store(&ca_dir).unwrap();
    assert_eq!(mode(&ca_dir.join("ca-key.pem")), 0o600);
    let loaded = Ca::load(&ca_dir).unwrap();
    assert_eq!((loaded.fingerprint(), loaded.cluster_name()), (trust.ca.fingerprint(), "test".into()));
    Ca::from_pem(Ca::create("other").unwrap().certificate_pem(), &trust.ca.key_pem()).unwrap_err();
}

#[test]
fn a_request_decides_nothing_but_its_key() {
    let trust = Trust::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut greedy = rcgen::CertificateParams::new(vec!["evil.example".into()]).unwrap();
    greedy.distinguished_name.push(rcgen::DnType::CommonName, "n1");
    greedy.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "voter");
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let cert = NodeCert::new("web1", "default", NodeRole::Client)
        .reached_at("web1.example:2027")
        .reached_at("[fe80::1]:5")
        .reached_at("0.0.0.0:2027");
    let chain = trust.ca.issue(&csr, &cert, DEFAULT_VALIDITY).unwrap();
    let leaf = CertificateDer::from_pem_slice(chain.pem.as_bytes()).unwrap();
    let peer = Peer::from_certificate(&leaf).unwrap();
    assert_eq!((&*peer.node, peer.role), ("web1", NodeRole::Client));
    assert!(peer.not_before < OffsetDateTime::now_utc() - Duration::from_secs(23 * 3600), "backdated for slow clocks");
    let text = format!("{:?}", x509_parser::parse_x509_certificate(&leaf).unwrap().1);
    assert!(!text.contains("evil.example") && !text.contains("key_cert_sign: true"), "{text}");
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
    for name in ["web1.example", "localhost", "DNSName(\"web1\")", "IPAddress([127, 0, 0, 1])", "IPAddress([254, 128,"]
    {
        assert!(names.contains(name), "{names} lacks {name}");
    }
    assert!(!names.contains("[0, 0, 0, 0]") && !parsed.is_ca());

    let tampered = csr.replacen(&csr[40..44], "AAAA", 1);
    trust.ca.issue(&tampered, &cert, DEFAULT_VALIDITY).unwrap_err();
    for (node, subcluster) in [
        ("", "default"),
        ("N1", "default"),
        ("../x", "default"),
        ("global", "default"),
        ("n1", "global"),
        ("n1", "a/b"),
    ] {
        let cert = NodeCert::new(node, subcluster, NodeRole::Client);
        assert!(trust.ca.issue(&csr, &cert, DEFAULT_VALIDITY).is_err(), "{node:?} in {subcluster:?} was issued");
    }
    let mut wild = cert.clone();
    wild.names = vec!["*.example".into()];
    trust.ca.issue(&csr, &wild, DEFAULT_VALIDITY).unwrap_err();
}

#[test]
fn a_certificate_covers_the_names_it_was_issued_for() {
    let trust = Trust::new();
    let key = cluster::identity::KeyRequest::generate("n1").unwrap();
    let cert =
        NodeCert::new("n1", "default", NodeRole::Voter).reached_at("Web1.example:2027").reached_at("[fe80::1]:5");
    let chain = trust.ca.issue(key.csr_pem(), &cert, DEFAULT_VALIDITY).unwrap();
    let identity = key.certified(&chain.pem, &chain.ca_pem).unwrap();
    let covers = |names: &[&str]| identity.covers(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert!(covers(&["web1.EXAMPLE", "[FE80:0::1]:2027", "0.0.0.0:2027", "127.0.0.1:1", "localhost", "n1"]));
    assert!(covers(&[]) && !covers(&["web1.example", "web2.example"]) && !covers(&["10.0.0.1:2027"]));
}
