//! Whether this machine can run Sandstone.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::run;

/// Oldest kernel with everything the runtime needs (idmapped mounts, `clone3` into a cgroup, the
/// mount API): Debian 12's.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Room for the build, the base image and the SDKs, bytes.
pub(crate) const DISK_BUILD: u64 = 8 << 30;

/// Prints what was found; fails with every reason at once. `disk_min` is in bytes.
pub(crate) fn check(disk_min: u64) -> Result<()> {
    let mut wrong = Vec::new();
    if !rustix::process::geteuid().is_root() {
        wrong.push("not root: sandboxes need mounts and namespaces; run this as root".to_owned());
    }
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        system
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned()
    };
    let is_debian = field("ID") == "debian" || field("ID_LIKE").contains("debian");
    if !is_debian || !run::has("apt-get") {
        wrong.push(format!(
            "{} is not Debian: packages are installed with apt-get",
            field("PRETTY_NAME")
        ));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match kernel_version(&release) {
        Some(version) if version >= KERNEL_MIN => {}
        _ => wrong.push(format!(
            "kernel {} is older than {}.{}",
            release.trim(),
            KERNEL_MIN.0,
            KERNEL_MIN.1
        )),
    }
    if cfg!(not(target_arch = "x86_64")) {
        wrong.push("only x86_64 is supported".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        wrong.push("no /dev/loop-control: volumes need loop devices (`modprobe loop`)".to_owned());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for name in ["overlay", "ext4", "xfs"] {
        let is_there = filesystems
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name));
        if !is_there && !run::succeeds(run::command("modprobe").arg(name)) {
            wrong.push(format!("the kernel has no {name} file system"));
        }
    }
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if cgroups.is_empty() {
        wrong.push("no control groups at /sys/fs/cgroup".to_owned());
    }
    let free = rustix::fs::statvfs(run::root())
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        .unwrap_or(0);
    if free < disk_min {
        wrong.push(format!(
            "{} GiB of disk free at {}; {} are needed",
            free >> 30,
            run::root().display(),
            disk_min >> 30
        ));
    }
    let hierarchy = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "v2"
    } else {
        "v1"
    };
    println!(
        "{}, kernel {}, cgroup {hierarchy}, {} GiB free",
        field("PRETTY_NAME"),
        release.trim(),
        free >> 30
    );
    if !wrong.is_empty() {
        bail!(
            "this machine cannot run Sandstone:\n  - {}",
            wrong.join("\n  - ")
        );
    }
    Ok(())
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(kernel_version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("6.18.5"), Some((6, 18)));
        assert_eq!(kernel_version("unknown"), None);
    }
}
