//! `cargo xtask bench rpc`: bytes and calls through each official SDK, beside the same SDK on a
//! server that does nothing.

mod bare;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::client::Client;
use super::figures::Summary;
use super::stage::Stage;
use crate::run::{command, heading, root};
use crate::server::Access;
use crate::tools::{self, Sdks};
use bare::Bare;

/// The server's pool, bytes, besides the file: the base image, and the room that a pool keeps.
const POOL_BESIDES: u64 = 2 << 30;
/// The least pool, bytes.
const POOL_MIN: u64 = 4 << 30;
/// What a sandbox may write besides the file, bytes.
const SCRATCH_BESIDES: u64 = 1 << 30;
/// MiB of one transfer.
const TRANSFER_MIB: u64 = 1024;
/// The same in a short run.
const TRANSFER_QUICK_MIB: u64 = 64;
/// Bytes of a chunk, as both SDKs cut files.
const CHUNK_BYTES: u64 = 64 << 10;
/// Most memory that the server may have while it moves files of any size.
const MEMORY_MAX_MIB: u64 = 200;

/// Calls, with the most that each may add to the client's own cost, milliseconds at p50.
const CALLS: [(&str, f64); 3] = [("spawn", 3.0), ("stat", 0.5), ("readTextFile", 0.5)];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Less of everything: to see that it works.
    #[arg(long)]
    quick: bool,
    /// MiB that each upload and each download moves [default: 1024, or 64 with --quick].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    mib: Option<u64>,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

/// What a client says, milliseconds.
#[derive(Debug, Deserialize)]
struct Times {
    ms: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (mib, rounds) = match arguments.quick {
        true => (TRANSFER_QUICK_MIB, 100),
        false => (TRANSFER_MIB, 1000),
    };
    let bytes = arguments.mib.unwrap_or(mib) << 20;
    // The layer of a sandbox that has ended may still be there when the next one fills its own.
    let pool = (POOL_BESIDES + 2 * bytes).max(POOL_MIN);
    let stage = Stage::prepare(&arguments.image_cache, pool)?;
    let layer = (SCRATCH_BESIDES + bytes).to_string();
    let (server, access) = stage.serve(&["--scratch-size".to_owned(), layer])?;
    let bare = Bare::start()?;

    heading("Bytes and calls through the SDKs");
    println!("beside the same client on a WebSocket server that answers at once");
    let mut missed = Vec::new();
    for name in ["JavaScript under Deno", "JavaScript under Node", "Python"] {
        let start = |access: &Access| Client::start(&mut program(&stage.sdks, name), access);
        let (mut ours, mut peer) = (start(&access)?, start(&bare.access)?);
        println!("\n{name}: {} MiB in each direction", bytes >> 20);
        // The client's sandbox is there once it has answered.
        ask(&mut ours, "stat 1")?;
        let agent = agent_pid(&stage.data())?;
        forget_peak(server.pid())?;
        forget_peak(agent)?;
        for operation in ["upload", "download"] {
            let request = format!("{operation} {}", bytes / CHUNK_BYTES);
            let (own, other) = (ask(&mut ours, &request)?[0], ask(&mut peer, &request)?[0]);
            println!(
                "  {operation:<14} {:>7.0} MB/s   bare {:>7.0} MB/s   ratio {:.2}",
                rate(bytes, own),
                rate(bytes, other),
                other / own
            );
        }
        let peak = peak_mib(server.pid())?;
        println!(
            "  memory, at most: the server's {peak} MiB, the agent's {} MiB",
            peak_mib(agent)?
        );
        if peak >= MEMORY_MAX_MIB {
            missed.push(format!("{name}: {peak} MiB of memory"));
        }
        for (operation, aim) in CALLS {
            // The first ones fill caches.
            let (warm_up, request) = (format!("{operation} 50"), format!("{operation} {rounds}"));
            let measure = |client: &mut Client| {
                ask(client, &warm_up)?;
                ask(client, &request).map(|times| Summary::of(&times))
            };
            let (own, other) = (measure(&mut ours)?, measure(&mut peer)?);
            let above = own.median - other.median;
            println!(
                "  {operation:<14} p50 {:>6.2} ms  p99 {:>6.2} ms   client's own {:>5.2} ms  {:>5.2} ms   \
                 above it {above:>5.2} ms  {:>5.2} ms",
                own.median,
                own.p99,
                other.median,
                other.p99,
                own.p99 - other.p99
            );
            if above >= aim {
                missed.push(format!("{name}: {operation} {above:.2} ms, not {aim} ms"));
            }
        }
        ours.end()?;
        peer.end()?;
    }
    stage.end(server)?;
    match missed.as_slice() {
        [] => println!("\nevery aim is met"),
        missed => println!("\nmissed:\n  - {}", missed.join("\n  - ")),
    }
    Ok(())
}

fn program(sdks: &Sdks, name: &str) -> Command {
    let javascript = root().join("tests/sdk/js/bench/rpc.mjs");
    match name {
        "JavaScript under Deno" => {
            let mut deno = command(&sdks.deno);
            deno.args(["run", "--quiet", "--allow-all", "--no-lock"])
                .arg(javascript);
            deno
        }
        "JavaScript under Node" => {
            let mut node = command(&sdks.node);
            node.arg(javascript);
            node
        }
        _ => {
            let mut python = command(&sdks.python);
            python.arg(root().join("xtask/src/bench/rpc/client.py"));
            python
        }
    }
}

fn ask(client: &mut Client, request: &str) -> Result<Vec<f64>> {
    let answer = client.ask(request)?;
    let times: Times = serde_json::from_str(&answer).context("reading the client's answer")?;
    anyhow::ensure!(!times.ms.is_empty(), "the client measured nothing");
    Ok(times.ms)
}

/// Megabytes per second.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn rate(bytes: u64, milliseconds: f64) -> f64 {
    bytes as f64 / 1000.0 / milliseconds
}

/// Begins anew to note the most memory that a process has. `proc_pid_clear_refs(5)`
fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of the memory")
}

fn peak_mib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("reading VmHWM")? / 1024)
}

/// The agent of the only sandbox of a server: process 1 of a process namespace, in a control group of
/// the server's.
fn agent_pid(data: &Path) -> Result<u32> {
    let instance = fs::read_to_string(data.join("instance")).context("reading the instance")?;
    let group = format!("/sandstone/{}/", instance.trim());
    let is_agent = |pid: u32| {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let status = read("status");
        let is_first = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .is_some_and(|pids| pids.split_whitespace().skip(1).last() == Some("1"));
        // A warm sandbox has no agent yet.
        let is_named = read("cmdline").starts_with("sandstone-agent\0");
        is_first && is_named && read("cgroup").contains(&group)
    };
    fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| is_agent(*pid))
        .context("the sandbox has no agent")
}
