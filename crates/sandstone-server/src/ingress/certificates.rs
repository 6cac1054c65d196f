//! The certificate of all exposed names: read again when its files change, issued again in time.

use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sandstone_authority::AuthorityError;

use super::CertificateSource;

/// How often [`Certificates::refresh`] is to be called. Renewed files are in use this much later.
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(30);

/// An issued certificate is replaced after half its life, so that a client whose clock is ahead
/// takes it still.
const REISSUE_AFTER_S: u64 = sandstone_authority::LEAF_LASTS.as_secs() / 2;

/// There is no certificate to be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or holds no such thing.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate and the key cannot be used together.
    #[error("the certificate and the key do not fit together")]
    Unfit(#[source] rustls::Error),
    /// Our own authority failed.
    #[error("cannot issue a certificate")]
    NotIssued(#[source] AuthorityError),
}

/// The certificate in use.
#[derive(Debug)]
pub(super) struct Certificates {
    source: CertificateSource,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    stamp: Stamp,
}

/// What tells whether the certificate in use is still the right one.
#[derive(Debug, PartialEq, Eq)]
enum Stamp {
    /// When the files were written, as far as that can be told.
    Written([Option<SystemTime>; 2]),
    /// When it was issued, seconds since the epoch.
    Issued(u64),
}

impl Certificates {
    pub(super) fn new(source: CertificateSource) -> Result<Self, CertificateError> {
        let current = RwLock::new(load(&source)?);
        Ok(Self { source, current })
    }

    /// Replaces the certificate if it is time. One that cannot be replaced stays in use.
    pub(super) fn refresh(&self) {
        if self.is_outdated() {
            self.replace();
        }
    }

    /// Reads the files again, whatever their times say. An issued certificate needs no such thing.
    pub(super) fn reload(&self) {
        match self.source {
            CertificateSource::Files { .. } => self.replace(),
            CertificateSource::Authority { .. } => {
                tracing::info!(
                    "no certificate to read again: our own authority certifies exposed servers"
                );
            }
        }
    }

    fn replace(&self) {
        match load(&self.source) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!("the certificate of exposed servers was replaced");
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    error,
                    "cannot replace the certificate of exposed servers; the old one stays in use"
                );
            }
        }
    }

    fn is_outdated(&self) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        match (&self.source, &current.stamp) {
            (CertificateSource::Files { certificate, key }, stamp) => {
                *stamp != written(certificate, key)
            }
            (CertificateSource::Authority { clock, .. }, Stamp::Issued(at)) => {
                // A clock that was set back makes a new one, too.
                seconds(clock.now()).abs_diff(*at) > REISSUE_AFTER_S
            }
            (CertificateSource::Authority { .. }, Stamp::Written(_)) => true,
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.key.clone())
    }
}

fn load(source: &CertificateSource) -> Result<Current, CertificateError> {
    match source {
        CertificateSource::Files { certificate, key } => {
            // Stamped before they are read: a change in between is found the next time.
            let stamp = written(certificate, key);
            let key = Arc::new(read(certificate, key)?);
            Ok(Current { key, stamp })
        }
        CertificateSource::Authority {
            authority,
            base_domain,
            clock,
        } => {
            let now = seconds(clock.now());
            let key = authority
                .issue(&[&format!("*.{base_domain}"), base_domain], now)
                .map_err(CertificateError::NotIssued)?;
            let stamp = Stamp::Issued(now);
            Ok(Current { key, stamp })
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let unreadable = |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| {
        let path = path.display().to_string();
        CertificateError::Unreadable { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(certificate, error.into()))?;
    if chain.is_empty() {
        return Err(unreadable(certificate, "it holds no certificate".into()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error.into()))?;
    let private = any_supported_type(&private).map_err(|error| unreadable(key, error.into()))?;
    let pair = CertifiedKey::new(chain, private);
    pair.keys_match().map_err(CertificateError::Unfit)?;
    Ok(pair)
}

fn written(certificate: &Path, key: &Path) -> Stamp {
    Stamp::Written([certificate, key].map(|path| fs::metadata(path).ok()?.modified().ok()))
}

fn seconds(at: sandstone_core::Timestamp) -> u64 {
    u64::try_from(at.as_millis() / 1000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use sandstone_authority::Authority;
    use sandstone_core::{Clock, Timestamp};

    use super::*;

    #[derive(Debug)]
    struct HandClock(AtomicI64);

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    fn current(certificates: &Certificates) -> Vec<u8> {
        let current = certificates.current.read().unwrap();
        current.key.cert[0].to_vec()
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        // An authority's own pair will do as any pair.
        let make = |name: &str| {
            Authority::open(directory.path(), name, name).unwrap();
            ["", "-key"]
                .map(|end| fs::read(directory.path().join(format!("{name}{end}.pem"))).unwrap())
        };
        let (first, second) = (make("first"), make("second"));
        let certificate = directory.path().join("tls.pem");
        let key = directory.path().join("tls-key.pem");
        let put = |pair: &[Vec<u8>; 2], at: u64| {
            for (path, content) in [&certificate, &key].into_iter().zip(pair) {
                fs::write(path, content).unwrap();
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
                fs::File::open(path).unwrap().set_modified(at).unwrap();
            }
        };
        let source = || CertificateSource::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let error = Certificates::new(source()).unwrap_err().to_string();
        assert!(error.contains("tls.pem"), "{error}");
        put(&first, 1);
        let certificates = Certificates::new(source()).unwrap();
        let before = current(&certificates);
        certificates.refresh();
        assert_eq!(current(&certificates), before);
        // A renewal that is half done, and one that is nonsense: the old pair serves on.
        put(&[second[0].clone(), first[1].clone()], 2);
        certificates.refresh();
        assert_eq!(current(&certificates), before);
        put(&[b"nonsense".to_vec(), second[1].clone()], 3);
        certificates.refresh();
        assert_eq!(current(&certificates), before);
        put(&second, 4);
        certificates.refresh();
        let renewed = current(&certificates);
        assert_ne!(renewed, before);
        // Told to, it reads files that seem to be as they were, and keeps what works.
        put(&[b"nonsense".to_vec(), first[1].clone()], 4);
        certificates.reload();
        assert_eq!(current(&certificates), renewed);
        put(&first, 4);
        certificates.refresh();
        assert_eq!(
            current(&certificates),
            renewed,
            "nothing shows that they changed"
        );
        certificates.reload();
        assert_eq!(current(&certificates), before);
    }

    #[test]
    fn an_issued_certificate_is_replaced_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(HandClock(AtomicI64::new(1_700_000_000_000)));
        let certificates = Certificates::new(CertificateSource::Authority {
            authority: Box::new(Authority::open(directory.path(), "ca", "test").unwrap()),
            base_domain: "sandbox.localhost".to_owned(),
            clock: clock.clone(),
        })
        .unwrap();
        let mut before = current(&certificates);
        for (days, is_replaced) in [(100, false), (150, true), (-300, true)] {
            clock
                .0
                .fetch_add(days * 24 * 60 * 60 * 1000, Ordering::SeqCst);
            certificates.refresh();
            let now = current(&certificates);
            assert_eq!(now != before, is_replaced, "{days}");
            before = now;
        }
    }
}
