//! Reading and writing, as ratios to the host's file system.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::base::Base;
use super::super::figures::Summary;
use super::super::podman::{PODMAN_IMAGE, Podman};
use super::{Sdk, Slice, WORKLOAD, rate};
use crate::run::{command, execute, heading, succeeds};

/// `(kind of the workload, what it is, unit, divisor to the unit, aimed at: least ratio)`.
const KINDS: [(&str, &str, &str, f64, Option<f64>); 8] = [
    ("write_fsync", "4k write + fsync", "/s", 1.0, Some(0.6)),
    (
        "random_read",
        "4k random read, direct",
        "/s",
        1.0,
        Some(0.9),
    ),
    (
        "read_direct",
        "sequential read, direct",
        "MB/s",
        1e6,
        Some(0.9),
    ),
    (
        "read_buffered",
        "sequential read, buffered",
        "MB/s",
        1e6,
        Some(0.9),
    ),
    (
        "write_direct",
        "sequential write, direct",
        "MB/s",
        1e6,
        Some(0.9),
    ),
    (
        "write_buffered",
        "sequential write, buffered + fsync",
        "MB/s",
        1e6,
        Some(0.9),
    ),
    (
        "sqlite_wal",
        "SQLite, WAL, full sync, 5 rows",
        "tx/s",
        1.0,
        None,
    ),
    (
        "untar",
        "untar of small files + syncfs",
        "files/s",
        1.0,
        None,
    ),
];
/// The podman volume. Named after us, so that nobody's own is touched.
const VOLUME: &str = "sandstone-bench-storage";
const SANDBOX: &str = "io";

/// Where the workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Podman,
    Sandstone,
}

/// Measures every kind in every place, by turns, and prints a table.
pub(super) fn run(
    sdk: &mut Sdk,
    base: &Base,
    podman: Option<&Podman>,
    scratch: &Path,
    quick: bool,
) -> Result<()> {
    heading("I/O");
    let (rounds, seconds, megabytes, files) = if quick {
        (3, 0.1, 128, 2000)
    } else {
        (15, 0.25, 1024, 20_000)
    };
    let slice = |kind| Slice {
        kind,
        seconds,
        megabytes,
        files,
    };
    let mut places = vec![Place::Host, Place::Sandstone];
    let volume = podman.map(PodmanVolume::create).transpose()?;
    if volume.is_some() {
        places.insert(1, Place::Podman);
    }
    let directory = scratch.join("host");
    fs::create_dir_all(&directory)?;
    let made = sdk.call(
        "create",
        &[],
        json!({"slug": "bench-io", "capacity": "8GB"}),
    )?;
    let made = made.text("id")?;
    sdk.open(
        SANDBOX,
        json!({"volumes": {"/data": made}, "timeout": "30m"}),
    )?;

    let mut once = |place, kind: &'static str| match (place, volume.as_ref()) {
        (Place::Sandstone, _) => sdk.work(SANDBOX, "/data", &slice(kind)),
        (Place::Podman, Some(volume)) => volume.work(&slice(kind)),
        (Place::Podman | Place::Host, _) => {
            let mut python = base.command(&directory);
            python
                .args(["python3", "-"])
                .args(slice(kind).arguments("/mnt"));
            work(&mut python)
        }
    };
    for place in &places {
        once(*place, "prepare")?;
    }
    let mut rows: Vec<Row> = KINDS.iter().map(|_| Row::default()).collect();
    for round in 0..rounds {
        for (kind, row) in KINDS.iter().zip(&mut rows) {
            // Untarring takes seconds, and needs no averaging within a slice.
            if kind.0 == "untar" && !quick && round % 3 != 0 {
                continue;
            }
            // Whoever comes first pays for what the last one left to be written.
            places.rotate_left(1);
            let mut rates = Vec::new();
            for place in &places {
                rates.push((*place, once(*place, kind.0)?));
            }
            row.add(&rates);
        }
    }
    sdk.call("close", &[SANDBOX], json!({}))?;
    sdk.call("delete_volume", &[&made], json!({}))?;
    print(&rows, rounds, seconds, podman);
    Ok(())
}

/// What was measured of one kind, a value per round.
#[derive(Debug, Default)]
struct Row {
    host: Vec<f64>,
    podman: Vec<f64>,
    sandstone: Vec<f64>,
}

impl Row {
    /// Takes the rates of one round; peers become ratios to the host.
    fn add(&mut self, rates: &[(Place, f64)]) {
        let of = |wanted| rates.iter().find(|(place, _)| *place == wanted);
        let Some((_, host)) = of(Place::Host) else {
            return;
        };
        self.host.push(*host);
        self.podman
            .extend(of(Place::Podman).map(|(_, rate)| rate / host));
        self.sandstone
            .extend(of(Place::Sandstone).map(|(_, rate)| rate / host));
    }
}

fn print(rows: &[Row], rounds: usize, seconds: f64, podman: Option<&Podman>) {
    println!(
        "{rounds} rounds; slices of {seconds} s by turns on the host's file system, a podman \
         volume and a volume;\nthe same programs from the same root file system; ratios are \
         medians of the rounds' ratios to the host, with the least and the most"
    );
    if let Some(podman) = podman {
        println!("peer: {}", podman.description);
    }
    println!(
        "\n{:<36} {:>3} {:>16} {:>18} {:>18}  aim",
        "", "n", "host", "podman / host", "sandstone / host"
    );
    for ((_, what, unit, divisor, aim), row) in KINDS.iter().zip(rows) {
        let ratio = |values: &[f64]| {
            let Summary {
                count,
                least,
                median,
                most,
                ..
            } = Summary::of(values);
            if count == 0 {
                return "-".to_owned();
            }
            format!("{median:.2} ({least:.2}-{most:.2})")
        };
        let own = Summary::of(&row.sandstone).median;
        let aim = aim.map_or(String::new(), |aim| {
            let verdict = if own >= aim { "met" } else { "missed" };
            format!(">= {aim}: {verdict}")
        });
        println!(
            "{what:<36} {:>3} {:>16} {:>18} {:>18}  {aim}",
            row.host.len(),
            format!("{:.0} {unit}", Summary::of(&row.host).median / divisor),
            ratio(&row.podman),
            ratio(&row.sandstone)
        );
    }
}

/// Runs the workload's text in a Python that reads it from its standard input.
fn work(python: &mut Command) -> Result<f64> {
    let mut child = python
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the workload")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(WORKLOAD.as_bytes())?;
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("the workload ended with {}", done.status);
    }
    rate(&String::from_utf8_lossy(&done.stdout))
}

/// A named volume of podman's, and a container for each slice.
#[derive(Debug)]
struct PodmanVolume<'a>(&'a Podman);

impl<'a> PodmanVolume<'a> {
    fn create(podman: &'a Podman) -> Result<Self> {
        succeeds(command("podman").args(["volume", "rm", "--force", VOLUME]));
        execute(
            command("podman")
                .args(["volume", "create", VOLUME])
                .stdout(Stdio::null()),
        )?;
        Ok(Self(podman))
    }

    fn work(&self, slice: &Slice) -> Result<f64> {
        let mut container = self.0.run("none");
        container
            .args(["--interactive", "--volume"])
            .arg(format!("{VOLUME}:/data"))
            .args([PODMAN_IMAGE, "python3", "-"])
            .args(slice.arguments("/data"));
        work(&mut container)
    }
}

impl Drop for PodmanVolume<'_> {
    fn drop(&mut self) {
        succeeds(command("podman").args(["volume", "rm", "--force", VOLUME]));
    }
}
