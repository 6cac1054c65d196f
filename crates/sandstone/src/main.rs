//! `sandstone`: server, node and command line in one binary.
//!
//! This is the composition root: the only place that reads arguments and the environment, opens
//! files by configured paths, and hands the clock and the randomness to everything else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod ambient;
mod client;
mod commands;
mod data_dir;
mod doctor;
mod duration;
mod expose;
mod image;
mod listen;
mod open_files;
mod output;
mod serve;
mod ssh;

use client::{EXIT_CODES, Failure};
use commands::{pool, sandboxes, snapshots, volumes};

/// Sandboxes that keep their data: volumes, snapshots and isolated Linux machines on your own
/// hosts, for the official Deno Sandbox SDKs.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server: API, control plane and node in one process.
    Serve(Box<serve::ServeArguments>),
    /// Checks whether this machine can run sandboxes, and says what to do if not.
    Doctor(doctor::DoctorArguments),
    /// Sandboxes, and the URLs of their exposed servers.
    #[command(visible_aliases = ["sandbox", "sbx"], arg_required_else_help = true)]
    Sandboxes(sandboxes::SandboxesArguments),
    /// Volumes: storage that outlives sandboxes.
    #[command(visible_aliases = ["volume", "vol"], arg_required_else_help = true)]
    Volumes(volumes::VolumesArguments),
    /// Snapshots: volumes as they were at one instant.
    #[command(visible_aliases = ["snapshot", "snap"], arg_required_else_help = true)]
    Snapshots(snapshots::SnapshotsArguments),
    /// The storage pool that volumes and snapshots are in.
    #[command(arg_required_else_help = true)]
    Pool(pool::PoolArguments),
    /// Makes base images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Builds one sandbox's isolation; the server runs this by itself.
    #[command(hide = true)]
    Shim,
}

fn main() -> ExitCode {
    // The shim must stay single-threaded and small, so it branches off before anything else.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|command| command == "shim")
    {
        return sandstone_node::shim_main();
    }
    let arguments = Arguments::parse();
    let as_json = arguments.command.wants_json();
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Sandboxes(arguments) => sandboxes::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Volumes(arguments) => volumes::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Snapshots(arguments) => snapshots::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Pool(arguments) => pool::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Image(command) => image::run(command).map(|()| ExitCode::SUCCESS),
        Command::Shim => Ok(sandstone_node::shim_main()),
    };
    outcome.unwrap_or_else(|error| {
        let failure = error.downcast_ref::<Failure>();
        if as_json {
            report_json(&error, failure);
        } else {
            report(&error, failure);
        }
        failure.map_or(ExitCode::FAILURE, Failure::exit_code)
    })
}

impl Command {
    /// Whether errors are for a program, too.
    fn wants_json(&self) -> bool {
        match self {
            Self::Sandboxes(arguments) => arguments.server.json,
            Self::Volumes(arguments) => arguments.server.json,
            Self::Snapshots(arguments) => arguments.server.json,
            Self::Pool(arguments) => arguments.server.json,
            Self::Doctor(arguments) => arguments.server.json,
            Self::Serve(_) | Self::Image(_) | Self::Shim => false,
        }
    }
}

/// Says on standard error what went wrong, the causes below it, and what to do.
#[expect(
    clippy::print_stderr,
    reason = "this is the command line's error output"
)]
fn report(error: &anyhow::Error, failure: Option<&Failure>) {
    eprintln!("error: {}", output::harmless(&error.to_string()));
    for cause in error.chain().skip(1) {
        eprintln!("  because: {}", output::harmless(&cause.to_string()));
    }
    let Some(failure) = failure else { return };
    if let Some(hint) = &failure.hint {
        eprintln!("   hint: {}", output::harmless(hint));
    }
    if let Some(code) = &failure.code {
        eprintln!("   code: {}", output::harmless(code));
    }
    if let Some(trace_id) = &failure.trace_id {
        eprintln!("  trace: {}", output::harmless(trace_id));
    }
}

/// The same in one line of JSON.
#[expect(
    clippy::print_stderr,
    reason = "this is the command line's error output"
)]
fn report_json(error: &anyhow::Error, failure: Option<&Failure>) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let error = serde_json::json!({
        "code": failure.and_then(|failure| failure.code.as_deref()),
        "message": causes.join(": "),
        "hint": failure.and_then(|failure| failure.hint.as_deref()),
        "traceId": failure.and_then(|failure| failure.trace_id.as_deref()),
    });
    eprintln!("{}", serde_json::json!({ "error": error }));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_arguments_are_well_made() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let shown = command
                .get_subcommands()
                .filter(|below| !below.is_hide_set());
            let mut is_group = false;
            for below in shown {
                is_group = true;
                check(below, &path);
            }
            let help = command.get_after_help().map(ToString::to_string);
            let has_example = help.is_some_and(|help| help.contains("Example"));
            assert!(is_group || has_example, "{path} has no example");
        }
        let command = Arguments::command();
        for below in command
            .get_subcommands()
            .filter(|below| !below.is_hide_set())
        {
            check(below, "sandstone");
        }
    }

    #[test]
    fn names_for_the_same() {
        for line in [
            "sandstone volumes list",
            "sandstone volume ls",
            "sandstone vol ls data /a",
            "sandstone volumes new data --capacity 1GB",
            "sandstone volumes remove data --json",
            "sandstone --help",
            "sandstone snapshots ls --deleted -j",
            "sandstone snap rm monday",
            "sandstone snapshot new data monday",
            "sandstone pool show --url http://h:1 --token x",
            "sandstone sandboxes ls",
            "sandstone sandbox kill sbx_ord_x",
            "sandstone sandboxes expose sbx_ord_x --port 8000",
            "sandstone sandboxes exposures sbx_ord_x --json",
            "sandstone sandboxes unexpose sbx_ord_x https://a.sandbox.localhost",
            "sandstone serve --expose-listen none",
            "sandstone serve --expose-listen 0.0.0.0:443 --base-domain a.example --expose-port 443 --tls-cert a --tls-key b",
            "sandstone serve --deletion-grace 2s --purge-every 100ms --crash-at pack-copied:2",
        ] {
            match parse(line) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.exit_code(), 0, "{line}: {error}"),
            }
        }
    }

    #[test]
    fn wrong_usage_ends_with_two() {
        for line in [
            "sandstone volumes create",
            "sandstone volumes create -x",
            "sandstone volumes create data --capacity much",
            "sandstone volumes grow data",
            // A file is removed by its path; the volume itself only by `delete`.
            "sandstone volumes rm data",
            "sandstone volumes fork data A",
            "sandstone snapshots create data",
            "sandstone sandboxes expose sbx_ord_x --port 0",
            "sandstone sandboxes kill",
            "sandstone serve --expose-listen 8443",
            "sandstone serve --tls-cert a.pem",
            "sandstone serve --base-domain a..b",
            "sandstone serve --crash-at nowhere",
            "sandstone serve --deletion-grace 1",
        ] {
            let error = parse(line).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
