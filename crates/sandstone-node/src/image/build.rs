//! The steps of a build.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sha2::{Digest as _, Sha512};

use super::ImageError;
use super::mirrors::{self, KEYRING, SUITE};
use super::recipe::{self, NpmPackage, SOURCE_DATE_EPOCH};
use super::runner::Runner;

/// Start of the names of build directories.
const WORK_PREFIX: &str = ".build-";
/// Size of a block of the image, bytes.
const BLOCK: u64 = 4096;
/// Space in the image beside files: group descriptors, bitmaps, and a little to spare, bytes.
const SPARE: u64 = 32 << 20;
/// Bytes of an inode in the image.
const INODE: u64 = 256;
/// Blocks of a block group: as many as a bitmap of one block has bits.
const GROUP_BLOCKS: u64 = BLOCK * 8;
/// Inodes of a block group, as `mke2fs` makes them by default: one for 16 KiB. A bootable volume
/// is a copy of the image, grown; each group that growing adds has as many as the first ones.
const GROUP_INODES: u64 = GROUP_BLOCKS * BLOCK / 16384;
/// The directory of the image that holds the tree, as in every image of a pool.
const TREE: &str = "v";

/// What mmdebstrap runs under. It mounts in its root directory and runs scripts of the
/// packages; in name spaces of its own, all of that ends with it. The signal makes it end with
/// this process, however that ends.
const CONFINE: [&str; 9] = [
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
];

/// Builds the image in a directory of its own below `dir` and moves it to `path` when it is whole.
/// The caller holds the lock.
pub(super) fn build(
    dir: &Path,
    path: &Path,
    deadline: Instant,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, ImageError> {
    if !Path::new(KEYRING).is_file() {
        return Err(ImageError::Keyring {
            path: KEYRING.into(),
        });
    }
    let mut runner = Runner::new(progress, deadline);
    sweep(dir, &mut runner)?;
    let work = WorkDir::create(dir)?;

    let npm = work.path.join("npm");
    create_dir(&npm)?;
    for package in recipe::npm_packages() {
        fetch(&mut runner, &npm, &package)?;
    }
    let content = work.path.join("content");
    create_dir(&content)?;
    let root = content.join(TREE);
    bootstrap(&mut runner, &work.path, &npm, &root)?;
    seal(&mut runner, &work.path, &root)?;
    let image = work.path.join("image");
    make_image(&mut runner, &content, &image)?;

    fs::rename(&image, path).map_err(ImageError::io("rename to", path))?;
    sync(dir)?;
    runner.say("clean up");
    runner.run("clean up", "coreutils", &mut remove_command(&work.path), "")?;
    runner.say("the image is ready");
    Ok(path.to_owned())
}

/// Removes what killed builders left. Whoever holds the lock is the only builder.
fn sweep(dir: &Path, runner: &mut Runner<'_>) -> Result<(), ImageError> {
    let entries = fs::read_dir(dir).map_err(ImageError::io("list", dir))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
            runner.say("remove what an interrupted build left");
            let path = entry.path();
            runner.run("remove", "coreutils", &mut remove_command(&path), "")?;
        }
    }
    Ok(())
}

/// Removes a directory, and never what may be mounted below it.
fn remove_command(path: &Path) -> Command {
    let mut command = Command::new("rm");
    command
        .args(["--recursive", "--force", "--one-file-system", "--"])
        .arg(path);
    command
}

/// The directory a build works in, removed when the build is over however it ends.
struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn create(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(format!("{WORK_PREFIX}{}", std::process::id()));
        create_dir(&path)?;
        Ok(Self { path })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Removed already after a build that went well; then this does nothing.
        match remove_command(&self.path).status() {
            Ok(status) if status.success() => {}
            outcome => tracing::warn!(
                path = %self.path.display(),
                ?outcome,
                "an ended build's directory stays until the next build"
            ),
        }
    }
}

