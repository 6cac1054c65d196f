//! Control groups, version 1 (also in hybrid form) and version 2.
//!
//! A sandbox's group is `sandstone/<instance>/<slot>`, in every hierarchy that is used.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags};

use crate::Error;
use crate::error::Step;
use crate::process::send_kill;
use crate::slot::Slot;

/// Pause between two looks at something that ends by itself.
const POLL_PERIOD: Duration = Duration::from_millis(1);

/// Period of the processor limit, microseconds. The kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// What a sandbox may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    /// Thousandths of a processor.
    pub(crate) cpu_millis: u32,
    pub(crate) pids_max: u32,
}

/// The control groups of one instance.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
    instance: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// One tree for each set of controllers.
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
        devices: Option<PathBuf>,
        freezer: Option<PathBuf>,
    },
    /// One tree.
    V2 { root: PathBuf },
}

impl Cgroups {
    /// Finds the host's trees and makes the instance's groups in them.
    pub(crate) fn open(instance: &str) -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").step(|| "list mounts")?;
        let layout = detect(&mounts, |root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        })?;
        let cgroups = Self {
            layout,
            instance: instance.to_owned(),
        };
        for parent in cgroups.parents() {
            make_parent(&parent).step(|| format!("make {}", parent.display()))?;
        }
        if let Layout::V2 { root } = &cgroups.layout {
            // Each level must pass the controllers on before the next one has them.
            let sandstone = root.join("sandstone");
            for dir in [root, &sandstone, &sandstone.join(&cgroups.instance)] {
                write(&dir.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
            }
        }
        Ok(cgroups)
    }

    /// Removes the instance's groups, if no sandbox is left in them.
    pub(crate) fn close(&self) -> Result<(), Error> {
        for parent in self.parents() {
            remove_empty(&parent)?;
            if let Some(shared) = parent.parent() {
                // Other instances may use it, or make it again just now.
                let _ = fs::remove_dir(shared);
            }
        }
        Ok(())
    }

    /// Whether a process can be cloned into a group.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self.layout, Layout::V2 { .. })
    }

    /// Makes a slot's groups. Returns what a process joins them by: the directory (v2), or each
    /// `cgroup.procs` (v1).
    pub(crate) fn create(&self, slot: Slot) -> Result<Vec<OwnedFd>, Error> {
        let dirs = self.dirs(slot);
        for dir in &dirs {
            fs::create_dir(dir).step(|| format!("make {}", dir.display()))?;
        }
        if let Layout::V1 {
            devices: Some(devices),
            ..
        } = &self.layout
        {
            self.restrict_devices(devices, slot)?;
        }
        dirs.iter()
            .map(|dir| {
                let opened = if self.is_unified() {
                    File::open(dir)
                } else {
                    OpenOptions::new()
                        .write(true)
                        .open(dir.join("cgroup.procs"))
                };
                opened
                    .map(OwnedFd::from)
                    .step(|| format!("open {}", dir.display()))
            })
            .collect()
    }

    /// Only the device nodes that a sandbox has. Version 2 would need a BPF program for this;
    /// there, and here too, no sandbox can make a device node or use one of its own file systems.
    fn restrict_devices(&self, devices: &Path, slot: Slot) -> Result<(), Error> {
        let dir = self.dir(devices, slot);
        write(&dir.join("devices.deny"), "a")?;
        // null, zero, full, random, urandom, tty, ptmx, and the terminals of devpts.
        for node in ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*"] {
            write(&dir.join("devices.allow"), &format!("c {node} rw"))?;
        }
        Ok(())
    }

    /// Sets a slot's limits.
    pub(crate) fn limit(&self, slot: Slot, limits: Limits) -> Result<(), Error> {
        let memory = limits.memory_bytes.to_string();
        let pids = limits.pids_max.to_string();
        let quota = (u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000).max(1000);
        match &self.layout {
            Layout::V1 {
                memory: memory_root,
                cpu,
                pids: pids_root,
                ..
            } => {
                let dir = self.dir(memory_root, slot);
                write(&dir.join("memory.limit_in_bytes"), &memory)?;
                // Memory and swap together; missing when the kernel does not account for swap.
                write_if_there(&dir.join("memory.memsw.limit_in_bytes"), &memory)?;
                write(&self.dir(pids_root, slot).join("pids.max"), &pids)?;
                let dir = self.dir(cpu, slot);
                write(&dir.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
                write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())
            }
            Layout::V2 { root } => {
                let dir = self.dir(root, slot);
                write(&dir.join("memory.max"), &memory)?;
                write_if_there(&dir.join("memory.swap.max"), "0")?;
                // One process out of memory must not take the agent with it.
                write_if_there(&dir.join("memory.oom.group"), "0")?;
                write(&dir.join("pids.max"), &pids)?;
                write(&dir.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
            }
        }
    }

    /// Bytes of files that the instance's sandboxes changed in memory and that are not on a disk.
    pub(crate) fn unwritten(&self) -> Result<u64, Error> {
        let (root, keys) = match &self.layout {
            Layout::V1 { memory, .. } => (memory, ["total_dirty", "total_writeback"]),
            Layout::V2 { root } => (root, ["file_dirty", "file_writeback"]),
        };
        let path = root
            .join("sandstone")
            .join(&self.instance)
            .join("memory.stat");
        let text = fs::read_to_string(&path).step(|| format!("read {}", path.display()))?;
        Ok(sum_of(&text, &keys))
    }

    /// How many of a slot's processes the kernel killed because its memory ran out.
    pub(crate) fn oom_kills(&self, slot: Slot) -> Result<u64, Error> {
        let (root, file) = match &self.layout {
            Layout::V1 { memory, .. } => (memory, "memory.oom_control"),
            Layout::V2 { root } => (root, "memory.events"),
        };
        let path = self.dir(root, slot).join(file);
        let text = fs::read_to_string(&path).step(|| format!("read {}", path.display()))?;
        Ok(sum_of(&text, &["oom_kill"]))
    }

    /// Sees to it that the processes of a slot can die: frozen ones do not. In version 2 this
    /// kills them too.
    pub(crate) fn begin_kill(&self, slot: Slot) -> Result<(), Error> {
        match &self.layout {
            Layout::V1 {
                freezer: Some(freezer),
                ..
            } => write_if_there(&self.dir(freezer, slot).join("freezer.state"), "THAWED"),
            Layout::V1 { .. } => Ok(()),
            // Since Linux 5.14.
            Layout::V2 { root } => write_if_there(&self.dir(root, slot).join("cgroup.kill"), "1"),
        }
    }

    /// Kills every process that is left in a slot, and waits until none is.
    pub(crate) fn kill(&self, slot: Slot, deadline: Instant) -> Result<(), Error> {
        loop {
            let mut left = false;
            for dir in self.dirs(slot) {
                for pid in processes(&dir)? {
                    left = true;
                    kill_member(&dir, pid)?;
                }
            }
            if !left {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Io {
                    step: format!("end the processes of {}", self.dirs(slot)[0].display()),
                    source: io::ErrorKind::TimedOut.into(),
                });
            }
            sleep(POLL_PERIOD);
        }
    }

    /// Removes a slot's groups, which are empty or missing.
    pub(crate) fn remove(&self, slot: Slot, deadline: Instant) -> Result<(), Error> {
        for dir in self.dirs(slot) {
            // The last process is gone from the list a moment before it is gone from the group.
            loop {
                match remove_empty(&dir) {
                    Ok(()) => break,
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Err(_) => sleep(POLL_PERIOD),
                }
            }
        }
        Ok(())
    }

    fn roots(&self) -> Vec<&Path> {
        match &self.layout {
            Layout::V1 {
                memory,
                cpu,
                pids,
                devices,
                freezer,
            } => {
                let mut roots: Vec<&Path> = [
                    Some(memory),
                    Some(cpu),
                    Some(pids),
                    devices.as_ref(),
                    freezer.as_ref(),
                ]
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect();
                // Controllers can share a tree.
                roots.sort();
                roots.dedup();
                roots
            }
            Layout::V2 { root } => vec![root],
        }
    }

    fn parents(&self) -> Vec<PathBuf> {
        self.roots()
            .into_iter()
            .map(|root| root.join("sandstone").join(&self.instance))
            .collect()
    }

    fn dirs(&self, slot: Slot) -> Vec<PathBuf> {
        self.roots()
            .into_iter()
            .map(|root| self.dir(root, slot))
            .collect()
    }

    fn dir(&self, root: &Path, slot: Slot) -> PathBuf {
        root.join("sandstone")
            .join(&self.instance)
            .join(slot.number().to_string())
    }
}

