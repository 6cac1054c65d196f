//! `cargo xtask bench storage`: what volumes and snapshots cost.
//!
//! Operations are timed at the client, with the official Python SDK, and in the node's own log;
//! the floor is one `FICLONE` of the same image in the same pool. I/O is a ratio to the host's
//! file system: the same program in the same root file system runs on the host, in a container
//! with a podman volume and in a sandbox with a volume, a slice each by turns.

mod io;
mod operations;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::base::Base;
use super::client::Client;
use super::podman::Podman;
use crate::run::{clear, command, heading, root, since, target};
use crate::server::{Access, Server, Settings};
use crate::{machine, tools};

/// The server's pool, bytes: the volumes, and room for what is written anew.
const POOL: u64 = 24 << 30;
/// Of a short run.
const POOL_QUICK: u64 = 8 << 30;
const START_LIMIT: Duration = Duration::from_mins(2);
/// The program that works on a directory.
const WORKLOAD: &str = include_str!("workload.py");

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Few rounds, small volumes and short slices: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Leave podman out.
    #[arg(long)]
    no_podman: bool,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = std::time::Instant::now();
    let pool = if arguments.quick { POOL_QUICK } else { POOL };
    machine::check(machine::DISK_BUILD + pool)?;
    tools::install_packages()?;
    tools::build()?;
    tools::build_image(&arguments.image_cache)?;
    let sdks = tools::install_sdks("sdk")?;

    let scratch = target("bench");
    clear(&scratch)?;
    let base = Base::mount(&scratch, &arguments.image_cache)?;
    let podman = if arguments.no_podman {
        None
    } else {
        heading("podman");
        Some(Podman::prepare(&scratch, &base)?)
    };
    let log = scratch.join("server.log");
    let data = scratch.join("data");
    let mut server = Server::start(&Settings {
        data: data.clone(),
        listen: "127.0.0.1:0".to_owned(),
        image_cache: arguments.image_cache.clone(),
        // Nothing is measured, packed or verified in the background meanwhile.
        arguments: [
            "--measure-every",
            "1h",
            "--checks-every",
            "1h",
            "--sandboxes-max",
            "100",
            "--pool-size",
            &pool.to_string(),
        ]
        .map(str::to_owned)
        .to_vec(),
        log_filter: Some("info,sandstone_node=debug"),
        log: log.clone(),
    })?;
    let access = server.wait_until_healthy(START_LIMIT)?;
    let mut sdk = Sdk::start(&sdks.python, &access)?;

    operations::run(&mut sdk, &data.join("pool"), &log, arguments.quick)?;
    io::run(&mut sdk, &base, podman.as_ref(), &scratch, arguments.quick)?;

    sdk.0.end()?;
    server.stop()?;
    drop(podman);
    drop(base);
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    println!("\ntotal time {}", since(start));
    Ok(())
}

/// What a call through the SDK gave, and how long the client waited.
#[derive(Debug, Deserialize)]
struct Answer {
    milliseconds: f64,
    value: Value,
}

impl Answer {
    /// A text in the object that was returned.
    fn text(&self, key: &str) -> Result<String> {
        self.value[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no {key} in {}", self.value))
    }
}

/// The official Python SDK in a process of its own.
#[derive(Debug)]
struct Sdk(Client);

impl Sdk {
    fn start(python: &Path, access: &Access) -> Result<Self> {
        let mut program = command(python);
        program
            .arg(root().join("xtask/src/bench/storage/client.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Client::start(&mut program, access).map(Self)
    }

    /// Calls one of the client's functions.
    fn call(&mut self, name: &str, list: &[&str], named: Value) -> Result<Answer> {
        let request = json!({"call": name, "list": list, "named": named});
        let answer = self.0.ask(&request.to_string())?;
        serde_json::from_str(&answer).context("reading the client's answer")
    }

    /// Runs the workload in a sandbox, on a directory there; returns its rate.
    fn work(&mut self, sandbox: &str, directory: &str, slice: &Slice) -> Result<f64> {
        let words: Vec<String> = ["python3", "/tmp/workload.py"]
            .map(str::to_owned)
            .into_iter()
            .chain(slice.arguments(directory))
            .collect();
        let answer = self.call("run", &[sandbox], json!({ "command": words }))?;
        rate(answer.value.as_str().unwrap_or_default())
    }

    /// A sandbox with the workload in it; more options are those of the SDK.
    fn open(&mut self, name: &str, options: Value) -> Result<Answer> {
        let opened = self.call("open", &[name], options)?;
        self.call("put", &[name, "/tmp/workload.py", WORKLOAD], json!({}))?;
        Ok(opened)
    }
}

/// One run of the workload.
#[derive(Debug, Clone, Copy)]
struct Slice {
    kind: &'static str,
    seconds: f64,
    megabytes: u64,
    files: u64,
}

impl Slice {
    fn arguments(&self, directory: &str) -> [String; 5] {
        [
            self.kind.to_owned(),
            directory.to_owned(),
            self.seconds.to_string(),
            self.megabytes.to_string(),
            self.files.to_string(),
        ]
    }
}

/// Reads what the workload printed.
fn rate(printed: &str) -> Result<f64> {
    #[derive(Deserialize)]
    struct Printed {
        rate: f64,
    }
    let printed: Printed =
        serde_json::from_str(printed).with_context(|| format!("the workload said {printed:?}"))?;
    Ok(printed.rate)
}
