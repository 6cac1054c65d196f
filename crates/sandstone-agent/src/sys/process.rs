//! Waiting and signals.

use std::mem::MaybeUninit;

use rustix::io::Errno;
use rustix::process::Pid;

/// Makes exited children wait for their reaper. A parent may have left `SIGCHLD` ignored, which
/// survives exec and would lose every status. `signal(2)`
pub(crate) fn keep_exit_statuses() {
    // SAFETY: no handler is installed, so there is nothing that could run at a bad moment.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Blocks until a child has exited, and leaves it to be reaped. `waitid(2)` with `WNOWAIT`.
///
/// # Errors
/// `ECHILD` when there is no child at all, `EINTR`.
pub(crate) fn next_exited() -> Result<Pid, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is writable memory of the right size.
    let result = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOWAIT,
        )
    };
    if result != 0 {
        return Err(super::fork::last_errno());
    }
    // SAFETY: all zeroes is a valid siginfo_t, and waitid(2) has filled in `si_pid`.
    let pid = unsafe { info.assume_init().si_pid() };
    Pid::from_raw(pid).ok_or(Errno::CHILD)
}

/// Sends any signal number. `kill(2)`
///
/// # Errors
/// `EINVAL` for a number that is no signal, `ESRCH`.
pub(crate) fn send_signal(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: plain integers; a `Pid` is positive, so no group and not "everyone" is addressed.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(super::fork::last_errno()),
    }
}