/// Finds the trees in `/proc/self/mountinfo`. Version 2 is used when it has all controllers that
/// are needed; on a hybrid host they are in the trees of version 1.
fn detect(mountinfo: &str, controllers_of: impl Fn(&Path) -> String) -> Result<Layout, Error> {
    let mut unified = None;
    let mut trees: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let Some(target) = mount.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let mut fields = file_system.split(' ');
        match (fields.next(), fields.nth(1)) {
            (Some("cgroup2"), _) => unified = unified.or(Some(target)),
            (Some("cgroup"), Some(options)) => {
                trees.push((target, options.split(',').map(str::to_owned).collect()));
            }
            _ => {}
        }
    }
    let needed = ["memory", "cpu", "pids"];
    if let Some(root) = unified {
        let available = controllers_of(&root);
        if needed
            .iter()
            .all(|name| available.split_ascii_whitespace().any(|have| have == *name))
        {
            return Ok(Layout::V2 { root });
        }
    }
    let tree = |name: &str| {
        trees
            .iter()
            .find(|(_, options)| options.iter().any(|option| option == name))
            .map(|(target, _)| target.clone())
    };
    let need = |name: &str| {
        tree(name).ok_or_else(|| Error::Host(format!("the {name} cgroup controller is missing")))
    };
    Ok(Layout::V1 {
        memory: need("memory")?,
        cpu: need("cpu")?,
        pids: need("pids")?,
        devices: tree("devices"),
        freezer: tree("freezer"),
    })
}

