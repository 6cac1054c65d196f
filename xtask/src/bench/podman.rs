//! Podman as a peer: the same root file system, on the same host, in the same run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::base::Base;
use crate::run::{command, output, succeeds};
use crate::tools;

/// The name of the imported base image.
pub(crate) const PODMAN_IMAGE: &str = "localhost/sandstone-bench";

/// Podman with the base image imported, and what works on this machine.
#[derive(Debug)]
pub(crate) struct Podman {
    /// The command up to `run`, which depends on the machine's control groups.
    prefix: Vec<String>,
    pub(crate) networks: Vec<String>,
    configuration: PathBuf,
    pub(crate) description: String,
    had_bridge: bool,
    /// The firewall's tables before podman added its own.
    tables: Vec<String>,
}

impl Podman {
    /// Installs podman if it is missing, and imports the base image.
    pub(crate) fn prepare(scratch: &Path, base: &Base) -> Result<Self> {
        let packages = [
            ("podman", "/usr/bin/podman"),
            ("crun", "/usr/bin/crun"),
            ("netavark", "/usr/lib/podman/netavark"),
            ("aardvark-dns", "/usr/lib/podman/aardvark-dns"),
            ("iptables", "/usr/sbin/iptables"),
            ("catatonit", "/usr/bin/catatonit"),
        ];
        let missing: Vec<&str> = packages
            .iter()
            .filter(|(_, file)| !Path::new(file).exists())
            .map(|(package, _)| *package)
            .collect();
        tools::install(&missing)?;
        // Its defaults raise limits beyond what a container or a small machine allows.
        let configuration = scratch.join("containers.conf");
        fs::write(
            &configuration,
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
        )?;
        import(base, &configuration)?;
        let mut podman = Self {
            prefix: Vec::new(),
            networks: Vec::new(),
            configuration,
            description: String::new(),
            had_bridge: Path::new("/sys/class/net/podman0").exists(),
            tables: firewall_tables(),
        };
        // crun is the faster one, but refuses mixed control groups: hidden from it in a mount
        // namespace of its own, they do no harm.
        let plain = |runtime: &str| vec!["podman".into(), "--runtime".into(), runtime.into()];
        let hidden = {
            let script = "umount /sys/fs/cgroup/unified && exec podman --runtime crun \"$@\"";
            ["unshare", "-m", "sh", "-c", script, "podman"]
                .map(str::to_owned)
                .to_vec()
        };
        let candidates = [
            ("crun", plain("crun")),
            ("crun, without the unified control groups", hidden),
            ("runc", plain("runc")),
        ];
        for (name, prefix) in candidates {
            podman.prefix = prefix;
            if succeeds(&mut podman.command("none")) {
                podman.description =
                    format!("{}, {name}", output(podman.base().arg("--version"))?.trim());
                break;
            }
        }
        if podman.description.is_empty() {
            let why = output(&mut podman.command("none")).err();
            bail!(
                "podman runs neither with crun nor with runc: {}",
                why.map(|error| error.to_string()).unwrap_or_default()
            );
        }
        podman.networks.push("none".to_owned());
        if succeeds(&mut podman.command("podman")) {
            podman.networks.push("podman".to_owned());
        } else {
            println!("podman's own network does not work here; only `--network none` is measured");
        }
        println!("{}", podman.description);
        Ok(podman)
    }

    fn base(&self) -> Command {
        let mut base = command("podman");
        base.env("CONTAINERS_CONF", &self.configuration);
        base
    }

    /// `podman run --rm` of the base image; more options and the program are to follow.
    pub(crate) fn run(&self, network: &str) -> Command {
        let mut podman = command(&self.prefix[0]);
        podman
            .args(&self.prefix[1..])
            .args(["run", "--rm", "--network", network])
            .env("CONTAINERS_CONF", &self.configuration);
        podman
    }

    fn command(&self, network: &str) -> Command {
        let mut podman = self.run(network);
        podman
            .args([PODMAN_IMAGE, "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        podman
    }

    /// One container, in milliseconds.
    pub(crate) fn round(&self, network: &str) -> Result<f64> {
        let start = Instant::now();
        let status = self.command(network).status().context("starting podman")?;
        let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        if !status.success() {
            bail!("podman run ended with {status}");
        }
        Ok(milliseconds)
    }
}

impl Drop for Podman {
    /// Takes away what podman made for us: the image, the bridge, tables of the firewall.
    fn drop(&mut self) {
        // Without our configuration, whose file may be gone by now.
        succeeds(command("podman").args(["rmi", "--force", PODMAN_IMAGE]));
        if !self.had_bridge {
            succeeds(command("ip").args(["link", "delete", "podman0"]));
        }
        for table in firewall_tables() {
            // Ours are named after us; podman's are `ip nat`, `ip filter` and the like.
            if !self.tables.contains(&table) && !table.contains("sandstone") {
                let words = table.split_whitespace().skip(1);
                succeeds(command("nft").args(["delete", "table"]).args(words));
            }
        }
    }
}

/// One line per table, as in `table ip nat`.
fn firewall_tables() -> Vec<String> {
    let listed = output(command("nft").args(["list", "tables"])).unwrap_or_default();
    listed.lines().map(str::to_owned).collect()
}

/// Imports the base image into podman: packed and handed over.
fn import(base: &Base, configuration: &Path) -> Result<()> {
    let packed = succeeds(
        command("sh")
            .args([
                "-c",
                "tar -C \"$1\" -c . | podman import --quiet - \"$2\"",
                "sh",
            ])
            .arg(base.tree())
            .arg(PODMAN_IMAGE)
            .env("CONTAINERS_CONF", configuration),
    );
    if !packed {
        bail!("podman did not import the base image");
    }
    Ok(())
}
