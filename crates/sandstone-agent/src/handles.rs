//! The files that one connection has open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::event::PollFlags;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Statx, StatxFlags};
use rustix::fs::{flock, ftruncate, futimens, statx};
use rustix::io::Errno;
use sandstone_protocol::message::{
    Answer, HANDLE_BYTES_MAX, HandleId, HandleOperation, OpenOptions, SeekOrigin,
};

use crate::changes::timestamps;
use crate::files::{OPEN_FLAGS, Place, file_kind, kind_of, metadata};
use crate::lock::lock;
use crate::stream::Waker;
use crate::transfer::is_ready;

/// Open files of a connection. A host shares it among its clients and gives each far fewer.
const HANDLES_MAX: usize = 16_384;

/// All open files of a connection, those that are just being opened among them.
#[derive(Debug, Default)]
pub(crate) struct Handles(Mutex<HashMap<HandleId, Arc<Handle>>>);

/// An open file, or one that is being opened.
pub(crate) struct Handle {
    id: HandleId,
    file: OnceLock<OpenFile>,
    closed: AtomicBool,
    /// Grows when waits for the lock are to end.
    unlocks: AtomicU64,
}

struct OpenFile {
    fd: OwnedFd,
    /// What a blocked read or write sleeps on; regular files and directories never block.
    waker: Option<Arc<Waker>>,
}

/// A lock that somebody else's stands against.
#[derive(Debug)]
pub(crate) struct LockWait {
    handle: Arc<Handle>,
    operation: FlockOperation,
    /// [`Handle::unlocks`] when the lock was asked for.
    unlocks: u64,
}

/// What came of an operation.
pub(crate) enum Outcome {
    /// It is done.
    Answer(Answer),
    /// It waits.
    Wait(LockWait),
}

impl Handles {
    /// Takes note of a file that is about to be opened.
    ///
    /// # Errors
    /// `EMFILE` when there are too many, `EEXIST` when the id is in use.
    pub(crate) fn reserve(&self, id: HandleId) -> Result<Arc<Handle>, Errno> {
        let mut table = lock(&self.0);
        if table.len() >= HANDLES_MAX {
            return Err(Errno::MFILE);
        }
        match table.entry(id) {
            Entry::Occupied(_) => Err(Errno::EXIST),
            Entry::Vacant(place) => Ok(Arc::clone(place.insert(Arc::new(Handle {
                id,
                file: OnceLock::new(),
                closed: AtomicBool::new(false),
                unlocks: AtomicU64::new(0),
            })))),
        }
    }

    /// An open file.
    pub(crate) fn get(&self, id: HandleId) -> Option<Arc<Handle>> {
        lock(&self.0).get(&id).cloned()
    }

    /// Forgets a file and wakes who waits on it. It is closed when the result is dropped and
    /// nobody works on it any more.
    pub(crate) fn take(&self, id: HandleId) -> Option<Arc<Handle>> {
        let handle = lock(&self.0).remove(&id)?;
        handle.close();
        Some(handle)
    }

    /// Forgets all files.
    pub(crate) fn close_all(&self) {
        let all = std::mem::take(&mut *lock(&self.0));
        all.values().for_each(|handle| handle.close());
    }
}

impl Handle {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(waker) = self.file.get().and_then(|file| file.waker.as_ref()) {
            waker.wake();
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Its id.
    pub(crate) fn id(&self) -> HandleId {
        self.id
    }

    /// Ends waits for its lock that were asked for before now.
    pub(crate) fn end_lock_waits(&self) {
        self.unlocks.fetch_add(1, Ordering::SeqCst);
    }

    /// To be asked when a lock is asked for: see [`Self::perform`].
    pub(crate) fn unlocks(&self) -> u64 {
        self.unlocks.load(Ordering::SeqCst)
    }

