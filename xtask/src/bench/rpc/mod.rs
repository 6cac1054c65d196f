//! `cargo xtask bench rpc`: bytes and calls through each official SDK, beside the same SDK on a
//! server that does nothing.

mod bare;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::client::Client;
use super::figures::Summary;
use crate::run::{clear, command, heading, root, target};
use crate::server::{Access, Server, Settings};
use crate::tools::Sdks;
use crate::{machine, tools};
use bare::Bare;

/// The server's pool, bytes.
const POOL: u64 = 4 << 30;
const START_LIMIT: Duration = Duration::from_mins(2);
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
    machine::check(machine::DISK_BUILD + POOL)?;
    tools::install_packages()?;
    tools::build()?;
    tools::build_image(&arguments.image_cache)?;
    let sdks = tools::install_sdks("sdk")?;
    tools::link_node_modules(&sdks)?;
    let scratch = target("bench");
    clear(&scratch)?;
    let mut server = Server::start(&Settings {
        data: scratch.join("data"),
        listen: "127.0.0.1:0".to_owned(),
        image_cache: arguments.image_cache.clone(),
        arguments: vec!["--pool-size".to_owned(), POOL.to_string()],
        log_filter: None,
        log: scratch.join("server.log"),
    })?;
    let access = server.wait_until_healthy(START_LIMIT)?;
    let bare = Bare::start()?;
    let (bytes, rounds) = match arguments.quick {
        true => (64 << 20, 100),
        false => (1 << 30, 1000),
    };

    heading("Bytes and calls through the SDKs");
    println!("beside the same client on a WebSocket server that answers at once");
    let mut missed = Vec::new();
    for name in ["JavaScript under Deno", "JavaScript under Node", "Python"] {
        let start = |access: &Access| Client::start(&mut program(&sdks, name), access);
        let (mut ours, mut peer) = (start(&access)?, start(&bare.access)?);
        println!("\n{name}");
        forget_peak(server.pid())?;
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
        println!("  server's memory, at most {peak} MiB");
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
    server.stop()?;
    fs::remove_dir_all(&scratch).ok();
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
