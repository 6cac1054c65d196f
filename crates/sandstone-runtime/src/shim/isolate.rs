//! The shim's half of what is done before the sandbox is known.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal};

use super::mounts::{LOWER, SCRATCH, attach, new_file_system};
use super::{At, STEP_LIMIT, SetupError, child};
use crate::config::IDS_PER_SLOT;
use crate::control::{Channel, Order, Prepare, Progress};
use crate::network::link;
use crate::process::{send_kill, wait_gone};
use crate::sys::clone::{Cloned, clone_child, own_mounts};
use crate::sys::exec::{exit_now, wait_to_be_killed};

/// A parked sandbox, as its shim sees it.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// PID 1, with the number it has on the host.
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Channel,
    /// User name space that mounts are mapped by.
    pub(super) idmap: OwnedFd,
}

/// Makes the name spaces and all that lives in them, and leaves the child waiting.
pub(super) fn isolate(prepare: &Prepare, cgroups: Vec<OwnedFd>) -> Result<Sandbox, SetupError> {
    leave_host_mounts()?;
    let dev = make_dev(prepare.uid_base)?;
    let (ours, theirs) = Channel::pair().at("make a socket pair")?;
    let target = prepare.unified_cgroup.then(|| cgroups.first()).flatten();
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET;
    let owner = Uid::from_raw(prepare.uid_base);
    let cloned = clone_as(owner, namespaces, target.map(AsFd::as_fd)).at("make the name spaces")?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        child::run(theirs, &dev, prepare)
    };
    drop((theirs, dev));

    // Until the child is in its groups nobody else would find it: it must not be lost on errors.
    // It ends when `ours` is dropped, since it waits for a message.
    let base = prepare.uid_base;
    write_maps(pid, &format!("0 {base} {IDS_PER_SLOT}\n"))?;
    if !prepare.unified_cgroup {
        for procs in cgroups {
            fs::File::from(procs)
                .write_all(pid.as_raw_nonzero().to_string().as_bytes())
                .at("join the cgroup")?;
        }
    }
    raise_oom_score(pid)?;
    ours.send(&Order::Go, &[]).at("release the child")?;

    // The child mounts its file systems meanwhile.
    let network = fs::File::open(format!("/proc/{}/ns/net", pid.as_raw_nonzero()))
        .at("open the network name space")?;
    link::create_pair(&prepare.link, network.as_fd())
        .at(format!("make the link {}", prepare.link.name))?;
    harden_link(&prepare.link.name)?;
    ours.send(&Order::Linked(prepare.link.clone()), &[])
        .at("announce the network")?;
    let idmap = make_idmap(base)?;

    let deadline = Some(Instant::now() + STEP_LIMIT);
    match ours.receive(deadline).at("wait for the child")? {
        Some((Progress::Parked { .. }, _)) => Ok(Sandbox {
            pid,
            pidfd,
            channel: ours,
            idmap,
        }),
        other => Err(SetupError::from_peer(other.map(|(message, _)| message))),
    }
}

