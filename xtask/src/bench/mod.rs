//! `cargo xtask bench`: measurements, each beside a peer's or a physical limit from the same run.

mod base;
mod client;
mod create;
mod figures;
mod podman;
mod rpc;
mod stage;
mod storage;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// Create to first command, with and without a volume, beside `podman run --rm`.
    Create(create::Arguments),
    /// Volumes and snapshots: what operations take, beside a bare clone, and I/O, beside the
    /// host's file system and a podman volume.
    Storage(storage::Arguments),
    /// Bytes and calls through each SDK, beside the same SDK on a server that does nothing.
    Rpc(rpc::Arguments),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Create(arguments) => create::run(arguments),
        Bench::Storage(arguments) => storage::run(arguments),
        Bench::Rpc(arguments) => rpc::run(arguments),
    }
}
