//! The descriptors that the runtime hands over with `execveat(2)`.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

const LISTENER: RawFd = 3;
const READY: RawFd = 4;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// What the runtime left open for the agent.
#[derive(Debug)]
pub struct InheritedDescriptors {
    /// A listening unix stream socket: descriptor 3.
    pub listener: OwnedFd,
    /// Where to write one byte when about to accept: descriptor 4, if it is open.
    pub ready: Option<OwnedFd>,
}

/// Takes the inherited descriptors and keeps them from child processes. Call it first in `main`,
/// before anything else opens a descriptor.
///
/// # Errors
/// When the listener is not open, or at a second call.
pub fn inherited_descriptors() -> io::Result<InheritedDescriptors> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    Ok(InheritedDescriptors {
        listener: take(LISTENER)?,
        ready: take(READY).ok(),
    })
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) on a number that may be closed only fails with EBADF, which is the question.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open, was opened before this process began, and `TAKEN` lets
    // nobody claim it twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
