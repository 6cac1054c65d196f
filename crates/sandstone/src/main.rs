//! `sandstone`: server, node and command line in one binary.
//!
//! This is the composition root: the only place that reads arguments and the environment, opens
//! files by configured paths, and hands the clock and the randomness to everything else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod ambient;
mod data_dir;
mod doctor;
mod image;
mod serve;

/// Sandboxes that keep their data: volumes, snapshots and isolated Linux machines on your own
/// hosts, for the official Deno Sandbox SDKs.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
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
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments).map(|()| ExitCode::SUCCESS),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Image(command) => image::run(command).map(|()| ExitCode::SUCCESS),
        Command::Shim => Ok(sandstone_node::shim_main()),
    };
    outcome.unwrap_or_else(|error| {
        report(&error);
        ExitCode::FAILURE
    })
}

/// Says on standard error what went wrong, the causes below it.
#[expect(
    clippy::print_stderr,
    reason = "this is the command line's error output"
)]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}
