//! Changes to files by path.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, chownat, copy_file_range,
    fchmod, fstat, ftruncate, linkat, renameat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use sandstone_protocol::frame::DATA_MAX_BYTES;
use sandstone_protocol::message::{FileChange, FileTime, MakeTemporary};

use crate::files::OPEN_FLAGS;

/// Bytes that the kernel copies in one call, so that each call ends in reasonable time.
const COPY_BYTES: usize = 64 << 20;

/// Names that are tried for a temporary file. Each has 32 fresh bits.
const TEMPORARY_NAMES: u32 = 32;

/// The id that `chown(2)` takes for "leave it".
const NO_ID: u32 = u32::MAX;

/// Finds the absolute path for one that a client gave.
pub(crate) type Absolute<'a> = &'a dyn Fn(&str) -> Result<PathBuf, Errno>;

/// Makes a change.
///
/// # Errors
/// The system's.
pub(crate) fn change(change: &FileChange, at: Absolute<'_>) -> Result<(), Errno> {
    match change {
        FileChange::Rename { from, to } => renameat(CWD, at(from)?, CWD, at(to)?),
        FileChange::Copy { from, to } => copy(&at(from)?, &at(to)?),
        FileChange::Link { target, path } => {
            linkat(CWD, at(target)?, CWD, at(path)?, AtFlags::empty())
        }
        FileChange::Symlink { target, path } => symlinkat(target.as_str(), CWD, at(path)?),
        FileChange::Truncate { path, length } => {
            let flags = OFlags::WRONLY | OPEN_FLAGS;
            ftruncate(rustix::fs::open(at(path)?, flags, Mode::empty())?, *length)
        }
        FileChange::SetMode { path, mode } => {
            let mode = Mode::from_raw_mode(mode & 0o7777);
            chmodat(CWD, at(path)?, mode, AtFlags::empty())
        }
        FileChange::SetOwner { path, uid, gid } => {
            if [*uid, *gid].contains(&Some(NO_ID)) {
                return Err(Errno::INVAL);
            }
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            chownat(CWD, at(path)?, uid, gid, AtFlags::empty())
        }
        FileChange::SetTimes {
            path,
            accessed,
            modified,
        } => {
            let times = timestamps(*accessed, *modified)?;
            utimensat(CWD, at(path)?, &times, AtFlags::empty())
        }
    }
}

/// The names of a change and what it concerns, as messages show them.
pub(crate) fn names(change: &FileChange) -> (&'static str, &str, Option<&str>) {
    match change {
        FileChange::Rename { from, to } => ("rename", from, Some(to)),
        FileChange::Copy { from, to } => ("copy", from, Some(to)),
        FileChange::Link { target, path } => ("link", target, Some(path)),
        FileChange::Symlink { target, path } => ("symlink", target, Some(path)),
        FileChange::Truncate { path, .. } => ("truncate", path, None),
        FileChange::SetMode { path, .. } => ("chmod", path, None),
        FileChange::SetOwner { path, .. } => ("chown", path, None),
        FileChange::SetTimes { path, .. } => ("utime", path, None),
    }
}

/// Two times as the kernel takes them.
///
/// # Errors
/// `EINVAL` for more nanoseconds than a second has: some numbers there mean something else.
pub(crate) fn timestamps(accessed: FileTime, modified: FileTime) -> Result<Timestamps, Errno> {
    let time = |time: FileTime| match time.nanoseconds {
        0..1_000_000_000 => Ok(Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.into(),
        }),
        _ => Err(Errno::INVAL),
    };
    Ok(Timestamps {
        last_access: time(accessed)?,
        last_modification: time(modified)?,
    })
}

/// What a symbolic link says.
///
/// # Errors
/// The system's; `EILSEQ` when it is not UTF-8.
pub(crate) fn read_link(path: &Path) -> Result<String, Errno> {
    let target = rustix::fs::readlinkat(CWD, path, Vec::new())?;
    target.into_string().map_err(|_| Errno::ILSEQ)
}

/// A path without links.
///
/// # Errors
/// The system's; `EILSEQ` when it is not UTF-8.
pub(crate) fn real_path(path: &Path) -> Result<String, Errno> {
    let real = resolve(path)?.into_os_string().into_vec();
    String::from_utf8(real).map_err(|_| Errno::ILSEQ)
}

/// A path without links.
///
/// # Errors
/// The system's.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Errno> {
    path.canonicalize()
        .map_err(|error| crate::failure::errno_of(&error))
}

