//! Creating, copying, booting and deleting.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::super::figures::Summary;
use super::{Answer, Sdk, Slice};
use crate::run::{command, heading, output};

/// What the volumes hold besides the base image, and how.
#[derive(Debug, Clone, Copy)]
struct Filling {
    name: &'static str,
    megabytes: u64,
    is_scattered: bool,
}

const FILLINGS: [Filling; 4] = [
    Filling::of("0 GB", 0, false),
    Filling::of("1 GB", 1000, false),
    Filling::of("5 GB", 5000, false),
    // Every second block of 200 MiB written anew: 25,600 pieces, and as many between them.
    Filling::of("fragmented", 200, true),
];
/// Where a bootable volume that is mounted at `/data` can be written to.
const HOME: &str = "/data/home/app";
const FILLINGS_QUICK: [Filling; 2] = [
    Filling::of("0 GB", 0, false),
    Filling::of("fragmented", 50, true),
];

impl Filling {
    const fn of(name: &'static str, megabytes: u64, is_scattered: bool) -> Self {
        Self {
            name,
            megabytes,
            is_scattered,
        }
    }
}

/// Measures every operation on every kind of volume, and prints a table.
pub(super) fn run(sdk: &mut Sdk, pool: &Path, log: &Path, quick: bool) -> Result<()> {
    heading("Operations");
    let mut bench = Operations {
        sdk,
        pool,
        log: LogReader::open(log)?,
        rows: Vec::new(),
        slugs: 0,
        rounds: if quick { 3 } else { 15 },
    };
    bench.create()?;
    let fillings: &[Filling] = if quick { &FILLINGS_QUICK } else { &FILLINGS };
    for filling in fillings {
        bench.volume(*filling)?;
    }
    bench.print();
    Ok(())
}

/// One operation on one kind of volume, a value per round, milliseconds.
#[derive(Debug, Default)]
struct Row {
    volume: String,
    operation: &'static str,
    client: Vec<f64>,
    node: Vec<f64>,
    floor: Vec<f64>,
    stall: Vec<f64>,
}

#[derive(Debug)]
struct Operations<'a> {
    sdk: &'a mut Sdk,
    pool: &'a Path,
    log: LogReader,
    rows: Vec<Row>,
    slugs: u32,
    rounds: u32,
}

