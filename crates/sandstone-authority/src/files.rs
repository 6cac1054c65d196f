//! The authority's two files. The certificate is written last: while it is missing there is no
//! authority, and a key that a crash left alone is replaced.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::AuthorityError;
use crate::whole::write_whole;

/// Where an authority's certificate and key are.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What the files hold, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Files {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}-key.pem")),
        }
    }

    /// The pair, or none when it was never made whole.
    pub(crate) fn read(&self) -> Result<Option<Pair>, AuthorityError> {
        let certificate = match fs::read_to_string(&self.certificate) {
            Ok(certificate) => certificate,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(AuthorityError::reading(&self.certificate, error)),
        };
        let key = fs::read_to_string(&self.key)
            .map_err(|error| AuthorityError::reading(&self.key, error))?;
        Ok(Some(Pair { certificate, key }))
    }

    /// Writes the pair durably: after a crash there is the whole pair, or none.
    pub(crate) fn write(&self, pair: &Pair) -> Result<(), AuthorityError> {
        for (path, text, mode) in [
            (&self.key, &pair.key, 0o600),
            (&self.certificate, &pair.certificate, 0o644),
        ] {
            write_whole(path, text, mode).map_err(|error| {
                AuthorityError::new(format!("cannot write {}", path.display()), error)
            })?;
        }
        Ok(())
    }
}