/// Replaces the shim's whole view of files by a small file system of its own, with the proc and
/// sys that a user name space must see before it may mount its own.
fn leave_host_mounts() -> Result<(), SetupError> {
    own_mounts().at("make a mount name space")?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .at("separate from the host's mounts")?;
    let root = new_file_system(
        "tmpfs",
        &[("mode", "755"), ("size", "64k"), ("nr_inodes", "64")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .at("make a root")?;
    // Any directory will do; this one exists everywhere.
    attach(&root, "/proc").at("attach the root")?;
    rustix::process::fchdir(&root).at("enter the root")?;
    rustix::process::pivot_root(".", ".").at("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leave the host's mounts")?;
    rustix::process::chdir("/").at("enter the root")?;
    for dir in [
        "/proc", "/sys", "/dev", "/run", "/root", "/empty", LOWER, SCRATCH,
    ] {
        rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).at(format!("make {dir}"))?;
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    for (name, target, extra) in [
        ("proc", "/proc", MountAttrFlags::empty()),
        ("sysfs", "/sys", MountAttrFlags::MOUNT_ATTR_RDONLY),
    ] {
        new_file_system(name, &[], attributes | extra)
            .and_then(|mount| attach(mount, target))
            .at(format!("mount {name}"))?;
    }
    Ok(())
}

/// The sandbox's `/dev`. A user name space cannot make nodes, so the shim does; the file system
/// is the sandbox's alone.
fn make_dev(uid_base: u32) -> Result<OwnedFd, SetupError> {
    const NODES: [(&str, u32, u32); 6] = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    const LINKS: [(&str, &str); 5] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    let dev = new_file_system(
        "tmpfs",
        &[("mode", "755"), ("size", "1m"), ("nr_inodes", "1k")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .at("mount /dev")?;
    let owner = |path: &str| {
        rustix::fs::chownat(
            &dev,
            path,
            Some(Uid::from_raw(uid_base)),
            Some(Gid::from_raw(uid_base)),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW | rustix::fs::AtFlags::EMPTY_PATH,
        )
    };
    let make = || {
        owner("")?;
        for (name, major, minor) in NODES {
            rustix::fs::mknodat(
                &dev,
                name,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                rustix::fs::makedev(major, minor),
            )?;
            owner(name)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
            owner(name)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &dev, name)?;
            owner(name)?;
        }
        Ok::<_, rustix::io::Errno>(())
    };
    make().at("fill /dev")?;
    Ok(dev)
}

/// Makes the child with the effective user `uid` and all capabilities.
///
/// The effective user who makes a user name space is charged for what is counted in it: inotify
/// instances, locked memory, pending signals, message queues. If that were host root, all
/// sandboxes would share one allowance, and one could use it up.
fn clone_as(
    uid: Uid,
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    rustix::thread::set_thread_res_uid(None, uid, None)?;
    let mut capabilities = rustix::thread::capabilities(None)?;
    capabilities.effective = capabilities.permitted;
    rustix::thread::set_capabilities(None, capabilities)?;
    let cloned = clone_child(namespaces, cgroup)?;
    if matches!(cloned, Cloned::Parent { .. }) {
        rustix::thread::set_thread_res_uid(None, Uid::ROOT, None)?;
    }
    Ok(cloned)
}

fn write_maps(pid: Pid, map: &str) -> Result<(), SetupError> {
    for kind in ["uid_map", "gid_map"] {
        // One write: the kernel takes no second one.
        fs::write(format!("/proc/{}/{kind}", pid.as_raw_nonzero()), map)
            .at(format!("write the {kind}"))?;
    }
    Ok(())
}

/// A server may be protected from the killer of processes when memory runs out; a sandbox, which
/// inherits the score, must not be.
fn raise_oom_score(pid: Pid) -> Result<(), SetupError> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    let score = fs::read_to_string(&path).at("read the OOM score")?;
    if score.trim_start().starts_with('-') {
        fs::write(&path, "0").at("reset the OOM score")?;
    }
    Ok(())
}

/// A link is used with IPv4 and its own addresses only, whatever the host's defaults are.
fn harden_link(name: &str) -> Result<(), SetupError> {
    for (family, setting, value) in [("ipv4", "rp_filter", "1"), ("ipv6", "disable_ipv6", "1")] {
        match fs::write(
            format!("/proc/sys/net/{family}/conf/{name}/{setting}"),
            value,
        ) {
            // A host without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.at(format!("set {setting} of {name}"))?,
        }
    }
    Ok(())
}

/// The user name space that mounts are mapped by: on disk, ids are those inside the sandbox.
///
/// It is not the sandbox's own, because overlayfs does its work as host root, whom the upper
/// layer must be able to represent: id 65,536 on disk stands for host root.
fn make_idmap(uid_base: u32) -> Result<OwnedFd, SetupError> {
    let shim = rustix::process::getpid();
    let Cloned::Parent { pid, pidfd } =
        clone_child(libc::CLONE_NEWUSER, None).at("make the mapping name space")?
    else {
        hold_name_space(shim)
    };
    let map = format!("0 {uid_base} {IDS_PER_SLOT}\n{IDS_PER_SLOT} 0 1\n");
    let made = write_maps(pid, &map).and_then(|()| {
        rustix::fs::openat(
            CWD,
            format!("/proc/{}/ns/user", pid.as_raw_nonzero()),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at("open the mapping name space")
    });
    send_kill(&pidfd)
        .and_then(|()| wait_gone(&pidfd, Instant::now() + STEP_LIMIT))
        .at("end the mapping process")?;
    made
}

/// The life of the mapping process: it must not survive the shim either.
fn hold_name_space(shim: Pid) -> ! {
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if bound.is_err() || rustix::process::getppid() != Some(shim) {
        exit_now(1);
    }
    wait_to_be_killed()
}
