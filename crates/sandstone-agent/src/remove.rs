//! Removing a directory with everything in it.
//!
//! Works on open directories and never follows a link, so nobody can redirect it while it runs. A
//! loop, not a recursion: the depth of a tree must not be able to exhaust process 1's stack.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

/// A directory on the way down.
struct Level {
    directory: Dir,
    /// Its name in the directory above.
    name: CString,
}

/// Removes a file, a link or an empty directory; with `recursive`, a directory's content too.
///
/// # Errors
/// The first one met; what was removed until then stays removed. `EMFILE` for a tree deeper than
/// there are descriptors.
pub(crate) fn remove(path: &Path, recursive: bool) -> Result<(), Errno> {
    let status = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return unlinkat(CWD, path, AtFlags::empty());
    }
    if recursive {
        empty(Dir::new(open(CWD, path)?)?)?;
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// Removes what is in a directory.
fn empty(top: Dir) -> Result<(), Errno> {
    let mut levels = vec![Level {
        directory: top,
        name: CString::default(),
    }];
    while let Some(level) = levels.last_mut() {
        match level.directory.read() {
            Some(entry) => {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                if let Some(directory) = take_away(&level.directory, name, entry.file_type())? {
                    let name = name.to_owned();
                    levels.push(Level { directory, name });
                }
            }
            None => {
                let Some(emptied) = levels.pop() else { break };
                drop(emptied.directory);
                if let Some(above) = levels.last() {
                    let fd = above.directory.fd()?;
                    gone(unlinkat(fd, &emptied.name, AtFlags::REMOVEDIR))?;
                }
            }
        }
    }
    Ok(())
}

/// Removes one entry, or opens it when it is a directory.
fn take_away(above: &Dir, name: &CStr, kind: FileType) -> Result<Option<Dir>, Errno> {
    let fd = above.fd()?;
    if !matches!(kind, FileType::Directory | FileType::Unknown) {
        match unlinkat(fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {} // Replaced since it was listed.
            result => return gone(result).map(|()| None),
        }
    }
    match open(fd, name) {
        Ok(directory) => Dir::new(directory).map(Some),
        Err(Errno::NOENT) => Ok(None),
        // Not a directory after all.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            gone(unlinkat(fd, name, AtFlags::empty())).map(|()| None)
        }
        Err(errno) => Err(errno),
    }
}

fn open(above: impl AsFd, name: impl rustix::path::Arg) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty())
}

/// Somebody else may have removed it first.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_link_targets_stay() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        let tree = directory.path().join("tree");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let mut deep = tree.clone();
        for _ in 0..100 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        symlink(&outside, deep.join("to-directory")).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        for number in 0..3000 {
            fs::write(tree.join(format!("file-{number}")), "").unwrap();
        }
        assert_eq!(remove(&tree, false), Err(Errno::NOTEMPTY));
        remove(&tree, true).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("precious").exists());
        assert_eq!(remove(&tree, true), Err(Errno::NOENT));
    }

    #[test]
    fn links_files_and_empty_directories_go_without_recursion() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        symlink(&target, &link).unwrap();
        remove(&link, true).unwrap();
        assert!(target.join("file").exists() && !link.exists());
        remove(&target.join("file"), false).unwrap();
        remove(&target, false).unwrap();
        assert!(!target.exists());
    }
}
