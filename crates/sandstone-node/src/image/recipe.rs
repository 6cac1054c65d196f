//! The files that say what the image is made of.

use sha2::{Digest, Sha256};

/// Changes when the Rust side of the build changes what comes out.
const REVISION: &str = "2";

/// Seconds since the Unix epoch that everything made by the build is dated: 2026-11-01.
pub(super) const SOURCE_DATE_EPOCH: &str = "1793491200";

pub(super) const CUSTOMIZE: &str = include_str!("recipe/customize.sh");
pub(super) const SEAL: &str = include_str!("recipe/seal.sh");
const PACKAGES: &str = include_str!("recipe/packages");
const NPM_PACKAGES: &str = include_str!("recipe/npm-packages");
const MMDEBSTRAP_OPTIONS: &str = include_str!("recipe/mmdebstrap-options");

/// A package of the npm registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NpmPackage {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// SHA-512 of the archive, lower-case hexadecimal.
    pub(super) sha512: &'static str,
}

impl NpmPackage {
    /// The name as a file name.
    pub(super) fn directory(&self) -> String {
        self.name.replace('/', "-")
    }
}

/// The lines that are neither empty nor comments.
fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Debian packages beside the minimal base.
pub(super) fn packages() -> Vec<&'static str> {
    lines(PACKAGES).collect()
}

/// Packages of the npm registry.
pub(super) fn npm_packages() -> Vec<NpmPackage> {
    lines(NPM_PACKAGES)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some(NpmPackage {
                name: words.next()?,
                version: words.next()?,
                sha512: words.next()?,
            })
        })
        .collect()
}

/// Options of mmdebstrap that do not depend on the host.
pub(super) fn mmdebstrap_options() -> Vec<&'static str> {
    lines(MMDEBSTRAP_OPTIONS).collect()
}

/// 16 hexadecimal digits that change with the recipe, and only with it.
#[must_use]
pub(crate) fn recipe_hash() -> String {
    hash(&[
        REVISION,
        SOURCE_DATE_EPOCH,
        CUSTOMIZE,
        SEAL,
        PACKAGES,
        NPM_PACKAGES,
        MMDEBSTRAP_OPTIONS,
    ])
}

/// The recipe's hash as a UUID, for the file system: same recipe, same UUID.
pub(super) fn uuid() -> String {
    let digits = hash(&[&recipe_hash(), "uuid"]) + &hash(&[&recipe_hash(), "uuid, second half"]);
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default().to_owned();
    // Version 8 (free form), variant 10.
    format!(
        "{}-{}-8{}-a{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

fn hash(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length keeps text from moving between parts unnoticed.
        hasher.update(part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize()[..8])
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_stable_short_and_sensitive() {
        assert_eq!(recipe_hash(), recipe_hash());
        assert_eq!(recipe_hash().len(), 16);
        assert!(recipe_hash().bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(hash(&["a", "bc"]), hash(&["ab", "c"]));
        assert_ne!(hash(&["a"]), hash(&["b"]));
    }

    #[test]
    fn uuid_has_the_form_of_one() {
        let uuid = uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
    }

    #[test]
    fn every_line_of_the_recipe_is_understood() {
        assert_eq!(npm_packages().len(), lines(NPM_PACKAGES).count());
        for package in npm_packages() {
            assert_eq!(package.sha512.len(), 128, "{package:?}");
            assert!(!package.directory().contains('/'), "{package:?}");
        }
        assert!(packages().contains(&"sudo"));
        assert!(packages().iter().all(|p| !p.contains([' ', ','])));
        assert!(mmdebstrap_options().iter().all(|o| o.starts_with("--")));
    }
}
