//! The base image's tree, mounted read-only, for peers that run the same programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{binary, command, execute, output, succeeds};

/// The base image, mounted for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Base(PathBuf);

impl Base {
    /// Mounts the image at `<scratch>/base`; it is built first if it is missing.
    pub(crate) fn mount(scratch: &Path, image_cache: &Path) -> Result<Self> {
        let printed = output(
            command(binary())
                .args(["image", "build", "--image-cache"])
                .arg(image_cache),
        )?;
        let mount = scratch.join("base");
        fs::create_dir_all(&mount)?;
        execute(
            command("mount")
                .args(["-o", "ro,loop,noload", printed.trim()])
                .arg(&mount),
        )?;
        let base = Self(mount);
        if !base.tree().join("usr").is_dir() {
            bail!("{} holds no system", base.tree().display());
        }
        Ok(base)
    }

    /// The system's root: images keep their trees in a subdirectory.
    pub(crate) fn tree(&self) -> PathBuf {
        self.0.join("v")
    }

    /// A command that runs in the tree, with a directory of the host at `/mnt`.
    pub(crate) fn command(&self, directory: &Path) -> Command {
        let script = "mount --bind \"$1\" \"$2/mnt\" && root=$2 && shift 2 && \
                      exec chroot \"$root\" \"$@\"";
        let mut inside = command("unshare");
        inside
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(directory)
            .arg(self.tree());
        inside
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        succeeds(command("umount").arg(&self.0));
    }
}
