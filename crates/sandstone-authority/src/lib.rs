//! A certificate authority of the server's own: for exposed servers without a certificate, and for
//! the connections in which a secret is put in place of its placeholder.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

/// An authority. Its key never leaves the directory it was made in.
pub struct Authority {
    certificate_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Why an authority could not be opened, or issue a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct AuthorityError {
    step: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Authority {
    /// Opens the authority whose certificate and key are in `directory`, as `NAME.pem` and
    /// `NAME-key.pem`; makes them when there are none, named `common_name`.
    ///
    /// # Errors
    /// When the files cannot be read, written or understood.
    pub fn open(
        _directory: &Path,
        _name: &str,
        _common_name: &str,
    ) -> Result<Self, AuthorityError> {
        Err(AuthorityError {
            step: "not made yet".to_owned(),
            source: "not made yet".into(),
        })
    }

    /// Its certificate, which clients are to trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for these host names (`*.example.com` among them) or addresses, with its key.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(&self, _names: &[&str]) -> Result<Arc<CertifiedKey>, AuthorityError> {
        Err(AuthorityError {
            step: "not made yet".to_owned(),
            source: "not made yet".into(),
        })
    }
}
