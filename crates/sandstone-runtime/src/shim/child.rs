//! The process that becomes PID 1 of the sandbox.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::mounts::{
    attach, attach_at, clone_tree, mount_point, new_file_system, relocate, resize,
};
use super::{At, STEP_LIMIT, SetupError};
use crate::control::{Channel, Order, Prepare, Progress, Start};
use crate::network::link;
use crate::seccomp;
use crate::sys::clone::hide_outer_cgroups;
use crate::sys::exec::{
    close_between, close_on_exec_from, drop_session_keyring, exec_fd, exit_now, place,
    restore_sigpipe,
};
use crate::sys::mount_attr::{Attributes, set_attributes};

/// Numbers from here on are free: the shim has a dozen descriptors at most.
const FREE_FD: i32 = 64;

/// The agent's listening socket and its ready pipe.
const AGENT_SOCKET_FD: i32 = 3;
const AGENT_READY_FD: i32 = 4;

/// What root of the sandbox may have. Docker's default, and with it everything that `sudo`,
/// package managers and servers need.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Files of proc that tell of the host, hidden behind `/dev/null`.
const MASKED_FILES: [&str; 7] = [
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
];

/// Directories that tell of the host, hidden behind an empty one.
const MASKED_DIRECTORIES: [&str; 5] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Parts of proc that control the host.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Settings of the sandbox's own network: no IPv6 but on `lo`, `ping` for everybody, and low
/// ports for everybody, as in other container runtimes. Missing ones do not matter.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 65535"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Lives the child's whole life. `channel` and `dev` are copies of the shim's descriptors.
pub(super) fn run(channel: OwnedFd, dev: &OwnedFd, prepare: &Prepare) -> ! {
    let Ok((channel, dev)) = keep_only(channel, dev) else {
        exit_now(1)
    };
    let Err(error) = live(&channel, &dev, prepare);
    // The shim may be gone: then nobody needs to know.
    let _ = channel.send(&error.report(), &[]);
    exit_now(1)
}

