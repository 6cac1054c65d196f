//! The whole suite, stage by stage; the first failure ends it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::leak::HostState;
use crate::report::{Counts, count};
use crate::run::{cargo, clear, command, execute, heading, root, since, target, tee};
use crate::server::{Server, Settings};
use crate::{conformance, fuzz, machine, tidy, tools};

/// What the kernel may still be doing when the last test has ended.
const LEAK_PATIENCE: Duration = Duration::from_secs(10);
/// The pools of the shared server, of two that live as long as the suite, and of the most that one
/// module starts, bytes: 8, 4 and 3, 6 GiB.
const POOLS: u64 = 22 << 30;
/// The checks of every method, which run under both runtimes.
const CONFORMANCE: [&str; 4] = [
    "conformance_files.test.mjs",
    "conformance_processes.test.mjs",
    "conformance_sandbox.test.mjs",
    "conformance_storage.test.mjs",
];
/// Longest start of the shared server: it makes its pool.
const START_LIMIT: Duration = Duration::from_mins(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only these stages.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Stage>,
    /// Of the SDK suites, only the tests whose name holds this.
    #[arg(long)]
    filter: Option<String>,
    /// Where the base image is kept between runs.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Formatting.
    Fmt,
    /// Lints.
    Clippy,
    /// Dependency rules, file sizes, `unsafe`, words.
    Tidy,
    /// Tests of the crates.
    Unit,
    /// The fuzz targets, a minute each.
    Fuzz,
    /// Both official SDKs against a real server, and servers that are killed.
    Sdk,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let before = HostState::now();
    let mut counts = Counts::default();
    let result = stages(arguments, &mut counts).and_then(|()| {
        heading("Leftovers on the host");
        let left = HostState::new_since(&before, LEAK_PATIENCE);
        if !left.is_empty() {
            bail!("left on the host:\n  - {}", left.join("\n  - "));
        }
        println!("none");
        Ok(())
    });
    if result.is_err() && counts.failed == 0 {
        counts.failed = 1;
    }
    println!("\ntotal time {}", since(start));
    println!("{} passed, {} failed", counts.passed, counts.failed);
    result
}

fn stages(arguments: &Arguments, counts: &mut Counts) -> Result<()> {
    let is_wanted = |stage| arguments.only.is_empty() || arguments.only.contains(&stage);
    heading("The machine and its tools");
    machine::check(machine::DISK_BUILD + POOLS)?;
    tools::install_packages()?;
    if is_wanted(Stage::Fmt) {
        tools::install_rust_components()?;
        timed("Formatting", || execute(cargo().args(["fmt", "--check"])))?;
    }
    if is_wanted(Stage::Clippy) {
        tools::install_rust_components()?;
        timed("Lints", || {
            execute(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ]))
        })?;
    }
    if is_wanted(Stage::Tidy) {
        timed("Tidy", tidy::check)?;
    }
    if is_wanted(Stage::Unit) {
        timed("Tests of the crates", || {
            // No fail-fast within the stage: one run shows every failure.
            let mut tests = cargo();
            tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
            counted(&mut tests, counts)
        })?;
    }
    if is_wanted(Stage::Fuzz) {
        timed("Fuzzing", || {
            // Nearly the same inputs each time: whoever changes something is to hear of that.
            let (seconds, seed) = (60, Some(1));
            counts.passed += fuzz::run(&fuzz::Arguments { seconds, seed })?;
            Ok(())
        })?;
    }
    if is_wanted(Stage::Sdk) {
        timed("The release binary", || tools::build().map(drop))?;
        timed("The base image", || {
            tools::build_image(&arguments.image_cache)
        })?;
        timed("The official SDKs", || sdk_suites(arguments, counts))?;
    }
    Ok(())
}

fn timed(name: &str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
    heading(name);
    let start = Instant::now();
    stage().with_context(|| format!("{name} failed"))?;
    println!("--- {name}: {}", since(start));
    Ok(())
}

