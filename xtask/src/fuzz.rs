//! Fuzzing: the targets in `fuzz/`, with libFuzzer. They find what crashes, hangs or allocates
//! without bound, and answers that no client could read; a memory error is not looked for, because
//! none of their code is `unsafe`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, clear, command, execute, root, target};
use crate::tools;

/// The targets, each a binary of `fuzz/`. What is in `fuzz/seeds` under its name is where it
/// begins.
const TARGETS: [&str; 4] = ["agent_client", "edge_input", "edge_socket", "protocol"];

/// What the names of the targets of the server's edge begin with; also their dictionary in
/// `fuzz/dictionaries`.
const EDGE: &str = "edge";

/// Where what the compiler makes is.
const BUILD: &str = "fuzz";

/// Most memory of a target, MiB. They use less than a third.
const MEMORY_MIB: u32 = 1024;

/// Longest time for one input, seconds.
const INPUT_LIMIT: u32 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How long each target runs, all at once.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u32,
    /// Where the random choices begin, to have them again; by chance without it.
    #[arg(long)]
    pub(crate) seed: Option<u32>,
}

/// Builds the targets and runs them. How many there were.
pub(crate) fn run(arguments: &Arguments) -> Result<u64> {
    if !Path::new("/usr/bin/g++").exists() {
        // libFuzzer itself is C++.
        tools::install(&["g++"])?;
    }
    let manifest = root().join("fuzz/Cargo.toml");
    execute(
        cargo()
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(target(BUILD))
            .arg("--manifest-path")
            .arg(manifest)
            // See the script: it takes the compiler's place.
            .env("RUSTC_WRAPPER", root().join("fuzz/instrument"))
            .env("SANDSTONE_ROOT", root()),
    )?;
    let mut running = Vec::new();
    for name in TARGETS {
        let work = target(BUILD).join("work").join(name);
        let corpus = work.join("corpus");
        fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
        let temporary = work.join("tmp");
        clear(&temporary)?;
        let seeds = root().join("fuzz/seeds").join(name);
        let dictionary = root().join("fuzz/dictionaries").join(EDGE);
        let log = work.join("log");
        let output = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = command(target(BUILD).join("release").join(name))
            .arg(format!("-max_total_time={}", arguments.seconds))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-timeout={INPUT_LIMIT}"))
            .arg(format!("-artifact_prefix={}/", work.display()))
            .arg("-print_final_stats=1")
            .args(arguments.seed.map(|seed| format!("-seed={seed}")))
            .args(name.starts_with(EDGE).then(|| {
                let mut option = OsString::from("-dict=");
                option.push(dictionary);
                option
            }))
            .arg(&corpus)
            .args(seeds.exists().then_some(&seeds))
            // A process that libFuzzer ends leaves what it has there.
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        running.push((name, work, child));
    }
    let mut failed = Vec::new();
    for (name, work, mut child) in running {
        let status = child
            .wait()
            .with_context(|| format!("waiting for {name}"))?;
        clear(&work.join("tmp"))?;
        let log = fs::read_to_string(work.join("log")).unwrap_or_default();
        let units = log
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .map_or("no", str::trim);
        println!("{name}: {units} inputs, {status}");
        if !status.success() {
            // The input is among the last lines, in base64.
            let lines: Vec<&str> = log.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("an input was found for: {}", failed.join(", "));
    }
    Ok(TARGETS.len() as u64)
}
