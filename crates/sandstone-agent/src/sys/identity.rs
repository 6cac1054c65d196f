//! Per-thread identity for file access. The raw calls change the calling thread only, unlike the C
//! library's `setuid` family.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::set_thread_groups;

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: Uid,
    /// Primary group id.
    pub(crate) gid: Gid,
    /// All group ids, the primary one included.
    pub(crate) groups: Vec<Gid>,
}

/// Makes file access of this thread that of `identity`: ownership of new files, permission
/// checks, and, for a user other than root, no capability that overrides them. Signals and process
/// credentials stay root's, so the thread can come back by another call. `setfsuid(2)`,
/// `setfsgid(2)`, `setgroups(2)`, `capabilities(7)` "Effect of user ID changes".
///
/// # Errors
/// `EPERM` when the kernel did not take the identity; the thread must not touch files then.
pub(crate) fn assume_file_identity(identity: &Identity) -> Result<(), Errno> {
    set_thread_groups(&identity.groups)?;
    let (uid, gid) = (identity.uid.as_raw(), identity.gid.as_raw());
    // The two calls report no error, so an impossible id is used to read back what is in force.
    // SAFETY: both calls take and return plain integers.
    let (uid_now, gid_now) = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if uid_now.cast_unsigned() == uid && gid_now.cast_unsigned() == gid {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// Makes this thread `identity` in every respect, for good: what it connects to sees that user.
/// Raw calls, which change this thread only. `setresuid(2)`, `setresgid(2)`, `setgroups(2)`
///
/// # Errors
/// Those of the calls; the thread must not act for the user then.
pub(crate) fn assume_identity(identity: &Identity) -> Result<(), Errno> {
    let Identity { uid, gid, groups } = identity;
    set_thread_groups(groups)?;
    rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
    rustix::thread::set_thread_res_uid(*uid, *uid, *uid)
}