/// Makes a directory and its parent, which a closing instance may remove at any moment until it
/// has a child.
fn make_parent(dir: &Path) -> io::Result<()> {
    const ATTEMPTS: u32 = 10;
    let mut result = fs::create_dir_all(dir);
    for _ in 1..ATTEMPTS {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                result = fs::create_dir_all(dir);
            }
            _ => break,
        }
    }
    result
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).step(|| format!("write {value:?} to {}", path.display()))
}

fn write_if_there(path: &Path, value: &str) -> Result<(), Error> {
    if path.exists() {
        // The group may vanish in between when two processes clean up.
        match OpenOptions::new().write(true).open(path) {
            Ok(mut file) => {
                return io::Write::write_all(&mut file, value.as_bytes())
                    .step(|| format!("write {value:?} to {}", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
        }
    }
    Ok(())
}

/// The processes of one group; none when the group is missing.
fn processes(dir: &Path) -> Result<Vec<Pid>, Error> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(list) => Ok(list
            .lines()
            .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
            .collect()),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(Error::io(format!("read {}", dir.display()), error)),
    }
}

/// Kills a process, if it is still a member: numbers change hands.
fn kill_member(dir: &Path, pid: Pid) -> Result<(), Error> {
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    if processes(dir)?.contains(&pid) {
        send_kill(&pidfd).step(|| format!("kill process {pid}"))?;
    }
    Ok(())
}

fn remove_empty(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

/// The sum of these entries of a `memory.stat`.
fn sum_of(text: &str, keys: &[&str]) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| keys.contains(key))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_versions_count_victims_alike() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(sum_of(v1, &["oom_kill"]), 3);
        assert_eq!(sum_of(v2, &["oom_kill"]), 3);
    }

    #[test]
    fn only_the_named_entries_count() {
        let text = "dirty 1\ntotal_dirty 4096\ntotal_writeback 8192\nfile_dirty x\n";
        assert_eq!(sum_of(text, &["total_dirty", "total_writeback"]), 12288);
        assert_eq!(sum_of(text, &["file_dirty"]), 0);
    }

    use super::*;

    const V1: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_is_version_1() {
        let layout = detect(V1, |_| "hugetlb".into()).unwrap();
        assert_eq!(
            layout,
            Layout::V1 {
                memory: "/sys/fs/cgroup/memory".into(),
                cpu: "/sys/fs/cgroup/cpu,cpuacct".into(),
                pids: "/sys/fs/cgroup/pids".into(),
                devices: None,
                freezer: None,
            }
        );
    }

    #[test]
    fn version_2_needs_its_controllers() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let layout = detect(mounts, |_| "cpuset cpu io memory pids\n".into()).unwrap();
        assert_eq!(
            layout,
            Layout::V2 {
                root: "/sys/fs/cgroup".into()
            }
        );
        assert!(detect(mounts, |_| "cpuset io pids\n".into()).is_err());
        assert!(detect("", |_| String::new()).is_err());
    }
}
