//! `sandstone image`: base images.

use std::path::PathBuf;

use clap::Subcommand;
use sandstone_node::ImageCache;

/// Where built images are kept when nothing else is said. Shared by all servers of a host.
pub(crate) const DEFAULT_IMAGE_CACHE: &str = "/var/cache/sandstone/images";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Builds the base image builtin:debian-13 from Debian's packages, if it is not there.
    #[command(after_help = "Example:
  sandstone image build")]
    Build {
        /// Where built images are kept.
        #[arg(long, env = "SANDSTONE_IMAGE_CACHE", default_value = DEFAULT_IMAGE_CACHE)]
        image_cache: PathBuf,
    },
}

#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "this is the command line's output"
)]
pub(crate) fn run(command: ImageCommand) -> anyhow::Result<()> {
    let ImageCommand::Build { image_cache } = command;
    let path = ImageCache::new(image_cache).build(&mut |line| eprintln!("{line}"))?;
    println!("{}", path.display());
    Ok(())
}