impl Operations<'_> {
    fn slug(&mut self) -> String {
        self.slugs += 1;
        format!("bench-{}", self.slugs)
    }

    fn row(&mut self, volume: &str, operation: &'static str) -> &mut Row {
        let is_it = |row: &Row| row.volume == volume && row.operation == operation;
        let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
            self.rows.push(Row {
                volume: volume.to_owned(),
                operation,
                ..Row::default()
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Times a call, and finds the node's part of it in the log.
    fn timed(
        &mut self,
        volume: &str,
        operation: &'static str,
        step: Option<&str>,
        call: impl FnOnce(&mut Sdk) -> Result<Answer>,
    ) -> Result<Answer> {
        self.log.skip()?;
        let answer = call(self.sdk)?;
        let node = match step {
            Some(step) => self.log.took(step)?,
            None => None,
        };
        let row = self.row(volume, operation);
        row.client.push(answer.milliseconds);
        row.node.extend(node);
        Ok(answer)
    }

    /// Creating from nothing, and from the base image.
    fn create(&mut self) -> Result<()> {
        for _ in 0..self.rounds {
            for (volume, options) in [
                ("empty, 300 MB", json!({"capacity": "300MB"})),
                ("empty, 20 GB", json!({"capacity": "20GB"})),
                (
                    "builtin:debian-13, 10 GB",
                    json!({"capacity": "10GB", "from_snapshot": "builtin:debian-13"}),
                ),
            ] {
                let mut options = options;
                options["slug"] = self.slug().into();
                let made = self.timed(volume, "create", Some("create_volume"), |sdk| {
                    sdk.call("create", &[], options)
                })?;
                let id = made.text("id")?;
                self.timed(volume, "delete", None, |sdk| {
                    sdk.call("delete_volume", &[&id], json!({}))
                })?;
            }
        }
        Ok(())
    }

    /// Copies of one volume.
    fn volume(&mut self, filling: Filling) -> Result<()> {
        let slug = self.slug();
        let made = self.sdk.call(
            "create",
            &[],
            json!({"slug": slug, "capacity": "10GB", "from_snapshot": "builtin:debian-13"}),
        )?;
        let volume = made.text("id")?;
        self.fill(&volume, filling)?;
        let image = self.image("volumes", &volume);
        let name = format!("{}, {} extents", filling.name, extents(&image)?);
        for _ in 0..self.rounds {
            self.round(&name, &volume, &image)?;
        }
        self.sdk.open("writer", data(&volume))?;
        for _ in 0..self.rounds {
            // Something is under way at each, as in a sandbox that is used.
            let write = ["sh", "-c", &format!("date > {HOME}/now")];
            self.sdk
                .call("run", &["writer"], json!({ "command": write }))?;
            let taken = self.snapshot(&name, "snapshot, attached", &volume, &image)?;
            self.sdk.call("delete_snapshot", &[&taken], json!({}))?;
        }
        self.sdk.call("close", &["writer"], json!({}))?;
        self.sdk.call("delete_volume", &[&volume], json!({}))?;
        Ok(())
    }

    fn fill(&mut self, volume: &str, filling: Filling) -> Result<()> {
        if filling.megabytes == 0 {
            return Ok(());
        }
        let slice = |kind| Slice {
            kind,
            seconds: 0.0,
            megabytes: filling.megabytes,
            files: 0,
        };
        self.sdk.open("filler", data(volume))?;
        self.sdk.work("filler", HOME, &slice("prepare"))?;
        if filling.is_scattered {
            // Blocks that a snapshot shares are written elsewhere.
            let slug = self.slug();
            let shared = self.sdk.call("snapshot", &[volume, &slug], json!({}))?;
            self.sdk.work("filler", HOME, &slice("scatter"))?;
            self.sdk
                .call("delete_snapshot", &[&shared.text("id")?], json!({}))?;
        }
        self.sdk.call("close", &["filler"], json!({}))?;
        Ok(())
    }

    /// Every operation once, on a volume that nobody has attached.
    fn round(&mut self, name: &str, volume: &str, image: &Path) -> Result<()> {
        let taken = self.snapshot(name, "snapshot", volume, image)?;
        let slug = self.slug();
        let fork = self.timed(name, "fork", Some("create_volume"), |sdk| {
            let options = json!({"slug": slug, "capacity": "10GB", "from_snapshot": taken});
            sdk.call("create", &[], options)
        })?;
        let floor = self.floor(&self.image("snapshots", &taken))?;
        self.row(name, "fork").floor.push(floor);
        let fork = fork.text("id")?;
        for (sandbox, operation) in [("first", "boot, first"), ("next", "boot, next")] {
            self.timed(name, operation, Some("images mounted"), |sdk| {
                sdk.call("open", &[sandbox], json!({ "root": taken }))
            })?;
        }
        for sandbox in ["first", "next"] {
            self.sdk.call("close", &[sandbox], json!({}))?;
        }
        self.timed(name, "delete volume", None, |sdk| {
            sdk.call("delete_volume", &[&fork], json!({}))
        })?;
        self.timed(name, "delete snapshot", None, |sdk| {
            sdk.call("delete_snapshot", &[&taken], json!({}))
        })?;
        Ok(())
    }

    fn snapshot(
        &mut self,
        name: &str,
        operation: &'static str,
        volume: &str,
        image: &Path,
    ) -> Result<String> {
        let slug = self.slug();
        let taken = self.timed(name, operation, Some("create_snapshot"), |sdk| {
            sdk.call("snapshot", &[volume, &slug], json!({}))
        })?;
        let floor = self.floor(image)?;
        let path = format!("/v1/snapshots/{slug}");
        let detail = self.sdk.call("get", &[&path], json!({}))?;
        let row = self.row(name, operation);
        row.floor.push(floor);
        if let Some(stall) = detail.value["write_stall_us"].as_f64() {
            row.stall.push(stall / 1000.0);
        }
        taken.text("id")
    }

    /// Where an image is: named after the random part of the id.
    fn image(&self, kind: &str, id: &str) -> PathBuf {
        let suffix = id.rsplit('_').next().unwrap_or(id);
        self.pool.join(kind).join(format!("{suffix}.img"))
    }

    /// One bare clone of an image, milliseconds.
    fn floor(&self, image: &Path) -> Result<f64> {
        let source = File::open(image).with_context(|| format!("opening {}", image.display()))?;
        let path = self.pool.join("bench-floor");
        let copy = File::create(&path)?;
        let start = Instant::now();
        rustix::fs::ioctl_ficlone(&copy, &source).context("cloning")?;
        let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        fs::remove_file(&path)?;
        Ok(milliseconds)
    }

    fn print(&self) {
        println!(
            "client: what the official Python SDK waits; node: the server's work on the image \
             (boot: on the root's mount);\nfloor: one FICLONE of the same image in the same pool; \
             stall: how long writers waited. Medians, milliseconds\n"
        );
        println!(
            "{:<32} {:<20} {:>3} {:>9} {:>9} {:>9} {:>9}",
            "volume", "operation", "n", "client", "node", "floor", "stall"
        );
        for row in &self.rows {
            let shown = |values: &[f64]| {
                let summary = Summary::of(values);
                if summary.count == 0 {
                    "-".to_owned()
                } else {
                    format!("{:.2}", summary.median)
                }
            };
            println!(
                "{:<32} {:<20} {:>3} {:>9} {:>9} {:>9} {:>9}",
                row.volume,
                row.operation,
                row.client.len(),
                shown(&row.client),
                shown(&row.node),
                shown(&row.floor),
                shown(&row.stall)
            );
        }
        println!();
        for (operation, aim) in [("snapshot", 5.0), ("fork", 5.0), ("boot, next", 2.0)] {
            for row in self.rows.iter().filter(|row| {
                row.operation == operation && row.volume.starts_with("1 GB") && !row.node.is_empty()
            }) {
                let node = Summary::of(&row.node).median;
                let verdict = if node <= aim { "met" } else { "missed" };
                println!(
                    "{operation} of 1 GB within {aim} ms of the node's work: {node:.2}, {verdict}"
                );
            }
        }
    }
}

/// The volume at `/data`.
fn data(volume: &str) -> serde_json::Value {
    json!({"volumes": {"/data": volume}, "timeout": "30m"})
}

/// How many pieces a file has.
fn extents(image: &Path) -> Result<u64> {
    let printed = output(command("filefrag").arg(image))?;
    printed
        .rsplit(": ")
        .next()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("filefrag said {printed:?}"))
}

/// The server's log, from where we last were.
#[derive(Debug)]
struct LogReader(File);

impl LogReader {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(file))
    }

    fn skip(&mut self) -> Result<()> {
        self.0.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// How long a step of the node's took, milliseconds, in what was logged since.
    fn took(&mut self, step: &str) -> Result<Option<f64>> {
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        Ok(took(&text, step))
    }
}

/// Reads `step="…" took_us=…` of the last line that has it.
fn took(log: &str, step: &str) -> Option<f64> {
    let wanted = format!("step=\"{step}\" took_us=");
    let (_, after) = log.rsplit_once(&wanted)?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<f64>().ok().map(|us| us / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_steps_are_found_in_its_log() {
        let log = "DEBUG create{id=1}: sandstone_node: step=\"images mounted\" took_us=1500\n\
                   DEBUG sandstone_node: step=\"volumes\" took_us=20\n";
        assert_eq!(took(log, "images mounted"), Some(1.5));
        assert_eq!(took(log, "volumes"), Some(0.02));
        assert_eq!(took(log, "fork"), None);
    }
}
