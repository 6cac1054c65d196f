//! `cargo xtask bench create`: how long from "create" to the end of the first command, beside
//! `podman run --rm` of the same root file system in the same run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::base::Base;
use super::client::Client;
use super::figures::Figures;
use super::podman::Podman;
use super::stage::Stage;
use crate::run::{command, heading, root};
use crate::tools;

/// The server's pool, bytes.
const POOL: u64 = 8 << 30;
/// Rounds that nobody counts: caches fill, the warm pool is made.
const WARM_UP: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rounds of each kind.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Leave podman out.
    #[arg(long)]
    no_podman: bool,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

/// What the client measured in one round, milliseconds.
#[derive(Debug, Deserialize)]
struct Round {
    created: f64,
    first: f64,
    kill: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stage = Stage::prepare(&arguments.image_cache, POOL)?;
    let podman = if arguments.no_podman {
        None
    } else {
        heading("podman");
        let base = Base::mount(&stage.scratch, &arguments.image_cache)?;
        Some(Podman::prepare(&stage.scratch, &base)?)
    };

    heading("Rounds");
    let (server, access) = stage.serve(&[])?;
    let mut program = command(&stage.sdks.deno);
    program
        .args(["run", "--quiet", "--allow-all", "--no-lock"])
        .arg(root().join("tests/sdk/js/bench/create.mjs"));
    let mut client = Client::start(&mut program, &access)?;
    let mut figures = Figures::default();
    for round in 0..WARM_UP + arguments.rounds {
        let plain = ask(&mut client, "plain")?;
        let volume = ask(&mut client, "volume")?;
        let closed = ask(&mut client, "closed")?;
        let mut peers = Vec::new();
        for network in podman.iter().flat_map(|podman| &podman.networks) {
            if let Some(podman) = &podman {
                peers.push((network.clone(), podman.round(network)?));
            }
        }
        if round < WARM_UP {
            continue;
        }
        figures.add("sandstone: create", plain.created);
        figures.add("sandstone: create to first command", plain.first);
        figures.add("sandstone: create to first command, a volume", volume.first);
        figures.add("sandstone: create to first command, allowNet", closed.first);
        figures.add("sandstone: kill", plain.kill);
        figures.add("sandstone: kill, a volume", volume.kill);
        for (network, milliseconds) in peers {
            figures.add(&format!("podman run --rm, network {network}"), milliseconds);
        }
    }
    client.end()?;
    stage.end(server)?;

    heading("Create to first command");
    println!(
        "{} rounds each, by turns; client: @deno/sandbox in one warm Deno process",
        arguments.rounds
    );
    if let Some(podman) = &podman {
        println!("peer: {}", podman.description);
    }
    figures.print("ms");
    ratios(&figures);
    Ok(())
}

fn ask(client: &mut Client, kind: &str) -> Result<Round> {
    serde_json::from_str(&client.ask(kind)?).context("reading the client's answer")
}

fn ratios(figures: &Figures) {
    println!();
    for network in ["none", "podman"] {
        let Some(peer) = figures.median(&format!("podman run --rm, network {network}")) else {
            continue;
        };
        for ours in [
            "sandstone: create to first command",
            "sandstone: create to first command, a volume",
        ] {
            if let Some(own) = figures.median(ours) {
                println!(
                    "p50 of podman, network {network} / {ours}: {:.1}",
                    peer / own
                );
            }
        }
    }
}
