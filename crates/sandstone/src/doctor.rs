//! `sandstone doctor`: whether this machine can run sandboxes.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Prints the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Oldest kernel with idmapped overlay layers, which the root of every sandbox needs.
const KERNEL_MIN: (u32, u32) = (5, 19);

/// Programs that the server calls, and the Debian package each comes in.
const PROGRAMS: [(&str, &str); 6] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("nft", "nftables"),
    ("mmdebstrap", "mmdebstrap"),
    ("npm", "npm"),
    ("apt-get", "apt"),
];

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let findings = findings();
    let healthy = findings.iter().all(|finding| finding.ok);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok     " } else { "MISSING" };
            println!("{mark}  {:<16} {}", finding.check, finding.found);
            if let Some(hint) = &finding.hint {
                println!("         {:<16} -> {hint}", "");
            }
        }
        println!();
        println!(
            "{}",
            if healthy {
                "This machine can run sandboxes."
            } else {
                "Mend what is missing, then run this again."
            }
        );
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn findings() -> Vec<Finding> {
    let mut findings = vec![
        root(),
        kernel(),
        file_systems(),
        loop_devices(),
        cgroups(),
        user_namespaces(),
    ];
    findings.extend(
        PROGRAMS
            .iter()
            .map(|(program, package)| program_finding(program, package)),
    );
    findings
}

fn finding(check: &'static str, ok: bool, found: impl Into<String>, hint: &str) -> Finding {
    Finding {
        check,
        ok,
        found: found.into(),
        hint: (!ok).then(|| hint.to_owned()),
    }
}

fn root() -> Finding {
    let uid = rustix::process::geteuid();
    finding(
        "user",
        uid.is_root(),
        format!("uid {}", uid.as_raw()),
        "run as root",
    )
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    finding(
        "kernel",
        version >= KERNEL_MIN,
        release,
        "Linux 5.19 or newer is needed",
    )
}

fn file_systems() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| {
        known
            .lines()
            .any(|line| line.trim_start_matches("nodev").trim() == name)
    };
    let missing: Vec<_> = ["ext4", "xfs", "overlay"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    if missing.is_empty() {
        return finding("file systems", true, "ext4, xfs, overlay", "");
    }
    let hint = format!("load them: modprobe -a {}", missing.join(" "));
    finding(
        "file systems",
        false,
        format!("without {}", missing.join(", ")),
        &hint,
    )
}

fn loop_devices() -> Finding {
    let there = Path::new("/dev/loop-control").exists();
    let found = if there {
        "/dev/loop-control"
    } else {
        "no /dev/loop-control"
    };
    finding(
        "loop devices",
        there,
        found,
        "load the module: modprobe loop",
    )
}

fn cgroups() -> Finding {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let v1 = ["memory", "pids"]
        .iter()
        .all(|name| Path::new("/sys/fs/cgroup").join(name).is_dir());
    let found = match (v2, v1) {
        (true, _) => "version 2",
        (false, true) => "version 1",
        (false, false) => "none",
    };
    finding(
        "cgroups",
        v1 || v2,
        found,
        "mount cgroup2 on /sys/fs/cgroup",
    )
}

fn user_namespaces() -> Finding {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let most: u64 = most.trim().parse().unwrap_or(0);
    let hint = "raise it: sysctl user.max_user_namespaces=10000";
    finding("user namespaces", most > 0, format!("at most {most}"), hint)
}

fn program_finding(program: &'static str, package: &str) -> Finding {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&directories)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|path| path.is_file());
    let found = path
        .as_ref()
        .map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    finding(
        program,
        path.is_some(),
        found,
        &format!("install it: apt-get install {package}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_hint() {
        for finding in findings() {
            assert_eq!(finding.ok, finding.hint.is_none(), "{finding:?}");
        }
    }
}