    /// Opens it, as the thread's user.
    ///
    /// # Errors
    /// The system's; `EINVAL` for options that contradict each other, `ECANCELED` when it was
    /// closed meanwhile.
    pub(crate) fn open(
        &self,
        path: &std::path::Path,
        options: OpenOptions,
    ) -> Result<Answer, Errno> {
        let mode = Mode::from_raw_mode(options.mode.unwrap_or(0o666) & 0o7777);
        let fd = rustix::fs::open(path, open_flags(options)?, mode)?;
        let kind = kind_of(&fd)?;
        let waker = match kind {
            FileType::RegularFile | FileType::Directory => None,
            _ => Some(Waker::new()?),
        };
        let _ = self.file.set(OpenFile { fd, waker });
        if self.is_closed() {
            return Err(Errno::CANCELED);
        }
        Ok(Answer::Opened {
            kind: file_kind(kind),
        })
    }

    /// Does something with it. `unlocks` is [`Self::unlocks`] from when it was asked for.
    ///
    /// # Errors
    /// The system's; `ECANCELED` when it was closed meanwhile.
    pub(crate) fn perform(
        self: &Arc<Self>,
        operation: &HandleOperation,
        unlocks: u64,
        place: &mut Place,
    ) -> Result<Outcome, Errno> {
        let file = self.file.get().ok_or(Errno::BADF)?;
        let fd = file.fd.as_fd();
        let answer = match operation {
            HandleOperation::Read { length } => Answer::Bytes(self.read(file, *length, place)?),
            HandleOperation::Write { bytes } => Answer::Written {
                bytes: self.write(file, bytes, place)?,
            },
            HandleOperation::Seek { offset, origin } => {
                use rustix::fs::SeekFrom;
                let to = match origin {
                    SeekOrigin::Start => {
                        SeekFrom::Start(u64::try_from(*offset).map_err(|_| Errno::INVAL)?)
                    }
                    SeekOrigin::Current => SeekFrom::Current(*offset),
                    SeekOrigin::End => SeekFrom::End(*offset),
                };
                Answer::Position(rustix::fs::seek(fd, to)?)
            }
            HandleOperation::Stat => Answer::Metadata(metadata(&describe(fd)?)),
            HandleOperation::Sync { data_only } => {
                if *data_only {
                    rustix::fs::fdatasync(fd)?;
                } else {
                    rustix::fs::fsync(fd)?;
                }
                Answer::Done
            }
            HandleOperation::Truncate { length } => {
                ftruncate(fd, *length)?;
                Answer::Done
            }
            HandleOperation::Lock { exclusive } => {
                let wait = LockWait {
                    handle: Arc::clone(self),
                    operation: if *exclusive {
                        FlockOperation::NonBlockingLockExclusive
                    } else {
                        FlockOperation::NonBlockingLockShared
                    },
                    unlocks,
                };
                match wait.attempt() {
                    None => return Ok(Outcome::Wait(wait)),
                    Some(result) => result?,
                }
                Answer::Done
            }
            HandleOperation::Unlock => {
                flock(fd, FlockOperation::Unlock)?;
                Answer::Done
            }
            HandleOperation::SetTimes { accessed, modified } => {
                futimens(fd, &timestamps(*accessed, *modified)?)?;
                Answer::Done
            }
        };
        Ok(Outcome::Answer(answer))
    }