fn create_dir(path: &Path) -> Result<(), ImageError> {
    fs::create_dir(path).map_err(ImageError::io("create", path))
}

/// Fetches, verifies and unpacks one package of the npm registry, as the host's npm is configured.
fn fetch(runner: &mut Runner<'_>, npm: &Path, package: &NpmPackage) -> Result<(), ImageError> {
    let label = format!("{}@{}", package.name, package.version);
    runner.say(&format!("fetch {label}"));
    let archives = npm.join(format!("{}.archive", package.directory()));
    create_dir(&archives)?;
    runner.run(
        "npm pack",
        "npm",
        Command::new("npm")
            .args(["pack", "--ignore-scripts", "--loglevel=error"])
            .arg("--pack-destination")
            .arg(&archives)
            .arg(&label)
            // Not in a project: its .npmrc would count.
            .current_dir(npm),
        "",
    )?;
    let archive = only_entry(&archives)?;
    let found = sha512(&archive)?;
    if found != package.sha512 {
        return Err(ImageError::Digest {
            package: label,
            expected: package.sha512.to_owned(),
            found,
        });
    }
    let target = npm.join(package.directory());
    create_dir(&target)?;
    runner.run(
        "unpack",
        "tar",
        Command::new("tar")
            .args([
                "--extract",
                "--gzip",
                "--no-same-owner",
                "--strip-components=1",
            ])
            .arg("--directory")
            .arg(&target)
            .arg("--file")
            .arg(&archive),
        "",
    )?;
    Ok(())
}

fn only_entry(dir: &Path) -> Result<PathBuf, ImageError> {
    const STEP: &str = "look for the one archive in";
    let mut entries = fs::read_dir(dir).map_err(ImageError::io(STEP, dir))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.path()),
        _ => Err(ImageError::io(STEP, dir)(io::ErrorKind::NotFound.into())),
    }
}

fn sha512(path: &Path) -> Result<String, ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let mut hasher = Sha512::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(ImageError::io("read", path))?;
        if read == 0 {
            return Ok(recipe::hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Debian's packages into `root`, then the customization.
fn bootstrap(
    runner: &mut Runner<'_>,
    work: &Path,
    npm: &Path,
    root: &Path,
) -> Result<(), ImageError> {
    const STEP: &str = "Debian packages";
    let targets = runner.run(
        "the host's package sources",
        "apt",
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            mirrors::TARGET_FORMAT,
            "Identifier: Packages",
        ]),
        "",
    )?;
    let config = runner.run(
        "the host's apt configuration",
        "apt",
        Command::new("apt-config").arg("dump"),
        "",
    )?;
    // Asked by its own name first: below it hides behind the programs that confine it.
    runner.run(
        STEP,
        "mmdebstrap",
        Command::new("mmdebstrap").arg("--version"),
        "",
    )?;
    let customize = work.join("customize.sh");
    fs::write(&customize, recipe::CUSTOMIZE).map_err(ImageError::io("write", &customize))?;

    let mut command = Command::new(CONFINE[0]);
    command
        .args(&CONFINE[1..])
        .arg("mmdebstrap")
        .args(recipe::mmdebstrap_options())
        .arg(format!("--include={}", recipe::packages().join(",")))
        // mmdebstrap hands this to a shell, with the root directory as $1. The paths come by
        // environment, so nothing needs quoting.
        .arg("--customize-hook=sh \"$SANDSTONE_CUSTOMIZE\" \"$1\"")
        .env("SANDSTONE_CUSTOMIZE", &customize)
        .env("SANDSTONE_NPM", npm)
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("TMPDIR", work)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("APT_CONFIG")
        .current_dir(work);
    for option in mirrors::acquire_options(&config) {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg(SUITE).arg(root);
    let sources = mirrors::package_sources(&targets);
    if sources.is_some() {
        // Without this, mmdebstrap does not read its input but uses mirrors that it knows.
        command.arg("-");
    }
    runner.say(match sources {
        Some(_) => "Debian packages from the host's mirrors",
        None => "Debian packages from mmdebstrap's own choice of mirror",
    });
    runner.run(
        STEP,
        "util-linux",
        &mut command,
        sources.as_deref().unwrap_or_default(),
    )?;
    Ok(())
}

/// Removes what a build leaves behind and dates everything alike.
fn seal(runner: &mut Runner<'_>, work: &Path, root: &Path) -> Result<(), ImageError> {
    runner.say("seal");
    let script = work.join("seal.sh");
    fs::write(&script, recipe::SEAL).map_err(ImageError::io("write", &script))?;
    runner.run(
        "seal",
        "dash",
        Command::new("sh")
            .arg(&script)
            .arg(root)
            .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH),
        "",
    )?;
    Ok(())
}

