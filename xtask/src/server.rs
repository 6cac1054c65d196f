//! A server of ours: started, watched until it is healthy, stopped in order.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::http;
use crate::run::{self, command};

/// Where a running server is and how to talk to it.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
}

impl Access {
    /// Reads what a server has written to its data directory.
    pub(crate) fn read(data: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = data.join(name);
            fs::read_to_string(&path)
                .map(|text| text.trim().to_owned())
                .with_context(|| format!("reading {}", path.display()))
        };
        let address = read("listen-address")?;
        Ok(Self {
            address: address
                .parse()
                .with_context(|| format!("{address} is not an address"))?,
            token: read("admin-token")?,
        })
    }

    /// The variables that point both SDKs at this server.
    pub(crate) fn variables(&self) -> [(&'static str, String); 3] {
        let url = format!("http://{}", self.address);
        [
            ("DENO_DEPLOY_TOKEN", self.token.clone()),
            ("DENO_DEPLOY_ENDPOINT", url.clone()),
            ("DENO_SANDBOX_ENDPOINT", url),
        ]
    }

    /// Whether sandboxes can be created, and with this token; else why not.
    pub(crate) fn health(&self) -> Result<()> {
        let (status, body) = http::request(self.address, "GET", "/healthz", None)?;
        if status != 200 {
            bail!("{body}");
        }
        let path = "/api/v2/volumes?limit=1";
        let (status, body) = http::request(self.address, "GET", path, Some(&self.token))?;
        if status != 200 {
            bail!("the server at {} answers {status}: {body}", self.address);
        }
        Ok(())
    }
}

/// How to start a server.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) listen: String,
    pub(crate) image_cache: PathBuf,
    /// More arguments of `sandstone serve`.
    pub(crate) arguments: Vec<String>,
    /// What the server logs, as its `SANDSTONE_LOG` takes it.
    pub(crate) log_filter: Option<&'static str>,
    pub(crate) log: PathBuf,
}

/// A server that we started.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    is_detached: bool,
}

impl Server {
    /// Starts a server in a session of its own, so that it can outlive us.
    pub(crate) fn start(settings: &Settings) -> Result<Self> {
        fs::create_dir_all(&settings.data)?;
        // A file of an earlier run would send us to the wrong address.
        match fs::remove_file(settings.data.join("listen-address")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let log = File::create(&settings.log)
            .with_context(|| format!("creating {}", settings.log.display()))?;
        let mut serve: Command = command("setsid");
        serve
            .arg(run::binary())
            .arg("serve")
            .arg("--data-dir")
            .arg(&settings.data)
            .args(["--listen", &settings.listen])
            // Several servers share this host.
            .args(["--ssh-listen", "127.0.0.1:0"])
            .args(["--expose-listen", "127.0.0.1:0", "--image-cache"])
            .arg(&settings.image_cache)
            .args(&settings.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(filter) = settings.log_filter {
            // To be read by programs, so without colours.
            serve.env("SANDSTONE_LOG", filter).env("NO_COLOR", "1");
        }
        let child = serve.spawn().context("starting the server")?;
        Ok(Self {
            child,
            data: settings.data.clone(),
            log: settings.log.clone(),
            is_detached: false,
        })
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until sandboxes can be created.
    pub(crate) fn wait_until_healthy(&mut self, limit: Duration) -> Result<Access> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log_tail());
            }
            let healthy =
                Access::read(&self.data).and_then(|access| access.health().map(|()| access));
            match healthy {
                Ok(access) => return Ok(access),
                Err(error) if start.elapsed() > limit => bail!(
                    "the server is not healthy after {} s: {error:#}\n{}",
                    limit.as_secs(),
                    self.log_tail()
                ),
                Err(_) => sleep(Duration::from_millis(50)),
            }
        }
    }

    /// SIGTERM, and waits for the end; killed after a minute.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "the server had ended with {status} before:\n{}",
                self.log_tail()
            );
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).context("stopping the server")?;
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(1) {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("the server ended with {status}:\n{}", self.log_tail());
            }
            sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("SIGTERM did not end the server:\n{}", self.log_tail());
    }

    /// Lets the server run on after we have ended.
    pub(crate) fn detach(mut self) {
        self.is_detached = true;
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    /// A stage that failed half-way must not leave a server behind.
    fn drop(&mut self) {
        if !self.is_detached && matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.terminate();
        }
    }
}
