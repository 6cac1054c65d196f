//! Templates: images that are made once and cloned many times.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

use crate::error::{Result, StorageError};
use crate::ext4::{self, Journal};
use crate::image::Unfinished;
use crate::{Pool, image};

/// Templates of bootable volumes that are kept: one for each capacity in use. The one that was
/// not used for longest goes first. Each takes some MiB of its own.
const BOOTABLE_MAX: usize = 8;

/// How the names of templates of bootable volumes start.
const BOOTABLE: &str = "bootable-";

impl Pool {
    /// The empty writable layer of this size.
    pub(crate) fn scratch_template(&self, bytes: u64) -> Result<File> {
        self.template(&format!("scratch-{bytes}.img"), |layer| {
            layer.set_len(bytes)?;
            ext4::format(layer, Journal::No, &self.dir().join("skeleton/scratch"))
        })
    }

    /// A volume of this size with the content of a base image. Made in about 70 ms for 20 GB.
    pub(crate) fn bootable_template(&self, base: &str, bytes: u64) -> Result<File> {
        let base_path = self.path("bases", base)?;
        let source = image::open(base, &base_path, false)?;
        let existing = image::length(&source, &base_path)?;
        if existing > bytes {
            return Err(StorageError::Smaller {
                name: base.to_owned(),
                existing,
                wanted: bytes,
            });
        }
        self.template(&format!("{BOOTABLE}{base}-{bytes}.img"), |volume| {
            self.forget_bootable_templates(BOOTABLE_MAX - 1)?;
            let draft = volume.draft()?;
            draft.clone_of(&source)?;
            draft.set_len(bytes)?;
            ext4::enlarge(&draft)?;
            ext4::add_journal(&draft)?;
            // A clone has not got the room for the journal that the draft reserved.
            volume.clone_of(draft.file())
        })
    }

    /// The template with this name, made with `fill` at its first use.
    fn template(&self, name: &str, fill: impl FnOnce(&Unfinished) -> Result<()>) -> Result<File> {
        let path = self.dir().join("skeleton").join(name);
        let _guard = self.template_lock();
        if !path.exists() {
            let template = Unfinished::create(&path)?;
            fill(&template)?;
            template.publish()?;
        }
        let file = image::open(name, &path, true)?;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        futimens(&file, &times).map_err(StorageError::sys("marking", &path))?;
        Ok(file)
    }

    /// Removes templates of bootable volumes until `kept` are left.
    fn forget_bootable_templates(&self, kept: usize) -> Result<()> {
        let directory = self.dir().join("skeleton");
        let mut templates =
            bootable_templates(&directory).map_err(StorageError::io("listing", &directory))?;
        templates.sort();
        let surplus = templates.len().saturating_sub(kept);
        for (_, path) in &templates[..surplus] {
            image::remove(path)?;
        }
        Ok(())
    }
}

/// The templates of bootable volumes, and when each was used.
fn bootable_templates(directory: &Path) -> std::io::Result<Vec<(SystemTime, PathBuf)>> {
    let mut templates = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(BOOTABLE) {
            templates.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(templates)
}
