//! A certificate authority of the server's own: for exposed servers without a certificate, and for
//! the connections in which a secret is put in place of its placeholder.
//!
//! [`Authority`] keeps an ECDSA P-256 key and a certificate in a directory, and issues certificates
//! for servers. Those are not kept: who needs one twice keeps it, until it is due for renewal.

mod files;
mod whole;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use files::{Files, Pair};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
pub use whole::write_whole;

/// The authority's certificate outlives every installation: renewing it means that every client
/// has to be told again. Fixed dates, so that making it needs no clock.
const AUTHORITY_YEARS: (i32, i32) = (2020, 2120);

/// How long before now an issued certificate is valid already: clocks of clients run slow.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an issued certificate lasts from now. With [`BACKDATED`] that is 397 days: Safari and
/// others refuse server certificates of more than 398.
pub const LEAF_LASTS: Duration = Duration::from_secs(396 * 24 * 60 * 60);

/// RFC 5280, `ub-common-name`.
const COMMON_NAME_MAX: usize = 64;

/// The last second that a certificate can name with room to spare: the year 9000.
const NOW_MAX: u64 = 221_845_392_000;

/// An authority. Its key never leaves the directory it was made in.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
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

impl AuthorityError {
    fn new(
        step: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            step: step.into(),
            source: source.into(),
        }
    }

    fn reading(path: &Path, source: std::io::Error) -> Self {
        Self::new(
            format!("cannot read the authority's {}", path.display()),
            source,
        )
    }
}

impl Authority {
    /// Opens the authority whose certificate and key are in `directory`, as `NAME.pem` and
    /// `NAME-key.pem` (mode 0600); makes them when there are none, named `common_name`, which has
    /// at most 64 characters. Two processes must not do so at once.
    ///
    /// # Errors
    /// When the files cannot be read, written or understood, or do not belong together.
    pub fn open(directory: &Path, name: &str, common_name: &str) -> Result<Self, AuthorityError> {
        let files = Files::new(directory, name);
        let pair = match files.read()? {
            Some(pair) => pair,
            None => {
                let pair = generate(common_name)?;
                files.write(&pair)?;
                pair
            }
        };
        Self::of_pair(pair).map_err(|error| {
            let path = files.certificate.display();
            AuthorityError::new(format!("cannot use the authority {path}"), error)
        })
    }

    fn of_pair(pair: Pair) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&pair.key)
            .map_err(|error| AuthorityError::new("cannot understand the authority's key", error))?;
        let certificate =
            CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(|error| {
                AuthorityError::new("cannot understand the authority's certificate", error)
            })?;
        certified(&certificate, &key)?
            .keys_match()
            .map_err(|error| {
                AuthorityError::new("the authority's key and certificate do not match", error)
            })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| {
            AuthorityError::new("cannot understand the authority's certificate", error)
        })?;
        Ok(Self {
            certificate,
            certificate_pem: pair.certificate,
            issuer,
        })
    }

    /// Its certificate, which clients are to trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its certificate, for a client's list of roots.
    #[must_use]
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for these host names (`*.example.com` among them) or addresses, with its key.
    /// `now` is in seconds since the Unix epoch; the certificate lasts [`LEAF_LASTS`] from then.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or there is none.
    pub fn issue(&self, names: &[&str], now: u64) -> Result<Arc<CertifiedKey>, AuthorityError> {
        for name in names {
            check(name)?;
        }
        let Some(first) = names.first() else {
            return Err(AuthorityError::new(
                "cannot issue a certificate",
                "it would have no name",
            ));
        };
        let failed = |error: rcgen::Error| {
            AuthorityError::new(format!("cannot issue a certificate for {first}"), error)
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).map_err(failed)?;
        let now = Duration::from_secs(now.min(NOW_MAX));
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(BACKDATED);
        params.not_after = epoch + now + LEAF_LASTS;
        params.distinguished_name = DistinguishedName::new();
        let common_name = names
            .iter()
            .find(|name| name.len() <= COMMON_NAME_MAX)
            .map_or("sandstone", String::as_str);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        certified(certificate.der(), &key).map(Arc::new)
    }
}

/// A new authority, in PEM.
fn generate(common_name: &str) -> Result<Pair, AuthorityError> {
    let failed =
        |error: rcgen::Error| AuthorityError::new("cannot make a certificate authority", error);
    if common_name.is_empty() || common_name.chars().count() > COMMON_NAME_MAX {
        return Err(AuthorityError::new(
            "cannot make a certificate authority",
            format!("its name must have 1 to {COMMON_NAME_MAX} characters"),
        ));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(AUTHORITY_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(AUTHORITY_YEARS.1, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn certified(
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
) -> Result<CertifiedKey, AuthorityError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = any_supported_type(&der)
        .map_err(|error| AuthorityError::new("cannot sign with a certificate's key", error))?;
    Ok(CertifiedKey::new(vec![certificate.clone()], signer))
}

/// Refuses what clients would not match: names come from requests.
fn check(name: &str) -> Result<(), AuthorityError> {
    let host = name.strip_prefix("*.").unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    DnsName::try_from(host)
        .map(drop)
        .map_err(|error| AuthorityError::new(format!("{name:?} is no host name"), error))
}

#[cfg(test)]
mod tests;
