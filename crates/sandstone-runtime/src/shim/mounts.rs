//! Mounts, made as detached descriptors and put into place.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
};

use super::{At, SetupError};
use crate::sys::mount_attr::{Attributes, set_attributes};

/// Where the shim attaches the layers of the root: a mounted layer can be named in any kernel,
/// a descriptor only since Linux 6.13.
pub(super) const LOWER: &str = "/lower";
/// See [`LOWER`].
pub(super) const SCRATCH: &str = "/scratch";

/// Makes a file system of type `name`, detached.
pub(super) fn new_file_system(
    name: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What tables of mounts show as the device.
    rustix::mount::fsconfig_set_string(&context, "source", name)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Changes the size of the tmpfs at `path`.
pub(super) fn resize(path: &str, bytes: u64) -> io::Result<()> {
    let context = rustix::mount::fspick(CWD, path, FsPickFlags::FSPICK_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", bytes.to_string())?;
    rustix::mount::fsconfig_reconfigure(&context)?;
    Ok(())
}

/// Attaches a detached mount to a directory or file.
pub(super) fn attach(mount: impl AsFd, target: &str) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Attaches a detached mount to an open directory.
pub(super) fn attach_at(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// Moves the mount at `source`, with what is mounted below it, to an open directory.
pub(super) fn relocate(source: &str, target: impl AsFd) -> io::Result<()> {
    rustix::mount::move_mount(
        CWD,
        source,
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// A second, detached mount of what is at `path`.
pub(super) fn clone_tree(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )?)
}

/// Makes owners on a detached mount appear as the sandbox's. Device nodes on it are dead: an
/// image or a volume may contain any.
pub(super) fn idmap(mount: impl AsFd, userns: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    set_attributes(
        mount,
        Attributes {
            set: set | libc::MOUNT_ATTR_NODEV,
            idmap: Some(userns),
        },
    )
}

/// The sandbox's root: the base below, the scratch file system above.
pub(super) fn overlay(
    base: &OwnedFd,
    scratch: &OwnedFd,
    userns: BorrowedFd<'_>,
) -> Result<OwnedFd, SetupError> {
    // Made before the owners are mapped: the root directory belongs to the sandbox's root.
    for (directory, mode) in [("upper", 0o755), ("work", 0o700)] {
        match rustix::fs::mkdirat(scratch, directory, Mode::from_raw_mode(mode)) {
            // A layer from a template has them already.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).at("make the directories of the writable layer"),
        }
    }
    idmap(base, userns, libc::MOUNT_ATTR_RDONLY).at("map the owners of the base")?;
    idmap(scratch, userns, 0).at("map the owners of the scratch file system")?;
    attach(base, LOWER).at("attach the base")?;
    attach(scratch, SCRATCH).at("attach the scratch file system")?;
    let upper = format!("{SCRATCH}/upper");
    let work = format!("{SCRATCH}/work");
    let make = |volatile: bool| {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [
            ("source", "sandstone"),
            ("lowerdir", LOWER),
            ("upperdir", &upper),
            ("workdir", &work),
            // Directories of the base can be renamed, as everywhere else.
            ("redirect_dir", "on"),
            ("metacopy", "off"),
            ("index", "off"),
        ] {
            rustix::mount::fsconfig_set_string(&context, key, value)?;
        }
        if volatile {
            rustix::mount::fsconfig_set_flag(&context, "volatile")?;
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    // The scratch file system ends with the sandbox, so nothing on it needs to reach a disk.
    // Kernels before 5.10 cannot be told.
    make(true)
        .or_else(|errno| match errno {
            rustix::io::Errno::INVAL => make(false),
            other => Err(other),
        })
        .at("mount the root")
}

/// The directory `path` below `root`, made if it is missing, never outside whatever links the
/// image contains.
pub(super) fn mount_point(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let open = |path: &str| {
        rustix::fs::openat2(
            root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut directory = open("/")?;
    let mut prefix = String::new();
    for component in path.split('/').filter(|component| !component.is_empty()) {
        if component == "." || component == ".." {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        prefix.push('/');
        prefix.push_str(component);
        directory = match open(&prefix) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(0o755))?;
                open(&prefix)?
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn mount_points_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let inside = dir.path().join("root");
        fs::create_dir(&outside).unwrap();
        fs::create_dir_all(inside.join("real")).unwrap();
        symlink("/real", inside.join("absolute")).unwrap();
        symlink("../../outside", inside.join("climbing")).unwrap();
        symlink(&outside, inside.join("escaping")).unwrap();
        symlink("/nowhere", inside.join("dangling")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        fs::write(inside.join("file"), b"").unwrap();
        let root = OwnedFd::from(fs::File::open(&inside).unwrap());

        mount_point(&root, "/a/b//c").unwrap();
        assert!(inside.join("a/b/c").is_dir());
        mount_point(&root, "/absolute/x").unwrap();
        assert!(inside.join("real/x").is_dir());
        for path in [
            "/climbing/x",
            "/escaping/x",
            "/dangling/x",
            "/loop/x",
            "/file",
            "/file/x",
            "/a/../../x",
        ] {
            assert!(mount_point(&root, path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
