//! `seccomp(2)`.
#![expect(unsafe_code, reason = "system call without a wrapper")]

use std::io;

/// Installs a filter on the calling thread. See `seccomp(2)`.
///
/// Never sets `no_new_privs`, which would break `sudo`: the caller needs `CAP_SYS_ADMIN` in its
/// user name space instead.
///
/// # Errors
/// As `seccomp(2)`; `EACCES` without the capability.
pub(crate) fn load(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len())
            .map_err(|_| io::Error::other("seccomp filter is too long"))?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points at `len` instructions that outlive the call; the kernel copies
    // and checks them and writes nothing back.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
