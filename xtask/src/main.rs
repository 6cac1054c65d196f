//! Everything a developer or a newcomer runs: `cargo xtask quickstart`, `test`, `soak` and `bench`.

#![expect(
    clippy::print_stdout,
    reason = "this is a command line tool; its output is what it is for"
)]

mod bench;
mod conformance;
mod fuzz;
mod http;
mod leak;
mod machine;
mod quickstart;
mod report;
mod run;
mod server;
mod soak;
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
    /// Compare docs/conformance.md with the results that the suites left in a directory.
    Conformance {
        /// Where the suites ran: SANDSTONE_TEST_SCRATCH.
        scratch: std::path::PathBuf,
    },
    /// Kill a server at random moments under a mixed load, and check what it has kept.
    Soak(soak::Arguments),
    /// Run the fuzz targets.
    Fuzz(fuzz::Arguments),
    /// Measure. Figures are printed beside a peer's from the same run.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Quickstart(arguments) => quickstart::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Conformance { scratch } => conformance::check(&scratch),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments).map(drop),
        Command::Bench(bench) => bench::run(&bench),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
