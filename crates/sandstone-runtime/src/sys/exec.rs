//! Becoming another program: descriptor numbers, signals, `execveat(2)`.
#![expect(unsafe_code, reason = "system calls without a wrapper")]

use std::convert::Infallible;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;

/// Closes the descriptors from `first` to `last`. See `close_range(2)`.
///
/// Only for the start of a process: owners of these descriptors must never use or drop them
/// afterwards.
///
/// # Errors
/// As `close_range(2)`.
pub(crate) fn close_between(first: u32, last: u32) -> io::Result<()> {
    close_range(first, last, 0)
}

/// Makes every descriptor from `first` on end with an exec. See `close_range(2)`.
///
/// # Errors
/// As `close_range(2)`; `EINVAL` before Linux 5.11.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: passes integers only; the callers uphold that nothing uses closed descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `target` a copy of `fd` that survives an exec, closing what `target` was. `fd` must not
/// be `target`. See `dup2(2)`.
///
/// # Errors
/// As `dup2(2)`.
pub(crate) fn place(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    // SAFETY: passes integers only; the caller upholds that nothing else owns `target`.
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the signal that Rust's runtime ignores its default action back, since ignored signals
/// stay ignored over an exec. See `signal(2)`.
pub(crate) fn restore_sigpipe() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Replaces the session keyring by an empty one, where the kernel has keyrings. See `keyctl(2)`.
pub(crate) fn drop_session_keyring() {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name reads no memory. Failure means that
    // there are no keyrings or no quota for one; the filter forbids their use anyway.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<libc::c_char>(),
        )
    };
}

/// Becomes the program `fd`, with one argument and no environment. See `execveat(2)`.
///
/// # Errors
/// As `execveat(2)`. Does not return otherwise.
pub(crate) fn exec_fd(fd: impl AsFd, argument: &CStr) -> io::Result<Infallible> {
    let arguments = [argument.as_ptr(), ptr::null()];
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: all strings are NUL-terminated, both arrays end with a null pointer, and all of
    // them outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// Ends the process at once, without destructors or handlers, which belong to the process this
/// one was cloned from. See `_exit(2)`.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Sleeps until a signal kills the process. See `pause(2)`.
pub(crate) fn wait_to_be_killed() -> ! {
    loop {
        // SAFETY: takes no arguments.
        unsafe { libc::pause() };
    }
}