    fn read(&self, file: &OpenFile, length: u32, place: &mut Place) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; (length as usize).min(HANDLE_BYTES_MAX)];
        loop {
            self.wait(file, PollFlags::IN, place)?;
            match rustix::io::read(&file.fd, &mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Writes all, unless something hinders it half-way.
    fn write(&self, file: &OpenFile, bytes: &[u8], place: &mut Place) -> Result<u32, Errno> {
        let mut rest = bytes;
        let outcome = loop {
            if rest.is_empty() {
                break Ok(());
            }
            if let Err(errno) = self.wait(file, PollFlags::OUT, place) {
                break Err(errno);
            }
            match rustix::io::write(&file.fd, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => break Err(errno),
            }
        };
        // The next write tells the error of one that got on before it.
        match (bytes.len() - rest.len(), outcome) {
            (0, Err(errno)) => Err(errno),
            (written, _) => Ok(u32::try_from(written).unwrap_or(u32::MAX)),
        }
    }

    /// Waits until a file that can block does not, or is closed.
    fn wait(&self, file: &OpenFile, events: PollFlags, place: &mut Place) -> Result<(), Errno> {
        let Some(waker) = &file.waker else {
            return Ok(());
        };
        loop {
            waker.clear();
            if self.is_closed() {
                return Err(Errno::CANCELED);
            }
            if is_ready(&file.fd, events) {
                return Ok(());
            }
            place.step_aside();
            waker.sleep(Some((file.fd.as_fd(), events)));
        }
    }
}

impl LockWait {
    /// Tries to get the lock; nothing while somebody else's stands against it.
    pub(crate) fn attempt(&self) -> Option<Result<(), Errno>> {
        let Some(file) = self.handle.file.get() else {
            return Some(Err(Errno::BADF));
        };
        let is_over = || self.handle.is_closed() || self.handle.unlocks() != self.unlocks;
        if is_over() {
            return Some(Err(Errno::CANCELED));
        }
        match flock(&file.fd, self.operation) {
            Ok(()) if is_over() => {
                // The unlock may have come before this lock.
                let _ = flock(&file.fd, FlockOperation::Unlock);
                Some(Err(Errno::CANCELED))
            }
            Ok(()) => Some(Ok(())),
            Err(Errno::WOULDBLOCK | Errno::INTR) => None,
            Err(errno) => Some(Err(errno)),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("id", &self.id)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

fn open_flags(options: OpenOptions) -> Result<OFlags, Errno> {
    let writes = options.write || options.append;
    let access = match (options.read, writes) {
        (true, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
        (false, false) => return Err(Errno::INVAL),
    };
    let makes = options.create || options.create_new;
    if (makes || options.truncate) && !writes {
        return Err(Errno::INVAL);
    }
    let mut flags = access | OPEN_FLAGS;
    flags.set(OFlags::APPEND, options.append);
    flags.set(OFlags::TRUNC, options.truncate);
    flags.set(OFlags::CREATE, makes);
    flags.set(OFlags::EXCL, options.create_new);
    Ok(flags)
}

fn describe(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(fd, c"", AtFlags::EMPTY_PATH, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_counted() {
        let handles = Handles::default();
        for id in 0..u32::try_from(HANDLES_MAX).unwrap() {
            handles.reserve(id).unwrap();
        }
        assert_eq!(handles.reserve(u32::MAX).unwrap_err(), Errno::MFILE);
        assert!(handles.take(5).is_some());
        assert!(handles.take(5).is_none());
        assert_eq!(handles.reserve(6).unwrap_err(), Errno::EXIST);
        let again = handles.reserve(5).unwrap();
        handles.close_all();
        assert!(handles.get(5).is_none());
        assert!(again.is_closed());
    }

    #[test]
    fn a_file_closed_while_it_is_opened_is_not_open() {
        let handles = Handles::default();
        let handle = handles.reserve(1).unwrap();
        handles.take(1).unwrap();
        let options = OpenOptions {
            read: true,
            ..OpenOptions::default()
        };
        let path = std::path::Path::new("/dev/null");
        assert_eq!(handle.open(path, options), Err(Errno::CANCELED));
    }

    #[test]
    fn options_that_contradict_each_other() {
        let none = OpenOptions::default();
        let read = OpenOptions { read: true, ..none };
        for options in [
            none,
            OpenOptions {
                create: true,
                ..read
            },
            OpenOptions {
                create_new: true,
                ..read
            },
            OpenOptions {
                truncate: true,
                ..read
            },
        ] {
            assert_eq!(open_flags(options), Err(Errno::INVAL), "{options:?}");
        }
        assert!(open_flags(read).is_ok());
    }
}
