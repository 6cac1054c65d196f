//! Everything a developer or a newcomer runs: `cargo xtask quickstart`, `test` and `bench`.

#![expect(
    clippy::print_stdout,
    reason = "this is a command line tool; its output is what it is for"
)]

mod bench;
mod http;
mod leak;
mod machine;
mod quickstart;
mod report;
mod run;
mod server;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, try out and test Sandstone")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing, build, start a server and run the first example with both SDKs.
    Quickstart(quickstart::Arguments),
    /// Run the whole suite: formatting, lints, tidy, unit tests, the official SDKs, leftovers.
    Test(test::Arguments),
    /// Measure. Figures are printed beside a peer's from the same run.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Create to first command, with and without a volume, beside `podman run --rm`.
    Create(bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Quickstart(arguments) => quickstart::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(Bench::Create(arguments)) => bench::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
