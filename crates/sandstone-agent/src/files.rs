//! File operations. Every one runs as the sandbox's user, whatever the agent itself may do.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, makedev, statat,
    statx,
};
use rustix::io::Errno;
use sandstone_protocol::frame::PAYLOAD_MAX_BYTES;
use sandstone_protocol::message::{
    Answer, Entry, Failure, FileKind, HandleOperation, Metadata, OpenOptions, Request, StreamId,
    WriteOptions,
};

use crate::changes::{self, change, make_temporary, read_link, real_path};
use crate::connection::Connection;
use crate::failure::{failure, file_failure, two_path_failure};
use crate::handles::{Handle, Outcome};
use crate::lock::lock;
use crate::remove::remove;
use crate::stream::{Inlet, Outlet};
use crate::sys::assume_file_identity;
use crate::transfer::{read_file, write_file};
use crate::workers;

/// Most bytes that one entry takes in an encoded listing, its name aside.
const ENTRY_OVERHEAD_BYTES: usize = 40;

/// Reading, or writing, may block only on something other than a regular file or directory.
pub(crate) const OPEN_FLAGS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

pub(crate) type Place = workers::Place<FileJob>;

/// A request for the workers.
#[derive(Debug)]
pub(crate) struct FileJob {
    /// Whom to answer.
    pub(crate) connection: Arc<Connection>,
    /// The request's id.
    pub(crate) id: u32,
    /// What to do.
    pub(crate) work: FileWork,
}

/// What a [`FileJob`] does.
#[derive(Debug)]
pub(crate) enum FileWork {
    /// [`Request::ReadFile`] with its stream.
    Read { path: String, outlet: Arc<Outlet> },
    /// [`Request::WriteFile`] with its stream.
    Write {
        path: String,
        inlet: Arc<Inlet>,
        options: WriteOptions,
    },
    /// [`Request::Open`], whose handle is reserved.
    Open {
        handle: Arc<Handle>,
        path: String,
        options: OpenOptions,
    },
    /// [`Request::Handle`].
    Handle {
        handle: Arc<Handle>,
        operation: HandleOperation,
        /// [`Handle::unlocks`] when the request came.
        unlocks: u64,
    },
    /// [`Request::Close`]: files that are not open any more, and whether all were.
    Close {
        handles: Vec<Arc<Handle>>,
        all_known: bool,
    },
    /// A request without streams.
    Plain(Request),
}

impl FileJob {
    fn stream(&self) -> Option<StreamId> {
        match &self.work {
            FileWork::Read { outlet, .. } => Some(outlet.id),
            FileWork::Write { inlet, .. } => Some(inlet.id),
            FileWork::Open { .. }
            | FileWork::Handle { .. }
            | FileWork::Close { .. }
            | FileWork::Plain(_) => None,
        }
    }

    /// The failure that `errno` is for this job.
    fn failure(&self, errno: Errno) -> Failure {
        let (operation, path) = match &self.work {
            FileWork::Read { path, .. } => ("readfile", path.as_str()),
            FileWork::Write { path, .. } => ("writefile", path.as_str()),
            FileWork::Open { path, .. } => ("open", path.as_str()),
            FileWork::Handle { handle, .. } => {
                return failure(errno, format_args!("open file {}", handle.id()));
            }
            FileWork::Close { .. } => return failure(errno, "close files"),
            FileWork::Plain(request) => match request {
                Request::ReadDir { path } => ("readdir", path.as_str()),
                Request::MakeDir { path, .. } => ("mkdir", path.as_str()),
                Request::Remove { path, .. } => ("remove", path.as_str()),
                Request::Stat { path, follow: true } => ("stat", path.as_str()),
                Request::Stat { path, .. } => ("lstat", path.as_str()),
                Request::ReadLink { path } => ("readlink", path.as_str()),
                Request::RealPath { path } => ("realpath", path.as_str()),
                Request::Change(change) => match changes::names(change) {
                    (operation, path, None) => (operation, path),
                    (operation, from, Some(to)) => {
                        return two_path_failure(errno, operation, from, to);
                    }
                },
                Request::MakeTemporary(request) => {
                    let parent = request.parent.as_deref();
                    ("maketemp", parent.unwrap_or("/tmp"))
                }
                _ => return failure(errno, "not a file operation"),
            },
        };
        file_failure(errno, operation, path)
    }
}

