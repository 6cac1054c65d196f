//! `cargo xtask bench create`: how long from "create" to the end of the first command, beside
//! `podman run --rm` of the same root file system in the same run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run::{binary, command, execute, heading, output, root, succeeds, target};
use crate::server::{Access, Server, Settings};
use crate::{machine, tools};

/// The server's pool, bytes.
const POOL: u64 = 8 << 30;
/// Rounds that nobody counts: caches fill, the warm pool is made.
const WARM_UP: usize = 5;
const START_LIMIT: Duration = Duration::from_mins(2);
const PODMAN_IMAGE: &str = "localhost/sandstone-bench";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rounds of each kind.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Leave podman out.
    #[arg(long)]
    no_podman: bool,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
}

/// What the client measured in one round, milliseconds.
#[derive(Debug, Deserialize)]
struct Round {
    created: f64,
    first: f64,
    kill: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::check(machine::DISK_BUILD + POOL)?;
    tools::install_packages()?;
    tools::build()?;
    tools::build_image(&arguments.image_cache)?;
    let sdks = tools::install_sdks("sdk")?;
    tools::link_node_modules(&sdks)?;

    let scratch = target("bench");
    fs::create_dir_all(&scratch)?;
    let podman = if arguments.no_podman {
        None
    } else {
        heading("podman");
        Some(Podman::prepare(&scratch, &arguments.image_cache)?)
    };

    heading("Rounds");
    let mut server = Server::start(&Settings {
        data: scratch.join("data"),
        listen: "127.0.0.1:0".to_owned(),
        image_cache: arguments.image_cache.clone(),
        arguments: vec!["--pool-size".to_owned(), POOL.to_string()],
        log: scratch.join("server.log"),
    })?;
    let access = server.wait_until_healthy(START_LIMIT)?;
    let mut client = Client::start(&sdks.deno, &access)?;
    let mut figures = Figures::default();
    for round in 0..WARM_UP + arguments.rounds {
        let plain = client.round("plain")?;
        let volume = client.round("volume")?;
        let mut peers = Vec::new();
        for network in podman.iter().flat_map(|podman| &podman.networks) {
            if let Some(podman) = &podman {
                peers.push((network.clone(), podman.round(network)?));
            }
        }
        if round < WARM_UP {
            continue;
        }
        figures.add("sandstone: create", plain.created);
        figures.add("sandstone: create to first command", plain.first);
        figures.add("sandstone: create to first command, a volume", volume.first);
        figures.add("sandstone: kill", plain.kill);
        figures.add("sandstone: kill, a volume", volume.kill);
        for (network, milliseconds) in peers {
            figures.add(&format!("podman run --rm, network {network}"), milliseconds);
        }
    }
    client.end()?;
    server.stop()?;
    fs::remove_dir_all(&scratch).ok();

    heading("Create to first command");
    println!(
        "{} rounds each, by turns; client: @deno/sandbox in one warm Deno process",
        arguments.rounds
    );
    if let Some(podman) = &podman {
        println!("peer: {}", podman.description);
    }
    figures.print();
    Ok(())
}

/// The warm client process.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(deno: &Path, access: &Access) -> Result<Self> {
        let mut child = command(deno)
            .args(["run", "--quiet", "--allow-all", "--no-lock"])
            .arg(root().join("tests/sdk/js/bench/create.mjs"))
            .envs(access.variables())
            .env("NO_PROXY", "127.0.0.1,localhost")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the client")?;
        let input = child.stdin.take().context("the client has no input")?;
        let output = child.stdout.take().context("the client has no output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    fn round(&mut self, kind: &str) -> Result<Round> {
        writeln!(self.input, "{kind}").context("talking to the client")?;
        // The SDK prints lines of its own.
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("the client ended in a {kind} round");
            }
            if line.starts_with('{') {
                return serde_json::from_str(&line).context("reading the client's answer");
            }
        }
    }

    fn end(self) -> Result<()> {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        if !child.wait()?.success() {
            bail!("the client did not end well");
        }
        Ok(())
    }
}

/// Podman with the base image imported, and what works on this machine.
struct Podman {
    /// The command up to `run`, which depends on the machine's control groups.
    prefix: Vec<String>,
    networks: Vec<String>,
    configuration: PathBuf,
    description: String,
    had_bridge: bool,
    /// The firewall's tables before podman added its own.
    tables: Vec<String>,
}

impl Podman {
    fn prepare(scratch: &Path, image_cache: &Path) -> Result<Self> {
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
        import(scratch, image_cache, &configuration)?;
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

    fn command(&self, network: &str) -> Command {
        let mut podman = command(&self.prefix[0]);
        podman
            .args(&self.prefix[1..])
            .args(["run", "--rm", "--network", network, PODMAN_IMAGE, "true"])
            .env("CONTAINERS_CONF", &self.configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        podman
    }

    /// One container, in milliseconds.
    fn round(&self, network: &str) -> Result<f64> {
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

/// Imports the base image into podman: mounted read-only, packed and handed over.
fn import(scratch: &Path, image_cache: &Path, configuration: &Path) -> Result<()> {
    let printed = output(
        command(binary())
            .args(["image", "build", "--image-cache"])
            .arg(image_cache),
    )?;
    let image = printed.trim();
    let mount = scratch.join("base");
    fs::create_dir_all(&mount)?;
    execute(
        command("mount")
            .args(["-o", "ro,loop,noload", image])
            .arg(&mount),
    )?;
    let packed = succeeds(
        command("sh")
            .args([
                "-c",
                "tar -C \"$1\" -c . | podman import --quiet - \"$2\"",
                "sh",
            ])
            .arg(&mount)
            .arg(PODMAN_IMAGE)
            .env("CONTAINERS_CONF", configuration),
    );
    execute(command("umount").arg(&mount))?;
    if !packed {
        bail!("podman did not import the base image");
    }
    Ok(())
}

/// Named series of milliseconds, in the order in which they first came.
#[derive(Debug, Default)]
struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn print(mut self) {
        for (_, values) in &mut self.0 {
            values.sort_by(f64::total_cmp);
        }
        println!("\n{:<48} {:>9} {:>9} {:>9}", "ms", "min", "p50", "p99");
        for (name, values) in &self.0 {
            println!(
                "{name:<48} {:>9.1} {:>9.1} {:>9.1}",
                percentile(values, 0.0),
                percentile(values, 50.0),
                percentile(values, 99.0)
            );
        }
        let median = |wanted: &str| {
            let (_, values) = self.0.iter().find(|(name, _)| name == wanted)?;
            Some(percentile(values, 50.0))
        };
        println!();
        for network in ["none", "podman"] {
            let Some(peer) = median(&format!("podman run --rm, network {network}")) else {
                continue;
            };
            for ours in [
                "sandstone: create to first command",
                "sandstone: create to first command, a volume",
            ] {
                if let Some(own) = median(ours) {
                    println!(
                        "p50 of podman, network {network} / {ours}: {:.1}",
                        peer / own
                    );
                }
            }
        }
    }
}

/// A percentile of sorted values, by the nearest rank.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a small count, never negative"
    )]
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    let index = rank.saturating_sub(1).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let values: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 50.0), 25.0);
        assert_eq!(percentile(&values, 99.0), 50.0);
        assert!(percentile(&[], 50.0).is_nan());
    }
}