/// `content` as a raw ext4 image, checked and on disk.
fn make_image(runner: &mut Runner<'_>, content: &Path, image: &Path) -> Result<(), ImageError> {
    const PACKAGE: &str = "e2fsprogs";
    runner.say("make the image");
    let uuid = recipe::uuid();
    let (blocks, inodes) = Content::of(content)?.room();
    runner.run(
        "mke2fs",
        PACKAGE,
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", &BLOCK.to_string(), "-m", "0"])
            // Only ever mounted read-only, so there is nothing to journal. A volume that is made
            // from it gets a journal of its own.
            .args(["-O", "^has_journal", "-I", &INODE.to_string()])
            .args(["-N", &inodes.to_string(), "-U", &uuid])
            .arg("-E")
            .arg(format!(
                "hash_seed={uuid},nodiscard,assume_storage_prezeroed=1"
            ))
            .arg("-d")
            .arg(content)
            .arg(image)
            .arg(blocks.to_string())
            .env("E2FSPROGS_FAKE_TIME", SOURCE_DATE_EPOCH)
            .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH),
        "",
    )?;
    runner.run(
        "e2fsck",
        PACKAGE,
        Command::new("e2fsck").args(["-f", "-n"]).arg(image),
        "",
    )?;
    sync(image)
}

/// What a tree needs in a file system.
#[derive(Default)]
struct Content {
    files: u64,
    bytes: u64,
}

impl Content {
    fn of(root: &Path) -> Result<Self, ImageError> {
        const STEP: &str = "measure";
        let mut content = Self::default();
        let mut linked = HashSet::new();
        let mut pending = vec![root.to_owned()];
        while let Some(dir) = pending.pop() {
            content.add(BLOCK);
            for entry in fs::read_dir(&dir).map_err(ImageError::io(STEP, &dir))? {
                let entry = entry.map_err(ImageError::io(STEP, &dir))?;
                let path = entry.path();
                let metadata = entry.metadata().map_err(ImageError::io(STEP, &path))?;
                if metadata.is_dir() {
                    // Directories grow with their entries; the size on the host is close.
                    content.bytes += metadata.len().next_multiple_of(BLOCK);
                    pending.push(path);
                } else if metadata.nlink() == 1 || linked.insert(metadata.ino()) {
                    content.add(metadata.len());
                }
            }
        }
        Ok(content)
    }

    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes.next_multiple_of(BLOCK);
    }

    /// Blocks and inodes of a file system that holds it.
    fn room(&self) -> (u64, u64) {
        let data = (self.bytes + SPARE).div_ceil(BLOCK);
        let group_tables = GROUP_INODES * INODE / BLOCK;
        let groups = data
            .div_ceil(GROUP_BLOCKS - group_tables)
            // The first inodes are the file system's own.
            .max((self.files + 16).div_ceil(GROUP_INODES));
        // One group more than the data may need would cost a table, and one less is not counted.
        (data + groups * group_tables, groups * GROUP_INODES)
    }
}

/// Waits until a file or a directory's entries are on disk.
fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(ImageError::io("write to disk", path))
}
