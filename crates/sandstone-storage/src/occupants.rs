//! Who keeps a file system from ending: for messages to people.

use std::fs;
use std::path::Path;

/// Processes named in a message.
const NAMED_MAX: usize = 5;

/// The processes that have something open below `dir`, or hold the file system with device number
/// `device` in their mount namespace. What cannot be read is left out.
pub(crate) fn describe(dir: &Path, device: u64) -> String {
    let device = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut names = Vec::new();
    let mut more = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let elsewhere = fs::read_link(process.join("ns/mnt")).ok() != own;
        if !(has_open(&process, dir) || elsewhere && has_mounted(&process, &device)) {
            continue;
        }
        if names.len() < NAMED_MAX {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            names.push(format!("{} ({pid})", name.trim()));
        } else {
            more += 1;
        }
    }
    match (names.is_empty(), more) {
        (true, _) => "something that is not a process".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn has_open(process: &Path, dir: &Path) -> bool {
    let below = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    below(&process.join("cwd"))
        || below(&process.join("root"))
        || fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| below(&entry.path()))
}

fn has_mounted(process: &Path, device: &str) -> bool {
    fs::read_to_string(process.join("mountinfo")).is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some(device))
    })
}
