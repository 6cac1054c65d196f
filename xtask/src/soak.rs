//! `cargo xtask soak`: a mixed load on a server that is killed at random moments.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::leak::HostState;
use crate::run::{clear, command, execute, heading, root, target};
use crate::{machine, tools};

/// The server's pool, bytes.
const POOL: u64 = 4 << 30;
/// What the kernel may still be doing when the server has ended.
const LEAK_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often the server is killed.
    #[arg(long, default_value_t = 200)]
    kills: u32,
    /// Repeats a run, up to the timing of the machine; a new one otherwise.
    #[arg(long)]
    seed: Option<u32>,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::check(machine::DISK_BUILD + POOL)?;
    tools::install_packages()?;
    tools::build()?;
    tools::build_image(&arguments.image_cache)?;
    let sdks = tools::install_sdks("sdk")?;
    let scratch = target("soak");
    clear(&scratch)?;

    heading("Load and kills");
    let before = HostState::now();
    let mut load = command(&sdks.python);
    load.current_dir(root().join("tests/sdk/py"))
        .args(["crash_load.py", "--kills", &arguments.kills.to_string()])
        .envs(tools::suite_settings(&scratch, &arguments.image_cache));
    if let Some(seed) = arguments.seed {
        load.args(["--seed", &seed.to_string()]);
    }
    execute(&mut load).with_context(|| {
        format!(
            "its server's data and log are kept in {}",
            scratch.display()
        )
    })?;
    let left = HostState::new_since(&before, LEAK_PATIENCE);
    if !left.is_empty() {
        bail!("left on the host:\n  - {}", left.join("\n  - "));
    }
    println!("nothing is left on the host");
    Ok(())
}
