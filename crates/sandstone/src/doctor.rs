//! `sandstone doctor`: whether this machine can run sandboxes.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use sandstone_api::Pool;
use serde::Serialize;

use crate::client::{Client, Failure, ServerArguments};
use crate::expose;
use crate::output::{self, size};

#[derive(Debug, Args)]
#[command(after_help = "Looks at this machine, and asks the server if one runs.

Examples:
  sandstone doctor
  sandstone doctor --url http://10.0.0.5:8080 --json")]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
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

pub(crate) fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let mut findings = findings();
    let is_able = findings.iter().all(|finding| finding.ok);
    findings.extend(of_server(&arguments.server));
    findings.extend(exposed_servers(arguments.server.data_dir()));
    let is_healthy = findings.iter().all(|finding| finding.ok);
    if arguments.server.json {
        let findings = serde_json::to_value(&findings)?;
        output::print_json(&findings)?;
    } else {
        let mut text: String = findings.iter().map(line).collect();
        text.push_str(match (is_able, is_healthy) {
            (true, true) => "\nThis machine can run sandboxes.\n",
            (true, false) => "\nThis machine can run sandboxes, but see what is marked above.\n",
            (false, _) => "\nMend what is marked, then run this again.\n",
        });
        output::print(&text)?;
    }
    Ok(if is_healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(finding: &Finding) -> String {
    let mark = if finding.ok { "ok     " } else { "PROBLEM" };
    let found = output::harmless(&finding.found);
    let mut line = format!("{mark}  {:<16} {found}\n", finding.check);
    if let Some(hint) = &finding.hint {
        line.push_str(&format!("         {:<16} -> {hint}\n", ""));
    }
    line
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

/// What the server says about itself, if one runs.
fn of_server(arguments: &ServerArguments) -> Vec<Finding> {
    let url = &arguments.url;
    let asked = Client::new(arguments).and_then(|client| client.get("/v1/pool"));
    let pool = match asked {
        Ok(pool) => serde_json::from_value(pool),
        Err(failure) => return vec![no_answer(url, &failure)],
    };
    match pool {
        Ok(pool) => of_pool(url, &pool),
        Err(_) => {
            let hint = "use the sandstone of the server's version";
            let found = format!("{url} is of another version");
            vec![finding("server", false, found, hint)]
        }
    }
}

fn no_answer(url: &str, failure: &Failure) -> Finding {
    if failure.code.is_none() && failure.is_of_server() {
        // A machine without a server is a fine machine.
        return finding("server", true, format!("none at {url}"), "");
    }
    let hint = failure.hint.as_deref().unwrap_or("look at its log");
    if failure.code.is_none() {
        // It was not even asked, so nothing is known to be wrong.
        let found = format!("not asked: {failure}; {hint}");
        return finding("server", true, found, "");
    }
    finding("server", false, format!("{url}: {failure}"), hint)
}

fn of_pool(url: &str, pool: &Pool) -> Vec<Finding> {
    let room = format!("{} of {} free", size(pool.free), size(pool.total));
    let images = |images: &[String]| match images {
        [] => "none".to_owned(),
        images => format!("{}: {}", images.len(), images.join(", ")),
    };
    vec![
        finding("server", true, format!("answers at {url}"), ""),
        finding(
            "pool",
            pool.free >= pool.low,
            room,
            "delete volumes and snapshots, or enlarge the pool",
        ),
        finding(
            "unknown images",
            pool.unknown_images.is_empty(),
            images(&pool.unknown_images),
            "no volume and no snapshot has them; remove them: sandstone pool clean",
        ),
        finding(
            "missing images",
            pool.missing_images.is_empty(),
            images(&pool.missing_images),
            "the data of these volumes and snapshots is gone; restore the data directory, or delete them",
        ),
    ]
}

/// How exposed servers are trusted, if a server of this machine certifies them itself.
fn exposed_servers(data_dir: &Path) -> Option<Finding> {
    let file = expose::authority_file(data_dir);
    let found = match fs::exists(&file) {
        Ok(true) => expose::how_to_trust(&file),
        Ok(false) | Err(_) => return None,
    };
    Some(finding("exposed servers", true, found, ""))
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
    fn a_pool_in_need_is_a_problem() {
        let mut pool = Pool {
            total: 20 << 30,
            free: 5 << 30,
            low: 2 << 30,
            critical: 1 << 30,
            unknown_images: Vec::new(),
            missing_images: Vec::new(),
        };
        assert!(of_pool("x", &pool).iter().all(|finding| finding.ok));
        pool.free = 1 << 30;
        pool.unknown_images = vec!["volumes/a.img".to_owned()];
        pool.missing_images = vec!["vol_ord_b".to_owned()];
        let problems = of_pool("x", &pool);
        let problems: Vec<_> = problems.iter().filter(|finding| !finding.ok).collect();
        assert_eq!(problems.len(), 3);
        assert!(problems.iter().all(|finding| finding.hint.is_some()));
    }

    #[test]
    fn an_authority_of_our_own_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(exposed_servers(directory.path()).is_none());
        let file = expose::authority_file(directory.path());
        fs::write(&file, "a certificate").unwrap();
        let finding = exposed_servers(directory.path()).unwrap();
        assert!(finding.found.contains(file.to_str().unwrap()));
    }

    #[test]
    fn every_failure_has_a_hint() {
        for finding in findings() {
            assert_eq!(finding.ok, finding.hint.is_none(), "{finding:?}");
        }
    }
}
