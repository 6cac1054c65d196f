//! What a measurement through the SDKs needs: the tools, the SDKs and a server of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::run::{clear, target};
use crate::server::{Access, Server, Settings};
use crate::tools::Sdks;
use crate::{machine, tools};

/// The server makes its pool first.
const START_LIMIT: Duration = Duration::from_mins(2);

/// Everything but the server, which is started when the peers are ready.
#[derive(Debug)]
pub(crate) struct Stage {
    /// A directory for everything that is gone afterwards.
    pub(crate) scratch: PathBuf,
    /// The SDKs and what runs them.
    pub(crate) sdks: Sdks,
    image_cache: PathBuf,
    pool: u64,
}

impl Stage {
    /// Installs and builds what is missing. The server's pool will have `pool` bytes.
    pub(crate) fn prepare(image_cache: &Path, pool: u64) -> Result<Self> {
        machine::check(machine::DISK_BUILD + pool)?;
        tools::install_packages()?;
        tools::build()?;
        tools::build_image(image_cache)?;
        let sdks = tools::install_sdks("sdk")?;
        tools::link_node_modules(&sdks)?;
        let scratch = target("bench");
        clear(&scratch)?;
        Ok(Self {
            scratch,
            sdks,
            image_cache: image_cache.to_owned(),
            pool,
        })
    }

    /// The server's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// Starts the server, with more arguments of `sandstone serve`, and waits until it is healthy.
    pub(crate) fn serve(&self, arguments: &[String]) -> Result<(Server, Access)> {
        let pool = ["--pool-size".to_owned(), self.pool.to_string()];
        let mut server = Server::start(&Settings {
            data: self.data(),
            listen: "127.0.0.1:0".to_owned(),
            image_cache: self.image_cache.clone(),
            arguments: [&pool, arguments].concat(),
            log_filter: None,
            log: self.scratch.join("server.log"),
        })?;
        let access = server.wait_until_healthy(START_LIMIT)?;
        Ok((server, access))
    }

    /// Stops the server and removes what it left.
    pub(crate) fn end(self, server: Server) -> Result<()> {
        server.stop()?;
        fs::remove_dir_all(&self.scratch).ok();
        Ok(())
    }
}
