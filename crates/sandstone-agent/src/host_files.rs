//! Files of the sandbox that a host replaces with its own.
//!
//! A root that lasts is started again, perhaps by another host, and copied. So what a host put in
//! its place is kept aside, and comes back when the file is no host's business any more.
//!
//! ```text
//! /var/lib/sandstone/host-files    the paths, one a line
//! /var/lib/sandstone/originals/    what was there: the path with every / as %
//! ```

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::interior::replace;

const LEDGER: &str = "/var/lib/sandstone/host-files";
const ORIGINALS: &str = "/var/lib/sandstone/originals";

/// The type of an overlay, from `linux/magic.h`.
const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// Largest file that is kept aside, and largest ledger, bytes. They are settings of a page.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Prepares for `paths` to be replaced, and puts back what earlier hosts replaced beyond that.
/// May be repeated from any point.
///
/// # Errors
/// The first step that failed.
pub(crate) fn settle(paths: &[&str]) -> io::Result<()> {
    settle_in(Path::new(LEDGER), Path::new(ORIGINALS), paths, lasts("/"))
}

/// Whether what is written to a root stays. An overlay's upper layer ends with the sandbox.
fn lasts(root: &str) -> bool {
    rustix::fs::statfs(root).is_ok_and(|status| status.f_type != OVERLAYFS_SUPER_MAGIC)
}

fn settle_in(ledger: &Path, originals: &Path, paths: &[&str], keep: bool) -> io::Result<()> {
    let known = match read_small(ledger)? {
        Some((text, _)) => String::from_utf8_lossy(&text).into_owned(),
        None => String::new(),
    };
    let original_of = |path: &str| originals.join(path.replace('/', "%"));
    for path in known.lines().filter(|path| !paths.contains(path)) {
        put_back(&original_of(path), path)?;
    }
    if !keep {
        return Ok(());
    }
    for path in paths
        .iter()
        .filter(|path| !known.lines().any(|known| known == **path))
    {
        let original = original_of(path);
        // There already when an earlier attempt was cut off: then nothing was replaced yet.
        if let Some((content, mode)) = read_small(Path::new(path))? {
            replace(&original, mode, &content)?;
        }
    }
    let mut wanted = paths.join("\n");
    wanted.push('\n');
    match wanted == known || (known.is_empty() && paths.is_empty()) {
        true => Ok(()),
        false => replace(ledger, 0o644, wanted.as_bytes()),
    }
}

/// Puts a file back as it was before any host replaced it: away, if it was not there.
fn put_back(original: &PathBuf, path: &str) -> io::Result<()> {
    match read_small(original)? {
        Some((content, mode)) => {
            replace(Path::new(path), mode, &content)?;
            fs::remove_file(original)
        }
        // A directory is no file that a host could have put there.
        None => match fs::remove_file(path) {
            Err(error) if !is_absent(&error) && error.kind() != io::ErrorKind::IsADirectory => {
                Err(error)
            }
            _ => Ok(()),
        },
    }
}

/// Content and mode of a regular file of modest size; `None` for anything else.
fn read_small(path: &Path) -> io::Result<Option<(Vec<u8>, u32)>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() || metadata.len() > FILE_MAX_BYTES {
        return Ok(None);
    }
    let mut content = Vec::new();
    fs::File::open(path)?
        .take(FILE_MAX_BYTES)
        .read_to_end(&mut content)?;
    Ok(Some((content, metadata.mode() & 0o7777)))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_replaced_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (ledger, originals) = (directory.path().join("l"), directory.path().join("o"));
        let settle = |paths: &[&str], keep| settle_in(&ledger, &originals, paths, keep).unwrap();
        let (own, added) = (path("own"), path("added"));
        fs::write(&own, "own").unwrap();
        // A host replaces both, at every boot.
        for host in ["first", "second"] {
            settle(&[&own, &added], true);
            fs::write(&own, host).unwrap();
            fs::write(&added, host).unwrap();
        }
        // Another has no use for one, a copy's host for neither.
        settle(&[&own], true);
        assert!(!Path::new(&added).exists());
        assert_eq!(fs::read_to_string(&own).unwrap(), "second");
        settle(&[], false);
        assert_eq!(fs::read_to_string(&own).unwrap(), "own");
    }

    #[test]
    fn a_root_that_ends_keeps_nothing_aside() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, originals) = (directory.path().join("l"), directory.path().join("o"));
        settle_in(&ledger, &originals, &["/etc/hostname"], false).unwrap();
        assert!(!ledger.exists() && !originals.exists());
    }
}
