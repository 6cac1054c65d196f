//! The key by which clients recognise the server.

use std::fmt;

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Algorithm, PrivateKey};
use sandstone_core::Entropy;

/// The server's Ed25519 key. Made once and kept: a client that knows it warns when another answers.
#[derive(Clone)]
pub struct HostKey(PrivateKey);

/// A text that holds no key that we can use.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// It is not a private key in OpenSSH's format, or it is encrypted.
    #[error("this is not an unencrypted private key in OpenSSH's format")]
    Unreadable(#[source] russh::keys::ssh_key::Error),
    /// It is a key of another kind.
    #[error("the key is {0}, and not Ed25519")]
    NotEd25519(String),
}

impl HostKey {
    /// A new one.
    #[must_use]
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut seed = [0; 32];
        entropy.fill(&mut seed);
        Self(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
    }

    /// The key in `text`, which is in OpenSSH's format.
    ///
    /// # Errors
    /// [`HostKeyError`].
    pub fn parse(text: &str) -> Result<Self, HostKeyError> {
        let key = PrivateKey::from_openssh(text).map_err(HostKeyError::Unreadable)?;
        match key.algorithm() {
            Algorithm::Ed25519 if !key.is_encrypted() => Ok(Self(key)),
            other => Err(HostKeyError::NotEd25519(other.to_string())),
        }
    }

    /// The secret itself, in OpenSSH's format.
    ///
    /// # Errors
    /// Never for a key that this type holds.
    pub fn reveal(&self) -> Result<String, HostKeyError> {
        let text = self.0.to_openssh(LineEnding::LF);
        text.map(|text| text.as_str().to_owned())
            .map_err(HostKeyError::Unreadable)
    }

    pub(super) fn private(&self) -> PrivateKey {
        self.0.clone()
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;

    #[test]
    fn a_key_survives_being_written() {
        let key = HostKey::generate(&Fixed(7));
        let text = key.reveal().unwrap();
        assert!(text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        let again = HostKey::parse(&text).unwrap();
        assert_eq!(again.0.public_key(), key.0.public_key());
        assert_eq!(format!("{key:?}"), "HostKey(…)");
    }

    #[test]
    fn nonsense_is_no_key() {
        let text = HostKey::generate(&Fixed(7)).reveal().unwrap();
        for bad in [
            "",
            "nonsense",
            &text[..text.len() / 2],
            &text.to_lowercase(),
        ] {
            assert!(HostKey::parse(bad).is_err(), "{bad:?}");
        }
    }
}
