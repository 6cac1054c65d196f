//! Detached mounts: fsopen(2), fsmount(2), open_tree(2), move_mount(2), umount2(2), unshare(2).
//!
//! A detached mount is in no namespace. Whoever holds the last descriptor, or the namespace it is
//! moved to, keeps the file system alive.
#![expect(unsafe_code, reason = "unshare has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::CWD;
use rustix::io::{Errno, read};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Bytes of the kernel's words that an error repeats.
const MESSAGE_MAX: usize = 512;

/// Mounts `device` without a place. `flags` and `options` are the file system's own.
///
/// # Errors
/// The system's, with the file system's own words if it has any.
pub(crate) fn mount(
    kind: &str,
    device: &Path,
    flags: &[&str],
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configure = || -> Result<OwnedFd, Errno> {
        fsconfig_set_string(context.as_fd(), "source", device)?;
        for flag in flags {
            fsconfig_set_flag(context.as_fd(), *flag)?;
        }
        for (key, value) in options {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    configure().map_err(|errno| explained(errno, context.as_fd()))
}

/// `errno` with what the file system said about it.
fn explained(errno: Errno, context: BorrowedFd<'_>) -> io::Error {
    let error = io::Error::from(errno);
    let mut message = [0; MESSAGE_MAX];
    match read(context, &mut message) {
        Ok(length) if length > 0 => {
            let text = String::from_utf8_lossy(&message[..length]);
            io::Error::new(error.kind(), format!("{error}: {}", text.trim()))
        }
        _ => error,
    }
}

/// Puts a detached mount at `path` in this process's namespace.
///
/// # Errors
/// The system's.
pub(crate) fn attach(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    Ok(move_mount(
        mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Removes the mount at `path`, if there is one.
///
/// # Errors
/// The system's; `EBUSY` while files are open in it.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A detached mount of `directory` below the root of the detached mount `root`. `place` is any
/// directory; nothing is seen there.
///
/// # Errors
/// The system's.
pub(crate) fn subdirectory(root: OwnedFd, directory: &str, place: &Path) -> io::Result<OwnedFd> {
    match open_tree(root.as_fd(), directory, CLONE) {
        Err(Errno::INVAL) => subdirectory_in_namespace(root, directory, place),
        outcome => Ok(outcome?),
    }
}

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Linux before 6.15 clones only what is mounted in the caller's namespace. So this mounts it in
/// one of its own, that ends with the thread: no other process ever sees the mount, or could keep
/// it by copying its namespace at the wrong moment.
fn subdirectory_in_namespace(root: OwnedFd, directory: &str, place: &Path) -> io::Result<OwnedFd> {
    let clone = move || -> io::Result<OwnedFd> {
        // SAFETY: this thread was made for the purpose and ends right after; the flags leave
        // its descriptors shared with the process.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        attach(root.as_fd(), place)?;
        Ok(open_tree(CWD, place.join(directory), CLONE)?)
    };
    thread::scope(|scope| scope.spawn(clone).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, openat};

    use super::*;

    #[test]
    fn a_subdirectory_can_be_had_on_every_kernel() {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts: run as root"
        );
        for old_kernel in [false, true] {
            let root = mount(
                "tmpfs",
                Path::new("none"),
                &[],
                &[],
                MountAttrFlags::MOUNT_ATTR_NOSUID,
            )
            .unwrap();
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::mkdirat(root.as_fd(), "v", mode).unwrap();
            rustix::fs::mkdirat(root.as_fd(), "v/inside", mode).unwrap();
            let place = Path::new("/proc");
            let tree = if old_kernel {
                subdirectory_in_namespace(root, "v", place).unwrap()
            } else {
                subdirectory(root, "v", place).unwrap()
            };
            openat(tree.as_fd(), "inside", OFlags::DIRECTORY, Mode::empty()).unwrap();
            // Still detached: it can be moved to a place, here one of a namespace that ends.
            thread::spawn(move || {
                // SAFETY: the thread ends right after.
                unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
                mount_change(
                    "/",
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
                )
                .unwrap();
                attach(tree.as_fd(), place).unwrap();
                assert!(place.join("inside").is_dir());
            })
            .join()
            .unwrap();
            assert!(!place.join("inside").exists());
        }
    }

    #[test]
    fn a_refused_mount_is_explained() {
        let refused = mount(
            "ext4",
            Path::new("/dev/null"),
            &[],
            &[("commit", "never")],
            MountAttrFlags::empty(),
        )
        .unwrap_err();
        assert!(refused.to_string().contains("commit"), "{refused}");
    }
}
