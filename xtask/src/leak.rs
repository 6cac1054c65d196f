//! What Sandstone has on the host, to see that nothing stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::run::{command, output};

/// One line per object: `<kind> <name>`.
#[derive(Debug)]
pub(crate) struct HostState(BTreeSet<String>);

impl HostState {
    /// Looks at the host.
    pub(crate) fn now() -> Self {
        let mut found = BTreeSet::new();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mountinfo.lines() {
            // The fields before the point are numbers that a remount may change.
            let fields: Vec<&str> = line.split(' ').skip(3).collect();
            found.insert(format!("mount {}", fields.join(" ")));
        }
        for device in names_in("/sys/block") {
            let file = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file"));
            if let Ok(file) = file {
                found.insert(format!("loop device {device} of {}", file.trim()));
            }
        }
        for name in names_in("/run/netns") {
            found.insert(format!("network namespace {name}"));
        }
        for name in names_in("/sys/class/net") {
            found.insert(format!("link {name}"));
        }
        // The directories stay; what is in them belongs to a server.
        for directory in names_in("/run/sandstone") {
            for name in names_in(&format!("/run/sandstone/{directory}")) {
                found.insert(format!("file /run/sandstone/{directory}/{name}"));
            }
        }
        let tables = output(command("nft").args(["list", "tables"])).unwrap_or_default();
        for table in tables.lines().filter(|line| line.contains("sandstone")) {
            found.insert(format!("nft {table}"));
        }
        add_cgroups(Path::new("/sys/fs/cgroup"), &mut found);
        for pid in names_in("/proc") {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if comm.starts_with("sandstone") {
                found.insert(format!("process {pid} {}", comm.trim()));
            }
        }
        Self(found)
    }

    /// What exists now and did not exist in `before`, after up to `patience` for the kernel to
    /// finish what it does in the background.
    pub(crate) fn new_since(before: &Self, patience: Duration) -> Vec<String> {
        let start = Instant::now();
        loop {
            let now = Self::now();
            let new: Vec<String> = now.0.difference(&before.0).cloned().collect();
            if new.is_empty() || start.elapsed() > patience {
                return new;
            }
            sleep(Duration::from_millis(200));
        }
    }
}

fn names_in(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Control groups that name our product, on either hierarchy.
fn add_cgroups(directory: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains("sandstone") {
            found.insert(format!("control group {}", path.display()));
        }
        add_cgroups(&path, found);
    }
}
