//! What sandboxes boot from: read-only bases, and writable layers that are thrown away.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::ioctl_ficlone;
use rustix::mount::MountAttrFlags;

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::pool::Base;
use crate::sys::loop_device::{BLOCK_BYTES, LoopDevice};
use crate::sys::mount;
use crate::{Pool, image, tool};

impl Pool {
    fn base_path(&self, name: &str) -> Result<PathBuf> {
        self.path("bases", name)
    }

    fn scratch_path(&self, name: &str) -> Result<PathBuf> {
        self.path("scratch", name)
    }

    /// Whether a base image is installed.
    #[must_use]
    pub fn has_base(&self, name: &str) -> bool {
        self.base_path(name).is_ok_and(|path| path.exists())
    }

    /// Copies a raw ext4 image into the pool as a base. Holes stay holes. Fine when it is there.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn install_base(&self, name: &str, source: &Path) -> Result<()> {
        let path = self.base_path(name)?;
        if path.exists() {
            return Ok(());
        }
        let unfinished = Unfinished::create(&path)?;
        let from = File::open(source).map_err(StorageError::io("opening", source))?;
        if ioctl_ficlone(unfinished.file(), &from).is_err() {
            copy_sparse(&from, unfinished.file()).map_err(StorageError::io("copying", source))?;
        }
        unfinished.publish()
    }

    /// A detached read-only mount of a base. All of them share one file system and its cache.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when it is not installed.
    pub fn base_tree(&self, name: &str) -> Result<OwnedFd> {
        let path = self.base_path(name)?;
        let mut bases = self.bases();
        if let Some(base) = bases.get(name) {
            // One more mount of the same device is one of the same file system.
            return mount_base(&base.device, &path);
        }
        let file = image::open(name, &path, false)?;
        let device =
            LoopDevice::attach(&file, name, true).map_err(StorageError::io("attaching", &path))?;
        let base = Base {
            _mount: mount_base(&device, &path)?,
            device,
        };
        let tree = mount_base(&base.device, &path)?;
        bases.insert(name.to_owned(), base);
        Ok(tree)
    }

    /// Makes a writable layer that holds at most `bytes`: a detached mount with the directories
    /// `upper` and `work`. What a crash left under this name is replaced.
    ///
    /// It has no journal and no barriers: it never outlives its sandbox, so nothing in it needs
    /// to survive.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] when the name is in use. Nothing is left of a layer that
    /// could not be made.
    pub fn create_scratch(&self, name: &str, bytes: u64) -> Result<OwnedFd> {
        let template = self.scratch_template(bytes)?;
        let path = self.scratch_path(name)?;
        match image::open_locked(name, &path) {
            Ok(_locked) => image::remove(&path)?,
            Err(StorageError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        drop(image::create(&path)?);
        let file = image::open_locked(name, &path)?;
        let mounted = image::clone(&template, &file, &path).and_then(|()| {
            let device = LoopDevice::attach(&file, name, false)
                .map_err(StorageError::io("attaching", &path))?;
            mount::mount(
                "ext4",
                &device.path(),
                &["nobarrier", "discard"],
                &[],
                MountAttrFlags::MOUNT_ATTR_NOATIME,
            )
            .map_err(StorageError::io("mounting", &path))
        });
        if mounted.is_err() {
            let _ = fs::remove_file(&path);
        }
        mounted
    }

    /// Waits until a writable layer's file system has ended, and removes it. Fine when there is
    /// none.
    ///
    /// # Errors
    /// [`StorageError::StillHeld`] after `limit`.
    pub fn release_scratch(&self, name: &str, limit: Duration) -> Result<()> {
        let path = self.scratch_path(name)?;
        match image::wait_until_free(name, &path, limit) {
            // Not flushed: after a crash it is found again, and removed again.
            Ok(_locked) => fs::remove_file(&path).map_err(StorageError::io("removing", &path)),
            Err(StorageError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The writable layers that exist.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn scratches(&self) -> Result<Vec<String>> {
        image::names(&self.dir().join("scratch"))
    }

    /// The empty layer of this size, from which all others are cloned.
    fn scratch_template(&self, bytes: u64) -> Result<PathBuf> {
        let bytes = bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        let path = self
            .dir()
            .join("skeleton")
            .join(format!("scratch-{bytes}.img"));
        let _guard = self.template_lock();
        if path.exists() {
            return Ok(path);
        }
        let unfinished = Unfinished::create(&path)?;
        unfinished.set_len(bytes)?;
        tool::run(
            "mkfs.ext4",
            [
                "-q".as_ref(),
                "-F".as_ref(),
                "-b".as_ref(),
                "4096".as_ref(),
                "-m".as_ref(),
                "0".as_ref(),
                "-O".as_ref(),
                "^has_journal".as_ref(),
                "-E".as_ref(),
                "nodiscard,assume_storage_prezeroed=1".as_ref(),
                "-d".as_ref(),
                self.dir().join("skeleton/scratch").as_os_str(),
                unfinished.path().as_os_str(),
            ],
        )?;
        unfinished.publish()?;
        Ok(path)
    }
}

fn mount_base(device: &LoopDevice, path: &Path) -> Result<OwnedFd> {
    mount::mount(
        "ext4",
        &device.path(),
        &["ro", "noload"],
        &[],
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(StorageError::io("mounting", path))
}

/// Copies the data of `from` and leaves its holes out.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom as SparseSeek, seek};
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut reader, mut writer) = (from, to);
    let mut offset = 0;
    loop {
        let data = match seek(from, SparseSeek::Data(offset)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = seek(from, SparseSeek::Hole(data))?;
        reader.seek(SeekFrom::Start(data))?;
        writer.seek(SeekFrom::Start(data))?;
        let copied = io::copy(&mut reader.take(hole - data), &mut writer)?;
        if copied != hole - data {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset = hole;
    }
}
