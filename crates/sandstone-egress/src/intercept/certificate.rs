//! Certificates of hosts that are given secrets, kept for the next connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::sign::CertifiedKey;
use sandstone_authority::{Authority, AuthorityError, LEAF_LASTS};

/// Most that are kept. A wildcard stands for any number of names.
const KEPT_MAX: usize = 1024;

/// Certificates by the name that they are for, with the time when they were issued, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Certificates(Mutex<HashMap<String, (Arc<CertifiedKey>, u64)>>);

impl Certificates {
    /// A certificate for `name`, valid at `now` and for a good while.
    pub(crate) fn get(
        &self,
        authority: &Authority,
        name: String,
        now: u64,
    ) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let renewed_after = LEAF_LASTS.as_secs() / 2;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((certificate, issued)) = kept.get(&name)
            && now.abs_diff(*issued) < renewed_after
        {
            return Ok(certificate.clone());
        }
        let certificate = authority.issue(&[&name], now)?;
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(name, (certificate.clone(), now));
        Ok(certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_kept_until_it_is_old_and_there_are_not_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path(), "egress", "test").unwrap();
        let certificates = Certificates::default();
        let get = |name: &str, now| certificates.get(&authority, name.to_owned(), now).unwrap();
        let first = get("a.com", 1_800_000_000);
        assert!(Arc::ptr_eq(&first, &get("a.com", 1_800_000_001)));
        assert!(!Arc::ptr_eq(&first, &get("b.com", 1_800_000_001)));
        assert!(!Arc::ptr_eq(
            &first,
            &get("a.com", 1_800_000_000 + LEAF_LASTS.as_secs())
        ));
        for number in 0..KEPT_MAX {
            get(&format!("n{number}.com"), 1_800_000_000);
        }
        assert!(certificates.0.lock().unwrap().len() <= KEPT_MAX);
    }
}
