//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file whole or not at all, durably, with the permissions `mode`. Something of that name is
/// replaced; so is the file next to it with the extension `new`, which a crash may have left.
///
/// # Errors
/// When any step fails, the removal of such a leftover included. Then `path` is as it was, unless
/// only the directory could not be flushed.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // Never opened as it is: it may have other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_with_its_own_permissions_and_no_leftover() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let leftover = directory.path().join("key.new");
        fs::write(&path, "old").unwrap();
        fs::write(&leftover, "half").unwrap();
        write_whole(&path, "new", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!leftover.exists());
    }

    #[test]
    fn a_leftover_that_stays_is_told_and_the_file_is_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        fs::write(&path, "old").unwrap();
        fs::create_dir(directory.path().join("key.new")).unwrap();
        let error = write_whole(&path, "new", 0o600).unwrap_err();
        // What removing says, not what making the file would.
        assert_ne!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
