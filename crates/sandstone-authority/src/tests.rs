use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

/// 2030-01-01.
const NOW: u64 = 1_893_456_000;
const DAY: u64 = 24 * 60 * 60;

#[derive(Debug)]
struct At(u64);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

fn authority(directory: &Path) -> Authority {
    Authority::open(directory, "test-ca", "Sandstone test").unwrap()
}

/// What a client that trusts `root` alone says of a server with `leaf`, at `now`.
fn shake(
    root: &Authority,
    leaf: Arc<CertifiedKey>,
    host: &str,
    now: u64,
) -> Result<String, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate_der().clone()).unwrap();
    let client = ClientConfig::builder_with_details(provider.clone(), Arc::new(At(now)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(leaf));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), host).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    server.writer().write_all(b"hello").unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    let mut text = [0; 5];
    client.reader().read_exact(&mut text).unwrap();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_client_that_trusts_it_accepts_names_wildcards_and_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let leaf = authority
        .issue(
            &["*.sandbox.localhost", "example.com", "127.0.0.1", "::1"],
            NOW,
        )
        .unwrap();
    for host in ["abc.sandbox.localhost", "example.com", "127.0.0.1", "::1"] {
        let said = shake(&authority, leaf.clone(), host, NOW);
        assert_eq!(said.as_deref(), Ok("hello"), "{host}");
    }
    for host in ["sandbox.localhost", "a.b.sandbox.localhost", "127.0.0.2"] {
        assert!(
            shake(&authority, leaf.clone(), host, NOW).is_err(),
            "{host}"
        );
    }
}

#[test]
fn a_leaf_lasts_from_a_day_ago_for_less_than_398_days() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let at = |now| {
        let leaf = authority.issue(&["example.com"], NOW).unwrap();
        shake(&authority, leaf, "example.com", now).is_ok()
    };
    assert!(at(NOW - DAY + 60));
    assert!(!at(NOW - DAY - 60));
    assert!(at(NOW + 395 * DAY));
    assert!(!at(NOW + 397 * DAY));
}

#[test]
fn an_authority_that_is_not_trusted_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = (authority(one.path()), authority(other.path()));
    let leaf = one.issue(&["example.com"], NOW).unwrap();
    assert!(shake(&other, leaf, "example.com", NOW).is_err());
}

#[test]
fn opening_again_gives_the_same_authority() {
    let directory = tempfile::tempdir().unwrap();
    let first = authority(directory.path());
    let again = authority(directory.path());
    assert_eq!(first.certificate_pem(), again.certificate_pem());
    let leaf = again.issue(&["example.com"], NOW).unwrap();
    assert!(shake(&first, leaf, "example.com", NOW).is_ok());
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["test-ca-key.pem", "test-ca.pem"]);
}

#[test]
fn only_the_owner_reads_the_key() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    let mode = |name: &str| {
        let path = directory.path().join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("test-ca-key.pem"), 0o600);
    assert_eq!(mode("test-ca.pem") & 0o133, 0);
}

#[test]
fn a_key_that_a_crash_left_alone_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    fs::remove_file(directory.path().join("test-ca.pem")).unwrap();
    fs::write(directory.path().join("test-ca-key.new"), "half").unwrap();
    let authority = authority(directory.path());
    let leaf = authority.issue(&["example.com"], NOW).unwrap();
    assert!(shake(&authority, leaf, "example.com", NOW).is_ok());
    assert!(!directory.path().join("test-ca-key.new").exists());
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    let open = || -> String {
        let opened = Authority::open(directory.path(), "test-ca", "Sandstone test");
        let error = opened.map(drop).unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        causes.map(|cause| cause.to_string() + ": ").collect()
    };
    let other = generate("another").unwrap();
    let key = directory.path().join("test-ca-key.pem");
    fs::write(&key, &other.key).unwrap();
    let error = open();
    assert!(error.contains("do not match"), "{error}");
    fs::write(&key, "nonsense").unwrap();
    let error = open();
    assert!(error.contains("test-ca.pem"), "{error}");
    fs::remove_file(&key).unwrap();
    let error = open();
    assert!(error.contains("test-ca-key.pem"), "{error}");
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let long = format!("{}.example.com", "a".repeat(64));
    for name in ["", "a b", "*.*.com", "é.com", "-", "a..b", &long] {
        assert!(authority.issue(&[name], NOW).is_err(), "{name:?}");
    }
    assert!(authority.issue(&[], NOW).is_err());
    let deep = format!("{0}.{0}.example.com", "a".repeat(63));
    let leaf = authority.issue(&[&deep], NOW).unwrap();
    assert!(shake(&authority, leaf, &deep, NOW).is_ok());
    assert!(authority.issue(&["example.com"], u64::MAX).is_ok());
}