/// Makes a temporary file or directory, and tells its path.
///
/// # Errors
/// The system's; `EINVAL` for a name that is a path.
pub(crate) fn make_temporary(request: &MakeTemporary, at: Absolute<'_>) -> Result<String, Errno> {
    let parent = request.parent.as_deref().unwrap_or("/tmp");
    let directory = at(parent)?;
    let MakeTemporary { prefix, suffix, .. } = request;
    if [prefix, suffix].iter().any(|part| part.contains('/')) {
        return Err(Errno::INVAL);
    }
    let mut state = request.seed;
    for _ in 0..TEMPORARY_NAMES {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The high half of this generator is the good one.
        let name = format!("{prefix}{:08x}{suffix}", state >> 32);
        let path = directory.join(&name);
        let made = if request.directory {
            rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700))
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OPEN_FLAGS;
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map(drop)
        };
        match made {
            Ok(()) => {
                let told = Path::new(parent).join(name).into_os_string().into_vec();
                return String::from_utf8(told).map_err(|_| Errno::ILSEQ);
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Copies content and permissions.
fn copy(from: &Path, to: &Path) -> Result<(), Errno> {
    let source = rustix::fs::open(from, OFlags::RDONLY | OPEN_FLAGS, Mode::empty())?;
    let status = fstat(&source)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
    // Not emptied before it is known to be another file.
    let flags = OFlags::WRONLY | OFlags::CREATE | OPEN_FLAGS;
    let target = rustix::fs::open(to, flags, mode & Mode::from_raw_mode(0o777))?;
    let there = fstat(&target)?;
    if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino) {
        return Ok(());
    }
    if FileType::from_raw_mode(there.st_mode) == FileType::RegularFile {
        ftruncate(&target, 0)?;
        fchmod(&target, mode)?;
    }
    copy_content(&source, &target)
}

fn copy_content(source: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    // Inside the kernel as long as it gets on, which for some file systems is not at all.
    while copy_file_range(source, None, target, None, COPY_BYTES).is_ok_and(|bytes| bytes > 0) {}
    let mut buffer = vec![0; DATA_MAX_BYTES];
    loop {
        let length = match rustix::io::read(source, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match rustix::io::write(target, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn made(request: &MakeTemporary, top: &Path) -> Result<String, Errno> {
        make_temporary(request, &|path| Ok(top.join(path)))
    }

    #[test]
    fn copies_are_whole_and_a_file_survives_being_copied_to_itself() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to, link] = ["from", "to", "link"].map(|name| directory.path().join(name));
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n >> 3) as u8).collect();
        fs::write(&from, &content).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&to, vec![1; 400_000]).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o640);
        symlink(&from, &link).unwrap();
        copy(&from, &link).unwrap();
        copy(&link, &from).unwrap();
        assert!(fs::read(&from).unwrap() == content);
        // A file that the kernel does not copy, and whose size says nothing.
        copy(Path::new("/proc/self/maps"), &to).unwrap();
        assert!(fs::read_to_string(&to).unwrap().contains("[stack]"));
        assert_eq!(copy(directory.path(), &to), Err(Errno::ISDIR));
        assert_eq!(copy(Path::new("/dev/zero"), &to), Err(Errno::INVAL));
        assert_eq!(copy(&from, Path::new("/dev/full")), Err(Errno::NOSPC));
    }

    #[test]
    fn temporary_names_are_fresh() {
        let directory = tempfile::tempdir().unwrap();
        let request = MakeTemporary {
            directory: false,
            parent: Some("there".into()),
            prefix: "a-".into(),
            suffix: ".txt".into(),
            seed: 7,
        };
        assert_eq!(made(&request, directory.path()), Err(Errno::NOENT));
        fs::create_dir(directory.path().join("there")).unwrap();
        // The same seed gives the same names: the second is another all the same.
        let names = [(); 2].map(|()| made(&request, directory.path()).unwrap());
        assert_ne!(names[0], names[1]);
        for name in names {
            let digits = name.strip_prefix("there/a-").unwrap();
            let digits = digits.strip_suffix(".txt").unwrap();
            assert_eq!(digits.len(), 8);
            assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let status = fs::metadata(directory.path().join(name)).unwrap();
            assert_eq!(status.mode() & 0o7777, 0o600);
        }
        for (prefix, suffix) in [("../", ""), ("", "/x")] {
            let (prefix, suffix) = (prefix.to_owned(), suffix.to_owned());
            let request = MakeTemporary {
                prefix,
                suffix,
                ..request.clone()
            };
            assert_eq!(made(&request, directory.path()), Err(Errno::INVAL));
        }
    }

    #[test]
    fn impossible_ids_and_times_are_refused() {
        let at: Absolute<'_> = &|path| Ok(path.into());
        let owner = FileChange::SetOwner {
            path: "/".into(),
            uid: None,
            gid: Some(NO_ID),
        };
        assert_eq!(change(&owner, at), Err(Errno::INVAL));
        let now = FileTime {
            seconds: 0,
            nanoseconds: 0x3fff_ffff,
        };
        assert!(timestamps(now, now).is_err());
    }
}
