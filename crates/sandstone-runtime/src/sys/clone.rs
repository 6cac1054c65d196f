//! `clone3(2)`.
#![expect(unsafe_code, reason = "system call without a wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// `CLONE_INTO_CGROUP`, which does not fit the type that libc gives flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of the clone the caller is on.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The caller; the child's id in the caller's pid name space.
    Parent { pid: Pid, pidfd: OwnedFd },
    /// The child.
    Child,
}

/// Makes a child process in new name spaces (`CLONE_NEW*`), like `fork(2)`: the child runs on a
/// copy of the memory. See `clone3(2)`.
///
/// The calling process must have one thread: the copy of a lock that another thread holds would
/// never be released. The shim is the only caller.
///
/// # Errors
/// As `clone3(2)`.
pub(crate) fn clone_child(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.cast_unsigned()) | (libc::CLONE_PIDFD as u64);
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` and `pidfd` outlive the call. Without CLONE_VM the child has its own copy of
    // the address space, and the process has one thread, so the child may go on as Rust code.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .ok_or_else(|| io::Error::other("clone3 returned no process id"))?;
            // SAFETY: on success the kernel stored a new descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Makes the caller's cgroups the root of what it sees. See `unshare(2)`.
///
/// # Errors
/// As `unshare(2)`.
pub(crate) fn hide_outer_cgroups() -> io::Result<()> {
    // SAFETY: affects name spaces only; no descriptors or memory are unshared.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the caller its own copy of the mount table. See `unshare(2)`.
///
/// # Errors
/// As `unshare(2)`.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: affects name spaces only; the working directory, which a new mount name space
    // unshares too, is the process's own already, because it has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
