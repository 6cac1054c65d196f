//! A pool of its own for each test, and what tests do with mounts.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::fs::{Dir, Mode, OFlags, openat};
use sandstone_storage::{ImageKind, ImageName, Pool, PoolConfig, VolumeUse};

pub(crate) const MIB: u64 = 1 << 20;
/// The smallest volume there is.
pub(crate) const SMALL: u64 = 300_000_000;
/// How long a release may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const fn volume(name: &str) -> ImageName<'_> {
    ImageName {
        kind: ImageKind::Volume,
        name,
    }
}

pub(crate) const fn snapshot(name: &str) -> ImageName<'_> {
    ImageName {
        kind: ImageKind::Snapshot,
        name,
    }
}

/// A pool in a directory of its own. At the end it is closed, or the test fails: nothing may be
/// left behind.
pub(crate) struct Fixture {
    _directory: tempfile::TempDir,
    pub(crate) config: PoolConfig,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let config = PoolConfig {
            dir: directory.path().join("pool"),
            file_bytes: 1024 * MIB,
        };
        Self {
            _directory: directory,
            config,
        }
    }

    pub(crate) fn open(&self) -> Pool {
        Pool::open(self.config.clone()).unwrap()
    }

    /// The pool's own file.
    pub(crate) fn file(&self) -> PathBuf {
        self.config.dir.with_extension("img")
    }

    pub(crate) fn image(&self, kind: &str, name: &str) -> PathBuf {
        self.config.dir.join(kind).join(format!("{name}.img"))
    }

    /// A small base image, as a file outside the pool: `/v/etc/release` says `tiny`.
    pub(crate) fn base(&self) -> PathBuf {
        let content = self._directory.path().join("base");
        let image = self._directory.path().join("base.img");
        std::fs::create_dir_all(content.join("v/etc")).unwrap();
        std::fs::write(content.join("v/etc/release"), "tiny").unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096", "-m", "0", "-O", "^has_journal", "-d"])
            .args([&content, &image])
            .arg("32M"));
        image
    }

    /// Checks the file system in an image that is not attached.
    pub(crate) fn check(&self, kind: &str, name: &str) {
        run(Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(self.image(kind, name)));
    }

    /// Copies an image as a crash would leave it: what is on disk at this moment.
    pub(crate) fn clone_image(&self, from: &str, to: &str) {
        run(Command::new("cp")
            .arg("--reflink=always")
            .arg(self.image("volumes", from))
            .arg(self.image("volumes", to)));
    }

    /// The loop devices whose backing file's path contains `part` and is in this directory.
    pub(crate) fn loop_devices(&self, part: &str) -> usize {
        let directory = self._directory.path().to_str().unwrap();
        let output = run(Command::new("losetup").args([
            "--list",
            "--noheadings",
            "--raw",
            "--output=BACK-FILE",
        ]));
        output
            .lines()
            .filter(|line| line.contains(directory) && line.contains(part))
            .count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let closed = Pool::open(self.config.clone()).and_then(|pool| pool.close());
        // A test that failed already says what is wrong, and may hold what cannot be closed.
        if !thread::panicking() {
            closed.unwrap();
        }
    }
}

/// What is in a volume's file, by attaching it.
pub(crate) fn read_volume(pool: &Pool, name: &str, file: &str) -> Vec<u8> {
    let mount = pool.attach_volume(name, VolumeUse::Data).unwrap();
    let content = read(&mount, file);
    drop(mount);
    pool.release_volume(name, LIMIT).unwrap();
    content
}

/// Writes a file to a volume, by attaching it.
pub(crate) fn write_volume(pool: &Pool, name: &str, file: &str, content: &[u8]) {
    let mount = pool.attach_volume(name, VolumeUse::Data).unwrap();
    write(&mount, file, content).unwrap();
    drop(mount);
    pool.release_volume(name, LIMIT).unwrap();
}

/// Runs a program that has to succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a file and waits until it is on disk.
pub(crate) fn write(mount: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(mount.as_fd(), name, flags, Mode::from_raw_mode(0o644))?;
    let mut file = File::from(file);
    file.write_all(content)?;
    file.sync_all()
}

pub(crate) fn read(mount: &OwnedFd, name: &str) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(mount.as_fd(), name, flags, Mode::empty()).unwrap();
    let mut content = Vec::new();
    io::Read::read_to_end(&mut File::from(file), &mut content).unwrap();
    content
}

/// The names in a mount's root, sorted.
pub(crate) fn entries(mount: &OwnedFd) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(mount.as_fd(), ".", flags, Mode::empty()).unwrap();
    let mut names: Vec<String> = Dir::read_from(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}