/// Closes everything else that came with the clone, above all the shim's ends of its sockets:
/// their silence is how this process learns that the shim died.
fn keep_only(channel: OwnedFd, dev: &OwnedFd) -> io::Result<(Channel, OwnedFd)> {
    let kept = rustix::io::fcntl_dupfd_cloexec(&channel, FREE_FD)?;
    let dev = rustix::io::fcntl_dupfd_cloexec(dev, FREE_FD)?;
    let null = rustix::fs::openat(&dev, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for standard in 0..=2 {
        place(&null, standard)?;
    }
    // Closed below by number, like everything that the clone has copied.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(null);
    let _ = std::os::fd::IntoRawFd::into_raw_fd(channel);
    close_between(3, FREE_FD.cast_unsigned() - 1)?;
    Ok((Channel::from_fd(kept), dev))
}

fn live(channel: &Channel, dev: &OwnedFd, prepare: &Prepare) -> Result<Infallible, SetupError> {
    let filter = seccomp::decode(&prepare.seccomp);
    let (Order::Go, _) = next_order(channel)? else {
        return Err(unexpected());
    };
    become_root()?;
    hide_outer_cgroups().at("make a cgroup name space")?;
    mount_kernel_file_systems(dev, prepare.unified_cgroup)?;
    for (path, value) in SETTINGS {
        // An older kernel, or one without IPv6.
        let _ = fs::write(path, value);
    }
    let (Order::Linked(network), _) = next_order(channel)? else {
        return Err(unexpected());
    };
    let _ = fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    link::configure_sandbox(&network).at("configure the network")?;
    restrict_kernel_file_systems()?;
    channel
        .send(&Progress::Parked { pid: 1 }, &[])
        .at("report")?;

    let Some((order, fds)) = channel.receive(None).at("wait for work")? else {
        exit_now(0)
    };
    let Order::Start(start) = order else {
        return Err(unexpected());
    };
    let mut fds = fds.into_iter();
    let (Some(root), Some(socket), Some(ready), Some(agent)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(unexpected());
    };
    bound_memory_file_systems(start.memory_bytes)?;
    enter_root(&root, &start, fds.collect())?;
    drop(root);
    rustix::system::sethostname(start.hostname.as_bytes()).at("set the host name")?;
    set_resource_limits(start.open_files);
    // Its own session, so that it can never get the server's terminal.
    rustix::process::setsid().at("start a session")?;
    drop_session_keyring();
    become_agent(&socket, &ready, &agent, &filter)
}

fn next_order(channel: &Channel) -> Result<(Order, Vec<OwnedFd>), SetupError> {
    match channel
        .receive(Some(Instant::now() + STEP_LIMIT))
        .at("wait for the shim")?
    {
        Some(message) => Ok(message),
        // The shim is gone.
        None => exit_now(1),
    }
}

fn unexpected() -> SetupError {
    SetupError::new("set up", io::Error::other("unexpected message"))
}

/// Changes from host root, who has no name in here, to the sandbox's root, and forgets the
/// server's groups.
fn become_root() -> Result<(), SetupError> {
    rustix::thread::set_thread_groups(&[]).at("drop the groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at("set the group")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at("set the user")
}

/// Mounts what the kernel provides into the shim's small root, from where it moves into the real
/// one later.
fn mount_kernel_file_systems(dev: &OwnedFd, unified_cgroup: bool) -> Result<(), SetupError> {
    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let nodev = nosuid | MountAttrFlags::MOUNT_ATTR_NODEV;
    let plain = nodev | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = plain | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = |name: &str, options: &[(&str, &str)], attributes, target: &str| {
        new_file_system(name, options, attributes)
            .and_then(|mount| attach(mount, target))
            .at(format!("mount {name} on {target}"))
    };
    mount("proc", &[], plain, "/proc")?;
    mount("sysfs", &[], read_only, "/sys")?;
    if unified_cgroup {
        mount("cgroup2", &[], read_only, "/sys/fs/cgroup")?;
    }
    attach(dev, "/dev").at("attach /dev")?;
    mount(
        "devpts",
        &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
        // The terminals are device nodes.
        nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "/dev/pts",
    )?;
    // Bounded once the memory limit is known.
    mount("tmpfs", &[("mode", "1777")], plain, "/dev/shm")?;
    mount("mqueue", &[], plain, "/dev/mqueue")?;
    mount("tmpfs", &[("mode", "755")], nodev, "/run")
}

/// Files in memory count towards the sandbox's limit. If they could reach it, no process could
/// start any more to remove them.
fn bound_memory_file_systems(memory_bytes: u64) -> Result<(), SetupError> {
    for (path, bytes) in [("/dev/shm", memory_bytes / 2), ("/run", memory_bytes / 8)] {
        resize(path, bytes).at(format!("bound the size of {path}"))?;
    }
    Ok(())
}

fn restrict_kernel_file_systems() -> Result<(), SetupError> {
    let hide = |what: &str, path: &str| {
        let Ok(cover) = clone_tree(what) else {
            return Err(io::Error::other("the cover is missing"));
        };
        set_read_only(&cover)?;
        ignore_missing(attach(cover, path))
    };
    for path in MASKED_FILES {
        hide("/dev/null", path).at(format!("hide {path}"))?;
    }
    for path in MASKED_DIRECTORIES {
        hide("/empty", path).at(format!("hide {path}"))?;
    }
    for path in READ_ONLY {
        let protect = || {
            let same = clone_tree(path)?;
            set_read_only(&same)?;
            attach(same, path)
        };
        ignore_missing(protect()).at(format!("protect {path}"))?;
    }
    Ok(())
}

fn set_read_only(mount: &OwnedFd) -> io::Result<()> {
    set_attributes(
        mount,
        Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            idmap: None,
        },
    )
}

/// Which files proc and sys have depends on the kernel.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Puts everything into the root and makes it the only one.
fn enter_root(root: &OwnedFd, start: &Start, trees: Vec<OwnedFd>) -> Result<(), SetupError> {
    attach(root, "/root").at("attach the root")?;
    let directory = rustix::fs::openat(
        CWD,
        "/root",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at("open the root")?;
    for path in ["/proc", "/sys", "/dev", "/run"] {
        mount_point(&directory, path)
            .and_then(|target| relocate(path, target))
            .at(format!("move {path} into the root"))?;
    }
    for (place, tree) in start.mounts.iter().zip(trees) {
        mount_point(&directory, &place.path)
            .and_then(|target| attach_at(tree, target))
            .at(format!("mount at {}", place.path))?;
    }
    rustix::process::fchdir(&directory).at("enter the root")?;
    rustix::process::pivot_root(".", ".").at("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leave the outer root")?;
    rustix::process::chdir("/").at("enter the root")
}

/// Limits that do not come from the cgroup. Without the right to raise them they stay as they are.
///
/// The agent hands its soft limit of open files to the processes that it starts, and takes the hard
/// one for itself.
fn set_resource_limits(open_files: u32) {
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    let wanted = u64::from(open_files);
    files.current = Some(files.maximum.map_or(wanted, |most| most.min(wanted)));
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    // One byte means: not even to a program that the host pipes core dumps to, which would parse
    // the sandbox's memory as host root.
    let none = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
}

/// Gives up what only the set-up needed and executes the agent.
fn become_agent(
    socket: &OwnedFd,
    ready: &OwnedFd,
    agent: &OwnedFd,
    filter: &[libc::sock_filter],
) -> Result<Infallible, SetupError> {
    // Out of the way of the numbers that the agent expects.
    let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FREE_FD);
    let (socket, ready, agent) = (
        away(socket).at("keep the socket")?,
        away(ready).at("keep the ready pipe")?,
        away(agent).at("keep the agent")?,
    );
    place(&socket, AGENT_SOCKET_FD).at("place the socket")?;
    place(&ready, AGENT_READY_FD).at("place the ready pipe")?;
    close_on_exec_from(AGENT_READY_FD.cast_unsigned() + 1).at("close descriptors")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    restore_sigpipe();

    for capability in CapabilitySet::all().difference(CAPABILITIES).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Newer than this kernel.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(SetupError::new("drop capabilities", errno)),
        }
    }
    rustix::thread::clear_ambient_capability_set().at("drop ambient capabilities")?;
    // The filter is loaded while CAP_SYS_ADMIN lasts: without it the kernel would demand
    // `no_new_privs`, and `sudo` would be dead.
    crate::sys::seccomp::load(filter).at("load the system call filter")?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CAPABILITIES,
            permitted: CAPABILITIES,
            inheritable: CapabilitySet::empty(),
        },
    )
    .at("set capabilities")?;
    exec_fd(agent.as_fd(), c"sandstone-agent").at("execute the agent")
}