/// Does a job and answers it.
pub(crate) fn perform(mut job: FileJob, place: &mut Place) {
    if let FileWork::Close { handles, .. } = &mut job.work {
        handles.clear();
    }
    let streams: Vec<StreamId> = job.stream().into_iter().collect();
    // A host that is gone needs no answer.
    let _ = match outcome(&job, place) {
        Ok(Outcome::Answer(answer)) => job.connection.reply(job.id, Ok(answer)),
        Ok(Outcome::Wait(wait)) => {
            job.connection.wait_for_lock(job.id, wait);
            Ok(())
        }
        Err(errno) => {
            if let FileWork::Open { handle, .. } = &job.work {
                job.connection.handles.take(handle.id());
            }
            let failure = job.failure(errno);
            job.connection.fail(job.id, &streams, failure)
        }
    };
}

/// Answers a job for which there is no thread.
pub(crate) fn refuse(job: FileJob) {
    if let FileWork::Open { handle, .. } = &job.work {
        job.connection.handles.take(handle.id());
    }
    let streams: Vec<StreamId> = job.stream().into_iter().collect();
    let failure = failure(Errno::AGAIN, "start a thread for a file operation");
    let _ = job.connection.fail(job.id, &streams, failure);
}

fn outcome(job: &FileJob, place: &mut Place) -> Result<Outcome, Errno> {
    let interior = &job.connection.agent.interior;
    let identity = lock(interior).account.identity.clone();
    assume_file_identity(&identity)?;
    let at = |path: &str| lock(interior).absolute(path);

    match &job.work {
        FileWork::Read { path, outlet } => read_file(&job.connection, &at(path)?, outlet, place)?,
        FileWork::Write {
            path,
            inlet,
            options,
        } => write_file(&job.connection, &at(path)?, inlet, options, place)?,
        FileWork::Open {
            handle,
            path,
            options,
        } => return handle.open(&at(path)?, *options).map(Outcome::Answer),
        FileWork::Handle {
            handle,
            operation,
            unlocks,
        } => return handle.perform(operation, *unlocks, place),
        // They are closed already.
        FileWork::Close { all_known, .. } => {
            if !all_known {
                return Err(Errno::BADF);
            }
        }
        FileWork::Plain(request) => return plain(request, &at).map(Outcome::Answer),
    }
    Ok(Outcome::Answer(Answer::Done))
}

fn plain(request: &Request, at: changes::Absolute<'_>) -> Result<Answer, Errno> {
    match request {
        Request::ReadDir { path } => return read_dir(&at(path)?).map(Answer::Entries),
        Request::MakeDir {
            path,
            recursive,
            mode,
        } => make_dir(&at(path)?, *recursive, mode.unwrap_or(0o777))?,
        Request::Remove { path, recursive } => remove(&at(path)?, *recursive)?,
        Request::Stat { path, follow } => return stat(&at(path)?, *follow).map(Answer::Metadata),
        Request::ReadLink { path } => return read_link(&at(path)?).map(Answer::Path),
        Request::RealPath { path } => return real_path(&at(path)?).map(Answer::Path),
        Request::MakeTemporary(request) => return make_temporary(request, at).map(Answer::Path),
        Request::Change(wanted) => change(wanted, at)?,
        _ => return Err(Errno::NOSYS),
    }
    Ok(Answer::Done)
}

pub(crate) fn kind_of(file: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

fn read_dir(path: &Path) -> Result<Vec<Entry>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OPEN_FLAGS;
    let mut directory = Dir::new(rustix::fs::open(path, flags, Mode::empty())?)?;
    let mut entries = Vec::new();
    let mut encoded_bytes = 0;
    while let Some(entry) = directory.read() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match statat(directory.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => FileType::from_raw_mode(status.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            kind => kind,
        };
        let name = name.to_string_lossy().into_owned();
        encoded_bytes += name.len() + ENTRY_OVERHEAD_BYTES;
        if encoded_bytes > PAYLOAD_MAX_BYTES {
            return Err(Errno::OVERFLOW);
        }
        entries.push(Entry {
            name,
            kind: file_kind(kind),
        });
    }
    Ok(entries)
}