/// Runs a test runner and adds up what it reports.
fn counted(runner: &mut Command, counts: &mut Counts) -> Result<()> {
    let (success, text) = tee(runner)?;
    let counted = count(&text);
    counts.add(counted);
    if !success {
        bail!("{} tests failed", counted.failed.max(1));
    }
    if counted.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// One server for all tests of the API; the tests of faults start their own.
fn sdk_suites(arguments: &Arguments, counts: &mut Counts) -> Result<()> {
    let sdks = tools::install_sdks("sdk")?;
    tools::link_node_modules(&sdks)?;
    let scratch = target("sdk/scratch");
    clear(&scratch)?;
    let data = scratch.join("shared");
    let mut server = Server::start(&Settings {
        data: data.clone(),
        listen: "127.0.0.1:0".to_owned(),
        image_cache: arguments.image_cache.clone(),
        // The suite installs packages from inside; where the host needs settings for that, so do
        // its sandboxes.
        arguments: [
            "--pool-size",
            "8GiB",
            "--guest-trust",
            "host",
            "--sandboxes-max",
            "100",
        ]
        .map(str::to_owned)
        .to_vec(),
        log_filter: None,
        log: scratch.join("shared.log"),
    })?;
    let access = server.wait_until_healthy(START_LIMIT)?;
    let server_pid = server.pid().to_string();
    let prepare = |program: &Path, directory: &str| {
        let mut runner = command(program);
        runner
            .current_dir(root().join("tests/sdk").join(directory))
            .envs(access.variables())
            .envs(tools::suite_settings(&scratch, &arguments.image_cache))
            .env("SANDSTONE_TEST_DATA_DIR", &data)
            .env("SANDSTONE_TEST_EXPOSE_CA", data.join("expose-ca.pem"))
            .env("SANDSTONE_TEST_SERVER_PID", &server_pid)
            .env("NO_COLOR", "1")
            .env_remove("RUST_BACKTRACE");
        runner
    };

    heading("JavaScript SDK under Deno");
    let mut deno = prepare(&sdks.deno, "js");
    deno.args(["test", "--allow-all", "--no-check", "--no-lock"]);
    if let Some(filter) = &arguments.filter {
        deno.args(["--filter", filter]);
    }
    let any = arguments.filter.is_some();
    // All three run, so that one run shows every failure.
    let deno = unless_filtered(any, counted(&mut deno, counts));

    heading("JavaScript SDK under Node");
    let mut node = prepare(&sdks.node, "js");
    // Node's runner gives a test no time limit of its own.
    node.args(["--test", "--test-concurrency=1", "--test-timeout=120000"]);
    if let Some(filter) = &arguments.filter {
        node.args(["--test-name-pattern", filter]);
    }
    node.args([
        "volumes.test.mjs",
        "sandbox.test.mjs",
        "snapshots.test.mjs",
        "fs.test.mjs",
        "deno.test.mjs",
        "fetch.test.mjs",
        "ssh.test.mjs",
        "expose.test.mjs",
    ]);
    node.args(CONFORMANCE);
    let node = unless_filtered(any, counted(&mut node, counts));

    heading("Python SDK, and servers that are stopped and killed");
    let mut pytest = prepare(&sdks.python, "py");
    pytest.args(["-m", "pytest", "--durations=5"]);
    if let Some(filter) = &arguments.filter {
        pytest.args(["-k", filter]);
    }
    let pytest = unless_filtered(any, counted(&mut pytest, counts));

    server.stop()?;
    println!("the shared server ended in order");
    deno.context("under Deno")?;
    node.context("under Node")?;
    pytest.context("under pytest")?;
    if !any {
        conformance::check(&scratch)?;
    }
    clear(&scratch)
}

/// A filter may leave a runner without a test; that is no failure.
fn unless_filtered(is_filtered: bool, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_filtered && error.to_string() == "no test ran" => Ok(()),
        other => other,
    }
}
