//! From a fresh machine to data that outlives its sandbox, with both official SDKs.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;
use crate::run::{binary, command, execute, heading, root, since, target};
use crate::server::{Access, Server, Settings};
use crate::{machine, tools};

/// How long a first start may take; the image is there by then, so seconds are usual.
const START_LIMIT: Duration = Duration::from_mins(3);
/// The server's default size of a pool.
const POOL_DEFAULT: u64 = 20 << 30;
/// The example's volume. It has our prefix, so that a user's own `dataset` is never touched.
const SLUG: &str = "quickstart-dataset";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the server keeps its data.
    #[arg(long, default_value = "/var/lib/sandstone")]
    data_dir: PathBuf,
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the base image is kept.
    #[arg(long, default_value = tools::IMAGE_CACHE)]
    image_cache: PathBuf,
    /// `host` gives sandboxes the host's name servers, certificate authorities and
    /// package-client settings, and the way to them.
    #[arg(long, value_name = "host")]
    guest_trust: Option<String>,
    /// Size of the pool that holds all volumes, as `sandstone serve` takes it; 20GiB by default.
    #[arg(long)]
    pool_size: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    println!(
        "This will, as far as it is not done yet:
  1. check this machine
  2. install the Debian packages that are missing
  3. build target/release/sandstone
  4. build the base image, builtin:debian-13, into {cache}
  5. start a server at {listen} with its data in {data}
  6. install the official JavaScript and Python SDKs into target/quickstart
  7. run the documentation's first volume example with each",
        cache = arguments.image_cache.display(),
        listen = arguments.listen,
        data = arguments.data_dir.display()
    );
    heading("1/7 The machine");
    // The pool's file is reserved in full at the first start.
    let is_initialised = arguments.data_dir.join("pool.img").exists();
    let pool = match arguments.pool_size {
        None if !is_initialised => POOL_DEFAULT,
        _ => 0,
    };
    machine::check(machine::DISK_BUILD + pool)?;
    heading("2/7 Debian packages");
    tools::install_packages()?;
    heading("3/7 The release binary");
    tools::build()?;
    println!("{}", binary().display());
    heading("4/7 The base image");
    tools::build_image(&arguments.image_cache)?;
    heading("5/7 The server");
    let access = running_server(arguments)?;
    heading("6/7 The official SDKs");
    let sdks = tools::install_sdks("quickstart")?;
    heading("7/7 A volume outlives its sandbox");
    run_examples(&access, &sdks)?;

    let [token, console, sandbox] = access.variables();
    println!(
        "\nReady after {}. Point the official SDKs at this server and go on:\n",
        since(start)
    );
    for (name, value) in [token, console, sandbox] {
        println!("export {name}={value}");
    }
    Ok(())
}

/// The healthy server on this data directory, or a new one that outlives us.
fn running_server(arguments: &Arguments) -> Result<Access> {
    let found = Access::read(&arguments.data_dir);
    if let Ok(access) = found.and_then(|access| access.health().map(|()| access)) {
        println!("one is running at {}; it is used as it is", access.address);
        return Ok(access);
    }
    // Only a test whether the address is free; the server binds it itself.
    TcpListener::bind(arguments.listen).with_context(|| {
        format!(
            "{} is taken by another program; choose another with --listen",
            arguments.listen
        )
    })?;
    fs::create_dir_all(target("quickstart"))?;
    let log = target("quickstart/server.log");
    let mut server = Server::start(&Settings {
        data: arguments.data_dir.clone(),
        listen: arguments.listen.to_string(),
        image_cache: arguments.image_cache.clone(),
        arguments: [
            ("--guest-trust", &arguments.guest_trust),
            ("--pool-size", &arguments.pool_size),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some([flag.to_owned(), value.clone()?]))
        .flatten()
        .collect(),
        log_filter: None,
        log: log.clone(),
    })?;
    let access = server.wait_until_healthy(START_LIMIT)?;
    println!(
        "listening at {}, process {}, log {}; `kill {}` stops it in order",
        access.address,
        server.pid(),
        log.display(),
        server.pid()
    );
    server.detach();
    Ok(access)
}

/// Runs the example of Deno's documentation with each SDK; its text is printed first.
fn run_examples(access: &Access, sdks: &tools::Sdks) -> Result<()> {
    let examples = root().join("tests/sdk/examples/volumes-and-snapshots");
    let javascript = sdks.js.join("example.tsx");
    let python = target("quickstart/example.py");
    for (source, program) in [("3-mount.tsx", &javascript), ("3-mount.py", &python)] {
        let text = fs::read_to_string(examples.join(source))
            .with_context(|| format!("reading the example {source}"))?;
        fs::write(program, text.replace("\"dataset\"", &format!("\"{SLUG}\"")))?;
    }
    let mut deno = command(&sdks.deno);
    deno.args(["run", "--quiet", "--allow-all"])
        .arg(&javascript);
    let mut interpreter = command(&sdks.python);
    interpreter.arg(&python);
    for (name, program, mut command) in [
        ("JavaScript", &javascript, deno),
        ("Python", &python, interpreter),
    ] {
        remove_example_volume(access)?;
        println!("\n--- {name}: {}", program.display());
        print!("{}", indented(program)?);
        println!("--- prints:");
        let start = Instant::now();
        // A proxy of the host must not be asked for its own loopback.
        execute(
            command
                .envs(access.variables())
                .env("NO_PROXY", "127.0.0.1,localhost"),
        )?;
        println!("--- in {}", since(start));
    }
    remove_example_volume(access)
}

fn indented(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)?;
    Ok(text.lines().map(|line| format!("    {line}\n")).collect())
}

/// The example creates its volume; an earlier run may have left one.
fn remove_example_volume(access: &Access) -> Result<()> {
    let path = format!("/api/v2/volumes/{SLUG}");
    let (status, body) = http::request(access.address, "DELETE", &path, Some(&access.token))?;
    match status {
        200..300 | 404 => Ok(()),
        _ => bail!("deleting the volume {SLUG}: {status} {body}"),
    }
}