fn make_dir(path: &Path, recursive: bool, mode: u32) -> Result<(), Errno> {
    let make = |path: &Path| rustix::fs::mkdir(path, Mode::from_raw_mode(mode & 0o7777));
    if !recursive {
        return make(path);
    }
    // Up to the first directory that exists, then down again.
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match make(ancestor) {
            Ok(()) => break,
            Err(Errno::NOENT) => missing.push(ancestor),
            Err(errno) => {
                accept_directory(ancestor, errno)?;
                break;
            }
        }
    }
    for directory in missing.into_iter().rev() {
        make(directory).or_else(|errno| accept_directory(directory, errno))?;
    }
    Ok(())
}

/// A directory that could not be made is fine when it is there.
fn accept_directory(path: &Path, errno: Errno) -> Result<(), Errno> {
    match statat(CWD, path, AtFlags::empty()) {
        Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::Directory => Ok(()),
        _ => Err(errno),
    }
}

fn stat(path: &Path, follow: bool) -> Result<Metadata, Errno> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(metadata(&statx(CWD, path, flags, wanted)?))
}

pub(crate) fn metadata(status: &Statx) -> Metadata {
    let has_birth = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::BTIME);
    Metadata {
        kind: file_kind(FileType::from_raw_mode(status.stx_mode.into())),
        size: status.stx_size,
        mode: status.stx_mode.into(),
        uid: status.stx_uid,
        gid: status.stx_gid,
        nlink: status.stx_nlink.into(),
        inode: status.stx_ino,
        device: makedev(status.stx_dev_major, status.stx_dev_minor),
        rdev: makedev(status.stx_rdev_major, status.stx_rdev_minor),
        block_size: status.stx_blksize.into(),
        blocks: status.stx_blocks,
        accessed_ms: milliseconds(&status.stx_atime),
        modified_ms: milliseconds(&status.stx_mtime),
        changed_ms: milliseconds(&status.stx_ctime),
        created_ms: has_birth.then(|| milliseconds(&status.stx_btime)),
    }
}

fn milliseconds(time: &StatxTimestamp) -> i64 {
    time.tv_sec
        .saturating_mul(1000)
        .saturating_add(i64::from(time.tv_nsec) / 1_000_000)
}

pub(crate) fn file_kind(kind: FileType) -> FileKind {
    match kind {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::RegularFile | FileType::Unknown => FileKind::File,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn directories_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        assert_eq!(make_dir(&top.join("a/b"), false, 0o777), Err(Errno::NOENT));
        make_dir(&top.join("a/b/c"), true, 0o700).unwrap();
        make_dir(&top.join("a/b/c"), true, 0o700).unwrap();
        make_dir(&top.join("a/b/../b/c/"), true, 0o700).unwrap();
        assert_eq!(make_dir(&top.join("a"), false, 0o777), Err(Errno::EXIST));
        fs::write(top.join("file"), "").unwrap();
        assert_eq!(make_dir(&top.join("file"), true, 0o777), Err(Errno::EXIST));
        assert_eq!(
            make_dir(&top.join("file/below"), true, 0o777),
            Err(Errno::NOTDIR)
        );
        symlink("a", top.join("link")).unwrap();
        make_dir(&top.join("link"), true, 0o777).unwrap();
        make_dir(Path::new("/"), true, 0o777).unwrap();
        let endless = format!("/tmp{}", "/x".repeat(100_000));
        assert_eq!(
            make_dir(Path::new(&endless), true, 0o777),
            Err(Errno::NAMETOOLONG)
        );
    }

    #[test]
    fn files_are_described() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let link = directory.path().join("link");
        fs::write(&file, "hello").unwrap();
        symlink(&file, &link).unwrap();
        let described = stat(&link, true).unwrap();
        assert_eq!((described.kind, described.size), (FileKind::File, 5));
        assert_eq!(described.mode & 0o170_000, 0o100_000);
        assert_eq!(described.nlink, 1);
        assert!(described.modified_ms > 1_600_000_000_000);
        assert_eq!(stat(&link, false).unwrap().kind, FileKind::Symlink);
        assert_eq!(
            stat(Path::new("/dev/null"), true).unwrap().kind,
            FileKind::CharDevice
        );
        let mut entries = read_dir(directory.path()).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let kinds: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.kind)).collect();
        assert_eq!(
            kinds,
            [("file", FileKind::File), ("link", FileKind::Symlink)]
        );
        assert_eq!(read_dir(&file), Err(Errno::NOTDIR));
    }
}
